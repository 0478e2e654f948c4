"""The local offset: what images of a kind score although nobody was trained on them.

Two encoders differ by their training sets and by the luck of training, so some kinds of images
score higher than others even in S_E, where nothing can be memorized. This offset is estimated from
S_E, as a function of the representation, and subtracted from the score of every image.
"""

from dataclasses import dataclass

import numpy as np

BLOCK = 1024  # images compared with S_E at a time
# Penalties as shares of the largest eigenvalue. The infinite one predicts the mean of S_E.
PENALTIES = np.append(np.logspace(-6, 1, 29), np.inf)
OUTLIERS_ONE_IN = 200  # images of S_E may be unlike all others
ROUNDING = 1e-12  # of similarities, which are equal between twins


@dataclass(frozen=True, eq=False)
class LocalOffset:
    """A ridge regression from representations to the score of images that were not trained on. See
    `fit_local_offset`.
    """

    left_out: np.ndarray  # (n_E,) float64, prediction for each of S_E without it; NaN if unlike all
    explained: float  # share of S_E's variance; 0 if no kind of image differs
    penalty: float  # inf: the prediction is the mean of S_E
    least_similarity: float  # images less similar than this to all of S_E have no prediction
    external: np.ndarray  # (n_E, D) float64, unit vectors
    center: np.ndarray  # (D,) float64, their mean
    slope: np.ndarray  # (D,) float64
    mean: float  # of the scores of S_E

    def predict(self, representations):
        """The offset of other images, (N,) float64, in the unit and direction of the scores of S_E.
        NaN for images unlike all of S_E.

        representations: (N, D), of the encoder that represented S_E.
        """
        parts = [np.empty(0)]
        for start in range(0, len(representations), BLOCK):
            vectors = _unit_vectors(representations[start : start + BLOCK])
            offset = self.mean + (vectors - self.center) @ self.slope
            offset[(vectors @ self.external.T).max(1) < self.least_similarity] = np.nan
            parts.append(offset)
        return np.concatenate(parts)


def fit_local_offset(representations, differences):
    """Fit the LocalOffset of one pair by ridge regression (Hoerl and Kennard 1970) on S_E.

    representations: (n_E, D) of S_E, by the encoder that was not trained on the images to be
    corrected (g for S_C). They are l2-normalized and centred here. differences: (n_E,), the scores
    of S_E, L_g - L_f. n_E is at least 3.

    The intercept is not penalized. The penalty is the one with the least squared error of
    leave-one-out predictions; the mean of S_E alone is among them. The residual without image i is
    the residual of the fit to all divided by 1 - h_i, h_i the leverage (Allen 1974), so one
    decomposition serves all images and penalties. `explained` is 1 - the error of the leave-one-out
    predictions / the error of the mean of all others, so it is never negative. If there is nothing
    to explain, it is .007 on average for n_E = 64 and .001 for 1,024, as the same images choose the
    penalty.

    An image is unlike all of S_E if its largest cosine similarity to S_E is below those that images
    of S_E have to the others of S_E, with the least of these left aside: one, and one more for
    every 200 images, so that a few oddities in S_E do not stand for all kinds. An image of the kind
    of S_E is unlike all with a probability of 3 % for n_E = 64, .7 % for 1,024 and .5 % for 5,000.
    The rule sees what the encoder sees: it may represent noise much like some images of S_E. Images
    of S_E that are unlike all others of S_E are treated alike: their `left_out` is NaN.

    Raises ValueError for arrays of other shapes or of values that are not finite.
    """
    representations, differences = np.asarray(representations), np.asarray(differences, np.float64)
    count = len(differences)
    if representations.ndim != 2 or differences.shape != (len(representations),) or count < 3:
        shapes = f"{representations.shape} and {differences.shape}"
        raise ValueError(f"(n, D) representations and (n,) differences, n >= 3, not {shapes}")
    if not (np.isfinite(representations).all() and np.isfinite(differences).all()):
        raise ValueError("representations or differences of S_E are not finite")
    external = _unit_vectors(representations)
    center, mean = external.mean(0), differences.mean()
    penalties, residuals, errors = _ridge_path(external - center, differences - mean)
    squared = (errors**2).sum(0)
    best = len(squared) - 1 - np.argmin(squared[::-1])  # of equal ones the largest penalty
    similarities = _similarities_to_others(external)
    least_similarity = np.sort(similarities)[1 + count // OUTLIERS_ONE_IN] - ROUNDING
    left_out = differences - errors[:, best]
    left_out[similarities < least_similarity] = np.nan
    return LocalOffset(
        left_out=left_out,
        explained=float(1 - squared[best] / squared[-1]) if squared[-1] else 0.0,
        penalty=float(penalties[best]),
        least_similarity=float(least_similarity),
        external=external,
        center=center,
        # the normal equations: penalty * slope = vectors^T residuals
        slope=(external - center).T @ (residuals[:, best] / penalties[best]),
        mean=float(mean),
    )


def _ridge_path(vectors, deviations):
    """The penalties (P,), the residuals of a ridge fit with each, and the errors of its
    leave-one-out predictions, (n, P) both.

    vectors: (n, D), deviations: (n,), both centred, so that no intercept is fitted.
    """
    coordinates, eigenvalues = _principal_coordinates(vectors)
    penalties = PENALTIES * max(eigenvalues.max(), np.finfo(np.float64).eps)
    weights = 1 / (eigenvalues[:, None] + penalties)  # (r, P)
    slopes = weights * (coordinates.T @ deviations)[:, None]
    residuals = deviations[:, None] - coordinates @ slopes
    leverages = 1 / len(vectors) + coordinates**2 @ weights  # 1 / n is the intercept's
    return penalties, residuals, residuals / (1 - leverages)


def _unit_vectors(representations):
    """(n, D) -> (n, D) float64, l2-normalized; a representation of zeros stays."""
    vectors = np.asarray(representations, np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


def _principal_coordinates(centred):
    """Coordinates of (n, D) vectors along their principal axes, (n, r), and the eigenvalues (r,),
    r = min(n, D). The smaller matrix of products is decomposed, three times faster than an SVD.
    """
    if len(centred) < centred.shape[1]:
        eigenvalues, axes = np.linalg.eigh(centred @ centred.T)
        eigenvalues = eigenvalues.clip(min=0)
        return axes * np.sqrt(eigenvalues), eigenvalues
    eigenvalues, axes = np.linalg.eigh(centred.T @ centred)
    return centred @ axes, eigenvalues.clip(min=0)


def _similarities_to_others(vectors):
    """The largest cosine similarity of each of (n, D) unit vectors to another of them, (n,)."""
    largest = np.empty(len(vectors))
    for start in range(0, len(vectors), BLOCK):
        part = vectors[start : start + BLOCK]
        similarities = part @ vectors.T  # (b, n)
        own = np.arange(len(part))
        similarities[own, start + own] = -np.inf
        largest[start : start + BLOCK] = similarities.max(1)
    return largest
