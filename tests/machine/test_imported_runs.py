"""Encoders that others trained become a run, which is measured as our own are."""

import csv
import json
import warnings

import numpy as np
import pytest
import torch
import yaml
from conftest import CPU, fake_images, train, write_experiment
from reported import make_page

import dejavu
import import_encoders
import layer_memorization
import linear_probing_train
import membership_inference
import memorization_scores
import remove_samples
import report
import unit_memorization
from memorization.checkpoint import load_encoder, load_pair, read_checkpoint, untrained_encoder
from memorization.machine.files import exists
from memorization.measuring.membership_rates import auc
from memorization.measuring.untrained_twins import (
    TWINS,
    compare_with_twins,
    effective_rank,
    measure_representations,
    measure_twins,
)
from memorization.results import hash_of_file
from memorization.run import open_run

# The tiny pairs are trained for nine steps, too few to tell.
pytestmark = pytest.mark.filterwarnings("ignore:.*representations differ in nothing")
ORDER = {"subsets.order": "file"}
SIZES = {"subsets.shared": 0, "subsets.candidate": 40, "subsets.independent": 40}


def save_as_lightning(weights, path):
    """Write weights as Lightning's checkpoint of a method does."""
    state = {f"backbone.{key}": value for key, value in weights.items()}
    state["projection_head.weight"] = torch.zeros(2, 2)
    torch.save({"epoch": 3, "state_dict": state, "hyper_parameters": {"lr": 0.1}}, path)


def of_lightning(*paths):
    """The settings that read such files."""
    files = [str(path) for path in paths]
    strip, unused = ["backbone."], ["projection_head."]
    return {"weights": files, "at": "state_dict", "strip": strip, "unused": unused}


