"""The page as a whole: it opens offline and soon, fits any width, and names in data stay text."""

import shutil

import pytest
from opened_pages import HOSTILE

import report

OUTSIDE = "http://example.com"


def test_the_page_opens_without_errors_and_asks_for_nothing(page):
    assert page.locator("h1").count() == 1
    for section in ("how-much", "which-images", "is-it-real", "does-it-matter", "how-it-was-made"):
        assert page.locator(f"section#{section} h2").count() == 1, section


def test_the_policy_of_the_page_stops_requests(open_page, report_file):
    page = open_page(report_file, plots=False).page
    stopped = page.evaluate(
        """url => new Promise((resolve) => {
            const answer = (event) => resolve(event.blockedURI);
            document.addEventListener("securitypolicyviolation", answer);
            new Image().src = url;
            setTimeout(() => resolve(null), 5000);
        })""",
        f"{OUTSIDE}/picture.png",
    )
    assert stopped.startswith(OUTSIDE)


# What is there when the page says that it is usable.
WATCH = """
const mark = performance.mark.bind(performance);
performance.mark = (name) => {
  const cards = document.querySelectorAll("#gallery .card").length;
  window.whenUsable = { cards, plotly: Boolean(window.Plotly) };
  return mark(name);
};
"""


def test_the_gallery_is_usable_before_plotly_is_evaluated(browser, report_file):
    page = browser.new_page()
    page.add_init_script(WATCH)
    page.goto(report_file.as_uri())
    page.locator("#scatter").scroll_into_view_if_needed()
    page.wait_for_function("window.Plotly")
    assert page.evaluate("window.whenUsable") == {"cards": 40, "plotly": False}
    page.close()


@pytest.mark.parametrize("width", [400, 1600])
def test_nothing_is_wider_than_the_window(open_page, report_file, width):
    page = open_page(report_file, width).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator(".card").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.getElementById('panel').scrollWidth") <= width


def test_hostile_names_stay_text(page):
    page.select_option("[name=subset]", "")
    options = page.locator("[name=label] option").all_inner_texts()
    assert set(HOSTILE) <= {text.replace("\u00a0", " ") for text in options}
    for label in range(4):
        page.select_option("[name=label]", str(label))
        page.locator(".card").first.click()
        page.keyboard.press("Escape")
    page.locator("#scatter").scroll_into_view_if_needed()
    page.wait_for_selector("#scatter .scatterlayer .point")
    for figure in page.locator("figure[data-figure]").all():
        figure.scroll_into_view_if_needed()
        figure.locator(".main-svg").first.wait_for()
    assert page.evaluate("window.attacked") is None
    assert page.locator("main b, main i, #panel b, #panel i, img:not(.tile)").count() == 0


def test_a_comparison_opens_and_names_of_runs_stay_text(open_page, hostile_run, tmp_path):
    names = ["<b>one<b>", "<img src=x onerror=window.attacked=1>"]
    for name in names:
        shutil.copytree(hostile_run[1], tmp_path / name)
    output = tmp_path / "two.html"
    report.main([*(str(tmp_path / name) for name in names), "--output", str(output)])
    opened = open_page(output)
    page = opened.page
    for figure in page.locator("figure[data-figure]").all():
        figure.scroll_into_view_if_needed()
        figure.locator(".main-svg").first.wait_for()
    page.locator(".card").first.click()
    assert opened.errors == []
    assert page.evaluate("window.attacked") is None
    assert page.locator("main b, img:not(.tile)").count() == 0
    for name in names:
        assert page.locator("figure svg text", has_text=name).count() > 0


def test_a_table_sorts_by_a_click_and_by_the_enter_key(page):
    table = page.locator("table[data-sortable]").filter(has=page.locator("th[data-type=number]"))
    table = table.filter(has=page.locator("tbody tr:nth-child(3)")).first
    head = table.locator("th[data-type=number]").first
    place = head.evaluate("head => head.cellIndex")

    def column():
        cells = table.locator(f"tbody tr td:nth-child({place + 1})").all()
        return [float(cell.get_attribute("data-value")) for cell in cells]

    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert column() == sorted(column(), reverse=True)
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert column() == sorted(column())


def test_a_table_is_saved_as_shown(page):
    button = page.locator("button[data-csv=per-class]")
    with page.expect_download() as waiting:
        button.click()
    assert waiting.value.suggested_filename == "per-class.csv"
    lines = waiting.value.path().read_text().splitlines()
    rows = page.locator("table#per-class tbody tr").count()
    assert len(lines) == rows + 1
    assert lines[0].startswith("class,candidates")
    assert not any(line.startswith("=") for line in lines)
    assert any("HYPERLINK" in line for line in lines)


def test_without_script_the_page_still_says_what_was_measured(browser, report_file):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report_file.as_uri())
    assert page.locator(".headline").first.is_visible()
    assert page.locator("#images .needs-script").is_visible()
    assert page.locator("figure .canvas").first.is_hidden()
    context.close()
