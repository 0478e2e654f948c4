import dataclasses
import json
import multiprocessing

import pytest
import torch
import yaml
from conftest import train
from started import Started

import train_simclr
from memorization.config import read_config
from memorization.data.images import open_images
from memorization.data.subsets import ROLES, draw_subsets, load_subsets
from memorization.errors import Caution, WrongUse
from memorization.training import pair
from memorization.training.run_files import RunFiles, note_machine
from models.simclr import SimCLRSettings


def seeds_of(run):
    return yaml.safe_load((run / "config.yaml").read_text())["seeds"]


def test_more_seeds_join_a_finished_run(write_config, tmp_path, capsys):
    path = write_config({"training.epochs": 1})
    train(path)
    train(path, "--seeds", "0", "2")
    assert (tmp_path / "run/seed_2/independent/encoder.pt").exists()
    train(path, "--seeds", "1")
    assert seeds_of(tmp_path / "run") == [0, 1, 2]


def test_more_seeds_join_a_run_whose_folder_was_moved(write_config, tmp_path):
    path, moved = write_config({"training.epochs": 1}), tmp_path / "moved"
    train(path)
    (tmp_path / "run").rename(moved)
    train(path, "--run", str(moved), "--seeds", "1")
    assert seeds_of(moved) == [0, 1]
    assert not (tmp_path / "run").exists()


def start_at_once(work, count):
    """Call work(0), work(1), ... in as many processes, all from the same moment on."""
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(count)

    def run(number):
        barrier.wait()
        work(number)

    processes = [fork.Process(target=run, args=(number,)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * count


def prepared(path):
    """(Config, Subsets) of a config file."""
    config = read_config("", ["--config", path], method=SimCLRSettings)
    images = open_images(config.data)
    subsets = draw_subsets(config.subsets, images)
    return config, dataclasses.replace(subsets, data=images.fingerprint)


@pytest.mark.parametrize("is_new", [True, False])
def test_processes_that_start_at_once_lose_nothing_of_each_other(is_new, write_config, tmp_path):
    config, subsets = prepared(write_config({"seeds": [100]}))
    if not is_new:
        RunFiles(config).open(subsets)

    def start(number):
        RunFiles(config.model_copy(update={"seeds": [number]})).open(subsets)
        for role in ROLES:
            place, device = f"seed_{number}/{role}", torch.device("cpu")
            note_machine(config.folder, place, device, is_resumed=False)

    start_at_once(start, 8)
    assert seeds_of(tmp_path / "run") == [*range(8), *([] if is_new else [100])]
    noted = json.loads((tmp_path / "run/environment.json").read_text())
    assert set(noted) == {f"seed_{number}/{role}" for number in range(8) for role in ROLES}
    assert load_subsets(tmp_path / "run/subsets.npz").fingerprint == subsets.fingerprint
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"config.yaml", "subsets.npz", "environment.json"}


def test_of_two_trainings_that_start_at_once_with_different_settings_one_is_refused(
    write_config, tmp_path
):
    config, subsets = prepared(write_config())

    def start(number):
        settings = config.training.model_copy(update={"learning_rate": 0.01 * (number + 1)})
        changes = {"seeds": [number], "training": settings}
        try:
            RunFiles(config.model_copy(update=changes)).open(subsets)
            (tmp_path / f"began_{number}").touch()
        except WrongUse as error:
            assert "training.learning_rate" in str(error)

    start_at_once(start, 4)
    (began,) = tmp_path.glob("began_*")
    run = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    (seed,) = run["seeds"]
    assert seed == int(began.name[-1]) and run["training"]["learning_rate"] == 0.01 * (seed + 1)


def test_whole_trainings_of_single_seeds_start_at_once_into_one_new_run(write_config, tmp_path):
    path = write_config({"training.epochs": 1})
    command = [train_simclr.__file__, "--config", path, "--seeds"]
    started = [Started(*command, seed) for seed in range(2)]
    codes = [process.wait() for process in started]
    assert codes == [0, 0], [process.stderr for process in started]
    assert seeds_of(tmp_path / "run") == [0, 1]
    assert len(json.loads((tmp_path / "run/environment.json").read_text())) == 4
    assert len(list((tmp_path / "run").glob("seed_*/*/encoder.pt"))) == 4
    names = [file.name for file in (tmp_path / "run").rglob("*")]
    assert not [name for name in names if name.endswith((".partial", "lock"))]


def test_more_seeds_leave_the_settings_of_measurements_as_they_are(write_config, tmp_path):
    path = write_config({"training.epochs": 1, "scores.views": 4})
    train(path)
    changes = {"training.epochs": 1, "scores.views": 7, "training.knn_every": 1}
    train(write_config(changes), "--seeds", "1")
    run = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert (run["seeds"], run["scores"]["views"], run["training"]["knn_every"]) == ([0, 1], 4, 0)


def test_a_run_that_has_the_seeds_already_is_only_read(write_config, tmp_path):
    def times():
        paths = (tmp_path / "run", *(tmp_path / "run").iterdir())
        return {path.name: path.stat().st_mtime_ns for path in paths}

    train(write_config({"training.epochs": 1}))
    before = times()
    train(write_config({"training.epochs": 1}))
    assert times() == before


def test_a_lost_config_is_written_again_for_the_same_training_alone(
    write_config, tmp_path, refusal
):
    train(write_config({"training.epochs": 1}), "--seeds", "0", "3")
    run = tmp_path / "run"
    (run / "config.yaml").unlink()
    subsets = (run / "subsets.npz").read_bytes()
    others = {"subsets.seed": 1, "subsets.order": "shuffled"}
    faster = {"training.learning_rate": 0.02}
    for changes, words in (
        (others, ["subsets.npz: its fingerprint", "config.yaml", "is missing"]),
        (faster, ["encoder.pt: training.learning_rate is 0.01, but 0.02", "is missing"]),
    ):
        path = write_config({"training.epochs": 1} | changes)
        line = refusal(train_simclr.main, ["--config", path])
        assert all(word in line for word in words), line
        assert not (run / "config.yaml").exists() and (run / "subsets.npz").read_bytes() == subsets
    with pytest.warns(Caution, match="config.yaml was lost; it is written again"):
        train(write_config({"training.epochs": 1}))
    assert seeds_of(run) == [0, 3]


def test_lost_subsets_are_drawn_again_if_the_encoders_were_trained_on_them(
    write_config, tmp_path, refusal, monkeypatch
):
    path, run = write_config({"training.epochs": 1}), tmp_path / "run"
    train(path)
    subsets = (run / "subsets.npz").read_bytes()
    (run / "subsets.npz").unlink()

    def changed(settings):
        images = open_images(settings)
        images.train.pixels[0, 0, 0, 0] ^= 1
        return images

    with monkeypatch.context() as patch:
        patch.setattr(pair, "open_images", changed)
        line = refusal(train_simclr.main, ["--config", path])
    assert "candidate/encoder.pt: subsets is" in line and "belongs here" in line
    assert not (run / "subsets.npz").exists()
    with pytest.warns(Caution, match="subsets.npz was lost; it is written again"):
        train(path)
    assert (run / "subsets.npz").read_bytes() == subsets
