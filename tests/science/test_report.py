"""The page of a run says what the files of the run say, and shows the images that were scored."""

import csv
import json
import math
import re

import numpy as np
import pytest
import torch
from compared import derive_run, one_seed, with_noise
from conftest import with_twins
from reported import make_page

from memorization import Scoring
from memorization.data.duplicates import fingerprints_of, nearest_images
from memorization.data.subsets import Subsets
from memorization.measuring.compared_runs import read_scored
from memorization.measuring.deja_vu_summary import WORDS
from memorization.measuring.scores import draw_views
from memorization.reporting import near_images, payload, pictures, sprites
from memorization.reporting.deja_vu_part import outcomes_of_images
from memorization.reporting.image_rows import order_rows
from memorization.reporting.near_images import find_neighbors
from memorization.reporting.pictures import order_from_both_ends
from memorization.reporting.result_folders import find_results
from memorization.reporting.sprites import Sprites, sheet_text
from memorization.run import read_run
from memorization.significance import interval_of_share


@pytest.fixture(scope="module")
def page(pool, tmp_path_factory):
    """The page of the tiny crossover."""
    return make_page(tmp_path_factory.mktemp("page"), pool[1])


def scores_of(run):
    with open(run / "scores/scores.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_headline_counts_candidates_above_the_95th_percentile_of_external_images(page, pool):
    summary = json.loads((pool[1] / "scores/summary.json").read_text())
    column = summary["single_images"]["headline"]
    rows = scores_of(pool[1])
    of = {
        subset: [float(row[column]) for row in rows if row["subset"] == subset]
        for subset in ("candidate", "external")
    }
    candidates = [score for score in of["candidate"] if not math.isnan(score)]
    rare = np.nanquantile(of["external"], 0.95)
    share = np.mean([score > rare for score in candidates])
    first = f"Of {len(candidates)} images that encoders were trained on, {100 * share:.0f} % "
    assert first in page.text
    assert "By chance, 5 % would" in page.text


def test_the_share_in_the_headline_has_its_interval(page, pool, tmp_path):
    _, table = read_scored(pool[1] / "scores", read_run(str(pool[1])).subsets)
    per_seed = table[
        "per_seed_local" if page.data["headline_score"] == "score_local" else "per_seed"
    ]
    is_known = ~np.isnan(per_seed).any(0)
    lists = [per_seed[:, (table["subset"] == of) & is_known] for of in ("candidate", "external")]
    low, high = interval_of_share(*lists)
    ends = f"{100 * low:.0f} % to {100 * high:.0f} %)"
    assert f"(95 % interval for other images and pairs of encoders {ends}" in page.text
    others = derive_run(pool[1], tmp_path / "other", with_noise(1))
    row = make_page(tmp_path, pool[1], others).table("runs-table")
    shown = dict(zip(*row[:2]))
    assert [shown["from"], shown["to"]] == [f"{100 * low:.1f} %", f"{100 * high:.1f} %"]


def test_the_headline_has_the_reliability_of_the_ranking_with_its_interval(page, pool):
    summary = json.loads((pool[1] / "scores/summary.json").read_text())
    local = summary["single_images"]["headline"] == "score_local"
    of = summary["reliability_local" if local else "reliability"]["candidate"]
    low, high = of["predicted_interval_95"]
    interval = f"(95 % interval over images {max(low, 0):.2f} to {max(high, 0):.2f})"
    assert f"a reliability of {of['predicted']:.2f} {interval}" in page.text


def test_q_is_said_to_bound_the_share_of_false_discoveries(page):
    shares = re.findall(r"candidates with q < (\S+) \d+ of 64 at most (\d+) % of them", page.text)
    assert shares == [("0.1", "10"), ("0.05", "5")]


def test_of_one_pair_the_page_says_that_single_images_are_not_known(pool, tmp_path):
    single = {"seeds": [0], "reliability": None, "reliability_local": None, "over_seeds": None}
    run = derive_run(pool[1], tmp_path / "one", one_seed, **single)
    page = make_page(tmp_path, run)
    assert "It does not tell which single images are memorized" in page.text
    assert "a reliability of" not in page.text
    assert "rank_low" not in page.data["images"]


def test_scores_that_are_all_equal_have_no_ranking(pool, tmp_path):
    """As those of collapsed encoders: a summary has null for what cannot be computed."""
    summary, unknown = json.loads((pool[1] / "scores/summary.json").read_text()), {}
    for key in ("reliability", "reliability_local"):
        of = summary[key]["candidate"] | {"predicted": None, "predicted_interval_95": [None] * 2}
        of |= {"predicted_overlap_of_first_tenth": None}
        unknown[key] = summary[key] | {"candidate": of}
    run = derive_run(pool[1], tmp_path / "equal", **unknown)
    page = make_page(tmp_path, run)
    assert "there is no ranking of single images" in page.text
    assert "rank_low" not in page.data["images"]
    assert "reliability of the ranking –, 95 % interval" in make_page(tmp_path, run, pool[1]).text


def test_an_effect_that_may_be_nothing_is_not_called_one(pool, tmp_path):
    contrast = {"value": 0.001, "interval_95": [-0.002, 0.004]}
    changed = {"free_of_the_offset": {"candidate - external": contrast}}
    page = make_page(tmp_path, derive_run(pool[1], tmp_path / "null", **changed))
    assert "not measurably better than encoders that were not: on average by 0.0010" in page.text


def test_every_scored_image_is_in_the_page_with_its_numbers(page, pool):
    rows = {(row["split"], int(row["index"])): row for row in scores_of(pool[1])}
    keys = list(zip(page.column("split"), page.column("index")))
    assert sorted(keys) == sorted(rows)
    for name in ("score", "score_local", "p", "q_local", "alignment_loss_f", "stderr"):
        for key, value in zip(keys, page.column(name)):
            written = float(rows[key][name])
            assert math.isnan(written) if value is None else value == pytest.approx(written, 1e-5)


def test_losses_are_named_by_what_they_are_of(page, scored_run, tmp_path):
    titles = [page.data["axes"][name]["title"] for name in "fg"]
    assert titles == ["L_align with the image", "L_align without the image"]
    fixed = make_page(tmp_path, scored_run[1]).data
    assert [fixed["axes"][name]["title"] for name in "fg"] == ["L_align of f", "L_align of g"]
    shown = {column["key"]: column["title"] for column in fixed["columns"]}
    assert shown["alignment_loss_g"] == "L_align of g"


def test_candidates_come_first_and_by_their_rank(page):
    column, subset = page.data["headline_score"], page.column("subset")
    n = subset.count("candidate")
    assert subset[:n] == ["candidate"] * n
    scores = [score for score in page.column(column)[:n] if score is not None]
    assert scores == sorted(scores, reverse=True)
    assert page.column("rank")[: len(scores)] == list(range(1, len(scores) + 1))
    intervals = zip(page.column("rank_low"), page.column("rank_high"))
    assert all(1 <= low <= high <= n for low, high in list(intervals)[: len(scores)])
    assert set(page.column("rank")[n:]) == {None}


def test_candidates_without_a_score_come_last_and_have_no_rank():
    table = {
        "split": np.array(["train"] * 3 + ["test"]),
        "index": np.array([4, 7, 9, 1]),
        "subset": np.array(["candidate"] * 3 + ["external"]),
        "label": np.zeros(4, dtype=int),
    }
    rows = order_rows(table, np.array([0.1, np.nan, 0.3, 5.0]))
    assert rows.index.tolist() == [9, 4, 7, 1] and rows.n_candidates == 3


def test_pictures_are_the_images_pixel_by_pixel(page, pool):
    images = read_run(str(pool[1])).images
    assert None not in page.data["pictures"]["tile"]
    for row in (0, 5, 63, 64, 80):
        split = getattr(images, page.column("split")[row])
        pixels = split.gather(torch.tensor([page.column("index")[row]]))[0]
        picture = page.picture(page.data["pictures"]["tile"][row])
        assert np.array_equal(picture, pixels.permute(1, 2, 0).numpy())


def test_views_are_those_that_the_encoders_saw(page, pool):
    run = read_run(str(pool[1]))
    encoder, index = run.pair(0).f, page.column("index")[0]
    scoring = Scoring(views=4, seed=0)
    views, _ = draw_views(encoder, run.images.train, torch.tensor([index]), run.recipes, scoring)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in encoder.normalization)
    places = page.data["details"]["0"]["views"]
    assert len(places) == 4
    for view, place in zip(views, places):
        seen = ((view.pixels[0] * std + mean) * 255).permute(1, 2, 0).numpy()
        assert np.abs(page.picture(place) - seen).max() <= 0.51


