import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import METHODS

import dejavu
import linear_probing_train
import memorization_scores
import remove_samples
import train_simclr
from memorization.config import Config, read_config, read_import_config, read_run_config
from memorization.data.catalogue import DATASETS
from memorization.errors import WrongUse
from memorization.fingerprints import first_difference
from memorization.machine.strict_yaml import dump_yaml, parse_yaml
from memorization.training.door import try_method
from models.simclr import SimCLRSettings

ALL_CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
IMPORTS = [path for path in ALL_CONFIGS if path.stem.startswith("import_")]
CONFIGS = [path for path in ALL_CONFIGS if path not in IMPORTS]


def read(path, *options):
    return read_config("A script.", ["--config", path, *options], method=SimCLRSettings)


def read_written(path):
    """The content of a config. Skips the test if it needs a package that is missing."""
    written = yaml.safe_load(path.read_text())
    if written["encoder"]["name"] in ("timm", "transformers"):
        pytest.importorskip(written["encoder"]["name"])
    if written.get("training", {}).get("privacy"):
        pytest.importorskip("opacus")
    return written


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_whole_and_names_its_run_after_itself(path):
    written = read_written(path)
    schema = METHODS[written["method"]["name"]].schema
    config = read_config("A script.", ["--config", str(path)], method=schema)
    assert config.run == f"runs/{path.stem}"
    sections = "run seeds data subsets augmentation encoder method training scores"
    assert set(sections.split()) <= set(written)


@pytest.mark.parametrize("path", IMPORTS, ids=lambda path: path.stem)
def test_every_import_is_whole_and_names_its_run_after_itself(path):
    written = read_written(path)
    config = read_import_config("A script.", ["--config", str(path)])
    assert config.run == f"runs/{path.stem}" and config.encoder.model_fields_set >= {"output"}
    sections = "run seeds data subsets augmentation encoder import scores"
    assert set(sections.split()) <= set(written)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_method_of_every_config_takes_the_views_of_its_augmentation(path, monkeypatch):
    written, tried = read_written(path), []
    script = METHODS[written["method"]["name"]].script
    images = SimpleNamespace(channels=len(DATASETS[written["data"]["name"]].mean))
    monkeypatch.setattr(script, "open_training_images", lambda *_: images)
    monkeypatch.setattr(
        script,
        "train_pair",
        lambda make_method, images, config: tried.append(
            try_method(make_method, images.channels, config)
        ),
    )
    script.main(["--config", str(path)])
    assert tried == [None]


def test_every_value_of_the_file_is_an_option(write_config):
    options = "--training.epochs 7 --seeds 3 4 --method.temperature 0.1 --data.root 2024 "
    options += "--training.clip_gradient null --training.checkpoint_epochs []"
    views = ["--augmentation.views", "[{size: 16, count: 2, flip: 1}]"]
    config = read(write_config(), *options.split(), *views)
    assert (config.training.epochs, config.seeds, config.method.temperature) == (7, [3, 4], 0.1)
    assert config.data.root == "2024" and config.augmentation.views[0].flip == 1.0
    assert config.training.clip_gradient is None and config.training.checkpoint_epochs == []


def test_numbers_are_decimal_in_the_file_and_on_the_command_line(write_config):
    path = Path(write_config())
    path.write_text(path.read_text().replace("seeds:\n- 0\n", "seeds: [8, +10, 0]\n"))
    config = read(str(path), "--training.learning_rate", "10.50", "--method.temperature", ".5")
    assert config.seeds == [8, 10, 0]
    assert (config.training.learning_rate, config.method.temperature) == (10.5, 0.5)


@pytest.mark.parametrize(
    "word, plain", [("010", "10"), ("08", "8"), ("+007", "+7"), ("-010", "-10")]
)
def test_a_number_with_zeros_before_it_is_refused(word, plain, write_config):
    """YAML 1.1 reads 010 as 8, and `seq -w` means 10."""
    hint = rf"seeds.0: .*without the zeros before it, as {re.escape(plain)}\)"
    with pytest.raises(WrongUse, match=hint):
        read(write_config(), "--seeds", word)
    path = Path(write_config())
    path.write_text(path.read_text().replace("seeds:\n- 0\n", f"seeds: [{word}]\n"))
    with pytest.raises(WrongUse, match=re.escape(f"seeds.0: '{word}' is not allowed")):
        read(str(path))


