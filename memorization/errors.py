"""Wrong use: one clear line and exit code 2, never a traceback; the same for being told to stop, with the exit code of its signal."""

import functools
import sys


class WrongUse(ValueError):
    """Something the user can put right. The message is one line: the key or path, its value, and what is allowed."""

    def __init__(self, message):
        super().__init__(" ".join(message.splitlines()))  # what it quotes of a file may hold line breaks


class Interrupted(Exception):
    """A training was told to stop, and is saved. The message is one line; `exit_code` is 128 + the signal's number, as in shells."""

    def __init__(self, message, number):
        super().__init__(message)
        self.exit_code = 128 + number


def one_line_errors(main):
    """Decorate a script's main(argv=None): WrongUse becomes its one line on stderr and exit code 2, an interruption one and its own."""

    @functools.wraps(main)
    def run(argv=None):
        try:
            return main(argv)
        except WrongUse as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except Interrupted as stop:
            print(f"stopped: {stop}", file=sys.stderr)
            raise SystemExit(stop.exit_code) from None
        except KeyboardInterrupt:
            print("stopped: the same command starts again, from what was kept", file=sys.stderr)
            raise SystemExit(130) from None

    return run
