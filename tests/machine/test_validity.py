"""The laboratory of planted memorization, in its small form: what is planted, what is demanded of
it, and a training that remembers what stands in it often.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import demands, validity
from benchmarks.planted_figures import draw_kinds, draw_power
from benchmarks.planted_pairs import SIMCLR, Experiment, Trial
from benchmarks.plants import (
    COUNTS,
    Sizes,
    change_labels,
    plant_crossover,
    plant_outliers,
    plant_sorted,
)
from memorization.data.images import Images, Split
from memorization.data.subsets import check_subsets
from memorization.encoder import Pair
from memorization.machine.files import json_text
from memorization.machine.interruption import StopRequest
from models.simclr import SimCLRSettings

SIZES = Sizes(
    ordinary=24,
    wrong_label=4,
    repeated=2,
    outliers=2,
    twins=4,
    twins_in_shared=4,
    twins_in_external=4,
    shared=16,
    external=40,
    unseen=4,
)


def made_up_split(name, count, seed):
    """A Split of smooth images of ten classes, no two of them equal."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0, 255, size=(count, 1, 4, 4)))
    pixels = torch.nn.functional.interpolate(coarse, size=14, mode="bilinear")
    labels = rng.permutation(count) % 10
    return Split.from_array(pixels[:, 0].round().to(torch.uint8), labels, name)


@pytest.fixture(scope="module")
def source():
    train, test = made_up_split("train", 400, 0), made_up_split("test", 200, 1)
    return Images("made up", train, test, (0.5,), (0.25,), tuple("abcdefghij"))


@pytest.fixture(scope="module")
def planted(source):
    return plant_crossover(source, 0, SIZES)


def indices_of(planted, *kinds):
    return planted.rows["index"][np.isin(planted.rows["kind"], kinds)]


def test_every_seed_halves_every_kind_and_no_copy_is_in_the_other_half(planted):
    for seed in range(4):
        subsets = planted.subsets(seed)
        check_subsets(subsets)
        in_f = np.isin(np.arange(len(planted.images.train)), subsets.candidate)
        for kind in ("ordinary", "wrong label", "waves", "noise", "twin in S_S", "twin in S_E"):
            assert in_f[indices_of(planted, kind)].mean() == 0.5, kind
        pixels = planted.images.train.pixels.flatten(1)
        for count in COUNTS:
            for first in indices_of(planted, f"repeated {count} times"):
                copies = (pixels == pixels[first]).all(1).numpy()
                assert copies.sum() == count and len(set(in_f[copies])) == 1
        twins = indices_of(planted, "twin in S_I"), indices_of(planted, "second twin")
        assert (
            torch.equal(pixels[twins[0]], pixels[twins[1]])
            and (in_f[twins[0]] != in_f[twins[1]]).all()
        )


def test_over_seeds_an_image_is_in_either_half(planted):
    in_f = np.mean(
        [
            np.isin(np.arange(len(planted.images.train)), planted.subsets(seed).candidate)
            for seed in range(100)
        ],
        axis=0,
    )
    pool = planted.rows["index"][planted.rows["subset"] == "candidate"]
    assert in_f[pool].min() > 0.3 and in_f[pool].max() < 0.7


def test_copies_outside_of_the_pool_are_exact_and_what_is_unseen_is_in_no_training_set(planted):
    train, test = planted.images.train.pixels, planted.images.test.pixels
    shared = indices_of(planted, "copy in S_S")
    assert torch.equal(train[indices_of(planted, "twin in S_S")], train[shared])
    subsets = planted.subsets(0)
    assert np.isin(shared, subsets.shared).all()
    subset_of_kind = planted.rows["subset"][planted.rows["kind"] == "in S_S"]
    assert subset_of_kind.tolist() == ["shared"] * SIZES.shared
    copies = indices_of(planted, "copy in S_E")
    assert torch.equal(train[indices_of(planted, "twin in S_E")], test[copies])
    for kind in ("copy in S_E", "unseen waves", "unseen noise"):
        assert not np.isin(indices_of(planted, kind), subsets.external).any()


