"""The plots, and the scatter's points by mouse and by keyboard."""

import re

import pytest


def row_of_title(page):
    """The row of the image whose panel is open."""
    return page.evaluate("document.getElementById('panel-title').textContent")


@pytest.fixture
def scatter(page):
    page.locator("#scatter").scroll_into_view_if_needed()
    page.wait_for_selector("#scatter .scatterlayer .point")
    return page


def test_every_figure_is_drawn_when_it_comes_into_view(page):
    figures = page.locator("figure[data-figure]")
    assert figures.count() >= 2
    for figure in figures.all():
        figure.scroll_into_view_if_needed()
        figure.locator(".main-svg").first.wait_for()
        assert figure.locator(".canvas").get_attribute("aria-label")


def test_the_ticks_of_shares_that_differ_little_are_told_apart(page):
    page.locator("[data-figure=dejavu-0]").scroll_into_view_if_needed()
    page.locator("[data-figure=dejavu-0] .main-svg").first.wait_for()
    canvas = "document.querySelector('[data-figure=dejavu-0] .canvas')"
    page.evaluate(f"window.Plotly.relayout({canvas}, {{'yaxis.range': [0.509, 0.512]}})")
    ticks = page.locator("[data-figure=dejavu-0] .ytick text").all_text_contents()
    assert len(ticks) > 2 and len(set(ticks)) == len(ticks)
    assert "51%" in ticks


def test_a_click_on_a_point_opens_its_image(scatter):
    place = scatter.evaluate(
        """() => {
            const canvas = document.querySelector("#scatter .canvas");
            const box = canvas.getBoundingClientRect();
            const { xaxis, yaxis } = canvas._fullLayout;
            const trace = canvas.data.findLast((trace) => trace.customdata?.length);
            const [x, y] = [trace.x[0], trace.y[0]];
            return {
                values: [x, y],
                x: box.left + xaxis._offset + xaxis.d2p(x),
                y: box.top + yaxis._offset + yaxis.d2p(y),
            };
        }"""
    )
    scatter.mouse.move(place["x"], place["y"])
    scatter.wait_for_selector(".preview img[src]")
    text = scatter.inner_text(".preview")
    assert re.findall(r"0\.\d{4}", text) == [f"{value:.4f}" for value in place["values"]]
    name = text.split(": L_align")[0]
    scatter.mouse.click(place["x"], place["y"])
    scatter.wait_for_selector("#panel[open]")
    assert row_of_title(scatter) == name


def test_arrow_keys_move_from_point_to_point_and_enter_opens_one(scatter):
    scatter.focus("#scatter .canvas")
    names = []
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft"):
        scatter.keyboard.press(key)
        names.append(scatter.inner_text(".preview").split(": L_align")[0])
    assert len(set(names)) == 3 and names[3] == names[1]
    scatter.keyboard.press("Enter")
    scatter.wait_for_selector("#panel[open]")
    assert row_of_title(scatter) == names[3]
    scatter.keyboard.press("Escape")
    assert scatter.evaluate("document.activeElement.closest('#scatter') !== null")


def test_the_scatter_has_the_images_that_pass_the_filters(scatter):
    scatter.select_option("[name=subset]", "")
    scatter.select_option("[name=label]", index=1)
    scatter.wait_for_function(
        """() => document.querySelector("#scatter .canvas").data
            .filter((trace) => trace.customdata && trace.marker.opacity > .5)
            .reduce((sum, trace) => sum + trace.customdata.length, 0) === 36"""
    )


def test_the_scatter_takes_other_axes(scatter):
    scatter.select_option("#axis-f", "score")
    scatter.locator("#scatter .xtitle", has_text="score").wait_for()


def test_plots_are_drawn_again_in_the_dark(scatter):
    color = "getComputedStyle(document.querySelector('#scatter .xtitle')).fill"
    light = scatter.evaluate(color)
    scatter.emulate_media(color_scheme="dark")
    scatter.wait_for_function(f"() => {color} !== '{light}'")
