import numpy as np
import pytest
from scipy import stats

from memorization import local_offset
from memorization.local_offset import PENALTIES, fit_local_offset
from memorization.significance import p_against


def draw_images(count, dimensions, seed=0, noise=1.0):
    """Representations of lengths of their own and scores that depend on the direction linearly."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(count, dimensions)) + 2
    units = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    slope = np.random.default_rng(99).normal(size=dimensions)
    differences = 5 + 10 * units @ slope + noise * rng.normal(size=count)
    return directions * rng.uniform(0.1, 9, (count, 1)), differences


def slow_ridge(representations, differences, penalty, queries):
    """Ridge with an intercept by its normal equations, all vectors as unit vectors."""
    vectors, queries = (
        np.array([vector / np.sqrt(vector @ vector) for vector in part.astype(np.float64)])
        for part in (representations, queries)
    )
    design = np.column_stack([np.ones(len(vectors)), vectors])
    penalties = penalty * np.eye(design.shape[1])
    penalties[0, 0] = 0
    weights = np.linalg.solve(design.T @ design + penalties, design.T @ differences)
    return weights[0] + queries @ weights[1:]


def slow_left_out(representations, differences, penalty):
    predictions = []
    for i in range(len(differences)):
        others = np.arange(len(differences)) != i
        training = representations[others], differences[others]
        predictions += list(slow_ridge(*training, penalty, representations[[i]]))
    return np.array(predictions)


@pytest.mark.parametrize("dimensions", [4, 30, 50])
def test_predictions_equal_refits_without_the_image(dimensions):
    representations, differences = draw_images(30, dimensions)
    representations = representations.astype(np.float32)
    fit = fit_local_offset(representations, differences)
    assert np.isfinite(fit.penalty)
    left_out = slow_left_out(representations, differences, fit.penalty)
    known = ~np.isnan(fit.left_out)
    assert known.sum() >= 29
    np.testing.assert_allclose(fit.left_out[known], left_out[known], atol=1e-9)
    others = draw_images(20, dimensions, seed=1)[0]
    predictions = fit.predict(others)
    slow = slow_ridge(representations, differences, fit.penalty, others)
    known = ~np.isnan(predictions)
    assert known.sum() >= 15
    np.testing.assert_allclose(predictions[known], slow[known], atol=1e-9)


def test_the_penalty_is_the_one_with_the_least_error_of_refits():
    representations, differences = draw_images(30, 6)
    fit = fit_local_offset(representations, differences)
    vectors = representations / np.linalg.norm(representations, axis=1, keepdims=True)
    largest = np.linalg.norm(vectors - vectors.mean(0), 2) ** 2
    errors = [
        ((slow_left_out(representations, differences, penalty) - differences) ** 2).sum()
        for penalty in largest * PENALTIES[:-1]
    ]
    best = int(np.argmin(errors))
    assert 0 < best < len(errors) - 1
    assert fit.penalty == pytest.approx(largest * PENALTIES[best])
    others = (differences.sum() - differences) / 29
    assert fit.explained == pytest.approx(1 - errors[best] / ((differences - others) ** 2).sum())


def test_the_share_explained_is_that_of_the_kind():
    representations, differences = draw_images(2000, 8, noise=4.0)
    signal = draw_images(2000, 8, noise=0.0)[1]
    share = signal.var() / differences.var()
    assert 0.3 < share < 0.9
    assert fit_local_offset(representations, differences).explained == pytest.approx(
        share, abs=0.03
    )


def test_where_nothing_is_to_explain_the_offset_is_the_mean():
    shares = []
    for seed in range(40):
        noise = np.random.default_rng(seed).normal(size=100)
        fit = fit_local_offset(draw_images(100, 8, seed)[0], noise)
        shares.append(fit.explained)
        if np.isinf(fit.penalty):
            assert fit.explained == 0
            known = ~np.isnan(fit.left_out)
            np.testing.assert_allclose(fit.left_out[known], ((noise.sum() - noise) / 99)[known])
    assert min(shares) == 0 and np.mean(shares) < 0.02
    alike = fit_local_offset(np.ones((5, 3)), np.arange(5.0))
    np.testing.assert_allclose(alike.predict(np.full((1, 3), 7.0)), 2.0)


def test_unseen_images_of_all_kinds_have_uniform_p_and_memory_is_seen_better():
    external, null = draw_images(1000, 8)
    candidates, scores = draw_images(1000, 8, seed=1)
    fit = fit_local_offset(external, null)
    local, local_null = scores - fit.predict(candidates), null - fit.left_out
    assert stats.ks_2samp(local, local_null, nan_policy="omit").pvalue > 0.01
    p = p_against(local_null, local)
    assert np.nanmean(p <= 0.1) == pytest.approx(0.1, abs=0.03)
    memory = 1.5
    power, raw_power = p_against(local_null, local + memory), p_against(null, scores + memory)
    assert np.nanmean(power <= 0.05) > np.mean(raw_power <= 0.05) + 0.1


def test_images_unlike_all_of_external_have_no_prediction():
    representations, differences = draw_images(1000, 8)
    fit = fit_local_offset(representations, differences)
    assert np.isnan(fit.predict(-representations)).all()
    assert np.isnan(fit.predict(np.zeros((1, 8)))).all()
    ordinary = fit.predict(draw_images(5000, 8, seed=1)[0])
    assert np.isnan(ordinary).mean() == pytest.approx(6 / 1001, abs=0.004)
    assert np.isnan(fit.left_out).sum() == 6


def test_a_few_oddities_in_external_do_not_stand_for_all_kinds():
    representations, differences = draw_images(1000, 8)
    odd = [100, 500, 900]
    representations[odd] = [[-1, 0, 0, 0, 0, 0, 0, 9], [0, -9, 0, 0, 0, 1, 0, 0], [0] * 8]
    fit = fit_local_offset(representations, differences)
    assert np.isnan(fit.left_out[odd]).all() and np.isnan(fit.left_out).sum() == 6
    assert np.isnan(fit.predict(-draw_images(100, 8, seed=1)[0])).all()


def test_the_size_of_blocks_changes_nothing(monkeypatch):
    (external, null), others = draw_images(40, 5), draw_images(40, 5, seed=1)[0]
    whole = fit_local_offset(external, null)
    monkeypatch.setattr(local_offset, "BLOCK", 7)
    parts = fit_local_offset(external, null)
    np.testing.assert_allclose(parts.left_out, whole.left_out)
    np.testing.assert_allclose(parts.predict(others), whole.predict(others))
    assert parts.predict(others[:0]).shape == (0,)


def test_what_does_not_fit_together_is_refused():
    representations, differences = draw_images(10, 4)
    with pytest.raises(ValueError, match=r"not \(10, 4\) and \(9,\)"):
        fit_local_offset(representations, differences[:9])
    with pytest.raises(ValueError, match="n >= 3"):
        fit_local_offset(representations[:2], differences[:2])
    with pytest.raises(ValueError, match="not finite"):
        fit_local_offset(representations, np.full(10, np.nan))
