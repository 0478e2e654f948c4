import itertools
import math

import pytest
import torch
from conftest import keys_of, largest_correlation
from scipy import stats

from memorization.data import randomness
from memorization.data.randomness import PURPOSES, SPLITS, permutation, sample_keys, stream, uniform

WORD = 2**64 - 1


def splitmix64_finaliser(z):
    """As published by Steele, Lea and Flood (variant 13 of Stafford's mixers), for z >= 0."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)


def test_mixing_is_the_finaliser_of_splitmix64():
    words = [0, 1, 2, 5, 2**31, 2**32 + 1, 2**62, 2**63 - 1, 2**63, 2**63 + 12345]
    words += [0x9E3779B97F4A7C15, WORD - 1, WORD]
    expected = [splitmix64_finaliser(word) for word in words]
    mixed = randomness._mix(torch.tensor([randomness._to_int64(word) for word in words]))
    assert [word & WORD for word in mixed.tolist()] == expected
    assert [randomness._mix_int(word) for word in words] == expected


def test_the_numbers_of_a_key_are_the_sequence_that_splitmix64_draws_from_it():
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]  # from 1234567
    published += [4593380528125082431, 16408922859458223821]
    numbers = uniform(torch.tensor([1234567]), torch.arange(5))
    assert numbers.tolist() == [[(word >> 11) / 2**53 for word in published]]


def first_numbers(streams):
    """The first number of sample 5 in each stream."""
    keys = [sample_keys(each, torch.tensor([5])) for each in streams]
    return uniform(torch.cat(keys), torch.tensor([0]))[:, 0]


def test_keys_in_several_streams_at_once_are_those_in_each():
    indices = torch.tensor([7, 0, 7, 2**40])
    streams = [stream(seed, "scoring", view=view) for seed in range(3) for view in range(2)]
    together = sample_keys(torch.tensor(streams)[:, None], indices)
    assert torch.equal(together, torch.stack([sample_keys(each, indices) for each in streams]))
    assert len(together.unique()) == 6 * 3


# Each draws the numbers of 2,000 neighbours that differ in one part of their key.
NEIGHBOURS = {
    "samples": lambda: uniform(keys_of(2000, 0, "training"), torch.tensor([0]))[:, 0],
    "slots": lambda: uniform(keys_of(6, 0, "training")[5:], torch.arange(2000))[0],
    "epochs": lambda: first_numbers(stream(0, "training", epoch=epoch) for epoch in range(2000)),
    "views": lambda: first_numbers(stream(0, "training", view=view) for view in range(2000)),
    "seeds": lambda: first_numbers(stream(seed, "training") for seed in range(2000)),
}


@pytest.mark.parametrize("neighbours", NEIGHBOURS)
def test_numbers_of_neighbours_are_uniform_and_uncorrelated(neighbours):
    numbers = NEIGHBOURS[neighbours]()
    assert len(numbers) == 2000 and stats.kstest(numbers, "uniform").pvalue > 0.01
    for lag in (1, 2, 3, 8, 64):
        correlation = torch.corrcoef(torch.stack([numbers[lag:], numbers[:-lag]]))[0, 1]
        assert abs(correlation) < 4 / math.sqrt(2000), lag


def test_numbers_lie_in_the_unit_interval_with_the_mean_and_variance_of_a_uniform_distribution():
    numbers = uniform(keys_of(10_000, 0, "scoring"), torch.arange(100))
    assert numbers.dtype == torch.float64 and numbers.shape == (10_000, 100)
    assert 0 <= numbers.min() < 1e-5 and 1 - 1e-5 < numbers.max() < 1
    error = 4 / math.sqrt(numbers.numel())  # four standard errors, for a standard deviation of 1
    assert abs(numbers.mean() - 1 / 2) < error * math.sqrt(1 / 12)
    assert abs(numbers.var() - 1 / 12) < error * math.sqrt(1 / 180)


def test_the_numbers_of_a_sample_tell_nothing_about_each_other():
    numbers = uniform(keys_of(10_000, 0, "scoring"), torch.arange(64))
    assert largest_correlation(numbers.T) < 5 / math.sqrt(10_000)


def test_no_two_streams_are_the_same():
    seeds, epochs = [0, 1, 2, 3, 100], [*range(12), 100, 1000]
    grid = itertools.product(seeds, PURPOSES, SPLITS, epochs, [*range(6), 100])
    streams = [stream(*parts) for parts in grid]
    assert len(set(streams)) == len(streams) == 5 * len(PURPOSES) * 2 * 14 * 7
    assert all(-(2**63) <= each < 2**63 for each in streams)


def test_no_two_samples_share_a_key_within_or_across_streams():
    grid = itertools.product([0, 1], PURPOSES, SPLITS, [0, 1], [0, 1])
    keys = torch.cat([keys_of(2000, *parts) for parts in grid])
    assert len(keys.unique()) == len(keys)


def test_shuffling_gives_a_permutation_that_its_arguments_decide():
    order = permutation(1000, seed=0, purpose="order", epoch=1)
    assert order.dtype == torch.int64 and torch.equal(order.sort().values, torch.arange(1000))
    torch.manual_seed(99)  # which must not matter
    assert torch.equal(order, permutation(1000, seed=0, purpose="order", epoch=1))


def test_shuffling_differs_by_seed_epoch_purpose_and_split():
    arguments = [(0, "order"), (1, "order"), (0, "order", "train", 1), (0, "subsets")]
    orders = [permutation(1000, *parts) for parts in [*arguments, (0, "order", "test")]]
    for one, other in itertools.combinations(orders, 2):
        assert (one == other).sum() < 10  # of two independent permutations, about one place agrees
        assert abs(stats.kendalltau(one, other).statistic) < 0.1


def test_shuffling_gives_every_order_the_same_chance():
    orders = torch.stack([permutation(4, 0, "order", epoch=epoch) for epoch in range(2400)])
    counts = orders.unique(dim=0, return_counts=True)[1]
    assert len(counts) == 24 and stats.chisquare(counts).pvalue > 0.01
