"""benchmarks/penalty.py: what an alignment penalty costs, and what it saves."""

import json
import shutil

import numpy as np
import pytest
import yaml
from scipy.stats import norm

from benchmarks import contest, penalty
from memorization.measuring.score_tables import ScoredSeed, table_of_scores
from memorization.measuring.scores import ImageScores


@pytest.fixture
def runs(scored_run, tmp_path, monkeypatch):
    """The paths of three copies of a scored run, which claim penalties of .3, 0 and .1."""
    monkeypatch.setattr(penalty, "RESULTS", tmp_path)
    monkeypatch.setattr(contest, "RESULTS", tmp_path)
    weights = {"a": 0.3, "b": None, "c": 0.1}
    for name, weight in weights.items():
        shutil.copytree(scored_run[1], tmp_path / name)
        if weight:
            change(tmp_path / name, alignment_penalty=weight)
    return [str(tmp_path / name) for name in weights]


def change(run, **settings):
    """Change settings of training in the config.yaml of a run folder."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["training"] |= settings
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def test_runs_are_listed_and_drawn_in_the_order_of_their_penalties(runs, tmp_path, capsys):
    penalty.main(runs)
    rows = json.loads((tmp_path / "penalty.json").read_text())["results"]
    assert [row["alignment_penalty"] for row in rows] == [0, 0.1, 0.3]
    assert [row["accuracy"] for row in rows] == [None] * 3
    assert (tmp_path / "penalty.png").stat().st_size > 10_000
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in printed[1:4]] == ["0", "0.1", "0.3"]
    figures = [f"{rows[0]['d']['mean']:.2f}", "±", f"{rows[0]['d']['std']:.2f}"]
    assert printed[1][4:7] == figures and printed[1][-1] == "--"


def test_accuracies_of_linear_probes_are_per_cent(runs, tmp_path, monkeypatch):
    spread = penalty.Spread(mean=0.5, std=0.01, n=2)
    monkeypatch.setattr(penalty, "read_accuracy", lambda *_: (spread, 300))
    penalty.main(runs)
    rows = json.loads((tmp_path / "penalty.json").read_text())["results"]
    assert rows[0]["accuracy"] == {"mean": 50, "std": 1, "n": 2}


def test_runs_of_one_penalty_or_that_differ_in_something_else_are_refused(runs, tmp_path, refusal):
    change(tmp_path / "c", alignment_penalty=0.3)
    line = refusal(penalty.main, runs)
    assert f"{runs[2]}: has the training.alignment_penalty of {runs[0]}, 0.3" in line
    change(tmp_path / "c", alignment_penalty=0.1, learning_rate=0.5)
    line = refusal(penalty.main, runs)
    assert f"{runs[2]}: training.learning_rate is 0.5, but 0.01 in {runs[0]}" in line


def test_figures_of_seeds_are_those_of_normal_distributions():
    """Members lie a deviation away by the score, and half of one by the loss of f alone."""
    rng, n = np.random.default_rng(0), 4000
    subset = np.repeat(["candidate", "external"], n)
    signs = np.where(rng.random(2 * n) < 0.5, 1, -1)
    signs[n:] = np.repeat([1, -1], n // 2)
    seeds = []
    for _ in range(3):
        noise = rng.normal(size=(2, 2 * n)) / 2**0.5  # the score has a deviation of 1
        is_member = np.arange(2 * n) < n
        gain = np.where(is_member, 0.5, 0.0)
        loss_f = 5 + noise[0] - gain * signs
        loss_g = 5 + noise[1] + gain * signs
        scores = ImageScores(loss_f, loss_g, np.zeros(2 * n))
        seeds.append(ScoredSeed(scores, signs, np.zeros(2 * n), explained=0.0))
    rows = {"subset": subset, "index": np.arange(2 * n)}
    figures = penalty.figures_of_seeds(table_of_scores(rows, seeds))
    assert figures["score"]["mean"] == pytest.approx(1000, rel=0.05)
    assert figures["d"]["mean"] == pytest.approx(1, abs=0.05)
    assert figures["auc_score"]["mean"] == pytest.approx(norm.cdf(1 / 2**0.5), abs=0.01)
    # .5 apart, and both with a variance of 1/2
    assert figures["auc_alignment"]["mean"] == pytest.approx(norm.cdf(0.5), abs=0.015)
    assert figures["d"]["n"] == 3
