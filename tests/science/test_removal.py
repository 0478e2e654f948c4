import csv
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import METHODS, write_experiment

import linear_probing_train
import memorization_scores
import remove_samples
import train_simclr
from memorization.checkpoint import read_checkpoint, save_checkpoint
from memorization.data.catalogue import DataSettings
from memorization.data.images import open_images
from memorization.data.subsets import load_subsets
from memorization.errors import WrongUse
from memorization.machine.files import json_text
from memorization.machine.interruption import StopRequest
from memorization.measuring import removal_curve, retraining
from memorization.measuring.probing import ProbeSettings
from memorization.measuring.removal import NOTHING, Removal
from memorization.measuring.removal_curve import CurveSummary, KeptProbe, ProbeCache, probe_all
from memorization.measuring.removal_order import (
    RankedSamples,
    distances_to_centres,
    duplicate_groups,
    removal_order,
    remove_in_order,
)

SCORES = np.array([0.1, 0.9, -0.5, 0.4, 0.9, 0.0])
LABELS = np.array([0, 1, 0, 0, 1, 1])
FAKE = DataSettings(name="fake", size=16)


def samples_of(scores, labels, **more):
    return RankedSamples(np.arange(len(scores)), labels, scores, [0], **more)


def order_of(policy, count=3, seed=0, **more):
    return removal_order(policy, samples_of(SCORES, LABELS, **more), count, seed).tolist()


def test_the_most_and_the_least_memorized_come_first():
    assert order_of("memorized") == [1, 4, 3, 0, 5, 2]  # of equals, the first in the training set
    assert order_of("least") == [2, 5, 0, 3, 1, 4]


def test_chance_depends_on_the_draw_alone_and_meets_everything():
    orders = [order_of("random", seed=seed) for seed in range(50)]
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert order_of("random", seed=7) == orders[7] and len({tuple(order) for order in orders}) > 40
    assert {order[0] for order in orders} == set(range(6))


def test_no_draw_of_one_policy_is_that_of_another():
    samples = samples_of(np.arange(50.0), np.zeros(50, dtype=int))
    random, matched = (
        removal_order(policy, samples, 10, seed=0)[:10].tolist()
        for policy in ("random", "random_matched")
    )
    assert len(set(random) & set(matched)) < 8


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count, classes", [(2, [0, 2]), (3, [1, 2]), (5, [2, 3])])
def test_matched_chance_removes_the_classes_of_the_most_memorized(count, classes, seed):
    order = order_of("random_matched", count=count, seed=seed)
    assert np.bincount(LABELS[order[:count]], minlength=2).tolist() == classes
    assert sorted(order) == list(range(6))


def test_the_most_typical_are_closest_to_the_centres_of_their_clusters():
    # two clusters on the circle, each with one outlier
    angles = np.array([0.0, 0.02, 0.3, 1.5, 1.52, 1.9])
    values = 5 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    distances = distances_to_centres(values, clusters=2, seed=0)
    assert set(np.argsort(-distances)[:2].tolist()) == {2, 5}
    assert order_of("typical", typicality=distances)[-2:] == np.argsort(distances)[-2:].tolist()


def test_clusters_and_similarities_that_tell_nothing_are_refused():
    values = np.random.default_rng(0).normal(size=(300, 3))
    for wrong, clusters in ((values, 300), (np.ones((300, 3)), 4)):
        with pytest.raises(ValueError, match="tell nothing"):
            distances_to_centres(wrong, clusters, seed=0)
    with pytest.raises(ValueError, match="more than 100 near duplicates a sample"):
        duplicate_groups(values, 0.01)


def test_near_duplicates_are_linked_over_others():
    generator = np.random.default_rng(0)
    values = generator.normal(size=(50, 20))
    values[7] = values[3] + 0.05 * generator.normal(size=20)
    values[9] = values[7] + 0.05 * generator.normal(size=20)
    groups = duplicate_groups(values, threshold=0.95)
    assert groups[3] == groups[7] == groups[9] and len(np.unique(groups)) == 48


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_duplicates_and_typicality_do_not_depend_on_the_size_of_representations(size):
    values = np.random.default_rng(0).normal(size=(50, 20)).astype(np.float32)
    values[7] = values[3] + 0.01
    scaled = values * np.float32(size)
    assert duplicate_groups(scaled, 0.95).tolist() == duplicate_groups(values, 0.95).tolist()
    assert len(np.unique(duplicate_groups(scaled, 0.95))) == 49
    distances = distances_to_centres(values, clusters=3, seed=0)
    assert np.allclose(distances_to_centres(scaled, clusters=3, seed=0), distances, atol=1e-5)


