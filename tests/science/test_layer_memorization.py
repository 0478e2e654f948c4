"""LayerMem: how much better f aligns the views of images than g does, at every layer."""

import gc
import itertools

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from conftest import CROPS, made_up_split
from scipy import stats

from memorization.alignment import (
    distances_by_products,
    encoder_distances,
    masked_token_distances,
    mean_over_pairs,
    view_distances,
    view_products,
)
from memorization.data.recipes import ViewRecipe
from memorization.encoder import Encoder, Pair
from memorization.errors import WrongUse
from memorization.machine import threads
from memorization.measuring import layers
from memorization.measuring.layer_summary import (
    compare_parts,
    describe_layers,
    find_blocks,
    growth_of,
    rank_correlations,
)
from memorization.measuring.layer_tables import MeasuredSeed, table_of_layers
from memorization.measuring.layers import LayerSettings, align_layers, watch_pair
from memorization.measuring.scores import Scoring, draw_views
from memorization.significance import resampled_means
from models.encoders import encoder_settings, make_encoder
from models.layers import Layer
from models.vit import patchify, take_tokens

ENCODERS = {
    "resnet": {"name": "resnet_small", "width": 8},
    "vit": {"name": "vit_mini", "width": 32, "depth": 2},
}
IMAGES = made_up_split(15, 3, 16)  # the last one is white, and not measured
SCORING = Scoring(views=4, representation="tokens", seed=3)
MASKED = [ViewRecipe(size=16, crop_scale=[0.3, 1.0], mask_ratio=0.5)]
MIXED = [*MASKED, ViewRecipe(size=16, mask_ratio=0.75), ViewRecipe(size=16, flip=0.5)]


def small_encoder(kind, seed, name="f"):
    torch.manual_seed(seed)
    network = make_encoder(encoder_settings(**ENCODERS[kind]), 3, 16).eval().requires_grad_(False)
    return Encoder(name, network, 3, 16, ((0.5,) * 3, (0.25,) * 3),
                   patch=getattr(network, "patch", None))  # fmt: skip


def small_pair(kind):
    return Pair(small_encoder(kind, 0), small_encoder(kind, 1, "g"), 3)


def align(pair, recipes=CROPS, indices=range(14), scoring=SCORING, images=IMAGES, **settings):
    """The alignment losses at every layer of f and g, (2, N, L), and the names of the layers."""
    watched = watch_pair(pair, LayerSettings(**settings), images, recipes, scoring)
    return align_layers(watched, images, list(indices), recipes, scoring), watched[0].names


def slow_losses(encoder, recipes, prepare=lambda tokens: tokens.flatten(1)):
    """The sum written out: {layer: (N,)}, by differences in float64."""
    views, _ = draw_views(encoder, IMAGES, torch.arange(14), recipes, SCORING)
    with torch.inference_mode():
        outputs = [encoder.network.layers(*view) for view in views]
    losses = {}
    for name in outputs[0]:
        vectors = [F.normalize(prepare(output[name]).double(), dim=1) for output in outputs]
        pairs = list(itertools.combinations(vectors, 2))
        losses[name] = sum((a - b).norm(dim=1) for a, b in pairs) / len(pairs)
    return losses


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("representation", ["tokens", "pooled"])
def test_the_loss_of_a_layer_is_the_mean_distance_between_its_outputs(kind, representation):
    pair = small_pair(kind)
    losses, names = align(pair, representation=representation)
    for encoder, of_encoder in zip(pair, losses):
        if representation == "tokens":
            expected = slow_losses(encoder, CROPS)
        else:
            expected = slow_losses(encoder, CROPS, encoder.network.pool)
        assert names == list(expected)
        for name, found in zip(names, of_encoder.T):
            assert np.abs(found - expected[name].numpy()).max() < 1e-6, name
            assert found.min() > 1e-4, name


