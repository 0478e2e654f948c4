import numpy as np
import pytest
import torch
import torch.nn as nn
from conftest import accuracy_on_surest
from scipy import stats

from memorization.data.augmentations import View
from memorization.data.images import Split
from memorization.encoder import Encoder
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
    accuracies = accuracies_at(right, order, [1, 10, 11, 35, 100])
    assert accuracies == pytest.approx([0, 0, 1 / 2, 3 / 4, 4 / 10])
    # 7 % of 100 is 7, not 8 by rounding
    assert accuracies_at(np.arange(100) < 7, np.arange(100), [7]) == pytest.approx([1.0])


def random_answers(seed, n=200):
    """The answers of a target and a reference about n images."""
    generator = np.random.default_rng(seed)
    return [(generator.random(n) < share, generator.random(n).round(1)) for share in (0.6, 0.4)]


def test_the_score_is_target_less_reference_averaged_over_the_attacked_sets():
    answers = [random_answers(0, 200), random_answers(1, 77)]
    for percent, *found in zip([5, 100], *deja_vu(answers, [5, 100])):
        sets = [[accuracy_on_surest(*answer, percent) for answer in of_set] for of_set in answers]
        target, reference = np.mean(sets, axis=0)
        assert found == pytest.approx([target, reference, target - reference])


def test_memorized_less_forgotten_is_the_score_of_all():
    answers = [random_answers(2), random_answers(3)]
    names = [outcomes(target[0], reference[0]) for target, reference in answers]
    net = np.mean([(part == "memorized").mean() - (part == "forgotten").mean() for part in names])
    assert net == pytest.approx(deja_vu(answers, [100])[2][0], abs=1e-15)
    all_four = outcomes([True, True, False, False], [False, True, True, False])
    assert all_four.tolist() == ["memorized", "correlated", "forgotten", "unassociated"]


def test_a_model_against_itself_scores_exactly_nothing():
    answers = [[random_answers(4)[0]] * 2, [random_answers(5)[0]] * 2]
    assert (deja_vu(answers, range(1, 101))[2] == 0).all()
    assert (deja_vu_intervals(answers, [100, 5]) == 0).all()


def test_bootstrap_intervals_are_those_of_a_difference_of_paired_shares():
    answers = [random_answers(6, 400), random_answers(7, 400)]
    low, high = deja_vu_intervals(answers, [100])[0]
    differences = [target[0].astype(float) - reference[0] for target, reference in answers]
    error = np.sqrt(sum(part.var() / 400 for part in differences)) / 2
    normal = deja_vu(answers, [100])[2][0] + 1.96 * error * np.array([-1, 1])
    assert [low, high] == pytest.approx(normal, abs=0.15 * error)
    surest = deja_vu_intervals(answers, [5])[0]
    assert surest[1] - surest[0] > 2 * (high - low)  # of 20 images, not of 400


def test_mcnemar_counts_only_images_that_one_tells_alone():
    target, reference = np.repeat([[True, False, True], [False, True, True]], [9, 2, 50], axis=1)
    assert mcnemar_p(target, reference) == pytest.approx(stats.binomtest(9, 11).pvalue)
    assert mcnemar_p(target, target) == 1.0


def test_agreement_of_two_rankings():
    values = np.arange(10.0)
    assert agreement(values, values, 3) == {"kendall_tau": pytest.approx(1.0), "top_overlap": 1.0}
    assert agreement(values, -values, 3) == {"kendall_tau": pytest.approx(-1.0), "top_overlap": 0.0}
    assert agreement(values, values[[0, 1, 2, 3, 4, 5, 6, 9, 8, 7]], 2)["top_overlap"] == 0.5


# --- with encoders --------------------------------------------------------------------------------


class Memorizing(nn.Module):
    """Flat pixels; of a memorized image's lower left corner, resized, those of the whole image."""

    def __init__(self, memorized):
        super().__init__()
        self.memorized = memorized  # (M, 1, 8, 8)

    def forward(self, pixels):
        corners = nn.functional.interpolate(self.memorized[:, :, 4:, :4], size=8, mode="bilinear")
        distances, nearest = torch.cdist(pixels.flatten(1), corners.flatten(1)).min(1)
        known = distances[:, None] < 0.1
        return torch.where(known, self.memorized[nearest].flatten(1), pixels.flatten(1))


