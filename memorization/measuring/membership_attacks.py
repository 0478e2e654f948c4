"""Membership attacks: what each makes of the views of an image, a signal that is large if it speaks
for membership.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from memorization.data.augmentations import Draw, augment, whole_images
from memorization.data.randomness import sample_keys, stream
from memorization.data.recipes import ViewRecipe
from memorization.data.subsets import ROLES, SUBSETS
from memorization.errors import WrongUse
from memorization.machine import processes, threads
from memorization.measuring.membership_network import judge_by_networks
from memorization.measuring.scores import align_images
from memorization.normalization import normalize

COMPARED_VIEWS = 10  # whose 45 cosines are the features of EncoderMI-V
LEAST_SEEDS = 4  # of a crossover, for lira
FEW = 32  # losses of an image, below which lira pools the variances over the images
LEAST_VARIANCE = 1e-12
PARTS = 10  # of each image, for crops
PART_SCALE = [0.05, 0.2]  # of the image's area


@dataclass(frozen=True, eq=False)
class Alignment:
    """How one encoder aligns the views of N images.

    loss: (N,) float64, L_align, small means well aligned; error: (N,), its jackknife error over the
    choice of views; cosine: (N,), the mean cosine similarity over all pairs of views; vector:
    (N, P) float32, the cosines of the pairs among the first ten views in ascending order; crops:
    (N,), of `compare_crops`, or None.
    """

    loss: np.ndarray
    error: np.ndarray
    cosine: np.ndarray
    vector: np.ndarray
    crops: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the attacks are made of: S seeds, E encoders of each, f and maybe g, and N images.

    seeds: a list; relation: (S, E, N), "own" if this encoder saw the image and the other one did
    not, "other" the reverse, "shared" if both did, "external" if neither; loss, error, cosine:
    (S, E, N) and vector: (S, E, N, P), see `Alignment`; fold: (N,) bool, two halves of every list:
    a network that is trained on one half judges the other one; crops: (S, E, N) or None.
    """

    seeds: list
    relation: np.ndarray
    loss: np.ndarray
    error: np.ndarray
    cosine: np.ndarray
    vector: np.ndarray
    fold: np.ndarray
    crops: np.ndarray | None = None

    @property
    def is_member(self):
        """Whether each encoder saw each image, (S, E, N) bool."""
        return np.isin(self.relation, ("own", "shared"))


def gather_evidence(alignments, rows, subsets, seeds):
    """The Evidence of Alignments, a list for each seed, of f and maybe g. rows: of
    `rows_to_score`; subsets: of the run.
    """

    def stack(name):
        return np.array([[getattr(one, name) for one in of_seed] for of_seed in alignments])

    roles = ROLES[: len(alignments[0])]
    return Evidence(
        seeds=list(seeds),
        relation=np.array(
            [[relate(rows, subsets, seed, role) for role in roles] for seed in seeds]
        ),
        **{name: stack(name) for name in ("loss", "error", "cosine", "vector")},
        fold=halve(rows)[1],
        crops=None if alignments[0][0].crops is None else stack("crops"),
    )


def relate(rows, subsets, seed, role):
    """What each row is to one encoder, (N,); see `Evidence`. rows: of `rows_to_score`; subsets: of
    the run; role: of the encoder.
    """
    of_seed, relation = subsets.of_seed(seed), np.full(len(rows["index"]), "external")
    other = next(name for name in ROLES if name != role)
    in_training_set = rows["split"] == "train"
    for name, subset in (("own", role), ("other", other), ("shared", "shared")):
        is_of = in_training_set & np.isin(rows["index"], getattr(of_seed, subset))
        relation[is_of] = name
    return relation


def halve(rows):
    """Two ways to halve every subset of rows by hash, (N,) bool each, each half of the one halved
    by the other. rows: of `rows_to_score`.
    """
    keys = np.empty(len(rows["index"]), dtype=np.int64)
    for split in SUBSETS.values():
        is_of = rows["split"] == split
        indices = torch.from_numpy(rows["index"][is_of])
        keys[is_of] = sample_keys(stream(0, "membership", split), indices).numpy()
    place = np.empty(len(keys), dtype=np.int64)
    for subset in SUBSETS:
        is_of = rows["subset"] == subset
        place[is_of] = keys[is_of].argsort().argsort()
    return place % 2 == 0, place // 2 % 2 == 0


# --- what is measured -----------------------------------------------------------------------------