def test_groups_go_together_and_every_policy_ends_at_the_same_number():
    groups = np.array([0, 1, 0, 2, 3, 0])
    assert remove_in_order(np.array([0, 1, 2, 3, 4, 5]), 2).tolist() == [0, 1]
    assert remove_in_order(np.array([0, 1, 2, 3, 4, 5]), 3, groups).tolist() == [0, 2, 5]
    # a group of three does not fit
    assert remove_in_order(np.array([0, 1, 2, 3, 4, 5]), 2, groups).tolist() == [1, 3]
    assert remove_in_order(np.array([4, 5, 1, 2, 3, 0]), 4, groups).tolist() == [0, 2, 4, 5]
    with pytest.raises(ValueError, match="add up to 3, not to 5"):
        remove_in_order(np.array([0, 1, 2, 3, 4, 5]), 5, np.array([0, 0, 0, 1, 1, 1]))


# --- the script -----------------------------------------------------------------------------------

PROBE = {"epochs": 3, "warmup_epochs": 1, "seeds": [0], "train_images": 200}
HALVES = {
    "subsets.shared": 0, "subsets.candidate": 32, "subsets.independent": 32, "seeds": [0, 1],
    "training.epochs": 2, "probe": PROBE,
    "removal": {"counts": [4, 8], "policies": ["memorized", "random"], "draws": 2},
}  # fmt: skip
ONE = "--removal.counts 4 --removal.policies memorized --seeds 0 --retrain".split()


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """(config path, run folder) of a tiny pair of disjoint halves, trained and scored. Not to be
    changed.
    """
    folder = tmp_path_factory.mktemp("halves")
    path = write_experiment(folder, HALVES)
    train_simclr.main(["--config", path])
    memorization_scores.main(["--config", path])
    return path, folder / "run"


@pytest.fixture
def halves_copy(halves, tmp_path):
    """(config path, a copy of the run of halves that a test may change)."""
    shutil.copytree(halves[1], tmp_path / "run")
    return halves[0], tmp_path / "run"


def remove(halves_copy, *options):
    path, run = halves_copy
    remove_samples.main(["--config", path, "--run", str(run), *options])


def scores_of(run):
    with open(run / "scores/scores.csv", newline="") as file:
        return {
            int(row["index"]): float(row["score"])
            for row in csv.DictReader(file)
            if row["subset"] == "candidate"
        }


def test_a_subset_file_is_fs_training_set_without_the_most_memorized(halves_copy):
    _, run = halves_copy
    remove(halves_copy)
    parent, scores = load_subsets(run / "subsets.npz"), scores_of(run)
    files = sorted(file.stem for file in (run / "removal/subsets").iterdir())
    assert files == sorted(
        f"{policy}_{count}_draw{draw}"
        for policy, draws in (("memorized", 1), ("random", 2))
        for count in (4, 8)
        for draw in range(draws)
    )
    for count in (4, 8):
        kept = load_subsets(run / f"removal/subsets/memorized_{count}_draw0.npz")
        removed = set(parent.candidate.tolist()) - set(kept.candidate.tolist())
        assert len(removed) == count and min(scores[i] for i in removed) >= max(
            scores[i] for i in kept.candidate.tolist()
        )
        assert (
            kept.role == "candidate"
            and len(kept.independent) == 0
            and kept.external.tolist() == parent.external.tolist()
        )
        assert kept.parents["subsets"] == parent.fingerprint and len(kept.parents["scores"]) == 64
    draws = [
        set(load_subsets(run / f"removal/subsets/random_8_draw{draw}.npz").candidate.tolist())
        for draw in (0, 1)
    ]
    assert draws[0] != draws[1] and len(draws[0]) == len(draws[1]) == 24


