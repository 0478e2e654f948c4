import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import METHODS

import memorization_scores
import train_simclr
from memorization.config import Config, first_difference, read_config, read_run_config, save_config, trained_part
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


def test_numbers_are_decimal_in_the_file_and_on_the_command_line(write_config):
    """As `seq -w 8 11` writes them; YAML 1.1 would read 010 and 011 as 8 and 9."""
    assert read(write_config(), "--seeds", "08", "09", "010", "011").seeds == [8, 9, 10, 11]
    path = Path(write_config())
    path.write_text(path.read_text().replace("seeds:\n- 0\n", "seeds: [08, +010, 011]\n").replace("threads: 1", "threads: 012"))
    config = read(str(path), "--training.learning_rate", "010.50", "--method.temperature", ".5")
    assert (config.seeds, config.threads) == ([8, 10, 11], 12)
    assert (config.training.learning_rate, config.method.temperature) == (10.5, 0.5)


TEXTS = ["010", "08", "1:30", "1_000", "0x10", "1e-3", "on", "no", "null", "true", "2024-01-01", "=", "<<", ".5", "-.5", ".inf", "a: b"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_that_looks_like_something_else_is_kept_in_the_run_folder(text, write_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_config(read(write_config(), "--run", text))
    assert read_run_config(text).run == text
    assert yaml.safe_load(Path(text, "config.yaml").read_text())["run"] == text  # for others' programs, too


@pytest.mark.parametrize("text", ["1:30", "on", "no", "2024-01-01", "0x10", "1e-3", "="])
def test_what_is_neither_decimal_nor_true_or_false_is_text(text, write_config):
    path = Path(write_config())
    path.write_text(re.sub("run: .*", f"run: {text}", path.read_text()))
    assert read(str(path)).run == text


def test_help_is_the_docstring_and_the_settings_with_their_meaning(write_config, capsys):
    with pytest.raises(SystemExit) as ending:
        train_simclr.main(["--help"])
    text = capsys.readouterr().out
    assert ending.value.code == 0
    assert train_simclr.__doc__.strip() in text
    assert "--training.warmup_epochs" in text and "epochs of linear warm-up" in text
    assert "crop_scale: random resized crop" in text  # a key of the recipes


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


def test_measuring_without_a_run_says_so(write_config, refusal, tmp_path):
    assert "no trained run" in refusal(memorization_scores.main, ["--config", write_config()])
    assert not (tmp_path / "run").exists()


def test_wrong_use_is_a_value_error_for_those_who_import_the_package(write_config):
    with pytest.raises(ValueError) as caught:
        read(write_config(), "--training.epochs", "0")
    assert isinstance(caught.value, WrongUse)