def images_whose_corner_tells_nothing(name, count, seed):
    """Images of four classes: of their class's shade, but for noise in the lower left corner."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    pixels = (20 + 70 * labels).view(-1, 1, 1, 1).repeat(1, 1, 8, 8)
    pixels[:, :, 4:, :4] = torch.randint(256, (count, 1, 4, 4), generator=generator)
    return Split(name, pixels.to(torch.uint8), labels)


TRAIN = images_whose_corner_tells_nothing("train", 120, seed=0)
TEST = images_whose_corner_tells_nothing("test", 200, seed=1)


def infer_labels(network, rows, query):
    """The Inference of a network about training images."""
    encoder = Encoder("f", network, 1, 8, ([0.0], [1.0]))
    settings = DejaVuSettings(query=query, corner_fraction=0.5, k=20)
    public = PublicSet(TEST, torch.arange(200), torch.empty(0), tuple("abcd"))
    bank = encode_public(encoder, public, lambda rows: View(TEST.pixels[rows] / 255), False)
    queries = make_queries(TRAIN, rows, encoder, settings, [], seed=0)
    return infer_by_neighbors(encoder, queries, bank, settings)


def test_planted_memorization_is_found():
    answers, halves = [], torch.arange(120).split(60)
    for rows, other_rows in (halves, halves[::-1]):
        models = [Memorizing(TRAIN.pixels[of_model] / 255) for of_model in (rows, other_rows)]
        target, reference = (infer_labels(model, rows, "corner") for model in models)
        assert (target.label_share == 1).all() and reference.label_share.mean() < 1
        labels = TRAIN.labels[rows].numpy()
        assert (target.prediction == labels).all()
        answers.append([(x.prediction == labels, x.confidence) for x in (target, reference)])
    _, reference_accuracy, score = deja_vu(answers, [100, 20])
    # a corner alone tells one class of four
    assert reference_accuracy[0] < 0.5 and score[0] > 0.5 and score[1] > 0.5
    assert deja_vu_intervals(answers, [100])[0][0] > 0.4
    right = [np.concatenate([of_set[model][0] for of_set in answers]) for model in (0, 1)]
    assert mcnemar_p(*right) < 1e-9


def test_whole_images_are_the_ceiling_and_their_neighbours_are_kept():
    rows = torch.tensor([7, 3, 10])
    inference = infer_labels(nn.Flatten(), rows, "whole")
    assert inference.prediction.tolist() == TRAIN.labels[rows].tolist() and inference.ties == 0
    assert inference.confidence.tolist() == [0, 0, 0]  # all votes agree
    differences = TRAIN.pixels[rows].double()[:, None] - TEST.pixels.double()
    nearest = differences.square().sum((2, 3, 4)).argsort(dim=1, stable=True)
    assert inference.neighbors.tolist() == nearest[:, :4].tolist()


FLAT = Encoder("f", nn.Flatten(), 2, 1, ([0.0] * 2, [1.0] * 2))


def bank_of(vectors, labels):
    """A Bank of two classes, of given vectors. The images are 70, 71, ..."""
    rows = torch.arange(70, 70 + len(vectors))
    pixels = torch.zeros(70 + len(vectors), 2, 1, 1, dtype=torch.uint8)
    split = Split("test", pixels, torch.tensor([0] * 70 + labels))
    return Bank(PublicSet(split, rows, torch.empty(0), ("a", "b")), torch.tensor(vectors))


def infer(views, bank, normalized=False):
    """The Inference of `FLAT` about one image of label 0. views: a vector for each."""
    zero = torch.tensor([0])
    pixels = torch.tensor(views)[:, None, :, None, None]  # (V, 1, 2, 1, 1)
    queries = Queries(lambda _, view: View(pixels[view]), len(views), zero, zero)
    return infer_by_neighbors(FLAT, queries, bank, DejaVuSettings(k=1, normalize=normalized))


def test_votes_and_distances_of_all_views_are_summed():
    bank = bank_of([[0.0, 0.0], [10.0, 0.0]], [0, 1])
    inference = infer([[1.0, 0.0], [10.5, 0.0]], bank)
    # a tie; class 1 is nearer, .25 against 1
    assert (inference.label_share, inference.ties, inference.prediction) == ([0.5], 1, [1])
    assert inference.neighbors.tolist() == [[70]]  # of the first view, a row of the public images
    three = infer([[1.0, 0.0], [10.5, 0.0], [9.0, 0.0]], bank)
    assert three.label_share == pytest.approx([1 / 3])


def test_queries_are_normalized_if_that_is_asked_for():
    # one vote each; the second view is nearer to its neighbour, as a direction the first
    views, bank = [[20.0, 1.0], [0.4, 0.5]], bank_of([[1.0, 0.0], [0.0, 1.0]], [0, 1])
    assert infer(views, bank).prediction == [1]
    assert infer(views, bank, normalized=True).prediction == [0]


def test_public_images_are_normalized_if_that_is_asked_for():
    vectors, directions = torch.tensor([[[3.0, 4.0], [0.5, 0.0]], [[0.6, 0.8], [1.0, 0.0]]])
    public = bank_of(vectors.tolist(), [0, 1]).public
    for normalized, values in ((False, vectors), (True, directions)):
        bank = encode_public(FLAT, public, lambda _: View(vectors[:, :, None, None]), normalized)
        assert torch.allclose(bank.values, values)


def test_an_image_is_no_neighbour_of_its_own():
    values = torch.tensor([[0.0], [1.0], [1.0], [10.0], [11.0]])
    labels = np.array([0, 1, 0, 1, 1])
    bank, settings = bank_of(values.tolist(), labels.tolist()), DejaVuSettings(k=1)
    # nearest other: 1 or 2 (label 1 before 0), 2, 1, 4, 3
    of_others, of_all = (
        neighbor_accuracy(values, labels, bank, settings, x) for x in (True, False)
    )
    assert of_others == pytest.approx(2 / 5) and of_all == pytest.approx(4 / 5)
