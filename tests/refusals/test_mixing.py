"""Nothing is measured with what does not belong together: of all that must match, whatever differs
is refused, with both values.
"""

import functools
import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import yaml
from conftest import EXPERIMENT, METHODS, random_bytes, write_experiment, write_fashion_mnist

import dejavu
import layer_memorization
import linear_probing_train
import membership_inference
import memorization_scores
import remove_samples
import train_byol
import train_simclr
import unit_memorization
from memorization.checkpoint import read_checkpoint, save_checkpoint
from memorization.data.catalogue import DATASETS, DataSettings
from memorization.data.fake import make_fake_arrays
from memorization.data.images import open_images
from memorization.data.subsets import SubsetSettings, draw_subsets, load_subsets, save_subsets
from memorization.measuring import retraining
from memorization.run import open_run

MEASURING = {
    memorization_scores: [],
    dejavu: ["--dejavu.k", "20", "--dejavu.views", "1"],
    linear_probing_train: [
        *("--probe.train_images", "200", "--probe.epochs", "2"),
        *("--probe.warmup_epochs", "0", "--probe.learning_rates", "1"),
    ],
    remove_samples: ["--removal.counts", "4", "--removal.candidates_only", "true"],
}
# Scripts, and the sections that each of them reads.
READ = {
    memorization_scores: ["scores"],
    layer_memorization: ["layers", "scores"],
    unit_memorization: ["units", "scores", "probe"],
    dejavu: ["dejavu", "scores"],
    linear_probing_train: ["probe"],
    membership_inference: ["membership"],
    remove_samples: ["removal", "probe", "scores"],
}
SCRIPTS = {sections[0]: f"{script.__name__}.py" for script, sections in READ.items()}
OPTIONS = {
    "scores": ["--scores.views", "5"],
    "layers": ["--layers.images", "20"],
    "units": ["--units.images", "20"],
    "dejavu": ["--dejavu.k", "5"],
    "probe": ["--probe.epochs", "11"],
    "membership": ["--membership.views", "4"],
    "removal": ["--removal.draws", "2"],
}
OF_SCORES = (dejavu, remove_samples)  # the scripts that read scores
FAKE = DataSettings(name="fake", size=16)
read_once = functools.cache(lambda size: make_fake_arrays(DataSettings(name="fake", size=size)))


def replace_fake_images(monkeypatch, read):
    monkeypatch.setitem(DATASETS, "fake", DATASETS["fake"]._replace(read=read))


@pytest.fixture(autouse=True)
def images_made_once(monkeypatch):
    replace_fake_images(monkeypatch, lambda settings: read_once(settings.size))


@pytest.fixture
def refused(refusal):
    """refused(words, path, run, *options, by): every script refuses with a line that holds the
    words, and changes nothing in the run.
    """

    def check(words, path, run, *options, by=MEASURING):
        before = content(run)
        for script in by:
            line = refusal(
                script.main,
                ["--config", path, "--run", str(run), *MEASURING.get(script, []), *options],
            )
            assert all(word in line for word in words), f"{script.__name__}: {line}"
            assert content(run) == before, script.__name__

    return check


@pytest.fixture
def quick_scores(monkeypatch):
    """quick_scores(path, run, *options): scores without pictures."""
    for name in ("draw_histogram", "draw_scatter", "draw_gallery"):
        monkeypatch.setattr(memorization_scores, name, lambda *_: None)
    return lambda path, run, *options: memorization_scores.main(
        ["--config", path, "--run", str(run), *options]
    )


def content(folder):
    return {file: file.read_bytes() if file.is_file() else None for file in folder.rglob("*")}


def test_what_belongs_together_is_measured(run_copy, quick_scores, monkeypatch):
    """So that no test here is passed by scripts that refuse everything."""
    path, run = run_copy
    for name in ("draw_deja_vu_confidence", "draw_deja_vu_shares", "draw_deja_vu_cases"):
        monkeypatch.setattr(dejavu, name, lambda *_: None)
    monkeypatch.setattr(linear_probing_train, "draw_probe", lambda *_: None)
    quick_scores(path, run)
    for script, options in list(MEASURING.items())[1:]:
        script.main(["--config", path, "--run", str(run), *options])
    for name in (
        "dejavu/views_1/dejavu.csv",
        "probe/*/summary.json",
        "removal/subsets/memorized_4_draw0.npz",
    ):
        assert len(list(run.glob(name))) == 1


# --- a value that is given ------------------------------------------------------------------------