def masked_losses(encoder, recipes):
    """{layer: (N,)} of views with masks: each pair of views at the positions visible in both."""
    views, _ = draw_views(encoder, IMAGES, torch.arange(14), recipes, SCORING)
    with torch.inference_mode():
        outputs = [encoder.network.layers(*view) for view in views]
    losses = {}
    for name in outputs[0]:
        losses[name] = torch.zeros(14, dtype=torch.float64)
        for (a, view_a), (b, view_b) in itertools.combinations(zip(outputs, views), 2):
            for image in range(14):
                rows = [_by_position(output[name][image], view.visible, image)
                        for output, view in ((a, view_a), (b, view_b))]  # fmt: skip
                both = sorted(rows[0].keys() & rows[1].keys())
                vectors = [torch.cat([row[place] for place in both]).double() for row in rows]
                distance = (F.normalize(vectors[0], dim=0) - F.normalize(vectors[1], dim=0)).norm()
                losses[name][image] += distance / 6
    return losses


def _by_position(tokens, visible, image):
    places = range(16) if visible is None else visible[image].tolist()
    return dict(zip([-1, *places], tokens))


@pytest.mark.parametrize("recipes", [MASKED, MIXED], ids=["masked", "mixed"])
def test_masked_views_are_compared_at_the_positions_that_are_visible_in_both(recipes):
    pair = small_pair("vit")
    losses, names = align(pair, recipes)
    for encoder, of_encoder in zip(pair, losses):
        expected = masked_losses(encoder, recipes)
        for name, found in zip(names, of_encoder.T):
            assert np.abs(found - expected[name].numpy()).max() < 1e-6, name


def test_pooled_layers_of_masked_views_are_compared_whole():
    pair = small_pair("vit")
    losses, names = align(pair, MIXED, representation="pooled")
    expected = slow_losses(pair.f, MIXED, pair.f.network.pool)
    for name, found in zip(names, losses[0].T):
        assert np.abs(found - expected[name].numpy()).max() < 1e-6, name


@pytest.mark.parametrize("recipes, kind", [(CROPS, "resnet"), (CROPS, "vit"), (MASKED, "vit")])
def test_the_last_layer_is_aligned_as_the_tokens_are(recipes, kind):
    encoder = small_encoder(kind, 0)
    losses, _ = align(Pair(encoder, encoder, 3), recipes)
    views, _ = draw_views(encoder, IMAGES, torch.arange(14), recipes, SCORING)
    with torch.inference_mode():
        expected = mean_over_pairs(encoder_distances(encoder.network, views, "tokens"))
    assert np.abs(losses[0, :, -1] - expected.numpy()).max() < 1e-6


@pytest.mark.parametrize("recipes, kind", [(CROPS, "resnet"), (MIXED, "vit")])
def test_f_against_itself_has_no_memorization_at_any_layer(recipes, kind):
    losses, names = align(Pair(small_encoder(kind, 0), small_encoder(kind, 0), 3), recipes)
    assert (losses[0] == losses[1]).all() and losses.min() > 0


def train_third_block(encoder, images, steps):
    """Align the views of some images by training the last block of a small ResNet alone."""
    block = encoder.network.layers[-1].requires_grad_(True)
    adam = torch.optim.Adam(block.parameters(), 0.003)
    views, _ = draw_views(encoder, IMAGES, images, CROPS, SCORING)
    for _ in range(steps):
        tokens = [encoder.network.tokens(view.pixels).flatten(1) for view in views]
        vectors = F.normalize(torch.stack(tokens, dim=1), dim=2)
        spread = vectors.mean(1).var(0).sum()  # else all images would fall together
        loss = mean_over_pairs(view_distances(vectors)).mean() - spread
        adam.zero_grad()
        loss.backward()
        adam.step()
    block.requires_grad_(False)


