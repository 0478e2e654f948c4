"""Pruning: what a linear probe loses if the units with the highest UnitMem are cut.

If memorization sits in single units, cutting those with the highest UnitMem hurts more than cutting
as many at random, and cutting those with the lowest hurts least (arXiv 2409.19069: on CIFAR-10 the
probe falls from 70.4 % to 53.0, 58.1 and 62.6 %).
"""

import csv
import hashlib
import io
import json
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace

import numpy as np
import pydantic
import torch
from tqdm import tqdm

from memorization.data.randomness import sample_keys, stream
from memorization.errors import WrongUse
from memorization.machine import processes
from memorization.machine.resources import memory_for
from memorization.machine.screen import say
from memorization.measuring.probing import Accuracy, ProbeSettings, open_probed_images, probe
from memorization.results import Number, Spread
from memorization.significance import mean_and_spread, one_sample_test
from models.layers import editing

WHOLE, RANDOM = "nothing", "random"
POLICIES = (WHOLE, "highest", RANDOM, "lowest")
COMPARED = (("highest", RANDOM), ("lowest", RANDOM))
CSV = "pruning.csv"


@dataclass(frozen=True)
class Cut:
    """Units to set to 0. units: {name of a layer: their numbers, (n,) int64, ascending}."""

    policy: str
    draw: int  # of chance, from 0
    units: dict

    @property
    def count(self):
        return sum(map(len, self.units.values()))


@dataclass(frozen=True)
class PruningRow:
    """A row of pruning.csv: the top-1 accuracy of probes on one encoder, mean over their seeds.

    seed: of the encoder; units: how many are cut, in all layers together; dataset: the probed one.
    """

    policy: str
    draw: int
    seed: int
    top_1: float
    units: int
    dataset: str


class PolicySummary(pydantic.BaseModel):
    """Accuracies over the seeds of the run, of each the mean over its draws.

    less_nothing: the same less the accuracy of the whole encoder; std_over_draws: the standard
    deviation between draws, mean over the seeds, None for a single draw.
    """

    top_1: Accuracy
    less_nothing: Spread
    std_over_draws: Number


class PairedDifference(Spread):
    """The difference of two policies, paired over the seeds of the run. t, p: of a two-sided test
    against 0, None for a single seed.
    """

    t: Number = None
    p: Number = None


class PruningSummary(pydantic.BaseModel):
    """Of the units' summary: what probes lose. datasets: {name: {policy: PolicySummary}}; paired:
    {name: {"highest less random": PairedDifference}}; fingerprints: of the probed data sets.
    """

    share: float
    draws: int
    datasets: dict[str, dict[str, PolicySummary]]
    paired: dict[str, dict[str, PairedDifference]]
    fingerprints: dict[str, dict]


# --- what is cut ----------------------------------------------------------------------------------


def plan_cuts(unitmem, share, draws, seed):
    """The Cuts of every policy: of nothing; of the share of units with the highest UnitMem in every
    layer; of as many random ones, several times; and of those with the lowest.

    unitmem: {name of a layer: (D,) float}, NaN for units without a UnitMem, which are neither
    ranked nor drawn; the share is of the others, and at least one of them. Ties go by the number of
    the unit. seed: of the encoder; it decides the draws. Raises WrongUse if no unit has a UnitMem.
    """
    if all(np.isnan(values).all() for values in unitmem.values()):
        raise WrongUse("units.prune: no unit has a UnitMem, so there is none to cut")

    def cut(policy, ranks, draw=0):
        units = {name: _least(ranks[name], unitmem[name], share) for name in unitmem}
        return Cut(policy, draw, units)

    cuts = [Cut(WHOLE, 0, {})]
    cuts.append(cut("highest", {name: -values for name, values in unitmem.items()}))
    cuts += [cut(RANDOM, _random_ranks(unitmem, seed, draw), draw) for draw in range(draws)]
    return [*cuts, cut("lowest", unitmem)]


def _least(ranks, unitmem, share):
    """The units of least rank among those that have a UnitMem, (n,) int64. ranks, unitmem: (D,)."""
    ranked = np.flatnonzero(~np.isnan(unitmem))
    order = np.argsort(ranks[ranked], kind="stable")
    return np.sort(ranked[order[: max(1, round(share * len(ranked)))]])


def _random_ranks(unitmem, seed, draw):
    """{name: a random number for each unit, (D,) int64}, other ones in every layer."""
    return {
        name: sample_keys(
            stream(seed, "pruning", epoch=draw, view=place), torch.arange(len(values))
        ).numpy()
        for place, (name, values) in enumerate(unitmem.items())
    }


@contextmanager
def prune(encoder, layers, cut, device):
    """The Encoder with the units of a Cut set to 0, wherever its network is used meanwhile.
    Afterwards the network is whole again; its weights never change.

    layers: those of its network that the Cut names, and maybe others; device: of the network.
    Raises WrongUse for a layer that cannot be cut.
    """
    if not cut.count:
        yield encoder
        return
    known = {layer.name: layer for layer in layers}
    units = {known[name]: torch.from_numpy(numbers) for name, numbers in cut.units.items()}
    units = {layer: numbers.to(device) for layer, numbers in units.items() if len(numbers)}

    def zero(layer, output):
        return output.index_fill(2, units[layer], 0)  # (B, T, D)

    numbers = {name: numbers.tolist() for name, numbers in cut.units.items()}
    content = json.dumps([encoder.identity, numbers], sort_keys=True)
    identity = hashlib.sha256(content.encode()).hexdigest()
    name = f"{encoder.name} without units ({cut.policy})"
    with ExitStack() as stack:
        try:
            stack.enter_context(editing(list(units), zero))
        except ValueError as error:
            raise WrongUse(f"units.names: {error}, as units.prune does") from None
        yield replace(encoder, name=name, identity=identity)


