import io
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import write_experiment

import train_simclr
from memorization.errors import Caution
from memorization.machine import processes
from memorization.machine.command import one_line_errors
from memorization.machine.interruption import stop_requests
from memorization.machine.screen import Screen, caution, loss_of_screen, open_screens, percent, say

PRINTING = """
import sys
from memorization.machine.command import one_line_errors

@one_line_errors
def main(argv):
    for line in range(5000):
        print("a line of a table ±", line)
    with open(argv[0], "w") as file:
        file.write("whole")

main(sys.argv[1:])
"""


class Broken(io.StringIO):
    """A stream whose reader has left."""

    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")


def run_printing(path, **streams):
    """Run a script that prints more than a pipe holds and then writes a file. Returns what
    subprocess.run does.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", PRINTING, path], env=environment, text=True, **streams
    )


def test_the_first_process_alone_prints_and_warns(capsys, monkeypatch):
    say("a line")
    with pytest.warns(Caution, match="a warning"):
        caution("a warning")
    with pytest.MonkeyPatch.context() as others:
        others.setattr(processes, "rank", lambda: 1)
        say("a line of another process")
        caution("a warning of another process")  # else an error, by pyproject.toml
    monkeypatch.setenv("RANK", "1")  # of something else: there is one process
    say("a second line")
    monkeypatch.setenv("WORLD_SIZE", "2")  # two processes, which have not met
    say("a line of another process")
    monkeypatch.setenv("RANK", "0")
    say("a third line")
    assert capsys.readouterr().out == "a line\na second line\na third line\n"


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-2", "koi8-r"])
def test_a_character_that_the_screen_lacks_is_printed_as_an_escape(encoding):
    bytes_on_screen = io.BytesIO()
    screen = Screen(io.TextIOWrapper(bytes_on_screen, encoding))
    print("81.6 ± 0.7 % of caf\udce9 and \U0001f600", file=screen)
    assert bytes_on_screen.getvalue() == rb"81.6 \xb1 0.7 % of caf\udce9 and \U0001f600" + b"\n"


def test_a_stream_that_is_no_file_is_a_screen_too(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", None)  # without a terminal, as in a daemon
    one_line_errors(lambda argv: (print("a line"), print("another", file=sys.stderr)))([])
    assert sys.stdout.getvalue() == "a line\n" and sys.stderr is None


def test_what_nobody_reads_is_dropped_and_known(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Broken())
    with open_screens():
        assert loss_of_screen() is None
        print("a line")
        print("another")
        assert isinstance(loss_of_screen(), BrokenPipeError)
    assert loss_of_screen() is None


def test_a_screen_that_nobody_reads_stops_long_work_like_a_signal(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Broken())
    with open_screens(), stop_requests() as stop:
        assert stop.number is None
        print("a line")
        assert stop.number == signal.SIGPIPE and "Broken pipe" in stop.name


def test_a_training_that_nobody_reads_is_saved_and_goes_on_bit_identical(
    tmp_path, monkeypatch, capsys
):
    whole, left = (
        write_experiment(tmp_path / name)
        for name in ("whole", "left")
        if not (tmp_path / name).mkdir()
    )
    train_simclr.main(["--config", whole])
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Broken())
        with pytest.raises(SystemExit) as ending:
            train_simclr.main(["--config", left])
    line = capsys.readouterr().err
    assert ending.value.code == 128 + signal.SIGPIPE
    assert (
        line.startswith("stopped: nothing can be printed (Broken pipe): ") and line.count("\n") == 1
    )
    assert "candidate is saved after step 1 of 9" in line
    train_simclr.main(["--config", left])
    for role in ("candidate", "independent"):
        name = f"run/seed_0/{role}/encoder.pt"
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "left" / name).read_bytes()


def test_a_slow_reader_is_waited_for_although_another_program_made_the_pipe_not_wait():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    lines = [f"line {number} {'.' * 100}" for number in range(3000)]  # more than a pipe holds

    def print_lines():
        with open(writing, "w") as pipe:
            screen = Screen(pipe)
            for line in lines:
                print(line, file=screen)
            assert screen.loss is None

    with ThreadPoolExecutor() as pool, open(reading) as pipe:
        printing = pool.submit(print_lines)
        time.sleep(0.5)  # until the pipe is full
        printed = pipe.read().splitlines()
        printing.result()
    assert printed == lines


def test_work_whose_reader_leaves_is_done_without_a_word(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe:
        ended = run_printing(tmp_path / "result", stdout=pipe, stderr=subprocess.PIPE)
    assert (ended.returncode, ended.stderr, (tmp_path / "result").read_text()) == (0, "", "whole")


@pytest.mark.skipif(
    not os.path.exists("/dev/full"), reason="there is no /dev/full, which plays a full disk"
)
def test_a_line_tells_of_a_screen_on_a_full_disk_once_the_work_is_done(tmp_path):
    with open("/dev/full", "w") as full:
        ended = run_printing(tmp_path / "result", stdout=full, stderr=subprocess.PIPE)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert ended.stderr.startswith(
        "error: the screen (stdout): cannot be written to (No space left on device)"
    )
    assert (tmp_path / "result").read_text() == "whole"


def test_closed_standard_files_do_not_end_the_work_nor_mix_with_its_files(tmp_path):
    ended = run_printing(tmp_path / "result", preexec_fn=lambda: (os.close(1), os.close(2)))
    assert (ended.returncode, (tmp_path / "result").read_text()) == (0, "whole")


def test_a_bound_in_percent_is_rounded_up_and_never_to_none():
    bounds = [0.0, 0.0027, 0.01, 0.121, 0.29, 1.0, float("nan")]
    assert [percent(bound) for bound in bounds] == ["0%", "1%", "1%", "13%", "29%", "100%", "nan%"]
