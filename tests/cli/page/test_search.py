"""The page compares tasks: one query, a column a task, what they share and how ranks change."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

import pytest

from tests.cli.page.conftest import QUERY, Open, asked, chunks, documents, first_held, until
from tests.cli.server.conftest import Server

if TYPE_CHECKING:
    from playwright.sync_api import Route

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect


def test_a_query_is_answered_under_every_task(show: Open, site: Server) -> None:
    """Typing a query and pressing Enter shows each task's hits, in the order of POST /search."""
    page = show()
    expect(page.locator("#query")).to_be_focused()
    page.keyboard.type(QUERY)
    page.keyboard.press("Enter")
    expect(page.locator(".hit")).to_have_count(30)
    results = asked(site, "qa", "duplicate", "bitext")
    assert [documents(page, n) for n in range(3)] == [chunks(r) for r in results]
    expect(page.locator("#status")).to_contain_text("10 hits under each of 3 tasks")
    expect(page).to_have_title(f"{QUERY} · embedkit")


def test_switching_a_task_changes_the_ranking(show: Open, site: Server) -> None:
    """Another task in a column gives other hits in that column alone, and stands in the address."""
    page = show("qa", "bitext", q=QUERY)
    before = [documents(page, 0), documents(page, 1)]
    with page.expect_response("**/search"):
        page.locator(".task").nth(1).select_option("code")
    expect(page.locator("body:not(.busy)")).to_be_attached()
    expect(page.locator(".column").nth(1)).to_have_attribute("aria-label", "Task code")
    expect(page.locator(".hit")).to_have_count(20)
    assert documents(page, 0) == before[0]
    assert documents(page, 1) == chunks(asked(site, "code")[0]) != before[1]
    assert ("task", "code") in parse_qsl(urlsplit(page.url).query)


def test_columns_come_and_go_and_the_back_button_brings_them_back(show: Open) -> None:
    """A column is added and removed; going back restores tasks and hits, as does the address in a new tab."""
    page = show("qa", "duplicate", q=QUERY)
    page.locator("#add-task").click()
    expect(page.locator(".hit")).to_have_count(30)
    three = page.url
    page.get_by_role("button", name="Remove task qa").click()
    expect(page.locator(".column")).to_have_count(2)
    expect(page.locator(".column").first).to_have_attribute("aria-label", "Task duplicate")
    page.go_back()
    expect(page.locator(".column")).to_have_count(3)
    expect(page.locator(".hit")).to_have_count(30)
    assert page.url == three
    shared = page.context.new_page()
    shared.goto(three)
    expect(shared.locator(".hit")).to_have_count(30)


def test_shared_matches_are_linked_and_rank_changes_shown(show: Open, site: Server) -> None:
    """A hit tells its rank under the other tasks and its change against the first; pointing at it lights up all."""
    page = show("qa", "code", q=QUERY)
    first, second = (chunks(r) for r in asked(site, "qa", "code"))
    shared = [chunk for chunk in second if chunk in first]
    assert len(shared) > 0
    expect(page.locator(".links path")).to_have_count(len(shared))
    for rank, chunk in enumerate(second, 1):
        hit = page.locator(f".column[data-place='1'] .hit[data-chunk='{chunk}']")
        change = hit.locator(".change [aria-hidden]").inner_text()
        if chunk in first:
            by = first.index(chunk) + 1 - rank
            assert change == ("=" if by == 0 else f"▲{by}" if by > 0 else f"▼{-by}")
            expect(hit.locator(".also")).to_contain_text(f"#{first.index(chunk) + 1} qa")
        else:
            assert change == "new"
            expect(hit.locator(".only")).to_be_visible()
    page.locator(f".column[data-place='0'] .hit[data-chunk='{shared[0]}']").hover()
    expect(page.locator(".hit.lit")).to_have_count(2)
    expect(page.locator("path.lit")).to_have_count(1)
    page.locator(f".column[data-place='0'] .hit[data-chunk='{shared[0]}'] .also").click()
    expect(page.locator(f".column[data-place='1'] .hit[data-chunk='{shared[0]}'] .hit-open")).to_be_focused()


def test_language_chips_filter_and_show_the_mix(show: Open, site: Server) -> None:
    """Chips count the hits by language, a column shows its own mix, and choosing one keeps that language alone."""
    page = show("qa", "bitext", q=QUERY)
    hits = [hit["lang"] for r in asked(site, "qa", "bitext") for hit in r["hits"]]
    german = page.locator(".chip").filter(has_text="German")
    expect(german.locator(".count")).to_have_text(f", {hits.count('de')} hits")
    label = page.locator(".mix").first.get_attribute("aria-label")
    assert (
        label is not None
        and f"English {[h['lang'] for h in asked(site, 'qa')[0]['hits']].count('en')}" in label
    )
    german.click()
    expect(page.locator(".hit .lang [aria-hidden]")).to_have_text(["de"] * 20)
    assert ("lang", "de") in parse_qsl(urlsplit(page.url).query)
    expect(page.get_by_role("radio", name="German")).to_be_checked()


