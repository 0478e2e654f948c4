"""The check by cutting: units with the highest, random and lowest UnitMem are set to 0."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn as nn
from conftest import CPU, fake_images, random_pixels

from memorization.checkpoint import checksum
from memorization.encoder import Encoder
from memorization.errors import WrongUse
from memorization.measuring.probing import ProbeSettings, probe
from memorization.measuring.pruning import (
    Pruning,
    PruningRow,
    accuracies,
    compare_policies,
    open_pruning,
    plan_cuts,
    print_pruning,
    prune,
    pruning_table,
    summarize_policies,
)
from memorization.measuring.representations import encode_images
from memorization.settings import DataSettings
from models.encoders import encoder_settings, make_encoder
from models.layers import Layer

QUICK = ProbeSettings(epochs=5, warmup_epochs=1, seeds=[0])
NAN = float("nan")


class Units(nn.Module):
    """Ten units, means of random patterns of the pixels; the first has the red channel alone."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 10, 4, stride=4), nn.ReLU(inplace=True)
        self.last = nn.Identity()
        torch.manual_seed(0)
        with torch.no_grad():
            self.conv.weight.uniform_(-0.2, 0.2)
            self.conv.weight[:, 0] = 0
            self.conv.weight[0] = 0
            self.conv.weight[0, 0] = 0.1
            self.conv.bias.fill_(3.0)
        self.eval().requires_grad_(False)

    def forward(self, pixels, visible=None):
        return self.last(self.relu(self.conv(pixels))).mean((2, 3))


@pytest.fixture
def encoder():
    return Encoder("f", Units(), 3, 8, ((0.5,) * 3, (0.5,) * 3))


def layers_of(encoder):
    relu = Layer("relu", encoder.network.relu, activates=True)
    return [Layer("conv", encoder.network.conv), relu]


def of_red_images():
    """Images of two classes, which differ in the red channel alone."""
    images = fake_images()
    for split in (images.train, images.test):
        split.labels[:] = torch.from_numpy(np.random.default_rng(0).integers(2, size=len(split)))
        red = split.pixels[:, 0]
        red[:] = red // 8 + 200 * split.labels[:, None, None].to(torch.uint8)
    return replace(images, classes=("dark", "red"))


def pruning_of(*datasets, share=0.1, draws=2):
    return Pruning(share, draws, list(datasets), QUICK, CPU)


def test_of_every_layer_the_share_of_highest_random_and_lowest_units_is_cut():
    unitmem = {"a": np.array([0.3, 0.9, 0.1, 0.5, 0.7]), "b": np.array([0.2, 0.8, 0.4])}
    whole, highest, random, other, lowest = plan_cuts(unitmem, 0.4, draws=2, seed=0)
    assert (whole.policy, whole.count) == ("nothing", 0)
    assert {name: units.tolist() for name, units in highest.units.items()} == {
        "a": [1, 4],
        "b": [1],
    }
    assert {name: units.tolist() for name, units in lowest.units.items()} == {"a": [0, 2], "b": [0]}
    for draw, cut in enumerate((random, other)):
        assert (cut.policy, cut.draw, cut.count) == ("random", draw, 3)
        assert len(set(cut.units["a"])) == 2 and set(cut.units["a"]) <= set(range(5))


def test_units_without_a_number_are_neither_ranked_nor_drawn_and_one_unit_at_least_is_cut():
    values = np.array([NAN, 0.9, NAN, 0.5, 0.7, NAN])
    cuts = plan_cuts({"a": values, "dead": np.array([NAN, NAN])}, 0.1, draws=40, seed=0)
    drawn = {cut.units["a"].item() for cut in cuts if cut.policy == "random"}
    assert drawn == {1, 3, 4}
    assert cuts[1].units["a"].tolist() == [1] and cuts[-1].units["a"].tolist() == [3]
    assert all(cut.count == 1 for cut in cuts[1:])  # none in the dead layer
    half = plan_cuts({"a": np.array([NAN] * 6 + [0.1, 0.4, 0.3, 0.2])}, 0.5, draws=1, seed=0)
    assert half[1].units["a"].tolist() == [7, 8]  # half of the four
    with pytest.raises(WrongUse, match=r"^units\.prune: no unit has a UnitMem"):
        plan_cuts({"dead": np.array([NAN, NAN])}, 0.1, draws=1, seed=0)


def test_ties_go_by_the_number_of_the_unit():
    _, highest, *_, lowest = plan_cuts({"a": np.full(6, 0.5)}, 0.3, draws=1, seed=0)
    assert highest.units["a"].tolist() == lowest.units["a"].tolist() == [0, 1]


def test_draws_differ_by_draw_layer_and_seed_and_repeat():
    unitmem = {"a": np.linspace(0, 1, 200), "b": np.linspace(0, 1, 200)}

    def drawn(seed):
        cuts = [cut for cut in plan_cuts(unitmem, 0.1, 3, seed) if cut.policy == "random"]
        return [tuple(units.tolist()) for cut in cuts for units in cut.units.values()]

    torch.manual_seed(99)  # which must not matter
    assert drawn(0) == drawn(0) and len(set(drawn(0) + drawn(1))) == 12
    counts = np.bincount(np.concatenate(drawn(0) + drawn(1)), minlength=200)
    assert counts.max() <= 6  # of twelve draws of a tenth


