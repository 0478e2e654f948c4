"""Scores of the four subsets: which images are scored, the table of their scores, and its files."""

import csv
import io
from dataclasses import dataclass

import numpy as np
import scipy

from memorization.alignment import memorization_score
from memorization.data.subsets import SUBSETS, first_by_hash
from memorization.measuring.calibration import against_external, standard_errors
from memorization.measuring.scores import ImageScores, score_images

FORMAT = "memorization scores 1"  # of summary.json and scores.npz
COLUMNS = [
    "index", "split", "subset", "label", "alignment_loss_f", "alignment_loss_g", "score",
    "score_range", "score_ratio", "stderr", "stderr_views", "p", "q", "score_local", "p_local",
    "q_local",
]  # fmt: skip
# Of scores.npz.
ARRAYS = ("index", "split", "subset", "label", "L_f", "L_g", "jackknife", "sign", "local_offset")


def rows_to_score(subsets, images, per_subset):
    """The images to score, in subset order, then by index: a dict of (N,) arrays index, split,
    subset and label; of images in files also file, their names.
    """
    chosen = {
        subset: first_by_hash(getattr(subsets, subset), per_subset, split)
        for subset, split in SUBSETS.items()
    }
    return rows_of_images(chosen, images)


def rows_of_images(chosen, images):
    """The same of chosen images, {subset: (n,) indices}."""
    rows = {"index": [], "split": [], "subset": [], "label": []}
    rows |= {} if images.train.names is None else {"file": []}
    for subset, split in SUBSETS.items():
        indices = np.sort(chosen[subset])
        rows["index"].append(indices)
        rows["split"].append(np.full(len(indices), split))
        rows["subset"].append(np.full(len(indices), subset))
        rows["label"].append(getattr(images, split).labels.numpy()[indices])
        if "file" in rows:
            names = getattr(images, split).names
            rows["file"].append(np.array([names[index] for index in indices], dtype=object))
    return {name: np.concatenate(parts) for name, parts in rows.items()}


def score_rows(pair, images, rows, recipes, scoring):
    """The ImageScores of rows by one pair; see `score_images`.

    images: Images on the device. rows: of `rows_to_score`, those of the training set first.
    """
    parts = []
    for split in (images.train, images.test):
        indices = rows["index"][rows["split"] == split.name]
        parts.append(score_images(pair.f, pair.g, split, indices, recipes, scoring))
    names = ("loss_f", "loss_g", "error")
    return ImageScores(*(np.concatenate([getattr(part, n) for part in parts]) for n in names))


def signs_of(rows, subsets, seed):
    """The sign of L_g - L_f in the score of each row by the pair of a seed, (N,) int64; see
    `Subsets.signs`.
    """
    signs = np.empty(len(rows["index"]), dtype=np.int64)
    for subset in SUBSETS:
        of_subset = rows["subset"] == subset
        signs[of_subset] = subsets.signs(subset, rows["index"][of_subset], seed)
    return signs


@dataclass(frozen=True, eq=False)
class ScoredSeed:
    """The rows as the pair of one seed scores them."""

    scores: ImageScores
    signs: np.ndarray  # (N,) int64, 1 if f counts as the encoder with the image, -1 if g does
    local_offset: np.ndarray  # (N,) float64, of L_g - L_f; see `local_offsets`
    explained: float  # share of the variance of S_E's L_g - L_f that the local offset explains


def table_of_scores(rows, seeds):
    """All that is known of every row: a dict of (N,) arrays, and per seed "L_f", "L_g",
    "jackknife", "sign", "local_offset", and the scores "per_seed" and "per_seed_local", (S, N).

    seeds: the ScoredSeed of each. Losses and scores are means over the seeds. alignment_loss_f is
    that of the encoder with the image, alignment_loss_g that of the one without it; in a crossover
    these are f and g for half of the images of a seed, and g and f for the others. stderr: of the
    whole score, see `standard_errors`; stderr_views: of the choice of views alone. p, q: see
    `against_external`. score_local is the score less what S_E images of its kind score.
    """
    losses_f = np.stack([seed.scores.loss_f for seed in seeds])  # (S, N)
    losses_g = np.stack([seed.scores.loss_g for seed in seeds])
    errors = np.stack([seed.scores.error for seed in seeds])
    signs = np.stack([seed.signs for seed in seeds])
    offsets = np.stack([seed.local_offset for seed in seeds])
    losses_with = np.where(signs > 0, losses_f, losses_g)
    losses_without = np.where(signs > 0, losses_g, losses_f)
    per_seed = memorization_score(losses_with, losses_without)
    loss_f, loss_g = losses_with.mean(0), losses_without.mean(0)
    per_seed_local = per_seed - signs * offsets
    score, score_local = memorization_score(loss_f, loss_g), per_seed_local.mean(0)
    p, q = against_external(score, rows["subset"])
    p_local, q_local = against_external(score_local, rows["subset"])
    span = score.max() - score.min() or 1.0  # f against itself: every score is 0
    sums = losses_g + losses_f
    ratios = np.divide(per_seed, sums, out=np.zeros_like(per_seed), where=sums > 0)
    return rows | {
        "alignment_loss_f": loss_f,
        "alignment_loss_g": loss_g,
        "score": score,
        "score_range": score / span,
        "score_ratio": ratios.mean(0),
        "stderr": standard_errors(per_seed, rows["subset"]),
        "stderr_views": np.sqrt(np.square(errors).sum(0)) / len(seeds),
        "p": p,
        "q": q,
        "score_local": score_local,
        "p_local": p_local,
        "q_local": q_local,
        "L_f": losses_f,
        "L_g": losses_g,
        "jackknife": errors,
        "sign": signs,
        "local_offset": offsets,
        "per_seed": per_seed,
        "per_seed_local": per_seed_local,
    }


def files_of(table):
    """{name: bytes} of scores.csv, scores.npz and scores.mat. table: of `table_of_scores`.

    scores.csv alone has the names of files, byte for byte as the system has them.
    """
    text = csv_of(table, COLUMNS)
    table = {name: values for name, values in table.items() if name != "file"}
    arrays, matlab = io.BytesIO(), io.BytesIO()
    np.savez(arrays, **{name: table[name] for name in ARRAYS})
    as_cells = {name: table[name].astype(object) for name in ("split", "subset")}
    scipy.io.savemat(matlab, table | as_cells, oned_as="column")
    return {
        "scores.csv": text,
        "scores.npz": arrays.getvalue(),
        "scores.mat": matlab.getvalue(),
    }


def csv_of(table, columns):
    """The bytes of a CSV file of some columns of a table, and of file, if it is there."""
    text, columns = io.StringIO(), columns + [name for name in ("file",) if name in table]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(table[column].tolist() for column in columns)))
    return text.getvalue().encode(errors="surrogateescape")
