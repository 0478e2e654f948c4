"""How much is memorized, and is it real: what the page says of scores."""

import numpy as np

from memorization.data.subsets import SUBSETS
from memorization.measuring.comparison import share_beyond_chance
from memorization.reporting.blocks import (
    axis,
    facts,
    figure,
    headline,
    interval,
    note,
    number,
    part,
    table,
    text,
    trace,
    warning,
)

TITLES = {
    "shared": "shared images",
    "candidate": "candidates",
    "independent": "independent images",
    "external": "external images",
}
MEANINGS = {
    "shared": "both encoders of a pair were trained on them",
    "candidate": "f was trained on them, g was not",
    "independent": "g was trained on them, f was not",
    "external": "no encoder was trained on them: what they score is chance and the pair's offset",
}
IN_A_POOL = "each pair has one encoder that was trained on the image and one that was not"
NOT_ONE_IMAGE = (
    "A score is not the effect of a single image: the encoders that are compared differ in whole "
    "sets of images."
)
BINS = 40
AGREEMENTS = {
    "spearman": "rank correlation",
    "kendall": "Kendall's tau",
    "overlap": "first tenth in common",
}
DOUBTFUL = 0.01  # p of the class test, below which subsets differ in their classes


def meanings_of(subsets):
    """{subset: what its images are} of those that are there, in order. subsets: names."""
    meanings = {name: MEANINGS[name] for name in SUBSETS if name in subsets}
    if "independent" not in meanings and "candidate" in meanings:
        meanings["candidate"] = IN_A_POOL
    return meanings


def headline_part(run):
    """What the page begins with: how much is memorized, and how far single images are known. run: a
    ScoredRun.
    """
    summary = run.summary
    beyond = share_beyond_chance(run, summary.headline)
    contrast = summary.free_of_the_offset["candidate - external"]
    share = number(beyond["share"], ".0%")
    others = "other images" if len(summary.seeds) == 1 else "other images and pairs of encoders"
    share += f" (95 % interval for {others} {interval(beyond['interval_95'], '.0%')})"
    first = f"Of {beyond['n']:,} images that encoders were trained on, {share} have a higher "
    first += "memorization score than 95 % of the images that no encoder was trained on. By "
    first += "chance, 5 % would."
    of_mean = f"{number(contrast['value'], '.4f')} (95 % interval over images "
    of_mean += f"{interval(contrast['interval_95'], '.4f')})"
    second = "Encoders align the views of images that they were trained on "
    if contrast["interval_95"][0] > 0:
        second += f"better than encoders that were not, on average by {of_mean}, beyond what "
        second += "images show that neither saw."
    else:
        second += f"not measurably better than encoders that were not: on average by {of_mean}."
    return part(
        "headline",
        "In short",
        headline(first, second, _repeats(summary)),
        _caveat(run, beyond["n"]),
    )


def _repeats(summary):
    """How well the ranking of single images repeats, a sentence."""
    n_seeds = len(summary.seeds)
    if not summary.ranking_reliability:
        return (
            "One pair of encoders was trained. It does not tell which single images are "
            "memorized: that takes several pairs."
        )
    of = summary.ranking_reliability["candidate"]
    if of["predicted"] is None:
        return "The scores of all images are equal: there is no ranking of single images."
    ends = interval(ends_of_reliability(of), ".2f")
    reliability = f"{of['predicted']:.2f} (95 % interval over images {ends})"
    common = f"{100 * of['predicted_overlap_of_first_tenth']:.0f} %"
    return (
        f"The ranking of single images has a reliability of {reliability}, where 1 is perfect: "
        f"{n_seeds} other pairs of encoders would have about {common} of the first tenth in common "
        "with it, where chance gives 10 %."
    )


def ends_of_reliability(of):
    """The 95 % interval of the reliability of a ranking, None if it is not known; a negative
    reliability means none. of: what a summary says of it.
    """
    if None in of["predicted_interval_95"]:
        return None
    return [max(end, 0.0) for end in of["predicted_interval_95"]]


def _caveat(run, n):
    """How images are ranked, and what a score is not, a note. n: candidates that have a rank."""
    by = "Images are ranked by their score."
    if run.summary.headline == "score_local":
        by = "Images are ranked by their local score: the score less what images of their kind "
        by += "score that no encoder was trained on."
    n_unlike = int(run.select("candidate").sum()) - n
    if n_unlike:
        by += f" {n_unlike} candidates are unlike all such images, have none, and are left out."
    return note(by, NOT_ONE_IMAGE)


# --- how much -------------------------------------------------------------------------------------


def scores_part(run):
    """Means of the subsets, contrasts, tests and histograms. run: a ScoredRun."""
    return part(
        "scores",
        "Scores of the subsets",
        text(
            "The memorization score of an image says how much better its views are aligned by the "
            "encoder that was trained on it than by the one that was not. Positive means memorized."
        ),
        _contrasts(run.summary),
        _histograms(run),
        _table_of_subsets(run.summary),
        _table_of_tests(run.summary),
        note(run.summary.given_this_pair["meaning"].capitalize() + "."),
    )