def test_cut_units_are_0_in_the_forward_pass_and_all_others_unchanged(encoder):
    pixels, outputs = random_pixels(3, 3, 8), []
    encoder.network.last.register_forward_hook(lambda *call: outputs.append(call[2].clone()))
    whole, _, *_, lowest = plan_cuts({"relu": np.linspace(1, 0, 10)}, 0.2, draws=1, seed=0)
    expected = encoder.network(pixels)
    before = checksum(encoder.network.state_dict())
    with prune(encoder, layers_of(encoder), lowest, CPU) as pruned:
        values = pruned.network(pixels)
        assert checksum(encoder.network.state_dict()) == before
    plain, cut = outputs
    assert (plain > 0).all() and (cut[:, 8:] == 0).all() and torch.equal(cut[:, :8], plain[:, :8])
    assert (values[:, 8:] == 0).all() and torch.equal(values[:, :8], expected[:, :8])


def test_after_the_cut_the_encoder_is_as_it_was(encoder):
    pixels = random_pixels(3, 3, 8)
    before, weights = encoder.network(pixels), checksum(encoder.network.state_dict())
    cut = plan_cuts({"conv": np.arange(10.0), "relu": np.arange(10.0)}, 0.5, 1, seed=0)[1]
    with pytest.raises(ZeroDivisionError):
        with prune(encoder, layers_of(encoder), cut, CPU):
            assert not torch.equal(encoder.network(pixels), before)
            raise ZeroDivisionError
    assert torch.equal(encoder.network(pixels), before)
    assert checksum(encoder.network.state_dict()) == weights
    assert not any(module._forward_hooks for module in encoder.network.modules())


def test_a_layer_that_no_module_gives_is_refused_in_one_line(encoder):
    cut = plan_cuts({"tokens": np.arange(10.0)}, 0.5, 1, seed=0)[1]
    with pytest.raises(WrongUse, match=r"^units\.names: tokens: no module gives it"):
        with prune(encoder, [Layer("tokens", None)], cut, CPU):
            pass


def test_a_pruned_encoder_has_an_identity_of_its_own(encoder):
    cuts = plan_cuts({"conv": np.arange(10.0), "relu": np.arange(10.0)}, 0.2, 3, seed=0)
    identities = []
    for cut in cuts:
        with prune(encoder, layers_of(encoder), cut, CPU) as pruned:
            identities.append(pruned.identity)
    assert identities[0] == encoder.identity and len(set(identities)) == len(cuts) == 6


def test_cutting_the_unit_that_carries_the_class_drops_the_probe_and_an_idle_one_does_not(encoder):
    unitmem = {"relu": np.array([0.9, *np.linspace(0.8, 0.1, 9)])}
    rows = pruning_of(of_red_images()).measure(encoder, layers_of(encoder), unitmem, seed=4)
    top_1 = {(row.policy, row.draw): row.top_1 for row in rows}
    assert list(top_1) == [
        ("nothing", 0), ("highest", 0), ("random", 0), ("random", 1), ("lowest", 0)
    ]  # fmt: skip
    assert top_1["nothing", 0] > 0.95 and top_1["lowest", 0] > 0.95
    assert top_1["highest", 0] < 0.65
    assert {row.seed for row in rows} == {4} and [row.units for row in rows] == [0, 1, 1, 1, 1]


def test_with_nothing_cut_the_probe_is_that_of_the_encoder(encoder):
    images, unitmem = fake_images(), {"relu": np.arange(10.0)}
    rows = pruning_of(images).measure(encoder, layers_of(encoder), unitmem, seed=0)
    assert rows[0].top_1 == probe(encoder, images, QUICK, None, CPU).top_1.mean
    again = pruning_of(images).measure(encoder, layers_of(encoder), unitmem, seed=0)
    assert pruning_table(again) == pruning_table(rows)


def test_a_probe_on_a_pruned_encoder_is_that_on_representations_with_zeros(encoder):
    class Zeros(nn.Module):
        def forward(self, pixels, visible=None):
            values = encoder.network(pixels)
            values[:, 4:] = 0
            return values

    images, unitmem = fake_images(), {"relu": np.arange(10.0)}
    pruning = pruning_of(images, share=0.6)
    rows = pruning.measure(encoder, layers_of(encoder), unitmem, seed=0)
    zeros = replace(encoder, network=Zeros(), identity="zeros")
    assert (rows[1].policy, rows[1].units) == ("highest", 6)
    assert rows[1].top_1 == probe(zeros, images, QUICK, None, CPU).top_1.mean != rows[0].top_1