def test_a_third_block_that_alone_was_trained_on_candidates_is_found():
    f, g = small_encoder("resnet", 0), small_encoder("resnet", 0, "g")
    candidates = torch.arange(7)
    train_third_block(f, candidates, 30)
    losses, names = align(Pair(f, g, 3))
    table = table_of_layers(
        rows_of(candidate=7, external=7), [MeasuredSeed(losses, np.ones(14, int), names, names)]
    )
    before = names.index("layer3.0.conv1")
    assert 0 < before < len(names) - 1
    of_candidates = table.per_seed[0, :7]
    assert (table.per_seed[0, :, :before] == 0).all()  # of the same weights
    assert (of_candidates[:, before:].mean(0) > 0).all()
    last = of_candidates[:, -1]
    assert last.min() > 0 and last.mean() > table.per_seed[0, 7:, -1].mean()


def rows_of(**counts):
    """Rows of so many images of each subset."""
    subset = np.repeat(list(counts), list(counts.values()))
    absent = np.zeros(len(subset), dtype=bool)
    return {"index": np.arange(len(subset)), "split": np.full(len(subset), "train"),
            "subset": subset, "label": np.zeros(len(subset), dtype=np.int64),
            "is_sampled": ~absent, "is_most": absent, "is_least": absent}  # fmt: skip


@pytest.mark.parametrize("recipes, kind", [(CROPS, "resnet"), (MIXED, "vit")])
def test_batches_and_threads_change_nothing(recipes, kind, monkeypatch):
    pair = small_pair(kind)
    losses, _ = align(pair, recipes)
    monkeypatch.setattr(threads, "count", lambda device: 3)
    monkeypatch.setattr(threads, "PIXELS_OF_ALL_VIEWS", 1)  # image by image
    of_threads, _ = align(pair, recipes, scoring=Scoring(views=4, seed=3, batch_size=5))
    assert np.abs(losses - of_threads).max() < 1e-6


def test_what_comes_out_of_a_layer_is_not_kept(monkeypatch):
    calls, sizes = [], []

    def watched_products(vectors):
        calls.append(None)
        if len(calls) % 7 == 1:
            storages = [t.untyped_storage() for t in gc.get_objects() if type(t) is torch.Tensor]
            sizes.append(sum({one.data_ptr(): one.nbytes() for one in storages}.values()))
        return view_products(vectors)

    monkeypatch.setattr(layers, "view_products", watched_products)
    monkeypatch.setitem(ENCODERS, "vit", ENCODERS["vit"] | {"depth": 8})
    monkeypatch.setattr(threads, "count", lambda device: 1)
    align(small_pair("vit"))
    assert len(calls) == 2 * 42
    largest = 14 * 4 * 17 * 128 * 4  # bytes of what comes out of a GELU
    assert max(sizes) < min(sizes) + 4 * largest  # all layers have 20 times as much


def test_images_do_not_depend_on_those_beside_them():
    pair = small_pair("vit")
    losses, _ = align(pair, MASKED)
    some, _ = align(pair, MASKED, [11, 2])
    assert np.abs(losses[:, [11, 2]] - some).max() < 1e-6


def test_named_layers_are_those_of_all_layers():
    pair = small_pair("vit")
    losses, names = align(pair)
    chosen = ["blocks.1.mlp", "embedding"]
    some, found = align(pair, names=chosen)
    assert found == ["embedding", "blocks.1.mlp"]
    assert np.abs(losses[:, :, [names.index(name) for name in found]] - some).max() < 1e-6
    watched = watch_pair(pair, LayerSettings(names=chosen), IMAGES, CROPS, SCORING)
    assert watched[0].depths == [1 + names.index(name) for name in found]


def test_layers_are_measured_in_bfloat16_as_scores_are():
    losses, _ = align(small_pair("vit"))
    rough, _ = align(small_pair("vit"), scoring=Scoring(4, "tokens", "bf16", seed=3))
    difference = np.abs(losses - rough)
    assert 1e-5 < difference.max() < 0.05


