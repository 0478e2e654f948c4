"""What the screen shows of memorization by layer: some layers, their growth, and the parts of
transformers.
"""

import numpy as np

from memorization.errors import escape
from memorization.machine.screen import say
from memorization.measuring.layer_summary import FREE_OF_OFFSET

MOST_ROWS = 12
SHOWN = ("candidate", "independent", "external", "shared", "most", "least")


def print_summary(summary, folder):
    """Print a LayersSummary. folder: of the result."""
    _print_layers(summary)
    if len(summary.layers) > 1:
        _print_growth(summary)
    if "candidate" in summary.blocks:
        _print_blocks(summary.blocks["candidate"], len(summary.seeds))
    names = "layers.csv, layers.npz, summary.json, layers.png, heatmap.png"
    say(f"\n{summary.images_per_second:.0f} images/s; the results are in {escape(folder)}: {names}")


def _print_layers(summary):
    subsets = {name: summary.subsets[name] for name in SHOWN if name in summary.subsets}
    places = spread_evenly(len(summary.layers))
    width = max(map(len, [summary.layers[place] for place in places] + ["layer"]))
    some = f"{len(places)} of " if len(places) < len(summary.layers) else ""
    say(f"\nLayerMem of {some}{len(summary.layers)} layers; std. error: of candidates, over images")
    say(
        f"{'depth':>5} {'layer':<{width}}"
        + "".join(f"{name:>12}" for name in subsets)
        + "  std. error"
    )
    for place in places:
        means = "".join(f"{values['layermem'][place]:>12.4f}" for values in subsets.values())
        error = subsets["candidate"]["stderr"][place]
        name = escape(summary.layers[place])
        say(f"{summary.depths[place]:>5} {name:<{width}}{means}{error:>12.4f}")
    say("images: " + ", ".join(f"{name} {values['n']}" for name, values in subsets.items()))
    if "most" in subsets:
        by = "chosen by scores of these encoders and views: far from 0 at the last layer by choice"
        say(f"most, least: the most and the least memorized candidates, {by}")


def _print_growth(summary):
    say("\nSpearman's correlation of depth and LayerMem:")
    for name in ("candidate", "external", FREE_OF_OFFSET):
        growth = summary.growth[name]
        low, high = growth["interval_95"]
        seeds = ""
        if len(summary.seeds) > 1:
            of_seeds = growth["per_seed"]
            seeds = f"; of single seeds {min(of_seeds):.2f} to {max(of_seeds):.2f}"
        interval = f"95 % interval over images {low:.2f} to {high:.2f}"
        say(f"{name:>20}: {growth['spearman']:.2f}  ({interval}{seeds})")


def _print_blocks(of_blocks, n_seeds):
    blocks, difference = of_blocks["blocks"], of_blocks["perceptron_less_attention"]
    say("\nwhat attention and perceptron of a block add to LayerMem of candidates (std. errors):")
    for place in spread_evenly(len(blocks)):
        block = blocks[place]
        both = "  ".join(
            f"{part} {block[part]:+.4f} ({block[f'stderr_{part}']:.4f})"
            for part in ("attention", "perceptron")
        )
        say(f"{escape(block['block']):>20}: {both}")
    low, high = difference["interval_95"]
    interval = f"95 % interval over images {low:+.4f} to {high:+.4f}"
    seeds = f", std over seeds {difference['std_seeds']:.4f}" if n_seeds > 1 else ""
    mean = f"perceptron less attention, mean over blocks: {difference['value']:+.4f}"
    say(f"{mean} ({interval}{seeds})")


def spread_evenly(count, most=MOST_ROWS):
    """At most so many of the places 0 to count - 1, the first and the last among them, a list."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int)).tolist()
