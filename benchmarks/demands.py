"""What the definition demands of planted images, and how far scores meet it.

Tables are those of `table_of_scores`, of one set and some of its seeds, with the rows of a
PlantedSet. A column is "score" or "score_local".
"""

import bisect
import itertools
import operator

import numpy as np
from scipy import stats

from benchmarks.plants import REPEATED
from memorization.measuring.calibration import against_external
from memorization.reliability import components

COLUMNS = {"score": "raw", "score_local": "local"}
# What is compared within a set: an AUC is the chance that an image of the first kinds scores higher
# than one of the second.
CONTRASTS = {
    **{kind: ((kind,), ("ordinary",)) for kind in REPEATED},
    "repeated": (REPEATED, ("ordinary",)),
    "repeated 8 or 16 times": (REPEATED[2:], ("ordinary",)),
    "repeated, against S_E": (REPEATED, ("S_E",)),
    "ordinary, against S_E": (("ordinary",), ("S_E",)),
    "wrong label": (("wrong label",), ("ordinary",)),
    "waves, against unseen waves": (("waves",), ("unseen waves",)),
    "noise, against unseen noise": (("noise",), ("unseen noise",)),
    "unseen waves, against S_E": (("unseen waves",), ("S_E",)),
    "twin in S_I, against S_E": (("twin in S_I",), ("S_E",)),
    "twin in S_S, against S_E": (("twin in S_S",), ("S_E",)),
    "twin in S_S": (("twin in S_S",), ("ordinary",)),
    "twin in S_E": (("twin in S_E",), ("ordinary",)),
    "its copy, that nobody is trained on": (("copy in S_E",), ("ordinary",)),
}
NULLS = ("twin in S_I", "second twin")  # f and g have them equally often
MOSTLY_NULLS = (*REPEATED, *NULLS)
DRAWS = 100  # of an S_E that stands in for all subsets
MOST_SEEDS = 100
NEEDED = {  # an AUC for which a number of seeds is predicted
    **{kind: 0.95 for kind in (*REPEATED, "repeated", "repeated 8 or 16 times")},
    "waves, against unseen waves": 0.9,
}
LEVEL = 0.1  # of q


def values_of(table, column, kinds):
    """The known scores of the images of some kinds, (n,) float64."""
    values = table[column][np.isin(table["kind"], kinds)]
    return values[~np.isnan(values)]


def auc(greater, smaller):
    """P(a value of the first is above one of the second) + P(equal) / 2, a float; NaN if one is
    empty.
    """
    if not len(greater) or not len(smaller):
        return float("nan")
    statistic = stats.mannwhitneyu(greater, smaller).statistic
    return float(statistic / (len(greater) * len(smaller)))


def compare_kinds(tables, column):
    """The AUC of each of CONTRASTS, the mean over tables: {name: {mean, lowest, highest}}."""
    aucs = {
        name: [auc(*(values_of(table, column, kinds) for kinds in pair)) for table in tables]
        for name, pair in CONTRASTS.items()
    }
    return {name: _mean_and_range(values) for name, values in aucs.items()}


def predict_power(tables, column, contrast, least):
    """What more seeds are expected to bring: a dict auc, of 100 seeds, and seeds, the smallest
    number that has the AUC `least`, None if 100 have not, as the images themselves differ too much.

    tables: of several seeds, one for each set. What stays of an image is estimated by drawing its
    mean score towards that of its kinds, so that the variance is the one that stays
    (`memorization.reliability.components`). The luck of training and views is taken as normal.
    """
    greater, smaller = (_expected_scores(tables, column, kinds) for kinds in CONTRASTS[contrast])
    if not all(map(len, greater[0] + smaller[0])):
        return {"auc": float("nan"), "seeds": None}

    def expected_auc(seeds):
        noise = np.sqrt((greater[1] + smaller[1]) / seeds)
        pairs = zip(greater[0], smaller[0])
        return float(np.mean([np.mean(stats.norm.cdf((g[:, None] - s) / noise)) for g, s in pairs]))

    auc = expected_auc(MOST_SEEDS)
    if not auc >= least:  # NaN if there is one image
        return {"auc": auc, "seeds": None}
    return {
        "auc": auc,
        "seeds": 1 + bisect.bisect_left(range(1, MOST_SEEDS), least, key=expected_auc),
    }