def _contrasts(summary):
    rows = []
    for name, contrast in summary.free_of_the_offset.items():
        between = f"95 % interval {interval(contrast['interval_95'], '.5f')}"
        rows.append((name, number(contrast["value"], ".5f"), between))
    test = summary.given_this_pair["welch"]["candidate > external"]
    free = test.get("d_free_of_views")
    of_views = "" if free is None else f"{number(free, '.2f')} free of the noise of views"
    rows.append(("Cohen's d, candidates against external", number(test["d"], ".2f"), of_views))
    p = "given these encoders, one-sided Welch test"
    rows.append(("p, candidates > external", number(test["p"], ".2g"), p))
    if summary.over_seeds and "candidate > external" in summary.over_seeds["paired"]:
        paired = summary.over_seeds["paired"]["candidate > external"]
        seeds = f"paired t test of the means of {len(summary.seeds)} seeds"
        rows.append(("p over seeds", number(paired["p"], ".2g"), seeds))
    offset = "the mean of external images; contrasts are free of it"
    rows.append(("offset on unseen images", number(summary.offset_on_unseen_images, ".5f"), offset))
    return facts(rows)


def _histograms(run):
    scores, subsets = run.table["score"], run.table["subset"]
    edges = np.histogram_bin_edges(scores, bins=BINS)
    traces, means = [], []
    for name in meanings_of(subsets):
        values = scores[subsets == name]
        heights = np.histogram(values, edges, density=True)[0]
        traces.append(trace("steps", TITLES[name], name, edges.tolist(), heights.tolist()))
        means.append(f"{TITLES[name]} {number(float(values.mean()), '.4f')}")
    return figure(
        "histogram",
        "How much each image is memorized",
        f"Histograms of the scores of the subsets. Their means: {', '.join(means)}.",
        {"x": axis("memorization score"), "y": axis("density")},
        traces,
    )


def _table_of_subsets(summary):
    columns = {"subset": None, "images": "d", "mean score": ".5f", "standard error": ".5f"}
    columns |= {"range scale": ".4f", "ratio": ".4f", "meaning": None}
    meanings, rows = meanings_of(summary.subsets), []
    for name, scales in summary.subsets.items():
        raw = scales["raw"]
        means = [scales[scale]["mean"] for scale in ("range", "ratio")]
        rows.append(
            [TITLES[name], raw["n"], raw["mean"], raw["standard_error"], *means, meanings[name]]
        )
    return table("subsets", "Mean scores of the subsets", columns, rows)


def _table_of_tests(summary):
    columns = {"test": None, "kind": None, "t": ".2f", "p": ".2g", "d": ".2f"}
    rows = []
    for name, test in summary.given_this_pair["welch"].items():
        rows.append([name, "Welch, over images", test["t"], test["p"], test["d"]])
    for name, test in (summary.over_seeds or {}).get("paired", {}).items():
        rows.append([name, f"paired, {len(summary.seeds)} seeds", test["t"], test["p"], None])
    return table("tests", "One-sided tests between subsets", columns, rows)


# --- is it real -----------------------------------------------------------------------------------


def reliability_part(run):
    """How well the ranking of single images repeats, with that of external images beside it."""
    summary = run.summary
    if not summary.ranking_reliability:
        alone = "One pair was scored. How well scores repeat is known from two seeds on."
        return part("reliability", "Does the ranking repeat?", text(alone), _stand_out(summary))
    both = [summary.ranking_reliability[name] for name in ("candidate", "external")]
    rows = []
    for pairs, of in (("between_seeds", "two seeds"), ("between_halves", "halves of the seeds")):
        for measure, words in AGREEMENTS.items():
            if both[0][pairs]:
                means = [one[pairs][measure]["mean"] for one in both]
                chance = both[0][pairs]["overlap_by_chance"] if measure == "overlap" else 0.0
                rows.append([f"{words}, {of}", *means, chance])
    rows.append(["reliability of the mean", *(one["predicted"] for one in both), 0.0])
    columns = {"measure": None, "candidates": ".2f", "external images": ".2f", "by chance": ".2f"}
    low_high = interval(both[0]["predicted_interval_95"], ".2f")
    caption = f"How well the ranking by {summary.headline} repeats"
    return part(
        "reliability",
        "Does the ranking repeat?",
        facts(
            [
                (
                    f"reliability of the mean of {len(summary.seeds)} seeds",
                    number(both[0]["predicted"], ".2f"),
                    f"95 % interval over images {low_high}",
                )
            ]
        ),
        _stand_out(summary),
        table("repeats", caption, columns, rows),
        note("External images cannot be memorized: what repeats there is no memory."),
    )


def _stand_out(summary):
    """How many images stand out one by one, as facts. Earlier versions do not say."""
    images, rows = summary.single_images, []
    if not images:
        return None
    counts, n = images[summary.headline], images["candidates"]
    for level in ("0.1", "0.05"):
        false = f"at most {number(float(level), '.0%')} of them are expected to be false"
        rows.append((f"candidates with q < {level}", f"{counts[f'q < {level}']} of {n}", false))
    unlike = counts.get("unlike_all_external")
    if unlike:
        rows.append(("without a local score", str(unlike), "unlike all external images"))
    return facts(rows)


def classes_part(run):
    """Whether the subsets have the same classes, a part; None if there are no classes."""
    counts, test = run.summary.class_counts, run.summary.class_test
    if not counts:
        return None
    names = list(dict.fromkeys(name for of in counts.values() for name in of))
    subsets = [name for name in SUBSETS if name in counts]
    columns = {"class": None} | {TITLES[name]: "d" for name in subsets}
    rows = [[name, *(counts[subset].get(name, 0) for subset in subsets)] for name in names]
    verdict = None
    if test:
        p = number(test["p"], ".2g")
        verdict = text(f"Do the subsets differ in their classes? Chi-square test: p {p}.")
        if test["p"] is not None and test["p"] < DOUBTFUL:
            verdict = warning(
                f"The subsets differ in their classes (p {p}): a difference between their scores "
                "may be one between kinds of images."
            )
    of_subsets = table("class-counts", "Images of each class", columns, rows)
    return part("confounders", "Are the subsets alike?", verdict, of_subsets)
