"""The map: a dot for each chunk, hits lit in their tasks' colours, by pointer, keys and as a list."""

from __future__ import annotations

import json

import pytest

from tests.cli.page.conftest import QUERY, Open, asked, chunks, until
from tests.cli.server.conftest import Server

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect

# How many of the canvas' pixels have exactly the colour of this variable.
_PIXELS = """(name) => {
  const canvas = document.getElementById("map");
  const context = canvas.getContext("2d");
  const hex = getComputedStyle(canvas).getPropertyValue(name).trim();
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  let count = 0;
  for (let i = 0; i < data.length; i += 4) if (data[i] === r && data[i + 1] === g && data[i + 2] === b) count += 1;
  return count;
}"""


@pytest.fixture(scope="module")
def mapped(site: Server) -> Server:
    """The server, its map computed."""
    import time

    end = time.monotonic() + 120
    while site.get("/map?index=corpus").json["status"] != "ready":
        assert time.monotonic() < end, "the map takes too long"
        time.sleep(0.2)
    return site


def test_each_tasks_hits_light_up(show: Open, mapped: Server) -> None:
    """Every hit is lit in its task's colour, pies for several tasks; without a query nothing is."""
    page = show("qa", "bitext", view="map")
    expect(page.locator("#map")).to_have_attribute("data-lit", "0")
    until(page, f"({_PIXELS})('--dot') > 200")
    assert page.evaluate(_PIXELS, "--c0") == 0
    page.locator("#query").fill(QUERY)
    page.keyboard.press("Enter")
    results = asked(mapped, "qa", "bitext")
    unique = {chunk for result in results for chunk in chunks(result)}
    expect(page.locator("#map")).to_have_attribute("data-lit", str(len(unique)))
    until(page, f"({_PIXELS})('--c0') > 50 && ({_PIXELS})('--c2') > 50")
    expect(page.locator("#map")).to_have_attribute("aria-label", f"Map of 313 chunks, {len(unique)} hits lit; the hits stand in the list beside it")  # fmt: skip


def test_the_list_leads_to_the_map(show: Open, mapped: Server) -> None:
    """The hits stand in lists by task; choosing one shows it on the map, and it can be searched for."""
    page = show("qa", "bitext", view="map", q=QUERY)
    expect(page.locator("#map")).to_have_attribute("data-status", "ready")
    lists = page.locator(".map-list")
    expect(lists).to_have_count(2)
    told = asked(mapped, "qa")[0]["hits"]
    expect(lists.first.get_by_role("button")).to_have_count(len(told))
    lists.first.get_by_role("button").first.click()
    card = page.locator("#map-card")
    expect(card).to_contain_text(told[0]["document_id"])
    expect(card.locator(".card-ranks")).to_contain_text("#1 qa")
    card.get_by_role("button", name="Search for this").click()
    expect(page.locator("#query")).to_have_value(told[0]["text"])


def test_the_map_is_moved_by_keys_and_pointer(show: Open, mapped: Server) -> None:
    """Keys pan, enlarge and step through the hits; wheel and drag do the same; a dot tells what it is."""
    page = show("qa", view="map", q=QUERY)
    expect(page.locator("#map")).to_have_attribute("data-lit", "10")
    canvas = page.locator("#map")
    picture = "document.getElementById('map').toDataURL()"
    canvas.focus()
    for key in ("+", "ArrowLeft", "ArrowUp", "-", "0", "h"):
        before = page.evaluate(picture)
        page.keyboard.press(key)
        until(page, f"before => {picture} !== before", before)
    page.keyboard.press("n")
    hit = asked(mapped, "qa")[0]["hits"][0]
    expect(page.locator("#map-card")).to_contain_text(hit["document_id"])
    expect(page.locator("#status")).to_contain_text("#1 under qa")
    page.keyboard.press("0")
    box = canvas.bounding_box()
    assert box is not None
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(*middle)
    before = page.evaluate(picture)
    page.mouse.wheel(0, -400)
    until(page, f"before => {picture} !== before", before)
    before = page.evaluate(picture)
    page.mouse.down()
    page.mouse.move(middle[0] + 80, middle[1] + 40, steps=4)
    page.mouse.up()
    until(page, f"before => {picture} !== before", before)


def test_chunks_are_coloured_by_language(show: Open, mapped: Server) -> None:
    """With the box checked a legend names the languages, and dots of several colours are drawn."""
    page = show("qa", view="map")
    expect(page.locator("#map")).to_have_attribute("data-status", "ready")
    until(page, f"({_PIXELS})('--dot') > 200")
    assert page.evaluate(_PIXELS, "--c1") == 0
    page.get_by_label("Colour all chunks by language").check()
    expect(page.locator("#map-legend")).to_contain_text("English")
    until(page, f"({_PIXELS})('--c0') > 50 && ({_PIXELS})('--c1') > 20")


def test_a_missing_extra_is_named(show: Open) -> None:
    """Where the projection cannot be computed, the view says which command mends it, and the lists stay."""
    page = show("qa")
    command = "pip install 'embedkit-retrieval[map]'"
    told = {
        "index": "corpus", "generation": 1, "status": "unavailable", "stale": False, "computing": False,
        "message": f"the map needs the extra [map]: {command}", "chunks": 313, "points": None,
    }  # fmt: skip
    page.route(
        "**/map?**", lambda route: route.fulfill(content_type="application/json", body=json.dumps(told))
    )
    page.locator("#query").fill(QUERY)
    page.keyboard.press("Enter")
    page.get_by_role("link", name="Map").click()
    expect(page.locator("#map-message")).to_contain_text(command)
    expect(page.locator(".map-hit")).to_have_count(10)


def test_the_view_stands_in_the_address(show: Open, mapped: Server) -> None:
    """Going to the map and back keeps query and hits, by links and by the back button."""
    page = show("qa", q=QUERY)
    page.get_by_role("link", name="Map").click()
    expect(page.locator(".map-hit")).to_have_count(10)
    assert "view=map" in page.url
    page.go_back()
    expect(page.locator(".hit").first).to_be_visible()
    expect(page.locator("#map-view")).to_be_hidden()
