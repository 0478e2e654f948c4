"""Wrong use: one clear line and exit code 2, never a traceback."""

import functools
import sys


class WrongUse(ValueError):
    """Something the user can put right. The message is one line: the key or path, its value, and what is allowed."""


def one_line_errors(main):
    """Decorate a script's main(argv=None): WrongUse becomes its one line on stderr and exit code 2."""

    @functools.wraps(main)
    def run(argv=None):
        try:
            return main(argv)
        except WrongUse as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None

    return run