def write_import(folder, candidate, independent, changes=()):
    """Write a config that imports a pair, and has neither method nor training. Returns its path."""
    section = {"candidate": candidate, "independent": independent, "size": 16}
    section |= {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    without = {"method": None, "training": None, "import": section, **ORDER}
    return write_experiment(folder, without | dict(changes))


def run_import(path, *options):
    import_encoders.main(["--config", path, *options])


@pytest.fixture(scope="module")
def weights(scored_run, tmp_path_factory):
    """{(role, seed): a Lightning file with the weights of the tiny pairs}."""
    folder, files = tmp_path_factory.mktemp("weights"), {}
    for seed in (0, 1):
        for encoder in load_pair(scored_run[1], seed):
            role = encoder.record["role"]
            files[role, seed] = folder / f"{role}_{seed}.ckpt"
            save_as_lightning(encoder.network.state_dict(), files[role, seed])
    return files


@pytest.fixture(scope="module")
def imported(weights, tmp_path_factory):
    """(config path, run folder) of both pairs, imported and scored. Not to be changed."""
    folder = tmp_path_factory.mktemp("imported")
    of = {role: of_lightning(*(weights[role, seed] for seed in (0, 1))) for role in ROLES}
    probe = {"epochs": 3, "warmup_epochs": 1, "seeds": [0], "train_images": 300}
    changes = {"seeds": [0, 1], "probe": probe, "membership": {"views": 4}}
    path = write_import(folder, of["candidate"], of["independent"], changes)
    run_import(path)
    memorization_scores.main(["--config", path])
    return path, folder / "run"


ROLES = ("candidate", "independent")


@pytest.mark.parametrize(
    "script",
    [
        report,
        dejavu,
        layer_memorization,
        linear_probing_train,
        membership_inference,
        memorization_scores,
        remove_samples,
        unit_memorization,
    ],
)
def test_measuring_before_the_import_names_the_script_that_imports(script, tmp_path, refusal):
    path = write_import(tmp_path, of_lightning("f.ckpt"), of_lightning("g.ckpt"))
    line = refusal(script.main, ["--config", path])
    assert not (tmp_path / "run").exists()
    assert "no imported encoders here" in line and "run import_encoders.py first" in line


def test_a_pair_of_our_own_scores_alike_once_it_is_imported(imported, scored_run):
    own, other = (run / "scores" for run in (scored_run[1], imported[1]))
    assert (own / "scores.csv").read_bytes() == (other / "scores.csv").read_bytes()
    assert (own / "scores.npz").read_bytes() == (other / "scores.npz").read_bytes()


def test_an_imported_run_has_no_method_no_training_and_no_epoch(imported):
    _, run = imported
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert not {"method", "training"} & set(config)
    record = read_checkpoint(run / "seed_0/candidate/encoder.pt")
    assert record["epoch"] is None and record["precision"] is None
    assert not {"method", "training"} & set(record["config"])
    files = {path.name for path in (run / "seed_0/candidate").iterdir() if path.suffix}
    assert files == {"encoder.pt"}
    assert json.loads((run / "scores/summary.json").read_text())["checkpoint"]["epoch"] is None


def test_every_field_and_the_hash_of_every_file_are_in_all_results(imported, weights):
    path, run = imported
    dejavu.main(["--config", path])
    membership_inference.main(["--config", path])
    linear_probing_train.main(["--config", path])
    config = yaml.safe_load((run / "config.yaml").read_text())
    for role in ROLES:
        hashes = [hash_of_file(weights[role, seed]) for seed in (0, 1)]
        assert config["import"][role]["sha256"] == hashes
        record = read_checkpoint(run / f"seed_1/{role}/encoder.pt")
        assert record["config"]["import"] == config["import"]
    for measurement in ("scores", "dejavu", "membership", "probe"):
        summary = json.loads((run / measurement / "summary.json").read_text())
        assert summary["import"] == config["import"], measurement
        assert summary["encoder"] == config["encoder"], measurement


def test_an_imported_encoder_gives_the_outputs_of_its_source(imported, scored_run):
    for role in ROLES:
        one, other = (load_encoder(run / f"seed_1/{role}/encoder.pt") for run in
                      (scored_run[1], imported[1]))  # fmt: skip
        pixels = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        assert torch.equal(one.network(pixels), other.network(pixels))
        assert other.normalization == ([0.5] * 3, [0.5] * 3)


def test_the_mean_and_std_of_the_config_normalize_the_pixels(weights, tmp_path):
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    path = write_import(tmp_path, of_lightning(weights["candidate", 0]), None)
    numbers = {"mean": mean, "std": std}
    run_import(path, *(word for key in numbers for word in (f"--import.{key}", str(numbers[key]))))
    assert load_encoder(tmp_path / "run/seed_0/candidate/encoder.pt").normalization == (mean, std)


def test_the_same_import_again_changes_nothing_and_says_so(imported, capsys):
    path, run = imported
    before = (run / "seed_0/candidate/encoder.pt").stat().st_mtime_ns
    run_import(path)
    assert capsys.readouterr().out.count("imported already, nothing to do") == 4
    assert (run / "seed_0/candidate/encoder.pt").stat().st_mtime_ns == before


def test_the_screen_tells_which_weights_of_a_file_were_taken(weights, tmp_path, capsys):
    half = tmp_path / "half.ckpt"
    state = torch.load(weights["candidate", 0])["state_dict"]
    content = {"state_dict": {key: value.half() for key, value in state.items()}}
    torch.save(content | {"ema": {"model": state}}, half)
    f = of_lightning(half)
    run_import(write_import(tmp_path, f, of_lightning(weights["independent", 0])))
    line = f"written from {half}, weights at 'state_dict': {len(state)} tensors, "
    screen = capsys.readouterr().out
    assert line in screen and "numbers of float16, cast to float32" in screen
    assert "weights of the same names and shapes are at 'ema.model', " in screen


def test_an_imported_pair_tells_what_to_remove_but_is_not_retrained(imported, refusal):
    path, run = imported
    options = ["--removal.candidates_only", "true", "--removal.counts", "4"]
    remove_samples.main(["--config", path, *options])
    assert list((run / "removal/subsets").glob("memorized_4_*.npz"))
    line = refusal(remove_samples.main, ["--config", path, *options, "--retrain"])
    assert "--retrain: others trained the encoders of" in line


@pytest.fixture(scope="module")
def alone(weights, tmp_path_factory):
    """(config path, run folder) of f alone. Not to be changed."""
    folder = tmp_path_factory.mktemp("alone")
    changes = SIZES | {"probe": {"epochs": 3, "warmup_epochs": 1, "seeds": [0]}}
    changes["dejavu"] = {"k": 20, "views": 3, "reference": "crops", "reference_epochs": 2}
    path = write_import(folder, of_lightning(weights["candidate", 0]), None, changes)
    run_import(path)
    return path, folder / "run"


@pytest.mark.parametrize("script, options, instead", [
    (memorization_scores, [], "membership_inference.py"),
    (memorization_scores, ["--plan"], "membership_inference.py"),
    (dejavu, ["--dejavu.reference", "independent"], "--dejavu.reference crops"),
    (remove_samples, [], "membership_inference.py"),
    (layer_memorization, [], "unit_memorization.py measures the units of f alone"),
])  # fmt: skip
def test_f_alone_is_told_what_needs_g_and_what_does_not(script, options, instead, alone, refusal):
    path, run = alone
    before = sorted(run.rglob("*"))
    line = refusal(script.main, ["--config", path, *options])
    assert "has f alone (import.independent is null), but g is needed" in line
    assert instead in line
    assert sorted(run.rglob("*")) == before


def test_f_alone_is_attacked_by_crops_probed_and_asked_for_membership(alone):
    path, run = alone
    for script in (dejavu, linear_probing_train, membership_inference):
        script.main(["--config", path])
    assert exists(run / "dejavu/crops/summary.json")
    rows = json.loads((run / "probe/summary.json").read_text())["results"]
    names = [row["encoder"] for row in rows]
    assert names == ["candidate seed 0", "random encoder", "raw pixels"]
    summary = json.loads((run / "membership/summary.json").read_text())
    assert "no verdict on one image" in summary["meaning"]
    assert set(summary["auc"]) == {"candidate against external", "candidate against independent"}


def test_units_of_f_alone_are_measured_without_g(alone, capsys):
    path, run = alone
    unit_memorization.main(["--config", path, "--units.views", "2"])
    assert f"units: {run} has f alone: without numbers of g" in capsys.readouterr().out
    with np.load(run / "units/views_2/units.npz") as arrays:
        assert "unitmem_f" in arrays and "unitmem_g" not in arrays
    summary = json.loads((run / "units/views_2/summary.json").read_text())
    assert set(summary["over_seeds"]["relu"]) == {
        "f", "external", "untrained", "f - external", "f - untrained"
    }  # fmt: skip
    assert list(summary["fingerprints"]["encoders"]) == ["seed_0/candidate"]


def test_losses_of_membership_are_those_of_f_in_the_scores(imported):
    path, run = imported
    membership_inference.main(["--config", path])
    columns = []
    for file in ("scores/scores.csv", "membership/membership.csv"):
        with open(run / file, newline="") as text:
            rows = list(csv.DictReader(text))
        columns.append([float(row["alignment_loss_f"]) for row in rows])
    assert np.allclose(*columns, atol=1e-6)


def test_a_run_that_was_trained_here_is_asked_for_membership_too(run_copy):
    path, run = run_copy
    membership_inference.main(["--config", path, "--run", str(run)])
    summary = json.loads((run / "membership/summary.json").read_text())
    assert summary["checkpoint"] == {"name": "encoder", "epoch": 3} and "import" not in summary


def test_auc_is_the_share_of_pairs_in_which_the_seen_image_is_aligned_better():
    seen, unseen = np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0])
    pairs = [(s < u) + 0.5 * (s == u) for s in seen for u in unseen]
    assert auc(seen, unseen) == pytest.approx(np.mean(pairs))
    assert auc(np.stack([seen, seen]), np.stack([unseen, unseen])).shape == (2,)
    assert auc(np.zeros(5), np.ones(4)) == 1.0


