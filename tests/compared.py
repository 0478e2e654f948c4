"""Runs to compare: copies of a scored one with other scores."""

import hashlib
import json
import shutil
from types import SimpleNamespace

import numpy as np

import compare_runs
from memorization.measuring.compared_runs import ScoredRun


def derive_run(run, folder, change=None, **of_summary):
    """A copy of a run without its encoders, whose scores.npz is changed. change: {name: array} ->
    the same; of_summary: keys of its summary.json that differ. Returns its path, a text.
    """
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("seed_*", "scores"))
    shutil.copytree(run / "scores", folder / "scores", ignore=shutil.ignore_patterns("*.png"))
    rewrite(folder, change or (lambda arrays: arrays), **of_summary)
    return str(folder)


def rewrite(run, change, **of_summary):
    """Change the arrays of a run's scores.npz, and give its summary.json the new hash."""
    file, path = run / "scores/scores.npz", run / "scores/summary.json"
    with np.load(file) as stored:
        arrays = change(dict(stored))
    np.savez(file, **arrays)
    summary = json.loads(path.read_text()) | of_summary
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    summary["files"]["scores.npz"] = summary["fingerprints"]["scores"] = digest
    path.write_text(json.dumps(summary))


def with_noise(seed):
    """A change of scores.npz: the losses of f vary."""

    def change(arrays):
        noise = np.random.default_rng(seed).normal(0, 0.05, arrays["L_f"].shape)
        return arrays | {"L_f": np.abs(arrays["L_f"] + noise)}

    return change


def permute(arrays):
    """A change of scores.npz: its rows in another order."""
    order = np.random.default_rng(3).permutation(len(arrays["index"]))
    return {name: values[..., order] for name, values in arrays.items()}


def one_seed(arrays):
    """A change of scores.npz: its first seed alone."""
    return {name: values[:1] if values.ndim == 2 else values for name, values in arrays.items()}


def leave_out_pictures(monkeypatch):
    """Have compare_runs.py draw nothing, as pictures take most of its time."""
    for name in ("heatmap", "thresholds", "strips", "accuracy"):
        monkeypatch.setattr(compare_runs, f"draw_{name}", lambda *_: None)


def scored_run(name, candidate, external, seeds=None, headline="score", local=None):
    """A ScoredRun of made-up scores. candidate, external: (S, n) scores; local: local scores of
    all images, (S, N), candidates first.
    """
    per_seed = np.concatenate([candidate, external], axis=1)
    local = per_seed if local is None else local
    n, m = candidate.shape[1], external.shape[1]
    table = {
        "index": np.concatenate([np.arange(n), np.arange(m)]),
        "subset": np.array(n * ["candidate"] + m * ["external"]),
        "per_seed": per_seed,
        "per_seed_local": local,
        "score": per_seed.mean(0),
        "score_local": local.mean(0),
    }
    table |= {"q": np.linspace(0, 1, n + m), "q_local": np.linspace(0, 1, n + m)}
    seeds = list(range(len(candidate))) if seeds is None else seeds
    test = {"t": 1.0, "p": 0.5, "d": 0.25}
    summary = SimpleNamespace(
        seeds=seeds, headline=headline, reliability=None, reliability_local=None, over_seeds=None,
        given_this_pair={"welch": {"candidate > external": test}}, settings={"views": 4},
    )  # fmt: skip
    data = {"train": {"sha256": "a"}, "test": {"sha256": "b"}}
    return ScoredRun(name, f"runs/{name}", "simclr", "vit", data, summary, table, None, None)
