import numpy as np
import pytest
import torch
import torch.nn as nn
from scipy import stats

from memorization.data.augmentations import View
from memorization.data.images import Split
from memorization.encoder import Encoder
from memorization.errors import WrongUse
from memorization.measuring.deja_vu import (
    Bank,
    DejaVuSettings,
    PublicSet,
    accuracies_at,
    agreement,
    by_confidence,
    deja_vu,
    deja_vu_intervals,
    encode_public,
    infer_by_neighbors,
    mcnemar_p,
    neighbor_accuracy,
    outcomes,
)
from memorization.measuring.queries import Queries, make_queries


def test_the_surest_are_the_first_of_p_n_rounded_up_and_equals_stand_in_order_of_index():
    right = np.array([True, False, True, False, False, True, False, True, False, False])
    confidence = np.array([0.5, 0.9, 0.5, 0.1, 0.2, 0.5, 0.0, 0.0, 0.0, 0.0])
    order = by_confidence(confidence)
    assert order.tolist() == [1, 0, 2, 5, 4, 3, 6, 7, 8, 9]
    # 1 % and 10 % are one image, 11 % two, 35 % four, 100 % all ten
    assert accuracies_at(right, order, [1, 10, 11, 35, 100]) == pytest.approx(
        [0, 0, 1 / 2, 3 / 4, 4 / 10]
    )
    # 7 % of 100 is 7, not 8 by rounding
    assert accuracies_at(np.arange(100) < 7, np.arange(100), [7]) == pytest.approx([1.0])


def random_models(seed, n=200):
    generator = np.random.default_rng(seed)
    return [(generator.random(n) < share, generator.random(n).round(1)) for share in (0.6, 0.4)]


def test_the_score_is_target_less_reference_averaged_over_the_attacked_sets():
    attacks = [random_models(0, 200), random_models(1, 77)]
    target, reference, score = deja_vu(attacks, [5, 100])
    for k, percent in enumerate([5, 100]):
        of_models = []
        for model in range(2):
            accuracies = []
            for attack in attacks:
                right, confidence = attack[model]
                surest = sorted(range(len(right)), key=lambda i: (-confidence[i], i))[
                    : int(np.ceil(percent * len(right) / 100))
                ]
                accuracies.append(np.mean([right[i] for i in surest]))
            of_models.append(np.mean(accuracies))
        assert [target[k], reference[k], score[k]] == pytest.approx(
            [*of_models, of_models[0] - of_models[1]]
        )


def test_memorized_less_forgotten_is_the_score_of_all():
    attacks = [random_models(2), random_models(3)]
    names = [outcomes(attack[0][0], attack[1][0]) for attack in attacks]
    net = np.mean([(part == "memorized").mean() - (part == "forgotten").mean() for part in names])
    assert net == pytest.approx(deja_vu(attacks, [100])[2][0], abs=1e-15)
    assert outcomes([True, True, False, False], [False, True, True, False]).tolist() == [
        "memorized", "correlated", "forgotten", "unassociated",
    ]  # fmt: skip


def test_a_model_against_itself_scores_exactly_nothing():
    attacks = [[random_models(4)[0]] * 2, [random_models(5)[0]] * 2]
    assert (deja_vu(attacks, range(1, 101))[2] == 0).all()
    assert (deja_vu_intervals(attacks, [100, 5]) == 0).all()


def test_bootstrap_intervals_are_those_of_a_difference_of_paired_shares():
    attacks = [random_models(6, 400), random_models(7, 400)]
    low, high = deja_vu_intervals(attacks, [100])[0]
    differences = [target[0].astype(float) - reference[0] for target, reference in attacks]
    error = np.sqrt(sum(part.var() / 400 for part in differences)) / 2
    score = deja_vu(attacks, [100])[2][0]
    assert [low, high] == pytest.approx(
        [score - 1.96 * error, score + 1.96 * error], abs=0.15 * error
    )
    surest = deja_vu_intervals(attacks, [5])[0]
    assert surest[1] - surest[0] > 2 * (high - low)  # of 20 images, not of 400


def test_mcnemar_counts_only_images_that_one_tells_alone():
    target, reference = (
        np.array([True] * 9 + [False] * 2 + [True] * 50),
        np.array([False] * 9 + [True] * 2 + [True] * 50),
    )
    assert mcnemar_p(target, reference) == pytest.approx(stats.binomtest(9, 11).pvalue)
    assert mcnemar_p(target, target) == 1.0


