"""What summary.json says of memorization by layer: every layer, its growth with depth, and the
attentions and perceptrons of transformers.
"""

import numpy as np
import scipy

from memorization.data.subsets import SUBSETS
from memorization.results import Checkpoint, Summary
from memorization.significance import percentile_interval, resampled_means

FORMAT = "memorization by layer 1"  # of summary.json and layers.npz
MEANING = (
    "LayerMem: mean over images of (L_g - L_f) / (L_g + L_f) at a layer; external images show the "
    "offset of these pairs; the most and the least memorized were chosen by scores of these same "
    "encoders and views, so their last layers are far from 0 by choice"
)
# Resampled each by a seed of its own: whether there are scores changes no other interval.
RESAMPLED = (*SUBSETS, "most", "least")
FREE = ("candidate", "external")  # the mean of the first less that of the second
FREE_OF_OFFSET = " - ".join(FREE)
ATTENTIONS = (
    "attention",
    "attn",
    "self_attention",
    "self_attn",
)  # in the names of layers of a block


class LayersSummary(Summary):
    """summary.json of layer_memorization.py. L layers, S seeds; lists of layers are in the order of
    `layers`.

    depths: the place of each layer among all of the network, from 1. subsets: {name: what
    `describe_layers` gives}. free_of_the_offset: LayerMem of candidates less that of external
    images. growth: {subset: what `growth_of` gives}. blocks: {subset: what `compare_parts` gives},
    empty if the encoder is no transformer. chosen_by: hash of the scores by which the most and the
    least memorized were chosen.
    """

    format: str
    meaning: str
    seeds: list[int]
    layers: list[str]
    depths: list[int]
    subsets: dict[str, dict]
    free_of_the_offset: dict
    growth: dict[str, dict]
    blocks: dict[str, dict]
    chosen_by: str | None
    checkpoint: Checkpoint
    settings: dict
    fingerprints: dict
    machine: dict
    seconds: float
    images_per_second: float


def summarize(table):
    """The statistics of summary.json, a dict of plain types. table: a LayerTable."""
    subsets, growth, blocks, resampled = {}, {}, {}, {}
    found = find_blocks(table.names, table.depths)
    for name, is_member in table.members.items():
        per_seed = table.per_seed[:, is_member]
        resampled[name] = resampled_means(per_seed.mean(0), seed=RESAMPLED.index(name))
        subsets[name] = describe_layers(per_seed, resampled[name])
        means = np.array(subsets[name]["per_seed"])
        growth[name] = growth_of(table.depths, means, resampled[name])
        if found:
            blocks[name] = compare_parts(per_seed, resampled[name], found)
    free, of_seeds, resamples = _less_external(subsets, resampled)
    growth[FREE_OF_OFFSET] = growth_of(table.depths, of_seeds, resamples)
    return {
        "layers": table.names,
        "depths": table.depths,
        "subsets": subsets,
        "free_of_the_offset": free,
        "growth": growth,
        "blocks": blocks,
    }


def describe_layers(per_seed, resampled):
    """What is known of every layer over n images, a dict of lists (L,) of plain numbers.

    layermem: mean of the ratios; delta: LayerMem less that of the measured layer before, None for
    the first; stderr, stderr_delta: of both, over images; low, high: 95 % bootstrap interval of
    LayerMem over images; std_seeds: over the seeds, None for one; per_seed: LayerMem of every seed,
    (S, L). per_seed: (S, n, L) ratios; resampled: of their means over the seeds.
    """
    ratios, of_seeds = per_seed.mean(0), per_seed.mean(1)
    n, layermem, steps = len(ratios), ratios.mean(0), np.diff(ratios, axis=1)
    low, high = percentile_interval(resampled)
    return {
        "n": n,
        "layermem": layermem.tolist(),
        "delta": [None, *np.diff(layermem).tolist()],
        "stderr": _standard_errors(ratios),
        "stderr_delta": [None, *_standard_errors(steps)],
        "low": low.tolist(),
        "high": high.tolist(),
        "std_seeds": _spread_over_seeds(of_seeds),
        "per_seed": of_seeds.tolist(),
    }


def _standard_errors(values):
    """Of the means over n images. values: (n, L). Returns a list."""
    return (values.std(0, ddof=1) / np.sqrt(len(values))).tolist()


def _spread_over_seeds(of_seeds):
    """The standard deviation over seeds, a list; of Nones for a single seed. of_seeds: (S, L)."""
    several = len(of_seeds) > 1
    return of_seeds.std(0, ddof=1).tolist() if several else [None] * of_seeds.shape[1]