def align_seed(encoders, images, rows, recipes, scoring, attacks):
    """The Alignments of rows under f and maybe g of one seed, a list; see `align_rows`. attacks:
    the names of those that are made.
    """
    aligned = [align_rows(encoder, images, rows, recipes, scoring) for encoder in encoders]
    if "crops" not in attacks:
        return aligned
    crops = [compare_crops(encoder, images, rows, scoring.seed) for encoder in encoders]
    return [replace(one, crops=of_one) for one, of_one in zip(aligned, crops)]


def align_rows(encoder, images, rows, recipes, scoring):
    """The Alignment of rows under one encoder.

    images: Images on the device; rows: of `rows_to_score`, those of the training set first.
    """
    parts = []
    for split in (images.train, images.test):
        indices = rows["index"][rows["split"] == split.name]
        parts.append(align_images(encoder, split, indices, recipes, scoring, measure_cosines))
    loss, error, cosine, *vector = np.concatenate(parts, axis=1)
    return Alignment(loss, error, cosine, np.stack(vector, axis=1).astype(np.float32))


def measure_cosines(distances):
    """The mean cosine of all pairs of views, and the cosines of the pairs among the first ten in
    ascending order, (1 + P, B). distances: (B, V, V), between vectors of length 1.
    """
    V = distances.shape[1]
    first, second = torch.triu_indices(V, V, 1, device=distances.device)
    cosines = 1 - distances[:, first, second].square() / 2  # (B, pairs)
    compared = cosines[:, (first < COMPARED_VIEWS) & (second < COMPARED_VIEWS)]
    return torch.cat([cosines.mean(1)[None], compared.sort(dim=1).values.T])


def compare_crops(encoder, images, rows, seed):
    """How well one encoder finds parts of an image in the map of the whole, (N,) float64: the
    largest cosine similarity of a part's representation to a position of the map, mean over PARTS
    parts (after PartCrop, Zhu et al. 2024).

    Parts are drawn by one recipe and the whole is resized, for all images alike: if members came as
    crops and others whole, the crops alone would tell. The other arguments: see `align_rows`.
    """
    encoder, signals = encoder.to(images.train.device), []
    recipe = ViewRecipe(size=encoder.size, crop_scale=PART_SCALE)
    draw, network = Draw(seed, "membership", patch=encoder.patch), encoder.network

    def tokens(pixels, visible):
        return network.tokens(pixels, visible)

    def pooled(pixels, visible):
        return network(pixels)

    @torch.inference_mode()
    def compare(part):
        split, indices = part
        views = [
            augment(split, indices, recipe, encoder.normalization, draw, view)
            for view in range(PARTS)
        ]
        whole = whole_images(split, indices, encoder.size, encoder.normalization)
        (positions,) = threads.encode_in_parts(tokens, [whole])
        positions = normalize(positions.float(), dim=2)  # (B, T, D)
        of_parts = torch.stack(threads.encode_in_parts(pooled, views), dim=1)
        of_parts = normalize(of_parts.float(), dim=2)  # (B, PARTS, D)
        if of_parts.shape[2] != positions.shape[2]:
            lengths = f"{of_parts.shape[2]} and {positions.shape[2]} dimensions"
            raise WrongUse(f"membership.attacks: crops compares vectors of {lengths}; leave it out")
        return (of_parts @ positions.transpose(1, 2)).amax(2).mean(1).cpu()

    for split in (images.train, images.test):
        indices = torch.from_numpy(rows["index"][rows["split"] == split.name])
        parts = [(split, batch) for batch in indices.split(64)]
        signals += processes.map_in_processes(compare, parts, f"parts by {encoder.name}")
    signals = torch.cat(signals).double().numpy()
    if not np.isfinite(signals).all():
        raise WrongUse(f"{encoder.place}: its representations are not finite")
    return signals


# --- the attacks ----------------------------------------------------------------------------------


def signal_alignment(evidence):
    """-L_align: an image that an encoder saw is aligned better."""
    return -evidence.loss


def signal_threshold(evidence):
    """The mean cosine similarity of views, EncoderMI-T (Liu et al. 2021, arXiv 2108.11023)."""
    return evidence.cosine


