import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import METHODS

import memorization_scores
import train_mae
import train_simclr
from memorization.config import Config, first_difference, read_config, trained_part
from memorization.data import NORMALIZATION
from memorization.errors import WrongUse
from memorization.training import try_method
from models.simclr import SimCLRSettings

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


def read(path, *options):
    return read_config("A script.", ["--config", path, *options], method=SimCLRSettings)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_whole_and_names_its_run_after_itself(path):
    written = yaml.safe_load(path.read_text())
    _, schema, _ = METHODS[written["method"]["name"]]
    config = read_config("A script.", ["--config", str(path)], method=schema)
    assert config.run == f"runs/{path.stem}"
    assert {"run", "seeds", "data", "subsets", "augmentation", "encoder", "method", "training", "scores"} <= set(written)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_method_of_every_config_takes_the_views_of_its_augmentation(path, monkeypatch):
    written, tried = yaml.safe_load(path.read_text()), []
    script, _, _ = METHODS[written["method"]["name"]]
    channels = len(NORMALIZATION[written["data"]["name"]][0])
    monkeypatch.setattr(script, "open_images", lambda settings: SimpleNamespace(channels=channels))
    monkeypatch.setattr(script, "train_pair", lambda make_method, images, config: tried.append(try_method(make_method, channels, config)))
    script.main(["--config", str(path)])
    assert tried == [None]


def test_every_value_of_the_file_is_an_option(write_config):
    config = read(
        write_config(), "--training.epochs", "7", "--seeds", "3", "4", "--method.temperature", "0.1", "--data.root", "2024",
        "--augmentation.views", "[{size: 16, count: 2, flip: 1}]", "--training.clip_gradient", "null", "--training.checkpoint_epochs", "[]",
    )  # fmt: skip
    assert (config.training.epochs, config.seeds, config.method.temperature) == (7, [3, 4], 0.1)
    assert config.data.root == "2024" and config.augmentation.views[0].flip == 1.0
    assert config.training.clip_gradient is None and config.training.checkpoint_epochs == []


def test_help_is_the_docstring_and_the_settings_with_their_meaning(write_config, capsys):
    with pytest.raises(SystemExit) as ending:
        train_simclr.main(["--help"])
    text = capsys.readouterr().out
    assert ending.value.code == 0
    assert train_simclr.__doc__.strip() in text
    assert "--training.warmup_epochs" in text and "epochs of linear warm-up" in text
    assert "crop_scale: random resized crop" in text  # a key of the recipes


WRONG = [
    (["--training.epohs", "2"], ["--training.epohs", "did you mean --training.epochs?"]),
    (["--training.epochs", "many"], ["training.epochs", "'many'", "valid integer"]),
    (["--training.epochs", "0"], ["training.epochs", "0", "greater than or equal to 1"]),
    (["--training.epochs", "2.5"], ["training.epochs", "2.5", "integer"]),
    (["--training.learning_rate", "1e-3"], ["training.learning_rate", "'1e-3'", "such as 0.001"]),
    (["--training.learning_rate", ".nan"], ["training.learning_rate", "finite"]),
    (["--training.warmup_epochs", "3"], ["warmup_epochs is 3", "less than epochs (3)"]),
    (["--training.optimizer", "adam"], ["training.optimizer", "'adam'", "'sgd', 'adamw' or 'lars'"]),
    (["--training.checkpoint_epochs", "9"], ["checkpoint_epochs", "9", "3 epochs"]),
    (["--training.batch_size", "57"], ["training.batch_size", "57", "56 images"]),
    (["--subsets.candidate", "25"], ["independent is 24", "equal candidate (25)"]),
    (["--subsets.shared", "2000"], ["subsets", "2048", "1024"]),
    (["--subsets.external", "257"], ["subsets", "257", "256"]),
    (["--seeds", "0", "0"], ["seeds", "once"]),
    (["--seeds", "-1"], ["command line: seeds", "-1"]),
    (["--seeds", "99999999999999999999"], ["seeds", "9223372036854775808"]),
    (["--device", "gpu"], ["device", "'gpu'"]),
    (["--device", "cuda:99"], ["device", "'cuda:99'"]),
    (["--method.temperature", "0"], ["method.temperature", "0", "greater than 0"]),
    (["--method.name", "byol"], ["method.name", "'byol'", "'simclr'"]),
    (["--encoder.name", "resnet19"], ["encoder.name", "'resnet19'", "'resnet18'"]),
    (["--data.name", "cifar10"], ["data", "size", "cifar10"]),
    (["--augmentation.views", "[{size: 16, count: 3}]"], ["augmentation.views", "3 views", "first, second"]),
    (
        ["--augmentation.views", "[{size: 16, count: 2, crop_scal: [0.1, 1]}]"],
        ["augmentation.views.0.crop_scal", "did you mean crop_scale?"],
    ),
    (["--augmentation.views", "[{size: 16, count: 2, crop_scale: [0.9, 0.1]}]"], ["crop_scale", "lower bound"]),
    (["--augmentation.views", "[{size: 16, count: 2, flip: 1.5}]"], ["augmentation.views.0.flip", "1.5", "less than or equal to 1"]),
    (["--augmentation.views", "[]"], ["augmentation.views"]),
    (["--scores.views", "2"], ["scores.views", "2", "greater than or equal to 3"]),
    (["--scores.augmentation", "test"], ["scores.augmentation", "'test'", "'training'"]),
    (["--scores.augmentation", "[{size: 0}]"], ["scores.augmentation.0.size", "0"]),
    (["--training", "5"], ["--training", "no such option"]),
    (["--training.epochs"], ["--training.epochs", "expected"]),
    (["--run", ""], ["run", "''"]),
]


