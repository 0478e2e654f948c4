"""Membership attacks: rates and their intervals, signals, and guards without a trained encoder."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn as nn
from conftest import CPU, random_bytes
from scipy import stats

from memorization.data.images import Split
from memorization.data.recipes import ViewRecipe
from memorization.data.subsets import Subsets
from memorization.encoder import Encoder
from memorization.measuring.membership import correlate, evaluate, trials_of
from memorization.measuring.membership_attacks import (
    ATTACKS,
    INDEPENDENT,
    Evidence,
    align_seed,
    gather_evidence,
    halve,
    measure_cosines,
    relate,
)
from memorization.measuring.membership_guards import (
    find_lists,
    find_shared_images,
    measure_guards,
)
from memorization.measuring.membership_network import judge_by_networks, train_network
from memorization.measuring.membership_rates import (
    Trial,
    advantage,
    auc_of,
    interval_of,
    rates_at,
    resample_aucs,
    roc,
    threshold_at,
)
from memorization.measuring.score_tables import rows_to_score
from memorization.measuring.scores import Scoring
from memorization.significance import clopper_pearson

NOISY = [ViewRecipe(size=8, noise=0.1)]
SCORING = Scoring(views=5)
FIXED = Subsets(*np.split(np.arange(120), 3), np.arange(60))


# --- rates ----------------------------------------------------------------------------------------


def normal_trial(d, n=2000, seed=0):
    """The Trial of two normals at a distance of d standard deviations."""
    generator = np.random.default_rng(seed)
    signal = np.concatenate([generator.normal(d, 1, n), generator.normal(0, 1, n)])
    return Trial(signal, np.arange(n), np.arange(n, 2 * n))


@pytest.mark.parametrize("d", [0.0, 0.5, 1.5])
def test_the_auc_of_two_normals_is_phi_of_their_distance_over_root_2(d):
    expected = stats.norm.cdf(d / np.sqrt(2))
    trial = normal_trial(d)
    low, high = interval_of(resample_aucs([trial], np.repeat(["a", "b"], 2000))[0])
    assert auc_of(trial) == pytest.approx(expected, abs=0.02)
    assert low < expected < high and high - low < 0.04


def test_a_resampled_auc_is_that_of_the_images_written_out_as_often_as_they_are_drawn(monkeypatch):
    signal = np.array([0.3, 0.1, 0.3, 0.2, 0.3, 0.0, 0.1])
    trial = Trial(signal, np.array([0, 2, 3]), np.array([1, 4, 5, 6]))
    weights = np.array([[2.0, 1, 0, 1, 1, 3, 0]]).T
    monkeypatch.setattr("memorization.measuring.membership_rates._draw_weights", lambda *_: weights)
    members, others = [0.3, 0.3, 0.2], [0.1, 0.3, 0.0, 0.0, 0.0]
    pairs = [(m > o) + (m == o) / 2 for m in members for o in others]
    assert resample_aucs([trial], np.zeros(7))[0] == pytest.approx(np.mean(pairs))


def test_a_half_of_the_images_has_an_interval_as_wide_as_half_as_many_images():
    lists, trial = np.repeat(["member", "other"], 400), normal_trial(0.3, n=400)
    half, of_200 = resample_aucs([trial], lists, 0.5)[0], normal_trial(0.3, n=200)
    expected = resample_aucs([of_200], lists[::2])[0].std()
    assert half.std() == pytest.approx(expected, rel=0.1)
    assert half.mean() == pytest.approx(auc_of(trial), abs=0.005)
    rates = rates_at(0.0, [trial], np.arange(800) % 2 == 0, 0.5)["true_positive_rate"]
    assert rates["interval_95"] == clopper_pearson(rates["value"], 200)


def test_resamples_draw_each_list_by_itself_and_give_an_image_one_weight_in_all_trials():
    trial = normal_trial(0.3, n=40)
    lists = np.repeat(["member", "other"], 40)
    of_twins = resample_aucs([trial, trial, replace(trial, signal=-trial.signal)], lists)
    assert np.array_equal(of_twins[0], of_twins[1])
    assert np.allclose(of_twins[0], 1 - of_twins[2])
    slow = np.std([
        auc_of(Trial(trial.signal, g.choice(trial.members, 40), g.choice(trial.others, 40)))
        for g in map(np.random.default_rng, range(400))
    ])  # fmt: skip
    assert of_twins[0].std() == pytest.approx(slow, rel=0.15)


def test_a_threshold_is_the_least_one_with_so_few_false_positives():
    others = np.arange(200.0)
    assert threshold_at(others, 0.01) == 197.0  # 198 and 199 are above it
    assert threshold_at(others, 0.0) == 199.0
    assert threshold_at(others, 0.001) is None  # 200 images show no rate of a thousandth
    assert threshold_at(np.arange(1000.0), 0.001) == 998.0
    assert threshold_at(np.array([1.0, 1.0, 1.0, 0.0]), 0.25) == 1.0


def test_rates_are_counted_on_other_images_than_those_that_chose_the_threshold():
    signal = np.concatenate([np.arange(10.0), np.arange(100.0) / 10, 50 + np.arange(100.0)])
    chooses = np.concatenate([np.zeros(10), np.ones(100), np.zeros(100)]) > 0
    trial = Trial(signal, np.arange(10), np.arange(10, 210))
    rates = rates_at(0.01, [trial], chooses)  # the threshold is 9.8, and nobody is above it
    assert rates["true_positive_rate"]["value"] == 0.0
    assert rates["false_positive_rate"]["value"] == 1.0  # the other half is quite different
    assert (rates["exposed"], rates["members"], rates["others_to_choose"]) == (0.0, 10.0, 100)
    rates = rates_at(0.25, [trial], chooses)
    assert rates["true_positive_rate"]["value"] == pytest.approx(0.2)  # 8 and 9, above 7.4
    assert rates["exposed"] == 2.0


def test_a_rate_that_so_few_others_cannot_show_is_none():
    trial, chooses = normal_trial(1.0, n=300), np.arange(600) % 2 == 0
    assert rates_at(0.01, [trial], chooses) is not None
    assert rates_at(0.001, [trial], chooses) is None
    assert rates_at(0.0, [trial], chooses)["others_to_choose"] == 150


@pytest.mark.parametrize("k, n", [(0, 20), (3, 20), (20, 20)])
def test_the_interval_of_a_rate_is_that_of_an_exact_binomial_test(k, n):
    expected = stats.binomtest(k, n).proportion_ci(0.95, method="exact")
    assert clopper_pearson(k / n, n) == pytest.approx([expected.low, expected.high])


def test_an_image_that_is_tried_on_several_encoders_counts_once_in_intervals():
    trial, chooses = normal_trial(1.0, n=400), np.arange(800) % 2 == 0
    once, often = (rates_at(0.01, [trial] * n, chooses)["true_positive_rate"] for n in (1, 9))
    assert once == often


def test_the_advantage_is_the_largest_gap_of_one_half_on_the_other_half():
    trial, chooses = normal_trial(2.0), np.arange(4000) % 2 == 0
    best = 2 * stats.norm.cdf(1.0) - 1  # half way between two normals
    assert advantage([trial], chooses) == pytest.approx(best, abs=0.03)
    nothing = [advantage([normal_trial(0.0, 100, seed)], chooses[:200]) for seed in range(60)]
    assert abs(np.mean(nothing)) < 0.03  # on the same half it would be .15


def test_the_roc_counts_members_and_others_above_each_threshold():
    false, true, thresholds = roc(np.array([3.0, 2.0]), np.array([2.0, 1.0, 0.0, 0.0]))
    assert thresholds.tolist() == [3.0, 2.0, 1.0, 0.0, -np.inf]
    assert true.tolist() == [0.0, 0.5, 1.0, 1.0, 1.0]
    assert false.tolist() == [0.0, 0.0, 0.25, 0.5, 1.0]


# --- signals --------------------------------------------------------------------------------------


def test_cosines_are_those_of_all_pairs_and_in_order_those_of_the_first_ten_views():
    vectors = nn.functional.normalize(torch.randn(3, 12, 5, dtype=torch.float64), dim=2)
    mean, *sorted_ones = measure_cosines(torch.cdist(vectors, vectors))
    for image, of in enumerate(vectors):
        pairs = [(of[i] @ of[j]).item() for i in range(12) for j in range(i)]
        first = sorted((of[i] @ of[j]).item() for i in range(10) for j in range(i))
        assert mean[image].item() == pytest.approx(np.mean(pairs))
        assert [one[image].item() for one in sorted_ones] == pytest.approx(first)


def made_up_evidence(S=5, pool=40, external=20, seed=0):
    """Evidence of a crossover with losses at random, lower for members."""
    generator = np.random.default_rng(seed)
    N, relation = pool + external, np.full((S, 2, pool + external), "external")
    for s in range(S):
        own = generator.permutation(pool) < pool // 2
        relation[s, 0, :pool] = np.where(own, "own", "other")
        relation[s, 1, :pool] = np.where(own, "other", "own")
    loss = generator.normal(1.0, 0.1, (S, 2, N)) - 0.2 * (relation == "own")
    vector = np.sort(1 - loss[..., None] + generator.normal(0, 0.1, (S, 2, N, 6)), axis=3)
    fold = np.arange(N) % 2 == 0
    return Evidence(list(range(S)), relation, loss, 0 * loss, -loss, vector, fold)


def test_lira_is_the_ratio_of_two_normals_fitted_to_all_other_seeds():
    evidence = made_up_evidence()
    signal, S = ATTACKS["lira"](evidence), len(evidence.seeds)
    for s in range(S):
        others, spreads = [t for t in range(S) if t != s], []
        losses = {True: {}, False: {}}
        for image in range(40):
            for member in (True, False):
                losses[member][image] = [
                    evidence.loss[t, e, image]
                    for t in others
                    for e in (0, 1)
                    if (evidence.relation[t, e, image] == "own") == member
                ]
        spreads = {m: np.mean([np.var(v, ddof=1) for v in losses[m].values()]) for m in losses}
        for e in (0, 1):
            for image in range(40):
                logs = [
                    stats.norm.logpdf(
                        evidence.loss[s, e, image], np.mean(losses[m][image]), np.sqrt(spreads[m])
                    )
                    for m in (True, False)
                ]
                assert signal[s, e, image] == pytest.approx(logs[0] - logs[1])


def test_lira_does_not_know_the_losses_of_the_seed_that_it_judges():
    evidence = made_up_evidence()
    before = ATTACKS["lira"](evidence)
    evidence.loss[2, 0, 7] += 3.0
    after = ATTACKS["lira"](evidence)
    changed = (before != after)[..., :40]
    assert changed[2, 0, 7] and changed[2].sum() == 1  # nothing else of this seed
    assert changed[[0, 1, 3, 4]].any()


def test_lira_judges_no_image_that_no_encoder_saw():
    evidence = made_up_evidence()
    signal = ATTACKS["lira"](evidence)
    assert np.isnan(signal[..., 40:]).all() and np.isfinite(signal[..., :40]).all()


def test_with_many_seeds_lira_has_a_variance_for_each_image():
    evidence = made_up_evidence(S=34, pool=6, external=2)
    evidence.loss[:, :, 0] = 1 + 5 * (evidence.loss[:, :, 0] - 1)
    signal = ATTACKS["lira"](evidence)
    is_own = evidence.relation[1:, :, 0] == "own"
    of = [evidence.loss[1:, :, 0][which] for which in (is_own, ~is_own)]
    logs = [
        stats.norm.logpdf(evidence.loss[0, 0, 0], values.mean(), values.std(ddof=1))
        for values in of
    ]
    assert signal[0, 0, 0] == pytest.approx(logs[0] - logs[1])


def test_a_network_judges_no_image_by_a_network_that_was_trained_on_it(monkeypatch):
    evidence, seen = made_up_evidence(S=1), []

    def watch(tasks, name):
        for vectors, is_member, judged, _ in tasks:
            seen.append((vectors, is_member, judged))
        return [np.zeros(len(judged)) for _, _, judged, _ in tasks]

    monkeypatch.setattr("memorization.measuring.membership_attacks.judge_by_networks", watch)
    ATTACKS["encodermi_vector"](evidence)
    assert len(seen) == 4
    for number, (vectors, is_member, judged) in enumerate(seen):
        target, half = divmod(number, 2)
        rows = evidence.fold == bool(half)
        assert np.array_equal(vectors, evidence.vector[0, 1 - target][rows])  # of the other encoder
        assert np.array_equal(is_member, (evidence.relation[0, 1 - target] == "own")[rows])
        assert np.array_equal(judged, evidence.vector[0, target][~rows])


def test_a_network_finds_members_of_another_encoder_and_is_the_same_on_any_number_of_threads():
    evidence = made_up_evidence(S=1, pool=400, external=200)
    signal = ATTACKS["encodermi_vector"](evidence)
    found = Trial(signal[0, 0], *(np.flatnonzero(evidence.relation[0, 0] == name)
                                  for name in ("own", "other")))  # fmt: skip
    assert auc_of(found) > 0.8
    task = (evidence.vector[0, 1], evidence.is_member[0, 1], evidence.vector[0, 0], 3)
    alone = train_network(*task[:2], task[3])(task[2])
    assert np.allclose(judge_by_networks([task] * 3, "networks")[2], alone, atol=1e-9)


def test_members_weigh_as_much_as_others_however_few_they_are():
    vectors = np.random.default_rng(0).normal(size=(600, 3))
    logits = train_network(vectors, np.arange(600) < 30, seed=0)(vectors)
    assert abs(logits.mean()) < 0.5  # of a network that learns the share: log(1 / 19) = -2.9


def test_halves_are_equal_in_every_subset_and_halve_each_other():
    rows = {"index": np.arange(40), "split": np.repeat(["train", "test"], 20)}
    rows["subset"] = np.repeat(["shared", "candidate", "external"], [8, 12, 20])
    one, other = halve(rows)
    for name, n in (("shared", 8), ("candidate", 12), ("external", 20)):
        of = rows["subset"] == name
        counts = [(a & b & of).sum() for a in (one, ~one) for b in (other, ~other)]
        assert counts == [n // 4] * 4


# --- whole attacks on planted encoders ------------------------------------------------------------


class Knows(nn.Module):
    """Represents images that it knows by the same vector in every view, others by their pixels."""

    def __init__(self, pixels):
        super().__init__()
        self.known = pixels

    def forward(self, pixels, visible=None):
        flat = pixels.flatten(1)
        is_known = torch.cdist(flat, self.known).amin(1) < 0.2 * flat.shape[1] ** 0.5
        return torch.where(is_known[:, None], torch.ones_like(flat), flat)


def planted(subsets, seed=0):
    """(Images, rows, [f, g]) of encoders that know their members."""
    images = SimpleNamespace(name="made up", classes=())
    for name, n in (("train", 120), ("test", 60)):
        array = random_bytes(n, 8, 8, 1, seed=seed + (name == "test"))
        setattr(images, name, Split.from_array(array, name=name))
    encoders = []
    for role in ("candidate", "independent"):
        rows = torch.from_numpy(subsets.training_set(role))
        known = images.train.gather(rows).float().flatten(1) / 255
        encoders.append(Encoder(role, Knows(known).eval(), 1, 8, ((0.0,), (1.0,)), identity=role))
    return images, rows_to_score(subsets, images, None), encoders


def collect(subsets, images, rows, encoders, scoring=SCORING):
    """The Evidence of one pair."""
    alignments = [align_seed(encoders, images, rows, NOISY, scoring, ())]
    return gather_evidence(alignments, rows, subsets, [0])


def attack(subsets, images, rows, encoders):
    """What `evaluate` says of the attacks on one pair."""
    evidence = collect(subsets, images, rows, encoders)
    return evaluate({name: ATTACKS[name](evidence) for name in NEED_A_PAIR}, evidence, rows)


NEED_A_PAIR = ("alignment", "encodermi_threshold", "encodermi_vector", "reference")


def test_an_encoder_that_knows_its_members_is_found_out_by_every_attack():
    images, rows, encoders = planted(FIXED)
    result = attack(FIXED, images, rows, encoders)
    for name in NEED_A_PAIR:
        for comparison in ("own against external", "own against other"):
            of = result[name][comparison]
            assert [of[who]["auc"]["value"] for who in ("f", "g", "f and g")] == [1.0] * 3, name
            assert of["f"]["advantage"] == 1.0
            assert of["f"]["rates"]["0"]["exposed"] == 40.0
            assert of["f"]["rates"]["0.001"] is None
    shared = result["alignment"]["shared against external"]
    assert shared["f"]["auc"]["value"] == 1.0
    assert result["reference"]["shared against external"]["f"]["auc"]["value"] == 0.5


def untrained(name, seed):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8)).eval()
    return Encoder(name, network, 1, 8, ((0.5,), (0.5,)))


def test_exchanging_f_and_g_exchanges_what_is_said_of_them():
    images, rows, (f, g) = planted(FIXED)
    halfway = replace(g, network=Knows(g.network.known[:60]).eval())  # knows a half of S_I
    one = attack(FIXED, images, rows, [f, halfway])
    exchanged = Subsets(FIXED.shared, FIXED.independent, FIXED.candidate, FIXED.external)
    rows_of_other = rows_to_score(exchanged, images, None)
    other = attack(exchanged, images, rows_of_other, [halfway, f])
    for name in NEED_A_PAIR:
        for comparison, of in one[name].items():
            again = other[name][comparison]
            # networks see their images in another order
            close = 0.05 if name == "encodermi_vector" else 1e-9
            for who, whom in (("f", "g"), ("g", "f"), ("f and g", "f and g")):
                values = [of[who]["auc"]["value"], again[whom]["auc"]["value"]]
                assert values[0] == pytest.approx(values[1], abs=close), (name, comparison)


def interval_of_attack(name, signal, evidence, rows, role=None):
    """The interval of an attack on all encoders, or on those of one role, as `evaluate` has it."""
    share, trials = INDEPENDENT.get(name, 1.0), []
    for e in (0, 1) if role is None else (role,):
        trials += trials_of(signal[:, e], evidence.relation[:, e], "own against external")
    return interval_of(resample_aucs(trials, rows["subset"], share).mean(0))


def test_an_untrained_encoder_knows_nothing_in_19_of_20_draws(monkeypatch):
    for name, number in (("network.LEAST_STEPS", 20), ("rates.RESAMPLES", 400)):  # quick
        monkeypatch.setattr(f"memorization.measuring.membership_{name}", number)
    inside = {name: 0 for name in NEED_A_PAIR}
    for draw in range(20):
        images, rows, _ = planted(FIXED, seed=10 * draw)
        encoders = [untrained(role, 2 * draw + i) for i, role in enumerate(("f", "g"))]
        evidence = collect(FIXED, images, rows, encoders, replace(SCORING, seed=draw))
        for name in NEED_A_PAIR:
            low, high = interval_of_attack(name, ATTACKS[name](evidence), evidence, rows, role=0)
            inside[name] += low <= 0.5 <= high
    assert all(count >= 19 for count in inside.values()), inside


def judge_by_means(tasks, name):
    """As `judge_by_networks`: how much like the mean member, and unlike the mean other image."""
    return [
        judged @ (vectors[is_member].mean(0) - vectors[~is_member].mean(0))
        for vectors, is_member, judged, _ in tasks
    ]


def test_a_network_is_believed_no_more_if_all_encoders_see_the_same_in_an_image(monkeypatch):
    names = ("attacks.judge_by_networks", judge_by_means), ("rates.RESAMPLES", 200)
    for name, value in names:
        monkeypatch.setattr(f"memorization.measuring.membership_{name}", value)
    n_inside, rows = 0, {"subset": np.repeat(["candidate", "external"], (80, 40))}
    for draw in range(200):
        evidence = made_up_evidence(S=4, pool=80, external=40, seed=draw)
        of_images = np.random.default_rng(draw).normal(size=(120, 1))  # and nothing of members
        evidence.vector[:] = of_images
        signal = ATTACKS["encodermi_vector"](evidence)
        low, high = interval_of_attack("encodermi_vector", signal, evidence, rows)
        n_inside += low <= 0.5 <= high
    assert n_inside >= 186  # .95 less two standard errors; 176 if all images counted


@pytest.mark.parametrize("n", [1, 9, 10])
def test_a_list_too_short_to_be_divided_is_compared_with_none(n):
    subsets = replace(FIXED, shared=np.arange(n))
    images, rows, encoders = planted(subsets)
    pair = "shared against external"
    result = attack(subsets, images, rows, encoders)
    assert all((pair in result[name]) == (n == 10) for name in NEED_A_PAIR)
    guards = guard_lists(images, subsets)
    assert all((pair in of_lists) == (n == 10) for of_lists in guards.values())
    values = [of["value"] for of_lists in guards.values() for of in of_lists.values()]
    values += [of["f and g"]["advantage"] for name in NEED_A_PAIR for of in result[name].values()]
    assert np.isfinite(values).all()


def test_a_relation_is_told_of_every_encoder_of_a_crossover():
    nobody = np.empty(0, dtype=np.int64)
    pool = Subsets(np.array([90, 91]), np.arange(40), nobody, np.arange(5), scheme="crossover")
    rows = {"index": np.concatenate([[90, 91], np.arange(40), np.arange(5)])}
    rows["split"] = np.repeat(["train", "test"], [42, 5])
    for seed in (0, 1):
        f, g = (relate(rows, pool, seed, role) for role in ("candidate", "independent"))
        of_seed = pool.of_seed(seed)
        assert set(rows["index"][f == "own"]) == set(of_seed.candidate)
        assert set(rows["index"][f == "other"]) == set(of_seed.independent)
        assert np.array_equal(f == "own", g == "other") and np.array_equal(f == "other", g == "own")
        for relation in (f, g):
            assert (relation[:2] == "shared").all() and (relation[42:] == "external").all()


def test_a_signal_that_is_the_score_correlates_with_it_even_if_nothing_is_memorized():
    evidence = made_up_evidence(S=4, pool=200, external=200)
    subset = np.repeat(["candidate", "external"], 200)
    signs = np.where(evidence.relation[:, 0] == "own", 1, -1)
    of = correlate({"reference": ATTACKS["reference"](evidence)}, evidence, subset, signs)
    assert of["reference"]["candidate"]["value"] == pytest.approx(1.0)
    assert of["reference"]["external"]["value"] == pytest.approx(1.0)
    low, high = of["reference"]["by_other_seeds"]["interval_95"]
    assert low < 0 < high  # all images of this pool are memorized alike


# --- guards ---------------------------------------------------------------------------------------


def guard_lists(images, subsets=FIXED):
    """The guards of images."""
    rows = rows_to_score(subsets, images, None)
    encoder = untrained("untrained", 0)
    ((alignment,),) = [align_seed([encoder], images, rows, NOISY, SCORING, ())]
    lists = find_lists(rows, subsets, 0, with_g=True)
    return measure_guards(lists, rows, images, encoder, alignment)


def test_lists_that_differ_in_membership_alone_pass_the_guards():
    n_wrong = 0
    for draw in range(10):
        guards = guard_lists(planted(FIXED, seed=10 * draw)[0])
        n_wrong += sum(of["differs"] for guard in guards.values() for of in guard.values())
    assert n_wrong <= 1  # of 200


@pytest.mark.parametrize("change", ["brightness", "contrast", "sharpness"])
def test_lists_that_differ_in_something_else_are_caught(change):
    images, *_ = planted(FIXED)
    array = images.test.pixels.float()
    if change == "brightness":
        array = array * 0.8 + 51
    elif change == "contrast":
        array = 0.7 * (array - 127) + 127
    else:
        array = (
            nn.functional.avg_pool2d(nn.functional.pad(array, (1, 0, 0, 0)), (1, 2), 1) * 1.4 - 51
        )
    images.test = replace(images.test, pixels=array.clamp(0, 255).to(torch.uint8))
    guards = guard_lists(images)
    for pair in ("candidate against external", "independent against external"):
        assert guards["raw pixels"][pair]["differs"]
        assert guards["raw pixels"][pair]["value"] > 0.8
    assert not guards["raw pixels"]["candidate against independent"]["differs"]


def test_lists_that_are_more_alike_than_chance_makes_them_pass_the_guards():
    images, *_ = planted(FIXED)
    images.train.pixels[80:] = images.train.pixels[40:80]  # S_I has the images of S_C
    of = guard_lists(images)["raw pixels"]["candidate against independent"]
    assert of["value"] < 0.2 and not of["differs"]


def test_an_untrained_encoder_that_aligns_one_list_better_is_a_guard_too():
    images, *_ = planted(FIXED)
    images.train.pixels[40:80] //= 8  # dark images have smaller inputs, and noise counts for more
    guards = guard_lists(images)
    assert guards["untrained encoder: alignment"]["candidate against external"]["differs"]
    assert guards["untrained encoder: representations"]["candidate against external"]["differs"]
    assert not guards["untrained encoder: alignment"]["independent against external"]["differs"]


def test_images_that_stand_in_two_lists_are_named():
    images, *_ = planted(FIXED)
    images.test.pixels[7] = images.train.pixels[45]  # of S_C
    rows = rows_to_score(FIXED, images, None)
    lists = find_lists(rows, FIXED, 0, with_g=True)
    shared = find_shared_images(lists, rows, images, CPU)
    assert shared == {"candidate against external": [[["train", 45], ["test", 7]]]}
