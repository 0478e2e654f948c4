import pytest
import torch

from memorization.neighbors import knn_accuracy


def test_the_nearest_by_angle_vote():
    bank = torch.tensor([[1.0, 0.0], [5.0, 0.5], [0.0, 1.0], [-1.0, 0.0]])
    labels = torch.tensor([0, 0, 1, 2])
    queries = torch.tensor([[1.0, 0.1], [0.1, 9.0], [-3.0, 0.2]])
    assert knn_accuracy(queries, torch.tensor([0, 1, 2]), bank, labels, k=1) == 1.0
    assert knn_accuracy(queries, torch.tensor([0, 0, 2]), bank, labels, k=1) == pytest.approx(2 / 3)


def test_a_tie_goes_to_the_lower_label_and_k_is_at_most_the_bank():
    bank, labels = torch.eye(2), torch.tensor([1, 0])
    assert knn_accuracy(torch.tensor([[1.0, 0.2]]), torch.tensor([0]), bank, labels, k=20) == 1.0


def test_votes_equal_a_slow_count():
    generator = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(50, 4, generator=generator), torch.randn(30, 4, generator=generator)
    labels, wanted = torch.randint(3, (50,), generator=generator), torch.randint(3, (30,), generator=generator)
    right = 0
    for query, label in zip(queries, wanted):
        nearest = sorted(range(50), key=lambda i: -torch.cosine_similarity(query, bank[i], dim=0).item())[:7]
        votes = [sum(labels[i].item() == c for i in nearest) for c in range(3)]
        right += votes.index(max(votes)) == label
    assert knn_accuracy(queries, wanted, bank, labels, k=7) == pytest.approx(right / 30)