PLAIN = EXPERIMENT["augmentation"]["views"][0]  # the recipe of the run
GIVEN = [  # key, the value given, and the line
    ("data.name", "cifar10", "data.name: 'cifar10' was given, but {run} was trained with 'fake'"),
    ("data.size", 32, "data.size: 32 was given, but {run} was trained with 16"),
    ("subsets.shared", 31, "subsets.shared: 31 was given, but {run} was trained with 32"),
    ("subsets.external", 41, "subsets.external: 41 was given, but {run} was trained with 40"),
    (
        "subsets.order",
        "shuffled",
        "subsets.order: 'shuffled' was given, but {run} was trained with 'file'",
    ),
    ("subsets.seed", 1, "subsets.seed: 1 was given, but {run} was trained with 0"),
    (
        "subsets.file",
        "other.npz",
        "subsets.file: 'other.npz' was given, but {run} was trained with None",
    ),
    (
        "augmentation.views",
        [PLAIN | {"grayscale": 0.3}],
        "augmentation.views.0.grayscale: 0.3 was given, but {run} was trained with 0.2",
    ),
    (
        "augmentation.views",
        [PLAIN | {"crop_scale": None}],
        "augmentation.views.0.crop_scale: None was given, but {run} was trained with [0.5, 1.0]",
    ),
    (
        "encoder.name",
        "resnet18",
        "encoder.name: 'resnet18' was given, but {run} was trained with 'resnet_small'",
    ),
    ("encoder.width", 16, "encoder.width: 16 was given, but {run} was trained with 8"),
    ("method.name", "byol", "method.name: 'byol' was given, but {run} was trained with 'simclr'"),
    (
        "method.temperature",
        0.25,
        "method.temperature: 0.25 was given, but {run} was trained with 0.5",
    ),
    ("training.epochs", 4, "training.epochs: 4 was given, but {run} was trained with 3"),
    ("training.batch_size", 8, "training.batch_size: 8 was given, but {run} was trained with 16"),
    (
        "training.optimizer",
        "sgd",
        "training.optimizer: 'sgd' was given, but {run} was trained with 'adamw'",
    ),
    (
        "training.alignment_penalty",
        0.1,
        "training.alignment_penalty: 0.1 was given, but {run} was trained with None",
    ),
    (
        "training.learning_rate",
        0.02,
        "training.learning_rate: 0.02 was given, but {run} was trained with 0.01",
    ),
    (
        "training.precision",
        "bf16",
        "training.precision: 'bf16' was given, but {run} was trained with 'auto'",
    ),
    ("seeds", [7], "seeds: 7 was given, but {run} was trained with [0, 1]"),
    ("seeds", [0, 7], "seeds: 7 was given, but {run} was trained with [0, 1]"),
]
# Training opens the data before it looks at the run, and joins new seeds to it; byol has a script
# of its own.
NOT_OF_TRAINING = ("data.name", "subsets.file", "encoder.name", "method.name", "seeds")


@pytest.mark.parametrize("key, value, words", GIVEN, ids=lambda value: str(value)[:40])
def test_a_given_value_that_differs_from_the_run_is_refused(
    key, value, words, scored_run, tmp_path, refused
):
    path, run = scored_run
    scripts = list(MEASURING) if key in NOT_OF_TRAINING else [*MEASURING, train_simclr]
    of_run = {"seeds": [0, 1], "training.checkpoint_epochs": [2], "training.knn_every": 1}
    refused(
        [words.format(run=run)], write_experiment(tmp_path, of_run | {key: value}), run, by=scripts
    )
    if not key.startswith("method."):  # which is no option of a measuring script
        refused(
            [words.format(run=run)],
            path,
            run,
            f"--{key}",
            json.dumps(value) if isinstance(value, list) else str(value),
            by=scripts,
        )


@pytest.mark.parametrize("script, sections", READ.items(), ids=lambda value: str(value)[:30])
def test_an_option_of_another_measurement_is_refused(script, sections, scored_run, refusal):
    """It would be read by nobody. The same setting in the file is of another script's."""
    path, run = scored_run
    for section, option in OPTIONS.items():
        if section not in sections:
            line = refusal(script.main, ["--config", path, "--run", str(run), *option])
            own = SCRIPTS[section]
            assert f"command line: {option[0]}: {own} reads it, this script does not" in line


def test_options_of_what_a_measurement_is_built_on_are_read(scored_run):
    options = [*OPTIONS["probe"], *OPTIONS["scores"], *OPTIONS["units"]]
    run = open_run("", ["--config", scored_run[0], "--run", str(scored_run[1]), *options], "units")
    config = run.config
    assert (config.probe.epochs, config.scores.views, config.units.images) == (11, 5, 20)