@pytest.mark.parametrize("options, words", WRONG, ids=lambda value: " ".join(value[:2]))
def test_a_wrong_option_is_one_line_and_nothing_is_written(options, words, write_config, refusal, tmp_path):
    line = refusal(train_simclr.main, ["--config", write_config(), *options])
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


MASKS = [
    ([{"size": 16, "mask_ratio": 1.0}], ["augmentation.views.0.mask_ratio", "1.0", "less than 1"]),
    ([{"size": 16, "mask_ratio": -0.5}], ["augmentation.views.0.mask_ratio", "-0.5", "greater than or equal to 0"]),
    ([{"size": 16}], ["augmentation.views", "MAE needs a mask_ratio above 0"]),
    ([{"size": 16, "mask_ratio": 0.01}], ["augmentation.views", "mask_ratio hides none of the 16 patches"]),
    ([{"size": 18, "mask_ratio": 0.5}], ["encoder.patch: 4 does not divide the 18 pixels of a view in augmentation.views"]),
    ([{"size": 16, "mask_ratio": 0.5, "count": 2}], ["augmentation.views", "2 views are drawn, but mae takes (view)"]),
]


@pytest.mark.parametrize("views, words", MASKS, ids=lambda value: str(value))
def test_a_mask_that_cannot_be_is_one_line_and_nothing_is_written(views, words, write_config, refusal, tmp_path):
    line = refusal(train_mae.main, ["--config", write_config(METHODS["mae"][2] | {"augmentation.views": views})])
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("script, options, words", [
    (train_mae, ["--encoder.patch", "5"], ["command line: encoder.patch: 5 does not divide the 16 pixels"]),
    (train_mae, ["--encoder.name", "resnet18"], ["encoder: depth is 1, but resnet18 takes no depth, only stem"]),
    (train_mae, ["--encoder.name", "vit_tiny"], ["encoder: depth is 1, but vit_tiny takes no depth, only patch, pooling, positions"]),
    (train_simclr, ["--encoder.patch", "5"], ["encoder: patch is 5, but resnet_small takes no patch, only width"]),
    (train_simclr, ["--training.pictures_every", "1"], ["training.pictures_every: 1, but simclr draws none"]),
    (train_simclr, ["--scores.augmentation", "[{size: 16, mask_ratio: 0.5}]"], ["scores.augmentation: mask_ratio is 0.5"]),
    (train_mae, ["--encoder.width", "40"], ["encoder.width: 40"]),
    (train_mae, ["--method.decoder_heads", "3"], ["method.decoder_heads: 3"]),
    (train_mae, ["--training.batch_size", "1"], ["training.batch_size", "1", "greater than or equal to 2"]),
    (train_mae, ["--scores.augmentation", "[{size: 17}]"], ["encoder.patch: 4 does not divide", "scores.augmentation"]),
    (train_simclr, ["--augmentation.views", "[{size: 16, count: 2, mask_ratio: 0.5}]"], ["only a vit_... takes a mask"]),
])  # fmt: skip
def test_an_encoder_that_does_not_fit_is_one_line_and_nothing_is_written(script, options, words, write_config, refusal, tmp_path):
    line = refusal(script.main, ["--config", write_config(METHODS["mae" if script is train_mae else "simclr"][2]), *options])
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


def test_mae_refuses_a_resnet(write_config, refusal, tmp_path):
    encoder, views = {"name": "resnet18"}, [{"size": 18}]
    for mask, words in (
        ({}, "encoder.name: MAE hides patches"),
        ({"mask_ratio": 0.5}, "mask_ratio is 0.5, but resnet18 sees whole images"),
    ):
        changes = {"encoder": encoder, "augmentation.views": [views[0] | mask]}
        assert words in refusal(train_mae.main, ["--config", write_config(METHODS["mae"][2] | changes)])
    assert not (tmp_path / "run").exists()


