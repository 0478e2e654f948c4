"""Linear probes: what f and g know of classes."""

from memorization.reporting.blocks import (
    axis,
    clean,
    figure,
    leave_out_numbers,
    number,
    table,
    text,
    trace,
)
from memorization.reporting.titles import title_of

WORDS = {"candidate": "f", "independent": "g"}
OTHERS = "text"  # the colour of encoders that are not of the run


def probe_blocks(result, place):
    """Accuracies of probes. result: a FoundResult; place: its number among the results."""
    summary = result.summary
    question = "How well can classes be told by what the encoders represent? Measured by a "
    blocks = [text(f"{question}{summary.kind}.")]
    for dataset, of in summary.over_pairs.items():
        values = [f"{number(role.mean, '.1%')}" for role in (of.candidate, of.independent)]
        test = of.paired.get("f > g")
        p = "" if test is None else f" (paired over {test.n} seeds: p {number(test.p, '.2g')})"
        both = f"On {title_of(dataset)}: f {values[0]}, g {values[1]}{p}."
        blocks.append(text(both))
    columns = {"data set": None, "encoder": None, "top-1 accuracy": ".2%", "std": ".2%"}
    columns |= {"kNN, k = 20": ".2%", "training images": "d"}
    rows = []
    for row in summary.results:
        accuracy = [row.top_1.mean, row.top_1.std, row.knn_20]
        rows.append([row.dataset, row.encoder, *accuracy, row.train_images])
    for number_of_set, dataset in enumerate(dict.fromkeys(row.dataset for row in summary.results)):
        of_set = [row for row in summary.results if row.dataset == dataset]
        blocks.append(_draw(f"probe-{place}-{number_of_set}", title_of(dataset), of_set))
    caption = "Accuracies of every encoder; std over probes"
    return [*blocks, table(f"probe-{place}-table", caption, columns, rows)]


def per_class_accuracy(result, dataset):
    """{class: mean accuracy of probes on f over the seeds}; empty if the data set was not probed.
    result: a FoundResult.
    """
    rows = [row for row in result.summary.results if row.dataset == dataset]
    rows = [row for row in rows if row.encoder.startswith("candidate seed ") and row.per_class]
    if not rows:
        return {}
    of_classes = zip(rows[0].classes, zip(*(row.per_class for row in rows)))
    return {name: sum(values) / len(values) for name, values in of_classes if None not in values}


def _draw(name, dataset, rows):
    """Top-1 accuracy of every encoder, those of a seed above each other."""
    lines = {}
    for row in rows:
        role, _, seed = row.encoder.partition(" ")
        of_run = role in WORDS
        words = WORDS[role] if of_run else "for comparison"
        line = lines.setdefault(words, {"x": [], "y": [], "low": [], "high": []})
        std = row.top_1.std or 0
        line["x"].append(clean(seed if of_run else row.encoder))
        line["y"].append(row.top_1.mean)
        line["low"].append(row.top_1.mean - std)
        line["high"].append(row.top_1.mean + std)
    colors = dict(zip(WORDS.values(), WORDS))
    traces = [
        trace("points", words, colors.get(words, OTHERS), **line) for words, line in lines.items()
    ]
    plot = figure(
        name,
        f"Linear probes on {dataset}",
        "Top-1 accuracy on the test images, a point for each encoder; error bars: standard "
        "deviation over probes.",
        {"x": axis("encoder", "category"), "y": axis("top-1 accuracy", form="percent")},
        traces,
    )
    return leave_out_numbers(plot)
