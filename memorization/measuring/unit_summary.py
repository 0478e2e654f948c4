"""What summary.json says of units, and what the screen shows."""

import numpy as np
import scipy

from memorization.errors import escape
from memorization.machine.screen import say
from memorization.measuring.pruning import PruningSummary
from memorization.measuring.unit_tables import MEASURED
from memorization.results import Checkpoint, Number, Summary
from memorization.significance import bootstrap_interval, mean_and_spread

FORMAT = "units 1"
ALL = "all layers"
QUANTILES = (0.05, 0.25, 0.75, 0.95)
REFERENCES = ("external", "g", "untrained")  # that f is compared with
MEANING = (
    "UnitMem has no reference model, and a maximum grows with the number of images: it means "
    "something beside the same number of other encoders and of external images"
)
INTERVALS = (
    "intervals of a layer: bootstrap over its units, which are not independent, given these "
    "encoders; the spread over seeds is the honest one"
)
LONGEST = 40  # characters of a layer's name on the screen


class UnitsSummary(Summary):
    """summary.json of units.

    images: N; layers: per seed, {"0": {name of a layer, or ALL: see `summarize_layer`}};
    over_seeds: {name: {"f": Spread of its mean UnitMem, "f - external": ...}}; top_images: see
    `compare_with_scores`; pruning: a PruningSummary, None unless asked for.
    """

    format: str
    meaning: str
    intervals: str
    seeds: list[int]
    images: int
    has_labels: bool
    layers: dict[str, dict[str, dict]]
    over_seeds: dict[str, dict[str, dict]]
    top_images: dict
    pruning: PruningSummary | None = None
    checkpoint: Checkpoint
    settings: dict
    fingerprints: dict
    machine: dict
    seconds: Number


def summarize(seeds, scores):
    """The statistics of summary.json, a dict. seeds: the SeedUnits of each; scores: their
    CandidateScores, or None.
    """
    layers = {str(units.seed): summarize_seed(units) for units in seeds}
    names = next(iter(layers.values()))
    return {
        "meaning": MEANING,
        "intervals": INTERVALS,
        "seeds": [units.seed for units in seeds],
        "images": len(seeds[0].indices),
        "has_labels": any((units.of["f"].top_class >= 0).any() for units in seeds),
        "layers": layers,
        "over_seeds": {name: _over_seeds([of[name] for of in layers.values()]) for name in names},
        "top_images": compare_with_scores(seeds, scores),
    }


def summarize_seed(units):
    """{name of a layer, or ALL: `summarize_layer`} of a SeedUnits."""
    parts = {name: slice(*ends) for name, ends in _ends(units.layers).items()}
    return {
        name: summarize_layer({which: _Part(units.of[which], part) for which in units.of})
        for name, part in (parts | {ALL: slice(None)}).items()
    }


def summarize_layer(of):
    """What is known of the units of a layer: {"f", "external", "g", "untrained": see `_describe`;
    "differences": {"f - external": {"value", "interval_95"}, ...} of the mean UnitMem}.

    of: {one of MEASURED: a part of its UnitMeasurement}. f and external are the same units of one
    encoder, so that their difference is that of units with both numbers.
    """
    differences = {}
    for name in REFERENCES:
        if name in of:
            differences[f"f - {name}"] = _difference(of["f"], of[name], paired=name == "external")
    return {name: _describe(part) for name, part in of.items()} | {"differences": differences}


class _Part:
    """The units of one layer of a UnitMeasurement."""

    def __init__(self, measurement, units):
        for name in ("unitmem", "classmem", "dead", "signed", "constant", "minimum"):
            setattr(self, name, getattr(measurement, name)[units])


def _ends(layers):
    """{name of a layer: (number of its first unit, of the one after its last)}."""
    ends = np.cumsum([0, *layers.sizes]).tolist()
    return dict(zip(layers.names, zip(ends, ends[1:])))


