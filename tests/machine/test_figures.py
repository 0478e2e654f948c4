import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.text import Text

import memorization_scores
from memorization.data.images import Split
from memorization.errors import Caution, WrongUse
from memorization.figures import (
    COLORS,
    draw_gallery,
    draw_histogram,
    draw_pictures,
    draw_probe,
    draw_scatter,
    draw_training_curve,
)

HOSTILE_NAMES = [
    "price_$_to_$", "Ba$$in", "$\\frac{", "a_b^c\\{}%#&", "caf\udce9", "a\nb\rc\x07\x1b[2J\0",
    "x" * 300, "$" * 300, "\u05d0\u05d1\u202e",
    "\U0001f600\U0010ffff", "e" + "\u0301" * 300, "\ufdd0\ufffe", "", " ", "\u00e9\u4e2d\u0e01",
]  # fmt: skip
SUMMARY = {
    "kind": "linear layer",
    "results": [
        {"dataset": "fake", "encoder": name, "top_1": {"mean": 0.5, "std": 0.1}}
        for name in ("candidate seed 0", "$a_$/x.pt")
    ],
}
DRAWING = """
import json
import sys
from memorization.figures import draw_probe

draw_probe(json.loads(sys.argv[1]), sys.argv[2])
"""


OF_ONE_PAIR = SimpleNamespace(
    seeds=[0],
    headline="score_local",
    ranking_reliability=None,
    single_images={
        "candidates": 256,
        "score_local": {
            "q < 0.1": 11,
            "false_share_of_first_16": 0.25,
            "unlike_all_external": 0,
        },
        "noise": 0.0138,
        "mean_effect": 0.0091,
    },
)
OF_THREE_SEEDS = SimpleNamespace(
    seeds=[0, 1, 2],
    headline="score_local",
    ranking_reliability={
        "candidate": {"predicted": 0.31, "predicted_overlap_of_first_tenth": 0.23},
        "external": {"predicted": 0.12, "predicted_overlap_of_first_tenth": 0.14},
    },
    single_images=OF_ONE_PAIR.single_images,
)


def scores_of(names):
    """Scores of two candidates of every class, their images, and what is known of them all."""
    count = 2 * len(names)
    labels = np.arange(count) % len(names)
    scores = {
        "index": np.arange(count), "subset": np.full(count, "candidate"), "label": labels,
        "score_local": np.linspace(1, -1, count), "q_local": np.linspace(0, 1, count),
    }  # fmt: skip
    split = Split("train", torch.zeros(count, 1, 8, 8, dtype=torch.uint8), torch.from_numpy(labels))
    return scores, SimpleNamespace(train=split, classes=tuple(names)), OF_ONE_PAIR


def draw_crossover(draw, count=400):
    """The figure of losses of a crossover, in which S_E's differences are 1 / 100 ... 99 / 100."""
    with_image = np.concatenate([np.full(99, 2.0), np.linspace(0, 5, count)])
    difference = np.concatenate([np.arange(1, 100) / 100, np.linspace(-3, 3, count)])
    subsets = np.array(["external"] * 99 + ["candidate"] * count)
    losses = {"alignment_loss_f": with_image, "alignment_loss_g": with_image + difference}
    return draw.__wrapped__(losses | {"score": difference, "subset": subsets}, None)