def test_percentages_are_of_the_ranked_samples(halves_copy):
    remove(halves_copy, "--removal.counts", "8", "--removal.percentages", "25", "50")
    # 25 per cent are the 8 over again
    assert len(list((halves_copy[1] / "removal/subsets").iterdir())) == 2 * 3
    names = {file.name for file in (halves_copy[1] / "removal/subsets").glob("memorized*")}
    assert names == {"memorized_8_draw0.npz", "memorized_16_draw0.npz"}


def test_every_policy_and_grouped_duplicates_end_at_the_same_number(halves_copy, capsys):
    policies = ["memorized", "least", "random", "random_matched", "typical"]
    grouped = "--removal.group_duplicates true --removal.duplicate_similarity 0.6".split()
    remove(halves_copy, "--removal.policies", *policies, *grouped)
    assert "groups of near duplicates hold" in capsys.readouterr().out
    _, run = halves_copy
    images, parent = open_images(FAKE), load_subsets(run / "subsets.npz")
    pixels = images.train.pixels[torch.from_numpy(parent.candidate)].flatten(1).numpy()
    groups = duplicate_groups(pixels / 255.0, 0.6)
    assert len(np.unique(groups)) < 32  # so that there are some
    files = list((run / "removal/subsets").iterdir())
    assert len(files) == 2 * (1 + 1 + 2 + 2 + 1)
    for file in files:
        kept = load_subsets(file)
        assert len(kept.candidate) == 32 - int(file.stem.split("_draw")[0].split("_")[-1])
        is_kept = np.isin(parent.candidate, kept.candidate)
        # together, or not at all
        assert all(len(set(is_kept[groups == group])) == 1 for group in groups)
        by = {"duplicates_in": "pixels", "duplicate_similarity": 0.6}
        assert kept.parents["near_duplicates"] == by


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


def test_one_encoder_of_a_pair_can_be_trained_alone(write_config, tmp_path):
    path = write_config({"training.epochs": 1})
    train_simclr.main(["--config", path, "--role", "independent"])
    assert [file.parent.name for file in (tmp_path / "run").rglob("encoder.pt")] == ["independent"]
    train_simclr.main(["--config", path])
    assert len(list((tmp_path / "run").rglob("encoder.pt"))) == 2


@pytest.fixture
def in_process(monkeypatch):
    """Retraining in this process, which is quicker; returns the list of the commands' arguments."""
    commands = []

    def run_script(script, arguments, stop):
        assert script.name == "train_simclr.py"
        commands.append(arguments)
        train_simclr.main(arguments)
        return 0

    monkeypatch.setattr(retraining, "run_script", run_script)
    return commands


