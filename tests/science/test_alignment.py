import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from memorization.alignment import (
    alignment_loss,
    encoder_distances,
    jackknife_error,
    masked_token_distances,
    mean_over_pairs,
    memorization_score,
    represent,
    view_distances,
)
from memorization.data.augmentations import View
from memorization.normalization import normalize, normalize_rows
from models.encoders import encoder_settings, make_encoder


def random_views(B, V, D, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(B, V, D, generator=generator, dtype=torch.float64), dim=2)


def test_alignment_loss_is_the_mean_distance_over_pairs_of_views():
    representations = torch.tensor([[[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]])  # distances 3, 4 and 5
    assert torch.allclose(alignment_loss(representations), torch.tensor([4.0]))


def test_alignment_loss_equals_the_slow_sum_of_the_definition():
    representations = random_views(B=3, V=5, D=7)
    for sample, loss in zip(representations, alignment_loss(representations)):
        distances = [
            math.dist(sample[i].tolist(), sample[j].tolist())
            for i in range(5)
            for j in range(i + 1, 5)
        ]
        assert loss.item() == pytest.approx(sum(distances) / 10, abs=1e-12)


def test_alignment_loss_keeps_small_distances_in_float32():
    """|a|^2 - 2ab + |b|^2 would leave nothing of a distance of 1e-4 between unit vectors."""
    near = F.normalize(
        torch.randn(4, 1, 512, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
        dim=2,
    )
    step = 1e-4 * F.normalize(
        torch.randn(4, 1, 512, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
        dim=2,
    )
    representations = torch.cat([near, near + step], dim=1)
    assert torch.allclose(
        alignment_loss(representations.float()).double(), alignment_loss(representations), rtol=1e-3
    )


class Rows(torch.nn.Module):
    """Each row of an image is a token; their mean is the representation."""

    def forward(self, pixels, visible=None):
        return self.tokens(pixels).mean(1)

    def tokens(self, pixels, visible=None):
        return pixels[:, 0]


def test_pooled_and_flattened_representations_have_length_one():
    first, second = (
        View(torch.tensor([[[[3.0, 0.0], [0.0, 4.0]]]])),
        View(torch.tensor([[[[0.0, 0.0], [0.0, 2.0]]]])),
    )
    tokens = represent(Rows(), [first, second], "tokens")
    # over all tokens together
    assert torch.allclose(tokens, torch.tensor([[[0.6, 0.0, 0.0, 0.8], [0.0, 0.0, 0.0, 1.0]]]))
    assert torch.allclose(
        represent(Rows(), [first, second]), torch.tensor([[[0.6, 0.8], [0.0, 1.0]]])
    )


class Places(torch.nn.Module):
    """Stands for a vision transformer that says of each patch of one pixel what it shows, and 5 as
    the class token.
    """

    patch = 1

    def tokens(self, pixels, visible=None):
        patches = pixels.flatten(2).transpose(1, 2)  # (B, T, C)
        if visible is not None:
            patches = patches.gather(1, visible[:, :, None].expand(-1, -1, patches.shape[2]))
        return torch.cat([torch.full_like(patches[:, :1], 5.0), patches], dim=1)


def test_tokens_of_masked_views_are_compared_only_where_both_see_written_out():
    generator = torch.Generator().manual_seed(0)
    views = [
        View(torch.randn(3, 2, 3, 3, generator=generator, dtype=torch.float64)) for _ in range(5)
    ]
    visible = [
        torch.rand(3, 9, generator=generator).argsort(dim=1)[:, :4].sort(dim=1).values
        for _ in range(4)
    ] + [None]
    # the last view hides nothing
    views = [View(view.pixels, seen) for view, seen in zip(views, visible)]
    distances = encoder_distances(Places(), views, "tokens")
    for image in range(3):
        for i in range(5):
            for j in range(5):
                seen = [
                    set(range(9)) if view.visible is None else set(view.visible[image].tolist())
                    for view in (views[i], views[j])
                ]
                vectors = [[5.0, 5.0], [5.0, 5.0]]  # the class token
                for place in sorted(seen[0] & seen[1]):
                    for vector, view in zip(vectors, (views[i], views[j])):
                        vector += view.pixels[image, :, place // 3, place % 3].tolist()
                one, other = ([x / math.hypot(*vector) for x in vector] for vector in vectors)
                assert distances[image, i, j].item() == pytest.approx(
                    math.dist(one, other), abs=1e-7 if i == j else 1e-12
                )


def test_masks_alone_put_no_distance_between_views_that_are_perfectly_aligned():
    """Zeros in the place of hidden tokens would put them more than 1 apart."""
    pixels = torch.randn(4, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    masks = [
        torch.rand(4, 64, generator=torch.Generator().manual_seed(i)).argsort(dim=1)[:, :16]
        for i in range(3)
    ]
    distances = encoder_distances(Places(), [View(pixels, mask) for mask in masks], "tokens")
    assert distances.abs().max() < 1e-6


@pytest.mark.parametrize(
    "encoder, representation, masked",
    [
        (lambda pixels, visible=None: pixels.flatten(1), "pooled", False),
        (Rows(), "tokens", False),
        (Places(), "tokens", True),
    ],
)
def test_representations_of_half_precision_are_compared_in_single(encoder, representation, masked):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(3, 4, 1, 6, 6, generator=generator).bfloat16()  # of three views
    visible = torch.rand(4, 36, generator=generator).argsort(dim=1)[:, :20] if masked else None
    half, single = (
        [View(view.to(dtype), visible) for view in pixels]
        for dtype in (torch.bfloat16, torch.float32)
    )
    distances = encoder_distances(encoder, half, representation)
    assert distances.dtype == torch.float32 and torch.equal(
        distances, encoder_distances(encoder, single, representation)
    )


def test_with_everything_visible_masked_tokens_are_all_tokens():
    torch.manual_seed(0)
    encoder = make_encoder(encoder_settings(name="vit_mini", width=32, depth=1), 1, 16).eval()
    pixels = torch.randn(3, 2, 1, 16, 16)
    everything = torch.arange(16).expand(2, -1)
    with torch.no_grad():
        masked = encoder_distances(encoder, [View(view, everything) for view in pixels], "tokens")
        whole = encoder_distances(encoder, [View(view) for view in pixels], "tokens")
    assert torch.allclose(masked, whole, atol=1e-5) and whole[:, 0, 1].min() > 0.1


def test_tokens_of_masked_views_are_no_vectors():
    with pytest.raises(ValueError, match="masked_token_distances"):
        represent(Places(), [View(torch.zeros(1, 1, 2, 2), torch.tensor([[0]]))], "tokens")


def test_pooled_distances_are_those_of_the_encoders_output_under_the_mask(one_thread):
    torch.manual_seed(0)
    encoder = make_encoder(encoder_settings(name="vit_mini", width=32, depth=1), 1, 16).eval()
    views = [View(torch.randn(2, 1, 16, 16), torch.tensor([[0, i], [i, 15]])) for i in (3, 7, 9)]
    with torch.no_grad():
        expected = torch.stack(
            [F.normalize(encoder(view.pixels, view.visible), dim=1) for view in views], dim=1
        )
        assert torch.equal(encoder_distances(encoder, views), view_distances(expected))


def test_token_distances_keep_small_distances_in_float32():
    generator = torch.Generator().manual_seed(0)
    near = torch.randn(2, 1, 20, 8, generator=generator, dtype=torch.float64)
    tokens = torch.cat(
        [near, near + 1e-5 * torch.randn(2, 1, 20, 8, generator=generator, dtype=torch.float64)],
        dim=1,
    )
    seen = torch.ones(2, 2, 20, dtype=torch.bool)
    exact = masked_token_distances(tokens, seen)
    assert torch.allclose(
        masked_token_distances(tokens.float(), seen).double()[:, 0, 1], exact[:, 0, 1], rtol=0.02
    )


def test_alignment_loss_of_one_view_is_refused():
    for of_one_view in (
        lambda: alignment_loss(torch.zeros(1, 1, 4)),
        lambda: mean_over_pairs(torch.zeros(1, 1, 1)),
    ):
        with pytest.raises(ValueError, match="at least 2"):
            of_one_view()


def test_a_pair_made_by_hand_scores_positive_where_f_aligns_better():
    aligned = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    apart = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    f, g = torch.stack([aligned, apart]), torch.stack([apart, aligned])
    score = memorization_score(alignment_loss(f), alignment_loss(g))
    assert score[0] > 0 > score[1] and score[0] == -score[1]


def test_jackknife_equals_leaving_out_each_view_by_hand():
    f, g = random_views(4, 6, 5, seed=1), random_views(4, 6, 5, seed=2)
    without = torch.stack(
        [
            memorization_score(alignment_loss(f[:, kept]), alignment_loss(g[:, kept]))
            for v in range(6)
            for kept in [[view for view in range(6) if view != v]]
        ]
    )
    expected = (5 / 6 * (without - without.mean(0)).square().sum(0)).sqrt()
    assert torch.allclose(
        jackknife_error(view_distances(f), view_distances(g)), expected, atol=1e-12
    )


def test_jackknife_predicts_how_scores_repeat_with_fresh_views():
    """z of repeated scores, with many different samples, has standard deviation 1."""
    samples, V, D, repeats = 400, 10, 8, 30
    generator = torch.Generator().manual_seed(0)
    noise_f, noise_g = torch.rand(2, samples, 1, 1, generator=generator, dtype=torch.float64) + 0.2
    centre = torch.randn(samples, 1, D, generator=generator, dtype=torch.float64)
    scores, errors = [], []
    for _ in range(repeats):
        # the same views through f and g
        shift = torch.randn(samples, V, D, generator=generator, dtype=torch.float64)
        f, g = (
            F.normalize(centre + noise_f * shift, dim=2),
            F.normalize(centre + noise_g * shift, dim=2),
        )
        scores.append(memorization_score(alignment_loss(f), alignment_loss(g)))
        errors.append(jackknife_error(view_distances(f), view_distances(g)))
    scores, errors = torch.stack(scores), torch.stack(errors)  # (repeats, samples)
    # Each sample's error is taken over its repeats: one alone has V - 1 degrees of freedom, and a z
    # of it the tails of Student's t.
    z = (
        (scores - scores.mean(0))
        / errors.square().mean(0).sqrt()
        * math.sqrt(repeats / (repeats - 1))
    )
    assert z.std().item() == pytest.approx(1, abs=0.15)


def test_jackknife_of_two_views_is_refused():
    with pytest.raises(ValueError, match="at least 3"):
        jackknife_error(torch.zeros(2, 2, 2), torch.zeros(2, 2, 2))


# --- vectors of any length ------------------------------------------------------------------------


def test_ordinary_vectors_are_normalized_as_torch_does_to_the_bit():
    generator = torch.Generator().manual_seed(0)
    for size in (1e-6, 1.0, 1e6):
        values = size * torch.randn(200, 37, generator=generator)
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
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 5, 1, 2, 3, generator=generator)
    views, scaled = ([View(factor * part) for part in pixels] for factor in (1, size))
    for representation in ("pooled", "tokens"):
        expected = encoder_distances(Rows(), views, representation)
        assert torch.allclose(
            encoder_distances(Rows(), scaled, representation), expected, atol=1e-6
        )
    seen = torch.ones(2, 3, 4, dtype=torch.bool)
    tokens = torch.rand(2, 3, 4, 5, generator=generator)
    expected = masked_token_distances(tokens, seen)
    assert torch.allclose(masked_token_distances(size * tokens, seen), expected, atol=1e-6)