def _less_external(subsets, resampled):
    """LayerMem of candidates less that of external images, free of the offset of a pair: a dict of
    lists (L,) of plain numbers; the same of every seed, (S, L); and of resamples.
    """
    of_seeds, resamples = (
        np.subtract(*(of[name] for name in FREE))
        for of in ({name: subsets[name]["per_seed"] for name in FREE}, resampled)
    )
    low, high = percentile_interval(resamples)
    free = {
        "value": of_seeds.mean(0).tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "std_seeds": _spread_over_seeds(of_seeds),
    }
    return free, of_seeds, resamples


# --- growth with depth ----------------------------------------------------------------------------


def growth_of(depths, of_seeds, resampled):
    """Does LayerMem grow with depth? Spearman's correlation of both over the layers, with its 95 %
    bootstrap interval over images, and that of every seed: a dict. NaN if all layers are alike.

    depths: (L,); of_seeds: (S, L); resampled: (resamples, L).
    """
    spearman = rank_correlations(depths, np.concatenate([of_seeds.mean(0)[None], of_seeds]))
    known = rank_correlations(depths, resampled)
    low, high = percentile_interval(known) if not np.isnan(known).any() else (np.nan, np.nan)
    return {
        "spearman": float(spearman[0]),
        "interval_95": [float(low), float(high)],
        "per_seed": spearman[1:].tolist(),
    }


def rank_correlations(depths, rows):
    """Spearman's correlation of the depths with every row, (R,); NaN if all of a row are equal.
    depths: (L,); rows: (R, L).
    """
    ranks = scipy.stats.rankdata(rows, axis=1)
    x = scipy.stats.rankdata(depths) - (len(depths) + 1) / 2
    y = ranks - (len(depths) + 1) / 2
    norms = np.sqrt((x @ x) * (y * y).sum(1))
    return np.divide(y @ x, norms, out=np.full(len(rows), np.nan), where=norms > 0)


# --- attention and perceptron ---------------------------------------------------------------------


def find_blocks(names, depths):
    """The blocks of a transformer of which all parts and what goes in were measured, a list of
    dicts: block, its name; before, attention, sum and perceptron, places among the layers. names,
    depths: of the layers.
    """
    place_of, blocks = {name: place for place, name in enumerate(names)}, []
    for name in names:
        block, dot, part = name.rpartition(".")
        if part != "attention_sum":
            continue
        inside = [place_of[other] for other in names if other.startswith(f"{block}.")]
        attentions = [
            place_of[f"{block}.{part}"] for part in ATTENTIONS if f"{block}.{part}" in place_of
        ]
        perceptron = place_of.get(f"{block}.mlp")
        first = inside[0]
        # if the layer before the block was not measured, another one stands in its place
        has_input = first > 0 and depths[first - 1] == depths[first] - 1
        if attentions and perceptron is not None and has_input:
            parts = {"attention": attentions[0], "sum": place_of[name], "perceptron": perceptron}
            blocks.append({"block": block, "before": first - 1} | parts)
    return blocks


def compare_parts(per_seed, resampled, blocks):
    """How much LayerMem attention and the perceptron of each block add to what goes into them: LM
    of the attention less that of the block before, LM of the perceptron less that of the sum after
    the attention. A dict of plain types.

    blocks: of every block the name, both deltas and their standard errors over images.
    perceptron_less_attention: mean over the blocks, with its 95 % bootstrap interval over images,
    and of every seed. per_seed: (S, n, L); resampled: (resamples, L); blocks: of `find_blocks`.
    """
    places = {key: [block[key] for block in blocks] for key in blocks[0] if key != "block"}

    def deltas(values):  # (..., L) -> two (..., blocks)
        part = {key: values[..., at] for key, at in places.items()}
        return part["attention"] - part["before"], part["perceptron"] - part["sum"]

    rows = {"block": [block["block"] for block in blocks]}
    for name, values in zip(("attention", "perceptron"), deltas(per_seed.mean(0))):
        rows |= {name: values.mean(0).tolist(), f"stderr_{name}": _standard_errors(values)}
    attention, perceptron = deltas(resampled)
    low, high = percentile_interval((perceptron - attention).mean(1))
    attention, perceptron = deltas(per_seed.mean(1))
    of_seeds = (perceptron - attention).mean(1)
    return {
        "blocks": [dict(zip(rows, values)) for values in zip(*rows.values())],
        "perceptron_less_attention": {
            "value": float(of_seeds.mean()),
            "interval_95": [float(low), float(high)],
            "std_seeds": _spread_over_seeds(of_seeds[:, None])[0],
            "per_seed": of_seeds.tolist(),
        },
    }
