import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Places, Rows, make_vit

from memorization.alignment import (
    alignment_loss,
    encoder_distances,
    jackknife_error,
    masked_token_distances,
    memorization_score,
    represent,
    view_distances,
)
from memorization.data.augmentations import View
from memorization.normalization import normalize, normalize_rows


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def draw_masks(B, T, K, seed=0):
    return torch.rand(B, T, generator=seeded(seed)).argsort(dim=1)[:, :K]


def test_alignment_loss_is_the_mean_distance_over_pairs_of_views():
    representations = torch.tensor([[[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]])  # distances 3, 4 and 5
    assert torch.allclose(alignment_loss(representations), torch.tensor([4.0]))


def test_alignment_loss_equals_the_slow_sum_of_the_definition():
    representations = F.normalize(randn(3, 5, 7), dim=2)
    for sample, loss in zip(representations.tolist(), alignment_loss(representations)):
        distances = [math.dist(one, other) for one, other in itertools.combinations(sample, 2)]
        assert loss.item() == pytest.approx(sum(distances) / 10, abs=1e-12)


def test_alignment_loss_keeps_small_distances_in_float32():
    """|a|^2 - 2ab + |b|^2 would leave nothing of a distance of 1e-4 between unit vectors."""
    near, direction = (F.normalize(randn(4, 1, 512, seed=seed), dim=2) for seed in (0, 1))
    representations = torch.cat([near, near + 1e-4 * direction], dim=1)
    losses = alignment_loss(representations.float()).double()
    assert torch.allclose(losses, alignment_loss(representations), rtol=1e-3)


def test_token_distances_keep_small_distances_in_float32():
    near = randn(2, 1, 20, 8)
    tokens = torch.cat([near, near + 1e-5 * randn(2, 1, 20, 8, seed=1)], dim=1)
    seen = torch.ones(2, 2, 20, dtype=torch.bool)
    exact = masked_token_distances(tokens, seen)[:, 0, 1]
    rough = masked_token_distances(tokens.float(), seen)[:, 0, 1]
    assert torch.allclose(rough.double(), exact, rtol=0.02)


def test_pooled_and_flattened_representations_have_length_one():
    first, second = [[[[3.0, 0.0], [0.0, 4.0]]]], [[[[0.0, 0.0], [0.0, 2.0]]]]
    views = [View(torch.tensor(first)), View(torch.tensor(second))]
    tokens = represent(Rows(), views, "tokens")  # of length one over all tokens together
    assert torch.allclose(tokens, torch.tensor([[[0.6, 0.0, 0.0, 0.8], [0.0, 0.0, 0.0, 1.0]]]))
    assert torch.allclose(represent(Rows(), views), torch.tensor([[[0.6, 0.8], [0.0, 1.0]]]))


def test_tokens_of_masked_views_are_compared_only_where_both_see_written_out():
    masks = [draw_masks(3, 9, 4, seed).sort(dim=1).values for seed in range(4)]
    pixels = randn(5, 3, 2, 3, 3)
    views = [View(*view) for view in zip(pixels, [*masks, None])]  # the last hides nothing
    seen = [mask.tolist() for mask in masks] + [3 * [range(9)]]
    distances = encoder_distances(Places(), views, "tokens")
    for image, i, j in itertools.product(range(3), range(5), range(5)):
        in_both = sorted(set(seen[i][image]) & set(seen[j][image]))
        tokens = [pixels[v, image].flatten(1)[:, in_both].T.flatten() for v in (i, j)]
        vectors = [[5.0, 5.0, *token.tolist()] for token in tokens]  # after the class token
        one, other = ([x / math.hypot(*vector) for x in vector] for vector in vectors)
        close = 1e-7 if i == j else 1e-12
        assert distances[image, i, j].item() == pytest.approx(math.dist(one, other), abs=close)


def test_masks_alone_put_no_distance_between_views_that_are_perfectly_aligned():
    """Zeros in the place of hidden tokens would put them more than 1 apart."""
    pixels = randn(4, 6, 8, 8).float()
    views = [View(pixels, draw_masks(4, 64, 16, seed)) for seed in range(3)]
    assert encoder_distances(Places(), views, "tokens").abs().max() < 1e-6


@torch.no_grad()
def test_with_everything_visible_masked_tokens_are_all_tokens():
    encoder, pixels = make_vit(1).eval(), randn(3, 2, 1, 16, 16).float()
    everything = torch.arange(16).expand(2, -1)
    masked = encoder_distances(encoder, [View(view, everything) for view in pixels], "tokens")
    whole = encoder_distances(encoder, [View(view) for view in pixels], "tokens")
    assert torch.allclose(masked, whole, atol=1e-5) and whole[:, 0, 1].min() > 0.1


@torch.no_grad()
def test_pooled_distances_are_those_of_the_encoders_output_under_the_mask(one_thread):
    encoder, pixels = make_vit(1).eval(), randn(3, 2, 1, 16, 16).float()
    views = [View(view, torch.tensor([[0, i], [i, 15]])) for view, i in zip(pixels, (3, 7, 9))]
    outputs = torch.stack([encoder(view.pixels, view.visible) for view in views], dim=1)
    expected = view_distances(F.normalize(outputs, dim=2))
    assert torch.equal(encoder_distances(encoder, views), expected)


def test_a_pair_made_by_hand_scores_positive_if_f_aligns_better():
    aligned = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    apart = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    f, g = torch.stack([aligned, apart]), torch.stack([apart, aligned])
    score = memorization_score(alignment_loss(f), alignment_loss(g))
    assert score[0] > 0 > score[1] and score[0] == -score[1]


def test_jackknife_equals_leaving_out_each_view_by_hand():
    f, g = (F.normalize(randn(4, 6, 5, seed=seed), dim=2) for seed in (1, 2))
    without = []
    for v in range(6):
        kept = [view for view in range(6) if view != v]
        without.append(memorization_score(alignment_loss(f[:, kept]), alignment_loss(g[:, kept])))
    expected = torch.stack(without).std(0, correction=0) * 5**0.5
    error = jackknife_error(view_distances(f), view_distances(g))
    assert torch.allclose(error, expected, atol=1e-12)


def test_jackknife_predicts_how_scores_repeat_with_fresh_views():
    """z of repeated scores, with many different samples, has standard deviation 1."""
    samples, V, D, repeats = 400, 10, 8, 30
    noise = torch.rand(2, samples, 1, 1, generator=seeded(), dtype=torch.float64) + 0.2  # of f, g
    centre, scores, errors = randn(samples, 1, D), [], []
    for repeat in range(repeats):
        shift = randn(samples, V, D, seed=1 + repeat)  # the same views through f and g
        f, g = F.normalize(centre + noise * shift, dim=3)
        scores.append(memorization_score(alignment_loss(f), alignment_loss(g)))
        errors.append(jackknife_error(view_distances(f), view_distances(g)))
    scores, errors = torch.stack(scores), torch.stack(errors)  # (repeats, samples)
    # Each sample's error is taken over its repeats: one alone has V - 1 degrees of freedom, and a z
    # of it the tails of Student's t.
    z = (scores - scores.mean(0)) / errors.square().mean(0).sqrt()
    assert z.std().item() * math.sqrt(repeats / (repeats - 1)) == pytest.approx(1, abs=0.15)


# --- vectors of any length ------------------------------------------------------------------------


def test_ordinary_vectors_are_normalized_as_torch_does_to_the_bit():
    for size in (1e-6, 1.0, 1e6):
        values = size * randn(200, 37).float()
        assert torch.equal(normalize(values, dim=1), F.normalize(values, dim=1))
        lengths = np.linalg.norm(values.numpy(), axis=1, keepdims=True)
        assert np.array_equal(normalize_rows(values.numpy()), values.numpy() / lengths)


@pytest.mark.parametrize("size", [1e-44, 1e-40, 1e-30, 1e-13, 1e19, 1e30, 3e38])
def test_vectors_whose_squares_overflow_or_vanish_are_normalized_too(size):
    values = torch.tensor([[0.6, -0.8], [1.0, 0.0], [0.0, 0.0]]) * size
    expected = F.normalize(values.double() / size, dim=1).float()
    close = 0.1 if size < 1e-38 else 1e-6  # what is left of a denormal number
    assert torch.allclose(normalize(values, dim=1), expected, atol=close)
    assert torch.allclose(torch.from_numpy(normalize_rows(values.numpy())), expected, atol=close)


def test_vectors_that_are_not_finite_stay_so():
    for value in (math.inf, math.nan):
        assert normalize(torch.tensor([[value, 1.0]]), dim=1).isnan().any()


@pytest.mark.parametrize("size", [1e-30, 1e25])
def test_losses_do_not_depend_on_the_size_of_representations(size):
    pixels = torch.rand(2, 5, 1, 2, 3, generator=seeded())
    for representation in ("pooled", "tokens"):
        expected, found = (
            encoder_distances(Rows(), [View(view) for view in factor * pixels], representation)
            for factor in (1, size)
        )
        assert torch.allclose(found, expected, atol=1e-6)
    seen, tokens = torch.ones(2, 3, 4, dtype=torch.bool), torch.rand(2, 3, 4, 5, generator=seeded())
    expected = masked_token_distances(tokens, seen)
    assert torch.allclose(masked_token_distances(size * tokens, seen), expected, atol=1e-6)