def test_chips_count_the_documents_of_an_index(show: Open, site: Server) -> None:
    """Before a search a chip tells how many documents have its language, however many chunks they are cut into."""
    page = show("qa", index="pair")
    told = next(one for one in site.get("/indexes").json["indexes"] if one["name"] == "pair")
    assert told["chunks"] > told["documents"] == 2
    expect(page.locator(".chip .count")).to_have_text([", 1 document", ", 1 document"])


def test_arrows_move_through_the_chips_and_space_chooses(show: Open, site: Server) -> None:
    """Arrow keys search for nothing and leave the address as it is; Space and Enter choose the language under them."""
    page = show("qa", q=QUERY)
    where = "[location.href, history.length]"
    before = page.evaluate(where)
    page.get_by_role("radio", name="All").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    focused = page.locator("#languages input:focus")
    expect(focused).not_to_be_checked()
    code = focused.get_attribute("value")
    assert page.evaluate(where) == before
    page.keyboard.press("Space")
    expect(page).to_have_url(re.compile(f"lang={code}"))
    expect(page.locator("body:not(.busy)")).to_be_attached()
    expect(page.locator(".hit")).to_have_count(len(asked(site, "qa", lang=code)[0]["hits"]))
    expect(page.locator(f"#languages input[value='{code}']")).to_be_focused()
    page.keyboard.press("ArrowLeft")
    other = page.locator("#languages input:focus").get_attribute("value")
    page.keyboard.press("Enter")
    expect(page.locator("#languages input:checked")).to_have_value(str(other))


def test_the_hits_stay_until_the_next_are_there(show: Open) -> None:
    """While another task is searched under, what was found stays, dimmed, and the page where it was scrolled to."""
    page = show("qa", "code", q=QUERY)
    page.evaluate("scrollTo(0, 150)")
    held: list[Route] = []
    page.route("**/search", lambda route: held.append(route))  # noqa: PLW0108 – Playwright takes no built-in
    page.locator(".task").nth(1).evaluate("e => { e.value = 'topic'; e.dispatchEvent(new Event('change')); }")
    expect(page.locator("body.busy")).to_be_attached()
    expect(page.locator(".hit")).to_have_count(20)
    until(page, "getComputedStyle(document.querySelector('.hits')).opacity === '0.55'")
    until(page, "document.querySelectorAll('.links path').length > 0")
    assert page.evaluate("scrollY") == 150
    first_held(held, page).continue_()
    expect(page.locator("body:not(.busy)")).to_be_attached()
    expect(page.locator(".column").nth(1)).to_have_attribute("aria-label", "Task topic")
    assert page.evaluate("scrollY") == 150


def test_hits_do_not_wait_for_their_marks(show: Open, site: Server) -> None:
    """The hits are there by the words' marks while passages are compared by meaning; then those are marked."""
    query = "Wann fährt der Zug nach Lissabon?"
    by_words, by_meaning = (
        next(hit["snippet"]["text"] for hit in result["hits"] if hit["document_id"] == "astral")
        for kind in ("words", "meaning")
        for result in asked(site, "bitext", query=query, index="notes", snippets=kind)
    )
    assert by_words != by_meaning
    page = show("bitext", index="notes")
    held: list[Route] = []

    def hold(route: Route) -> None:
        if '"meaning"' in (route.request.post_data or ""):
            held.append(route)
        else:
            route.continue_()

    page.route("**/search", hold)
    page.locator("#query").fill(query)
    page.keyboard.press("Enter")
    mark = page.locator(".hit", has_text="is a row of pins").locator("mark")
    expect(mark).to_have_text(by_words)
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")
    first_held(held, page).continue_()
    expect(mark).to_have_text(by_meaning)


def test_the_encoded_string_is_shown_on_demand(show: Open, site: Server) -> None:
    """ "What was encoded" opens to the exact string and the number of its tokens."""
    page = show("qa", q=QUERY)
    told = asked(site, "qa")[0]
    expect(page.locator(".encoded pre")).to_be_hidden()
    page.get_by_text("What was encoded").click()
    assert page.locator(".encoded pre").text_content() == told["encoded"]
    expect(page.locator(".encoded .hint")).to_contain_text(f"{len(told['tokens'])} tokens")


def test_a_column_takes_own_words(show: Open, site: Server) -> None:
    """A free instruction is searched under when Enter is pressed, and stands in the address."""
    page = show("qa", q=QUERY)
    page.locator(".task").select_option(label="own words…")
    field = page.get_by_label("Instruction of task 1")
    expect(field).to_be_focused()
    field.fill("Given a question, retrieve shell scripts")
    with page.expect_response("**/search"):
        field.press("Enter")
    expect(page.locator(".hit")).to_have_count(10)
    expect(page.locator(".encoded pre")).to_contain_text("retrieve shell scripts")
    told = asked(site, {"instruction": "Given a question, retrieve shell scripts"})[0]
    assert documents(page, 0) == chunks(told)
    assert ("ask", "Given a question, retrieve shell scripts") in parse_qsl(urlsplit(page.url).query)