def test_a_method_setting_is_no_option_of_a_measuring_script(scored_run, refused):
    refused(["--method.temperature", "no such option"], *scored_run, "--method.temperature", "0.25")


# --- another encoder ------------------------------------------------------------------------------

TRAINED = [  # the one thing in which the other run differs, its script, and what the refusal names
    ({"subsets.order": "shuffled"}, train_simclr, ["subsets is "]),
    ({"subsets.external": 41}, train_simclr, ["subsets is "]),
    ({"data.size": 32}, train_simclr, ["subsets is "]),
    (
        {"augmentation.views": [PLAIN | {"grayscale": 0.3}]},
        train_simclr,
        ["augmentation.views.0.grayscale is 0.3, but 0.2 belongs here"],
    ),
    ({"encoder.width": 16}, train_simclr, ["encoder.width is 16, but 8 belongs here"]),
    (
        {"method": METHODS["byol"].changes["method"]},
        train_byol,
        ["method.name is 'byol', but 'simclr' belongs here"],
    ),
    (
        {"method.temperature": 0.25},
        train_simclr,
        ["method.temperature is 0.25, but 0.5 belongs here"],
    ),
    ({"training.epochs": 2}, train_simclr, ["training.epochs is 2, but 3 belongs here"]),
    (
        {"training.precision": "bf16"},
        train_simclr,
        ["training.precision is 'bf16', but 'auto' belongs here"],
    ),
    ({"seeds": [2]}, train_simclr, ["seed is 2, but 0 belongs here"]),
]


def changed_key(value):
    """The name of a case: the setting that differs."""
    return next(iter(value)) if isinstance(value, dict) else ""


@pytest.mark.parametrize("changes, script, words", TRAINED, ids=changed_key)
def test_an_encoder_of_a_run_that_differs_in_one_thing_is_refused(
    changes, script, words, run_copy, tmp_path, refused
):
    path, run = run_copy
    (tmp_path / "other").mkdir()
    script.main(["--config", write_experiment(tmp_path / "other", changes), "--role", "candidate"])
    (encoder,) = (tmp_path / "other/run").rglob("encoder.pt")
    shutil.copy(encoder, run / "seed_0/candidate/encoder.pt")
    if words == ["subsets is "]:
        found, wanted = (
            load_subsets(folder / "subsets.npz").fingerprint[:12]
            for folder in (tmp_path / "other/run", run)
        )
        words = [f"subsets is {found}..., but {wanted}... belongs here"]
    refused(["seed_0/candidate/encoder.pt", *words], path, run)


def record_with(**changes):
    """A damage that changes the record of g's encoder of seed 1."""

    def damage(run):
        path = run / "seed_1/independent/encoder.pt"
        save_checkpoint(path, read_checkpoint(path) | changes)

    return damage


def files_of(*pairs):
    """A damage that copies files of a run over others."""

    def damage(run):
        for source, target in pairs:
            shutil.copy(run / source, run / target)

    return damage


def earlier_pair(run):
    """Both encoders of seed 0 as they were after epoch 2."""
    for role in ("candidate", "independent"):
        shutil.copy(run / f"seed_0/{role}/encoder_epoch_0002.pt", run / f"seed_0/{role}/encoder.pt")


FILES = [  # a damage to the run, and what the refusal names
    (
        files_of(("seed_0/candidate/encoder.pt", "seed_0/independent/encoder.pt")),
        ["role is 'candidate', but 'independent' belongs here"],
    ),
    (
        files_of(("seed_0/independent/encoder.pt", "seed_0/candidate/encoder.pt")),
        ["role is 'independent', but 'candidate' belongs here"],
    ),
    (
        files_of(("seed_1/candidate/encoder.pt", "seed_0/candidate/encoder.pt")),
        ["seed is 1, but 0 belongs here"],
    ),
    (
        files_of(("seed_0/candidate/last.pt", "seed_0/candidate/encoder.pt")),
        ["encoder.pt: a checkpoint, but not of an encoder"],
    ),
    (earlier_pair, ["seed_0/candidate/encoder.pt: epoch is 2, but 3 belongs here"]),
    (record_with(precision="bf16"), ["seed_1: precision is 'fp32' of f, but 'bf16' of g"]),
    (
        record_with(subsets="0" * 64),
        ["seed_1/independent/encoder.pt: subsets is 000000000000..., but"],
    ),
]


@pytest.mark.parametrize(
    "damage, words", FILES, ids=lambda value: value[0] if isinstance(value, list) else ""
)
def test_encoders_that_do_not_belong_together_are_refused(damage, words, run_copy, refused):
    path, run = run_copy
    damage(run)
    refused(words, path, run)


