"""The page as a file: where it is written, that it needs nothing else, and what it says of results
that are not there.
"""

import re
import shlex
import shutil
import tomllib
from html import unescape
from pathlib import Path

import pytest
from compared import derive_run, with_noise
from conftest import ONE_REMOVAL, QUICK_PROBE, ROOT, ask, score
from reported import make_page, read_page

import layer_memorization
import linear_probing_train
import membership_inference
import memorization_scores
import remove_samples
import report
import unit_memorization
from memorization.reporting import html
from memorization.run import read_run

SECTIONS = {
    "membership": "membership_inference.py",
    "layers": "layer_memorization.py",
    "units": "unit_memorization.py",
    "dejavu": "dejavu.py",
    "probe": "linear_probing_train.py",
    "removal": "remove_samples.py",
}


@pytest.fixture(scope="module")
def page(pool, tmp_path_factory):
    return make_page(tmp_path_factory.mktemp("page"), pool[1])


def command_in(page, section):
    """The command that a part of a page shows."""
    content = re.search(rf'<section class="part" id="{section}".*?</section>', page.content, re.S)
    return unescape(re.search(r"<code>(.*?)</code>", content[0], re.S)[1])


def words_before_command(page, section):
    """The last words before the command that a part of a page shows."""
    content = re.search(rf'<section class="part" id="{section}".*?</section>', page.content, re.S)
    return re.search(r"[^.]*:(?=</p>\s*<pre)", content[0])[0].strip()


@pytest.mark.parametrize("section", SECTIONS)
def test_a_part_without_results_names_the_command_that_makes_them(page, section):
    assert SECTIONS[section] in command_in(page, section)


def test_the_command_of_a_missing_part_makes_it(pool_copy, tmp_path):
    run = pool_copy[1]
    words = shlex.split(command_in(make_page(tmp_path, run), "layers"))
    assert words[:2] == ["python", "layer_memorization.py"]
    layer_memorization.main([*words[2:], "--threads", "1", "--device", "cpu"])
    page = make_page(tmp_path, run)
    assert "layers-0" in page.data["figures"]
    assert "Memorization by layer was not measured" not in page.text


def test_a_run_without_scores_says_so_and_shows_the_rest(pool_copy, tmp_path):
    path, run = pool_copy
    for file in (run / "scores").iterdir():
        file.unlink()
    page = make_page(tmp_path, run)
    assert "There are no memorization scores, so no images are shown" in page.text
    assert "memorization_scores.py" in command_in(page, "scores")
    assert "training-loss" in page.data["figures"] and page.sheets == []


def test_a_run_without_scores_has_its_page_without_its_data(pool, tmp_path, monkeypatch):
    monkeypatch.setattr("memorization.run.open_images", lambda _: pytest.fail("data were read"))
    run = derive_run(pool[1], tmp_path / "run")
    shutil.rmtree(tmp_path / "run/scores")
    page = make_page(tmp_path, run)
    assert "SimCLR, resnet_small, made-up images, 2 pairs of encoders" in page.text
    assert "There are no memorization scores" in page.text


def test_a_command_that_cannot_work_yet_is_said_to_come_later(pool, tmp_path):
    """Here the second g is missing, as it is if a training was interrupted."""
    run = tmp_path / "run"
    shutil.copytree(pool[1], run, ignore=shutil.ignore_patterns("scores"))
    assert words_before_command(make_page(tmp_path, run), "scores") == "The command for it:"
    later = "After the memorization scores, the command for it:"
    assert words_before_command(make_page(tmp_path, run), "removal") == later
    last = run / f"seed_{read_run(str(run)).seeds[-1]}/independent"
    (last / "encoder.pt").unlink()
    log = last / "log.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    page = make_page(tmp_path, run)
    for section in ("scores", *SECTIONS):
        later = "After the training, the command for it:"
        assert words_before_command(page, section) == later
    assert "This command goes on:" in page.text
    assert shlex.split(command_in(page, "training"))[1] == "train_simclr.py"


def test_a_removal_of_a_run_with_shared_images_ranks_the_candidates_alone(
    scored_run, pool, tmp_path
):
    words = shlex.split(command_in(make_page(tmp_path, scored_run[1]), "removal"))
    assert words[words.index("--removal.candidates_only") + 1] == "true"
    assert "candidates_only" not in command_in(make_page(tmp_path, pool[1]), "removal")


def test_a_training_that_has_not_begun_names_its_command(pool, tmp_path):
    run = derive_run(pool[1], tmp_path / "run")
    assert shlex.split(command_in(make_page(tmp_path, run), "training"))[1] == "train_simclr.py"


