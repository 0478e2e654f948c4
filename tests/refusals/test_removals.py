"""What nothing can be removed from, or compared with: one line that says why."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import ONE_REMOVAL, remove, run_out_of_memory

import memorization_scores
import remove_samples
import train_simclr
from memorization.checkpoint import read_checkpoint, save_checkpoint
from memorization.data.subsets import load_subsets
from memorization.errors import WrongUse
from memorization.machine.interruption import StopRequest
from memorization.measuring import removal_curve
from memorization.measuring.probing import ProbeSettings
from memorization.measuring.removal import NOTHING, Removal
from memorization.measuring.removal_curve import ProbeCache, probe_all
from memorization.measuring.removal_order import (
    distances_to_centres,
    duplicate_groups,
)


def test_clusters_and_similarities_that_tell_nothing_are_refused():
    values = np.random.default_rng(0).normal(size=(300, 3))
    for wrong, clusters in ((values, 300), (np.ones((300, 3)), 4)):
        with pytest.raises(ValueError, match="tell nothing"):
            distances_to_centres(wrong, clusters, seed=0)
    with pytest.raises(ValueError, match="more than 100 near duplicates a sample"):
        duplicate_groups(values, 0.01)


def test_a_training_script_takes_a_subset_file_for_its_role_alone(halves_copy, refusal, tmp_path):
    path, run = halves_copy
    remove(halves_copy)
    file, again = run / "removal/subsets/memorized_8_draw0.npz", tmp_path / "again"
    options = ["--config", path, "--run", str(again), "--subsets.file", str(file), "--seeds", "0"]
    assert "add --role candidate" in refusal(train_simclr.main, options)
    assert "add --role candidate" in refusal(train_simclr.main, [*options, "--role", "independent"])
    assert "--role: 'f'" in refusal(train_simclr.main, [*options, "--role", "f"])
    assert not again.exists()
    train_simclr.main([*options, "--role", "candidate"])
    trained, expected = load_subsets(again / "subsets.npz"), load_subsets(file)
    assert trained.fingerprint == expected.fingerprint and trained.parents == expected.parents
    record = read_checkpoint(again / "seed_0/candidate/encoder.pt")
    assert record["subsets"] == trained.fingerprint
    assert not (again / "seed_0/independent").exists()
    smaller = ["--data.size", "8", "--augmentation.views", "[{size: 8, count: 2}]"]
    options += ["--role", "candidate", *smaller, "--run", str(tmp_path / "b")]
    assert "made for other images" in refusal(train_simclr.main, options)


def test_an_encoder_of_other_scores_is_not_taken_for_one_of_these(halves_copy, in_process, refusal):
    path, run = halves_copy
    remove(halves_copy, *ONE_REMOVAL)
    files = {file: file.read_bytes() for file in (run / "removal").rglob("*.npz")}
    scores_with(lambda old: {"L_f": old["L_f"][:, ::-1]})(run)  # such as of more seeds
    options = ["--config", path, "--run", str(run), *ONE_REMOVAL[:4]]
    line = refusal(remove_samples.main, options)
    assert str(run / "removal/memorized_4_draw0") in line and "delete it to train it again" in line
    assert {file: file.read_bytes() for file in (run / "removal").rglob("*.npz")} == files
    shutil.rmtree(run / "removal/memorized_4_draw0")
    line = refusal(remove_samples.main, options)
    assert f"made from other scores or settings than these; delete {run}/removal/subsets" in line
    remaining = {file: file.read_bytes() for file in (run / "removal/subsets").iterdir()}
    assert remaining.items() <= files.items()
    shutil.rmtree(run / "removal/subsets")
    remove_samples.main(options)


def test_encoders_of_another_precision_are_not_compared(halves_copy, in_process, refusal):
    path, run = halves_copy
    remove(halves_copy, *ONE_REMOVAL)
    encoder = run / "removal/memorized_4_draw0/seed_0/candidate/encoder.pt"
    for file in (encoder, encoder.with_name("last.pt")):
        save_checkpoint(file, read_checkpoint(file) | {"precision": "bf16"})
    jobs = [(NOTHING, 0), (Removal("memorized", 4, 0), 0)]
    probes = ProbeCache(run / "removal/probes", ProbeSettings(), torch.device("cpu"))
    with pytest.raises(WrongUse, match="trained in bf16, but f in fp32"):
        probe_all(jobs, [], probes, run, StopRequest())


def test_probes_beyond_the_memory_name_the_setting_to_lower(
    halves_copy, in_process, refusal, monkeypatch
):
    path, run = halves_copy
    monkeypatch.setattr(removal_curve, "probe", run_out_of_memory)
    line = refusal(remove_samples.main, ["--config", path, "--run", str(run), *ONE_REMOVAL])
    reason = "200 needs more than the GPU's memory has left; lower it"
    assert line == f"error: probe.train_images: {reason}\n"


def scores_with(change):
    """A damage that changes the arrays of scores.npz, a dict, as if they had been written so."""

    def damage(run):
        file, summary_file = run / "scores/scores.npz", run / "scores/summary.json"
        with np.load(file) as archive:
            arrays = dict(archive)
        np.savez(file, **(arrays | change(arrays)))
        summary = json.loads(summary_file.read_text())
        summary["fingerprints"]["scores"] = hashlib.sha256(file.read_bytes()).hexdigest()
        summary_file.write_text(json.dumps(summary))

    return damage


def without_some_candidates(arrays):
    removed = np.flatnonzero(arrays["subset"] == "candidate")[:13]
    return {name: np.delete(values, removed, axis=-1) for name, values in arrays.items()}


def without_subsets(arrays):
    return {"subset": np.full(len(arrays["subset"]), "other")}


def nothing(run):
    pass


WRONG_USES = [
    (
        nothing,
        ["--retrain", "--removal.counts", "17"],
        ["removal.counts: 17 leaves 15 images", "batch_size is 16"],
    ),
    (
        nothing,
        ["--retrain", "--probe.datasets", "cifar10", "--data.root", "absent"],
        ["cifar10", "absent"],
    ),
    (scores_with(without_some_candidates), [], ["13 of 32 candidates have no score"]),
    (scores_with(lambda old: {"L_f": old["L_f"] * np.nan}), [], ["scores that are not finite"]),
    (
        scores_with(lambda old: {"L_f": old["L_f"][:, 1:]}),
        [],
        ["not whole scores", "L_f is float64 of shape"],
    ),
    (scores_with(without_subsets), [], ["not whole scores", "no subset"]),
    (lambda run: (run / "scores/summary.json").write_text("{"), [], ["not whole scores"]),
]


@pytest.mark.parametrize("damage, options, words", WRONG_USES)
def test_wrong_use_is_one_line_and_nothing_is_written(
    damage, options, words, halves_copy, refusal, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # torchvision makes a folder for what it would download
    path, run = halves_copy
    damage(run)
    line = refusal(remove_samples.main, ["--config", path, "--run", str(run), *options])
    assert all(word in line for word in words), line
    assert not (run / "removal").exists()


def test_shared_samples_have_no_score(scored_run, refusal, tmp_path):
    path, run = scored_run[0], shutil.copytree(scored_run[1], tmp_path / "run")
    options = ["--config", path, "--run", str(run), "--removal.counts", "4"]
    line = refusal(remove_samples.main, options)
    parts = ("subsets.shared: 32 samples", "removal_demo.yaml", "candidates_only")
    assert all(part in line for part in parts)
    remove_samples.main([*options, "--removal.candidates_only", "true"])
    kept = load_subsets(run / "removal/subsets/memorized_4_draw0.npz")
    assert len(kept.shared) == 32 and len(kept.candidate) == 20


def test_shared_samples_of_a_crossover_have_no_score(write_config, refusal, tmp_path):
    subsets = {"scheme": "crossover", "shared": 16, "pool": 32, "external": 40}
    changes = {"subsets": subsets, "training.epochs": 1, "removal": {"counts": [4]}}
    path = write_config(changes)
    train_simclr.main(["--config", path])
    memorization_scores.main(["--config", path])
    line = refusal(remove_samples.main, ["--config", path])
    parts = ("subsets.shared: 16 samples", "train a crossover without them", "rank the pool alone")
    assert all(part in line for part in parts), line
    remove_samples.main(["--config", path, "--removal.candidates_only", "true"])
    for name, count in (("none_0_draw0", 32), ("memorized_4_draw0", 28)):
        kept = load_subsets(tmp_path / f"run/removal/subsets/{name}.npz")
        assert len(kept.shared) == 16 and len(kept.candidate) == count


def test_no_encoder_of_a_crossover_tells_near_duplicates_in_the_pool(pool_copy, refusal):
    path, run = pool_copy
    options = "--removal.group_duplicates true --removal.duplicates_in g".split()
    line = refusal(remove_samples.main, ["--config", path, "--run", str(run), *options])
    assert "removal.duplicates_in: g is not allowed" in line and "take pixels" in line
    assert not (run / "removal").exists()
