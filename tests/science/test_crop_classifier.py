import numpy as np
import pytest
import torch
import torch.nn as nn
from conftest import CPU

from memorization.data.augmentations import View
from memorization.errors import WrongUse
from memorization.measuring import crop_classifier
from memorization.measuring.crop_classifier import infer_by_classifier, train_classifier
from memorization.measuring.queries import Queries

ROWS = torch.arange(60, 120)


def shades(indices, view):
    """The label of an image, its index modulo 3, is in its pixels; views differ a little."""
    return View((indices % 3).float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2) + 0.1 * view)


def queries(rows=ROWS, views=2):
    return Queries(shades, views, rows, rows % 3)


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)
    )


def test_labels_are_learned_from_queries_and_inferred_for_others():
    network = small_network()
    rows = torch.arange(60, 360)
    stopped = train_classifier(network, queries(rows), queries(ROWS[:9]), 60, 0, CPU)
    assert 1 < stopped["epoch"] <= 60 and stopped["held_out_loss"] < 0.5
    rows = torch.tensor([301, 302, 306])
    inference = infer_by_classifier(network, queries(rows))
    assert inference.prediction.tolist() == [1, 2, 0]
    assert np.array_equal(inference.confidence, inference.label_share)
    assert (inference.confidence > 0.4).all()
    alone = infer_by_classifier(network, queries(rows[1:2]))
    # batch norm is in eval mode
    assert alone.confidence == pytest.approx(inference.confidence[1:2], abs=1e-6)


def test_every_view_is_trained_on_in_turn_and_counts_in_inference():
    seen = []

    def noting(indices, view):
        seen.append((len(indices), view))
        return shades(indices, view)

    noted = Queries(noting, 3, ROWS, ROWS % 3)
    train_classifier(small_network(), noted, queries(ROWS[:9]), 4, 0, CPU)
    assert [view for _, view in seen] == [0, 1, 2, 0] and {count for count, _ in seen} == {60}

    class ByView(nn.Module):
        def forward(self, pixels):
            # the first view is sure of class 0, the second undecided
            first = pixels[:, 0, 0, 0] % 1 < 0.05
            return torch.where(first[:, None], torch.tensor([100.0, 0.0]), torch.tensor([0.0, 0.0]))

    of_one = Queries(shades, 2, torch.tensor([3]), torch.tensor([1]))
    inference = infer_by_classifier(ByView(), of_one)
    assert inference.confidence == pytest.approx([0.75])
    assert inference.label_share == pytest.approx([0.25])


def test_training_stops_when_held_out_images_gain_no_more_and_returns_to_the_best(monkeypatch):
    losses = iter([0.9, 0.5, *[0.7] * 50])
    states = []
    network = small_network()

    def scripted(network, queries, view):
        states.append({name: value.clone() for name, value in network.state_dict().items()})
        return torch.full((len(queries.rows), 3), float(np.exp(-next(losses))))

    monkeypatch.setattr(crop_classifier, "_probabilities", scripted)
    stopped = train_classifier(network, queries(), queries(ROWS[:9]), 60, 0, CPU)
    assert stopped == {"epoch": 2, "held_out_loss": pytest.approx(0.5)}
    assert len(states) == 2 + crop_classifier.PATIENCE
    assert all(torch.equal(value, states[1][name]) for name, value in network.state_dict().items())


def test_a_classifier_that_diverges_is_refused(monkeypatch):
    monkeypatch.setattr(
        crop_classifier,
        "_probabilities",
        lambda network, queries, view: torch.full((len(queries.rows), 3), torch.nan),
    )
    with pytest.raises(WrongUse, match="diverged"):
        train_classifier(small_network(), queries(), queries(ROWS[:9]), 3, 0, CPU)
