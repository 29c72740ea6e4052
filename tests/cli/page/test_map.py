"""The map: a dot for each chunk, hits lit in their tasks' colours, by pointer, keys and as a list."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.page.conftest import QUERY, Open, asked, chunks, settled, until
from tests.cli.server.conftest import Server

if TYPE_CHECKING:
    from playwright.sync_api import Route

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect

# How many of the canvas' pixels have exactly the colour of this variable.
_PIXELS = """(name) => {
  const canvas = document.getElementById("map");
  if (!canvas) return 0;
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

    end = time.monotonic() + 400
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
    expect(lists.first.locator(".map-hit")).to_have_count(len(told))
    lists.first.locator(".map-hit").first.click()
    card = page.locator("#map-card")
    expect(card).to_contain_text(told[0]["document_id"])
    expect(card.locator(".card-ranks")).to_contain_text("#1 qa")
    card.get_by_role("button", name="Search for this").click()
    expect(page.locator("#query")).to_have_value(told[0]["text"])


def test_a_hit_can_be_chosen_before_the_map_is_there(show: Open, mapped: Server) -> None:
    """The lists do not wait for the map: a hit's card opens at once, and the map goes to the hit when it comes."""
    page = show(view="map", settled=1)
    expect(page.locator("#map")).to_have_attribute("data-status", "ready")
    computing = mapped.get("/map?index=corpus&points=false").json | {"status": "computing", "computing": True}
    page.route("**/map?**", lambda route: route.fulfill(json=computing))
    page.goto(f"{mapped.url}/?view=map&task=qa&q=git")
    expect(page.locator("#map-message")).to_contain_text("Laying out")
    told = asked(mapped, "qa", query="git")[0]["hits"]
    page.locator(".map-hit").nth(2).click()
    card = page.locator("#map-card")
    expect(card).to_contain_text(told[2]["document_id"])
    expect(card.get_by_role("button", name="Search for this")).to_be_visible()
    page.mouse.move(1, 1)
    # The page looks again while the map is computed, and what was chosen stays.
    with page.expect_response("**/map?**"):
        pass
    expect(card).to_contain_text(told[2]["document_id"])
    page.unroute("**/map?**")
    expect(page.locator("#map")).to_have_attribute("data-lit", str(len(told)))
    expect(card).to_contain_text(told[2]["document_id"])
    # The chosen hit lies in the middle: a click there chooses it again, not the plane beside it.
    page.locator("#map").click()
    expect(card).to_contain_text(told[2]["document_id"])
    expect(card.get_by_role("button", name="Search for this")).to_be_visible()


def test_tasks_are_changed_beside_the_map(show: Open, mapped: Server) -> None:
    """The map has the columns' controls: tasks are chosen, added, removed and put in own words, and their hits light up."""
    page = show("qa", view="map", q=QUERY)

    def lit(*tasks: object) -> None:
        results = asked(mapped, *tasks)
        expect(page.locator(".map-list")).to_have_count(len(tasks))
        expect(page.locator("#map")).to_have_attribute(
            "data-lit", str(len({chunk for result in results for chunk in chunks(result)}))
        )
        for place, result in enumerate(results):
            settled(page)
            listed = page.locator(".map-list").nth(place).locator(".map-hit")
            expect(listed).to_have_count(10)
            found = listed.evaluate_all("all => all.map((hit) => hit.dataset.chunk)")
            assert found == chunks(result)

    lit("qa")
    assert page.evaluate(_PIXELS, "--c4") == 0
    page.get_by_role("button", name="Add a task").click()
    lit("qa", "duplicate")
    page.get_by_label("Task 2", exact=True).select_option("topic")
    lit("qa", "topic")
    until(page, f"({_PIXELS})('--c4') > 50")
    page.get_by_role("button", name="Remove task qa").click()
    lit("topic")
    expect(page.get_by_label("Task 1", exact=True)).to_be_focused()
    page.get_by_label("Task 1", exact=True).select_option(label="own words…")
    field = page.get_by_label("Instruction of task 1")
    expect(field).to_be_focused()
    field.fill("Given a question, retrieve shell scripts")
    field.press("Enter")
    lit({"instruction": "Given a question, retrieve shell scripts"})
    page.get_by_role("link", name="Compare").click()
    expect(page.locator(".column textarea")).to_have_value("Given a question, retrieve shell scripts")
    expect(page.locator(".hit")).to_have_count(10)


def test_an_unknown_task_is_told_beside_the_map(show: Open, mapped: Server) -> None:
    """What the server says of a task stands at its control, and another task mends it."""
    del mapped
    page = show("qa", "qaa", view="map", q=QUERY, settled=1)
    expect(page.locator(".map-list").nth(1).locator(".problem")).to_contain_text("unknown task 'qaa'")
    page.get_by_label("Task 2", exact=True).select_option("topic")
    expect(page.locator(".map-hit")).to_have_count(20)


def _part(route: Route, count: int) -> dict[str, Any]:
    """The server's answer, with that many of the map's chunks on it, as a sampled map has."""
    told: dict[str, Any] = route.fetch().json()
    if told["points"]:
        told["points"] = {name: values[:count] for name, values in told["points"].items()}
    return told


def test_the_last_of_two_searches_is_on_the_map(show: Open, mapped: Server) -> None:
    """Hits that are asked for one by one, on a sampled map, are those of the search that is shown."""
    page = show("qa", view="map")
    held: list[Route] = []

    def sampled(route: Route) -> None:
        if "chunks=" in route.request.url:
            held.append(route)
        else:
            route.fulfill(json=_part(route, 5))

    page.route("**/map?**", sampled)
    page.reload()
    expect(page.locator("#map")).to_have_attribute("data-lit", "0")
    for count, query in enumerate(("an old question", QUERY), 1):
        page.locator("#query").fill(query)
        page.keyboard.press("Enter")
        while len(held) < count:
            page.wait_for_timeout(50)
    last = {chunk for result in asked(mapped, "qa") for chunk in chunks(result)}
    for route in held[::-1]:
        route.fulfill(response=route.fetch())
    expect(page.locator("#map")).to_have_attribute("data-lit", str(len(last)))
    page.wait_for_timeout(200)
    expect(page.locator("#map")).to_have_attribute("data-lit", str(len(last)))


def test_a_map_that_is_replaced_is_asked_for_once(show: Open, mapped: Server) -> None:
    """While a newer map is computed the page asks how far it is, not for the points; what was pointed at is let go then."""
    del mapped
    asked_for: list[str] = []
    pointed_at: list[Any] = []
    page = show("qa")

    def stale(route: Route) -> None:
        asked_for.append("state" if "points=false" in route.request.url else "points")
        # The newer map is there once a dot of the older one has been pointed at.
        old = not pointed_at
        told = _part(route, 20 if old else 313)
        route.fulfill(json=told | {"stale": old, "computing": old, "generation": told["generation"] - old})

    page.route("**/map?**", stale)
    page.get_by_role("link", name="Map").click()
    until(page, f"({_PIXELS})('--dot') > 100")
    canvas = page.locator("#map")
    dot = page.evaluate(
        """() => {
          const canvas = document.getElementById("map");
          const { data, width } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          const at = data.findIndex((value, i) => i % 4 === 3 && value === 255 && data[i - 3] < 200);
          return { x: Math.floor(at / 4) % width, y: Math.floor(at / 4 / width) + 2 };
        }"""
    )
    canvas.click(position=dot)
    expect(page.locator("#map-card")).to_be_visible()
    pointed_at.append(dot)
    page.mouse.move(0, 0)
    expect(page.locator("#map-card")).to_be_hidden()
    assert asked_for[:2] == ["state", "points"]
    assert asked_for.count("points") == 2


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


def test_a_missing_map_is_told(show: Open) -> None:
    """Where the projection cannot be computed, the view says so in the server's words, and the lists stay."""
    page = show("qa")
    message = "this server was installed without what lays out a map"
    told = {
        "index": "corpus", "generation": 1, "status": "unavailable", "stale": False, "computing": False,
        "message": message, "chunks": 313, "points": None,
    }  # fmt: skip
    page.route(
        "**/map?**", lambda route: route.fulfill(content_type="application/json", body=json.dumps(told))
    )
    page.locator("#query").fill(QUERY)
    page.keyboard.press("Enter")
    page.get_by_role("link", name="Map").click()
    expect(page.locator("#map-message")).to_contain_text(message)
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
