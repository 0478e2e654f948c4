"""A `python` for a shell script that a test runs: it begins at once, see started.py.

    fork.py SCRIPT ...    or    fork.py -m MODULE ...

The test hands the pipes of the process that forks down to it, and FORKS, their numbers.
"""

import os
import shutil
import sys
import tempfile
import time

from started import ask


def main():
    with tempfile.NamedTemporaryFile("r") as output:
        request = {
            "command": sys.argv[1:],
            "folder": os.getcwd(),
            # not FORKS: the fork has no such pipes
            "environment": {name: os.environ[name] for name in os.environ if name != "FORKS"},
            "files": [output.name, output.name],
        }
        pid = ask(request)
        while (code := ask(pid)) is None:
            time.sleep(0.02)
        shutil.copyfileobj(output, sys.stdout)
    sys.exit(code)


if __name__ == "__main__":
    main()
