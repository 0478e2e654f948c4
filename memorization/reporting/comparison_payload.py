"""What the page of several runs shows: their scores of the same candidates beside each other, as
compare_runs.py computes them.
"""

import shlex

import numpy as np

from memorization.measuring.compared_runs import (
    add_accuracy,
    check_same_candidates,
    read_scored_run,
)
from memorization.measuring.comparison import (
    bands_of,
    common_rankings,
    reliability_by,
    summarize,
    thresholds_of,
)
from memorization.measuring.comparison_printing import MATRICES, OF_OTHERS, TABLE
from memorization.reporting.blocks import (
    axis,
    clean,
    code,
    figure,
    headline,
    heat_map,
    interval,
    leave_out_numbers,
    note,
    number,
    part,
    table,
    text,
    topic,
    trace,
)
from memorization.reporting.image_rows import Columns, add_places, order_rows
from memorization.reporting.payload import (
    Payload,
    bytes_for_pictures,
    data_of_pictures,
    figures_of,
)
from memorization.reporting.pictures import Pictures
from memorization.reporting.score_parts import (
    NOT_ONE_IMAGE,
    ends_of_reliability,
    meanings_of,
)
from memorization.reporting.titles import title_of

STRIP = 8  # images of a band
COLORS = 8  # series1, series2, ... of the page


def payload_of_comparison(runs, names):
    """The Payload of several Runs that scored the same candidates. names: of the runs, texts.

    Raises WrongUse if a run has no scores, or scores of other candidates.
    """
    scored = [
        add_accuracy(read_scored_run(run, clean(name), run.folder / "scores"), run)
        for run, name in zip(runs, names)
    ]
    check_same_candidates(scored)
    rankings = common_rankings(scored)
    summary = summarize(scored, rankings, {})
    images, sheets, tile_of = _images(runs[0], scored, rankings)
    topics = [
        topic(
            "how-much",
            "How much?",
            [_in_short(scored, rankings, summary.runs), _runs_part(summary, scored, rankings)],
        ),
        topic("is-it-real", "The same images?", [_agreement_part(summary)]),
        topic(
            "which-images",
            "Which images?",
            [_strips_part(scored, rankings, tile_of), _images_part()],
        ),
        topic("does-it-matter", "Does it matter?", [_accuracy_part(summary.runs)]),
        topic("how-it-was-made", "How it was made", [_commands_part(runs)]),
    ]
    topics = [one for one in topics if one["parts"]]
    data = {"title": "comparison", "is_comparison": True, "figures": figures_of(topics)}
    data |= {"classes": [clean(name) for name in runs[0].images.classes]} | images
    data["downloads"] = {"images": "comparison_images.csv"}
    subtitle = f"{len(runs)} runs on the same {len(scored[0].index('candidate')):,} candidates of "
    subtitle += title_of(runs[0].images.name)
    return Payload(" and ".join(map(clean, names)), subtitle, topics, data, sheets)


def _in_short(scored, rankings, rows):
    """A sentence for each run. rows: of the table of runs, with the same numbers."""
    sentences, n = [], len(rankings.candidate)
    for run, row in zip(scored, rows):
        of = reliability_by(run, rankings.column)
        state = "one pair, so single images are not known"
        if of:
            state = (
                f"reliability of the ranking {number(row['reliability'], '.2f')}, 95 % interval "
            )
            state += f"over images {interval(ends_of_reliability(of['candidate']), '.2f')}"
        ends = [row[f"above_external_95_{end}"] for end in ("low", "high")]
        share = f"{number(row['above_external_95'], '.0%')} (95 % interval {interval(ends, '.0%')})"
        sentences.append(
            f"{run.name}: {share} of {n:,} images score higher than 95 % of the images that no "
            f"encoder was trained on, where chance gives 5 % ({state})."
        )
    return part("headline", "In short", headline(*sentences), _what_differs(scored, rankings))


