"""Results of other settings are never overwritten, and the files of one result belong together."""

import errno
import json
import os
import re
import shutil
import threading

import numpy as np
import pytest

import memorization_scores
import train_simclr
from memorization.config import read_run_config
from memorization.errors import WrongUse
from memorization.results import Result, Summary, check_files
from memorization.run import open_run

OLD, NEW = ({"a.csv": word, "b.npz": word * 2, "c.mat": word * 3} for word in (b"old", b"new"))


class Words(Summary):
    word: str
    later: str = "not written by earlier versions"
    seeds: list[int]
    settings: dict
    fingerprints: dict


def result_in(folder, seeds=(0,), **settings):
    return Result(
        folder / "scores",
        "score.py",
        {"scores.views": 4} | settings,
        {"scores.views": 10} | settings,
        list(seeds),
        {"subsets": "s" * 64},
    )


def summary_of(files, seeds=(0,), encoders=(), **settings):
    return Words(
        word=files["a.csv"].decode(),
        seeds=list(seeds),
        settings={"views": 4} | settings,
        fingerprints={"subsets": "s" * 64, "encoders": dict(encoders)},
    )


def put(result, files, summary=None, draw=True):
    """Save a result with one picture, which shows what the files say."""
    with result.save(files, summary or summary_of(files), ["p.png", "curve.png"]):
        if draw:
            (result.folder / "p.png").write_bytes(files["a.csv"])


def read_summary(folder, schema=Summary):
    """The Summary in a folder, whose files are checked."""
    summary = schema.parse((folder / "summary.json").read_text())
    check_files(folder, summary.files, "score.py")
    return summary


def state(folder):
    """What the files of a folder say, "old" or "new", if they are all of one result; None if there
    is no summary.
    """
    if not (folder / "summary.json").exists():
        return None
    summary = read_summary(folder)
    words = {name: (folder / name).read_bytes()[:3].decode() for name in OLD}
    if (folder / "p.png").exists():
        words["p.png"] = (folder / "p.png").read_bytes()[:3].decode()
    assert set(words.values()) == {summary.word}
    return summary.word


class Killed(BaseException):
    pass


def die_at(patch, number=None, error=Killed):
    """From the numbered call on that changes the disk, none is done: as if the process had been
    killed. Returns the list of calls.
    """
    calls = []
    for name in ("replace", "fsync", "unlink", "open"):
        call = getattr(os, name)

        def counted(*arguments, call=call, name=name, **more):
            if name != "open" or arguments[1] & os.O_CREAT:
                calls.append(name)
                if number is not None and len(calls) > number:
                    raise OSError(errno.EIO, "Input/output error") if error is OSError else error
            return call(*arguments, **more)

        patch.setattr(os, name, counted)
    return calls


@pytest.mark.parametrize("error", [Killed, OSError])
def test_a_result_is_all_old_or_all_new_or_has_no_summary_whenever_its_writing_ends(
    error, tmp_path, monkeypatch
):
    result = result_in(tmp_path)
    put(result, OLD)
    with monkeypatch.context() as patch:
        calls = die_at(patch)
        put(result, NEW)
    states = set()
    for number in range(len(calls)):
        put(result, OLD)
        with monkeypatch.context() as patch:
            die_at(patch, number, error)
            with pytest.raises((Killed, WrongUse)):
                put(result, NEW)
        states.add(state(result.folder))
        put(result, NEW)
        assert state(result.folder) == "new"
        assert {file.name for file in result.folder.iterdir()} == {*NEW, "summary.json", "p.png"}
    assert states == {"old", None, "new"} and len(calls) > 10


def test_an_old_picture_does_not_stand_beside_new_numbers(tmp_path):
    result = result_in(tmp_path)
    put(result, OLD)
    (result.folder / "curve.png").write_bytes(b"old")
    (result.folder / "own.png").write_bytes(b"of the user")
    put(result, NEW, draw=False)
    assert state(result.folder) == "new" and not (result.folder / "p.png").exists()
    assert not (result.folder / "curve.png").exists() and (result.folder / "own.png").exists()


def test_a_picture_over_time_stays_while_its_numbers_stay(tmp_path):
    result = result_in(tmp_path)
    put(result, OLD)
    (result.folder / "curve.png").write_bytes(b"old")
    put(result, OLD)
    assert (result.folder / "curve.png").exists()


def test_numbers_are_safe_before_a_picture_is_drawn(tmp_path):
    result = result_in(tmp_path)
    with pytest.raises(ZeroDivisionError), result.save(NEW, summary_of(NEW)):
        assert state(result.folder) == "new"
        raise ZeroDivisionError


def test_a_summary_is_read_by_the_class_that_wrote_it(tmp_path):
    result = result_in(tmp_path)
    put(result, NEW)
    text = (result.folder / "summary.json").read_text()
    assert list(json.loads(text)) == ["word", "seeds", "settings", "fingerprints", "files"]
    summary = read_summary(result.folder, Words)
    assert (summary.word, summary.later) == ("new", "not written by earlier versions")
    put(result, NEW, summary)
    assert (result.folder / "summary.json").read_text() == text