def _describe(part):
    """Counts of units and the distribution of UnitMem, a dict of plain types. None stands for what
    no unit has.
    """
    known = part.unitmem[~np.isnan(part.unitmem)]
    of_classes = part.classmem[~np.isnan(part.classmem)]
    has_both = ~np.isnan(part.unitmem) & ~np.isnan(part.classmem)
    above = part.unitmem[has_both] > part.classmem[has_both]
    quantiles = np.quantile(known, QUANTILES).tolist() if len(known) else [None] * len(QUANTILES)
    return {
        "units": len(part.unitmem),
        "dead": int(part.dead.sum()),
        "signed": int(part.signed.sum()),
        "constant": int(part.constant.sum()),
        "sometimes_negative": int((part.minimum < 0).sum()),
        "unitmem": {
            "mean": _mean(known),
            "median": float(np.median(known)) if len(known) else None,
            "quantiles": dict(zip(map(str, QUANTILES), quantiles)),
        },
        "classmem": _mean(of_classes),
        "unitmem_above_classmem": _mean(above),
    }


def _mean(values):
    return float(np.mean(values)) if len(values) else None


def _difference(f, other, paired):
    """The difference of two means of UnitMem with its bootstrap interval over units, a dict."""
    first, second = f.unitmem, other.unitmem
    if paired:
        samples = [(first - second)[~np.isnan(first - second)]]
    else:
        samples = [first[~np.isnan(first)], second[~np.isnan(second)]]
    if min(map(len, samples)) < 2:
        return {"value": None, "interval_95": None}

    def difference(*samples, axis=-1):
        means = [sample.mean(axis) for sample in samples]
        return means[0] if paired else means[0] - means[1]

    interval = bootstrap_interval(difference, *samples)
    return {"value": float(difference(*samples)), "interval_95": interval}


def _over_seeds(of_seeds):
    """Means over the seeds and their spread, {"f": ..., "f - external": ...}. of_seeds: of
    `summarize_layer` for every seed.
    """
    values = {}
    for of in of_seeds:
        for name in MEASURED:
            if name in of:
                values.setdefault(name, []).append(of[name]["unitmem"]["mean"])
        for name, difference in of["differences"].items():
            values.setdefault(name, []).append(difference["value"])
    known = {name: [value for value in row if value is not None] for name, row in values.items()}
    return {name: mean_and_spread(row) for name, row in known.items() if row}


# --- images that fire units, and their scores -----------------------------------------------------


def compare_with_scores(seeds, scores):
    """How often an image is the one that fires a unit most, against its memorization score: a dict
    of "per_seed" and "over_seeds". scores: CandidateScores, or None.
    """
    per_seed = {}
    for units in seeds:
        counts = units.top_counts
        of_seed = {"images_that_fire_a_unit_most": int((counts > 0).sum())}
        of_seed |= {"units_of_one_image_at_most": int(counts.max())}
        if scores is not None and units.seed in scores.seeds:
            of_seed |= _correlation(units.indices, counts, scores, units.seed)
        per_seed[str(units.seed)] = of_seed
    correlations = [of_seed.get("spearman") for of_seed in per_seed.values()]
    known = [value for value in correlations if value is not None]
    return {"per_seed": per_seed, "over_seeds": mean_and_spread(known) if known else None}


def _correlation(indices, counts, scores, seed):
    """Spearman's correlation of counts with the scores of a seed, and its bootstrap interval over
    images, a dict; None if one of them is the same for all images.
    """
    _, places, of_scores = np.intersect1d(indices, scores.index, return_indices=True)
    both = [counts[places], scores.per_seed[scores.seeds.index(seed), of_scores]]
    if len(places) < 3 or not all(map(np.ptp, both)):
        return {"images": len(places), "spearman": None, "interval_95": None}

    def correlation(rows, axis=-1):
        ranks = [scipy.stats.rankdata(values[rows], axis=axis) for values in both]
        deviations = [of - of.mean(axis, keepdims=True) for of in ranks]
        products = (deviations[0] * deviations[1]).sum(axis)
        lengths = [np.sqrt(np.square(of).sum(axis)) for of in deviations]
        # a resample of equal counts has no correlation
        return products / np.maximum(lengths[0] * lengths[1], 1e-9)

    rows = np.arange(len(places))
    interval = bootstrap_interval(correlation, rows)
    return {"images": len(places), "spearman": float(correlation(rows)), "interval_95": interval}