class InPlace(nn.Module):
    """An encoder of patches of 4 pixels, the second layer of which overwrites the first."""

    patch = 4

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([nn.Identity(), nn.ReLU(inplace=True)])

    def forward(self, pixels, visible=None):
        tokens = take_tokens(patchify(pixels, 4), visible)
        return self.parts[1](self.parts[0](tokens))

    pass_once = forward

    def pool(self, output):
        return output[:, 0]  # a part of the layer's own memory

    def find_layers(self, pixels, visible=None):
        return [Layer(name, part) for name, part in zip("ab", self.parts)]


def test_layers_that_wait_for_another_pass_are_not_overwritten():
    encoder = Encoder("f", InPlace().eval(), 3, 16, ((0.5,) * 3, (0.25,) * 3), patch=4)
    two_masks = [*MASKED, ViewRecipe(size=16, crop_scale=[0.3, 1.0], mask_ratio=0.75)]
    losses, _ = align(Pair(encoder, encoder, 3), two_masks, representation="pooled")
    views, _ = draw_views(encoder, IMAGES, torch.arange(14), two_masks, SCORING)
    first = [take_tokens(patchify(pixels, 4), visible)[:, 0] for pixels, visible in views]
    for layer, vectors in enumerate((first, [vector.relu() for vector in first])):
        vectors = F.normalize(torch.stack(vectors, dim=1).double(), dim=2)
        expected = mean_over_pairs(view_distances(vectors))
        assert np.abs(losses[0, :, layer] - expected.numpy()).max() < 1e-6


class Constant(nn.Module):
    """An encoder of three layers; the second is the same for all images, or something else."""

    def __init__(self, make=torch.zeros_like):
        super().__init__()
        self.parts = nn.ModuleList([nn.Identity(), nn.Identity(), nn.Identity()])
        self.make = make

    def forward(self, pixels, visible=None):
        flat = self.parts[0](pixels.flatten(1))
        self.parts[1](self.make(flat))
        return self.parts[2](flat.square())

    pass_once = forward

    def find_layers(self, pixels, visible=None):
        return [Layer(name, part) for name, part in zip("abc", self.parts)]


def of_constant(make, name="f"):
    return Encoder(name, Constant(make).eval(), 3, 16, ((0.5,) * 3, (0.25,) * 3), identity="a")


@pytest.mark.parametrize("make", [torch.zeros_like, torch.ones_like])
def test_a_layer_where_all_views_are_alike_has_the_ratio_0(make):
    losses, _ = align(Pair(of_constant(make), of_constant(make), 3))
    assert (losses[:, :, 1] == 0).all() and (losses[:, :, [0, 2]] > 0).all()
    seeds = [MeasuredSeed(losses * [[[1]], [[2]]], np.ones(14, int), list("abc"), [1, 2, 3])]
    ratios = table_of_layers(rows_of(candidate=14), seeds).ratios
    assert ratios[0].tolist() == pytest.approx([1 / 3, 0, 1 / 3])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_layer_that_is_not_finite_is_named(value):
    def spoil(flat):
        flat = flat.clone()
        flat[-1, 5] = value
        return flat

    with pytest.raises(WrongUse, match="g: layer b: what comes out is not finite"):
        align(Pair(of_constant(torch.ones_like), of_constant(spoil, "g"), 3))


# --- distances by products ------------------------------------------------------------------------


def test_distances_by_products_are_those_by_differences():
    generator = torch.Generator().manual_seed(0)
    vectors = (
        torch.randn(5, 1, 300, generator=generator)
        * torch.tensor([1e-30, 1, 1e30, 3, 9])[:, None, None]
        * (1 + 0.3 * torch.randn(5, 6, 300, generator=generator))
    )
    vectors[3, 2] = 0
    vectors[4, 1] = vectors[4, 0]
    exact = view_distances(F.normalize(vectors.double(), dim=2, eps=1e-300))
    distances = distances_by_products(view_products(vectors))
    assert distances.dtype == torch.float64
    assert (distances - exact).abs().max() < 1e-12
    assert (distances.diagonal(dim1=1, dim2=2) == 0).all() and distances[4, 0, 1] == 0
    assert distances[3, 2, 0] == 1