TEXTS = [
    "010", "08", "1:30", "1_000", "0x10", "1e-3", "on", "no", "null", "true", "2024-01-01", "=",
    "<<", ".5", "-.5", ".inf", "a: b",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_that_looks_like_something_else_is_kept_in_the_run_folder(
    text, write_config, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    read(write_config(), "--run", text).save()
    assert read_run_config(text).run == text
    # for others' programs, too
    assert yaml.safe_load(Path(text, "config.yaml").read_text())["run"] == text


def test_a_value_that_stands_twice_is_written_out_twice():
    """An alias would be refused once the file is read back."""
    views = [{"size": 16}]
    text = dump_yaml({"augmentation": views, "scores": views})
    assert parse_yaml(text, "here") == {"augmentation": views, "scores": views}


@pytest.mark.parametrize(
    "text", ["010", "08", "1:30", "on", "no", "2024-01-01", "0x10", "1e-3", "="]
)
def test_what_is_neither_decimal_nor_true_or_false_is_text(text, write_config):
    path = Path(write_config())
    path.write_text(re.sub("run: .*", f"run: {text}", path.read_text()))
    assert read(str(path)).run == text


def offered_options():
    """The options of every piece of code in README and its pages that begins with one, such as
    "--seeds 0 1 2".

    Options without a value are not among them, nor those of compare_runs.py, which takes no config.
    """
    root = Path(__file__).parents[2]
    pages = [root / "README.md", root / "configs/README.md", *root.glob("docs/*.md")]
    pages.remove(root / "docs/comparison.md")
    pieces = [
        piece
        for page in pages
        for line in page.read_text().splitlines()
        for piece in re.findall("`(--[^`]* [^`]*)`", line)
    ]
    assert {
        "--seeds 0 1 2 --training.epochs 200",
        "--encoder.name vit_tiny --encoder.patch 2",
    } <= set(pieces)
    return sorted(set(pieces))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_option_that_readme_and_its_pages_offer_fits_every_config(
    path, tmp_path, monkeypatch, capsys
):
    """Masked views are offered no other encoder; what one script takes is offered to it alone."""
    monkeypatch.chdir(tmp_path)
    written = read_written(path)
    schema = METHODS[written["method"]["name"]].schema
    is_masked = any(recipe.get("mask_ratio") for recipe in written["augmentation"]["views"])
    queries = [
        f"--dejavu.query {query}"
        for query in ("training", "corner", "center_masked", "whole", "boxes --dejavu.boxes b.csv")
    ]
    for offered in [*offered_options(), *queries]:
        if offered.startswith("--encoder") and is_masked:
            continue
        options = ["--config", str(path), "--run", "run", *offered.split()]
        if offered.startswith("--jobs"):
            options.append("--retrain")
        actions = {name: "" for name in ("checkpoint", "jobs", "role", "encoder")}
        config = read_config("", options, method=schema, actions=actions, flags={"retrain": ""})
        config.save()
        measured = read_config("", options, actions=actions, flags={"retrain": ""})
        assert measured.trained_part() == config.trained_part()


def test_fewer_epochs_leave_out_the_checkpoints_beyond_them_and_say_so(write_config, capsys):
    path = write_config({"training.checkpoint_epochs": [1, 2, 3]})
    assert read(path, "--training.epochs", "1").training.checkpoint_epochs == [1]
    assert capsys.readouterr().out == "command line: --training.epochs 1: no checkpoint at 2, 3\n"
    assert read(path, "--training.epochs", "3").training.checkpoint_epochs == [1, 2, 3]
    assert read(path, "--training.epochs", "4").training.checkpoint_epochs == [1, 2, 3]
    assert capsys.readouterr().out == ""
    for epochs in ("3", "5"):  # the file does not fit itself
        with pytest.raises(WrongUse, match="training: checkpoint_epochs has 9"):
            read(write_config({"training.checkpoint_epochs": [1, 9]}), "--training.epochs", epochs)


def test_another_encoder_leaves_out_the_settings_of_the_one_in_the_file_and_says_so(
    write_config, capsys
):
    config = read(write_config(), "--encoder.name", "vit_tiny", "--encoder.patch", "4")
    recorded = config.trained_part()["encoder"]
    assert (recorded["name"], recorded["patch"], recorded["width"]) == ("vit_tiny", 4, 32)
    assert (
        capsys.readouterr().out
        == "command line: --encoder.name vit_tiny: without width of resnet_small\n"
    )
    with pytest.raises(WrongUse, match="width is 8, but vit_tiny takes no width"):
        read(write_config({"encoder.name": "vit_tiny"}))


@pytest.mark.parametrize("changes, options, place", [
    ({"training.warmup_epochs": 2}, ["--training.epochs", "2"],
     "command line: --training.epochs 2: training: "),
    ({"training.warmup_epochs": 2}, ["--training.epochs", "2", "--seeds", "3"],
     "command line: --training.epochs 2: training: "),
    ({"training.warmup_epochs": 5}, ["--seeds", "3"], "FILE: training: "),
    ({"training.warmup_epochs": 5, "run": None}, ["--run", "r"], "FILE: training: "),
    ({"training.warmup_epochs": 5, "training.epochs": None}, ["--training.epochs", "4"],
     "command line: --training.epochs 4: training: "),
    ({}, ["--training.epochs", "7", "--training.warmup_epochs", "8"],
     "command line: --training.epochs 7 --training.warmup_epochs 8: training: "),
    ({"augmentation.views": [{"size": 16, "count": 2, "mask_ratio": 0.5}], "run": None},
     ["--run", "r"], "FILE: augmentation.views: "),
    ({"encoder": {"name": "vit_tiny"}}, ["--scores.augmentation", "[{size: 17}]"],
     "command line: --scores.augmentation {'size': 17}: encoder.patch: "),
    ({"subsets.candidate": 25}, ["--threads", "1"], "FILE: subsets: "),
    ({"training": 5}, ["--training.epochs", "2"], "FILE: training: 5 is not allowed: "),
    ({"subsets.candidate": 25}, ["--subsets.independent", "26"],
     "command line: --subsets.independent 26: subsets: "),
])  # fmt: skip
def test_a_rule_between_settings_blames_who_broke_it(changes, options, place, write_config):
    path = write_config(changes)
    with pytest.raises(WrongUse) as refusal:
        read(path, *options)
    assert str(refusal.value).startswith(place.replace("FILE", path)), refusal.value


@pytest.fixture
def help_of(capsys, monkeypatch):
    """help_of(script) -> the text that its --help prints, 80 columns wide."""
    monkeypatch.setenv("COLUMNS", "80")

    def read(script):
        with pytest.raises(SystemExit) as ending:
            script.main(["--help"])
        assert ending.value.code == 0
        return capsys.readouterr().out

    return read


def test_help_is_the_docstring_and_the_settings_with_their_meaning(help_of):
    text = help_of(train_simclr)
    assert words_of(train_simclr.__doc__) in words_of(text)
    assert "--training.warmup_epochs" in text and "epochs of linear warm-up" in text
    assert "crop_scale: random resized crop" in text  # a key of the recipes


def words_of(text):
    """The words of a text, whichever way it is broken into lines."""
    return " ".join(text.replace("\\\n", "\n").split())


@pytest.mark.parametrize("script", [
    train_simclr, memorization_scores, dejavu, linear_probing_train, remove_samples,
], ids=lambda script: script.__name__)  # fmt: skip
def test_help_fits_into_80_columns_and_its_commands_can_be_copied(script, help_of):
    text = help_of(script)
    assert [line for line in text.splitlines() if len(line) > 80] == []
    joined = " ".join(text.replace("\\\n", "").split())
    for line in script.__doc__.replace("\\\n", "").splitlines():
        assert not line.startswith("    python") or " ".join(line.split()) in joined


def test_help_lists_actions_first_and_then_the_settings_in_a_group_a_section(help_of):
    text = help_of(train_simclr)
    titles = re.findall(r"^(\w.*):$", text, re.MULTILINE)
    sections = ["data", "subsets", "augmentation", "encoder", "method", "training"]
    sections.append("training.privacy")
    assert titles[:2] == ["actions", "settings (each is a key of the YAML file)"]
    assert titles[2:] == sections
    groups = dict(zip(titles, re.split(r"^\w.*:$", text, flags=re.MULTILINE)[1:], strict=True))
    assert {"--help", "--config", "--role"} == set(re.findall(r"--\w+", groups["actions"]))
    for section in sections:
        options = re.findall(r"^  (--\S+)", groups[section], re.MULTILINE)
        assert options and all(option.startswith(f"--{section}.") for option in options)


@pytest.mark.parametrize("script, sections", [
    (train_simclr, {"data", "subsets", "augmentation", "encoder", "method", "training"}),
    (memorization_scores, {"data", "scores"}),
    (dejavu, {"data", "scores", "dejavu"}),
    (linear_probing_train, {"data", "probe"}),
    (remove_samples, {"data", "scores", "probe", "removal"}),
])  # fmt: skip
def test_help_shows_what_the_script_reads(script, sections, help_of):
    """Of the data a measuring script shows only what may differ from training."""
    text = help_of(script)
    assert set(re.findall(r"^  --(\w+)\.", text, re.MULTILINE)) == sections
    assert ("--data.size" in text) == (script is train_simclr) and "--data.root" in text
    assert ("keys of a recipe" in text) == bool(sections & {"augmentation", "scores"})


def test_a_training_script_accepts_and_checks_what_its_help_does_not_show(write_config):
    path = write_config({"scores.views": 7})
    assert read(path).scores.views == 7
    assert read(path, "--scores.views", "5").scores.views == 5
    with pytest.raises(WrongUse, match=f"{path}: scores.views: 2 is not allowed"):
        read(write_config({"scores.views": 2}))


@pytest.mark.parametrize("key, value", [
    ("training.epochs", 4),
    ("encoder.name", "resnet18"),
    ("subsets.file", "other.npz"),
    ("seeds", [7]),
])  # fmt: skip
def test_a_value_that_differs_from_the_run_is_refused_where_it_was_written(
    key, value, scored_run, write_config
):
    run = str(scored_run[1])
    path = write_config({"run": run, "seeds": [0, 1], key: value})
    with pytest.raises(WrongUse) as refusal:
        read_config("", ["--config", path])
    assert str(refusal.value).startswith(f"{path}: {key}: ")
    path = write_config({"run": run, "seeds": [0, 1]})
    with pytest.raises(WrongUse) as refusal:
        read_config("", ["--config", path, f"--{key}", str(value)])
    assert str(refusal.value).startswith(f"command line: {key}: ")


def test_what_was_trained_leaves_out_what_may_differ(write_config):
    options = "--data.root elsewhere --training.knn_every 5 --device auto"
    one, other = read(write_config()), read(write_config(), *options.split())
    assert one.trained_part() == other.trained_part()
    assert one.trained_part() != read(write_config(), "--training.epochs", "4").trained_part()


def test_first_difference_names_the_key_and_both_values():
    one, other = {"a": {"b": 1, "c": [1, 2]}}, {"a": {"b": 1, "c": [1, 3]}}
    assert first_difference(one, other) == ("a.c.1", 2, 3)
    assert first_difference({"a": [1]}, {"a": [1, 2]}) == ("a", [1], [1, 2])
    assert first_difference({"a": 1}, {"a": 1, "b": 2}) == ("b", None, 2)
    assert first_difference({"a": 1}, {"a": 1.0}) == ("a", 1, 1.0)
    assert first_difference({"a": {"b": None}}, {"a": {"b": None}}) is None


def test_measuring_takes_what_was_trained_from_the_run(scored_run, write_config):
    """The file may leave out what was trained by default, but may not contradict the run."""
    _, run = scored_run
    config = read_config(
        "",
        [
            "--config",
            write_config({"run": str(run), "threads": None, "training.checkpoint_epochs": []}),
        ],
    )
    trained = Config.model_validate(yaml.safe_load((run / "config.yaml").read_text()))
    assert config.trained_part() == trained.trained_part()


def test_measuring_needs_no_more_than_the_run(scored_run, tmp_path):
    _, run = scored_run
    path = tmp_path / "short.yaml"
    path.write_text(f"run: {run}\nscores: {{views: 7}}\n")
    config = read_config(
        "", ["--config", str(path), "--training.epochs", "3", "--data.root", "elsewhere"]
    )
    trained = Config.model_validate(yaml.safe_load((run / "config.yaml").read_text()))
    assert config.trained_part() == trained.trained_part() and config.scores.views == 7
    # the place of the data may differ
    assert config.data.root == "elsewhere" and trained.data.root == "data"


def test_measuring_without_a_run_says_so(write_config, refusal, tmp_path):
    assert "no trained run" in refusal(memorization_scores.main, ["--config", write_config()])
    assert not (tmp_path / "run").exists()


def test_wrong_use_is_a_value_error_for_those_who_import_the_package(write_config):
    with pytest.raises(ValueError) as caught:
        read(write_config(), "--training.epochs", "0")
    assert isinstance(caught.value, WrongUse)
