import os
import signal

import pytest
from conftest import log_of, train

import train_simclr
from memorization.checkpoint import read_checkpoint
from memorization.errors import Caution
from memorization.training import read_log


@pytest.fixture
def interrupted(write_config, tmp_path, at_step):
    """(config path, folder of f) of a tiny training that was stopped within its third epoch, after
    step 7.
    """
    path, folder = write_config(), tmp_path / "run/seed_0/candidate"
    at_step([7], lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        train(path)
    assert read_checkpoint(folder / "last.pt")["step"] == 7
    return path, folder


TORN = b'{"epoch": 3, "step": 9, "loss": 1.'


@pytest.mark.parametrize("damage, epochs, warns", [
    (lambda content: content + TORN, [1, 2, 3], False),
    (lambda content: content + bytes(4096), [1, 2, 3], False),
    (lambda content: content + b"\xff\xfe" + content, [1, 2, 3], False),
    (lambda content: content.splitlines()[0] + b"\n" + TORN, [1, 3], True),
    (lambda content: content[:60] + b"?" + content[61:].partition(b"\n")[2], [3], True),
    (lambda content: TORN, [3], True),
    (lambda content: None, [3], True),
])  # fmt: skip
def test_a_torn_or_lost_log_does_not_stop_the_training(
    damage, epochs, warns, interrupted, tmp_path
):
    path, folder = interrupted
    log = folder / "log.jsonl"
    content = damage(log.read_bytes())
    log.unlink()
    if content is not None:
        log.write_bytes(content)
    if warns:
        words = "of 2 finished epochs are missing or damaged; the training goes on without them"
        with pytest.warns(Caution, match=words):
            train(path)
    else:
        train(path)
    assert [line["epoch"] for line in read_log(log)] == epochs
    noted = log_of(tmp_path / "run")
    assert [line["epoch"] for line in noted if "epoch" in line] == epochs
    gaps = [line["lost_epochs"] for line in noted if "lost_epochs" in line]
    assert sum(last + 1 - first for first, last in gaps) == 3 - len(epochs)


def test_a_log_with_lines_missing_can_be_resumed_again_and_read(interrupted):
    path, folder = interrupted
    log = folder / "log.jsonl"
    log.write_bytes(log.read_bytes().splitlines(keepends=True)[1])
    for _ in range(2):
        with pytest.warns(Caution, match="1 of the lines of [23] finished epochs"):
            train(path)
        (folder / "encoder.pt").unlink()
    log.write_bytes(log.read_bytes() + TORN)
    assert [line["epoch"] for line in read_log(log)] == [2, 3]


def test_a_log_that_the_system_does_not_give_is_not_overwritten(interrupted, refusal):
    path, folder = interrupted
    (folder / "log.jsonl").unlink()
    os.mkfifo(folder / "log.jsonl")
    line = refusal(train_simclr.main, ["--config", path])
    assert "log.jsonl: cannot be read (it is a pipe" in line
