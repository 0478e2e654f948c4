"""A disk that fails at any call of a script ends its work in one line and exit code 2, and nothing
is lost.

DISK_ERRORS: how many calls of each script fail, one after the other; 0 for all of them.
"""

import errno
import fcntl
import os
import shutil
import sys
from contextlib import contextmanager

import pytest
from conftest import write_experiment

import memorization_scores
import train_simclr
from memorization.machine.files import write_atomically

FAILURES = int(os.environ.get("DISK_ERRORS", 5))
CALLS = [
    "open",
    "fsync",
    "replace",
    "mkdir",
    "unlink",
    "pwrite",
    "ftruncate",
    "stat",
    "lstat",
    "scandir",
]
ONE_EPOCH = {"training.epochs": 1, "training.checkpoint_epochs": [1]}


class FailingDisk:
    """Counts the calls that a folder's files take, and lets one of them fail. number: of that call,
    from 0, or None.
    """

    def __init__(self, folder, number=None, code=errno.EIO):
        self.folder, self.number, self.code = str(folder), number, code
        self.count, self.failed = 0, None

    def _concerns(self, name, arguments):
        place = arguments[0] if arguments else "."
        if isinstance(place, int):
            try:
                place = os.readlink(f"/proc/self/fd/{place}")
            except OSError:
                return False
        return str(os.fsdecode(place)).startswith(self.folder)

    def watched(self, name, call):
        def counted(*arguments, **named):
            if self._concerns(name, arguments):
                self.count += 1
                if self.count - 1 == self.number:
                    caller = sys._getframe(1).f_globals["__name__"].partition(".")[0]
                    self.failed = f"{name} of filelock" if caller == "filelock" else name
                    raise OSError(self.code, os.strerror(self.code), str(arguments[0]))
            return call(*arguments, **named)

        return counted

    @contextmanager
    def at_work(self):
        with pytest.MonkeyPatch.context() as patch:
            for module, name in [*((os, name) for name in CALLS), (fcntl, "flock")]:
                patch.setattr(module, name, self.watched(name, getattr(module, name)))
            yield self


def chosen(count):
    """The numbers of the calls that fail."""
    return range(0, count, max(1, count // FAILURES) if FAILURES else 1)


def outcome(script, config, capsys):
    """The exit code of a script, and what it says on stderr."""
    capsys.readouterr()
    try:
        script.main(["--config", config])
        code = 0
    except SystemExit as ended:
        code = ended.code
    return code, capsys.readouterr().err


def results(run):
    return {
        path.relative_to(run): path.read_bytes()
        for name in ("encoder.pt", "scores.csv")
        for path in run.rglob(name)
    }


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["full", "broken"])
@pytest.mark.parametrize("script", [train_simclr, memorization_scores], ids=["training", "scoring"])
def test_a_disk_that_fails_at_any_call_is_one_line_and_the_same_command_goes_on(
    script, code, tmp_path, capsys, monkeypatch
):
    # they take longer than all the rest
    for name in ("draw_histogram", "draw_scatter", "draw_gallery"):
        monkeypatch.setattr(
            memorization_scores,
            name,
            lambda *arguments: write_atomically(arguments[-1], "a picture"),
        )
    config = write_experiment(tmp_path, ONE_EPOCH)
    run, before = tmp_path / "run", tmp_path / "before"
    before.mkdir()
    if script is memorization_scores:
        train_simclr.main(["--config", config])
        shutil.copytree(run, before, dirs_exist_ok=True)
    with FailingDisk(tmp_path).at_work() as disk:
        assert outcome(script, config, capsys)[0] == 0
    wanted, count, passed_over = results(run), disk.count, set()
    assert len(wanted) == (2 if script is train_simclr else 3) and count > 50
    for number in chosen(count):
        shutil.rmtree(run)
        shutil.copytree(before, run)
        with FailingDisk(tmp_path, number, code).at_work() as disk:
            exit_code, error = outcome(script, config, capsys)
        if exit_code == 0:
            # None if the call was not reached: retries differ in number
            passed_over.add(disk.failed)
        else:
            assert exit_code == 2 and error.startswith("error: ") and error.count("\n") == 1, (
                number,
                disk.failed,
                error,
            )
            assert os.strerror(code) in error, (number, disk.failed, error)
        assert outcome(script, config, capsys)[0] == 0 and results(run) == wanted, (
            number,
            disk.failed,
        )
        assert not list(run.rglob(".*.partial")), (number, disk.failed)
    # Python's mkdir asks if the folder is there, and what cannot be cleaned up is left.
    tried_again = {"open of filelock", "flock of filelock"}
    assert passed_over <= {"mkdir", "scandir", "lstat", None} | tried_again
    print(f"{count} calls; passed over: {passed_over}")
