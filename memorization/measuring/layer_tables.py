"""Memorization by layer: which images are measured, the table of their ratios, and its files."""

import csv
import io
from dataclasses import dataclass

import numpy as np

from memorization.alignment import memorization_score
from memorization.data.subsets import SUBSETS, first_by_hash
from memorization.errors import WrongUse
from memorization.machine.screen import say
from memorization.measuring.layer_summary import FREE
from memorization.measuring.layers import FEWEST, align_layers, watch_pair
from memorization.measuring.score_tables import rows_of_images, signs_of
from memorization.measuring.scores import check_chance

TENTH = 10
EXTREMES = ("most", "least")  # memorized candidates, beside the subsets
LEAST = 2  # images, of which a mean has an error
COLUMNS = [
    "layer", "subset", "n", "layermem", "delta", "stderr", "depth", "low", "high", "std_seeds",
]  # fmt: skip


def rows_to_measure(subsets, images, settings, scores=None):
    """The images to measure, in subset order, then by index: the dict of (N,) arrays of
    `rows_of_images`, with bool arrays is_sampled, is_most and is_least.

    settings: LayerSettings; scores: the CandidateScores by which the most and the least memorized
    tenth are chosen, None if there are none. is_sampled: the first of each subset by hash; other
    rows are of the most or the least memorized alone. Raises WrongUse if there are fewer candidates
    or external images than FEWEST.
    """
    for subset in FREE:
        count = len(getattr(subsets, subset))
        if count < FEWEST:
            too_few = f"there are {count} {subset} images"
            raise WrongUse(f"layers: {too_few}, and a mean over fewer than {FEWEST} says nothing")
    sampled = {
        subset: first_by_hash(getattr(subsets, subset), settings.images, split)
        for subset, split in SUBSETS.items()
    }
    sampled = {subset: _leave_out_few(subset, indices) for subset, indices in sampled.items()}
    extremes = {name: np.array([], dtype=np.int64) for name in EXTREMES}
    if scores is not None:
        count = min(settings.images, len(scores.index) // TENTH)
        by_score = scores.index[np.argsort(-scores.score, kind="stable")]
        extremes["most"] = _leave_out_few("most", by_score[:count])
        extremes["least"] = _leave_out_few("least", by_score[len(by_score) - count :])
    candidates = np.concatenate([sampled["candidate"], *extremes.values()])
    rows = rows_of_images(sampled | {"candidate": np.unique(candidates)}, images)
    is_candidate = rows["subset"] == "candidate"
    in_sample = ~is_candidate | np.isin(rows["index"], sampled["candidate"])
    chosen = {
        f"is_{name}": is_candidate & np.isin(rows["index"], indices)
        for name, indices in extremes.items()
    }
    return rows | {"is_sampled": in_sample} | chosen


def _leave_out_few(name, indices):
    """The indices, or none, after a line that says so, if they are too few."""
    if len(indices) >= LEAST:
        return indices
    if len(indices) or name in EXTREMES:
        say(f"layers: {name}: left out: {len(indices)} images are too few for a mean")
    return indices[:0]


def members_of(rows):
    """{name: (N,) bool} of the subsets that there are, and of the most and the least memorized."""
    members = {}
    for subset in SUBSETS:
        members[subset] = (rows["subset"] == subset) & rows["is_sampled"]
        if subset == "candidate":
            members |= {name: rows[f"is_{name}"] for name in EXTREMES}
    return {name: is_member for name, is_member in members.items() if is_member.any()}


@dataclass(frozen=True, eq=False)
class MeasuredSeed:
    """The rows as the pair of one seed aligns them at L layers."""

    losses: np.ndarray  # (2, N, L) float64, alignment losses of f and of g
    signs: np.ndarray  # (N,) int64, 1 if f counts as the encoder with the image, -1 if g does
    names: list  # of the layers, from input to output
    depths: list  # the place of each layer among all of the network, from 1


def measure_seed(pair, images, rows, subsets, settings, views):
    """The MeasuredSeed of one pair.

    images: Images on the device; rows: of `rows_to_measure`, those of the training set first;
    settings: LayerSettings; views: (recipes, Scoring) of the views of its images. Raises WrongUse
    if an encoder has all views alike at all layers.
    """
    watched, parts = watch_pair(pair, settings, images.train, *views), []
    for split in (images.train, images.test):
        indices = rows["index"][rows["split"] == split.name]
        if len(indices):
            parts.append(align_layers(watched, split, indices, *views))
    losses = np.concatenate(parts, axis=1)
    for encoder, of_encoder in zip(pair, losses):
        if settings.names is not None and not of_encoder.any():
            alike = f"{encoder.place}: all views are alike at {', '.join(watched[0].names)}"
            raise WrongUse(f"layers.names: {alike}")
        check_chance(encoder, of_encoder)
    signs = signs_of(rows, subsets, pair.seed)
    return MeasuredSeed(losses, signs, watched[0].names, watched[0].depths)


@dataclass(frozen=True, eq=False)
class LayerTable:
    """What is known of N images at L layers.

    rows: of `rows_to_measure`; members: of `members_of`; names, depths: of the layers; losses_f,
    losses_g: (S, N, L); signs: (S, N); per_seed: (S, N, L), the ratios of every seed, (L_g - L_f) /
    (L_g + L_f), its sign turned if g counts as the encoder with the image; 0 if both losses are.
    """

    rows: dict
    members: dict
    names: list
    depths: list
    losses_f: np.ndarray
    losses_g: np.ndarray
    signs: np.ndarray
    per_seed: np.ndarray

    @property
    def ratios(self):
        """(N, L), means over the seeds."""
        return self.per_seed.mean(0)


def table_of_layers(rows, seeds):
    """The LayerTable of rows. seeds: the MeasuredSeed of each."""
    losses_f, losses_g = (np.stack([seed.losses[role] for seed in seeds]) for role in (0, 1))
    signs = np.stack([seed.signs for seed in seeds])
    differences = signs[:, :, None] * memorization_score(losses_f, losses_g)
    sums = losses_g + losses_f
    ratios = np.divide(differences, sums, out=np.zeros_like(sums), where=sums > 0)
    return LayerTable(
        rows, members_of(rows), seeds[0].names, seeds[0].depths, losses_f, losses_g, signs, ratios
    )


def files_of(table, subsets, seeds):
    """{name: bytes} of layers.csv and layers.npz. table: a LayerTable; subsets: of `summarize`;
    seeds: of the pairs, a list.

    layers.npz has index, split, subset, label, is_sampled, is_most and is_least, (N,) each; layers
    and depths, (L,); seeds, (S,); the alignment losses L_f and L_g, (S, N, L), raw; sign, (S, N);
    and ratio, (N, L), the mean over the seeds. See `rows_to_measure` and LayerTable.
    """
    arrays = {name: values for name, values in table.rows.items() if name != "file"}
    arrays |= {"layers": np.array(table.names), "depths": np.array(table.depths)}
    arrays |= {
        "seeds": np.array(seeds),
        "L_f": table.losses_f,
        "L_g": table.losses_g,
        "sign": table.signs,
    }
    content = io.BytesIO()
    np.savez(content, **arrays, ratio=table.ratios)
    return {"layers.csv": _csv_of(table, subsets), "layers.npz": content.getvalue()}


def _csv_of(table, subsets):
    """The bytes of layers.csv: a row for each subset and layer."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for subset, values in subsets.items():
        of_layers = {"layer": table.names, "depth": table.depths}
        n_layers = len(table.names)
        of_layers |= {"subset": [subset] * n_layers, "n": [values["n"]] * n_layers}
        of_layers |= {name: values[name] for name in COLUMNS if name not in of_layers}
        writer.writerows(zip(*(of_layers[name] for name in COLUMNS)))
    return text.getvalue().encode()
