"""The removal curve: what accuracy it costs to train without some images."""

from memorization.reporting.blocks import (
    axis,
    figure,
    leave_out_numbers,
    note,
    number,
    table,
    trace,
)
from memorization.reporting.titles import title_of

COLORS = {
    "memorized": "candidate",
    "least": "independent",
    "random": "shared",
    "random_matched": "external",
    "typical": "most",
}


def removal_blocks(result, place):
    """Accuracy by the number of removed images. result: a FoundResult; place: its number."""
    summary, blocks, rows = result.summary, [], []
    for number_of_set, (dataset, curve) in enumerate(summary.datasets.items()):
        whole, traces = curve.nothing_removed, []
        rows.append([dataset, "nothing", 0, whole.mean, whole.std, None])
        for policy, of_count in curve.policies.items():
            counts, words = sorted(of_count), policy.replace("_", ", ")
            means = [of_count[count].mean for count in counts]
            low = [of_count[count].mean - (of_count[count].std or 0) for count in counts]
            high = [of_count[count].mean + (of_count[count].std or 0) for count in counts]
            color = COLORS.get(policy, "text")
            traces.append(
                trace("points", words, color, counts, means, low=low, high=high, joined=True)
            )
            for count in counts:
                test = curve.random_above_memorized.get(count) if policy == "memorized" else None
                p = None if test is None else test.p
                accuracy = of_count[count]
                rows.append([dataset, words, count, accuracy.mean, accuracy.std, p])
        level = {"axis": "y", "value": whole.mean}
        level["text"] = f"nothing removed: {number(whole.mean, '.1%')}"
        blocks.append(
            leave_out_numbers(
                figure(
                    f"removal-{place}-{number_of_set}",
                    f"What removal costs on {title_of(dataset)}",
                    "Top-1 accuracy of linear probes on encoders that were trained without some "
                    f"images; {level['text']}. Error bars: deviation over seeds and draws.",
                    {
                        "x": axis("samples removed from the training set", "log"),
                        "y": axis("top-1 accuracy", form="percent"),
                    },
                    traces,
                    [level],
                )
            )
        )
    columns = {"data set": None, "removed": None, "samples": "d", "top-1 accuracy": ".2%"}
    columns |= {"std": ".2%", "p, random above memorized": ".2g"}
    caption = "Accuracy of encoders that were trained without some images"
    blocks.append(table(f"removal-{place}-table", caption, columns, rows))
    seeds = f"{len(summary.seeds.retrained)} seeds were retrained"
    return [*blocks, note(f"{seeds}; p: paired over them.")]
