import numpy as np
import pytest
import torch
import torch.nn as nn

from memorization.data.augmentations import View
from memorization.errors import WrongUse
from memorization.measuring import crop_classifier
from memorization.measuring.crop_classifier import infer_by_classifier, train_classifier
from memorization.measuring.queries import Queries

CPU = torch.device("cpu")
ROWS = torch.arange(60, 120)
LABELS = torch.arange(60) % 3


def shades(indices, view):
    """The label of an image is its index modulo 3, and stands in its pixels; views differ a little."""
    return View((indices % 3).float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2) + 0.1 * view)


def queries(rows=ROWS, views=2):
    return Queries(shades, views, rows, {}, 1)


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)
    )


def test_labels_are_learned_from_queries_and_inferred_for_others():
    network = small_network()
    rows = torch.arange(60, 360)
    stopped = train_classifier(
        network, queries(rows), rows % 3, queries(ROWS[:9]), LABELS[:9], 60, 0, CPU
    )
    assert 1 < stopped["epoch"] <= 60 and stopped["held_out_loss"] < 0.5
    rows = torch.tensor([301, 302, 306])
    found = infer_by_classifier(network, queries(), rows, np.array([1, 2, 0]))
    assert found.prediction.tolist() == [1, 2, 0]
    assert np.array_equal(found.confidence, found.label_share) and (found.confidence > 0.4).all()
    alone = infer_by_classifier(network, queries(), rows[1:2], np.array([2]))
    # batch norm is in eval mode
    assert alone.confidence == pytest.approx(found.confidence[1:2], abs=1e-6)


def test_every_view_is_trained_on_in_turn_and_counts_in_inference():
    seen = []

    def noting(indices, view):
        seen.append((len(indices), view))
        return shades(indices, view)

    train_classifier(
        small_network(),
        Queries(noting, 3, ROWS, {}, 1),
        LABELS,
        queries(ROWS[:9]),
        LABELS[:9],
        4,
        0,
        CPU,
    )
    assert [view for _, view in seen] == [0, 1, 2, 0] and {count for count, _ in seen} == {60}

    class ByView(nn.Module):
        def forward(self, pixels):
            # the first view is sure of class 0, the second undecided
            first = pixels[:, 0, 0, 0] % 1 < 0.05
            return torch.where(first[:, None], torch.tensor([100.0, 0.0]), torch.tensor([0.0, 0.0]))

    found = infer_by_classifier(ByView(), queries(), torch.tensor([3]), np.array([1]))
    assert found.confidence == pytest.approx([0.75]) and found.label_share == pytest.approx([0.25])


def test_training_stops_when_held_out_images_gain_no_more_and_returns_to_the_best(monkeypatch):
    losses = iter([0.9, 0.5, *[0.7] * 50])
    states = []
    network = small_network()

    def scripted(network, queries, rows, view):
        states.append({name: value.clone() for name, value in network.state_dict().items()})
        return torch.full((len(rows), 3), float(np.exp(-next(losses))))

    monkeypatch.setattr(crop_classifier, "_probabilities", scripted)
    stopped = train_classifier(
        network, queries(), LABELS, queries(ROWS[:9]), LABELS[:9], 60, 0, CPU
    )
    assert (
        stopped == {"epoch": 2, "held_out_loss": pytest.approx(0.5)}
        and len(states) == 2 + crop_classifier.PATIENCE
    )
    assert all(torch.equal(value, states[1][name]) for name, value in network.state_dict().items())


def test_a_classifier_that_diverges_is_refused(monkeypatch):
    monkeypatch.setattr(
        crop_classifier,
        "_probabilities",
        lambda network, queries, rows, view: torch.full((len(rows), 3), torch.nan),
    )
    with pytest.raises(WrongUse, match="diverged"):
        train_classifier(
            small_network(), queries(), LABELS, queries(ROWS[:9]), LABELS[:9], 3, 0, CPU
        )
