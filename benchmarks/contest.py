"""Contestants are timed in turn, so that other work of the machine slows all of them alike. Results
are a table on the screen, and the same as JSON.
"""

import argparse
import importlib
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from memorization.machine.device import describe_machine
from memorization.machine.files import write_json

RESULTS = Path("runs/benchmarks")
ROUNDS = 5


@dataclass(frozen=True)
class Contestant:
    """One way to do the work. work: takes nothing; amount: the units that one call processes."""

    name: str
    work: callable
    amount: float


def chosen_device(doc):
    """The torch.device of `--device`, an option of every benchmark; by default the GPU if there is
    one. doc: the script's docstring.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(parser.parse_args().device)


def peer(module):
    """A peer's package, or None if it is not installed, which is printed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        print(f"({module} is not installed, and skipped)")
        return None


def contest(question, unit, contestants, device, rounds=ROUNDS):
    """Time contestants in turn, after one call each to warm up. The first one is ours. Prints a
    table and returns it, a dict of plain types.

    Rates are units a second; the ratio is our median divided by the contestant's.
    """
    contestants = list(contestants)
    for contestant in contestants:
        contestant.work()
    rates = {contestant.name: [] for contestant in contestants}
    for _ in range(rounds):
        for contestant in contestants:
            rates[contestant.name].append(contestant.amount / seconds(contestant.work, device))
    ours = statistics.median(rates[contestants[0].name])
    print(f"\n{question}")
    print(f"{'':>44} {f'median {unit}/s':>22} {'lowest to highest':>24} {'ours is':>9}")
    rows = {}
    for name, of_name in rates.items():
        median = statistics.median(of_name)
        rows[name] = {"median": median, "rates": of_name, "ratio": ours / median}
        spread = f"{figures(min(of_name))} to {figures(max(of_name))}"
        print(f"{name:>44} {figures(median):>22} {spread:>24} {ours / median:>8.2f}x", flush=True)
    return {"question": question, "unit": f"{unit}/s", "rounds": rounds, "contestants": rows}


def seconds(work, device):
    """How long a piece of work takes, from when the device is idle until it is done."""
    wait_for(device)
    start = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - start


def wait_for(device):
    """Wait until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def figures(value):
    """A number with three figures, or all of its thousands."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def save(name, results, device):
    """Write results and the machine to runs/benchmarks/<name>.json. results: plain types."""
    write_json(RESULTS / f"{name}.json", {"machine": describe_machine(device), "results": results})
    print(f"\nkept in {RESULTS / name}.json")
