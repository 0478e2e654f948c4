"""What report.py refuses: one line, exit code 2, and no page; and hostile names in a page."""

import json
import re
import shutil

import pytest
from conftest import folder_config, score, train
from reported import make_page

import report
from memorization.errors import WrongUse
from memorization.machine import processes
from memorization.measuring.deja_vu_summary import WORDS
from memorization.reporting import html
from memorization.reporting.blocks import clean, part, table, text, topic
from memorization.reporting.deja_vu_part import outcomes_of_images
from memorization.reporting.html import json_in_html, render
from memorization.reporting.payload import Payload

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028\u202e&amp;"


@pytest.fixture
def refuse(tmp_path, refusal):
    """refuse(*arguments) -> the line with which report.py ends; no page is written."""

    def run(*arguments):
        path = tmp_path / "page.html"
        line = refusal(report.main, [*map(str, arguments), "--output", str(path)])
        assert not path.exists()
        return line

    return run


def test_a_run_is_needed(refuse, pool, tmp_path):
    assert "a run folder is needed, or --config FILE" in refuse()
    assert "--config or run folders, not both" in refuse(pool[1], "--config", pool[0])
    assert "no trained run here" in refuse(tmp_path / "nothing")
    assert "no file" in refuse("a\0b")
    assert "the same run as" in refuse(pool[1], f"{pool[1]}/../{pool[1].name}")


@pytest.mark.parametrize("name", ["config.yaml", "page", ""])
def test_a_page_takes_the_place_of_no_other_file(pool_copy, refusal, name):
    run = pool_copy[1]
    config = (run / "config.yaml").read_bytes()
    line = refusal(report.main, [str(run), "--output", f"{run}/{name}"])
    assert "but must end in .html or .htm" in line
    assert (run / "config.yaml").read_bytes() == config and not (run / "page").exists()


def test_a_config_without_a_run_is_refused(refuse, tmp_path):
    (tmp_path / "empty.yaml").write_text("seeds: [0]\n")
    assert "empty.yaml: run is missing" in refuse("--config", tmp_path / "empty.yaml")
    (tmp_path / "number.yaml").write_text("run: 3\n")
    assert "number.yaml: run is 3, but must be the path of a folder" in refuse(
        "--config", tmp_path / "number.yaml"
    )
    assert "no such file" in refuse("--config", tmp_path / "nothing.yaml")


def test_several_processes_are_refused(refuse, pool, monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    assert "report.py is one process, but torchrun started 2" in refuse(pool[1])


def test_other_images_than_those_of_training_are_refused(refuse, tmp_path, scored_run):
    run = tmp_path / "run"
    shutil.copytree(scored_run[1], run)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub(r"size: 16\n  skip", "size: 20\n  skip", config))
    assert "holds other images than" in refuse(run)


@pytest.mark.parametrize("section", ["scores", "dejavu", "layers", "units", "probe", "removal"])
def test_a_broken_result_is_refused(refuse, run, section):
    (run / section).mkdir(exist_ok=True)
    (run / section / "summary.json").write_text('{"format": "memorization')
    assert f"{section}/summary.json: not a whole summary" in refuse(run)


def test_a_summary_that_lacks_a_key_is_refused(refuse, run):
    path = run / "scores/summary.json"
    summary = json.loads(path.read_text())
    del summary["free_of_the_offset"]["candidate - external"]
    path.write_text(json.dumps(summary))
    assert "not a whole summary of scores" in refuse(run)


def test_a_table_of_deja_vu_that_is_not_of_its_summary_is_refused(tmp_path):
    """Such as one that lost its last lines."""
    lines = ["seed,index,outcome", "0,7,correlated", "1,7,memorized", ""]
    (tmp_path / "dejavu.csv").write_text("\n".join(lines))

    class Found:
        folder = tmp_path

        class summary:
            words, files = WORDS["independent"], {"dejavu.csv": "0" * 64}

    with pytest.raises(WrongUse, match="files of different results: dejavu.csv is"):
        outcomes_of_images(Found)


def test_runs_on_other_candidates_are_not_compared(refuse, pool, scored_run):
    assert "scores of 24 candidates" in refuse(pool[1], scored_run[1])


def test_a_run_without_scores_is_not_compared(refuse, pool, pool_copy):
    shutil.rmtree(pool_copy[1] / "scores")
    assert "no scores here; run memorization_scores.py" in refuse(pool[1], pool_copy[1])


# --- hostile names --------------------------------------------------------------------------------


def hostile_page():
    """The page of texts that try to break out of every place."""
    name = clean(HOSTILE)
    blocks = [text(name), table("t", name, {name: None, "n": ".1f"}, [[HOSTILE, 1.0]])]
    topics = [topic("how-much", name, [part("p", name, *blocks)])]
    data = {
        "is_comparison": False,
        "classes": [name],
        "images": {"file": [name]},
        "figures": {},
        HOSTILE: HOSTILE,
    }
    return render(Payload(name, name, topics, data)).decode()


def test_no_name_becomes_markup_or_script():
    content = hostile_page()
    assert "<script>alert" not in content and "<img src=x" not in content
    assert "\u2028" not in content.split('id="report-data">')[1].split("</script>")[0]
    # the scripts of the page itself: its data, plotly's source and its own code
    own = re.sub(r"(?s)<script.*?>.*?</script>", "", content)
    assert "</script" not in own and "<script" not in own
    assert content.count("<script") == content.count("</script") == 3


def test_data_are_read_back_as_they_were():
    assert json.loads(json_in_html({HOSTILE: [HOSTILE, None, 1.5]})) == {
        HOSTILE: [HOSTILE, None, 1.5]
    }
    assert not set("<>&\u2028\u2029") & set(json_in_html(HOSTILE))


def test_names_lose_what_a_reader_cannot_see():
    assert clean("a\x00b\u202ec\udcff") == "a\ufffdb\ufffdc\ufffd"
    assert len(clean("x" * 10**6)) == 200


def test_a_library_that_would_end_its_element_is_refused(monkeypatch):
    monkeypatch.setattr(html, "get_plotlyjs", lambda: "a = '</SCRIPT>'")
    with pytest.raises(WrongUse, match="plotly: cannot stand in a page"):
        hostile_page()


def test_hostile_classes_and_files_stay_text_in_the_page_of_a_run(tmp_path):
    """The names of folders are names of classes."""
    path, hostile = folder_config(tmp_path), "<img src=x onerror=alert(1)>"
    for split in ("train", "val"):
        place = tmp_path / "images" / split / "class_0"
        place.rename(place.with_name(hostile))
    train(path)
    score(path)
    page = make_page(tmp_path, "--config", path)
    assert hostile in page.data["classes"] and hostile not in page.content
    assert any(file.startswith(f"train/{hostile}/") for file in page.column("file"))
    assert [hostile] == [row[0] for row in page.table("per-class") if "img" in row[0]]
