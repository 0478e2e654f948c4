"""What axe-core finds: nothing, narrow and wide, in light and dark, with and without an
open panel. axe.min.js is version 4.14.1 of the npm package axe-core, under the MPL 2.0, for tests.
"""

from pathlib import Path

import pytest

AXE = Path(__file__).with_name("axe.min.js").read_text()
LEVELS = ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa", "best-practice"]


def violations(page):
    """Sentences: each rule that is broken, how gravely, and by which elements."""
    page.evaluate(AXE)
    results = page.evaluate("levels => axe.run({runOnly: levels})", LEVELS)
    assert results["passes"], "axe checked nothing"
    return [
        f"{rule['impact']}: {rule['id']}: {[node['target'] for node in rule['nodes']][:4]}"
        for rule in results["violations"]
    ]


def draw_all(page):
    page.locator("#scatter").scroll_into_view_if_needed()
    page.wait_for_selector("#scatter .scatterlayer .point")
    for figure in page.locator("figure[data-figure]").all():
        figure.scroll_into_view_if_needed()
        figure.locator(".main-svg").first.wait_for()


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (1600, "dark")])
def test_axe_finds_nothing(open_page, report_file, width, scheme):
    page = open_page(report_file, width, scheme).page
    draw_all(page)
    assert violations(page) == []
    page.locator(".card").first.click()
    page.wait_for_selector("#panel[open]")
    page.locator("#panel details > summary").click()
    assert violations(page) == []


def test_axe_sees_a_fault(page):
    page.evaluate("document.querySelector('.card img').removeAttribute('alt')")
    assert any("image-alt" in sentence for sentence in violations(page))


def test_all_that_has_the_focus_is_outlined(page):
    for selector in (".card", "[name=text]", "#page-next", "#scatter .canvas", "nav a"):
        page.locator(selector).first.focus()
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Tab")
        style = "getComputedStyle(document.activeElement).outlineStyle"
        assert page.evaluate(style) == "solid", selector


def test_the_first_tab_leads_to_the_content(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('href')") == "#main"
    page.keyboard.press("Enter")
    assert page.url.endswith("#main")