# --- untrained twins ------------------------------------------------------------------------------


def test_untrained_weights_are_told_from_trained_ones(write_config, tmp_path, recwarn):
    """Nothing but its outputs tells that a file was never trained."""
    train(write_config({"training.epochs": 20}), "--role", "candidate")
    trained = load_encoder(tmp_path / "run/seed_0/candidate/encoder.pt")
    rows, images = torch.arange(200), fake_images(16)
    twins = measure_twins(trained, images.test, rows, CPU)
    fresh = [untrained_encoder(trained, TWINS + seed) for seed in range(3)]
    warned = []
    for name, encoder in [("trained", trained), *((f"fresh {i}", e) for i, e in enumerate(fresh))]:
        recwarn.clear()
        warnings.simplefilter("always")
        compare_with_twins(name, measure_representations(encoder, images.test, rows, CPU), twins)
        warned.append(len(recwarn))
    assert warned == [0, 1, 1, 1]


def test_effective_rank_counts_directions():
    axes = torch.eye(5).repeat(2, 1)
    assert effective_rank(torch.cat([axes, -axes])) == pytest.approx(5.0)
    assert effective_rank(torch.ones(4, 3)) == 0.0
    line = torch.linspace(-1, 1, 9)[:, None] * torch.tensor([[1.0, 2.0]])
    assert effective_rank(line) == pytest.approx(1.0)


def test_without_labels_there_is_no_knn_accuracy(imported):
    encoder = load_encoder(imported[1] / "seed_0/candidate/encoder.pt", "trained")
    split = fake_images(16).test
    split.labels.fill_(-1)
    measured = measure_representations(encoder, split, torch.arange(64), CPU)
    assert set(measured) == {"spread", "effective rank"}


def test_images_that_come_class_by_class_have_a_knn_accuracy_too(imported):
    encoder = load_encoder(imported[1] / "seed_0/candidate/encoder.pt", "trained")
    split = fake_images(16).test
    rows = torch.argsort(split.labels[:240], stable=True)
    measured = measure_representations(encoder, split, rows, CPU)
    assert measured["kNN accuracy"] > 0.1


def test_an_imported_run_is_opened_by_python(imported):
    path, run = imported
    opened = open_run("", ["--config", path])
    assert opened.trained_roles == ROLES and opened.pair(1).epoch is None
    assert opened.config.epochs is None


def test_imported_runs_have_pages(imported, alone, tmp_path):
    page = make_page(tmp_path, "--config", imported[0])
    assert "import_encoders.py" in page.text and None not in page.data["pictures"]["tile"][:40]
    page = make_page(tmp_path, "--config", alone[0])
    assert "There are no memorization scores" in page.text and page.sheets == []
    without_g = "It takes g, which this run does not have; "
    assert without_g + "membership_inference.py measures f alone." in page.text  # scores
    assert without_g + "unit_memorization.py measures the units of f alone." in page.text
    assert "was not tried. Others trained the encoders." in page.text
    for script in ("memorization_scores.py", "layer_memorization.py", "remove_samples.py"):
        assert script not in page.text
    assert "unit_memorization.py" in page.text and "dejavu.py" in page.text
