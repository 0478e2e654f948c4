"""How a script's main runs: wrong use ends it with one line and exit code 2, a signal with its own
exit code.
"""

import atexit
import functools
import gc
import os
import sys
import warnings

from memorization.errors import Caution, Interrupted, WrongUse, exhausted_memory, one_line
from memorization.machine import processes
from memorization.machine.screen import loss_of_screen, open_screens

# At its end Python looks for garbage among all that torch has made. That takes a second or two, and
# frees nothing that does not end with the process.
atexit.register(gc.freeze)


def one_line_errors(main):
    """Decorate a script's main(argv=None): errors that are not the program's become one line on
    stderr.

    WrongUse, memory that ran out and other errors of the system end it with exit code 2,
    Interrupted with its own. A Caution is one line too. A reader of the screen that leaves, as
    `head` does, changes no exit code; a screen that cannot be written to for another reason is
    wrong use.
    """

    @functools.wraps(main)
    @processes.exit_together
    @open_screens()
    def run(argv=None):
        before, warnings.formatwarning = warnings.formatwarning, _one_line
        try:
            result = main(argv)
            processes.leave()
            _check_screen()
            return result
        except processes.OtherFailed:
            raise SystemExit(2) from None
        except (WrongUse, MemoryError, RuntimeError, OSError) as error:
            reason = _reason_to_end(error)
            if reason is None:
                raise
            if processes.claim_report():
                print(f"error: {reason}", file=sys.stderr)
            raise SystemExit(2) from None
        except Interrupted as stop:
            if processes.is_first():  # all processes are interrupted together
                print(f"stopped: {stop}", file=sys.stderr)
            raise SystemExit(stop.exit_code) from None
        except KeyboardInterrupt:
            print("stopped: the same command starts again, from what was kept", file=sys.stderr)
            raise SystemExit(130) from None
        finally:
            warnings.formatwarning = before

    return run


def _reason_to_end(error):
    """Why a script ends, in one line, if that is not the program's fault; else None."""
    memory = exhausted_memory(error)
    if isinstance(error, WrongUse):
        return str(error)
    if memory is not None:
        return f"this needs more than {memory}; end what else uses it, or take less at a time"
    if isinstance(error, OSError):
        place = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return one_line(f"{place}{error.strerror or error}")
    if processes.is_lost(error):
        return f"one of the {processes.count()} processes has ended before its work was done"
    return None


def _check_screen():
    """Raise WrongUse if something could not be printed, unless the reader had left."""
    loss = loss_of_screen()
    if loss is not None and not isinstance(loss, BrokenPipeError):
        fault = f"the screen (stdout): cannot be written to ({loss.strerror})"
        raise WrongUse(f"{fault}; the work is done, and its files are whole")


_format_of_python = warnings.formatwarning


def _one_line(message, category, *place, **line):
    if issubclass(category, Caution):
        return f"warning: {message}\n"
    return _format_of_python(message, category, *place, **line)
