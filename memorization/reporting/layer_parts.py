"""Where it is memorized: layers and units."""

from memorization.measuring.layer_summary import FREE_OF_OFFSET
from memorization.measuring.unit_summary import ALL
from memorization.reporting.blocks import (
    axis,
    clean,
    facts,
    figure,
    interval,
    leave_out_numbers,
    note,
    number,
    table,
    text,
    trace,
)

SUBSETS = {
    "candidate": "candidates",
    "most": "the most memorized",
    "least": "the least memorized",
    "independent": "independent images",
    "external": "external images",
    "shared": "shared images",
}
MEASURED = {"f": "f", "g": "g", "external": "f on external images", "untrained": "untrained f"}
COLORS = {"f": "candidate", "g": "independent", "external": "external", "untrained": "shared"}


def layers_part(result, place):
    """LayerMem over depth. result: a FoundResult; place: its number among the results."""
    summary, traces = result.summary, []
    for name, words in SUBSETS.items():
        if name in summary.subsets:
            of = summary.subsets[name]
            line = {"low": of["low"], "high": of["high"]}
            traces.append(
                trace("line", words, name, summary.depths, of["layermem"], dash=name == "external")
            )
            if name in ("candidate", "external"):
                traces.append(trace("band", f"{words}, 95 %", name, summary.depths, **line))
    growth = summary.growth.get(FREE_OF_OFFSET, {})
    of_candidates = summary.subsets["candidate"]["layermem"]
    last = f"LayerMem of candidates is {of_candidates[0]:.4f} at the first layer and "
    last += f"{of_candidates[-1]:.4f} at the last."
    rows = [
        (
            "Spearman's correlation of depth with candidates - external",
            number(growth.get("spearman"), ".2f"),
            f"95 % interval over images {interval(growth.get('interval_95'), '.2f')}",
        )
    ]
    plot = figure(
        f"layers-{place}",
        "Memorization by depth",
        f"LayerMem of the layers from input to output. {last} Bands: 95 % intervals over images.",
        {"x": axis("depth of the layer"), "y": axis("LayerMem")},
        traces,
    )
    plot = leave_out_numbers(plot)
    return [facts(rows), plot, _table_of_layers(summary, place), note(_sentence(summary.meaning))]


def _table_of_layers(summary, place):
    names = [name for name in SUBSETS if name in summary.subsets]
    columns = {"layer": None, "depth": "d"} | {SUBSETS[name]: ".4f" for name in names}
    columns["candidates - external"] = ".4f"
    rows = []
    for at, layer in enumerate(summary.layers):
        means = [summary.subsets[name]["layermem"][at] for name in names]
        free = summary.free_of_the_offset["value"][at]
        rows.append([layer, summary.depths[at], *means, free])
    return table(f"layers-{place}-table", "LayerMem of every layer", columns, rows)


def units_part(result, place):
    """UnitMem by layer. result: a FoundResult; place: its number among the results."""
    summary = result.summary
    seed = next(iter(summary.layers))
    layers = summary.layers[seed]
    names = [name for name in layers if name != ALL]
    of = {}
    for which in MEASURED:
        if which in layers[ALL]:
            of[which] = [_mean_over_seeds(summary, name, which) for name in names]
    traces = [
        trace("line", MEASURED[which], COLORS[which], list(map(clean, names)), means, dash=dash)
        for which, means in of.items()
        for dash in [which in ("external", "untrained")]
    ]
    whole = summary.over_seeds.get(ALL, {})
    rows = []
    for name, words in (("f - external", "f less external images"), ("f - g", "f less g")):
        spread = whole.get(name)
        if spread:
            value = number(spread["mean"], "+.4f")
            rows.append((f"UnitMem, {words}", value, _spread(spread)))
    top = summary.top_images["over_seeds"]
    if top:
        words = "units that an image fires most, with its memorization score"
        rows.append((f"rank correlation: {words}", number(top["mean"], "+.2f"), _spread(top)))
    plot = figure(
        f"units-{place}",
        "UnitMem by layer",
        "Mean UnitMem of the units of each layer, from input to output, mean over seeds.",
        {"x": axis("layer", "category"), "y": axis("mean UnitMem")},
        traces,
    )
    columns = {"layer": None, "units": "d", "dead": "d"} | {MEASURED[w]: ".4f" for w in of}
    body = [
        [name, layers[name]["f"]["units"], layers[name]["f"]["dead"], *(of[w][at] for w in of)]
        for at, name in enumerate(names)
    ]
    caption = "Mean UnitMem of every layer; dead units are those of the first seed"
    blocks = [
        facts(rows),
        leave_out_numbers(plot),
        table(f"units-{place}-table", caption, columns, body),
    ]
    return [*blocks, *_pruning(summary.pruning, place), note(_sentence(summary.meaning))]


def _mean_over_seeds(summary, name, which):
    """The mean UnitMem of a layer over the seeds, None if a seed has none."""
    means = [of[name][which]["unitmem"]["mean"] for of in summary.layers.values()]
    return None if None in means else sum(means) / len(means)


def _pruning(pruning, place):
    """What probes lose without some units, blocks."""
    if pruning is None:
        return []
    columns = {"data set": None, "cut": None, "top-1 accuracy": ".1%", "std over seeds": ".1%"}
    columns["less than whole"] = ".1%"
    rows = []
    for dataset, policies in pruning.datasets.items():
        for policy, of in policies.items():
            accuracy = [of.top_1.mean, of.top_1.std]
            rows.append([dataset, policy, *accuracy, of.less_nothing.mean])
    share = f"{pruning.share:.0%}"
    words = text(f"What does a linear probe lose if {share} of the units are cut?")
    return [words, table(f"pruning-{place}", "Accuracy without some units", columns, rows)]


def _spread(spread):
    if spread["std"] is None:
        return "one seed"
    return f"standard deviation over {spread['n']} seeds {spread['std']:.4f}"


def _sentence(words):
    return f"{words[0].upper()}{words[1:]}."