@pytest.mark.parametrize("step", [1e-2, 1e-4, 1e-6])
def test_distances_by_products_keep_their_digits_if_views_nearly_agree(step):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(3, 1, 2000, generator=generator)
    vectors = vectors + step * torch.randn(3, 4, 2000, generator=generator)
    exact = mean_over_pairs(view_distances(F.normalize(vectors.double(), dim=2)))
    found = mean_over_pairs(distances_by_products(view_products(vectors)))
    assert exact.max() < 2 * step
    assert (found - exact).abs().max() < max(1e-7 * step, 1e-9)


def test_products_of_masked_views_give_their_distances():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(3, 4, 6, 5, generator=generator)
    is_visible = torch.rand(3, 4, 6, generator=generator) < 0.6
    is_visible[:, :, 0] = True
    tokens = torch.where(is_visible[..., None], tokens, 0.0)
    squares = tokens.double().square().sum(3) @ is_visible.double().mT
    found = distances_by_products(view_products(tokens.flatten(2)), squares)
    expected = masked_token_distances(tokens, is_visible)
    assert (found - expected).abs().max() < 1e-6


# --- statistics -----------------------------------------------------------------------------------


def random_ratios(seeds=2, images=40, layers=5):
    rng = np.random.default_rng(0)
    return rng.normal(size=(seeds, images, layers)) * 0.1 + np.linspace(0, 0.3, layers)


def test_ratios_are_signed_by_the_encoder_that_has_the_image_and_averaged_over_seeds():
    losses = np.array([[[0.2, 0.3]], [[0.6, 0.1]]])  # of f and g, one image, two layers
    seeds = [MeasuredSeed(losses, np.array([sign]), ["a", "b"], [1, 2]) for sign in (1, -1)]
    table = table_of_layers(rows_of(candidate=1), seeds)
    assert table.per_seed[:, 0].tolist() == [[pytest.approx(0.5), pytest.approx(-0.5)],
                                             [pytest.approx(-0.5), pytest.approx(0.5)]]  # fmt: skip
    seeds = [seeds[0], MeasuredSeed(losses, np.array([1]), ["a", "b"], [1, 2])]
    assert table_of_layers(rows_of(candidate=1), seeds).ratios[0] == pytest.approx([0.5, -0.5])


def test_layers_are_described_by_means_differences_and_errors():
    per_seed = random_ratios()
    ratios = per_seed.mean(0)
    found = describe_layers(per_seed, resampled_means(ratios))
    assert found["n"] == 40 and found["delta"][0] is None and found["stderr_delta"][0] is None
    for layer in range(5):
        assert found["layermem"][layer] == pytest.approx(ratios[:, layer].mean())
        error = stats.sem(ratios[:, layer])
        assert found["stderr"][layer] == pytest.approx(error)
        width = found["high"][layer] - found["low"][layer]
        assert width == pytest.approx(2 * 1.96 * error, rel=0.1)
        spread = np.std([seed[:, layer].mean() for seed in per_seed], ddof=1)
        assert found["std_seeds"][layer] == pytest.approx(spread)
        if layer:
            step = ratios[:, layer] - ratios[:, layer - 1]
            assert found["delta"][layer] == pytest.approx(step.mean())
            assert found["stderr_delta"][layer] == pytest.approx(stats.sem(step))
    assert describe_layers(per_seed[:1], resampled_means(ratios))["std_seeds"] == [None] * 5


def test_resamples_take_the_same_images_in_all_columns():
    values = np.random.default_rng(0).normal(size=(30, 1)) + [[0.0, 1.0]]
    means = resampled_means(values)
    assert means.shape == (2000, 2) and np.allclose(means[:, 1] - means[:, 0], 1)
    assert means[:, 0].std() == pytest.approx(values[:, 0].std() / np.sqrt(30), rel=0.05)
    assert (means == resampled_means(values)).all()
    assert np.abs(means - resampled_means(values, seed=1)).max() > 0


