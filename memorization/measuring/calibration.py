"""Calibration: what the score of one image is worth, beside images that nobody trained on."""

import numpy as np
import torch

from memorization.local_offset import fit_local_offset
from memorization.measuring.representations import encode_images
from memorization.significance import p_against, p_within, q_values

LEAST_EXTERNAL = 3  # images of S_E, to which a local offset can be fitted
MOST_UNLIKE = 0.1  # share of candidates without a local score, up to which it ranks them
NORMAL_DEVIATION = 1.4826  # standard deviation of a normal variable by its median distance from 0


def local_offsets(pair, images, rows, signs, scores):
    """What a pair would give each image without any memory of it: (N,) differences L_g - L_f, NaN
    for images unlike all of S_E; and the share of S_E's variance that this explains, a float.

    A ridge regression on representations of whole images, fitted on S_E; the images of S_E
    themselves are predicted by all others of S_E. The representation is that of the encoder without
    the image: g's, and in a crossover f's for the images that g has. images: Images on the device;
    rows: of `rows_to_score`; signs: (N,), of `signs_of`; scores: their ImageScores.
    """
    external = rows["subset"] == "external"
    offsets, explained = np.full(len(external), np.nan), []
    if external.sum() < LEAST_EXTERNAL:
        return offsets, float("nan")
    for encoder, sign in ((pair.g, 1), (pair.f, -1)):
        if not (signs == sign).any():
            continue
        representations = _represent(encoder, images, rows)
        offset = fit_local_offset(representations[external], scores.score[external])
        predictions = np.empty(len(external))
        predictions[external] = offset.left_out
        predictions[~external] = offset.predict(representations[~external])
        offsets = np.where(signs == sign, predictions, offsets)
        explained.append(offset.explained)
    return offsets, float(np.mean(explained))


def _represent(encoder, images, rows):
    """Representations of the rows, seen whole, (N, D) float32; those of the training set first."""
    parts = []
    for split in (images.train, images.test):
        indices = torch.from_numpy(rows["index"][rows["split"] == split.name])
        parts.append(encode_images(encoder, split, indices, split.device))
    return torch.cat(parts).numpy()


def standard_errors(per_seed, subset):
    """How much each mean score would differ in a repetition, with other views and trainings, (N,).

    per_seed: (S, N) scores; subset: (N,) names. Of one seed: the robust standard deviation of the
    scores of S_E about 0, which images in neither training set are expected to score. Of several:
    the spread over seeds, pooled over the images of a subset, over sqrt(S).
    """
    seeds = len(per_seed)
    if seeds == 1:
        noise = NORMAL_DEVIATION * np.median(np.abs(per_seed[0, subset == "external"]))
        return np.full(len(subset), noise)
    errors = np.empty(len(subset))
    for name in np.unique(subset):
        rows = subset == name
        errors[rows] = np.sqrt(per_seed[:, rows].var(0, ddof=1).mean() / seeds)
    return errors


def headline(score_local, subset):
    """The column that single images are ranked by: "score_local", or "score" if more than a tenth
    of the candidates have no local score. docs/validity.md has the reasons.

    score_local: (N,), NaN for none; subset: (N,) names.
    """
    unlike = np.isnan(score_local[subset == "candidate"])
    return "score" if unlike.mean() > MOST_UNLIKE else "score_local"


def against_external(score, subset):
    """(p, q) of each image, (N,) float64 each: how probable a score at least as high is if the
    image was not memorized.

    p: the share of S_E that scores as high, the image itself among them: (1 + number of S_E scores
    >= m) / (1 + n_E). q: Benjamini and Hochberg's, over the candidates; NaN for all others. score:
    (N,), NaN gives NaN; subset: (N,) names.
    """
    external, candidate = subset == "external", subset == "candidate"
    p, q = p_against(score[external], score), np.full(len(score), np.nan)
    p[external] = p_within(score[external])
    q[candidate] = q_values(p[candidate])
    return p, q
