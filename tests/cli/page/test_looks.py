"""Light and dark, phone and desktop: both views are free of what axe-core calls a violation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cli.page.conftest import QUERY, Open, until
from tests.cli.server.conftest import Server

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


@pytest.mark.parametrize("state", ["empty", "no hits", "problems", "own words", "phone"])
def test_axe_finds_no_violation_in_other_states(show: Open, state: str) -> None:
    """Neither have the empty page, one without hits, with a problem at a field, with own words, and the page on a phone."""
    if state == "empty":
        page = show()
        expect(page.locator(".column")).to_have_count(3)
    elif state == "problems":
        page = show("qa", q=QUERY, where="kind >")
        expect(page.locator("#where-problem")).to_be_visible()
    elif state == "no hits":
        page = show("qa", "bitext", q=QUERY, where='kind = "nothing"')
        expect(page.locator(".none")).to_have_count(2)
    elif state == "own words":
        page = show("qa", q=QUERY, ask="Find the script")
        expect(page.locator(".hit")).to_have_count(20)
    else:
        page = show("qa", "code", q=QUERY, width=390, height=844, phone=True)
        expect(page.locator(".hit")).to_have_count(20)
    assert _violations(page) == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_no_violation_in_what_stands_above(show: Open, site: Server, dark: bool) -> None:
    """Nor have the alert that counts down, the dialog that asks for a key, the map's card, and the map that is not there."""
    page = show("qa", q=QUERY, view="map", dark=dark)
    page.locator(".map-hit").nth(2).click()
    expect(page.get_by_role("button", name="Search for this")).to_be_visible()
    assert _violations(page) == []

    def refuse(status: int, message: str) -> None:
        error = {"message": message, "type": "", "param": None, "code": None}
        page.route(
            "**/search",
            lambda route: route.fulfill(status=status, headers={"Retry-After": "60"}, json={"error": error}),
        )
        page.locator("#query").press("Enter")

    refuse(429, "the server is busy: try again in 60 s")
    expect(page.get_by_role("alert")).to_contain_text("asking again in")
    assert _violations(page) == []
    refuse(401, "an API key is needed")
    expect(page.get_by_role("dialog")).to_be_visible()
    assert _violations(page) == []
    gone = site.get("/map?index=corpus&points=false").json | {
        "status": "unavailable",
        "message": "no map is there",
    }
    page.route("**/map?**", lambda route: route.fulfill(json=gone))
    page.reload()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.locator("#map-message")).to_contain_text("no map is there")
    assert _violations(page) == []


def test_the_api_is_described_under_the_same_policy(show: Open, site: Server) -> None:
    """/docs lists the endpoints from this server's own files alone, and breaks no rule of its policy."""
    page = show()
    page.goto(f"{site.url}/docs")
    expect(page.locator(".opblock-summary-path")).to_have_count(len(_operations(site)))
    page.locator(".opblock-summary").filter(has_text="/v1/embeddings").click()
    expect(page.locator(".opblock.is-open")).to_be_visible()


def _operations(site: Server) -> list[str]:
    paths = site.get("/openapi.json").json["paths"]
    return [f"{method} {path}" for path, methods in paths.items() for method in methods]


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
    until(
        page, "(({ x }) => x >= 0 && x < 40)(document.querySelectorAll('.column')[1].getBoundingClientRect())"
    )


def test_long_texts_do_not_break_the_page(show: Open) -> None:
    """Eight columns with long instructions of one word scroll in their own row, not the page."""
    page = show(
        *["qa", "duplicate", "bitext", "code", "topic", "paraphrase", "search"], q=QUERY, ask="x" * 300
    )
    expect(page.locator(".column")).to_have_count(8)
    expect(page.locator("#add-task")).to_be_disabled()
    assert page.evaluate("document.documentElement.scrollWidth") <= 1360