def test_views_of_two_sizes_do_not_pass_in_one_batch(write_config, refusal, tmp_path):
    path = write_config({"method.one_pass": True, "augmentation.views": [{"size": 16}, {"size": 8}]})
    assert "method.one_pass: True needs two views of one size" in refusal(train_simclr.main, ["--config", path])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("changes, words", [
    ({"training.epohs": 3}, ["training.epohs", "did you mean epochs?"]),
    ({"training.epochs": None}, ["training.epochs", "missing"]),
    ({"method": None}, ["method", "missing"]),
    ({"subset": {}}, ["subset", "did you mean subsets?"]),
    ({"training": 5}, ["training", "5"]),
    ({"method.tau": 1}, ["method.tau", "no such setting"]),
    ({"training.learning_rate": "1e-3"}, ["training.learning_rate", "'1e-3'", "such as 0.001"]),
    ({"data.size": True}, ["data.size", "True", "integer"]),
])  # fmt: skip
def test_a_wrong_config_is_one_line_that_names_the_file(changes, words, write_config, refusal, tmp_path):
    path = write_config(changes)
    line = refusal(train_simclr.main, ["--config", path])
    assert path in line and all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content, words", [
    ("a: [", ["not YAML"]), ("- 1", ["mapping"]), ("", ["mapping"]), ("run: a\nrun: b", ["'run' stands twice"]), ("\x00", ["not YAML"]),
])  # fmt: skip
def test_a_file_that_is_no_config_is_one_line(content, words, tmp_path, refusal):
    path = tmp_path / "broken.yaml"
    path.write_text(content)
    line = refusal(train_simclr.main, ["--config", str(path)])
    assert str(path) in line and all(word in line for word in words), line
    assert "no such file" in refusal(train_simclr.main, ["--config", str(tmp_path / "absent.yaml")])


def test_what_was_trained_leaves_out_what_may_differ(write_config):
    one, other = read(write_config()), read(write_config(), "--data.root", "elsewhere", "--training.knn_every", "5", "--device", "auto")
    assert trained_part(one) == trained_part(other)
    assert trained_part(one) != trained_part(read(write_config(), "--training.epochs", "4"))


def test_first_difference_names_the_key_and_both_values():
    assert first_difference({"a": {"b": 1, "c": [1, 2]}}, {"a": {"b": 1, "c": [1, 3]}}) == ("a.c.1", 2, 3)
    assert first_difference({"a": [1]}, {"a": [1, 2]}) == ("a", [1], [1, 2])
    assert first_difference({"a": 1}, {"a": 1, "b": 2}) == ("b", None, 2)
    assert first_difference({"a": 1}, {"a": 1.0}) == ("a", 1, 1.0)
    assert first_difference({"a": {"b": None}}, {"a": {"b": None}}) is None


def test_measuring_takes_what_was_trained_from_the_run(scored_run, write_config):
    """The file may leave out what was trained by default, but may not contradict the run."""
    _, run = scored_run
    config = read_config("", ["--config", write_config({"run": str(run), "threads": None, "training.checkpoint_epochs": []})])
    trained = Config.model_validate(yaml.safe_load((run / "config.yaml").read_text()))
    assert trained_part(config) == trained_part(trained)


def test_measuring_needs_no_more_than_the_run(scored_run, tmp_path):
    _, run = scored_run
    path = tmp_path / "short.yaml"
    path.write_text(f"run: {run}\nscores: {{views: 7}}\n")
    config = read_config("", ["--config", str(path), "--training.epochs", "3", "--data.root", "elsewhere"])
    trained = Config.model_validate(yaml.safe_load((run / "config.yaml").read_text()))
    assert trained_part(config) == trained_part(trained) and config.scores.views == 7
    assert config.data.root == "elsewhere" and trained.data.root == "data"  # where the data lie may differ


@pytest.mark.parametrize("options, words", [
    (["--training.epochs", "4"], ["training.epochs", "4", "3"]),
    (["--encoder.width", "9"], ["encoder.width", "9", "8"]),
    (["--subsets.order", "shuffled"], ["subsets.order", "'shuffled'", "'file'"]),
    (["--subsets.seed", "1"], ["subsets.seed", "1", "0"]),
    (["--augmentation.views", "[{count: 2, size: 16}]"], ["augmentation.views.0.crop_scale", "None", "[0.5, 1.0]"]),
    (["--augmentation.views", "[{size: 16}, {size: 16}]"], ["augmentation.views"]),
    (["--data.size", "32"], ["data.size", "32", "16"]),
    (["--seeds", "0", "7"], ["seeds", "7", "[0, 1]"]),
])  # fmt: skip
def test_measuring_refuses_what_differs_from_the_run(options, words, scored_run, refusal):
    path, run = scored_run
    line = refusal(memorization_scores.main, ["--config", path, *options])
    assert str(run) in line and all(word in line for word in words), line


def test_training_refuses_a_run_folder_in_which_something_else_was_trained(scored_run, refusal, tmp_path):
    path, run = scored_run
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    before = {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()}
    line = refusal(train_simclr.main, ["--config", path, "--run", str(copy), "--method.temperature", "0.25"])
    assert "method.temperature" in line and "0.25" in line and "0.5" in line
    assert {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()} == before


def test_measuring_without_a_run_says_so(write_config, refusal, tmp_path):
    assert "no trained run" in refusal(memorization_scores.main, ["--config", write_config()])
    assert not (tmp_path / "run").exists()


def test_wrong_use_is_a_value_error_for_those_who_import_the_package(write_config):
    with pytest.raises(ValueError) as caught:
        read(write_config(), "--training.epochs", "0")
    assert isinstance(caught.value, WrongUse)