def _what_differs(scored, rankings):
    """A note on what runs differ in beside what they are compared for."""
    sentences = [f"Images are ranked by {rankings.column}."]
    if rankings.left_out["candidate"]:
        sentences.append(
            f"{rankings.left_out['candidate']} candidates are left out: a run has no local score "
            "of them."
        )
    if len({len(run.summary.seeds) for run in scored}) > 1:
        sentences.append(
            "The runs have different numbers of seeds. With more seeds more images stand out, d is "
            "larger and a ranking is more reliable; only d of a seed does not depend on it."
        )
    if len({run.summary.settings.get("views") for run in scored}) > 1:
        sentences.append("They were scored by different numbers of views.")
    return note(*sentences, NOT_ONE_IMAGE)


def _runs_part(summary, scored, rankings):
    """The table of runs and the curves of thresholds."""
    columns = {"run": None, "method": None, "encoder": None} | {
        heading: form for heading, (_, form) in TABLE.items()
    }
    keys = [key for key, _ in TABLE.values()]
    rows = []
    for run in summary.runs:
        rows.append(
            [run["run"], title_of(run["method"]), run["encoder"], *(run[key] for key in keys)]
        )
    traces = []
    for place, run in enumerate(scored):
        of_run = [
            row
            for row in thresholds_of(scored, rankings)
            if row["run"] == run.name and not row["mark"]
        ]
        x = [row["threshold"] for row in of_run]
        above = [row["candidates_above"] for row in of_run]
        traces.append(trace("line", run.name, _color(place), x, above))
    curves = figure(
        "thresholds",
        "Candidates above a threshold",
        f"Share of the candidates with a higher {summary.column} than a threshold, a line a run. "
        "Thresholds are on the range scale: score / (max - min of the run).",
        {
            "x": axis(f"threshold of {summary.column} / (max - min)"),
            "y": axis("candidates above it", form="percent"),
        },
        traces,
    )
    return part(
        "runs",
        "The runs",
        table("runs-table", "The runs beside each other", columns, rows),
        note(
            f"Means, d and p are of score, over all seeds. > 95 % S_E, q < .1 and reliability are "
            f"of {summary.column}; accuracy is of linear probes on f. From, to: 95 % interval of "
            f"> 95 % S_E, {OF_OTHERS}."
        ),
        curves,
    )


def _agreement_part(summary):
    """How well each two rankings agree."""
    names = [run["run"] for run in summary.runs]
    blocks = [_meaning_of_halves(summary)]
    for key, words in MATRICES.items():
        for prefix, of in (("", "candidates"), ("external_", "external images")):
            values = [[None] * len(names) for _ in names]
            for row in summary.agreement:
                a, b = names.index(row["run_a"]), names.index(row["run_b"])
                values[a][b] = values[b][a] = row[f"{prefix}halves_{key}"]
            chance = number(summary.chance[key], ".2f")
            title = f"{words[0].upper()}{words[1:]}, {of}"
            meaning = f"Of each two rankings of {of}; by chance {chance}."
            blocks.append(heat_map(f"agreement-{prefix}{key}", title, meaning, names, values))
    external = "External images are not memorized: what agrees there is no memory."
    return part("agreement", "How well the rankings agree", *blocks, note(external))


def _meaning_of_halves(summary):
    size = summary.seeds_of_a_half
    if size is None:
        return text("Each run has one seed: one ranking is compared with another.")
    seeds = "single seeds" if size == 1 else f"means over {size} seeds"
    return text(
        f"Compared are {seeds} of each run with as many other seeds of another. The diagonal "
        "compares a run with itself by two halves of its seeds: the ceiling."
    )