@pytest.mark.parametrize("by", [memorization_scores, dejavu], ids=lambda script: script.__name__)
def test_a_kept_checkpoint_of_another_epoch_is_refused(by, run_copy, refused):
    path, run = run_copy
    for role in ("candidate", "independent"):
        shutil.copy(run / f"seed_0/{role}/encoder.pt", run / f"seed_0/{role}/encoder_epoch_0002.pt")
    refused(
        ["encoder_epoch_0002.pt: epoch is 3, but 2 belongs here"],
        path,
        run,
        "--checkpoint",
        "epoch_0002",
        by=[by],
    )


def test_a_retraining_does_not_begin_beside_an_encoder_of_another_run(
    run_copy, quick_scores, refused, monkeypatch
):
    path, run = run_copy
    monkeypatch.setattr(retraining, "run_script", None)  # would be called
    quick_scores(path, run, "--seeds", "0")  # so that the scores do not meet the encoder
    shutil.copy(run / "seed_0/candidate/encoder.pt", run / "seed_1/candidate/encoder.pt")
    refused(
        ["seed_1/candidate/encoder.pt: seed is 0, but 1 belongs here"],
        path,
        run,
        "--retrain",
        by=[remove_samples],
    )


# --- another split, config or images --------------------------------------------------------------


def swapped(subsets):
    return replace(subsets, candidate=subsets.independent, independent=subsets.candidate)


def in_another_order(subsets):
    return replace(subsets, candidate=subsets.candidate[::-1].copy())


def of_another_seed(subsets):
    counts = {"shared": 32, "candidate": 24, "independent": 24, "external": 40}
    settings = SubsetSettings(**counts, order="shuffled", seed=1)
    return replace(draw_subsets(settings, open_images(FAKE)), data=subsets.data)


def of_other_data(subsets):
    return replace(subsets, external=subsets.external + 1)


@pytest.mark.parametrize("change", [swapped, in_another_order, of_another_seed, of_other_data])
def test_another_split_is_refused(change, run_copy, refused):
    path, run = run_copy
    old = load_subsets(run / "subsets.npz")
    new = change(old)
    save_subsets(new, run / "subsets.npz")
    refused(
        [f"subsets is {old.fingerprint[:12]}..., but {new.fingerprint[:12]}... belongs here"],
        path,
        run,
    )
    is_new = f"its fingerprint is {new.fingerprint[:12]}..."
    line = f"subsets.npz: {is_new}, but {old.fingerprint[:12]}... belongs here"
    refused([line], path, run, by=[train_simclr])


@pytest.mark.parametrize("key, value, words", [
    ("epochs", 4, ["training.epochs is 3, but 4 belongs here"]),
    ("learning_rate", 0.5, ["training.learning_rate is 0.01, but 0.5 belongs here"]),
])  # fmt: skip
def test_a_config_of_another_run_is_refused(key, value, words, run_copy, tmp_path, refused):
    """config.yaml of the run folder was replaced; the config that is given agrees with it."""
    _, run = run_copy
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["training"][key] = value
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    given = {"seeds": [0, 1], f"training.{key}": value}
    refused(["encoder.pt", *words], write_experiment(tmp_path, given), run)


def other_pixel(images):
    pixels = images.train.pixels.clone()
    pixels[40, 0, 3, 3] += 1
    return replace(images, train=replace(images.train, pixels=pixels))


def other_label(images):
    labels = images.test.labels.clone()
    labels[200] += 1
    return replace(images, test=replace(images.test, labels=labels))


def one_image_less(images):
    return replace(
        images,
        test=replace(images.test, pixels=images.test.pixels[:255], labels=images.test.labels[:255]),
    )


@pytest.mark.parametrize(
    "change, key",
    [(other_pixel, "train.sha256"), (other_label, "test.sha256"), (one_image_less, "test.count")],
)
def test_other_images_are_refused(change, key, scored_run, refused, monkeypatch):
    path, run = scored_run
    trained = open_images(FAKE)
    images = change(trained)
    arrays = [(split.pixels.numpy(), split.labels.numpy()) for split in (images.train, images.test)]
    replace_fake_images(monkeypatch, lambda settings: (*arrays, images.classes))
    split, name = key.split(".")
    found, old = (getattr(of, split).fingerprint[name] for of in (images, trained))
    both = f"is {found}, not {old}" if name == "count" else f"is {found[:12]}..., not {old[:12]}..."
    assert found != old
    refused(["data.root: data holds other images", f"{key} {both}"], path, run)


