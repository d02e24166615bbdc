"""The playground shows what was stored, by mouse and keyboard, and without JavaScript as a table."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from playwright.sync_api import Browser
from test_book import browser, needs_browser  # noqa: F401 (a fixture)
from test_widgets import Page

from prunelab import playground

WEIGHT = torch.arange(-8.0, 8.0).view(2, 2, 2, 2)  # filter 0 holds -8 to -1, filter 1 holds 0 to 7
DENSE = {"accuracy": ("90 %", 0.9), "bytes": ("64", 1.0)}


def settings() -> dict[tuple[str, str, str], playground.Setting]:
    """Two amounts of weights and one of rows, by three criteria; each keeps its last so many weights."""
    found = {}
    for shape, amounts in {"weight": ("0.25", "0.5"), "2:4": ("0.75, fixed",)}.items():
        for number, criterion in enumerate(("l1", "<&>", "random")):
            for amount in amounts:
                keep = torch.zeros(16, dtype=torch.bool)
                keep[int(16 * float(amount[:4])) - number :] = True
                measured = {"accuracy": (f"{number} {amount}", 0.5), "bytes": (f"{keep.sum()}", 2.0)}
                said = f"{shape} {criterion} {amount} it is"
                found[shape, criterion, amount] = playground.Setting(keep.view(2, 2, 2, 2), said, measured)
    return found


def build(start: tuple[str, str, str] = ("weight", "l1", "0.5"), **changes: Any) -> str:
    choice = {"weight": WEIGHT, "settings": settings(), "dense": DENSE, "title": "a layer", **changes}
    return playground.playground(start=start, **choice).data


def test_playground_without_javascript_is_a_table_of_everything() -> None:
    text = build()
    shown, everything = text.split("<details open>")
    assert shown.index("<div hidden>") < min(shown.index("<select"), shown.index("<canvas"))
    rows = re.findall("<tr>(.*?)</tr>", everything)
    cells = [re.findall("<t[dh].*?>(.*?)</t", row) for row in rows]
    assert cells[0] == ["granularity", "criterion", "amount", "accuracy", "bytes"]
    assert cells[1] == ["dense", "", "", "90 %", "64"]
    assert cells[3] == ["weight", "l1", "0.5", "0 0.5", "8"]
    assert cells[4] == ["weight", "&lt;&amp;&gt;", "0.25", "1 0.25", "13"]
    assert len(cells) == 2 + len(settings())


def test_playground_needs_nothing_from_outside_and_has_no_ids() -> None:
    text = build()
    assert "://" not in text and not re.search("src=|href=|url[(]|import", text)
    assert not any("id" in attributes for _, attributes in Page(text).tags)
    assert text == build()


@pytest.fixture
def play(browser: Browser) -> Iterator[Any]:  # noqa: F811
    page = browser.new_page()
    page.on("pageerror", lambda error: pytest.fail(f"script: {error}"))
    page.set_content(f"<!doctype html><main>{build()}{build()}</main>")
    yield page
    page.close()


def seen(page: Any, number: int = 0) -> tuple[list[list[str]], list[list[int]]]:
    """The texts of a playground's table, and the colours of its weights, in their order."""
    figure = page.locator("figure").nth(number)
    rows = figure.locator("table").first.locator("tr").all()
    table = [row.locator("td, th").all_inner_texts() for row in rows]
    pixels = figure.locator("canvas").evaluate(
        """canvas => { const pen = canvas.getContext("2d");
        return [0, 1].flatMap(f => [0, 1].flatMap(c => [0, 1].flatMap(y => [0, 1].map(x =>
          [...pen.getImageData(30 * f + 10 * x + 4, 30 * c + 10 * y + 4, 1, 1).data])))); }"""
    )
    return table, pixels


FADED = [0xE4, 0xE4, 0xE4, 255]


def drawn(pixels: list[list[int]]) -> list[bool]:
    return [pixel != FADED for pixel in pixels]


@needs_browser
def test_playground_shows_what_is_stored(play: Any) -> None:
    table, pixels = seen(play)
    assert table == [
        ["", "dense", "random", "l1"],
        ["accuracy", "90 %", "2 0.5", "0 0.5"],
        ["bytes", "64", "10", "8"],
    ]
    assert drawn(pixels) == 8 * [False] + 8 * [True]
    # In cividis the smallest magnitude is a dark blue, larger ones are brighter.
    assert pixels[8] == [0x00, 0x22, 0x4E, 255]
    assert [sum(pixel) for pixel in pixels[8:]] == sorted(sum(pixel) for pixel in pixels[8:])
    assert play.locator("canvas").first.get_attribute("aria-label") == (
        "a layer: 8 of 16 weights stay, the others are pale"
    )
    assert play.locator("[role=status]").first.inner_text() == "weight l1 0.5 it is"
    widths = [
        bar.evaluate("bar => bar.style.width") for bar in play.locator("figure").first.locator("i").all()
    ]
    assert widths == ["90%", "50%", "50%", "100%", "100%", "100%"]  # a bar is never longer than its cell
    assert not play.locator(".everything").first.is_visible()


@needs_browser
def test_playground_follows_the_keyboard(play: Any) -> None:
    """Every control by keys alone; the other one on the page stays as it is."""
    for key in ("Tab", "Tab", "ArrowDown"):  # the second menu
        play.keyboard.press(key)
    table, pixels = seen(play)
    assert [row[3] for row in table] == ["<&>", "1 0.5", "9"]
    assert drawn(pixels) == 7 * [False] + 9 * [True]
    for key in ("Tab", "ArrowLeft"):  # the slider
        play.keyboard.press(key)
    table, pixels = seen(play)
    assert [row[1:] for row in table[1:]] == [["90 %", "2 0.25", "1 0.25"], ["64", "14", "13"]]
    assert drawn(pixels) == 3 * [False] + 13 * [True]
    assert play.locator("input").first.get_attribute("aria-valuetext") == "0.25"
    assert play.locator("output").first.inner_text() == "0.25"
    for key in ("Shift+Tab", "Shift+Tab", "ArrowDown"):  # the first menu
        play.keyboard.press(key)
    table, _ = seen(play)
    assert table[1][2:] == ["2 0.75, fixed", "1 0.75, fixed"]
    assert play.locator("input").first.is_disabled()
    assert play.locator("[role=status]").first.inner_text() == "2:4 <&> 0.75, fixed it is"
    play.keyboard.press("ArrowUp")
    table, _ = seen(play)
    assert table[1][3] == "1 0.25"  # where the slider was
    assert seen(play, 1)[0][1][3] == "0 0.5"


def without(key: tuple[str, str, str]) -> dict:
    found = settings()
    del found[key]
    return found


def changed(**changes: Any) -> dict:
    found = settings()
    found["weight", "l1", "0.5"] = found["weight", "l1", "0.5"]._replace(**changes)
    return found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": ("weight", "l1", "0.9")}, "'0.9'.* is missing"),
        ({"settings": without(("weight", "<&>", "0.5"))}, "'<&>', '0.5'.* is missing"),
        ({"control": "chance"}, "'chance', '0.25'.* is missing"),
        ({"settings": changed(keep=WEIGHT[:1] > 0)}, r"keep has the shape \(1, 2, 2, 2\)"),
        ({"settings": changed(measured={"bytes": ("64", 1.0)})}, r"measured \['bytes'\], dense"),
    ],
)
def test_playground_bad_input(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes)