def test_a_wrong_label_is_always_wrong_and_the_pixels_stay(planted, source):
    true = {pixels.numpy().tobytes(): int(label) for pixels, label in pairs_of(source.train)}
    for pixels, label in pairs_of(planted.images.train, indices_of(planted, "wrong label")):
        assert true[pixels.numpy().tobytes()] != label
    for pixels, label in pairs_of(planted.images.train, indices_of(planted, "ordinary")):
        assert true[pixels.numpy().tobytes()] == label


def test_every_changed_label_is_another_one():
    labels = np.arange(200) % 3
    changed = change_labels(labels, ("a", "b", "c"), 0)
    assert (changed != labels).all() and set(changed) == {0, 1, 2}


def pairs_of(split, indices=slice(None)):
    return zip(split.pixels[indices], split.labels[indices])


def test_sets_of_other_numbers_have_no_image_in_common(source, planted):
    def contents(planted):
        images = [*planted.images.train.pixels, *planted.images.test.pixels]
        return {pixels.numpy().tobytes() for pixels in images}

    assert not contents(planted) & contents(plant_crossover(source, 1, SIZES))


def test_signs_tell_the_half_and_a_copy_counts_as_its_image(planted):
    for seed in range(3):
        signs, subsets = planted.signs(seed), planted.subsets(seed)
        is_train = planted.rows["split"] == "train"
        assert (signs[is_train][subsets.candidate] == 1).all()
        assert (signs[is_train][subsets.independent] == -1).all()
        of_images = signs[planted.rows["kind"] == "twin in S_E"]
        assert np.array_equal(signs[planted.rows["kind"] == "copy in S_E"], of_images)
        assert set(signs[planted.rows["subset"] == "external"]) == {-1, 1}


def test_in_a_fixed_set_f_alone_has_the_outliers_in_every_seed(source):
    planted = plant_outliers(source, 0, half=32, outliers=4, external=20)
    outliers = indices_of(planted, "waves", "noise")
    assert len(outliers) == 8
    for seed in range(3):
        subsets = planted.subsets(seed)
        check_subsets(subsets)
        assert np.isin(outliers, subsets.candidate).all() and (planted.signs(seed) == 1).all()
    assert set(planted.rows["subset"][np.isin(planted.rows["kind"], ("waves", "noise"))]) == {
        "candidate"
    }


def test_a_sorted_folder_gives_f_one_class_and_its_crossover_both(source):
    fixed = plant_sorted(source, 0, half=16, external=20, is_fixed=True)
    labels = fixed.images.train.labels.numpy()
    subsets = fixed.subsets(1)
    assert set(labels[subsets.candidate]) == {0} and set(labels[subsets.independent]) == {1}
    for subset in ("candidate", "independent"):
        indices = fixed.rows["index"][fixed.rows["subset"] == subset]
        assert np.array_equal(indices, getattr(subsets, subset))
    crossover = plant_sorted(source, 0, half=16, external=20)
    assert set(crossover.images.train.labels.numpy()[crossover.subsets(1).candidate]) == {0, 1}


# --- what is demanded -----------------------------------------------------------------------------


def simulated_table(seed, memory):
    """A table of scores as `demands` takes it: 64 nulls, 16 repeated images that score `memory`
    standard deviations higher, 100 ordinary ones and 1,000 of S_E.
    """
    kinds = ["twin in S_I"] * 64 + ["repeated 8 times"] * 16 + ["ordinary"] * 100 + ["S_E"] * 1000
    rng = np.random.default_rng(seed)
    score = rng.normal(size=len(kinds)) + memory * (np.array(kinds) == "repeated 8 times")
    subset = np.repeat(["candidate", "external"], [180, 1000])
    p = np.full(len(kinds), 0.5)
    return {"kind": np.array(kinds), "subset": subset, "score": score, "p": p}


def test_the_auc_counts_pairs_by_hand():
    assert demands.auc(np.array([1.0, 3.0]), np.array([0.0, 1.0, 2.0])) == (1.5 + 3) / 6
    assert np.isnan(demands.auc(np.array([1.0]), np.array([])))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("stays, needed, most", [(0.0, 6, 1.0), (1.0, None, 0.76)])
