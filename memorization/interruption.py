"""Being told to stop: Ctrl-C and SIGTERM end long work once it is saved."""

import signal
import threading
from contextlib import contextmanager

from memorization import processes
from memorization.errors import Interrupted
from memorization.screen import loss_of_screen

STOPPING = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Which of STOPPING has come, its number, or None; SIGPIPE once nothing can be printed any more, as if it had come."""

    _number = None

    @property
    def number(self):
        return self._number or (int(signal.SIGPIPE) if loss_of_screen() else None)

    @number.setter
    def number(self, number):
        self._number = number

    @property
    def name(self):
        if self.number == signal.SIGPIPE:
            return f"nothing can be printed ({getattr(loss_of_screen(), 'strerror', 'Broken pipe')})"
        return signal.Signals(self.number).name

    def check(self, done):
        """Raise Interrupted where a signal has come. done: what is saved, in words."""
        if self.number:
            raise Interrupted(f"{self.name}: {done}; the same command goes on from here", self.number)


@contextmanager
def stop_requests():
    """Note Ctrl-C and SIGTERM in the StopRequest that is given, in place of ending; the second one ends at once.

    Of several processes each is told by the terminal and by torchrun too: there every one is only noted. What is ignored already, as Ctrl-C
    is by a job in the background, stays ignored. Python hands signals to its main thread alone; in another one nothing is noted.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.getsignal(number) for number in STOPPING}
    previous = {number: handler for number, handler in previous.items() if handler != signal.SIG_IGN}

    def note(number, _):
        request.number = number
        if processes.count() > 1:
            return
        for other, handler in previous.items():
            signal.signal(other, handler)

    for number in previous:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
