"""The gallery: sorting, filters, pages and the download, by mouse and by keyboard."""

import csv
import io

import pytest
from conftest import read_table


@pytest.fixture
def page(plain_page):
    return plain_page


def values(page):
    """The values below the pictures that are shown; what has none must come last."""
    texts = page.locator(".card .value").all_inner_texts()
    numbers = [float(text.replace("\u2212", "-")) for text in texts if text != "none"]
    assert texts[len(numbers) :] == ["none"] * (len(texts) - len(numbers))
    return numbers


def rows(page):
    return [int(card.get_attribute("data-row")) for card in page.locator(".card").all()]


def status(page):
    return page.inner_text("#shown")


def show_all(page):
    page.select_option("[name=subset]", "")


def download(page, button):
    """The lines of the CSV file that a button offers: the head, and a dict for each row."""
    with page.expect_download() as waiting:
        page.click(button)
    text = waiting.value.path().read_bytes().decode()
    return waiting.value.suggested_filename, list(csv.DictReader(io.StringIO(text)))


def test_candidates_come_first_with_the_highest_score_on_top(page):
    assert status(page) == "Images 1 to 40 of 40"
    assert values(page) == sorted(values(page), reverse=True)


def test_the_sort_menu_and_the_order_sort_the_images(page):
    page.select_option("[name=sort]", "alignment_loss_g")
    page.select_option("[name=order]", "ascending")
    assert values(page) == sorted(values(page))
    page.select_option("[name=order]", "descending")
    assert values(page) == sorted(values(page), reverse=True)


def test_p_begins_with_the_smallest(page):
    page.select_option("[name=sort]", "p")
    assert page.input_value("[name=order]") == "ascending"
    assert values(page) == sorted(values(page))


def test_images_are_filtered_by_subset_class_and_outcome(page):
    page.select_option("[name=subset]", "external")
    assert status(page).endswith("of 40")
    page.select_option("[name=label]", index=1)
    assert status(page).endswith("of 10")
    page.select_option("[name=subset]", "candidate")
    page.select_option("[name=label]", "")
    outcomes = page.locator("[name=outcome] option").all()[1:]
    counts = []
    for option in outcomes:
        page.select_option("[name=outcome]", option.get_attribute("value"))
        counts.append(len(rows(page)))
    assert 0 < sum(counts) <= 40


def test_images_are_filtered_by_score(page):
    fourth = values(page)[3]
    page.fill("[name=low]", str(fourth - 0.00005))  # values are shown with four digits
    assert len(values(page)) == 4
    page.fill("[name=high]", str(values(page)[1] + 0.00005))
    assert len(values(page)) == 3


@pytest.mark.parametrize(
    ("words", "count"), [("7", 1), ("bold", 10), ("candidate", 40), ("bold onerror", 0)]
)
def test_the_text_filter_finds_index_class_and_file(page, words, count):
    index = page.locator(".card img").first.get_attribute("alt").split(":")[0]
    if words == "7":
        words = index.split(",")[0].split()[-1]
    page.fill("[name=text]", words)
    if count == 1:
        assert len(rows(page)) >= 1
    else:
        assert len(rows(page)) == count


def test_an_empty_choice_says_so_and_reset_brings_all_back(page):
    page.fill("[name=text]", "no such image")
    assert status(page) == "No image passes these filters."
    page.click("button[type=reset]")
    page.wait_for_selector(".card")
    assert status(page) == "Images 1 to 40 of 40"


def test_pages_are_turned_by_mouse(page):
    show_all(page)
    page.select_option("#page-size", "24")
    assert status(page) == "Images 1 to 24 of 144"
    first = rows(page)
    page.click("#page-next")
    assert status(page) == "Images 25 to 48 of 144"
    assert not set(first) & set(rows(page))
    page.click("#page-last")
    assert status(page) == "Images 121 to 144 of 144"
    assert page.is_disabled("#page-next")
    page.click("#page-previous")
    page.click("#page-first")
    assert rows(page) == first


def test_pages_are_turned_by_keyboard(page):
    show_all(page)
    page.select_option("#page-size", "24")
    page.focus("#page-next")
    page.keyboard.press("Enter")
    assert status(page) == "Images 25 to 48 of 144"
    page.fill("#page-number", "6")
    page.keyboard.press("Enter")
    assert status(page) == "Images 121 to 144 of 144"
    page.fill("#page-number", "99")
    page.keyboard.press("Enter")
    assert page.input_value("#page-number") == "6"


def test_all_controls_are_reached_by_the_tab_key_in_their_order(page):
    page.focus("[name=text]")
    names = []
    for _ in range(7):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.name"))
    assert names == ["subset", "label", "outcome", "sort", "order", "low", "high"]


def test_the_download_has_the_images_as_shown(page, hostile_run):
    page.select_option("[name=label]", index=2)
    page.select_option("[name=sort]", "score")
    shown = values(page)
    name, lines = download(page, "#download-images")
    assert name.endswith(".csv")
    assert [f"{float(line['score']):.4f}" for line in lines] == [f"{value:.4f}" for value in shown]
    _, saved = read_table(hostile_run[1] / "scores")
    score_of = dict(zip(zip(saved["split"], saved["index"]), saved["score"]))
    for line in lines:
        score = score_of[line["split"], int(line["index"])]
        assert float(line["score"]) == pytest.approx(score, rel=1e-5, abs=1e-9)


def test_no_cell_of_the_download_is_a_formula(page):
    show_all(page)
    _, lines = download(page, "#download-images")
    assert len(lines) == 144
    texts = {line["class"] for line in lines}
    assert '\'=HYPERLINK("http://example.com")' in texts
    assert not any(text.startswith("=") for line in lines for text in line.values())
