import math

import pytest
import torch
import torch.nn.functional as F

from memorization.alignment import alignment_loss, jackknife_error, memorization_score, represent
from memorization.augmentations import View


def random_views(B, V, D, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(B, V, D, generator=generator, dtype=torch.float64), dim=2)


def test_alignment_loss_is_the_mean_distance_over_pairs_of_views():
    representations = torch.tensor([[[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]])  # distances 3, 4 and 5
    assert torch.allclose(alignment_loss(representations), torch.tensor([4.0]))


def test_alignment_loss_equals_the_slow_sum_of_the_definition():
    representations = random_views(B=3, V=5, D=7)
    for sample, loss in zip(representations, alignment_loss(representations)):
        distances = [math.dist(sample[i].tolist(), sample[j].tolist()) for i in range(5) for j in range(i + 1, 5)]
        assert loss.item() == pytest.approx(sum(distances) / 10, abs=1e-12)


def test_alignment_loss_keeps_small_distances_in_float32():
    """|a|^2 - 2ab + |b|^2 would leave nothing of a distance of 1e-4 between unit vectors."""
    near = F.normalize(torch.randn(4, 1, 512, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=2)
    step = 1e-4 * F.normalize(torch.randn(4, 1, 512, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), dim=2)
    representations = torch.cat([near, near + step], dim=1)
    assert torch.allclose(alignment_loss(representations.float()).double(), alignment_loss(representations), rtol=1e-3)


class Rows(torch.nn.Module):
    """Each row of an image is a token; their mean is the representation."""

    def forward(self, pixels, visible=None):
        return self.tokens(pixels).mean(1)

    def tokens(self, pixels, visible=None):
        return pixels[:, 0]


def test_pooled_and_flattened_representations_have_length_one():
    first, second = View(torch.tensor([[[[3.0, 0.0], [0.0, 4.0]]]])), View(torch.tensor([[[[0.0, 0.0], [0.0, 2.0]]]]))
    tokens = represent(Rows(), [first, second], "tokens")
    assert torch.allclose(tokens, torch.tensor([[[0.6, 0.0, 0.0, 0.8], [0.0, 0.0, 0.0, 1.0]]]))  # over all tokens together
    assert torch.allclose(represent(Rows(), [first, second]), torch.tensor([[[0.6, 0.8], [0.0, 1.0]]]))


def test_alignment_loss_of_one_view_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        alignment_loss(torch.zeros(1, 1, 4))


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
    assert torch.allclose(jackknife_error(f, g), expected, atol=1e-12)


def test_jackknife_predicts_how_scores_repeat_with_fresh_views():
    """z of repeated scores, with many different samples, has standard deviation 1."""
    samples, V, D, repeats = 400, 10, 8, 30
    generator = torch.Generator().manual_seed(0)
    noise_f, noise_g = torch.rand(2, samples, 1, 1, generator=generator, dtype=torch.float64) + 0.2
    centre = torch.randn(samples, 1, D, generator=generator, dtype=torch.float64)
    scores, errors = [], []
    for _ in range(repeats):
        shift = torch.randn(samples, V, D, generator=generator, dtype=torch.float64)  # the same views through f and g
        f, g = F.normalize(centre + noise_f * shift, dim=2), F.normalize(centre + noise_g * shift, dim=2)
        scores.append(memorization_score(alignment_loss(f), alignment_loss(g)))
        errors.append(jackknife_error(f, g))
    scores, errors = torch.stack(scores), torch.stack(errors)  # (repeats, samples)
    # Each sample's error is taken over its repeats: one alone has V - 1 degrees of freedom, and a z of it the tails of Student's t.
    z = (scores - scores.mean(0)) / errors.square().mean(0).sqrt() * math.sqrt(repeats / (repeats - 1))
    assert z.std().item() == pytest.approx(1, abs=0.15)


def test_jackknife_of_two_views_is_refused():
    with pytest.raises(ValueError, match="at least 3"):
        jackknife_error(random_views(2, 2, 3), random_views(2, 2, 3))
