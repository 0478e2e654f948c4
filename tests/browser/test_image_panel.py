"""The panel of one image, by mouse and by keyboard."""

import pytest
from opened_pages import name_of


@pytest.fixture
def page(plain_page):
    return plain_page


def title(page):
    return page.inner_text("#panel-title")


def is_open(page):
    return page.locator("#panel[open]").count() == 1


@pytest.fixture
def panel(page):
    """The page with the panel of its third image open."""
    page.locator(".card").nth(2).click()
    page.wait_for_selector("#panel[open]")
    return page


def test_a_click_on_an_image_opens_its_panel(page):
    card = page.locator(".card").nth(2)
    name = name_of(card)
    card.click()
    assert name.startswith("candidate") and title(page) == name


def test_enter_on_an_image_opens_its_panel_and_escape_returns_to_it(page):
    page.locator(".card").nth(2).focus()
    page.keyboard.press("Enter")
    assert is_open(page)
    assert page.evaluate("document.activeElement.id") == "panel-title"
    page.keyboard.press("Escape")
    assert not is_open(page)
    focused = page.evaluate("document.activeElement.dataset.row")
    assert focused == page.locator(".card").nth(2).get_attribute("data-row")


def test_a_click_beside_the_panel_closes_it(panel):
    panel.mouse.click(5, 5)
    assert not is_open(panel)


def test_the_close_button_closes_it(panel):
    panel.click("#panel-close")
    assert not is_open(panel)


def test_arrow_keys_and_buttons_go_to_the_next_image_as_sorted(panel):
    names = [name_of(card) for card in panel.locator(".card").all()]
    assert title(panel) == names[2]
    panel.keyboard.press("ArrowRight")
    panel.keyboard.press("ArrowRight")
    assert title(panel) == names[4]
    panel.click("#panel-next")
    assert title(panel) == names[5]
    assert panel.evaluate("document.activeElement.id") == "panel-next"
    panel.keyboard.press("ArrowLeft")
    panel.keyboard.press("ArrowLeft")
    panel.click("#panel-previous")
    panel.click("#panel-previous")
    panel.click("#panel-previous")
    panel.click("#panel-previous", force=True)
    assert title(panel) == names[0]
    assert panel.is_disabled("#panel-previous")


def test_the_tab_key_stays_in_the_panel(panel):
    for _ in range(40):
        panel.keyboard.press("Tab")
        inside = (
            "document.activeElement === document.body || !!document.activeElement.closest('#panel')"
        )
        assert panel.evaluate(inside)


def test_the_panel_shows_losses_error_rank_views_and_neighbours(panel):
    text = panel.inner_text("#panel")
    for word in ("Rank", "Views", "Nearest neighbours"):
        assert word in text
    assert panel.locator("#panel .strip:not(.neighbors) img[src]").count() >= 2
    assert panel.locator("#panel .neighbors li").count() >= 1
    assert panel.locator("#panel .portrait img[src]").count() == 1


def test_a_neighbour_that_was_scored_opens(panel):
    neighbor = panel.locator("#panel button.neighbor").first
    name = neighbor.locator(".name").first.inner_text()
    neighbor.click()
    assert title(panel).startswith(name)
