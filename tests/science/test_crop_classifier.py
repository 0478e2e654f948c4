import numpy as np
import pytest
import torch
import torch.nn as nn
from conftest import CPU, queries_of_shades, small_classifier

from memorization.data.augmentations import View
from memorization.measuring import crop_classifier
from memorization.measuring.crop_classifier import infer_by_classifier, train_classifier
from memorization.measuring.queries import Queries

TRAINING, HELD_OUT = queries_of_shades(range(60, 120)), queries_of_shades(range(60, 69))


def test_labels_are_learned_from_queries_and_inferred_for_others():
    network = small_classifier()
    training = queries_of_shades(range(60, 360))
    stopped = train_classifier(network, training, HELD_OUT, 60, 0, CPU)
    assert 1 < stopped["epoch"] <= 60 and stopped["held_out_loss"] < 0.5
    inference = infer_by_classifier(network, queries_of_shades([301, 302, 306]))
    assert inference.prediction.tolist() == [1, 2, 0]
    assert np.array_equal(inference.confidence, inference.label_share)
    assert (inference.confidence > 0.4).all()
    alone = infer_by_classifier(network, queries_of_shades([302]))
    # batch norm is in eval mode
    assert alone.confidence == pytest.approx(inference.confidence[1:2], abs=1e-6)


def test_every_view_is_trained_on_in_turn():
    seen = []

    def make_view(rows, view):
        seen.append((len(rows), view))
        return TRAINING.make_view(rows, view)

    noted = Queries(make_view, 3, TRAINING.rows, TRAINING.labels)
    train_classifier(small_classifier(), noted, HELD_OUT, 4, 0, CPU)
    assert seen == [(60, 0), (60, 1), (60, 2), (60, 0)]


def test_every_view_counts_in_inference():
    # the first view is sure of class 0, the second undecided
    logits = torch.tensor([[100.0, 0.0], [0.0, 0.0]])
    queries = Queries(
        lambda rows, view: View(logits[[view]]), 2, torch.tensor([3]), torch.tensor([1])
    )
    inference = infer_by_classifier(nn.Identity(), queries)
    assert inference.confidence == pytest.approx([0.75])
    assert inference.label_share == pytest.approx([0.25])


def test_training_stops_when_held_out_images_gain_no_more_and_returns_to_the_best(monkeypatch):
    losses, states, network = iter([0.9, 0.5, *[0.7] * 50]), [], small_classifier()

    def probabilities(network, queries, view):
        states.append({name: value.clone() for name, value in network.state_dict().items()})
        return torch.full((len(queries.rows), 3), float(np.exp(-next(losses))))

    monkeypatch.setattr(crop_classifier, "_probabilities", probabilities)
    stopped = train_classifier(network, TRAINING, HELD_OUT, 60, 0, CPU)
    assert stopped == {"epoch": 2, "held_out_loss": pytest.approx(0.5)}
    assert len(states) == 2 + crop_classifier.PATIENCE
    assert all(torch.equal(value, states[1][name]) for name, value in network.state_dict().items())