def test_a_summary_keeps_keys_of_other_versions_and_refuses_to_lack_its_own(tmp_path):
    result = result_in(tmp_path)
    put(result, NEW)
    path = result.folder / "summary.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"of_tomorrow": [1.0, None]}))
    assert read_summary(result.folder, Words).of_tomorrow == [1.0, None]
    path.write_text(json.dumps(values | {"word": 5}))
    with pytest.raises(ValueError, match="^word: Input should be a valid string"):
        read_summary(result.folder, Words)
    del values["seeds"]
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="^seeds: Field required"):
        read_summary(result.folder, Words)


def test_two_that_save_at_once_do_not_mix(tmp_path):
    result, failures = result_in(tmp_path), []

    def save_again_and_again(files):
        try:
            for _ in range(20):
                put(result, files)
        except Exception as error:
            failures.append(error)

    both = [threading.Thread(target=save_again_and_again, args=[files]) for files in (OLD, NEW)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert not failures and state(result.folder) in ("old", "new")


def test_a_file_of_another_result_is_refused(tmp_path):
    result = result_in(tmp_path)
    put(result, NEW)
    for name in OLD:
        (result.folder / name).write_bytes(OLD[name])
        with pytest.raises(
            WrongUse, match=f"files of different results: {name} is .*; run score.py again"
        ):
            read_summary(result.folder)
        (result.folder / name).unlink()  # which who reads it will miss
        read_summary(result.folder)
    # a name that is no name of ours is not opened
    check_files(result.folder, {"../summary.json": "0" * 64}, "score.py")


@pytest.mark.parametrize("change, words", [
    ({"views": 5}, "scores.views is 5, but 4 belongs here"),
    ({"seeds": [0, 1]}, r"seeds is \[0, 1\], but \[0\] belongs here"),
    ({"fingerprints": {"subsets": "t" * 64}}, "subsets is"),
])  # fmt: skip
def test_a_result_of_something_else_is_not_overwritten(change, words, tmp_path):
    result = result_in(tmp_path)
    put(result, OLD)
    summary = json.loads((result.folder / "summary.json").read_text())
    summary |= change if "views" not in change else {"settings": change}
    (result.folder / "summary.json").write_text(json.dumps(summary))
    before = {file: file.read_bytes() for file in result.folder.iterdir()}
    for write in (result.check_place, lambda: put(result, NEW)):
        with pytest.raises(WrongUse, match=f"holds another result: {words}.*delete .*summary.json"):
            write()
    assert {file: file.read_bytes() for file in result.folder.iterdir()} == before


def test_a_summary_that_is_broken_is_not_overwritten(tmp_path):
    result = result_in(tmp_path)
    put(result, OLD)
    for text in ("{", "[]", '{"settings": 3}'):
        (result.folder / "summary.json").write_text(text)
        with pytest.raises(WrongUse, match="not a whole summary of a result .*delete"):
            put(result, NEW)


def test_more_seeds_and_encoders_trained_again_replace_a_result_with_a_line(tmp_path, capsys):
    put(result_in(tmp_path), OLD, summary_of(OLD, encoders={"f": "1"}))
    assert capsys.readouterr().out == ""
    put(
        result_in(tmp_path, seeds=[0, 1]),
        NEW,
        summary_of(NEW, seeds=[0, 1], encoders={"f": "1", "f1": "2"}),
    )
    assert "seeds [0, 1] replace the result of seeds [0]" in capsys.readouterr().out
    put(
        result_in(tmp_path, seeds=[1, 0]),
        NEW,
        summary_of(NEW, seeds=[1, 0], encoders={"f": "3", "f1": "2"}),
    )
    assert "f was trained again" in capsys.readouterr().out
    assert state(tmp_path / "scores") == "new"


# --- folders --------------------------------------------------------------------------------------


@pytest.fixture
def run_of(scored_run):
    """run_of(*options, section="scores") -> the Run of the script of a measurement for the scored
    run, with seeds 0 and 1.
    """
    path, run = scored_run

    def open_scored_run(*options, section="scores"):
        return open_run("", ["--config", path, "--run", str(run), *options], section)

    return open_scored_run


@pytest.mark.parametrize(
    "options, name",
    [
        ("", "scores"),
        ("--scores.views 4 --scores.batch_size 7 --seeds 1 0", "scores"),
        ("--scores.views 5", "scores/views_5"),
        ("--scores.per_subset 16", "scores/per_subset_16"),
        (
            "--scores.representation tokens --scores.precision bf16 --scores.views 5 --seeds 0",
            "scores/tokens_bf16_views_5_seeds_0",
        ),
    ],
)
def test_scores_lie_in_a_folder_named_after_what_differs_from_the_run(options, name, run_of):
    run = run_of(*options.split())
    assert run.output("scores").folder == run.folder / name


@pytest.mark.parametrize(
    "options, name",
    [
        ("--dejavu.memory_gb 1 --dejavu.corner upper_left --dejavu.reference_epochs 7", "dejavu"),
        ("--dejavu.k 5 --dejavu.normalize true", "dejavu/k_5_normalize_true"),
        (
            "--dejavu.query corner --dejavu.views 7 --dejavu.corner upper_left",
            "dejavu/corner_corner_upper_left",
        ),
        ("--dejavu.reference crops --dejavu.reference_epochs 7", "dejavu/crops_reference_epochs_7"),
        ("--dejavu.public_images 50 --scores.views 5", "dejavu/public_images_50_scores_views_5"),
    ],
)
def test_deja_vu_lies_in_a_folder_named_after_what_matters_for_its_query(options, name, run_of):
    run = run_of(*options.split(), section="dejavu")
    assert run.output().folder == run.folder / name


@pytest.mark.parametrize("file", ["boxes.csv", "boxes/a/1.xml"])
def test_boxes_are_told_apart_by_their_content(file, run_of, tmp_path):
    path, names = tmp_path / file, []
    path.parent.mkdir(parents=True, exist_ok=True)
    for content in ("10", "20", "10"):  # of one size
        path.write_text(content)
        options = ["--dejavu.query", "boxes", "--dejavu.boxes", str(tmp_path / file.split("/")[0])]
        names.append(run_of(*options, section="dejavu").output().folder.name)
    assert names[0] == names[2] != names[1] and all(
        re.fullmatch("boxes_[0-9a-f]{8}", name) for name in names
    )


def test_the_order_of_seeds_makes_no_other_result(run_of):
    assert run_of("--seeds", "1", "0").config == run_of("--seeds", "0", "1").config


@pytest.mark.parametrize(
    "options, name",
    [
        ("--probe.datasets cifar10 --probe.momentum 0.8", "probe/datasets_cifar10_momentum_0.8"),
        ("--probe.seeds 0", "probe/probe_seeds_0"),
        ("--seeds 0", "probe/seeds_0"),
        # of adamw, and of fine-tuning
        ("--probe.betas [0.5,0.9] --probe.fine_tune_epochs 3", "probe"),
        (
            "--probe.fine_tune true --probe.epochs 11 --probe.fine_tune_epochs 3",
            "probe/fine_tuned_fine_tune_epochs_3",
        ),
    ],
)
def test_probes_lie_in_a_folder_named_after_what_differs(options, name, run_of):
    run = run_of(*options.split(), section="probe")
    assert run.output().folder == run.folder / name


def test_a_long_name_ends_in_a_hash(run_of):
    rates = [[str(rate / 7) for rate in range(first, first + 12)] for first in (1, 2)]
    options = [["--probe.learning_rates", *some] for some in rates]
    names = [run_of(*some, section="probe").output().folder.name for some in options]
    assert all(len(name) == 100 and name.startswith("learning_rates_") for name in names)
    assert names[0] != names[1]


def test_scores_by_other_settings_leave_those_of_the_run_alone(scored_run, tmp_path, capsys):
    path, run = scored_run[0], shutil.copytree(scored_run[1], tmp_path / "run")
    before = {file: file.read_bytes() for file in (run / "scores").iterdir()}
    for options in (["--scores.views", "5"], ["--scores.per_subset", "16"], ["--seeds", "0"]):
        memorization_scores.main(["--config", path, "--run", str(run), *options])
        assert all(file.read_bytes() == content for file, content in before.items())
    assert {folder.name for folder in (run / "scores").iterdir() if folder.is_dir()} == {
        "views_5",
        "per_subset_16",
        "seeds_0",
    }
    opened = open_run("", ["--config", path, "--run", str(run), "--seeds", "1"])
    assert opened.scores_output().folder == run / "scores"  # which holds seed 1, too
    assert opened.candidate_scores().seeds == [0, 1]


def test_new_seeds_keep_how_a_run_is_measured(write_config, tmp_path):
    train_simclr.main(["--config", write_config({"training.epochs": 1, "scores": {"views": 3}})])
    train_simclr.main(
        ["--config", write_config({"training.epochs": 1, "scores": {"views": 7}, "seeds": [1]})]
    )
    config = read_run_config(tmp_path / "run")
    assert config.seeds == [0, 1] and config.scores.views == 3


def test_scores_of_before_there_were_two_precisions_are_read_as_fp32(run_copy):
    path, run = run_copy
    opened = open_run("", ["--config", path, "--run", str(run)])
    expected = opened.candidate_scores().score
    summary = json.loads((run / "scores/summary.json").read_text())
    del summary["settings"]["precision"]
    (run / "scores/summary.json").write_text(json.dumps(summary))
    assert np.array_equal(opened.candidate_scores().score, expected)