def test_the_number_of_seeds_for_an_auc_follows_from_the_components(stays, needed, most):
    """Scores that differ by 1, by a noise of 1 in each seed: AUC = Phi(sqrt(S / 2)), .95 from
    S = 5.4 on. If images themselves differ by as much, no S gives more than .76.
    """
    rng, images = np.random.default_rng(0), 1000
    score = rng.normal(size=(8, images)) + stays * rng.normal(size=images)
    score[:, images // 2 :] += 1
    table = {
        "kind": np.repeat(["ordinary", "repeated 8 times"], images // 2),
        "per_seed": score,
        "jackknife": np.full(score.shape, 0.1),
    }
    expected = demands.predict_power([table], "score", "repeated", 0.95)
    assert expected["seeds"] == needed and expected["auc"] == pytest.approx(most, abs=0.02)
    offset = rng.normal(size=score.shape)
    signs = rng.choice([-1, 1], size=score.shape)
    local = table | {"per_seed": score + signs * offset, "sign": signs, "local_offset": offset}
    assert demands.predict_power([local], "score_local", "repeated", 0.95)["seeds"] == needed
    unknown = local | {"local_offset": np.full(score.shape, np.nan)}
    nothing = demands.predict_power([unknown], "score_local", "repeated", 0.95)
    assert np.isnan(nothing["auc"]) and nothing["seeds"] is None


def test_nulls_that_score_as_external_images_pass_and_others_do_not():
    tables = [simulated_table(seed, memory=0) for seed in range(5)]
    assert demands.check_nulls(tables, "score")["p_of_test"] > 0.01
    for table in tables:
        table["score"] = table["score"] + 0.5 * (table["kind"] == "twin in S_I")
    assert demands.check_nulls(tables, "score")["p_of_test"] < 0.01


def test_few_of_the_candidates_with_a_small_q_are_nulls():
    tables = [simulated_table(seed, memory=5) for seed in range(20)]
    counts = demands.summarize_false(tables, "score", demands.MOSTLY_NULLS)
    assert counts["found"] > 15 and 0 < counts["share"] < 0.12


def test_false_ones_are_counted_by_hand():
    table = {
        "kind": np.array(["twin in S_I", "ordinary", "ordinary"] + ["S_E"] * 99),
        "subset": np.array(["candidate"] * 3 + ["external"] * 99),
        "score": np.array([9.0, 8.0, -1.0] + [0.0] * 99),
    }
    assert demands.count_false(table, "score") == {"found": 2, "false": 1, "share": 0.5}
    assert demands.count_false(table, "score", ("ordinary",)) == {
        "found": 1,
        "false": 0,
        "share": 0.0,
    }


def test_contrasts_of_a_sorted_folder_by_hand():
    table = {
        "kind": np.array(["class 0", "class 0", "unseen class 0", "S_E", "S_E"]),
        "subset": np.array(["candidate", "candidate", "unseen", "external", "external"]),
        "score": np.array([5.0, 7.0, 4.0, 1.0, -1.0]),
    }
    row = demands.compare_classes([table], "score")
    assert row == {"above_S_E": 6.0, "above_unseen_of_class": 2.0, "ratio": 3.0}


def test_external_images_that_stand_in_for_all_subsets_are_not_memorized():
    scores = np.random.default_rng(0).standard_t(4, size=1024)
    result = demands.stand_in(scores)
    assert result["none_found"] >= 0.95 and result["told_apart"] <= 0.1
    memorized = demands.stand_in(scores, lambda subset: scores + 9 * (subset == "candidate"))
    assert memorized["none_found"] == 0 and memorized["told_apart"] == 1


def test_a_demand_that_was_not_tested_is_neither_met_nor_missed():
    results = {"crossover": [], "sorted": {"crossover": {}}, "stand_in": None, "mirror": None}
    assert {row["raw"]["met"] for row in demands.compare(results)} == {None}
    results["mirror"] = 1e-9
    unknown = {"ratio": float("nan")}  # of scores that no image has
    results["sorted"]["crossover"] = {"score": {"3": {"ratio": 1.2}}, "score_local": {"3": unknown}}
    rows = {row["demand"]: row for row in demands.compare(results)}
    assert rows["S_I as candidates of g: largest difference"]["raw"]["met"] is False
    ratio = rows["sorted folder: ratio of the contrasts"]
    assert ratio["raw"] == {"value": 1.2, "met": True}
    assert ratio["local"]["met"] is None


# --- trainings ------------------------------------------------------------------------------------


def small_trial(planted, folder, epochs=2, seeds=range(2)):
    settings = SIMCLR.settings | {
        "encoder": {"name": "resnet_small", "width": 8},
        "method": SimCLRSettings(name="simclr", hidden_dim=32, projection_dim=16, temperature=0.2),
        "training": SIMCLR.settings["training"]
        | {"epochs": epochs, "batch_size": 32, "warmup_epochs": 1},
    }
    recipe = replace(SIMCLR, settings=settings, views=6)
    return Trial(Experiment(recipe, plant=None, seeds=seeds), planted, folder)


@pytest.fixture(scope="module")
def trial(planted, tmp_path_factory):
    trial = small_trial(planted, tmp_path_factory.mktemp("validity"))
    for seed in trial.experiment.seeds:
        trial.train(seed, StopRequest())
    return trial


def test_what_is_trained_and_scored_is_not_done_again(trial):
    files = sorted(path for path in trial.folder.rglob("*.*") if path.suffix in (".pt", ".npz"))
    times = [file.stat().st_mtime_ns for file in files]
    trial.train(0, StopRequest())
    assert [file.stat().st_mtime_ns for file in files] == times and len(files) >= 6
    scored, again = trial.read_scores(0), trial.scored_seed(0, trial.pair(0))
    assert np.array_equal(scored.scores.loss_f, again.scores.loss_f)
    assert np.array_equal(scored.local_offset, again.local_offset, equal_nan=True)


def test_scores_of_other_encoders_are_not_read(trial):
    assert small_trial(trial.planted, trial.folder, epochs=3).read_scores(0) is None


def test_images_of_g_score_as_candidates_of_g_exactly_mirrored(trial):
    pair, rows = trial.pair(0), trial.planted.rows
    score = trial.score(0, pair, rows).score
    assert score.any() and np.array_equal(
        trial.score(0, Pair(pair.g, pair.f, 0), rows).score, -score
    )


def test_wrong_labels_change_no_encoder(trial, planted, tmp_path):
    labels = (planted.images.train.labels + 1) % 10
    images = replace(planted.images, train=replace(planted.images.train, labels=labels))
    other = small_trial(replace(planted, images=images), tmp_path)
    other.train(0, StopRequest())
    assert other.pair(0).fingerprints == trial.pair(0).fingerprints


def test_tables_are_of_the_seeds_that_are_scored(trial):
    assert [len(trial.tables(count)) for count in (1, 2, 3)] == [2, 1, 0]
    single, both = trial.tables(1), trial.tables(2)[0]
    mean = np.mean([table["score"] for table in single], axis=0)
    assert both["score"] == pytest.approx(mean, abs=1e-12)
    further = small_trial(trial.planted, trial.folder, seeds=range(4))
    assert len(further.tables(1)) == 2 and len(further.tables(2)) == 1


def test_the_report_holds_what_is_trained_and_says_what_was_not_tested(
    trial, source, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(validity, "SEEDS", 2)
    monkeypatch.setattr(validity, "NUMBERS_OF_SEEDS", (1, 2))
    other = small_trial(plant_outliers(source, 0, half=32, outliers=4, external=20), tmp_path)
    others = dict.fromkeys(("outliers_fixed", "sorted_fixed", "sorted_crossover"), other)
    results = validity.measure({"simclr_0": trial} | others)
    results["demands"] = demands.compare(results)
    assert [(cell["seeds"], cell["column"]) for cell in results["crossover"]] == [
        (seeds, column) for seeds in (1, 2) for column in ("score", "score_local")
    ]
    assert results["mirror"] == 0.0 and json.loads(json_text(results))
    validity.print_results(results)
    screen = capsys.readouterr().out
    assert "SimCLR: AUC" in screen and "MAE" not in screen
    assert "more were not tested: their encoders are not trained" in screen
    for draw, shown in ((draw_kinds, trial.tables(2)), (draw_power, results["crossover"])):
        draw(shown, tmp_path / "picture.png")
        assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_repeated_images_score_above_images_that_nobody_is_trained_on(planted, tmp_path):
    trial = small_trial(planted, tmp_path, epochs=50)
    for seed in trial.experiment.seeds:
        trial.train(seed, StopRequest())
    (table,) = trial.tables(2)
    assert demands.compare_kinds([table], "score")["repeated, against S_E"]["mean"] > 0.6