def test_the_curve_holds_an_accuracy_for_every_removal_and_seed(halves_copy, in_process):
    _, run = halves_copy
    remove(halves_copy, "--retrain")
    with open(run / "removal/curve.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["dataset", "policy", "count", "draw", "seed", "top_1"]
    assert len(in_process) == 2 * 2 * (1 + 2) and len(rows) == len(in_process) + 2
    assert all(0 <= float(row["top_1"]) <= 1 for row in rows)
    assert len({row["top_1"] for row in rows}) > 2
    summary = json.loads((run / "removal/summary.json").read_text())["datasets"]["fake"]

    def top_1_of(policy):
        chosen = [row for row in rows if (row["policy"], row["count"]) == (policy, "8")]
        return [float(row["top_1"]) for row in chosen]

    random, memorized = top_1_of("random"), top_1_of("memorized")
    assert summary["policies"]["random"]["8"] == {
        "mean": pytest.approx(np.mean(random)),
        "std": pytest.approx(np.std(random, ddof=1)),
        "n": 4,
    }
    test, difference = summary["random_above_memorized"]["8"], np.mean(random) - np.mean(memorized)
    assert test["n"] == 2 and test["mean_difference"] == pytest.approx(difference)
    assert summary["nothing_removed"]["n"] == 2
    assert (run / "removal/curve.png").stat().st_size > 5000
    encoder = read_checkpoint(run / "removal/memorized_8_draw0/seed_1/candidate/encoder.pt")
    # of 1 step, in place of 2 of 2
    assert encoder["seed"] == 1 and encoder["config"]["training"]["epochs"] == 4
    text = (run / "removal/summary.json").read_text()
    read = CurveSummary.parse(text)
    assert json_text(read.plain() | {"files": read.files}) == text
    for file in (run / "removal/probes").iterdir():
        assert json_text(KeptProbe.parse(file.read_text()).plain()) == file.read_text()


def test_an_encoder_of_other_scores_is_not_taken_for_one_of_these(halves_copy, in_process, refusal):
    path, run = halves_copy
    remove(halves_copy, "--retrain", "--jobs", "0/6")
    files = {file: file.read_bytes() for file in (run / "removal").rglob("*.npz")}
    views = ["--scores.views", "5"]
    memorization_scores.main(["--config", path, "--run", str(run), *views])
    options = ["--config", path, "--run", str(run), *views]
    line = refusal(remove_samples.main, options)
    assert str(run / "removal/memorized_4_draw0") in line and "delete it to train it again" in line
    assert {file: file.read_bytes() for file in (run / "removal").rglob("*.npz")} == files
    shutil.rmtree(run / "removal/memorized_4_draw0")
    line = refusal(remove_samples.main, options)
    assert f"made from other scores or settings than these; delete {run}/removal/subsets" in line
    remaining = {file: file.read_bytes() for file in (run / "removal/subsets").iterdir()}
    assert remaining.items() <= files.items()
    remove(halves_copy)
    shutil.rmtree(run / "removal/subsets")
    remove(halves_copy, *views)


def test_encoders_of_another_precision_are_not_compared(halves_copy, in_process, refusal):
    path, run = halves_copy
    remove(halves_copy, *ONE)
    encoder = run / "removal/memorized_4_draw0/seed_0/candidate/encoder.pt"
    for file in (encoder, encoder.with_name("last.pt")):
        save_checkpoint(file, read_checkpoint(file) | {"precision": "bf16"})
    jobs = [(NOTHING, 0), (Removal("memorized", 4, 0), 0)]
    probes = ProbeCache(run / "removal/probes", ProbeSettings(), torch.device("cpu"))
    with pytest.raises(WrongUse, match="trained in bf16, but f in fp32"):
        probe_all(jobs, [], probes, run, StopRequest())


def test_work_that_is_done_is_kept(halves_copy, in_process, monkeypatch):
    _, run = halves_copy
    remove(halves_copy, "--retrain", "--jobs", "0/2")
    seeds = [command[command.index("--seeds") + 1] for command in in_process]
    assert seeds == ["0", "1"] * 3
    assert not (run / "removal/curve.csv").exists()
    trained = {file: file.stat().st_mtime_ns for file in (run / "removal").rglob("encoder.pt")}
    remove(halves_copy, "--retrain")
    curve = (run / "removal/curve.csv").read_bytes()
    assert len(trained) == 6
    assert all(file.stat().st_mtime_ns == time for file, time in trained.items())
    monkeypatch.setattr(removal_curve, "probe", None)  # would be called
    remove(halves_copy, "--retrain")
    assert (run / "removal/curve.csv").read_bytes() == curve


def test_probes_beyond_the_memory_name_the_setting_to_lower(
    halves_copy, in_process, refusal, monkeypatch
):
    def hungry(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    path, run = halves_copy
    monkeypatch.setattr(removal_curve, "probe", hungry)
    line = refusal(remove_samples.main, ["--config", path, "--run", str(run), *ONE])
    reason = "200 needs more than the GPU's memory has left; lower it"
    assert line == f"error: probe.train_images: {reason}\n"


def test_jobs_are_listed_and_shared(halves_copy, in_process, capsys):
    remove(halves_copy, "--retrain", "--jobs", "list")
    listed = capsys.readouterr().out.splitlines()
    assert not in_process and "memorized_4_draw0 seed 1" in listed
    assert sum("seed" in line for line in listed) == 12
    removals = list(range(12))
    parts = [retraining.share(removals, f"{i}/5") for i in range(5)]
    assert sorted(sum(parts, [])) == removals


def test_a_smaller_set_is_trained_for_as_many_steps_unless_told_otherwise(
    halves_copy, in_process, capsys, refusal
):
    path, run = halves_copy
    options = [*ONE, "--removal.counts", "16"]
    remove(halves_copy, *options)
    # 2 epochs of 2 steps are 4 of 1 step
    assert in_process[0][in_process[0].index("--training.epochs") + 1] == "4"
    reduced = "without 16 of 32 images: 4 epochs of 1 steps, 4 in all"
    whole = "with all of them: 2 epochs of 2 steps, 4 (+0.0 %)"
    assert f"{reduced}; {whole}" in capsys.readouterr().out
    (summary,) = [
        json.loads(file.read_text()) for file in (run / "removal").glob("counts_16_*/summary.json")
    ]
    assert summary["steps"] == {
        "0": {"epochs": 2, "steps_an_epoch": 2, "steps": 4},
        "16": {"epochs": 4, "steps_an_epoch": 1, "steps": 4},
    }
    fewer = [*options, "--removal.fixed_steps", "false"]
    line = refusal(remove_samples.main, ["--config", path, "--run", str(run), *fewer])
    assert f"trains {run}/removal/memorized_16_draw0 for 2 epochs, but it was trained for 4" in line
    shutil.rmtree(run / "removal/memorized_16_draw0")
    remove(halves_copy, *fewer)
    text = capsys.readouterr().out
    assert "without 16 of 32 images: 2 epochs of 1 steps, 2 in all" in text and "(-50.0 %)" in text
    assert "fewer steps cost accuracy by themselves" in text


def test_kept_probes_are_of_their_encoders(halves_copy, in_process, capsys):
    """Swapped, or without what they are of as in earlier versions, they are made again."""
    _, run = halves_copy
    remove(halves_copy, *ONE)
    (curve,) = (run / "removal").glob("counts_4_*/curve.csv")
    expected, kept = curve.read_bytes(), sorted((run / "removal/probes").iterdir())
    one, other = (file.read_bytes() for file in kept)
    assert len(expected.splitlines()) == 3 and one != other
    old = {key: value for key, value in json.loads(one).items() if key != "of"}
    for contents in ((other, one), (json.dumps(old).encode(), other)):
        for file, content in zip(kept, contents):
            file.write_bytes(content)
        capsys.readouterr()
        remove(halves_copy, *ONE)
        assert curve.read_bytes() == expected
        assert [file.read_bytes() for file in kept] == [one, other]
        changed = sum(a != b for a, b in zip(contents, (one, other)))
        assert capsys.readouterr().out.count("made again") == changed


@pytest.mark.parametrize("method", ["simclr", "mae"])
def test_a_retraining_is_a_command_of_its_own_of_the_method_that_was_trained(method, tmp_path):
    """As a real process."""
    path, run = (
        write_experiment(tmp_path, METHODS[method][2] | HALVES | {"seeds": [0]}),
        tmp_path / "run",
    )
    METHODS[method][0].main(["--config", path])
    memorization_scores.main(["--config", path])
    remove((path, run), "--retrain", "--jobs", "0/6")
    (encoder,) = (run / "removal").rglob("encoder.pt")
    assert read_checkpoint(encoder)["config"]["method"]["name"] == method


def test_a_retraining_that_fails_is_named_and_loses_nothing(halves_copy, refusal, monkeypatch):
    path, run = halves_copy
    monkeypatch.setattr(retraining, "run_script", lambda script, arguments, stop: 2)
    line = refusal(remove_samples.main, ["--config", path, "--run", str(run), "--retrain"])
    assert "memorized_4_draw0, seed 0: train_simclr.py failed" in line
    monkeypatch.setattr(remove_samples, "training_script", lambda run: Path("train_dino.py"))
    assert "there is no train_dino.py" in refusal(
        remove_samples.main, ["--config", path, "--run", str(run), "--retrain"]
    )


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


def test_an_encoder_of_a_reduced_set_can_be_probed_by_itself(halves_copy, in_process):
    path, run = halves_copy
    remove(halves_copy, "--retrain", "--jobs", "0/12")
    encoder = next((run / "removal").rglob("encoder.pt"))
    linear_probing_train.main(["--config", path, "--run", str(run), "--encoder", str(encoder)])
    assert list((run / "probe").glob("encoder_*/summary.json"))