def texts_of(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def is_picture(path):
    return path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_any_name_of_a_class_is_drawn(name, tmp_path):
    draw_gallery(*scores_of([name, "birds"]), tmp_path / "gallery.png")
    summary = SUMMARY | {"results": [SUMMARY["results"][0] | {"encoder": name}]}
    draw_probe(summary, tmp_path / "probe.png")
    assert is_picture(tmp_path / "gallery.png") and is_picture(tmp_path / "probe.png")


def test_names_are_drawn_as_they_are_and_shortened():
    figure = draw_gallery.__wrapped__(*scores_of(["a$_b$", "caf\udce9", "x" * 300]), None)
    texts = [text for text in figure.findobj(Text) if "\nq " in text.get_text()]
    names = {text.get_text().splitlines()[2] for text in texts}
    assert names == {"a$_b$", "caf\ufffd", "x" * 15 + "…"}
    assert not any(text.get_parse_math() for text in texts)


def test_a_picture_of_the_gallery_has_its_score_q_class_and_index_above_it():
    scores, images, summary = scores_of(["shirt", "bag"])
    scores |= {"index": np.array([3, 2, 1, 0]), "q_local": np.array([0.0123, 0.5, 0.8, 1.0])}
    texts = texts_of(draw_gallery.__wrapped__(scores, images, summary, None))
    captions = [text for text in texts if "\nq " in text]
    assert captions == [
        "+1.0000\nq 0.012\nshirt\nindex 3",
        "+0.3333\nq 0.5\nbag\nindex 2",
        "-1.0000\nq 1\nbag\nindex 0",
        "-0.3333\nq 0.8\nshirt\nindex 1",
    ]


def test_a_picture_of_a_file_has_the_end_of_its_path_in_place_of_the_index():
    scores, images, summary = scores_of(["shirt", "bag"])
    files = [
        "cat/a.png",
        "photos/2019/summer/IMG_0001.jpg",
        "x" * 30 + "_17.png",
        "b\ud800\x07.png",
    ]
    scores["file"] = np.array(files, dtype=object)
    images.classes = ()
    texts = texts_of(draw_gallery.__wrapped__(scores, images, summary, None))
    captions = [text.split("\n") for text in texts if "\nq " in text]
    # without classes no line is left for one
    assert [lines[2:] for lines in captions] == [
        ["cat/a.png"],
        ["…/IMG_0001.jpg"],
        ["b\ufffd\ufffd.png"],
        ["…xxxxxxxxxxxx_17.png"],
    ]


def test_the_gallery_frames_candidates_of_q_below_a_tenth_and_no_others():
    scores, images, summary = scores_of(["shirt", "bag"])
    scores["q_local"] = np.array([0.0999, 0.1, 0.8, np.nan])
    figure = draw_gallery.__wrapped__(scores, images, summary, None)
    shown = [axes for axes in figure.findobj(matplotlib.axes.Axes) if axes.images]
    frames = [{spine.get_visible() for spine in axes.spines.values()} for axes in shown]
    assert frames == [{True}, {False}, {False}, {False}]
    colors = [axes.title.get_color() for axes in shown]
    assert colors[0] == "black" and colors[0] not in colors[1:]


def test_the_gallery_says_how_well_its_ranking_repeats():
    scores, images, _ = scores_of([str(number) for number in range(10)])

    def title(summary):
        return draw_gallery.__wrapped__(scores, images, summary, None).get_suptitle().splitlines()

    assert title(OF_THREE_SEEDS)[:2] == [
        "Reliability 0.31 (3 seeds): a repetition would have 23% of the first tenth in common "
        "(10% by chance)",
        "Reliability of external images, none of them memorized: 0.12",
    ]
    assert title(OF_ONE_PAIR)[0] == (
        "One pair does not tell which single images are memorized: noise of S_E 0.0138, "
        "mean effect 0.0091"
    )
    counted = (
        "11 of 256 candidates stand out from S_E at q < 0.1 (framed); of the first 16 at most "
    )
    counted += "25% are expected to be false"
    assert title(OF_ONE_PAIR)[1:] == title(OF_THREE_SEEDS)[2:] == [counted]


def test_the_gallery_ranks_by_the_headline_and_names_how_many_have_no_such_score():
    scores, images, summary = scores_of(["shirt", "bag"])
    raw = {"score": np.array([1.0, 4.0, 3.0, 2.0]), "q": np.full(4, 0.5)}
    scores |= raw | {"score_local": np.array([4.0, np.nan, 3.0, 2.0])}

    def shown(headline, unlike):
        counts = summary.single_images["score_local"] | {"unlike_all_external": unlike}
        images_of_counts = summary.single_images | {"score": raw | counts, "score_local": counts}
        if headline == "score":
            del images_of_counts["score"]["unlike_all_external"]
        of = SimpleNamespace(
            **vars(summary) | {"headline": headline, "single_images": images_of_counts}
        )
        figure = draw_gallery.__wrapped__(scores, images, of, None)
        texts = [text for text in texts_of(figure) if "\nq " in text]
        return [text[:7] for text in texts], figure.get_suptitle()

    captions, title = shown("score_local", 1)
    assert captions == ["+4.0000", "+2.0000"]
    assert "unlike all external images: 1 of 256 candidates" in title.replace("\n", " ")
    captions, title = shown("score", 1)
    assert captions == ["+4.0000", "+3.0000", "+1.0000", "+2.0000"] and "unlike" not in title


def test_the_title_of_a_narrow_gallery_is_not_wider_than_its_pictures():
    figure = draw_gallery.__wrapped__(*scores_of(["shirt", "bag"]), None)
    figure.draw_without_rendering()
    title = next(text for text in figure.texts if "One pair" in text.get_text())
    assert title.get_window_extent().width < figure.bbox.width


def test_the_diagonal_of_the_scatter_is_s_es_median_within_a_band_of_95_percent_of_s_e():
    (axes,) = draw_crossover(draw_scatter).axes
    offsets = []
    for line in axes.lines:
        x, y = line.get_data()
        assert np.ptp(y - x) < 1e-9 and x.tolist() == list(axes.get_xlim())
        offsets.append((y - x)[0])
    assert np.allclose(offsets, [0.5, 0.0345, 0.9655])
    assert "memorized" not in axes.get_title()


@pytest.mark.parametrize("draw", [draw_scatter, draw_histogram])
def test_pictures_of_a_crossover_name_the_pool_and_no_encoder(draw):
    texts = texts_of(draw_crossover(draw))
    assert any(text.startswith("pool") for text in texts)
    assert not any("candidate encoder" in text or "(f, x)" in text for text in texts)


OF_A_PAIR = ["shared", "independent"]  # subsets that a crossover does not have


def draw_two_checkpoints(others, accuracies=(None, None)):
    """The figure of a training curve of two epochs. others: subsets beside candidates and S_E."""

    def values(mean):
        return {"raw": {"mean": mean, "standard_error": 0.1, "top_tenth_mean": mean + 5}}

    means = {"candidate": 2.0, "external": 0.0} | dict.fromkeys(others, 1.0)
    subsets = {name: values(mean) for name, mean in means.items()}
    summaries = [{"checkpoint": {"epoch": epoch}, "subsets": subsets} for epoch in (1, 2)]
    log = [
        {"epoch": epoch, "loss": 1.0, "knn_accuracy": accuracy}
        for epoch, accuracy in zip((1, 2), accuracies)
    ]
    return draw_training_curve.__wrapped__(summaries, [log], None)


@pytest.mark.parametrize("others", [[], OF_A_PAIR], ids=["crossover", "fixed"])
def test_no_legend_of_the_training_curve_lies_on_a_line(others):
    figure = draw_two_checkpoints(others, (0.5, 0.6))
    figure.draw_without_rendering()
    upper, lower, right = figure.axes
    highest = max(max(line.get_ydata()) for line in upper.lines)
    (_, top) = upper.transData.transform((1, highest))
    assert upper.get_legend().get_window_extent().y0 > top
    assert not lower.get_legend().get_window_extent().overlaps(lower.bbox)
    assert right.get_legend() is None


def test_an_accuracy_that_was_not_measured_has_no_axis_in_the_training_curve():
    for accuracies, axes in (((None, None), 2), ((None, 0.5), 3)):
        figure = draw_two_checkpoints([], accuracies)
        texts = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
        assert len(figure.axes) == axes and len(texts) == axes - 1


@pytest.mark.parametrize("others", [[], OF_A_PAIR], ids=["crossover", "fixed"])
def test_the_training_curve_shows_the_top_tenth_of_s_e_beside_that_of_the_candidates(others):
    figure = draw_two_checkpoints(others)
    tops = [line for line in figure.axes[0].lines if "top 10 %" in line.get_label()]
    shown = {line.get_color(): list(line.get_ydata()) for line in tops}
    assert shown == {COLORS["candidate"]: [7.0, 7.0], COLORS["external"]: [5.0, 5.0]}


def test_pictures_do_not_depend_on_the_users_settings(tmp_path):
    draw_probe(SUMMARY, tmp_path / "plain.png")
    with matplotlib.rc_context(
        {"text.usetex": True, "font.size": 30, "figure.dpi": 37, "savefig.transparent": True}
    ):
        draw_probe(SUMMARY, tmp_path / "styled.png")
        # as before
        assert matplotlib.rcParams["text.usetex"] and matplotlib.rcParams["font.size"] == 30
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "styled.png").read_bytes()


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nonsense"])
def test_pictures_do_not_depend_on_variables_and_files_of_the_user(backend, tmp_path):
    draw_probe(SUMMARY, tmp_path / "plain.png")
    (tmp_path / "matplotlibrc").write_text(
        "text.usetex: True\nfont.size: thirty\nno such line\nfigure.dpi: 37\n"
    )
    (tmp_path / "stylelib").mkdir()
    (tmp_path / "stylelib/broken.mplstyle").write_bytes(b"\xff\xfe: \x00")
    variables = {
        "MPLBACKEND": backend,
        "MPLCONFIGDIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    environment = {name: value for name, value in os.environ.items() if name != "HOME"} | variables
    script = [sys.executable, "-c", DRAWING, json.dumps(SUMMARY), tmp_path / "elsewhere.png"]
    subprocess.run(script, env=environment, check=True, cwd=tmp_path)
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "elsewhere.png").read_bytes()


