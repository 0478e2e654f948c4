"""What membership_inference.py writes: of a crossover, of f alone, and beside earlier results."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from conftest import columns_of, log_of, read_table

import membership_inference
from memorization.measuring.membership import MembershipSummary
from memorization.measuring.membership_attacks import ATTACKS
from memorization.measuring.membership_figures import draw_training
from memorization.measuring.membership_printing import print_guards, print_rates
from memorization.measuring.membership_rates import RATES, Trial, rates_at
from memorization.measuring.membership_training import knn_over_training

BY_ITSELF = ["index", "split", "subset", "label", "alignment_loss_f", "stderr_views", "p"]


def infer(path, run, *options):
    """The folder of a membership inference with few views, its rows, and its summary."""
    before = set(run.glob("membership/**/summary.json"))
    options = ["--run", str(run), "--membership.views", "4", *options]
    membership_inference.main(["--config", path, *options])
    (written,) = set(run.glob("membership/**/summary.json")) - before
    with open(written.parent / "membership.csv", newline="") as file:
        return written.parent, list(csv.DictReader(file)), json.loads(written.read_text())


@pytest.fixture(scope="module")
def of_pool(pool, tmp_path_factory):
    """(folder, rows, summary) of the tiny crossover of two seeds, and its run folder. Not to be
    changed.
    """
    run = shutil.copytree(pool[1], tmp_path_factory.mktemp("members") / "run")
    return *infer(pool[0], run), run


def test_a_crossover_is_attacked_by_all_that_applies(of_pool):
    folder, rows, summary, _ = of_pool
    names = ["alignment", "encodermi_threshold", "encodermi_vector", "reference"]
    assert list(rows[0]) == [*BY_ITSELF, "member", *names]
    assert list(summary["attacks"]) == names and list(summary["left_out"]) == ["lira"]
    assert "a crossover of 4 seeds or more, and this has 2 seeds" in summary["left_out"]["lira"]
    assert {row["member"] for row in rows if row["subset"] == "candidate"} == {"1"}
    assert {row["member"] for row in rows if row["subset"] == "external"} == {"0"}
    pictures = {"losses.png", "roc.png", "scatter.png"}
    assert pictures < {path.name for path in folder.iterdir()}


def test_losses_of_a_crossover_are_those_of_the_encoder_with_the_image(of_pool):
    _, rows, _, run = of_pool
    columns, scores = columns_of(rows), read_table(run / "scores")[1]
    assert np.allclose(columns["alignment_loss_f"], scores["alignment_loss_f"], atol=1e-6)
    assert np.allclose(columns["reference"], scores["score"], atol=1e-6)
    assert np.allclose(columns["alignment"], -columns["alignment_loss_f"])


def test_signals_of_every_encoder_are_kept_with_what_it_saw(of_pool):
    folder, rows, _, _ = of_pool
    arrays = np.load(folder / "membership.npz")
    N = len(rows)
    assert arrays["member"].shape == arrays["encodermi_vector"].shape == (2, 2, N)  # seeds, f and g
    in_pool = arrays["subset"] == "candidate"
    assert (arrays["member"][:, :, in_pool].sum(1) == 1).all()
    assert not arrays["member"][:, :, ~in_pool].any()
    assert np.array_equal(arrays["reference"][:, 0], -arrays["reference"][:, 1])


def test_the_summary_has_guards_rates_and_who_is_exposed(of_pool):
    _, _, summary, _ = of_pool
    lists = {"candidate against external", "one half of the pool against the other"}
    for guard in summary["guards"].values():
        assert set(guard) == lists
    of = summary["attacks"]["alignment"]["own against external"]
    assert set(of) == {"f", "g", "f and g"}
    assert of["f"]["rates"]["0.01"] is None and of["f"]["rates"]["0"]["members"] == 32.0
    assert of["f and g"]["auc"]["over_encoders"]["n"] == 4
    mean = (of["f"]["auc"]["value"] + of["g"]["auc"]["value"]) / 2
    assert of["f and g"]["auc"]["value"] == pytest.approx(mean)
    assert summary["exposure"]["reference"]["candidate"]["value"] == pytest.approx(1.0)
    assert set(summary["auc"]) == set(summary["auc_untrained"]) == {"candidate against external"}


def test_the_guards_are_printed_before_the_attacks(pool, tmp_path, capsys, no_pictures):
    run = shutil.copytree(pool[1], tmp_path / "run")
    infer(pool[0], run, "--membership.attacks", "reference")
    screen = capsys.readouterr().out
    assert 0 < screen.index("guards: ") < screen.index("attacks on one encoder at a time")
    assert "1 % false positives cannot be shown: 200 others are needed" in screen


def trial_of(n_others):
    """The Trial of 100 members, a third of them above all others."""
    signal = np.concatenate([np.arange(100) * 3 / 2, np.arange(n_others) * 100 / n_others])
    return Trial(signal, np.arange(100), np.arange(100, 100 + n_others))


@pytest.mark.parametrize("n_others, columns, missing", [
    (2000, ["1 % false positives", "0.1 %", "0 of 1000"], []),
    (200, ["1 % false positives", "0 of 100"], ["0.1 %"]),
    (100, ["0 of 50 false positives"], ["1 %", "0.1 %"]),
])  # fmt: skip
def test_members_found_are_printed_for_every_rate_that_can_be_shown(
    n_others, columns, missing, capsys
):
    chooses = np.arange(100 + n_others) % 2 == 0
    rates = {f"{rate:g}": rates_at(rate, [trial_of(n_others)], chooses) for rate in RATES}
    print_rates({"alignment": rates})
    header, found, *lines = capsys.readouterr().out.splitlines()
    assert re.split("  +", header.strip()) == [
        f"found of 100 members at {columns[0]}",
        *columns[1:],
    ]
    name, *words = re.split(r" +(?=\d+\.\d %)", found.strip())
    assert name == "alignment" and len(words) == len(columns)
    for text, of in zip(words, filter(None, rates.values()), strict=True):
        share = of["true_positive_rate"]["value"]
        low, high = (100 * bound for bound in of["true_positive_rate"]["interval_95"])
        assert text == f"{100 * share:.1f} % ({low:.1f} to {high:.1f}): {100 * share:.1f}"
    assert [line.partition(" false")[0].strip() for line in lines] == missing


@pytest.mark.parametrize("n, words", [(1, "1 image stands in"), (2, "2 images stand in")])
def test_images_in_both_lists_are_counted_in_words(n, words):
    group = [["train", 3], ["test", 5]]
    with pytest.warns(UserWarning, match=f"{words} both lists.*: train 3 = test 5"):
        print_guards({"raw pixels": {}}, {"candidate against external": [group] * n})


def test_attacks_that_are_asked_for_have_a_folder_of_their_own(pool, tmp_path, no_pictures):
    run = shutil.copytree(pool[1], tmp_path / "run")
    folder, rows, summary = infer(pool[0], run, "--membership.attacks", "crops", "reference")
    assert folder.name == "views_4_attacks_crops_reference"
    assert list(rows[0]) == [*BY_ITSELF, "member", "crops", "reference"]
    assert all(-1 <= float(row["crops"]) <= 1 for row in rows)
    assert summary["left_out"] == {}


def test_results_do_not_depend_on_the_batch_size(of_pool, pool, tmp_path, no_pictures):
    run = shutil.copytree(pool[1], tmp_path / "run")
    _, rows, _ = infer(pool[0], run, "--membership.batch_size", "7")
    columns, others = columns_of(rows), columns_of(of_pool[1])
    for name in ATTACKS.keys() & columns:
        assert np.allclose(columns[name], others[name], atol=1e-6), name


def test_the_same_command_gives_the_same_bytes(of_pool, pool, tmp_path, no_pictures):
    run = shutil.copytree(pool[1], tmp_path / "run")
    folder, _, _ = infer(pool[0], run)
    for name in ("membership.csv", "membership.npz"):
        assert (folder / name).read_bytes() == (of_pool[0] / name).read_bytes(), name


def test_a_summary_of_an_earlier_version_is_read_and_replaced(run_copy, no_pictures):
    path, run = run_copy
    options = ["--run", str(run), "--membership.attacks", "alignment"]
    membership_inference.main(["--config", path, *options])
    (file,) = run.glob("membership/*/summary.json")
    later = json.loads(file.read_text())
    new = ("guards", "duplicates", "lists", "attacks", "exposure", "left_out")
    earlier = {key: value for key, value in later.items() if key not in new}
    del earlier["settings"]["attacks"]
    file = run / "membership/summary.json"
    file.write_text(json.dumps(earlier))
    assert MembershipSummary.parse(file.read_text()).auc == later["auc"]
    membership_inference.main(["--config", path, "--run", str(run)])
    assert list(json.loads(file.read_text())["attacks"])[0] == "alignment"


def test_f_alone_is_attacked_without_g(run_copy, capsys, no_pictures):
    path, run = run_copy
    for seed in (0, 1):
        shutil.rmtree(run / f"seed_{seed}/independent")
    _, rows, summary = infer(path, run)
    assert list(rows[0])[len(BY_ITSELF) :] == ["member", "alignment", "encodermi_threshold"]
    assert set(summary["left_out"]) == {"encodermi_vector", "reference", "lira"}
    assert set(summary["attacks"]["alignment"]["own against external"]) == {"f"}
    assert summary["exposure"] == {} and "that needs g" in summary["meaning"]
    screen = capsys.readouterr().out
    left_out = "left out: encodermi_vector, reference, lira, as each needs g, which is not there"
    assert screen.count(left_out) == 1


def test_all_checkpoints_are_attacked_and_followed_over_training(run_copy, capsys):
    path, run = run_copy
    options = ["--run", str(run), "--checkpoint", "all", "--membership.attacks", "alignment"]
    membership_inference.main(["--config", path, *options])
    folders = [
        run / "membership/epoch_0002_attacks_alignment",
        run / "membership/attacks_alignment",
    ]
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    assert [one["checkpoint"]["epoch"] for one in summaries] == [2, 3]
    assert (folders[1] / "training_curve.png").exists()
    lines = capsys.readouterr().out.partition("over training")[2].splitlines()
    table = {line[:24].strip(): line[24:].split() for line in lines if line}
    of = [one["attacks"]["alignment"]["own against external"]["f and g"] for one in summaries]
    assert table["alignment"] == [f"{one['auc']['value']:.3f}" for one in of]
    assert table["found at 1 %, %"] == ["-", "-"]  # 20 images show no such rate
    logs = [log_of(run, role, seed) for seed in (0, 1) for role in ("candidate", "independent")]
    accuracies = [
        100 * np.mean([log[epoch - 1]["knn_accuracy"] for log in logs]) for epoch in (2, 3)
    ]
    assert table["kNN accuracy, %"] == [f"{accuracy:.1f}" for accuracy in accuracies]


def test_the_legend_of_a_training_curve_hides_no_error_bar():
    epochs, names = np.array([50, 100]), list(ATTACKS)
    interval = np.array([[0.4, 0.9], [0.4, 0.9]])
    of = {"auc": np.array([0.6, 0.7]), "interval": interval, "found": np.array([0.1, 0.2])}
    table = {"epoch": epochs, "knn_accuracy": np.full(2, 0.5)} | dict.fromkeys(names, of)
    logs = [[{"epoch": 50, "knn_accuracy": 0.5}, {"epoch": 100, "knn_accuracy": 0.6}]]
    figure = draw_training.__wrapped__(table, logs, None)
    (legend,) = figure.legends
    figure.draw_without_rendering()
    assert [text.get_text() for text in legend.get_texts()] == names
    assert not any(legend.get_window_extent().overlaps(axes.bbox) for axes in figure.axes)
    assert not any(axes.get_legend() for axes in figure.axes)


def test_an_accuracy_counts_if_every_encoder_has_it():
    one, other = ([{"epoch": e, "knn_accuracy": a} for e, a in log] for log in (
        [(1, None), (2, 0.5), (3, 0.7)], [(1, 0.2), (2, 0.6)]))  # fmt: skip
    epochs, accuracies = knn_over_training([one, other])
    assert epochs.tolist() == [2] and accuracies.tolist() == [0.55]
    assert len(knn_over_training([[], one])[0]) == 0
