"""A report of a run whose names are hostile, opened in a headless Chromium. Without a browser or
without Playwright these tests are skipped; `make test-browser` installs both.
"""

import csv
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from conftest import train, write_experiment
from PIL import Image

import dejavu
import memorization_scores

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
HOSTILE = [
    "</script><script>window.attacked=1</script>",
    "<img src=x onerror=window.attacked=1>",
    '=HYPERLINK("http://example.com")',
    "<b>bold</b> & {{7*7}}",
]
SUBSETS = {"shared": 24, "candidate": 40, "independent": 40, "external": 40}
CLASSES = 4


@pytest.fixture(scope="session")
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("no Chromium is installed: make test-browser installs one")
    reason = "Playwright is not installed: make test-browser installs it"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def hostile_run(browser, tmp_path_factory):
    """(config path, run folder) of a tiny pair whose classes and files have hostile names; scored,
    and asked for labels. It is not made without a browser.
    """
    folder = tmp_path_factory.mktemp("hostile")
    chance = np.random.default_rng(0)
    rows = []
    for subset, count in SUBSETS.items():
        for number in range(count):
            label = number % CLASSES
            name = f"{subset} {number} <i>x.png"
            pixels = chance.integers(0, 256, (16, 16, 3)) // 2 + 30 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
            rows.append({"path": name, "label": HOSTILE[label], "subset": subset})
    with open(folder / "images.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    data = {"name": "manifest", "root": str(folder), "manifest": str(folder / "images.csv")}
    data |= {"prepared": str(folder / "prepared"), "size": 16}
    subsets = {"order": "manifest"}
    quick = {"seeds": [0, 1], "training.epochs": 1, "training.knn_every": 1}
    path = write_experiment(folder, {"data": data, "subsets": subsets, **quick})
    train(path)
    memorization_scores.main(["--config", path])
    dejavu.main(["--config", path])
    return path, folder / "run"


@pytest.fixture(scope="session")
def report_file(hostile_run):
    import report  # only here, as it needs packages that all other tests do without

    path, run = hostile_run
    report.main(["--config", path])
    return run / "report.html"


@dataclass
class Opened:
    """A page that is open, and what it said and asked for meanwhile."""

    page: object
    errors: list = field(default_factory=list)
    requests: list = field(default_factory=list)


# What is not seen is not drawn. Without plotly, which takes a second, tests are quicker.
BLIND = "window.IntersectionObserver = class { observe() {} unobserve() {} disconnect() {} };"


@pytest.fixture
def open_page(browser):
    """open_page(file, width=1200, scheme="light", plots=True) -> Opened: the file in a window of
    its own, as soon as its gallery has a picture.
    """
    contexts = []

    def open_file(file, width=1200, scheme="light", plots=True):
        viewport = {"width": width, "height": 900}
        context = browser.new_context(viewport=viewport, color_scheme=scheme)
        contexts.append(context)
        if not plots:
            context.add_init_script(BLIND)
        opened = Opened(context.new_page())
        page = opened.page
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: opened.errors.append(str(error)))
        page.on("request", lambda request: opened.requests.append(request.url))

        def note(message):
            if message.type in ("error", "assert"):
                opened.errors.append(message.text)

        page.on("console", note)
        page.goto(Path(file).as_uri())
        page.wait_for_selector("#gallery img.tile[src]")
        return opened

    yield open_file
    for context in contexts:
        context.close()


def name_of(card):
    """What the panel of a card's image is called."""
    return card.locator("img").get_attribute("alt").rpartition(": ")[0]


@pytest.fixture
def page(open_page, report_file):
    """The report, open; a test fails if the page said an error or asked for anything outside."""
    yield from watch(open_page(report_file))


@pytest.fixture
def plain_page(open_page, report_file):
    """The same without plots."""
    yield from watch(open_page(report_file, plots=False))


def watch(opened):
    yield opened.page
    assert opened.errors == []
    outside = [url for url in opened.requests if not url.startswith(("file:", "data:", "blob:"))]
    assert outside == []