def _expected_scores(tables, column, kinds):
    """(what stays of the images of some kinds, an array for each table; variance of one seed)."""
    of_tables, variances = [], []
    for table in tables:
        chosen = np.isin(table["kind"], kinds)
        scores = table["per_seed"][:, chosen]
        if column == "score_local":
            scores = scores - (table["sign"] * table["local_offset"])[:, chosen]
        known = ~np.isnan(scores).any(0)
        parts = components(scores[:, known], table["jackknife"][:, chosen][:, known])
        of_tables.append(scores[:, known].mean(0))
        variances.append([parts[name]["value"] for name in ("image", "training", "views")])
    image, *noise = np.mean(variances, axis=0)
    image, noise = np.maximum(image, 0), sum(noise)
    shrinking = np.sqrt(image / (image + noise / len(tables[0]["per_seed"])))
    stay = [
        values.mean() + shrinking * (values - values.mean()) if len(values) else values
        for values in of_tables
    ]
    return stay, noise


def check_nulls(tables, column):
    """Whether images of which f and g have a copy each score as S_E does: their number, the p of a
    two-sample test of Kolmogorov and Smirnov over all tables, and the share of them with p < .1, a
    dict.

    Of two twins one is taken, as their scores mirror each other. tables: of different sets, with as
    many twins and as many images of S_E each.
    """
    kind = NULLS[0]
    nulls, external = (
        np.concatenate([values_of(table, column, (name,)) for table in tables])
        for name in (kind, "S_E")
    )
    p = f"p{column.removeprefix('score')}"
    below = np.concatenate([values_of(table, p, (kind,)) < LEVEL for table in tables])
    return {
        "images": len(nulls),
        "p_of_test": float(stats.ks_2samp(nulls, external).pvalue),
        "share_below_.1": float(below.mean()),
    }


def count_false(table, column, kinds=None):
    """How many candidates have q < .1, and how many of these are nulls: a dict.

    kinds: of the candidates among which q is computed, None for all of the pool.
    """
    scores, subset = table[column], table["subset"].astype("<U16")
    if kinds is not None:
        subset[(subset == "candidate") & ~np.isin(table["kind"], kinds)] = "left out"
    q = against_external(scores, subset)[1]
    is_found = np.nan_to_num(q, nan=1.0) < LEVEL  # NaN for images that are no candidates
    false = int((is_found & np.isin(table["kind"], NULLS)).sum())
    found = int(is_found.sum())
    return {"found": found, "false": false, "share": false / max(1, found)}


def summarize_false(tables, column, kinds=None):
    """The means over tables of `count_false`."""
    counts = [count_false(table, column, kinds) for table in tables]
    return {name: float(np.mean([count[name] for count in counts])) for name in counts[0]}


def compare_classes(tables, column):
    """How far the images of a sorted folder score above S_E, and above unseen images of their own
    class: a dict of the two mean differences, over tables too, and their ratio, 1 if the class adds
    nothing.
    """
    differences = np.mean([_class_differences(table, column) for table in tables], axis=0)
    above_all, above_class = differences
    return {
        "above_S_E": float(above_all),
        "above_unseen_of_class": float(above_class),
        "ratio": float(above_all / above_class),
    }


def _class_differences(table, column):
    """(candidates - S_E, candidates - unseen images of their class), of means."""
    is_candidate = table["subset"] == "candidate"
    kinds, counts = np.unique(table["kind"][is_candidate], return_counts=True)
    own = [values_of(table, column, (kind,)).mean() for kind in kinds]
    unseen = [values_of(table, column, (f"unseen {kind}",)).mean() for kind in kinds]
    mean = np.average(own, weights=counts)
    return (
        mean - values_of(table, column, ("S_E",)).mean(),
        mean - np.average(unseen, weights=counts),
    )


def mean_over_tables(tables, column):
    """{kind: mean score less that of S_E}, the mean over tables; kinds without a score are NaN."""
    means = {}
    for kind in np.unique(tables[0]["kind"]).tolist():
        of_kind = [values_of(table, column, (kind,)) for table in tables]
        external = [values_of(table, column, ("S_E",)).mean() for table in tables]
        known = [values.mean() - mean for values, mean in zip(of_kind, external) if len(values)]
        means[kind] = float(np.mean(known)) if known else float("nan")
    return means


def count_unknown(tables, column):
    """{kind: share of its images without a score}, of the kinds that have such images."""
    kind = np.concatenate([table["kind"] for table in tables])
    is_unknown = np.isnan(np.concatenate([table[column] for table in tables]))
    names = np.unique(kind[is_unknown]).tolist()
    return {name: float(is_unknown[kind == name].mean()) for name in names}