def test_a_finished_training_without_logs_names_no_command(pool, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(pool[1], run, ignore=shutil.ignore_patterns("log.jsonl"))
    page = make_page(tmp_path, run)
    assert "There are no training logs." in page.text
    assert "There are no training logs. The command" not in page.text


def test_a_training_that_is_not_finished_is_said_to_be_so(run_copy, tmp_path):
    run = run_copy[1]
    for encoder in run.glob("seed_*/*/encoder.pt"):
        encoder.unlink()
    assert "At the end that of f is" in make_page(tmp_path, run).text  # they were there
    path = run / "seed_1/independent/log.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    text = make_page(tmp_path, run).text
    assert "The training is not finished: 3 of 4 encoders are." in text
    assert "At the end" not in text


def test_a_result_of_other_settings_names_the_command_that_makes_it_again(
    pool_copy, tmp_path, no_pictures
):
    path, run = pool_copy
    score(path, "--run", str(run), "--scores.views", "5", "--seeds", "1")
    written = (run / "scores/views_5_seeds_1/scores.csv").read_bytes()
    page = make_page(tmp_path, run)
    assert "There are others: scores/views_5_seeds_1" in page.text
    commands = command_in(page, "repeat").splitlines()
    (again,) = (shlex.split(line) for line in commands if "--scores.views 5" in line)
    shutil.rmtree(run / "scores/views_5_seeds_1")
    memorization_scores.main([*again[2:], "--threads", "1", "--device", "cpu"])
    assert (run / "scores/views_5_seeds_1/scores.csv").read_bytes() == written


def test_a_page_shows_every_measurement(halves_copy, in_process, no_pictures, tmp_path):
    path, run = halves_copy
    arguments = ["--config", path, "--run", str(run)]
    remove_samples.main([*arguments, *ONE_REMOVAL])
    arguments += ["--seeds", "0"]
    ask(path, run, "--seeds", "0")
    linear_probing_train.main([*arguments, *QUICK_PROBE])
    unit_memorization.main([*arguments, "--units.views", "3"])
    layer_memorization.main(arguments)
    membership_inference.main([*arguments, "--membership.attacks", "alignment"])
    page = make_page(tmp_path, run)
    assert "The command for it" not in page.text
    figures = ["removal-0-0", "dejavu-0", "probe-0-0", "units-0", "layers-0", "training-loss"]
    assert set(figures) <= set(page.data["figures"])
    assert page.column("outcome").count(None) < len(page.column("outcome"))
    assert [len(page.table(f"{name}-table")) > 1 for name in ("removal-0", "units-0")]
    assert "accuracy of f" in page.table("per-class")[0]


def test_scores_of_checkpoints_are_a_curve(run_copy, no_pictures, tmp_path):
    path, run = run_copy
    assert "memorization_scores.py" in command_in(make_page(tmp_path, run), "training")
    score(path, "--run", str(run), "--checkpoint", "all")
    curves = make_page(tmp_path, run).data["figures"]["training-scores"]["traces"]
    assert [curve["name"] for curve in curves][:2] == ["shared images", "candidates"]
    assert curves[0]["x"] == [2, 3]


def test_the_page_lies_in_the_run_folder(pool_copy, capsys):
    path, run = pool_copy
    report.main([str(run)])
    assert f"{run}/report.html: " in capsys.readouterr().out
    first = (run / "report.html").read_bytes()
    report.main([str(run)])
    assert (run / "report.html").read_bytes() == first
    assert not [name for name in run.iterdir() if "tmp" in name.name]


def test_a_config_stands_for_its_run(pool, tmp_path):
    assert make_page(tmp_path, "--config", pool[0]).content == (
        make_page(tmp_path, pool[1]).content
    )


def test_commands_quote_the_names_of_runs(pool, tmp_path):
    run = derive_run(pool[1], tmp_path / "a b;$(id)")
    words = shlex.split(command_in(make_page(tmp_path, run), "repeat").splitlines()[0])
    assert words[2:4] == ["--config", f"{run}/config.yaml"]
    words = shlex.split(command_in(make_page(tmp_path, run, pool[1]), "repeat"))
    assert words == ["python", "compare_runs.py", str(run), str(pool[1])]


def test_commands_say_where_the_data_are_if_they_were_moved(pool, tmp_path):
    for options, count in ((), 0), (("--data.root", "moved here"), 1):
        page = make_page(tmp_path, pool[1], *options)
        for section in ("repeat", "membership"):
            words = shlex.split(command_in(page, section).splitlines()[0])
            assert words.count("--data.root") == words.count("moved here") == count


def test_the_name_of_a_run_may_hold_bytes_that_are_not_utf_8(pool, tmp_path):
    run = derive_run(pool[1], tmp_path / "bad\udcff")
    page = make_page(tmp_path, run)
    assert page.data["title"].endswith("bad\ufffd") and "bad\\udcff" in page.text


def test_a_page_of_several_runs_lies_in_the_working_directory(pool, tmp_path, monkeypatch):
    other = derive_run(pool[1], tmp_path / "b", with_noise(1))
    monkeypatch.chdir(tmp_path)
    report.main([str(pool[1]), other])
    assert read_page(tmp_path / "report.html").data["is_comparison"]


def test_the_page_asks_for_nothing_beyond_itself(page):
    own = re.sub(r'(?s)<script type="text/plain" id="plotly-source">.*?</script>', "", page.content)
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:|//|file:)", own)
    assert "@import" not in own and "url(http" not in own
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', page.content)[1]
    assert policy.startswith("default-src &#39;none&#39;;")
    assert "connect-src" not in policy and "http" not in policy


def test_every_link_in_the_page_has_its_end_and_every_id_stands_once(page):
    own = re.sub(r"(?s)<(script|style).*?</\1>", "", page.content)
    ids = re.findall(r'\bid="(.*?)"', own)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#(.*?)"', own)) <= set(ids)
    assert set(re.findall(r'aria-labelledby="(.*?)"', own)) <= set(ids)


def test_every_figure_in_the_page_has_its_data(page):
    assert set(re.findall(r'data-figure="(.*?)"', page.content)) == set(page.data["figures"])


def test_all_columns_have_a_value_for_every_image(page):
    lengths = {len(values) for values in page.data["images"].values()}
    assert lengths == {len(page.data["pictures"]["tile"])}
    keys = [column["key"] for column in page.data["columns"]]
    assert keys == list(page.data["images"])
    assert {page.data["headline_score"], page.data["outstanding"]} <= set(keys)


def test_the_files_of_the_page_are_part_of_the_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (pattern,) = settings["tool"]["setuptools"]["package-data"]["memorization.reporting"]
    of_page = set(html.FOLDER.parent.glob(pattern))
    names = {"page.html.j2", "page.css", *(f"{name}.js" for name in html.SCRIPTS)}
    assert {Path(path).name for path in of_page} == names
