"""Scripts as processes of their own that begin at once.

`python script.py` takes six seconds of a core, nearly all to import torch and other libraries. Here
one process imports the libraries, but nothing of this project. It forks for each script, and the
fork runs the script as `python script.py` does, to its exit code.
"""

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress

FORKS = """
import gc, json, os, runpy, signal, sys
import matplotlib.backends.backend_agg, PIL.Image, pydantic, scipy.stats, torch, torch._dynamo
import torchvision, tqdm, yaml

gc.freeze()  # a fork that ends does not look through the libraries for garbage
for line in sys.stdin:
    request = json.loads(line)
    if isinstance(request, int):
        pid, status = os.waitpid(request, os.WNOHANG)
        answer = os.waitstatus_to_exitcode(status) if pid else None
    else:
        answer = os.fork()
        if answer == 0:
            break
    print(json.dumps(answer), flush=True)
else:
    sys.exit()
os.setsid()
signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background
files = [open(os.devnull), *(open(path, "a") for path in request["files"])]
for number, file in enumerate(files):
    os.dup2(file.fileno(), number)
    file.close()
os.chdir(request["folder"])
os.environ.clear()
os.environ.update(request["environment"])
sys.argv = request["command"]
places = os.environ.get("PYTHONPATH", "").split(os.pathsep)
if sys.argv[0] == "-m":
    sys.argv = sys.argv[1:]
    sys.path[:1] = [os.getcwd(), *filter(None, places)]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    sys.path[:1] = [os.path.dirname(sys.argv[0]), *filter(None, places)]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@functools.cache
def pipes():
    """(requests, answers): text files to and from the process that forks. It ends with this one,
    which closes the pipe that it reads.

    tests/fork.py, which a test starts, gets those of the test; FORKS has their numbers.
    """
    if "FORKS" in os.environ:
        return tuple(map(os.fdopen, map(int, os.environ["FORKS"].split()), "wr"))
    ends = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = [sys.executable, "-c", FORKS]
    process = subprocess.Popen(command, text=True, start_new_session=True, **ends)
    return process.stdin, process.stdout


def ask(request):
    """The answer of the process that forks to a request, both JSON."""
    requests, answers = pipes()
    requests.write(json.dumps(request) + "\n")
    requests.flush()
    return json.loads(answers.readline())


class Started:
    """A script as a process, which heads a group of its own. Its attributes are those of
    subprocess.Popen, but for the texts `stdout` and `stderr`, which it has written so far.
    """

    def __init__(self, script, *arguments, folder=None, **variables):
        """folder: in which it begins, by default the present one. variables: of the environment, in
        addition to the present ones.
        """
        self.files = [tempfile.NamedTemporaryFile() for _ in range(2)]
        self.returncode = None
        self.pid = ask(
            {
                "command": [os.path.abspath(script), *map(str, arguments)],
                "folder": str(folder or os.getcwd()),
                "environment": os.environ | variables,
                "files": [file.name for file in self.files],
            }
        )

    @property
    def stdout(self):
        return self.text(0)

    @property
    def stderr(self):
        return self.text(1)

    def text(self, number):
        with open(self.files[number].name, newline="") as file:
            return file.read()

    def poll(self):
        if self.returncode is None:
            self.returncode = ask(self.pid)
        return self.returncode

    def wait(self, timeout=300):
        """The exit code of the process, once it has ended. If that takes longer than so many
        seconds, the process is killed, and the test fails.
        """
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill_group()
                raise TimeoutError(f"{timeout} seconds: {self.stderr}")
            time.sleep(0.005)
        return self.returncode

    def kill_group(self):
        """Kill the process and those that it started, and wait until none of them is left."""
        with suppress(ProcessLookupError):
            while True:
                os.killpg(self.pid, signal.SIGKILL)
                self.poll()
                time.sleep(0.005)

    def send_signal(self, number):
        os.kill(self.pid, number)


def run_script(script, *arguments, **options):
    """Start a script and wait until it has ended. Returns its process; see Started."""
    process = Started(script, *arguments, **options)
    process.wait()
    return process