def test_hidden_patches_of_views_are_gray(masked_run, tmp_path):
    page = make_page(tmp_path, masked_run[1])
    picture = page.picture(page.data["details"]["0"]["views"][0])
    patches = picture.reshape(8, 2, 8, 2, 3).transpose(0, 2, 1, 3, 4).reshape(64, -1)
    assert (patches == sprites.HIDDEN).all(1).sum() == 48
    assert "hidden patches are gray" in page.data["views_note"]


def test_the_nearest_images_are_those_of_the_slow_search():
    images = with_twins([(3, 20)])
    fingerprints = fingerprints_of(images.train, np.arange(40))
    mirrored = fingerprints.reshape(40, 12, 12)[:, :, ::-1].reshape(40, -1)
    nearest, distances = nearest_images(fingerprints, np.array([3, 8]), 4, torch.device("cpu"))
    for row, image in enumerate((3, 8)):
        apart = np.minimum(
            np.linalg.norm(fingerprints - fingerprints[image], axis=1),
            np.linalg.norm(mirrored - fingerprints[image], axis=1),
        )
        apart[image] = np.inf
        order = np.argsort(apart)[:4]
        assert nearest[row].tolist() == order.tolist()
        assert distances[row] == pytest.approx(apart[order], abs=1e-6)
    assert nearest[0, 0] == 20 and distances[0, 0] == 0


