"""Light and dark, phone and desktop: both views are free of what axe-core calls a violation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cli.page.conftest import QUERY, Open

if TYPE_CHECKING:
    from playwright.sync_api import Page

sync_api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
expect = sync_api.expect


def _violations(page: Page) -> list[str]:
    found = axe.Axe().run(page)
    return [
        f"{rule['id']}: {node['html'][:160]} {node['failureSummary'][:200]}"
        for rule in found.response["violations"]
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("view", ["search", "map"])
def test_axe_finds_no_violation(show: Open, view: str, dark: bool) -> None:
    """Each view, with hits, options and details open, has no violation in light and in dark."""
    page = show("qa", "code", "bitext", q=QUERY, view=view, dark=dark)
    page.get_by_text("Options", exact=True).click()
    if view == "search":
        page.get_by_text("What was encoded").first.click()
        page.locator(".hit-open").nth(1).click()
    else:
        page.get_by_label("Colour all chunks by language").check()
        expect(page.locator(".map-hit")).to_have_count(30)
    assert _violations(page) == []


@pytest.mark.parametrize("state", ["empty", "problems", "own words", "phone"])
def test_axe_finds_no_violation_in_other_states(show: Open, state: str) -> None:
    """The empty page, one with a problem at a field, one with own words, and the page on a phone have none either."""
    if state == "empty":
        page = show()
        expect(page.locator(".column")).to_have_count(3)
    elif state == "problems":
        page = show("qa", q=QUERY, where="kind >")
        expect(page.locator("#where-problem")).to_be_visible()
    elif state == "own words":
        page = show("qa", q=QUERY, ask="Find the script")
        expect(page.locator(".hit")).to_have_count(20)
    else:
        page = show("qa", "code", q=QUERY, width=390, height=844, phone=True)
        expect(page.locator(".hit")).to_have_count(20)
    assert _violations(page) == []


def test_the_theme_follows_the_system_and_can_be_chosen(show: Open) -> None:
    """The page is dark where the system is; the button chooses light or dark, and a reload keeps it."""
    page = show(dark=True)
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == "rgb(19, 20, 23)"
    page.locator("#theme").click()
    expect(page.locator("#theme")).to_have_attribute("aria-label", "Theme: light")
    assert page.evaluate(background) == "rgb(246, 246, 243)"
    page.reload()
    assert page.evaluate(background) == "rgb(246, 246, 243)"
    page.locator("#theme").click()
    assert page.evaluate(background) == "rgb(19, 20, 23)"


def test_a_phone_swipes_through_columns(show: Open) -> None:
    """On a phone nothing is wider than the screen but the row of columns, which snaps to one after the other."""
    page = show("qa", "code", "bitext", q=QUERY, width=390, height=844, phone=True)
    expect(page.locator(".hit")).to_have_count(30)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    columns = page.locator("#columns")
    assert columns.evaluate("e => e.scrollWidth > 2 * e.clientWidth")
    assert columns.evaluate("e => getComputedStyle(e).scrollSnapType") == "x mandatory"
    columns.evaluate("e => e.scrollBy(340, 0)")
    box = page.locator(".column").nth(1).bounding_box()
    assert box is not None and 0 <= box["x"] < 40


def test_long_texts_do_not_break_the_page(show: Open) -> None:
    """Eight columns with long instructions of one word scroll in their own row, not the page."""
    page = show(
        *["qa", "duplicate", "bitext", "code", "topic", "paraphrase", "search"], q=QUERY, ask="x" * 300
    )
    expect(page.locator(".column")).to_have_count(8)
    expect(page.locator("#add-column")).to_be_disabled()
    assert page.evaluate("document.documentElement.scrollWidth") <= 1360