def test_growth_is_spearmans_correlation_of_depth_and_layermem():
    per_seed, depths = random_ratios().mean(1), [1, 2, 4, 5, 9]
    resampled = resampled_means(random_ratios().mean(0))[::20]
    growth = growth_of(depths, per_seed, resampled)
    assert growth["spearman"] == pytest.approx(stats.spearmanr(depths, per_seed.mean(0))[0])
    assert growth["per_seed"] == pytest.approx(
        [stats.spearmanr(depths, one)[0] for one in per_seed]
    )
    of_resamples = [stats.spearmanr(depths, row)[0] for row in resampled]
    assert growth["interval_95"] == pytest.approx(np.percentile(of_resamples, [2.5, 97.5]).tolist())
    alike = rank_correlations(depths, np.array([[0.0] * 5, [1, 1, 2, 2, 3], [5, 4, 3, 2, 1]]))
    assert np.isnan(alike[0]) and alike[1] == pytest.approx(0.9486833) and alike[2] == -1


@pytest.mark.parametrize("attention", ["attention", "attn", "self_attention"])
def test_blocks_are_found_under_the_names_of_any_library(attention):
    names = ["embedding"]
    for block in ("encoder.0", "encoder.1"):
        names += [f"{block}.{part}" for part in (attention, "attention_sum", "gelu", "mlp")] + [
            block
        ]
    names.append("norm")
    assert find_blocks(names, range(1, 13)) == [
        {"block": "encoder.0", "before": 0, "attention": 1, "sum": 2, "perceptron": 4},
        {"block": "encoder.1", "before": 5, "attention": 6, "sum": 7, "perceptron": 9},
    ]
    assert find_blocks(["conv1", "layer1.0.conv1", "layer1.0"], [1, 2, 3]) == []


@pytest.mark.parametrize("missing, block", [
    ("b.0.mlp", "b.1"),
    ("embedding", "b.1"),
    ("b.0", "b.0"),  # what goes into the second block
])  # fmt: skip
def test_a_block_is_compared_if_its_parts_and_what_goes_into_it_were_measured(missing, block):
    names = ["embedding"]
    for name in ("b.0", "b.1"):
        names += [f"{name}.{part}" for part in ("attention", "attention_sum", "mlp")] + [name]
    depths = [1 + place for place, name in enumerate(names) if name != missing]
    names.remove(missing)
    assert [found["block"] for found in find_blocks(names, depths)] == [block]


def test_attention_and_perceptron_are_compared_with_what_goes_into_them():
    rng = np.random.default_rng(1)
    per_seed = rng.normal(size=(3, 50, 11))
    names = ["embedding"]
    for block in "01":
        names += [f"b.{block}.{part}" for part in ("attention", "attention_sum", "gelu", "mlp")]
        names.append(f"b.{block}")
    ratios = per_seed.mean(0)
    found = compare_parts(per_seed, resampled_means(ratios), find_blocks(names, range(1, 12)))
    differences = np.zeros((3, 50))
    for number, row in enumerate(found["blocks"]):
        start = 5 * number
        attention = per_seed[:, :, start + 1] - per_seed[:, :, start]
        perceptron = per_seed[:, :, start + 4] - per_seed[:, :, start + 2]
        assert row["block"] == f"b.{number}"
        assert row["attention"] == pytest.approx(attention.mean())
        assert row["perceptron"] == pytest.approx(perceptron.mean())
        assert row["stderr_perceptron"] == pytest.approx(stats.sem(perceptron.mean(0)))
        differences += (perceptron - attention) / 2
    difference = found["perceptron_less_attention"]
    assert difference["value"] == pytest.approx(differences.mean())
    assert difference["per_seed"] == pytest.approx(differences.mean(1).tolist())
    assert difference["std_seeds"] == pytest.approx(differences.mean(1).std(ddof=1))
    width = np.diff(difference["interval_95"])[0]
    assert width == pytest.approx(2 * 1.96 * stats.sem(differences.mean(0)), rel=0.15)