def test_options_choose_mode_depth_and_filter(show: Open, site: Server) -> None:
    """Mode, number of hits and filter are those of the search, and of the address."""
    page = show("qa", q=QUERY)
    page.get_by_text("Options", exact=True).click()
    page.get_by_label("Search by").select_option("lexical")
    page.get_by_label("Hits", exact=True).fill("3")
    page.get_by_label("Filter").fill('kind = "passage"')
    page.get_by_label("Filter").press("Enter")
    wanted = chunks(asked(site, "qa", mode="lexical", k=3, where='kind = "passage"', snippets="words")[0])
    expect(page.locator(".hit")).to_have_count(len(wanted))
    assert documents(page, 0) == wanted
    expect(page.locator(".told")).to_contain_text("the instruction plays no part")
    assert {("mode", "lexical"), ("k", "3"), ("where", 'kind = "passage"')} <= set(
        parse_qsl(urlsplit(page.url).query)
    )


def test_the_best_passage_is_marked(show: Open, site: Server) -> None:
    """The mark stands on the server's passage, behind letters of two UTF-16 units too."""
    page = show("qa", q="When does the train to Lisbon leave?", index="notes")
    told = asked(site, "qa", query="When does the train to Lisbon leave?", index="notes")[0]["hits"][0]
    assert told["document_id"] == "astral"
    assert told["snippet"]["text"].startswith("The train to Lisbon leaves at nine")
    expect(page.locator(".hit").first.locator("mark")).to_have_text(told["snippet"]["text"])


def test_markup_in_documents_is_text(show: Open) -> None:
    """A document's script and tags are seen as they stand; nothing of them becomes an element or runs."""
    page = show("qa", q="a note on tags", index="notes")
    hit = page.locator(".hit").filter(has_text="A note on tags")
    expect(hit.locator(".title")).to_have_text("<b>Tags</b>")
    expect(hit.locator(".passage")).to_contain_text(
        "<script>alert('run')</script><img src=x onerror=alert(2)>"
    )
    hit.locator(".hit-open").click()
    expect(hit.locator(".whole")).to_contain_text("<script>alert('run')</script>")
    assert page.locator("main script, main img, main b:has-text('Tags')").count() == 0


def test_right_to_left_scripts_run_right_to_left(show: Open) -> None:
    """An Arabic hit and query run from right to left, and the hit names its language for voices and fonts."""
    page = show("bitext", q="كيف أتراجع عن آخر commit؟", lang="ar")
    passage = page.locator(".passage").first
    expect(passage).to_have_attribute("lang", "ar")
    assert passage.evaluate("e => getComputedStyle(e).direction") == "rtl"
    assert page.locator("#query").evaluate("e => getComputedStyle(e).direction") == "rtl"
    assert page.locator(".score").first.evaluate("e => getComputedStyle(e).direction") == "ltr"
    page = show("qa", q="كيف أتراجع عن آخر commit؟", ask="ابحث عن الجواب commit")
    name = page.locator(".also-name").filter(has_text="ابحث").first
    assert name.evaluate("e => getComputedStyle(e).direction") == "rtl"


def test_everything_is_reached_by_keys(show: Open) -> None:
    """/ focuses the query, arrows and j, k walk through hits and columns, Enter opens one, Esc and Tab lead on."""
    page = show("qa", "code", q=QUERY)
    focused = "[document.activeElement.closest('.column')?.dataset.place, document.activeElement.closest('.hit')?.dataset.chunk]"
    first, second = documents(page, 0), documents(page, 1)
    page.keyboard.press("/")
    expect(page.locator("#query")).to_be_focused()
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused) == ["0", first[0]]
    page.keyboard.press("j")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("k")
    assert page.evaluate(focused) == ["0", first[1]]
    page.keyboard.press("ArrowRight")
    place, chunk = page.evaluate(focused)
    assert place == "1" and chunk == (first[1] if first[1] in second else second[1])
    page.keyboard.press("Enter")
    expect(page.locator(".hit.open")).to_have_count(1)
    expect(page.locator(":focus")).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("End")
    assert page.evaluate(focused) == ["1", second[-1]]
    page.keyboard.press("Tab")
    expect(page.locator("#add-task")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#query")).to_be_focused()


def test_the_index_is_chosen(show: Open, site: Server) -> None:
    """With several indexes a picker searches another, and the address says which."""
    page = show("qa", q="train to Lisbon")
    page.locator("#index").select_option("notes")
    expect(page.locator("#about")).to_contain_text("3 documents")
    expect(page.locator(".hit")).to_have_count(3)
    assert documents(page, 0) == chunks(asked(site, "qa", query="train to Lisbon", index="notes")[0])
    assert ("index", "notes") in parse_qsl(urlsplit(page.url).query)