# --- probes of pruned encoders --------------------------------------------------------------------


@dataclass(frozen=True)
class Pruning:
    """How encoders are pruned and probed.

    share: of the units of every layer; draws: of random units; datasets: Images, prepared for
    probing; settings: ProbeSettings; device: on which encoders run and probes are trained.
    """

    share: float
    draws: int
    datasets: list
    settings: ProbeSettings
    device: torch.device

    def measure(self, encoder, layers, unitmem, seed):
        """The PruningRows of an encoder, by every Cut of `plan_cuts` on every dataset.

        layers: of its network; unitmem: {name of a layer: (D,) float}; seed: of the encoder.
        Nothing of the pruned encoders is kept.
        """
        rows, cuts = [], plan_cuts(unitmem, self.share, self.draws, seed)
        bar = {"desc": f"pruning {encoder.name}", "leave": False}
        for cut in tqdm(cuts, disable=processes.hidden_bar(), **bar):
            with prune(encoder, layers, cut, self.device) as pruned:
                for images in self.datasets:
                    with memory_for("probe.train_images", self.settings.train_images):
                        result = probe(pruned, images, self.settings, None, self.device)
                    top_1 = result.top_1.mean
                    row = PruningRow(cut.policy, cut.draw, seed, top_1, cut.count, images.name)
                    rows.append(row)
        return rows

    def summarize(self, rows):
        """The PruningSummary of the PruningRows of all seeds."""
        names = [images.name for images in self.datasets]
        of = {name: accuracies([row for row in rows if row.dataset == name]) for name in names}
        return PruningSummary(
            share=self.share,
            draws=self.draws,
            datasets={name: summarize_policies(of[name]) for name in names},
            paired={name: compare_policies(of[name]) for name in names},
            fingerprints={images.name: images.fingerprint for images in self.datasets},
        )


def open_pruning(units, probe_settings, data, size, device):
    """The Pruning of a measurement of units.

    units: its settings, with prune_share and prune_draws; probe_settings: ProbeSettings; data:
    DataSettings of training; size: to which image files are resized, pixels. Raises WrongUse if
    labels are missing, or if the probes train all weights.
    """
    if probe_settings.fine_tune:
        frozen = "of a pruned encoder nothing but the probe is trained"
        raise WrongUse(f"probe.fine_tune: true is not allowed with units.prune: {frozen}")
    datasets = open_probed_images(data, probe_settings, size)
    return Pruning(units.prune_share, units.prune_draws, datasets, probe_settings, device)


# --- results --------------------------------------------------------------------------------------


def accuracies(rows):
    """{policy: {seed: top-1 accuracies of its draws}} of the PruningRows of one dataset."""
    top_1 = {}
    for row in rows:
        top_1.setdefault(row.policy, {}).setdefault(row.seed, []).append(row.top_1)
    return top_1


def summarize_policies(top_1):
    """{policy: PolicySummary}. top_1: of `accuracies`."""
    whole = _over_draws(top_1, WHOLE)
    summaries = {}
    for policy, seeds in top_1.items():
        means = _over_draws(top_1, policy)
        spreads = [np.std(draws, ddof=1) for draws in seeds.values() if len(draws) > 1]
        summaries[policy] = PolicySummary(
            top_1=mean_and_spread(means),
            less_nothing=mean_and_spread(means - whole),
            std_over_draws=float(np.mean(spreads)) if spreads else None,
        )
    return summaries


def compare_policies(top_1):
    """{"highest less random": PairedDifference, ...}. top_1: of `accuracies`."""
    differences = {}
    for first, second in COMPARED:
        values = _over_draws(top_1, first) - _over_draws(top_1, second)
        test = one_sample_test(values, "two-sided") if np.ptp(values) > 0 else {}
        spread = mean_and_spread(values)
        differences[f"{first} less {second}"] = PairedDifference(
            **spread, t=test.get("t"), p=test.get("p")
        )
    return differences


def _over_draws(top_1, policy):
    """The mean over the draws of every seed, (S,)."""
    return np.array([np.mean(draws) for draws in top_1[policy].values()])


def pruning_table(rows):
    """The bytes of pruning.csv."""
    table = io.StringIO()
    writer = csv.DictWriter(table, PruningRow.__dataclass_fields__, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, rows))
    return table.getvalue().encode()


def print_pruning(summary):
    """The PruningSummary on the screen: a line a policy, then the differences."""
    for name, policies in summary.datasets.items():
        share = f"{100 * summary.share:g} % of the units of every layer"
        say(f"\nlinear probes on {name} with {share} set to 0, by their UnitMem:")
        for policy, of_policy in policies.items():
            line = f"{policy:>12}  top-1 {of_policy.top_1.in_percent:.2f} %"
            if policy != WHOLE:
                line += f"  less nothing {_in_points(of_policy.less_nothing)}"
            if of_policy.std_over_draws is not None:
                line += f"  between draws ± {100 * of_policy.std_over_draws:.2f}"
            say(line)
        for pair, difference in summary.paired[name].items():
            p = "" if difference.p is None else f"  p {difference.p:.2g}"
            seeds = f", over {difference.n} seeds" if difference.n > 1 else ""
            say(f"{pair:>22} {_in_points(difference)}{p}{seeds}")


def _in_points(spread):
    """A Spread of accuracies as a text, in percentage points."""
    std = None if spread.std is None else 100 * spread.std
    return f"{Spread(mean=100 * spread.mean, std=std, n=spread.n):+.2f}"
