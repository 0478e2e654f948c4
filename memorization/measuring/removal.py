"""Removal: which samples to remove from f's training set, and the reduced training sets."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pydantic
import torch
from pydantic import Field

from memorization.data.subsets import load_subsets, save_subsets
from memorization.errors import WrongUse, escape
from memorization.fields import Distinct
from memorization.machine.files import exists
from memorization.machine.screen import say
from memorization.measuring.removal_order import (
    DRAWN,
    RankedSamples,
    distances_to_centres,
    duplicate_groups,
    removal_order,
    remove_in_order,
)
from memorization.measuring.representations import encode_images, raw_pixels
from memorization.results import MeasurementSettings

BEYOND_CHANCE = 0.1  # q below which a sample counts as memorized


class RemovalSettings(MeasurementSettings):
    counts: Annotated[list[Annotated[int, Field(ge=1)]], Distinct] = Field(
        [], description="how many samples to remove from f's training set"
    )
    percentages: Annotated[list[Annotated[float, Field(gt=0, lt=100)]], Distinct] = Field(
        [], description="the same as shares of the ranked samples, in per cent"
    )
    policies: Annotated[
        list[Literal["memorized", "least", "random", "random_matched", "typical"]],
        Field(min_length=1),
        Distinct,
    ] = Field(
        ["memorized", "random"],
        description="most or least memorized first, by chance, by chance with the classes of the "
        "most memorized, or closest to the centres of clusters of g's representations",
    )
    draws: int = Field(2, ge=1, le=1000, description="draws of each policy with chance in it")
    candidates_only: bool = Field(
        False, description="with shared samples, which have no score: rank the candidates alone"
    )
    fixed_steps: bool = Field(
        True,
        description="train a smaller set for more epochs, as many steps as the whole one takes",
    )
    clusters: int | None = Field(
        None, ge=1, description="typical: clusters of k-means; null for the number of classes"
    )
    group_duplicates: bool = Field(
        False, description="remove near duplicates together, by every policy alike"
    )
    duplicates_in: Literal["pixels", "g"] = Field(
        "pixels", description="near duplicates are found in pixels or in g's representations"
    )
    duplicate_similarity: float = Field(
        0.95,
        gt=0,
        le=1,
        description="cosine similarity from which on two are duplicates, the mean subtracted",
    )

    SCRIPT = "remove_samples.py --retrain"
    BUILT_ON = DETERMINED_BY = ("probe", "scores")

    def determining(self):
        """The names of the settings that determine the numbers of a result."""
        names = ["counts", "percentages", "policies", "fixed_steps", "group_duplicates"]
        names += ["draws"] if set(DRAWN) & set(self.policies) else []
        names += ["clusters"] if "typical" in self.policies else []
        return names + (["duplicates_in", "duplicate_similarity"] if self.group_duplicates else [])


@dataclass(frozen=True)
class Removal:
    """A number of samples that a policy removes from f's training set. draw: of chance, from 0.

    place: in the run folder, of reduced sets and of the encoders that are trained on them; None if
    nothing is removed and the encoder is f itself.
    """

    policy: str
    count: int
    draw: int
    place: str | None = "removal"

    @property
    def name(self):
        return f"{self.policy}_{self.count}_draw{self.draw}"

    def folder_in(self, run):
        """The run folder of the encoders that are trained on the reduced set. run: that of f."""
        return Path(run) if self.place is None else Path(run) / self.place / self.name

    def subset_file_in(self, run):
        """The file of the reduced set. run: the run folder of f."""
        return Path(run) / self.place / "subsets" / f"{self.name}.npz"


NOTHING = Removal("none", 0, 0, place=None)


class BeyondChance(pydantic.BaseModel):
    """Of a Summary: numbers of samples whose scores have a q below `q`: among all ranked ones, and
    among the removed, {policy: {count: mean over draws}}.
    """

    q: float
    ranked: int
    removed: dict[str, dict[int, float]]


# --- what is removed ------------------------------------------------------------------------------


def check_shared(subsets, settings):
    """Raise WrongUse if there are shared samples, which have no score, unless the candidates alone
    are to be ranked.
    """
    shared = len(subsets.shared)
    if shared and not settings.candidates_only:
        no_score = f"{shared} samples trained both encoders and have no score"
        train, alone = "disjoint halves (configs/removal_demo.yaml: subsets.shared 0)", "candidates"
        if subsets.scheme == "crossover":
            train, alone = "a crossover without them (subsets.shared 0)", "pool"
        option = f"rank the {alone} alone with --removal.candidates_only true"
        raise WrongUse(f"subsets.shared: {no_score}; train {train}, or {option}")


def place_of_sets(scores, run):
    """The place of a Removal by the scores in a folder of the run: "removal", or a folder in it if
    the scores are of other settings or seeds than those of config.yaml and have one of their own.
    """
    name = scores.relative_to(run / "scores")
    return f"removal/scores_{name}" if name.parts else "removal"


def rank_candidates(scores, candidates, folder):
    """The RankedSamples of f's candidates, or of the pool. Raises WrongUse if some have no score.

    scores: CandidateScores; candidates: (N,) indices in the order of the training set; folder: of
    the scores, for messages.
    """
    places = {index: place for place, index in enumerate(scores.index.tolist())}
    missing = [index for index in candidates.tolist() if index not in places]
    if missing:
        without = f"{len(missing)} of {len(candidates)} candidates have no score"
        raise WrongUse(f"{folder}: {without}; score all (scores.per_subset null)")
    order = [places[index] for index in candidates.tolist()]
    arrays = (values[order] for values in (scores.index, scores.label, scores.score))
    return RankedSamples(*arrays, scores.seeds, q=scores.q[order])


def plan_removals(samples, subsets, settings, place):
    """Every Removal of the settings: policy by policy, count by count, and draw by draw if the
    policy has chance in it. In a crossover that of nothing comes first, as no encoder of the run
    was trained on the whole pool. Raises WrongUse if the samples do not allow one.

    samples: RankedSamples; subsets: of the run; settings: RemovalSettings; place: see Removal.
    """
    counts = _removed_counts(len(samples), settings)
    if "random_matched" in settings.policies and (samples.label < 0).any():
        raise WrongUse("removal.policies: random_matched needs labels, but some samples have none")
    by_g = settings.group_duplicates and settings.duplicates_in == "g"
    if by_g and subsets.scheme == "crossover":
        trained = "every encoder of a crossover was trained on half of the pool"
        raise WrongUse(f"removal.duplicates_in: g is not allowed: {trained}; take pixels")
    if "typical" in settings.policies and (settings.clusters or 1) >= len(samples):
        too_many = f"{settings.clusters} is not allowed: there are {len(samples)} ranked samples"
        raise WrongUse(f"removal.clusters: {too_many}")
    removals = [Removal("none", 0, 0, place)] if subsets.scheme == "crossover" else []
    for policy in settings.policies:
        for count in counts:
            draws = settings.draws if policy in DRAWN else 1
            removals += [Removal(policy, count, draw, place) for draw in range(draws)]
    return removals


def _removed_counts(available, settings):
    """The numbers of samples to remove: `counts`, then `percentages`, each number once."""
    counts = list(settings.counts)
    for share in settings.percentages:
        counts.append(round(available * share / 100))
        if not 1 <= counts[-1] < available:
            outside = f"of {available} ranked samples that is {counts[-1]}"
            raise WrongUse(f"removal.percentages: {share} is not allowed: {outside}")
    if not counts:
        example = "give counts, such as [500, 1000], or percentages"
        raise WrongUse(f"removal.counts: nothing to remove; {example}")
    if max(counts) >= available:
        refused = f"{max(counts)} is not allowed"
        not_all = f"of {available} ranked samples not all can be removed"
        raise WrongUse(f"removal.counts: {refused}: {not_all}")
    return list(dict.fromkeys(counts))


def compare_samples(samples, pairs, subsets, images, settings):
    """RankedSamples with the groups of near duplicates and the typicality that the settings need.

    Samples are compared in pixels, or by encoders that were not trained on them, whose memory is
    not measured. pairs: the Pairs of some seeds; subsets: of the run; images: Images; settings:
    RemovalSettings.
    """
    if settings.group_duplicates:
        g = pairs[0].g
        encoder = raw_pixels(g) if settings.duplicates_in == "pixels" else g
        groups = _group_near_duplicates(_represent(samples.index, encoder, images), settings)
        samples = replace(samples, groups=groups)
    if "typical" in settings.policies:
        clusters = settings.clusters or len(images.classes)
        try:
            distances = [_typicality(samples, pair, subsets, images, clusters) for pair in pairs]
        except ValueError as error:
            raise WrongUse(f"removal.clusters: {error}") from None
        samples = replace(samples, typicality=np.mean(distances, axis=0))
    return samples


def _typicality(samples, pair, subsets, images, clusters):
    """The distance of each sample from the centre of its cluster, (N,), by the encoder of a pair
    that was not trained on it. The samples of each encoder are clustered by themselves.
    """
    has_f = np.isin(samples.index, subsets.of_seed(pair.seed).candidate)
    distances = np.empty(len(samples))
    for rows, encoder in ((has_f, pair.g), (~has_f, pair.f)):
        if rows.any():
            values = _represent(samples.index[rows], encoder, images)
            distances[rows] = distances_to_centres(values, clusters, seed=0)
    return distances


def _represent(index, encoder, images):
    """Representations of training images, (n, D), computed on a CPU to be equal on all machines."""
    rows = torch.from_numpy(index)
    return encode_images(encoder, images.train, rows, torch.device("cpu")).numpy()


def _group_near_duplicates(values, settings):
    """The group of near duplicates of every sample, (N,). Their number is printed."""
    try:
        groups = duplicate_groups(values, settings.duplicate_similarity)
    except ValueError as error:
        raise WrongUse(f"removal.duplicate_similarity: {error}") from None
    sizes = np.bincount(groups)
    duplicates = sizes[sizes > 1]
    hold = f"hold {duplicates.sum()} of {len(groups)} samples, at most {sizes.max()} each"
    say(f"{len(duplicates)} groups of near duplicates {hold}")
    return groups


def count_beyond_chance(removals, samples):
    """How many of the samples that each Removal removes have q < .1, a BeyondChance."""
    is_beyond = samples.q < BEYOND_CHANCE
    draws = {}  # {policy: {count: the numbers of its draws}}
    for removal in filter(lambda removal: removal.count, removals):
        counts = draws.setdefault(removal.policy, {})
        removed = _removed_positions(removal, samples)
        counts.setdefault(removal.count, []).append(is_beyond[removed].sum())
    means = {
        policy: {count: float(np.mean(numbers)) for count, numbers in counts.items()}
        for policy, counts in draws.items()
    }
    return BeyondChance(q=BEYOND_CHANCE, ranked=int(is_beyond.sum()), removed=means)


def _print_beyond_chance(beyond, available):
    """A line for every policy. beyond: a BeyondChance; available: the number of ranked samples."""
    memorized = f"{beyond.ranked} of {available} ranked samples are memorized beyond chance"
    say(f"{memorized} (q < {beyond.q}); of the removed:")
    for policy, counts in beyond.removed.items():
        shares = [f"{number:.4g} of {count}" for count, number in counts.items()]
        say(f"{policy.replace('_', ', '):>18}  {', '.join(shares)}")


# --- reduced training sets ------------------------------------------------------------------------


def whole_set(subsets):
    """The Subsets of the encoder from whose training set samples are removed: of f alone, or, in a
    crossover, of an encoder of the whole pool.
    """
    nobody = np.empty(0, dtype=np.int64)
    whole = {"role": "candidate", "scheme": "fixed", "blocks": None}
    return replace(subsets, independent=nobody, **whole)


def write_reduced_sets(removals, samples, subsets, settings, run):
    """Write a file of Subsets for each Removal: what is left of f's training set, and what it was
    made from. Returns the BeyondChance of what is removed, which is printed.

    samples: RankedSamples; subsets: of the run; settings: RemovalSettings; run: the run folder.
    Raises WrongUse, before anything is written, if groups do not add up to a count, or if an
    encoder was retrained on another set.
    """
    parents = _parents(samples, subsets, settings)
    reduced_sets = {}
    for removal in removals:
        reduced = _reduce(subsets, removal, samples)
        reduced_sets[removal] = replace(reduced, parents=parents)
        _check_retrained(removal, reduced_sets[removal], run)
    for removal, reduced in reduced_sets.items():
        save_subsets(reduced, removal.subset_file_in(run))
    folder = removals[0].subset_file_in(run).parent
    say(f"{len(removals)} training sets are in {escape(folder)}")
    beyond = count_beyond_chance(removals, samples)
    _print_beyond_chance(beyond, len(samples))
    return beyond


def _parents(samples, subsets, settings):
    """What reduced sets are made from, {name: fingerprint or settings}."""
    indices, scores = samples.index.astype("<i8"), samples.score.astype("<f8")
    near_duplicates = None
    if samples.groups is not None:
        keys = {"duplicates_in", "duplicate_similarity"}
        near_duplicates = settings.model_dump(include=keys)
    return {
        "subsets": subsets.fingerprint,
        "scores": hashlib.sha256(indices.tobytes() + scores.tobytes()).hexdigest(),
        "near_duplicates": near_duplicates,
    }


def _reduce(subsets, removal, samples):
    """The whole_set without the samples of a Removal."""
    removed, whole = _removed_positions(removal, samples), whole_set(subsets)
    return replace(whole, candidate=np.delete(whole.candidate, removed))


def _removed_positions(removal, samples):
    """Which of the RankedSamples a Removal removes, (count,) int64."""
    if not removal.count:
        return np.empty(0, dtype=np.int64)
    order = removal_order(removal.policy, samples, removal.count, removal.draw)
    try:
        return remove_in_order(order, removal.count, samples.groups)
    except ValueError as error:
        unreachable = f"{removal.count} cannot be reached by {removal.policy}"
        raise WrongUse(f"removal.counts: {unreachable}: {error}") from None


def _check_retrained(removal, reduced, run):
    """Raise WrongUse if an encoder was trained on another set, or another set was written."""
    trained = removal.folder_in(run) / "subsets.npz"
    if exists(trained) and load_subsets(trained).fingerprint != reduced.fingerprint:
        other = "trained on another set than scores and settings now give"
        raise WrongUse(f"{trained.parent}: {other}; delete it to train it again")
    file = removal.subset_file_in(run)
    if exists(file) and load_subsets(file).fingerprint != reduced.fingerprint:
        other = "made from other scores or settings than these"
        raise WrongUse(f"{file}: {other}; delete {file.parent} to make all anew")
