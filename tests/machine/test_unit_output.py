"""What unit_memorization.py writes and prints."""

import csv
import json
import shutil

import numpy as np
import pytest
from conftest import four_classes_config, score, train, write_experiment
from scipy import stats
from test_processes import start_together

import train_simclr
import unit_memorization
from memorization.data.subsets import load_subsets
from memorization.measuring.unit_tables import ARRAYS, COLUMNS
from memorization.significance import bootstrap_interval

FILES = {"gallery.png", "scatter.png", "summary.json", "units.csv", "units.npz", "units.png"}
LAYERS = [
    "relu", "layer1.0.relu", "layer1.0", "layer2.0.relu", "layer2.0", "layer3.0.relu", "layer3.0",
]  # fmt: skip
SIZES = [8, 8, 8, 16, 16, 32, 32]  # their units
QUICK = ["--units.views", "2"]


def measure(path, run, *options):
    """The folder of the units of a run."""
    before = set(run.glob("units/**/summary.json"))
    unit_memorization.main(["--config", path, "--run", str(run), *QUICK, *options])
    after = set(run.glob("units/**/summary.json"))
    return max(after - before or after, key=lambda file: file.stat().st_mtime_ns).parent


def rows_of(folder):
    with open(folder / "units.csv", newline="") as file:
        return list(csv.DictReader(file))


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def arrays_of(folder):
    with np.load(folder / "units.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def measured(scored_run, tmp_path_factory):
    """(config path, run folder, folder of the units) of the tiny pair. Not to be changed."""
    run = shutil.copytree(scored_run[1], tmp_path_factory.mktemp("measured") / "run")
    return scored_run[0], run, measure(scored_run[0], run)


def test_a_row_for_every_seed_layer_and_unit(measured, scored_run):
    _, run, folder = measured
    assert {path.name for path in folder.iterdir()} == FILES
    rows, arrays = rows_of(folder), arrays_of(folder)
    assert list(rows[0]) == COLUMNS
    places = [
        (str(seed), layer, str(unit))
        for seed in (0, 1)
        for layer, size in zip(LAYERS, SIZES)
        for unit in range(size)
    ]
    assert [(row["seed"], row["layer"], row["unit"]) for row in rows] == places
    expected = {"layer", "unit", "seed", "index", "index_external"}
    expected |= {f"{name}_{of}" for name in ARRAYS for of in ("f", "external", "g", "untrained")}
    assert arrays.keys() == expected
    subsets = load_subsets(run / "subsets.npz")
    assert arrays["index"].tolist() == 2 * [sorted(subsets.candidate.tolist())]
    assert np.isin(arrays["index_external"], subsets.external).all()
    assert arrays["index_external"].shape == (2, 24)
    for number, row in enumerate(rows):
        seed, unit = divmod(number, sum(SIZES))
        for column, name in (("unitmem", "unitmem_f"), ("classmem", "classmem_f"),
                             ("unitmem_external", "unitmem_external"), ("mean", "mean_f"),
                             ("std", "std_f")):  # fmt: skip
            value = arrays[name][seed, unit]
            assert row[column] == ("" if np.isnan(value) else repr(float(value)))
        assert float(row["maximum"]) == arrays["top_values_f"][seed, 0, unit]
        assert row["dead"] == str(int(arrays["dead_f"][seed, unit])) and row["signed"] == "0"
        if row["dead"] == "0":
            assert row["top_index"] == str(arrays["top_indices_f"][seed, 0, unit])
            assert row["unitmem"] and row["top_class"] == str(arrays["top_class_f"][seed, unit])
        else:
            assert row["top_index"] == row["top_label"] == row["unitmem"] == ""


def test_the_top_label_is_that_of_the_top_image(measured, scored_run):
    rows = rows_of(measured[2])
    with open(scored_run[1] / "scores/scores.csv", newline="") as file:
        labels = {row["index"]: row["label"] for row in csv.DictReader(file)
                  if row["split"] == "train"}  # fmt: skip
    assert all(row["top_label"] == labels[row["top_index"]] for row in rows if row["top_index"])


def test_the_summary_is_of_the_arrays(measured):
    summary, arrays = summary_of(measured[2]), arrays_of(measured[2])
    assert summary["seeds"] == [0, 1] and summary["images"] == 24 and summary["has_labels"]
    layer = arrays["layer"] == "layer3.0"
    for seed in (0, 1):
        of_layer = summary["layers"][str(seed)]["layer3.0"]
        unitmem = {name: arrays[f"unitmem_{name}"][seed, layer]
                   for name in ("f", "external", "g", "untrained")}  # fmt: skip
        for name, values in unitmem.items():
            known = values[~np.isnan(values)]
            written = of_layer[name]["unitmem"]
            assert written["mean"] == pytest.approx(known.mean())
            assert written["median"] == pytest.approx(np.median(known))
            assert written["quantiles"]["0.95"] == pytest.approx(np.quantile(known, 0.95))
            dead = arrays[f"dead_{name}"][seed, layer].sum()
            assert of_layer[name]["units"] == 32 and of_layer[name]["dead"] == dead
        differences = of_layer["differences"]
        paired = unitmem["f"] - unitmem["external"]
        assert differences["f - external"]["value"] == pytest.approx(np.nanmean(paired))
        interval = bootstrap_interval(
            lambda values, axis=-1: values.mean(axis), paired[~np.isnan(paired)]
        )
        assert differences["f - external"]["interval_95"] == pytest.approx(interval)
        expected = np.nanmean(unitmem["f"]) - np.nanmean(unitmem["untrained"])
        assert differences["f - untrained"]["value"] == pytest.approx(expected)
        for difference in differences.values():
            low, high = difference["interval_95"]
            assert low < difference["value"] < high
        both = arrays["classmem_f"][seed, layer], unitmem["f"]
        known = ~np.isnan(both[0]) & ~np.isnan(both[1])
        above = np.mean(both[1][known] > both[0][known])
        assert of_layer["f"]["unitmem_above_classmem"] == pytest.approx(above)
    over_seeds = summary["over_seeds"]["layer3.0"]["f"]
    means = np.nanmean(arrays["unitmem_f"][:, layer], axis=1)
    assert over_seeds["mean"] == pytest.approx(means.mean())
    assert over_seeds["std"] == pytest.approx(means.std(ddof=1)) and over_seeds["n"] == 2


def test_how_often_an_image_fires_a_unit_most_is_compared_with_its_score(measured, scored_run):
    summary, arrays = summary_of(measured[2]), arrays_of(measured[2])
    correlations = []
    with np.load(scored_run[1] / "scores/scores.npz") as scores:
        rows = scores["subset"] == "candidate"
        assert scores["index"][rows].tolist() == arrays["index"][0].tolist()
        for seed in (0, 1):
            selects = ~np.isnan(arrays["unitmem_f"][seed]) & ~arrays["constant_f"][seed]
            top = arrays["top_indices_f"][seed, 0, selects].tolist()
            counts = [top.count(index) for index in arrays["index"][seed].tolist()]
            written = summary["top_images"]["per_seed"][str(seed)]
            assert written["units_of_one_image_at_most"] == max(counts)
            assert written["images_that_fire_a_unit_most"] == np.count_nonzero(counts)
            score = (scores["L_g"] - scores["L_f"])[seed, rows]
            expected = stats.spearmanr(counts, score).statistic
            assert written["spearman"] == pytest.approx(expected)
            low, high = written["interval_95"]
            assert low < expected < high
            correlations.append(expected)
    assert summary["top_images"]["over_seeds"]["mean"] == pytest.approx(np.mean(correlations))


def test_in_a_crossover_each_seed_has_the_half_that_its_f_saw(pool_copy):
    path, run = pool_copy
    folder = measure(path, run, "--units.images", "20")
    subsets, arrays = load_subsets(run / "subsets.npz"), arrays_of(folder)
    for seed, indices in enumerate(arrays["index"]):
        assert len(indices) == 20 and (np.diff(indices) > 0).all()
        assert np.isin(indices, subsets.of_seed(seed).candidate).all()
    assert summary_of(folder)["top_images"]["per_seed"]["1"]["images"] == 20


def test_the_screen_says_that_there_is_no_reference_model(measured, capsys):
    path, run, _ = measured
    capsys.readouterr()
    measure(path, run)
    screen = capsys.readouterr().out
    assert "UnitMem over 24 images, means over 2 seeds:" in screen
    for name in (*LAYERS, "all layers"):
        assert f"{name} " in screen
    assert "no reference model, and a maximum grows with the number of images" in screen
    assert "rank correlation" in screen and " over 2 seeds" in screen
    assert "f - external" in screen and "f - g" in screen and "f - untrained of all" in screen
    assert "measuring" not in screen


def test_a_long_measurement_is_estimated_first(run_copy, capsys, no_pictures):
    path, run = run_copy
    measure(path, run, "--units.batch_size", "3")  # 64 batches
    line = "measuring 120 units by 24 images, 8 times: about 0:00:0"
    assert line in capsys.readouterr().out


def test_the_same_command_gives_the_same_bytes(measured):
    path, run, folder = measured
    before = {name: (folder / name).read_bytes() for name in FILES}
    measure(path, run)
    for name in FILES - {"summary.json"}:
        assert (folder / name).read_bytes() == before[name], name
    summary, first = summary_of(folder), json.loads(before["summary.json"])
    for key in summary.keys() - {"seconds"}:
        assert summary[key] == first[key], key


def assert_alike(arrays, others):
    for name, values in arrays.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(others[name], values, atol=1e-6, rtol=0)
        else:
            np.testing.assert_array_equal(others[name], values)


def test_two_processes_measure_what_one_measures_in_other_batches(scored_run, tmp_path):
    path, run = scored_run
    options = ["--seeds", "0", "--units.center", "median"]
    one, two = (shutil.copytree(run, tmp_path / name) for name in ("one", "two"))
    folder = measure(path, one, *options)
    command = ["unit_memorization.py", "--config", path, "--run", str(two), *QUICK, *options]
    first, second = start_together(*command, "--units.batch_size", "7")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert_alike(arrays_of(folder), arrays_of(two / folder.relative_to(one)))


def test_without_scores_one_line_says_which_command_makes_them(run_copy, capsys):
    path, run = run_copy
    shutil.rmtree(run / "scores")
    folder = measure(path, run)
    screen = capsys.readouterr().out
    assert "no memorization scores of encoder, so nothing to compare" in screen
    assert "memorization_scores.py with the same config makes them" in screen
    assert "rank correlation" not in screen
    top_images = summary_of(folder)["top_images"]
    assert top_images["over_seeds"] is None and "spearman" not in top_images["per_seed"]["0"]
    assert top_images["per_seed"]["0"]["images_that_fire_a_unit_most"] > 0


def test_every_checkpoint_has_a_folder(run_copy, capsys, no_pictures):
    path, run = run_copy
    measure(path, run, "--checkpoint", "all")
    screen = capsys.readouterr().out
    last = run / "units/views_2"
    first = run / "units/epoch_0002_views_2"
    assert summary_of(first)["checkpoint"] == {"name": "epoch_0002", "epoch": 2}
    assert summary_of(last)["checkpoint"] == {"name": "encoder", "epoch": 3}
    assert "memorization_scores.py with the same config --checkpoint epoch_0002" in screen
    one, other = arrays_of(first), arrays_of(last)
    assert (one["unitmem_f"] != other["unitmem_f"]).any()
    np.testing.assert_array_equal(one["unitmem_untrained"], other["unitmem_untrained"])


def test_other_settings_have_a_folder_of_their_own(run_copy, capsys, no_pictures):
    path, run = run_copy
    options = ["--units.center", "median", "--units.names", "conv1", "bn1", "--seeds", "1"]
    folder = measure(path, run, *options)
    # the views of QUICK are not those of the run's config
    assert folder == run / "units/median_views_2_names_conv1_bn1_seeds_1"
    assert {row["layer"] for row in rows_of(folder)} == {"conv1", "bn1"}
    of_f = summary_of(folder)["layers"]["1"]["all layers"]["f"]
    assert of_f["signed"] > 0 and of_f["sometimes_negative"] >= of_f["signed"]
    assert of_f["signed"] == sum(row["signed"] == "1" for row in rows_of(folder))
    share = f"{of_f['sometimes_negative'] / of_f['units']:.0%} of the units are negative for some"
    assert share in capsys.readouterr().out


def test_fewer_external_images_make_fewer_of_all(tmp_path, capsys, no_pictures):
    path = write_experiment(tmp_path, {"training.epochs": 1, "subsets.external": 15})
    train(path)
    score(path)
    folder = measure(path, tmp_path / "run")
    assert "15 candidates alone, as there are 15 external images" in capsys.readouterr().out
    assert arrays_of(folder)["index"].shape == arrays_of(folder)["index_external"].shape == (1, 15)


def test_units_of_a_transformer_see_masked_views(masked_run, tmp_path, no_pictures):
    path, run = masked_run[0], shutil.copytree(masked_run[1], tmp_path / "run")
    folder = measure(path, run)
    assert {row["layer"] for row in rows_of(folder)} == {"blocks.0.gelu"}
    assert len(rows_of(folder)) == 4 * 64
    of_f = summary_of(folder)["layers"]["0"]["blocks.0.gelu"]["f"]
    assert of_f["sometimes_negative"] > 0 and of_f["units"] == 256


def test_images_in_files_are_named(four_classes, texts):
    path, run = four_classes_config(four_classes), four_classes / "run"
    train_simclr.main(["--config", path])
    score(path)
    folder = measure(path, run)
    rows = rows_of(folder)
    assert list(rows[0])[-1] == "top_file"
    with open(run / "scores/scores.csv", newline="") as file:
        names = {row["index"]: row["file"] for row in csv.DictReader(file)
                 if row["split"] == "train"}  # fmt: skip
    assert all(row["top_file"] == names[row["top_index"]] for row in rows if row["top_index"])
    assert any(".png" in text for text in texts)


def test_without_labels_classmem_is_empty_and_one_line_says_so(four_classes, capsys):
    for split in ("train", "val"):  # a folder without classes
        for folder in (four_classes / "images" / split).iterdir():
            for file in folder.iterdir():
                file.rename(folder.parent / f"{folder.name}_{file.name}")
            folder.rmdir()
    path, run = four_classes_config(four_classes), four_classes / "run"
    train_simclr.main(["--config", path])
    folder = measure(path, run)
    screen = capsys.readouterr().out
    assert "ClassMem is empty: there are no labelled images of two classes" in screen
    assert all(row["classmem"] == row["top_class"] == row["top_label"] == ""
               for row in rows_of(folder))  # fmt: skip
    assert not (folder / "scatter.png").exists() and (folder / "gallery.png").exists()
    assert "scatter.png" not in screen and not summary_of(folder)["has_labels"]


def test_pictures_show_the_untrained_encoder_and_external_images_beside_f(measured, texts):
    path, run, _ = measured
    measure(path, run)
    histograms, scatter, gallery = texts
    for text in (*LAYERS, "f, external images", "untrained, images of f", "over 24 images"):
        assert text in histograms
    assert "units above" in scatter and "untrained, images of f" in scatter
    assert "ClassMem" in scatter and "layer3.0" in scatter
    assert all(layer in gallery for layer in LAYERS) and "UnitMem 0." in gallery


def test_pruned_encoders_are_probed(scored_run, tmp_path, capsys, no_pictures):
    path, run = scored_run[0], shutil.copytree(scored_run[1], tmp_path / "run")
    probe = "--probe.epochs 3 --probe.warmup_epochs 1 --probe.seeds 0 --probe.train_images 200"
    options = ["--units.prune", "true", "--units.prune_draws", "2", "--seeds", "0"]
    folder = measure(path, run, *options, *probe.split())
    assert folder.name.startswith("pruned_views_2_prune_draws_2")
    policies = summary_of(folder)["pruning"]["datasets"]["fake"]
    assert list(policies) == ["nothing", "highest", "random", "lowest"]
    assert policies["random"]["top_1"]["n"] == 1
    assert (folder / "pruning.csv").read_text().count("\nrandom,") == 2
    screen = capsys.readouterr().out
    assert "10 % of the units of every layer set to 0" in screen and "pruning.csv" in screen
    without = measure(path, run, "--seeds", "0")
    assert_alike(arrays_of(folder), arrays_of(without))
    assert "pruning" not in summary_of(without) or summary_of(without)["pruning"] is None