class OfTwins:
    """A run whose candidate 3 stands among the external images, too."""

    def __init__(self, folder):
        self.images = with_twins([], test_pairs=[(3, 5)])
        shared, external = np.arange(10, 20), np.arange(12)
        self.subsets = Subsets(shared, np.arange(5), np.arange(5, 10), external)
        self.folder = folder


def test_neighbours_come_from_all_subsets_and_equal_images_are_named(tmp_path):
    neighbors = find_neighbors(OfTwins(tmp_path), np.array([3, 0]))
    first = neighbors.nearest[0, 0]
    assert (neighbors.split[first], neighbors.index[first]) == ("test", 5)
    assert neighbors.is_same[0].tolist() == [True, False, False, False]
    assert neighbors.is_near[0, 0] and not neighbors.is_same[1].any()
    assert {"shared", "candidate", "independent", "external"} == set(neighbors.subset)


def test_nearly_equal_images_are_those_of_the_list_of_the_run(tmp_path):
    run = OfTwins(tmp_path)
    place = find_neighbors(run, np.array([0])).nearest[0, 2]
    near = find_neighbors(run, np.array([0]))
    split, index = str(near.split[place]), int(near.index[place])
    lines = ["group,kind,distance,split,index,subset,label"]
    lines += ["0,near,0.1,train,0,candidate,1", f"0,near,0.1,{split},{index},x,1"]
    (tmp_path / "duplicates.csv").write_text("\n".join(lines) + "\n")
    assert find_neighbors(run, np.array([0])).is_near[0].tolist() == [False, False, True, False]


