"""Trainings as commands of their own, shared among processes."""

from conftest import HALVES, METHODS, remove, train, write_experiment

import memorization_scores
import train_simclr
from memorization.checkpoint import read_checkpoint
from memorization.measuring import retraining


def test_one_encoder_of_a_pair_can_be_trained_alone(write_config, tmp_path):
    path = write_config({"training.epochs": 1})
    train_simclr.main(["--config", path, "--role", "independent"])
    assert [file.parent.name for file in (tmp_path / "run").rglob("encoder.pt")] == ["independent"]
    train_simclr.main(["--config", path])
    assert len(list((tmp_path / "run").rglob("encoder.pt"))) == 2


def test_jobs_are_listed_and_shared(halves_copy, in_process, capsys):
    remove(halves_copy, "--retrain", "--jobs", "list")
    listed = capsys.readouterr().out.splitlines()
    assert not in_process and "memorized_4_draw0 seed 1" in listed
    assert sum("seed" in line for line in listed) == 12
    removals = list(range(12))
    parts = [retraining.share(removals, f"{i}/5") for i in range(5)]
    assert sorted(sum(parts, [])) == removals


def test_a_retraining_is_a_command_of_its_own_of_the_method_that_was_trained(tmp_path):
    """As a real process. test_chain.py retrains by every method."""
    path = write_experiment(tmp_path, METHODS["mae"].changes | HALVES | {"seeds": [0]})
    train(path, method="mae")
    run = tmp_path / "run"
    memorization_scores.main(["--config", path])
    remove((path, run), "--retrain", "--jobs", "0/6")
    (encoder,) = (run / "removal").rglob("encoder.pt")
    assert read_checkpoint(encoder)["config"]["method"]["name"] == "mae"
