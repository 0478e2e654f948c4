"""What the page of one run shows: its topics, and the data that its script reads."""

from dataclasses import dataclass, field

import numpy as np

from memorization.machine.files import refuse_broken
from memorization.measuring.compared_runs import read_scored_run
from memorization.reporting.blocks import clean, fold, note, part, round_off, topic
from memorization.reporting.class_part import classes_part
from memorization.reporting.deja_vu_part import (
    deja_vu_blocks,
    meanings_of_outcomes,
    outcomes_of_images,
)
from memorization.reporting.html import fixed_bytes, json_in_html
from memorization.reporting.image_rows import (
    Columns,
    add_outcomes,
    add_places,
    add_scores,
    order_rows,
    scores_by_seed,
    words_of_losses,
)
from memorization.reporting.layer_parts import layers_part, units_part
from memorization.reporting.membership_part import guards_blocks, membership_blocks
from memorization.reporting.origin_part import origin_parts
from memorization.reporting.pictures import NEIGHBOR, Pictures, Viewing
from memorization.reporting.probe_part import per_class_accuracy, probe_blocks
from memorization.reporting.removal_part import removal_blocks
from memorization.reporting.result_folders import (
    SUMMARIES,
    find_checkpoints,
    find_results,
    missing_measurement,
)
from memorization.reporting.score_parts import (
    TITLES,
    headline_part,
    meanings_of,
    reliability_part,
    scores_part,
)
from memorization.reporting.score_parts import (
    classes_part as class_counts_part,
)
from memorization.reporting.titles import title_of
from memorization.reporting.training_part import training_part

MOST_BYTES = 24_500_000  # of a page
OTHER_BYTES = 250_000  # of its texts and tables, about
BAND = (0.025, 0.5, 0.975)  # quantiles of S_E in the scatter
# {section: (title, what is missing without results, function of (FoundResult, its number))}
MEASUREMENTS = {
    "membership": (
        "Membership",
        "Whether an attacker can tell which images an encoder was trained on was not measured.",
        membership_blocks,
    ),
    "layers": ("Layers", "Memorization by layer was not measured.", layers_part),
    "units": ("Units", "Memorization in single units was not measured.", units_part),
    "dejavu": (
        "Deja Vu",
        "What f tells of an image by a part of it was not asked.",
        deja_vu_blocks,
    ),
    "probe": ("Linear probes", "What the encoders know of classes was not probed.", probe_blocks),
    "removal": (
        "Removal",
        "What it costs to train without the memorized images was not tried.",
        removal_blocks,
    ),
}
WITHOUT_SCORES = "There are no memorization scores, so no images are shown."


@dataclass(frozen=True, eq=False)
class Payload:
    """What a page shows. title, subtitle: texts; topics: of `blocks.topic`; data: what the page's
    script reads, plain types; sheets: `data:` addresses of pictures.
    """

    title: str
    subtitle: str
    topics: list
    data: dict
    sheets: list = field(default_factory=list)


def payload_of_run(run):
    """The Payload of one Run. Raises WrongUse if a result is broken, or if there are scores, but
    not the data set.
    """
    results = {section: find_results(run, section) for section in SUMMARIES}
    name, scored = clean(run.folder.resolve().name), None
    if results["scores"]:
        scored = read_scored_run(run, name, results["scores"][0].folder)
    outcomes = outcomes_of_images(results["dejavu"][0]) if results["dejavu"] else {}
    images, sheets = {"classes": []}, []
    if scored is not None:
        images, sheets = _images(run, scored, results["dejavu"], outcomes)
    topics = _topics(run, scored, results, outcomes)
    data = {"title": clean(run.name), "is_comparison": False, "figures": figures_of(topics)}
    data |= images
    data["downloads"] = {"images": f"{name}_images.csv"}
    return Payload(name, _subtitle(run, scored), topics, data, sheets)


def _subtitle(run, scored):
    method = run.config.method["name"] if run.config.method else "import"
    seeds = len(run.seeds if scored is None else scored.summary.seeds)
    pairs = "1 pair of encoders" if seeds == 1 else f"{seeds} pairs of encoders"
    encoder = clean(run.config.encoder.label)
    return f"{title_of(method)}, {encoder}, {title_of(run.config.data.name)}, {pairs}"


# --- topics ---------------------------------------------------------------------------------------