def test_agreement_of_two_rankings():
    values = np.arange(10.0)
    assert agreement(values, values, 3) == {"kendall_tau": pytest.approx(1.0), "top_overlap": 1.0}
    assert agreement(values, -values, 3) == {"kendall_tau": pytest.approx(-1.0), "top_overlap": 0.0}
    assert agreement(values, values[[0, 1, 2, 3, 4, 5, 6, 9, 8, 7]], 2)["top_overlap"] == 0.5


# --- with encoders --------------------------------------------------------------------------------


class Memorizing(nn.Module):
    """Flat pixels; but from the lower left corner of an image that it memorized, resized, the flat
    pixels of the whole image.
    """

    def __init__(self, memorized):
        super().__init__()
        self.memorized = memorized  # (M, 1, 8, 8)

    def forward(self, pixels):
        corners = nn.functional.interpolate(self.memorized[:, :, 4:, :4], size=8, mode="bilinear")
        distances = torch.cdist(pixels.flatten(1), corners.flatten(1))
        known = distances.min(1).values < 0.1
        return torch.where(
            known[:, None], self.memorized[distances.argmin(1)].flatten(1), pixels.flatten(1)
        )


def images_whose_corner_tells_nothing(name, count, seed):
    """Images of four classes: three quarters have the shade of the class, the lower left corner is
    noise.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    pixels = (20 + 70 * labels)[:, None, None, None].expand(count, 1, 8, 8).clone()
    pixels[:, :, 4:, :4] = torch.randint(256, (count, 1, 4, 4), generator=generator)
    return Split(name, pixels.to(torch.uint8), labels)


def infer_labels(network, train, rows, test, query="corner", k=20):
    encoder = Encoder("f", network, 1, 8, ([0.0], [1.0]))
    settings = DejaVuSettings(query=query, corner_fraction=0.5, k=k)
    queries = make_queries(train, rows, encoder, settings, [], seed=0)
    public = PublicSet(test, torch.arange(len(test)), torch.empty(0), tuple("abcd"))
    whole = make_queries(test, public.rows, encoder, DejaVuSettings(query="whole"), [], seed=0)
    bank = encode_public(encoder, public, lambda batch: whole.make_view(batch, 0), False)
    return infer_by_neighbors(encoder, queries, bank, settings)


def test_planted_memorization_is_found():
    train, test = (
        images_whose_corner_tells_nothing("train", 120, seed=0),
        images_whose_corner_tells_nothing("test", 200, seed=1),
    )
    candidate, independent = torch.arange(60), torch.arange(60, 120)
    f, g = Memorizing(train.pixels[candidate] / 255), Memorizing(train.pixels[independent] / 255)
    attacks, right = [], {}
    for name, rows, models in (
        ("candidate", candidate, (f, g)),
        ("independent", independent, (g, f)),
    ):
        inferences = [infer_labels(model, train, rows, test) for model in models]
        labels = train.labels.numpy()[rows]
        attacks.append([(each.prediction == labels, each.confidence) for each in inferences])
        right[name] = [part[0].mean() for part in attacks[-1]]
        shares = [inference.label_share for inference in inferences]
        assert (shares[0] == 1).all() and shares[0].mean() > shares[1].mean()
    assert right["candidate"][0] == right["independent"][0] == 1.0
    _, reference, score = deja_vu(attacks, [100, 20])
    # a corner alone tells one class of four
    assert reference[0] < 0.5 and score[0] > 0.5 and score[1] > 0.5
    assert deja_vu_intervals(attacks, [100])[0][0] > 0.4
    assert (
        mcnemar_p(*(np.concatenate([attack[model][0] for attack in attacks]) for model in (0, 1)))
        < 1e-9
    )


def test_whole_images_are_the_ceiling_and_their_neighbours_are_kept():
    train, test = (
        images_whose_corner_tells_nothing("train", 40, seed=0),
        images_whose_corner_tells_nothing("test", 200, seed=1),
    )
    rows = torch.tensor([7, 3, 10])
    inference = infer_labels(nn.Flatten(), train, rows, test, query="whole")
    assert inference.prediction.tolist() == train.labels[rows].tolist() and inference.ties == 0
    assert inference.confidence.tolist() == [0, 0, 0]  # all votes agree
    distances = (
        (train.pixels[rows].double().flatten(1)[:, None] - test.pixels.double().flatten(1))
        .square()
        .sum(2)
    )
    assert inference.neighbors.tolist() == distances.argsort(dim=1, stable=True)[:, :4].tolist()


def test_a_collapsed_encoder_is_refused_by_name():
    class Constant(nn.Module):
        def forward(self, pixels):
            return torch.full((len(pixels), 3), 0.1)

    train = images_whose_corner_tells_nothing("train", 40, seed=0)
    with pytest.raises(WrongUse, match="f: all images are represented alike"):
        infer_labels(Constant(), train, torch.arange(4), train)


class Shade(nn.Module):
    """The first two pixels."""

    def forward(self, pixels):
        return pixels[:, 0, 0, :2]


def bank_of(vectors, labels, rows=None):
    """A Bank of two classes, of given vectors. rows: of the images; by default 0, 1, ..."""
    rows = torch.arange(len(vectors)) if rows is None else torch.tensor(rows)
    of_all = torch.zeros(int(rows.max()) + 1, dtype=torch.int64)
    of_all[rows] = torch.tensor(labels)
    split = Split("test", torch.zeros(len(of_all), 1, 2, 2, dtype=torch.uint8), of_all)
    return Bank(PublicSet(split, rows, torch.empty(0), ("a", "b")), torch.tensor(vectors))


def infer(make_view, views, bank, normalized=False):
    """The Inference of `Shade` about one image of label 0."""
    encoder = Encoder("f", Shade(), 1, 2, ([0.0], [1.0]))
    queries = Queries(make_view, views, torch.tensor([0]), torch.tensor([0]))
    return infer_by_neighbors(encoder, queries, bank, DejaVuSettings(k=1, normalize=normalized))


def seen_in_turn(*vectors):
    return lambda indices, view: View(
        torch.tensor(vectors[view]).view(1, 1, 1, 2).expand(len(indices), 1, 2, 2)
    )


def test_votes_and_distances_of_all_views_are_summed():
    vectors, labels = [[0.0, 0.0], [10.0, 0.0]], [0, 1]
    bank = bank_of(vectors, labels, rows=[70, 80])
    inference = infer(seen_in_turn([1.0, 0.0], [10.5, 0.0]), 2, bank)
    # a tie; class 1 is nearer, .25 against 1
    assert (inference.label_share, inference.ties, inference.prediction) == ([0.5], 1, [1])
    assert inference.neighbors.tolist() == [[70]]  # of the first view, a row of the public images
    three = seen_in_turn([1.0, 0.0], [10.5, 0.0], [9.0, 0.0])
    assert infer(three, 3, bank_of(vectors, labels)).label_share == pytest.approx([1 / 3])


def test_queries_are_normalized_where_that_is_asked_for():
    # One vote each; as they are the second view is nearer to its neighbour, as directions the
    # first.
    views, bank = seen_in_turn([20.0, 1.0], [0.4, 0.5]), bank_of([[1.0, 0.0], [0.0, 1.0]], [0, 1])
    assert infer(views, 2, bank).prediction == [1]
    assert infer(views, 2, bank, normalized=True).prediction == [0]


def test_public_images_are_normalized_where_that_is_asked_for():
    encoder = Encoder("f", Shade(), 1, 2, ([0.0], [1.0]))
    vectors = torch.tensor([[3.0, 4.0], [0.5, 0.0]])
    public = bank_of(vectors.tolist(), [0, 1]).public

    def view(rows):
        return View(vectors[rows].view(-1, 1, 1, 2).expand(-1, 1, 2, 2))

    for normalized, values in ((False, vectors), (True, torch.tensor([[0.6, 0.8], [1.0, 0.0]]))):
        assert torch.allclose(encode_public(encoder, public, view, normalized).values, values)


def test_an_image_is_no_neighbour_of_its_own():
    values = torch.tensor([[0.0], [1.0], [1.0], [10.0], [11.0]])
    labels = np.array([0, 1, 0, 1, 1])
    bank, settings = bank_of(values.tolist(), labels.tolist()), DejaVuSettings(k=1)
    # nearest other: 1 or 2 (label 1 before 0), 2, 1, 4, 3
    assert neighbor_accuracy(values, labels, bank, settings, leave_out=True) == pytest.approx(2 / 5)
    assert neighbor_accuracy(values, labels, bank, settings, leave_out=False) == pytest.approx(
        4 / 5
    )