def test_of_very_many_images_the_shared_ones_are_left_out_first(tmp_path, monkeypatch):
    run, size = OfTwins(tmp_path), 3 * 8 * 8
    monkeypatch.setattr(near_images, "MOST_COMPARED", 25 * size)
    neighbors = find_neighbors(run, np.array([3]))
    assert {"candidate", "independent", "external"} == set(neighbors.subset)
    assert "Shared images were not compared" in neighbors.source
    monkeypatch.setattr(near_images, "MOST_COMPARED", 15 * size)
    assert find_neighbors(run, np.array([3])) is None


def test_as_many_pictures_as_fit_are_taken():
    pixels = np.random.default_rng(0).integers(0, 256, (600, 8, 8, 3), dtype=np.uint8)
    sheets = Sprites(2 * len(sheet_text(pixels[:256])) + 1000)
    places = sheets.add(pixels)
    assert 512 <= len(places) < 600 and sheets.bytes_left >= 0
    assert len(Sprites(10**7).add(pixels)) == 600


def test_if_not_all_fit_the_images_at_both_ends_of_the_ranking_have_pictures(
    pool, tmp_path, monkeypatch
):
    monkeypatch.setattr(payload, "bytes_for_pictures", lambda _: 50_000)
    monkeypatch.setattr(sprites, "TILES", 4)
    page = make_page(tmp_path, pool[1])
    has = [tile is not None for tile in page.data["pictures"]["tile"]][:64]
    n = sum(has)
    assert 0 < n < 64
    ends = order_from_both_ends(64)
    assert all(has[row] for row in ends[:n])
    assert f"Of 64 candidates the {n} at both ends of the ranking" in page.data["pictures"]["note"]


def test_order_from_both_ends_takes_the_first_the_last_the_second():
    assert order_from_both_ends(5).tolist() == [0, 4, 1, 3, 2]
    assert order_from_both_ends(4).tolist() == [0, 3, 1, 2]


def test_large_pictures_are_shrunk_until_they_fit(monkeypatch):
    images = with_twins([])
    assert sprites.fitting_size(images.train, np.arange(20), 10**6) == 8
    monkeypatch.setattr(sprites, "SIZES", (6, 4))
    assert sprites.fitting_size(images.train, np.arange(20), 10**6) == 6
    assert sprites.fitting_size(images.train, np.arange(20), 100) == 4
    assert sprites.shrink_images(images.train, np.arange(3), 4).shape == (3, 4, 4, 3)
    assert sprites.shrink_pictures(np.zeros((2, 200, 200, 3), dtype=np.uint8), 64).shape == (
        2,
        64,
        64,
        3,
    )


def test_the_outcome_of_an_image_is_the_most_frequent_one(tmp_path):
    lines = ["seed,index,outcome", "0,7,correlated", "1,7,memorized", "2,7,memorized"]
    lines += ["0,9,forgotten", "1,9,correlated"]
    (tmp_path / "dejavu.csv").write_text("\n".join(lines) + "\n")

    class Found:
        folder = tmp_path

        class summary:
            words, files = WORDS["independent"], {}

    assert outcomes_of_images(Found) == {
        7: ("memorized", "2 of 3 seeds"),
        9: ("correlated", "1 of 2 seeds"),
    }


def test_the_band_of_the_scatter_holds_95_percent_of_external_images(page):
    external = [row for row, subset in enumerate(page.column("subset")) if subset == "external"]
    f, g = (np.array(page.column(f"alignment_loss_{name}"))[external] for name in "fg")
    band = page.data["band"]
    inside = (g - f >= band["low"] - 1e-6) & (g - f <= band["high"] + 1e-6)
    assert 0.9 <= inside.mean() < 1


def test_scores_by_seed_have_the_published_mean(page):
    of_seeds = np.array(page.data["per_seed"], dtype=float)
    means = np.array(page.column(page.data["headline_score"])[: len(of_seeds)], dtype=float)
    assert of_seeds.shape == (64, 2)
    assert np.allclose(of_seeds.mean(1), means, atol=1e-6, equal_nan=True)