@pytest.mark.parametrize("name", ["resnet_small", "vit_mini"])
def test_what_is_left_of_an_encoder_does_not_depend_on_threads(name, one_thread):
    """A ResNet's non-linearity is called twice in a block, a vision transformer's once in a part of
    a batch.
    """
    torch.manual_seed(0)
    network = make_encoder(encoder_settings(name), 3, 16).eval().requires_grad_(False)
    encoder, images = Encoder("f", network, 3, 16, ((0.5,) * 3, (0.5,) * 3)), fake_images(16)
    layers = [layer for layer in network.find_layers(random_pixels(1, 3, 16)) if layer.activates]
    outputs = network.layers(random_pixels(1, 3, 16))
    unitmem = {layer.name: np.arange(1.0 * outputs[layer.name].shape[2]) for layer in layers}
    cut = plan_cuts(unitmem, 0.3, draws=1, seed=0)[1]

    def represent(threads):
        torch.set_num_threads(threads)
        with prune(encoder, layers, cut, CPU):
            return encode_images(encoder, images.train, torch.arange(150), CPU)

    alone, together = represent(1), represent(3)
    assert torch.allclose(alone, together, atol=1e-6)
    torch.set_num_threads(1)
    whole = encode_images(encoder, images.train, torch.arange(150), CPU)
    assert (whole - alone).abs().max() > 0.01


def made_up_rows():
    """Two seeds; two draws of chance."""
    accuracies = {
        ("nothing", 0): (0.8, 0.7), ("highest", 0): (0.5, 0.3), ("random", 0): (0.6, 0.7),
        ("random", 1): (0.7, 0.5), ("lowest", 0): (0.75, 0.65),
    }  # fmt: skip
    return [
        PruningRow(policy, draw, seed, top_1, 3, "fake")
        for (policy, draw), of_seeds in accuracies.items()
        for seed, top_1 in enumerate(of_seeds)
    ]


def test_the_summary_computed_by_hand():
    of_policy = summarize_policies(accuracies(made_up_rows()))
    random = of_policy["random"]
    assert random.top_1.mean == pytest.approx(0.625)  # of .65 and .6
    assert random.top_1.std == pytest.approx(0.05 / 2**0.5) and random.top_1.n == 2
    assert random.less_nothing.mean == pytest.approx(-0.125)  # of -.15 and -.1
    assert random.std_over_draws == pytest.approx((0.1 + 0.2) / 2 / 2**0.5)
    assert of_policy["highest"].std_over_draws is None
    assert of_policy["nothing"].less_nothing.mean == 0
    paired = compare_policies(accuracies(made_up_rows()))
    highest = paired["highest less random"]
    assert highest.mean == pytest.approx(-0.225)  # of -.15 and -.3
    assert highest.t == pytest.approx(-0.225 / (0.15 / 2**0.5 / 2**0.5)) and highest.p > 0.2
    assert paired["lowest less random"].mean == pytest.approx(0.075)  # of .1 and .05


def test_one_seed_has_differences_but_no_test():
    rows = [row for row in made_up_rows() if row.seed == 0]
    difference = compare_policies(accuracies(rows))["highest less random"]
    assert difference.mean == pytest.approx(-0.15) and difference.std is None
    assert difference.t is None and difference.p is None
    assert summarize_policies(accuracies(rows))["random"].std_over_draws is not None


def test_the_screen_has_a_line_a_policy_and_two_differences(capsys):
    for seeds, lines in (((0, 1), [
        "     nothing  top-1 75.00 ± 7.07 %",
        "     highest  top-1 40.00 ± 14.14 %  less nothing -35.00 ± 7.07",
        "      random  top-1 62.50 ± 3.54 %  less nothing -12.50 ± 3.54  between draws ± 10.61",
        "      lowest  top-1 70.00 ± 7.07 %  less nothing -5.00 ± 0.00",
        "   highest less random -22.50 ± 10.61  p 0.2, over 2 seeds",
        "    lowest less random +7.50 ± 3.54  p 0.2, over 2 seeds",
    ]), ((0,), [
        "     nothing  top-1 80.00 %",
        "     highest  top-1 50.00 %  less nothing -30.00",
        "      random  top-1 65.00 %  less nothing -15.00  between draws ± 7.07",
        "      lowest  top-1 75.00 %  less nothing -5.00",
        "   highest less random -15.00",
        "    lowest less random +10.00",
    ])):  # fmt: skip
        rows = [row for row in made_up_rows() if row.seed in seeds]
        print_pruning(pruning_of(fake_images()).summarize(rows))
        share = "10 % of the units of every layer"
        title = f"linear probes on fake with {share} set to 0, by their UnitMem:"
        assert capsys.readouterr().out.splitlines() == ["", title, *lines]


def test_pruning_that_cannot_be_probed_is_refused_in_one_line(monkeypatch):
    units, data = SimpleNamespace(prune_share=0.1, prune_draws=5), DataSettings(name="fake", size=8)
    with pytest.raises(WrongUse, match=r"^probe\.fine_tune: true is not allowed with units\.prune"):
        open_pruning(units, ProbeSettings(fine_tune=True), data, 8, CPU)
    images = fake_images()
    images.train.labels[:] = -1
    monkeypatch.setattr("memorization.measuring.probing.open_images", lambda data: images)
    with pytest.raises(WrongUse, match="has no labelled train image; a probe needs labels"):
        open_pruning(units, QUICK, data, 8, CPU)