def stand_in(scores, draw_column=None, draws=DRAWS):
    """What an S_E that stands in for all four subsets scores: over draws, the share in which no
    candidate has q < .1, and the share in which a test of Kolmogorov and Smirnov tells candidates
    from the rest of S_E at .05; a dict.

    scores: (N,) of S_E. draw_column: (subset) -> (N,) scores of a draw, for scores that depend on
    which images are S_E; by default `scores` themselves.
    """
    none_found, told_apart = [], []
    for draw in range(draws):
        rng = np.random.default_rng(draw)
        subset = rng.permutation(_names_of_subsets(len(scores)))
        values = scores if draw_column is None else draw_column(subset)
        q = against_external(values, subset)[1]
        none_found.append(not (q < LEVEL).any())
        candidates, external = (
            values[(subset == name) & ~np.isnan(values)] for name in ("candidate", "external")
        )
        told_apart.append(stats.ks_2samp(candidates, external).pvalue < 0.05)
    return {
        "draws": draws,
        "none_found": float(np.mean(none_found)),
        "told_apart": float(np.mean(told_apart)),
    }


def _names_of_subsets(count):
    """Names of subsets for so many images: half are S_E, a quarter candidates."""
    names = np.repeat(["shared", "independent", "candidate"], [count // 8, count // 8, count // 4])
    return np.concatenate([names, np.full(count - len(names), "external")])


def _mean_and_range(values):
    known = [value for value in values if not np.isnan(value)]
    if not known:
        return {"mean": float("nan"), "lowest": float("nan"), "highest": float("nan")}
    return {"mean": float(np.mean(known)), "lowest": min(known), "highest": max(known)}


# --- demands --------------------------------------------------------------------------------------


def compare(results):
    """The demands, each with what was measured: a list of dicts demand, case, bounds, and for raw
    and local scores a value and whether it meets the bounds, None if it was not run. results: of
    `benchmarks.validity`.
    """
    rows = []
    for method, seeds in itertools.product(("simclr", "mae"), (1, 3, 8)):
        case = f"{method}, {seeds} seed{'s'[: seeds > 1]}"
        cells = {
            cell["column"]: cell
            for cell in results["crossover"]
            if (cell["method"], cell["seeds"]) == (method, seeds)
        }
        for words, bounds, read in (*OF_NULLS, *(OF_POWER if seeds == 8 else ())):
            rows.append(_demand(words, case, bounds, cells, read))
    by_count = results["sorted"]["crossover"].items()
    cells = {column: counts["3"] for column, counts in by_count if "3" in counts}
    words, case = "sorted folder: ratio of the contrasts", "crossover, 3 seeds"
    rows.append(_demand(words, case, (1 / 1.3, 1.3), cells, lambda cell: cell["ratio"]))
    for words, bounds, key in (
        ("S_E for all subsets: draws in which no q < .1", (0.95, None), "none_found"),
        ("S_E for all subsets: draws that a test tells apart", (None, 0.1), "told_apart"),
    ):
        cells = results["stand_in"] or {}
        rows.append(_demand(words, "simclr", bounds, cells, operator.itemgetter(key)))
    cells = {} if results["mirror"] is None else {"score": results["mirror"]}
    words = "S_I as candidates of g: largest difference"
    rows.append(_demand(words, "simclr", (0.0, 0.0), cells, float))
    return rows


# (demand, bounds, what reads the value in a cell)
OF_NULLS = (
    (
        "twin in S_I scores as S_E: p of a test",
        (0.01, None),
        lambda cell: cell["null"]["p_of_test"],
    ),
    ("q < .1: share of nulls", (None, 0.1), lambda cell: cell["false"]["share"]),
    (
        "q < .1, most candidates null: share of nulls",
        (None, 0.1),
        lambda cell: cell["false_among_nulls"]["share"],
    ),
)
OF_POWER = tuple(
    (f"AUC: {name}", bounds, lambda cell, name=name: cell["auc"][name]["mean"])
    for name, bounds in (
        ("repeated", (0.95, None)),
        ("repeated 8 or 16 times", (0.95, None)),
        ("repeated 16 times", (0.95, None)),
        ("waves, against unseen waves", (0.9, None)),
        ("wrong label", (0.4, 0.6)),
        ("twin in S_S", (None, 0.5)),
    )
)


def _demand(words, case, bounds, cells, read):
    """One demand. bounds: (least, most), None for none; cells: {column: what was measured}; read:
    gives the value in it.
    """
    row = {"demand": words, "case": case, "bounds": list(bounds)}
    for column, name in COLUMNS.items():
        value = read(cells[column]) if column in cells else None
        is_known = value is not None and not np.isnan(value)  # waves have no local score
        row[name] = {"value": value, "met": _is_within(value, *bounds) if is_known else None}
    return row


def _is_within(value, least, most):
    return (least is None or value >= least) and (most is None or value <= most)