def test_the_table_of_classes_counts_every_candidate_once(page):
    heads, *rows = page.table("per-class")
    assert heads[:2] == ["class", "candidates"]
    assert sum(int(row[1]) for row in rows) == 64


def test_several_runs_are_compared_as_compare_runs_does(pool, tmp_path):
    other = derive_run(pool[1], tmp_path / "b", with_noise(1))
    page = make_page(tmp_path, pool[1], other)
    run = read_run(other)
    summary, table = read_scored(run.folder / "scores", run.subsets)
    heads, *rows = page.table("runs-table")
    means = [row[heads.index("mean S_C")] for row in rows]
    of_candidates = table["score"][table["subset"] == "candidate"]
    assert len(rows) == 2
    assert means[1] == f"{of_candidates.mean():.5f}".replace("-", "\u2212")
    place = page.column("index").index(int(table["index"][table["subset"] == "candidate"][0]))
    written = dict(
        zip(table["index"].tolist(), table[page.data["axes"]["g"]["title"].split(",")[0]])
    )
    assert page.column("run_1")[place] == pytest.approx(
        written[page.column("index")[place]], rel=1e-4, nan_ok=True
    )
    assert "python compare_runs.py" in page.text
    assert len(page.data["figures"]["agreement-tau"]["matrix"]["z"]) == 2


def test_the_sentences_of_a_comparison_are_of_the_images_that_its_table_is_of(pool, tmp_path):
    def forget_local_scores(arrays):
        offset = arrays["local_offset"].copy()
        offset[:, np.flatnonzero(arrays["subset"] == "candidate")[:20]] = np.nan
        return arrays | {"local_offset": offset}

    page = make_page(tmp_path, pool[1], derive_run(pool[1], tmp_path / "b", forget_local_scores))
    candidates = zip(page.column("subset"), page.column("run_0"), page.column("run_1"))
    scores = [pair for subset, *pair in candidates if subset == "candidate"]
    n_ranked = sum(None not in pair for pair in scores)
    assert n_ranked <= 44 and f"{64 - n_ranked} candidates are left out" in page.text
    heads, *rows = page.table("runs-table")
    for name, row in zip((pool[1].name, "b"), rows):
        in_table = [float(row[heads.index(head)][:-2]) for head in ("> 95 % S_E", "from", "to")]
        share = rf"{name}: (\d+) % \(95 % interval (\d+) % to (\d+) %\)"
        (in_words,) = re.findall(f"{share} of {n_ranked} images score higher", page.text)
        assert list(map(float, in_words)) == pytest.approx(in_table, abs=0.55)


def test_a_comparison_says_that_numbers_of_seeds_differ(pool, tmp_path):
    single = {"seeds": [0], "reliability": None, "reliability_local": None, "over_seeds": None}
    run = derive_run(pool[1], tmp_path / "one", one_seed, **single)
    text = make_page(tmp_path, pool[1], run).text
    assert "The runs have different numbers of seeds" in text
    assert "one: " in text and "(one pair, so single images are not known)" in text


def test_results_of_other_settings_are_found(pool_copy):
    _, folder = pool_copy
    (folder / "scores/views_5").mkdir()
    summary = (folder / "scores/summary.json").read_text()
    (folder / "scores/views_5/summary.json").write_text(summary)
    (folder / "scores/epoch_0001").mkdir()
    (folder / "scores/epoch_0001/summary.json").write_text(summary)
    run = read_run(str(folder))
    assert [result.name for result in find_results(run, "scores")] == ["", "views_5"]


def test_shown_views_are_few_enough(page):
    shown = {len(detail["views"]) for detail in page.data["details"].values()}
    assert shown == {min(pictures.SHOWN_VIEWS, 4)}
