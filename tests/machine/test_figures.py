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
from memorization.figures import draw_gallery, draw_pictures, draw_probe

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


def scores_of(names):
    """Scores of two candidates of every class, and their images."""
    count = 2 * len(names)
    labels = np.arange(count) % len(names)
    scores = {
        "index": np.arange(count), "subset": np.full(count, "candidate"), "label": labels,
        "score": np.linspace(1, -1, count), "stderr": np.full(count, 0.1),
    }  # fmt: skip
    split = Split("train", torch.zeros(count, 1, 8, 8, dtype=torch.uint8), torch.from_numpy(labels))
    return scores, SimpleNamespace(train=split, classes=tuple(names))


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
    texts = [
        text for text in figure.findobj(Text) if "±" in text.get_text() and "\n" in text.get_text()
    ]
    names = {text.get_text().splitlines()[-1] for text in texts}
    assert names == {"a$_b$", "caf\ufffd", "x" * 15 + "…"}
    assert not any(text.get_parse_math() for text in texts)


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
