"""What layer_memorization.py writes and prints."""

import csv
import json
import shutil

import numpy as np
import pytest
from conftest import (
    TINY_TRANSFORMER,
    read_table,
    score,
    train,
    write_experiment,
)
from test_processes import start_together

import layer_memorization
from memorization.data.subsets import first_by_hash, load_subsets
from memorization.measuring import layers
from memorization.measuring.layer_printing import spread_evenly
from memorization.measuring.layer_tables import COLUMNS

FILES = {"heatmap.png", "layers.csv", "layers.npz", "layers.png", "summary.json"}
LAST = "layer3.0"


def measure(path, run, *options):
    """The folder of the layers of a run that was written last."""
    layer_memorization.main(["--config", path, "--run", str(run), *options])
    written = run.glob("layers/**/summary.json")
    return max(written, key=lambda file: file.stat().st_mtime_ns).parent


def rows_of(folder):
    with open(folder / "layers.csv", newline="") as file:
        return list(csv.DictReader(file))


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def arrays_of(folder):
    with np.load(folder / "layers.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def measured(scored_run, tmp_path_factory):
    """(config path, run folder, folder of the layers) of the tiny pair. Not to be changed."""
    run = shutil.copytree(scored_run[1], tmp_path_factory.mktemp("measured") / "run")
    return scored_run[0], run, measure(scored_run[0], run)


def test_a_row_for_every_subset_and_layer(measured):
    _, run, folder = measured
    assert {path.name for path in folder.iterdir()} == FILES
    rows, arrays, summary = rows_of(folder), arrays_of(folder), summary_of(folder)
    assert list(rows[0]) == COLUMNS
    names = arrays["layers"].tolist()
    assert names[0] == "conv1" and names[-1] == LAST and len(names) == 21
    assert summary["layers"] == names and summary["depths"] == list(range(1, 22))
    subsets = {"shared": 32, "candidate": 24, "most": 2, "least": 2, "independent": 24,
               "external": 40}  # fmt: skip
    places = [(subset, layer) for subset in subsets for layer in names]
    assert [(row["subset"], row["layer"]) for row in rows] == places
    ratio = arrays["ratio"]
    for number, row in enumerate(rows):
        layer, subset = number % 21, row["subset"]
        if subset in ("most", "least"):
            of_subset = arrays[f"is_{subset}"]
        else:
            of_subset = arrays["subset"] == subset
        values = ratio[of_subset, layer]
        assert row["n"] == str(len(values)) == str(subsets[subset])
        assert row["depth"] == str(1 + layer)
        assert float(row["layermem"]) == pytest.approx(values.mean(), abs=1e-12)
        error = values.std(ddof=1) / np.sqrt(len(values))
        assert float(row["stderr"]) == pytest.approx(error)
        before = ratio[of_subset, layer - 1].mean()
        if layer:
            assert float(row["delta"]) == pytest.approx(values.mean() - before, abs=1e-12)
        else:
            assert row["delta"] == ""
        assert float(row["low"]) <= float(row["layermem"]) <= float(row["high"])
        assert float(row["std_seeds"]) >= 0


def test_the_arrays_hold_raw_losses_whose_ratios_are_averaged_over_seeds(measured):
    arrays = arrays_of(measured[2])
    f, g = arrays["L_f"], arrays["L_g"]
    assert f.shape == g.shape == (2, 120, 21) and f.dtype == np.float64
    assert arrays["sign"].shape == (2, 120) and (arrays["sign"] == 1).all()
    assert arrays["ratio"] == pytest.approx(((g - f) / (g + f)).mean(0))
    subsets = load_subsets(measured[1] / "subsets.npz")
    for name in ("shared", "candidate", "independent", "external"):
        found = arrays["index"][arrays["subset"] == name]
        assert found.tolist() == sorted(getattr(subsets, name).tolist())
    assert arrays["is_sampled"].all() and arrays["seeds"].tolist() == [0, 1]


def test_the_most_and_least_memorized_are_the_tenths_by_score(measured):
    arrays, (_, table) = arrays_of(measured[2]), read_table(measured[1] / "scores")
    candidates = table["subset"] == "candidate"
    order = np.argsort(-table["score"][candidates])
    by_score = table["index"][candidates][order].astype(int)
    assert sorted(by_score[:2]) == arrays["index"][arrays["is_most"]].tolist()
    assert sorted(by_score[-2:]) == arrays["index"][arrays["is_least"]].tolist()


def test_a_few_images_are_the_first_by_hash_and_the_most_memorized_are_measured_beside(
    run_copy, no_pictures
):
    path, run = run_copy
    folder = measure(path, run, "--layers.images", "10", "--seeds", "0")
    assert folder.name == "images_10_seeds_0"
    arrays, subsets = arrays_of(folder), load_subsets(run / "subsets.npz")
    sampled = arrays["index"][(arrays["subset"] == "candidate") & arrays["is_sampled"]]
    first = first_by_hash(subsets.candidate, 10, "train")
    assert sampled.tolist() == sorted(first.tolist())
    others = ~arrays["is_sampled"]
    assert (arrays["is_most"] | arrays["is_least"])[others].all() and others.any()
    candidates = [row for row in rows_of(folder) if row["subset"] == "candidate"]
    assert {row["n"] for row in candidates} == {"10"}
    mean = arrays["ratio"][(arrays["subset"] == "candidate") & arrays["is_sampled"], -1].mean()
    assert float(candidates[-1]["layermem"]) == pytest.approx(mean)
    assert {row["std_seeds"] for row in candidates} == {""}
    whole = {row["subset"]: row for row in rows_of(measure(path, run)) if row["layer"] == LAST}
    assert whole["most"]["n"] == "2"


def test_without_scores_there_is_a_line_and_no_most_memorized(run_copy, capsys, no_pictures):
    path, run = run_copy
    with_scores = summary_of(measure(path, run))["subsets"]["external"]
    shutil.rmtree(run / "scores")
    folder = measure(path, run)
    printed = capsys.readouterr().out
    assert summary_of(folder)["subsets"]["external"] == with_scores  # with the same intervals
    assert "no memorization scores of encoder" in printed
    assert "memorization_scores.py with the same" in printed
    assert "most" not in {row["subset"] for row in rows_of(folder)}
    assert not arrays_of(folder)["is_most"].any() and summary_of(folder)["chosen_by"] is None


RUNS = {"resnet": ("scored_run", []), "crossover": ("pool", []), "mae": ("masked_run", []),
        "one seed": ("scored_run", ["--seeds", "1"])}  # fmt: skip


@pytest.mark.parametrize("name", [*RUNS, "transformer"])
def test_the_last_layer_is_the_score_ratio_of_tokens(name, request, tmp_path, no_pictures):
    if name == "transformer":
        path = write_experiment(tmp_path, {"encoder": TINY_TRANSFORMER, "training.epochs": 1})
        train(path)
        run, options = tmp_path / "run", []
    else:
        fixture, options = RUNS[name]
        path, run = request.getfixturevalue(fixture)
        run = shutil.copytree(run, tmp_path / "run")
    options = [*options, "--scores.representation", "tokens"]
    score(path, "--run", str(run), *options)
    written = max(run.rglob("scores.csv"), key=lambda file: file.stat().st_mtime_ns)
    _, table = read_table(written.parent)
    arrays = arrays_of(measure(path, run, *options))
    ratios = dict(zip(zip(table["split"], table["index"]), table["score_ratio"]))
    assert len(ratios) == len(arrays["index"])
    last = dict(zip(zip(arrays["split"], arrays["index"]), arrays["ratio"][:, -1]))
    assert max(abs(ratios[image] - last[image]) for image in ratios) < 1e-6
    assert np.ptp(list(ratios.values())) > 1e-3


def test_the_last_pooled_layer_is_the_score_ratio(run_copy, no_pictures):
    path, run = run_copy
    _, table = read_table(run / "scores")
    folder = measure(path, run, "--layers.representation", "pooled")
    assert folder.name == "pooled"
    assert np.abs(arrays_of(folder)["ratio"][:, -1] - table["score_ratio"]).max() < 1e-6


def test_the_same_command_twice_gives_the_same_bytes(measured, tmp_path):
    path, run, folder = measured
    copy = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(copy / "layers")
    again = measure(path, copy)
    for name in ("layers.csv", "layers.npz", "layers.png", "heatmap.png"):
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name


def test_the_batch_size_changes_nothing(measured, tmp_path, no_pictures, monkeypatch):
    path, run, folder = measured
    copy = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(copy / "layers")
    sizes, draw_views = [], layers.draw_views

    def watched_draw(encoder, images, indices, *arguments):
        sizes.append(len(indices))
        return draw_views(encoder, images, indices, *arguments)

    monkeypatch.setattr(layers, "draw_views", watched_draw)
    again = arrays_of(measure(path, copy, "--layers.batch_size", "7"))
    assert max(sizes) == 7
    for name in ("L_f", "L_g", "ratio"):
        assert np.abs(again[name] - arrays_of(folder)[name]).max() < 1e-6


def test_two_processes_measure_what_one_measures(measured, tmp_path):
    path, run, folder = measured
    copy = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(copy / "layers")
    options = ["--config", path, "--run", str(copy), "--layers.batch_size", "9"]
    first, second = start_together("layer_memorization.py", *options)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert (first.stdout + second.stdout).count("the results are in") == 1
    for name in ("L_f", "L_g", "ratio"):
        difference = arrays_of(copy / "layers")[name] - arrays_of(folder)[name]
        assert np.abs(difference).max() < 1e-6


def test_checkpoints_have_folders_and_a_picture_over_training(run_copy, capsys, texts):
    path, run = run_copy
    folder = measure(path, run, "--checkpoint", "all")
    assert folder == run / "layers"
    assert {place.name for place in folder.iterdir() if place.is_dir()} == {"epoch_0002"}
    assert rows_of(folder / "epoch_0002") != rows_of(folder)
    assert summary_of(folder / "epoch_0002")["checkpoint"] == {"name": "epoch_0002", "epoch": 2}
    assert "no memorization scores of epoch_0002" in capsys.readouterr().out
    training = texts[-1]
    assert "epoch 2" in training and "epoch 3" in training and LAST in training
    assert len(texts) == 5


def test_a_crossover_has_a_pool_whose_ratios_are_signed(pool_copy, texts):
    path, run = pool_copy
    folder = measure(path, run)
    arrays = arrays_of(folder)
    assert set(arrays["subset"]) == {"candidate", "external"}
    assert set(arrays["sign"].flat) == {1, -1}
    f, g = arrays["L_f"], arrays["L_g"]
    expected = (arrays["sign"][:, :, None] * (g - f) / (g + f)).mean(0)
    assert arrays["ratio"] == pytest.approx(expected)
    curve, heat = texts
    assert "pool: candidates: n = 64" in curve and "external" in curve
    assert all(name in curve and name in heat for name in arrays["layers"])


def test_the_summary_is_of_the_arrays(measured):
    summary, arrays = summary_of(measured[2]), arrays_of(measured[2])
    assert summary["seeds"] == [0, 1] and summary["settings"].keys() == {"layers", "scores"}
    f, g = arrays["L_f"], arrays["L_g"]
    per_seed, candidate = (g - f) / (g + f), arrays["subset"] == "candidate"
    external = arrays["subset"] == "external"
    of_candidates = summary["subsets"]["candidate"]
    assert of_candidates["per_seed"] == pytest.approx(per_seed[:, candidate].mean(1))
    free = arrays["ratio"][candidate].mean(0) - arrays["ratio"][external].mean(0)
    found = summary["free_of_the_offset"]
    assert found["value"] == pytest.approx(free)
    assert all(low < value < high for low, value, high in
               zip(found["low"], found["value"], found["high"]))  # fmt: skip
    assert summary["growth"].keys() == {*summary["subsets"], "candidate - external"}
    assert summary["blocks"] == {} and len(summary["chosen_by"]) == 64
    assert "by choice" in summary["meaning"]


def test_the_screen_has_a_short_table_and_the_folder(run_copy, capsys, no_pictures):
    path, run = run_copy
    folder = measure(path, run)
    printed = capsys.readouterr().out
    assert "LayerMem of 12 of 21 layers" in printed and str(folder) in printed
    assert "Spearman's correlation of depth and LayerMem" in printed
    assert "by choice" in printed and "perceptron" not in printed
    assert len(printed.splitlines()) < 30
    first = next(line for line in printed.splitlines() if " conv1 " in line)
    assert f"{float(rows_of(folder)[21]['layermem']):.4f}" in first


def test_attention_and_perceptron_of_a_transformer_are_told_apart(
    masked_run, tmp_path, capsys, texts
):
    path, run = masked_run
    folder = measure(path, shutil.copytree(run, tmp_path / "run"))
    printed, blocks = capsys.readouterr().out, summary_of(folder)["blocks"]
    assert "perceptron less attention, mean over blocks" in printed
    assert "perceptrons" in texts[0] and "attentions" in texts[0]
    names, ratio = arrays_of(folder)["layers"].tolist(), arrays_of(folder)["ratio"]
    of = dict(zip(names, ratio[arrays_of(folder)["subset"] == "candidate"].mean(0)))
    (block,) = blocks["candidate"]["blocks"]
    assert block["block"] == "blocks.0"
    assert block["attention"] == pytest.approx(of["blocks.0.attention"] - of["embedding"])
    perceptron = of["blocks.0.mlp"] - of["blocks.0.attention_sum"]
    assert block["perceptron"] == pytest.approx(perceptron)
    difference = blocks["candidate"]["perceptron_less_attention"]
    assert difference["value"] == pytest.approx(perceptron - block["attention"])
    assert blocks.keys() == summary_of(folder)["subsets"].keys()


def test_two_named_layers_have_their_places_in_the_network(run_copy, no_pictures):
    path, run = run_copy
    folder = measure(path, run, "--layers.names", "layer1.0", "conv1")
    assert folder.name == "names_layer1.0_conv1"
    rows = rows_of(folder)[:2]
    assert [(row["layer"], row["depth"]) for row in rows] == [("conv1", "1"), ("layer1.0", "9")]
    step = float(rows[1]["layermem"]) - float(rows[0]["layermem"])
    assert float(rows[1]["delta"]) == pytest.approx(step)


def test_many_images_have_an_estimate(run_copy, capsys, no_pictures, monkeypatch):
    path, run = run_copy
    monkeypatch.setattr(layer_memorization, "LONG", 100)
    measure(path, run)
    assert "21 layers of two encoders for 240 images by 4 views: about" in capsys.readouterr().out


@pytest.mark.parametrize("count", [1, 2, 11, 12, 13, 60])
def test_a_few_places_are_spread_from_the_first_to_the_last(count):
    places = spread_evenly(count)
    assert len(places) == min(12, count) and places[0] == 0 and places[-1] == count - 1
    assert np.diff(places).max(initial=1) - np.diff(places).min(initial=99) <= 1 or count < 3


def test_of_a_single_layer_no_growth_is_shown(run_copy, capsys, no_pictures):
    path, run = run_copy
    summary = summary_of(measure(path, run, "--layers.names", "conv1"))
    assert summary["growth"]["candidate"]["spearman"] is None
    shown = capsys.readouterr().out
    assert "LayerMem of 1 layers" in shown and "nan" not in shown and "Spearman" not in shown
