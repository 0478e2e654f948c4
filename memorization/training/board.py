"""Board: the numbers of a training as event files of TensorBoard, a copy of log.jsonl."""

from memorization.machine.files import delete_file, make_folder, names_in, refuse_unwritable
from memorization.machine.processes import on_first_process
from memorization.training.log import whole_lines

FOLDER = "tensorboard"
EVENTS = "events.out.tfevents."  # the beginning of the names of its files
NOT_SHOWN = ("epoch",)
KEY, INSTALL = "training.tensorboard", "pip install -r requirements-optional.txt"


class Board:
    """The folder tensorboard/ beside a log.jsonl, to which a training appends.

    It begins with the lines of the log, and earlier event files are deleted: after an interruption
    it has what the log has. No training depends on it.
    """

    def __init__(self, folder):
        """folder: of the log, of finished epochs alone."""
        self.folder = folder / FOLDER
        self._begin(folder / "log.jsonl")

    @on_first_process
    def _begin(self, log):
        make_folder(self.folder)
        for name in names_in(self.folder):
            if name.startswith(EVENTS):
                delete_file(self.folder / name)
        with refuse_unwritable(self.folder):
            self.writer = import_writer()(str(self.folder))
        for line in whole_lines(log):
            self._add(line)

    @on_first_process
    def append(self, line):
        """Add the numbers of an epoch. line: of the log, a dict."""
        with refuse_unwritable(self.folder):
            self._add(line)
            self.writer.flush()

    def _add(self, line):
        for key, value in line.items():
            if key not in NOT_SHOWN and isinstance(value, int | float):
                self.writer.add_scalar(key, value, line["epoch"])

    @on_first_process
    def close(self):
        with refuse_unwritable(self.folder):
            self.writer.close()


def import_writer():
    """The class that writes event files. Raises ValueError if the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        if getattr(error, "name", None) not in (None, "tensorboard"):
            raise
        missing = f"{KEY}: the package tensorboard is missing; {INSTALL}"
        raise ValueError(f"{missing}, or set it to false") from None
    return SummaryWriter