def test_other_files_under_data_root_are_refused(tmp_path, refused):
    for name, seed in (("one", 0), ("other", 1)):
        images = {"train": random_bytes(300, 28, 28, seed=seed)}
        images["t10k"] = random_bytes(100, 28, 28, seed=seed + 10)
        labels = np.arange(300) % 10
        write_fashion_mnist(tmp_path / name / "FashionMNIST/raw", images, labels)
    # not the published files
    data = {"name": "fashion_mnist", "root": str(tmp_path / "one"), "verify": False}
    changes = {"data": data, "training.epochs": 1}
    path = write_experiment(tmp_path, changes)
    train_simclr.main(["--config", path])
    other = str(tmp_path / "other")
    refused(
        [f"data.root: {other} holds other images", "train.sha256 is", "not"],
        path,
        tmp_path / "run",
        "--data.root",
        other,
    )


# --- other scores ---------------------------------------------------------------------------------


def summary_with(change):
    """A damage that changes the dict in summary.json in place."""

    def damage(run):
        summary = json.loads((run / "scores/summary.json").read_text())
        change(summary)
        (run / "scores/summary.json").write_text(json.dumps(summary))

    return damage


def trained_again(run):
    """As if an encoder had been trained again, on another machine, and not scored again."""
    path = run / "seed_0/candidate/encoder.pt"
    record = read_checkpoint(path)
    record["weights"]["layers.0.weight"] += 1
    save_checkpoint(path, record)


SCORES = [
    (
        summary_with(lambda summary: summary.pop("format")),
        ["format is None, but 'memorization scores 1' belongs here"],
    ),
    (
        summary_with(lambda summary: summary.update(format="memorization scores 0")),
        ["format is 'memorization scores 0', but 'memorization"],
    ),
    (
        summary_with(lambda summary: summary["fingerprints"].update(subsets="0" * 64)),
        ["subsets is 000000000000..., but"],
    ),
    (
        summary_with(lambda summary: summary["fingerprints"]["encoders"].pop("seed_1/candidate")),
        ["encoders.seed_1/candidate is None, but"],
    ),
    (
        summary_with(lambda summary: summary["fingerprints"].pop("scores")),
        ["not whole scores (KeyError: 'scores')"],
    ),
    (
        trained_again,
        ["encoders.seed_0/candidate is", "belongs here; run memorization_scores.py again"],
    ),
]


@pytest.mark.parametrize(
    "damage, words", SCORES, ids=lambda value: value[0] if isinstance(value, list) else ""
)
def test_scores_of_another_format_or_of_other_encoders_are_refused(
    damage, words, run_copy, refused
):
    path, run = run_copy
    damage(run)
    refused([f"{run}/scores: ", *words], path, run, by=OF_SCORES)


@pytest.mark.parametrize("options, words", [
    (["--scores.representation", "tokens"],
        ["representation is 'tokens', but 'pooled' belongs here"]),
    (["--scores.augmentation", "[{size: 16, noise: 0.1}]"],
        ["augmentation is [{'count': 1", "but 'training' belongs here"]),
    (["--checkpoint", "epoch_0002"], ["checkpoint is 'epoch_0002', but 'encoder' belongs here"]),
    (["--scores.precision", "bf16"], ["precision is 'bf16', but 'fp32' belongs here"]),
], ids=["representation", "augmentation", "checkpoint", "precision"])  # fmt: skip
def test_scores_of_something_else_in_the_place_of_the_scores_are_refused(
    options, words, run_copy, quick_scores, refused
):
    path, run = run_copy
    quick_scores(path, run, *options)
    (other,) = (folder for folder in (run / "scores").iterdir() if folder.is_dir())
    for name in ("summary.json", "scores.npz"):
        shutil.copy(other / name, run / "scores" / name)
    refused([f"{run}/scores: ", *words], path, run, by=OF_SCORES)


@pytest.mark.parametrize("name", ["scores.csv", "scores.npz", "scores.mat"])
def test_scores_that_were_not_written_with_their_summary_are_refused(
    name, run_copy, quick_scores, refused
):
    path, run = run_copy
    quick_scores(path, run, "--scores.views", "5")
    (other,) = (folder for folder in (run / "scores").iterdir() if folder.is_dir())
    written, found = (
        hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for folder in (run / "scores", other)
    )
    shutil.copy(other / name, run / "scores" / name)
    words = [
        "files of different results",
        f"{name} is {found[:12]}..., but {written[:12]}... belongs here",
    ]
    refused(words, path, run, by=OF_SCORES)