# --- the screen -----------------------------------------------------------------------------------


def print_summary(summary):
    """The UnitsSummary on the screen: a line a layer."""
    of_layers, seeds = summary.over_seeds, list(summary.layers.values())
    measured = [name for name in MEASURED if name in of_layers[ALL]]
    names = {layer: escape(layer)[-LONGEST:] for layer in of_layers}
    width = max(map(len, names.values()))
    over = f"means over {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    say(f"\nUnitMem over {summary.images} images, {over}:")
    differences = [f"f - {name}" for name in ("external", "g") if name in measured]
    columns = " ".join(f"{name:>9}" for name in [*measured, "ClassMem"])
    columns += "".join(f"  {name:<14}" for name in differences).rstrip()
    say(f"{'layer':>{width}} {'units':>6} {'dead':>5} {'signed':>6} {columns}")
    for layer, of in of_layers.items():
        of_f = [of_seed[layer]["f"] for of_seed in seeds]
        units, dead, signed = (
            np.mean([each[key] for each in of_f]) for key in ("units", "dead", "signed")
        )
        classmem = [each["classmem"] for each in of_f if each["classmem"] is not None]
        means = [of.get(name, {"mean": None})["mean"] for name in measured]
        means.append(np.mean(classmem) if classmem else None)
        values = " ".join(f"{'-':>9}" if mean is None else f"{mean:>9.3f}" for mean in means)
        counts = f"{units:>6.0f} {dead:>5.0f} {signed:>6.0f}"
        values += "".join(f"  {_spread(of.get(name)):<14}" for name in differences).rstrip()
        say(f"{names[layer]:>{width}} {counts} {values}")
    say(f"{MEANING}.")
    say("External are as many images that f never saw. Dead and signed units are left out.")
    _print_negative([of_seed[ALL]["f"] for of_seed in seeds])
    if not summary.has_labels:
        say("ClassMem is empty: there are no labelled images of two classes")
    untrained = of_layers[ALL].get("f - untrained")
    say(f"f - untrained of {ALL}: {_spread(untrained)}")
    _print_top_images(summary.top_images)


def _print_negative(of_f):
    """How many units are negative for some image. of_f: of all layers, for every seed."""
    units, negative, signed = (
        sum(of[key] for of in of_f) for key in ("units", "sometimes_negative", "signed")
    )
    if negative:
        some = f"{negative / units:.0%} of the units are negative for some image"
        say(f"{some} and mean less; {signed / units:.0%} are signed: not positive on the whole")


def _print_top_images(top_images):
    over_seeds = top_images["over_seeds"]
    if over_seeds is None:
        return
    words = "units that an image fires most, against its memorization score"
    if over_seeds["n"] == 1:
        of_seed = next(of for of in top_images["per_seed"].values() if of.get("interval_95"))
        low, high = of_seed["interval_95"]
        interval = f"95 % interval {low:+.2f} to {high:+.2f}"
        say(f"{words}: rank correlation {of_seed['spearman']:+.2f} ({interval})")
    else:
        seeds = f"over {over_seeds['n']} seeds"
        say(f"{words}: rank correlation {_spread(over_seeds, 2)} {seeds}")


def _spread(of, digits=3):
    """A dict of `mean_and_spread` as a text, None as a dash."""
    if of is None:
        return "-"
    text = f"{of['mean']:+.{digits}f}"
    return text if of["std"] is None else f"{text} ± {of['std']:.{digits}f}"
