"""Comparison: the same images as several runs rank them.

In a crossover the seed decides which images f sees. Runs of the same seed share this, so a part of
their noise is common, and their rankings agree for a reason that is no property of an image.
Rankings are therefore compared between disjoint seeds, too: the mean of some seeds of one run with
the mean of other seeds of another run. The same between two halves of one run is the ceiling.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from memorization.machine.files import refuse_broken
from memorization.measuring.score_tables import csv_of
from memorization.reliability import TOP, compare_rankings
from memorization.results import Number, Spread, Summary
from memorization.significance import RARE, cohens_d, interval_of_share, mean_and_spread

FORMAT = "comparison of runs 1"
PER_SEED = {"score": "per_seed", "score_local": "per_seed_local"}
MOST_HALVINGS = 50  # ways of drawing disjoint seeds that are averaged
MOST_DRAWS = 1000  # after which no further way is looked for
Q_LEVEL = 0.1  # of q, at which they are counted, too
STEP, DIGITS = 0.01, 2  # between thresholds on the range scale, and of them
PREFIXES = {"candidate": "", "external": "external_"}  # of names of columns
COLUMNS = [
    "run_a", "run_b", "tau", "overlap", "halves_tau", "halves_tau_std", "halves_overlap",
    "halves_overlap_std", "ceiling_tau_a", "ceiling_tau_b", "ceiling_overlap_a",
    "ceiling_overlap_b", "chance_tau", "chance_overlap", "external_tau", "external_overlap",
    "external_halves_tau", "external_halves_tau_std", "external_halves_overlap",
    "external_halves_overlap_std", "images", "external_images", "seeds_a", "seeds_b",
    "seeds_of_half_a", "seeds_of_half_b", "halvings", "column",
]  # fmt: skip


class ComparisonSummary(Summary):
    """summary.json of compare_runs.py.

    column: the score that images are ranked by. runs: the rows of runs.csv, each with the path of
    the run and its seeds. candidates, external: how many there are, are ranked, and have no local
    score in some run. seeds_of_a_half: None if no run has two seeds. chance: the agreement of
    unrelated rankings. agreement: the rows of comparison.csv.
    """

    format: str
    column: str
    runs: list[dict]
    candidates: dict[str, int]
    external: dict[str, int]
    seeds_of_a_half: int | None
    chance: dict[str, Number]
    agreement: list[dict]
    settings: dict
    fingerprints: dict


# --- rankings -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Rankings:
    """What runs rank in common.

    column: the score; candidate, external: indices of the ranked images, ascending; left_out:
    {subset: number of images that a run has no local score of}.
    """

    column: str
    candidate: np.ndarray
    external: np.ndarray
    left_out: dict

    def scores(self, run, subset):
        """The scores of a ScoredRun, of every seed, (S, n)."""
        rows = run.select(subset, getattr(self, subset))
        return run.table[PER_SEED[self.column]][:, rows]


def common_rankings(runs):
    """The Rankings of ScoredRuns of the same candidates.

    The column is the one that all runs rank single images by; "score" if they differ. Of S_E those
    images are ranked that all runs scored; none if their test images differ.
    """
    headlines = {run.summary.headline for run in runs}
    column = headlines.pop() if len(headlines) == 1 else "score"
    indices, left_out = {}, {}
    for subset in ("candidate", "external"):
        common = runs[0].index(subset)
        for run in runs[1:]:
            same = subset == "candidate" or run.data["test"] == runs[0].data["test"]
            common = np.intersect1d(common, run.index(subset)) if same else common[:0]
        is_known = np.ones(len(common), dtype=bool)
        for run in runs:
            scores = run.table[PER_SEED[column]][:, run.select(subset, common)]
            is_known &= ~np.isnan(scores).any(0) if len(common) else True
        indices[subset], left_out[subset] = common[is_known], int((~is_known).sum())
    return Rankings(column, **indices, left_out=left_out)


def seeds_of_a_half(runs):
    """How many seeds of each run are compared with other seeds: half of the fewest that a run of
    several has, so that all cells of the table are alike. None if each run has one seed.
    """
    counts = [len(run.summary.seeds) for run in runs if len(run.summary.seeds) > 1]
    return min(counts) // 2 if counts else None


def draw_halves(first, second, size, seed=0):
    """Ways of drawing disjoint seeds of two runs, at most 50: a list of (places in the first,
    places in the second), each a tuple of at most `size` places.

    first, second: their seeds, lists; the same list for a run beside itself. Empty if there are no
    disjoint ones.
    """
    if len(second) < len(first):
        return [(b, a) for a, b in draw_halves(second, first, size, seed)]
    rng, all_seeds, ways = np.random.default_rng(seed), sorted({*first, *second}), set()
    for _ in range(MOST_DRAWS):
        order = [all_seeds[place] for place in rng.permutation(len(all_seeds))]
        of_first = [number for number in order if number in first][:size]
        rest = [number for number in order if number in second and number not in of_first]
        places = (_places(first, of_first), _places(second, rest[:size]))
        if rest:
            ways.add(tuple(sorted(places)) if first is second else places)
        if len(ways) == MOST_HALVINGS:
            break
    return sorted(ways)


def _places(seeds, chosen):
    return tuple(sorted(seeds.index(number) for number in chosen))


def compare_runs(runs, rankings):
    """The rows of comparison.csv, a list of dicts: of each run beside itself, and of each two."""
    size = seeds_of_a_half(runs) or 1
    rows = [
        _compare_two(first, second, rankings, size)
        for place, first in enumerate(runs)
        for second in runs[place:]
    ]
    ceilings = {row["run_a"]: row for row in rows if row["run_a"] == row["run_b"]}
    for row in rows:
        for side in "ab":
            ceiling = ceilings[row[f"run_{side}"]]
            row[f"ceiling_tau_{side}"] = ceiling["halves_tau"]
            row[f"ceiling_overlap_{side}"] = ceiling["halves_overlap"]
    return [{name: row[name] for name in COLUMNS} for row in rows]


def _compare_two(first, second, rankings, size):
    """A row of comparison.csv, still without ceilings."""
    halves = draw_halves(first.summary.seeds, second.summary.seeds, size)
    of_first, of_second = (set(map(len, side)) for side in zip(*halves)) if halves else ({0}, {0})
    row = {
        "run_a": first.name,
        "run_b": second.name,
        "column": rankings.column,
        "seeds_a": len(first.summary.seeds),
        "seeds_b": len(second.summary.seeds),
        "seeds_of_half_a": max(of_first),
        "seeds_of_half_b": max(of_second),
        "halvings": len(halves),
        "chance_tau": 0.0,
    }
    for subset, prefix in PREFIXES.items():
        a, b = (rankings.scores(run, subset) for run in (first, second))  # (S, n)
        all_seeds = compare_rankings([(a.mean(0), b.mean(0))])
        row[f"{prefix}images"] = all_seeds["images"]
        row.setdefault("chance_overlap", all_seeds["overlap_by_chance"])
        pairs = [(a[list(x)].mean(0), b[list(y)].mean(0)) for x, y in halves]
        of_halves = compare_rankings(pairs) if pairs else None
        for name, measure in (("tau", "kendall"), ("overlap", "overlap")):
            is_one = first is second  # of itself, all that it can tell is the ceiling
            row[f"{prefix}{name}"] = None if is_one else all_seeds[measure]["mean"]
            spread = of_halves[measure] if of_halves else {"mean": None, "std": None}
            row[f"{prefix}halves_{name}"] = spread["mean"]
            row[f"{prefix}halves_{name}_std"] = spread["std"]
    return row


# --- one run --------------------------------------------------------------------------------------


def share_above(scores, thresholds):
    """Share of scores above each threshold, (T,). scores: (n,); thresholds: (T,)."""
    below = np.searchsorted(np.sort(scores), thresholds, side="right")
    return 1 - below / len(scores)


def rare_score(run, column):
    """The 95th percentile of the scores of S_E in a ScoredRun, a float."""
    return float(np.nanquantile(run.table[column][run.select("external")], RARE))


def share_beyond_chance(run, column, indices=None):
    """How many candidates of a ScoredRun score higher than 95 % of S_E: a dict of their share, its
    interval_95, see `interval_of_share`, and n, of how many. indices: of the candidates; by default
    those that have a score.
    """
    lists = []
    for rows in (run.select("candidate", indices), run.select("external")):
        lists.append(run.table[PER_SEED[column]][:, rows & ~np.isnan(run.table[column])])
    scores = run.table[column][run.select("candidate", indices)]
    scores, rare = scores[~np.isnan(scores)], np.array([rare_score(run, column)])
    return {
        "share": float(share_above(scores, rare)[0]),
        "interval_95": interval_of_share(*lists),
        "n": len(scores),
    }


def scale_of(run, column):
    """max - min of all scores of a run, by which the range scale divides; 1 if all are equal."""
    scores = run.table[column]
    return float(np.nanmax(scores) - np.nanmin(scores)) or 1.0


def thresholds_of(runs, rankings):
    """The rows of thresholds.csv, a list of dicts: for each run the share of the ranked candidates,
    and of S_E, above thresholds on the range scale, score / (max - min); and one at the 95th
    percentile of S_E, which `mark` names.
    """
    column, rows = rankings.column, []
    in_range = [run.table[column] / scale_of(run, column) for run in runs]
    low, high = min(map(np.nanmin, in_range)), max(map(np.nanmax, in_range))
    steps = np.arange(np.floor(low / STEP), np.ceil(high / STEP) + 1)
    for run in runs:
        scale, rare = scale_of(run, column), rare_score(run, column)
        thresholds = np.append(np.round(steps * STEP, DIGITS), rare / scale)
        scores = np.append(thresholds[:-1] * scale, rare)
        external = run.table[column][run.select("external")]
        candidates = run.table[column][run.select("candidate", rankings.candidate)]
        columns = {
            "run": [run.name] * len(scores),
            "column": [column] * len(scores),
            "threshold": thresholds.tolist(),
            "threshold_score": scores.tolist(),
            "candidates_above": share_above(candidates, scores).tolist(),
            "external_above": share_above(external[~np.isnan(external)], scores).tolist(),
            "mark": [""] * len(steps) + ["external_95"],
        }
        rows += [dict(zip(columns, values)) for values in zip(*columns.values())]
    return rows


def describe_run(run, rankings):
    """The row of runs.csv of a ScoredRun, a dict of plain types."""
    column, table = rankings.column, run.table
    of = {name: table["per_seed"][:, run.select(name)] for name in ("candidate", "external")}
    welch = run.summary.given_this_pair["welch"]["candidate > external"]
    paired = (run.summary.over_seeds or {}).get("paired", {}).get("candidate > external", {})
    per_seed = Spread(**mean_and_spread([cohens_d(*pair) for pair in zip(*of.values())]))
    reliability = reliability_by(run, column)
    q = table[column.replace("score", "q")][run.select("candidate")]
    above = share_beyond_chance(run, column, rankings.candidate)
    accuracy = run.accuracy or Spread(mean=None, std=None, n=0)
    return {
        "run": run.name,
        "method": run.method,
        "encoder": run.encoder,
        "seeds": len(run.summary.seeds),
        "views": run.summary.settings.get("views"),
        "candidates": int(run.select("candidate").sum()),
        "mean_candidate": float(of["candidate"].mean()),
        "mean_external": float(of["external"].mean()),
        "d": _number(welch["d"]),
        "d_free_of_views": _number(welch.get("d_free_of_views")),
        "d_of_one_seed": per_seed.mean,
        "d_of_one_seed_std": per_seed.std,
        "p": _number(welch["p"]),
        "p_over_seeds": _number(paired.get("p")),
        "column": column,
        "external_95": rare_score(run, column),
        "above_external_95": above["share"],
        "q_below_0.1": int((q < Q_LEVEL).sum()),
        "reliability": _number(reliability["candidate"]["predicted"]) if reliability else None,
        "accuracy": accuracy.mean,
        "accuracy_std": accuracy.std,
        "probe_images": run.probe_images,
        "above_external_95_low": above["interval_95"][0],
        "above_external_95_high": above["interval_95"][1],
    }


def reliability_by(run, column):
    """What the summary of a ScoredRun says of how well the ranking by a column repeats; None of one
    seed.
    """
    return run.summary.reliability_local if column == "score_local" else run.summary.reliability


def _number(value):
    """A number of a summary.json, which writes null for NaN."""
    return None if value is None else float(value)


def bands_of(scores, most):
    """Places of images in bands of their scores, a dict {band: (n,)}, n at most `most` and at most
    a tenth: the highest, those around the 75th and the 50th percentile, and the lowest.

    scores: (N,). In every band the highest comes first.
    """
    order = np.argsort(-scores, kind="stable")
    N, n = len(order), max(1, min(most, len(order) // TOP))

    def around(place):
        start = min(max(0, place - n // 2), N - n)
        return order[start : start + n]

    return {
        "the highest": order[:n],
        "around the 75th percentile": around(N // 4),
        "around the median": around(N // 2),
        "the lowest": order[N - n :],
    }


# --- files ----------------------------------------------------------------------------------------


def summarize(runs, rankings, settings):
    """The ComparisonSummary of ScoredRuns. settings: of the command, a dict of plain types. Raises
    WrongUse if the summary of a run's scores lacks something.
    """
    descriptions = []
    for run in runs:
        with refuse_broken(run.path, "not a whole summary of scores"):
            of_run = {"path": run.path, "seed_numbers": run.summary.seeds}
            descriptions.append(describe_run(run, rankings) | of_run)
    rows, counts = compare_runs(runs, rankings), {}
    for subset in ("candidate", "external"):
        ranked, left_out = len(getattr(rankings, subset)), rankings.left_out[subset]
        counts[subset] = {"n": ranked + left_out, "ranked": ranked, "no_local_score": left_out}
    digest = hashlib.sha256(runs[0].index("candidate").astype("<i8").tobytes()).hexdigest()
    return ComparisonSummary(
        format=FORMAT,
        column=rankings.column,
        runs=descriptions,
        candidates=counts["candidate"],
        external=counts["external"],
        seeds_of_a_half=seeds_of_a_half(runs),
        chance={"tau": 0.0, "overlap": rows[0]["chance_overlap"]},
        agreement=rows,
        settings=settings,
        fingerprints={
            "images": runs[0].data["train"]["sha256"],
            "candidates": digest,
            "scores": {run.name: run.summary.fingerprints["scores"] for run in runs},
        },
    )


def files_of(summary, thresholds):
    """{name: bytes} of runs.csv, comparison.csv and thresholds.csv. summary: a ComparisonSummary;
    thresholds: of `thresholds_of`.
    """
    not_in_table = ("path", "seed_numbers")
    rows = [{name: run[name] for name in run if name not in not_in_table} for run in summary.runs]
    tables = {"runs.csv": rows, "comparison.csv": summary.agreement, "thresholds.csv": thresholds}
    return {name: _csv_of_rows(of_table) for name, of_table in tables.items()}


def _csv_of_rows(rows):
    """The bytes of a CSV file of dicts with the same keys. None is an empty cell."""
    columns = list(rows[0])
    table = {name: np.array([row[name] for row in rows], dtype=object) for name in columns}
    return csv_of(table, columns)
