import os
import warnings

import pytest
from conftest import ROOT
from started import run_script

import train_simclr
from memorization.errors import MOST_SHOWN, Caution, Interrupted, WrongUse, escape, shorten
from memorization.machine.command import one_line_errors

HIDDEN = "\x1b]0;owned\x07\x1b[31m\x7f\x9b2J\u202egnp.\u2066\ud8ff\r"


def test_a_warning_of_ours_is_one_line_and_others_are_as_they_were():
    @one_line_errors
    def main(argv):
        return [
            warnings.formatwarning(kind("look out"), kind, "file.py", 7)
            for kind in (Caution, UserWarning)
        ]

    ours, other = main([])
    assert ours == "warning: look out\n" and other == "file.py:7: UserWarning: look out\n"
    assert (
        warnings.formatwarning(Caution("look out"), Caution, "file.py", 7)
        == "file.py:7: Caution: look out\n"
    )


@pytest.mark.parametrize(
    "kind",
    [WrongUse, Caution, lambda message: Interrupted(message, 2)],
    ids=["WrongUse", "Caution", "Interrupted"],
)
def test_every_message_is_one_bounded_line_without_what_a_terminal_obeys(kind):
    shown = str(kind(f"a\nb\x85c/{HIDDEN}.png: größe 猫 {'x' * 10**6} is not allowed: the end"))
    assert shown.startswith(
        "a b c/\\x1b]0;owned\\x07\\x1b[31m\\x7f\\x9b2J\\u202egnp.\\u2066\\ud8ff .png: größe 猫 xxx"
    )
    assert shown.endswith("x is not allowed: the end")
    assert len(shown) == MOST_SHOWN and not any(
        character in shown for character in HIDDEN if not character.isprintable()
    )
    shown.encode()


def test_a_short_message_is_shown_as_it_is():
    assert (
        str(WrongUse("training.epochs: 'many' is not allowed"))
        == "training.epochs: 'many' is not allowed"
    )
    assert shorten("x" * 200) == "x" * 200 and len(shorten("x" * 201)) == 200
    assert shorten("begin" + "x" * 300 + "end").startswith("begin") and shorten(
        "begin" + "x" * 300 + "end"
    ).endswith("end")


def test_a_name_that_is_printed_cannot_command_the_terminal():
    assert escape(HIDDEN) == "\\x1b]0;owned\\x07\\x1b[31m\\x7f\\x9b2J\\u202egnp.\\u2066\\ud8ff\\r"
    assert escape("größe 猫 \u200d ±") == "größe 猫 \u200d ±"


def test_a_name_that_is_not_utf_8_is_refused_in_a_line_of_ascii(refusal):
    name = os.fsdecode(b"\xff\x1b[2J.yaml")
    assert (
        refusal(train_simclr.main, ["--config", name])
        == "error: \\udcff\\x1b[2J.yaml: no such file\n"
    )


def test_what_the_system_refuses_anywhere_is_one_line_with_its_reason(capsys):
    @one_line_errors
    def main(argv):
        open("/proc/version/below")

    with pytest.raises(SystemExit) as ended:
        main([])
    assert (
        ended.value.code == 2
        and capsys.readouterr().err == "error: /proc/version/below: Not a directory\n"
    )


def test_a_script_does_not_look_through_its_libraries_for_garbage_when_it_ends(tmp_path):
    begin = "import atexit, gc\natexit.register(lambda: print(len(gc.get_objects())))\n"
    (tmp_path / "script.py").write_text(begin + "import train_simclr\n")  # what is first ends last
    ended = run_script(tmp_path / "script.py", PYTHONPATH=str(ROOT))
    assert ended.returncode == 0 and int(ended.stdout) < 100, ended.stderr