def signal_vector(evidence):
    """The logit of a small network on the sorted cosines of ten views, EncoderMI-V.

    It is trained on the other encoder of the pair, whose members and others are known, and used on
    this one; nothing is tuned on this one. Two networks for each: every one is trained on one half
    of all images and judges the other half, as the images of one encoder's list are in the other
    encoder's, too, and a network may know them.
    """
    tasks, places = [], []
    for s, seed in enumerate(evidence.seeds):
        for target, trained in ((0, 1), (1, 0)):
            for half in (0, 1):
                rows = evidence.fold == bool(half)
                vectors, is_member = evidence.vector[s, trained], evidence.is_member[s, trained]
                # the same for f and g, so that exchanged encoders exchange their signals
                of_network = stream(seed, "membership", view=half)
                judged = evidence.vector[s, target][~rows]
                tasks.append((vectors[rows], is_member[rows], judged, of_network))
                places.append((s, target, ~rows))
    signal = np.empty(evidence.loss.shape)
    for place, values in zip(places, judge_by_networks(tasks, "training networks")):
        signal[place] = values
    return signal


def signal_reference(evidence):
    """The loss of the other encoder less that of this one: of f, m(x) of this seed."""
    return evidence.loss[:, ::-1] - evidence.loss


def signal_lira(evidence):
    """log N(L; mu_in, s_in) - log N(L; mu_out, s_out), the likelihood ratio of an image's loss L
    (LiRA, Carlini et al. 2022, arXiv 2112.03570).

    The normals of an image are fitted to its losses by encoders that saw it and that did not, of
    all seeds but the judged one. With few seeds the variances are pooled over the images, as in the
    paper. NaN for shared and external images: no encoder left out the first or saw the second, so
    there is no normal to fit.
    """
    is_own = evidence.relation == "own"  # (S, 2, N)
    in_pool = is_own.any(1).all(0)  # (N,)
    with_it = np.where(is_own[:, 0], evidence.loss[:, 0], evidence.loss[:, 1])[:, in_pool]
    without_it = np.where(is_own[:, 0], evidence.loss[:, 1], evidence.loss[:, 0])[:, in_pool]
    signal = np.full(evidence.loss.shape, np.nan)
    for s in range(len(evidence.seeds)):
        loss = evidence.loss[s][:, in_pool]  # (2, n)
        densities = [_log_normal(loss, np.delete(of, s, axis=0)) for of in (with_it, without_it)]
        signal[s][:, in_pool] = densities[0] - densities[1]
    return signal


def _log_normal(loss, losses):
    """log density of losses (2, n), less a constant, under the normals of images. losses: (K, n),
    to which these are fitted.
    """
    K = len(losses)
    variance = losses.var(0, ddof=1)  # (n,)
    if K < FEW:
        variance = variance.mean()
    variance = np.maximum(variance, LEAST_VARIANCE)
    return -np.square(loss - losses.mean(0)) / (2 * variance) - np.log(variance) / 2


def signal_crops(evidence):
    """How well parts are found in the map of the whole, see `compare_crops`."""
    return evidence.crops


ATTACKS = {
    "alignment": signal_alignment,
    "encodermi_threshold": signal_threshold,
    "encodermi_vector": signal_vector,
    "reference": signal_reference,
    "lira": signal_lira,
    "crops": signal_crops,
}
# Which share of the images count in intervals. The two networks of EncoderMI-V are each trained on
# the images that the other one judges. What the halves of a list differ in by chance misleads both
# alike, so their mean may err as much as one half does.
INDEPENDENT = {"encodermi_vector": 0.5}
BY_DEFAULT = tuple(name for name in ATTACKS if name != "crops")  # it takes as long as all others


def choose_attacks(names, subsets, seeds, encoders):
    """The names of the attacks that are made, and {name: why} of those that cannot be.

    names: those that the settings ask for, or None for all that apply; encoders: of one seed, f and
    maybe g. Raises WrongUse if one that is asked for by its name cannot be made.
    """
    reasons = {}
    if len(encoders) == 1:
        for name in ("encodermi_vector", "reference", "lira"):
            reasons[name] = "needs g, which is not there"
    elif subsets.scheme != "crossover" or len(seeds) < LEAST_SEEDS:
        several = f"needs a crossover of {LEAST_SEEDS} seeds or more"
        has = f"{len(seeds)} seed{'s' * (len(seeds) > 1)}"
        reasons["lira"] = f"{several}, and this is one fixed split"
        if subsets.scheme == "crossover":
            reasons["lira"] = f"{several}, and this has {has}"
    if not hasattr(encoders[0].network, "tokens"):
        reasons["crops"] = "needs an encoder with positions before pooling (tokens)"
    if names is None:
        left_out = {name: reasons[name] for name in BY_DEFAULT if name in reasons}
        return [name for name in BY_DEFAULT if name not in reasons], left_out
    for name in names:
        if name in reasons:
            raise WrongUse(f"membership.attacks: {name} {reasons[name]}")
    return names, {}