def _topics(run, scored, results, outcomes):
    """The topics of a run's page, in order."""
    checkpoints = find_checkpoints(run, "scores")
    how_much, which, is_real = [], [], []
    if scored is None:
        how_much.append(
            part("scores", "Scores", missing_measurement(run, "scores", WITHOUT_SCORES))
        )
    else:
        folder = results["scores"][0].folder
        with refuse_broken(folder, "not a whole summary of scores"):
            how_much += [headline_part(scored), _with_source(scores_part(scored), run, results)]
            which.append({"name": "images", "title": "Images", "blocks": [{"kind": "images"}]})
            accuracies = {}
            if results["probe"]:
                accuracies = per_class_accuracy(results["probe"][0], run.config.data.name)
            names = run.images.classes
            which.append(classes_part(scored, names, outcomes, accuracies))
            is_real += [reliability_part(scored), class_counts_part(scored)]
    if results["membership"]:
        blocks = guards_blocks(results["membership"][0])
        if blocks:
            is_real.append(part("guards", "Guards", *blocks))
    parts = {section: _measurement_part(run, results, section) for section in MEASUREMENTS}
    topics = [
        topic("how-much", "How much?", how_much),
        topic("which-images", "Which images?", which),
        topic("is-it-real", "Is it real?", is_real),
        topic(
            "where-and-when",
            "Where and when?",
            [training_part(run, checkpoints), parts["layers"], parts["units"]],
        ),
        topic(
            "does-it-matter",
            "Does it matter?",
            [parts[name] for name in ("dejavu", "membership", "probe", "removal")],
        ),
        topic("how-it-was-made", "How it was made", origin_parts(run, scored, results)),
    ]
    return [one for one in topics if one["parts"]]


def _with_source(scores, run, results):
    """A part of scores with a note on the folder that they are of, if there are several."""
    first, *others = results["scores"]
    if first.name or others:
        place = f"These are the scores in {clean(first.folder.relative_to(run.folder))}."
        more = ", ".join(clean(one.folder.relative_to(run.folder)) for one in others)
        scores["blocks"].append(note(place, f"There are others: {more}." if others else ""))
    return scores


def _measurement_part(run, results, section):
    """The part of a measurement, with all its results one after the other."""
    title, nothing, blocks_of = MEASUREMENTS[section]
    if not results[section]:
        return part(section, title, missing_measurement(run, section, nothing))
    blocks = []
    for place, result in enumerate(results[section]):
        with refuse_broken(result.folder, "not a whole summary of a result"):
            of_result = blocks_of(result, place)
        folder = clean(result.folder.relative_to(run.folder))
        if place:
            blocks.append(fold(f"Another result: {folder}", of_result))
        else:
            blocks += of_result + (
                [note(f"This is the result in {folder}.")] if result.name else []
            )
    return part(section, title, *blocks)


def figures_of(topics):
    """{name: content} of all figures in topics."""
    return {
        block["name"]: block["content"]
        for one in topics
        for of_topic in one["parts"]
        for block in _unfold(of_topic["blocks"])
        if block["kind"] == "figure"
    }


def _unfold(blocks):
    """All blocks, those that are folded too."""
    for block in blocks:
        yield from _unfold(block["blocks"]) if block["kind"] == "fold" else (block,)


# --- images ---------------------------------------------------------------------------------------


def _images(run, scored, dejavu, outcomes):
    """(what the page's script reads of images, sheets of pictures)."""
    column = scored.summary.headline
    rows = order_rows(scored.table, scored.table[column])
    columns = Columns()
    add_places(columns, rows, run.images)
    add_scores(columns, rows, scored)
    if outcomes:
        add_outcomes(columns, rows, outcomes)
    per_seed = scores_by_seed(rows, scored)
    pictures = Pictures(run, rows)
    most_bytes = bytes_for_pictures([columns.values, per_seed])
    pictures.add(most_bytes, Viewing.of(run, scored.summary))
    meanings = meanings_of(scored.table["subset"])
    titles = TITLES | ({} if "independent" in meanings else {"candidate": "pool: candidates"})
    data = {
        "classes": list(map(clean, run.images.classes)),
        "headline_score": column,
        "outstanding": column.replace("score", "q"),
        "subsets": {
            name: {"title": titles[name], "meaning": meaning} for name, meaning in meanings.items()
        },
        "outcomes": meanings_of_outcomes(dejavu[0].summary) if outcomes else {},
        "columns": columns.descriptions,
        "images": columns.values,
        "axes": _axes(scored),
        "band": _band(scored),
        "per_seed": per_seed,
        "seeds": scored.summary.seeds,
    }
    return data | data_of_pictures(pictures), pictures.sprites.sheets


def bytes_for_pictures(values):
    """How many bytes of a page are left for pictures. values: its other data, plain types."""
    return MOST_BYTES - OTHER_BYTES - fixed_bytes() - len(json_in_html(values))


def data_of_pictures(pictures):
    """What the page's script reads of Pictures, a dict."""
    notes = pictures.notes
    return {
        "pictures": {"size": pictures.size, "tile": pictures.tile, "note": notes["pictures"]},
        "sheet_info": pictures.sprites.shapes,
        "details": pictures.plain_details(),
        "neighbor_keys": NEIGHBOR,
        "neighbors_note": notes.get("neighbors", ""),
        "views_note": notes.get("views", ""),
        "no_views_note": notes.get("no_views", ""),
    }


def _axes(scored):
    words = words_of_losses(scored.table["subset"])
    return {
        name: {"key": f"alignment_loss_{name}", "title": f"L_align {words[name]}"} for name in "fg"
    }


def _band(scored):
    table, external = scored.table, scored.select("external")
    differences = (table["alignment_loss_g"] - table["alignment_loss_f"])[external]
    low, middle, high = (round_off(float(end)) for end in np.quantile(differences, BAND))
    meaning = "95 % of the external images lie between the dashed lines"
    return {"low": low, "middle": middle, "high": high, "meaning": meaning}
