"""What goes wrong is told where it belongs, in the server's own sentence, with a way on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

import pytest

from tests.cli.page.conftest import QUERY, Open, documents, first_held
from tests.cli.server.conftest import Server, launch

if TYPE_CHECKING:
    from playwright.sync_api import Route

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect


def test_a_bad_filter_is_told_at_its_field(show: Open, site: Server) -> None:
    """A filter that cannot be read, or names an unknown field, brings the server's sentence to the field."""
    page = show("qa", q=QUERY, where="kind >")
    for where in ("kind >", "colour = 3"):
        page.get_by_label("Filter").fill(where)
        page.get_by_label("Filter").press("Enter")
        told = site.post("/search", {"query": QUERY, "index": "corpus", "where": where})
        assert told.json["error"]["param"] == "where"
        expect(page.locator("#where-problem")).to_have_text(told.message)
        expect(page.get_by_label("Filter")).to_have_attribute("aria-invalid", "true")
        expect(page.get_by_label("Filter")).to_be_visible()
    expect(page.locator(".hit")).to_have_count(0)
    page.get_by_label("Filter").fill('kind = "question"')
    page.get_by_label("Filter").press("Enter")
    expect(page.locator(".hit")).to_have_count(10)
    expect(page.locator("#where-problem")).to_be_hidden()


def test_an_unknown_task_is_told_at_its_column(show: Open) -> None:
    """A task that the address names and nobody knows is told in its own column."""
    page = show("qa", "qaa", q=QUERY)
    expect(page.locator(".column").nth(1).locator(".problem")).to_contain_text(
        "unknown task 'qaa': did you mean"
    )
    expect(page.locator(".column").first.locator(".problem")).to_be_hidden()
    page.locator(".task").nth(1).select_option("topic")
    expect(page.locator(".hit")).to_have_count(20)


def test_an_unknown_index_or_language_is_told(show: Open) -> None:
    """An index that is not there can be left by one click, a language by another chip."""
    page = show("qa", q=QUERY, index="nowhere")
    expect(page.get_by_role("alert")).to_contain_text("there is no index 'nowhere'")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".hit")).to_have_count(10)
    page = show("qa", q=QUERY, lang="xx")
    expect(page.locator("#lang-problem")).to_contain_text("unknown language 'xx'")


def test_no_hits_are_told(show: Open) -> None:
    """Where nothing satisfies the filter, or no word is there, the page says so and why."""
    page = show("qa", q=QUERY, where='kind = "nothing"')
    expect(page.locator("#status")).to_have_text("No chunk satisfies the filter.")
    expect(page.locator(".none")).to_have_text("No hits.")
    page = show("qa", q="qzxqzx", mode="lexical")
    expect(page.locator("#status")).to_contain_text("No chunk holds a word of the query.")


def test_a_busy_server_is_asked_again(show: Open) -> None:
    """After 429 the page waits as long as Retry-After says, and then shows the hits."""
    page = show("qa")
    answers = iter([429])

    def busy(route: Route) -> None:
        if next(answers, None) is None:
            route.continue_()
        else:
            error = {
                "message": "the server is busy: try again in 4 s",
                "type": "rate_limit_error",
                "param": None,
                "code": None,
            }
            route.fulfill(status=429, headers={"Retry-After": "4"}, content_type="application/json", body=json.dumps({"error": error}))  # fmt: skip

    page.route("**/search", busy)
    page.locator("#query").fill(QUERY)
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text(re.compile(r"the server is busy.*asking again in \d s"))
    expect(page.locator(".hit")).to_have_count(10)
    expect(page.get_by_role("alert")).to_be_empty()


def test_a_search_that_takes_long_says_so_and_the_last_one_wins(show: Open) -> None:
    """While a search is under way the results are busy; a newer search replaces one that still runs."""
    page = show("qa")
    held: list[Route] = []
    page.route("**/search", lambda route: held.append(route), times=1)  # noqa: PLW0108 – Playwright takes no built-in
    page.locator("#query").fill("an old question")
    page.keyboard.press("Enter")
    expect(page.locator("#results")).to_have_attribute("aria-busy", "true")
    page.locator("#query").fill(QUERY)
    page.keyboard.press("Enter")
    expect(page.locator(".hit")).to_have_count(10)
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")
    expect(page.locator("#notice")).to_be_empty()


def test_a_key_is_asked_for_and_a_server_that_is_gone_is_told(
    show: Open, settings: dict[str, str], notes: Path
) -> None:
    """401 opens a dialog that can be left and come back to, a wrong key is told there, the right one goes on; a server that stopped is told too."""
    server = launch(settings, notes, EMBEDKIT_API_KEY="open-sesame")
    try:
        page = show("qa", server=server, q="train", settled=1)
        dialog = page.get_by_role("dialog")
        expect(dialog).to_be_visible()
        page.keyboard.press("Escape")
        expect(dialog).to_be_hidden()
        expect(page.get_by_role("alert")).to_contain_text("This server asks for a key")
        page.get_by_role("button", name="Try again").click()
        page.get_by_label("API key").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#key-problem")).to_contain_text("The API key is wrong.")
        page.get_by_label("API key").fill("open-sesame")
        page.keyboard.press("Enter")
        expect(page.locator(".hit")).to_have_count(3)
        expect(dialog).to_be_hidden()
        assert "sesame" not in page.url
        page.reload()
        expect(page.locator(".hit")).to_have_count(3)
    finally:
        server.stop()
    page.locator("#query").fill("another")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer: it may have stopped")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()


def test_what_is_typed_before_the_page_is_ready_is_searched_for(show: Open) -> None:
    """On a slow network a query is typed, sent and looked at on the map while the page still asks for its indexes."""
    page = show()
    held: list[Route] = []
    page.route("**/indexes", lambda route: held.append(route))  # noqa: PLW0108 – Playwright takes no built-in
    page.reload()
    first_held(held, page)
    page.locator("#query").fill(QUERY)
    page.keyboard.press("Enter")
    page.get_by_role("link", name="Map").click()
    page.locator("#query").fill("and more")
    held[0].continue_()
    expect(page.locator(".map-list").first.locator(".map-hit")).to_have_count(10)
    assert dict(parse_qsl(urlsplit(page.url).query)) == {"q": QUERY, "view": "map"}
    expect(page.locator("#query")).to_have_value("and more")
    page.reload()
    expect(page.locator("#query")).to_have_value(QUERY)
    while len(held) < 2:
        page.wait_for_timeout(50)
    page.locator("#query").fill("another")
    held[1].continue_()
    expect(page.locator(".map-list").first.locator(".map-hit")).to_have_count(10)
    expect(page.locator("#query")).to_have_value("another")
    # What is searched for from the map stands in the box, whatever was being typed.
    page.locator(".map-hit").first.click()
    page.get_by_role("button", name="Search for this").click()
    expect(page.locator("#query")).not_to_have_value("another")


def test_what_is_typed_and_not_sent_stays(show: Open) -> None:
    """A task that is changed meanwhile is searched under for the old query; the new one waits for Enter."""
    page = show("qa", q=QUERY)
    page.locator("#query").fill("a new question")
    page.locator(".task").first.select_option("topic")
    expect(page.locator(".column").first).to_have_attribute("aria-label", "Task topic")
    assert documents(page, 0)
    assert ("q", QUERY) in parse_qsl(urlsplit(page.url).query)
    expect(page.locator("#query")).to_have_value("a new question")
    page.locator("#query").press("Enter")
    expect(page).to_have_title("a new question · embedkit")
    page.go_back()
    expect(page.locator("#query")).to_have_value(QUERY)