def test_a_picture_that_cannot_be_drawn_is_named_and_left_out(tmp_path):
    rows = {"no title of text": ["no pixels"]}
    message = "pictures.png: this picture cannot be drawn .AttributeError: .*the work goes on"
    with pytest.warns(Caution, match=f"{tmp_path}/{message}"):
        draw_pictures(rows, ((0.5,), (0.5,)), tmp_path / "pictures.png")
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_cannot_be_written_is_wrong_use(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WrongUse, match="cannot be"):
        draw_probe(SUMMARY, tmp_path / "file/probe.png")


def test_numbers_are_kept_and_printed_if_no_picture_can_be_drawn(
    scored_run, tmp_path, monkeypatch, capsys
):
    path, run = scored_run
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/scores")

    def fail(*arguments, **named):
        raise RuntimeError("latex could not be found")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.warns(Caution) as cautions:
        memorization_scores.main(["--config", path, "--run", str(tmp_path / "run")])
    assert [str(caution.message).count("latex could not be found") for caution in cautions] == [
        1,
        1,
        1,
    ]
    names = {"scores.csv", "scores.npz", "scores.mat", "summary.json"}
    assert names <= {file.name for file in (tmp_path / "run/scores").iterdir()}
    assert (tmp_path / "run/scores/scores.csv").read_bytes() == (
        run / "scores/scores.csv"
    ).read_bytes()
    assert "candidate" in capsys.readouterr().out