def _accuracy_part(runs):
    """Accuracy of probes against the effect, a part; None if no run was probed."""
    probed = [(place, run) for place, run in enumerate(runs) if run["accuracy"] is not None]
    if not probed:
        return None
    traces = [
        trace(
            "points",
            run["run"],
            _color(place),
            [run["d_of_one_seed"]],
            [run["accuracy"]],
            low=[run["accuracy"] - (run["accuracy_std"] or 0)],
            high=[run["accuracy"] + (run["accuracy_std"] or 0)],
        )
        for place, run in probed
    ]
    plot = figure(
        "accuracy",
        "Accuracy and memorization",
        "Top-1 accuracy of linear probes on f against Cohen's d of one seed, a point a run; error "
        "bars: standard deviation over seeds.",
        {"x": axis("d of one seed"), "y": axis("top-1 accuracy", form="percent")},
        traces,
    )
    return part("accuracy-part", "Accuracy", leave_out_numbers(plot))


def _commands_part(runs):
    again = shlex.join(["python", "compare_runs.py", *(run.name for run in runs)])
    words = text("This command writes the same numbers as tables and pictures.")
    return part("repeat", "Commands to repeat it", words, code([again]))


def _color(place):
    return f"series{place % COLORS + 1}"


# --- images ---------------------------------------------------------------------------------------


def _images_part():
    return {"name": "images", "title": "Images", "blocks": [{"kind": "images"}]}


def _mean_scores(run, column):
    """{(subset, index): score} of a ScoredRun."""
    rows = zip(run.table["subset"].tolist(), run.table["index"].tolist())
    return dict(zip(rows, run.table[column].tolist()))


def _images(run, scored, rankings):
    """(what the page's script reads of images, sheets, {index of a candidate: [sheet, tile]}).
    Candidates are ordered by the mean over the runs of their score on the range scale.
    """
    column, first = rankings.column, scored[0]
    by_run = [_mean_scores(one, column) for one in scored]
    spans = [np.nanmax(list(of.values())) - np.nanmin(list(of.values())) for of in by_run]
    keys = list(zip(first.table["subset"].tolist(), first.table["index"].tolist()))
    nothing = float("nan")
    means = np.array(
        [
            np.mean([of.get(key, nothing) / (span or 1) for of, span in zip(by_run, spans)])
            for key in keys
        ]
    )
    rows, columns = order_rows(first.table, means), Columns()
    add_places(columns, rows, run.images)
    mean = f"mean over the runs of {column} / (max - min of the run)"
    columns.add("mean", means[rows.places], "mean", "number", mean, digits=4, in_gallery=True)
    for place, (one, of) in enumerate(zip(scored, by_run)):
        values = [of.get(keys[at], nothing) for at in rows.places.tolist()]
        meaning = f"{column} of {one.name}"
        columns.add(
            f"run_{place}", values, one.name, "number", meaning, digits=4, in_gallery=place < 3
        )
    pictures = Pictures(run, rows)
    pictures.add(bytes_for_pictures(columns.values))
    meanings = meanings_of(first.table["subset"])
    data = {
        "headline_score": "mean",
        "outstanding": None,
        "subsets": {name: {"title": name, "meaning": words} for name, words in meanings.items()},
        "outcomes": {},
        "columns": columns.descriptions,
        "images": columns.values,
        "axes": {
            name: {"key": f"run_{place}", "title": f"{column}, {scored[place].name}"}
            for place, name in enumerate("fg")
        },
        "band": None,
        "per_seed": None,
        "seeds": [],
    }
    tile_of = dict(zip(rows.index[: rows.n_candidates].tolist(), pictures.tile))
    return data | data_of_pictures(pictures), pictures.sprites.sheets, tile_of


def _strips_part(scored, rankings, tile_of):
    """Images by bands of their scores, a line for each run and band."""
    blocks = []
    for run in scored:
        scores, strips = rankings.scores(run, "candidate").mean(0), []
        for band, places in bands_of(scores, STRIP).items():
            tiles = []
            for place in places.tolist():
                index = int(rankings.candidate[place])
                tile = tile_of.get(index)
                if tile:
                    words = f"candidate {index}, {rankings.column} {scores[place]:.4f}"
                    tiles.append({"sheet": tile[0], "tile": tile[1], "text": words})
            strips.append({"title": f"{run.name}: {band}", "tiles": tiles})
        blocks.append({"kind": "strips", "strips": strips})
    return part("strips", "Images by their scores", *blocks)
