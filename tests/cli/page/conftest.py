"""A real server of the sample corpus under the bundled embedder, and Chromium to look at its page with."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest

from tests.cli.conftest import SAMPLE, _run
from tests.cli.server.conftest import Server, launch

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

QUERY = "How do I undo my last git commit?"
# Letters outside the Basic Multilingual Plane: two units of JavaScript's, one character of Python's.
ASTRAL = "🧷" * 30
NOTES = [
    {"_id": "script", "title": "<b>Tags</b>", "text": "A note on tags. <script>alert('run')</script><img src=x onerror=alert(2)> & \"quotes\" stay text.", "lang": "en"},
    {"_id": "astral", "title": "", "text": f"{ASTRAL} is a row of pins and no more than that, as far as one can see. The train to Lisbon leaves at nine in the morning from platform four. Bring a coat, since evenings by the river are colder than one thinks in spring.", "lang": "en"},
    {"_id": "plain", "title": "Plain", "text": "Nothing of note.", "lang": "en"},
]  # fmt: skip
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
Open = Callable[..., "Page"]


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of the page's servers and of commands beside them."""
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("EMBEDKIT_", "OPENAI_"))}
    return mine | {
        "HELD_FOLDER": str(tmp_path_factory.mktemp("held")),
        "EMBEDKIT_CACHE": str(tmp_path_factory.getbasetemp() / "cache"),
        "OMP_NUM_THREADS": "1",
        "PYTHONUTF8": "1",
    }


def _build(settings: dict[str, str], source: Path, directory: Path) -> None:
    done = _run("index", source, "-o", directory, env=settings, timeout=400)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def corpus(settings: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample corpus under the bundled embedder; only its map is ever written."""
    folder = tmp_path_factory.mktemp("page") / "corpus"
    _build(settings, SAMPLE / "corpus.jsonl", folder)
    return folder


@pytest.fixture(scope="session")
def notes(settings: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three documents: markup, letters outside the Basic Multilingual Plane, and nothing special."""
    folder = tmp_path_factory.mktemp("page-notes")
    (folder / "notes.jsonl").write_text("\n".join(map(json.dumps, NOTES)), encoding="utf-8")
    _build(settings, folder / "notes.jsonl", folder / "notes")
    return folder / "notes"


@pytest.fixture(scope="session")
def pair(settings: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two documents, the English one of several chunks."""
    folder = tmp_path_factory.mktemp("page-pair")
    rows = [{"_id": "long", "text": "Bring a coat, since evenings are cold. " * 300, "lang": "en"},
            {"_id": "kurz", "text": "Nimm einen Mantel mit.", "lang": "de"}]  # fmt: skip
    (folder / "pair.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    _build(settings, folder / "pair.jsonl", folder / "pair")
    return folder / "pair"


@pytest.fixture(scope="session")
def site(settings: dict[str, str], corpus: Path, notes: Path, pair: Path) -> Iterator[Server]:
    """A server of all indexes; no test stops or changes it."""
    server = launch(settings, corpus, notes, pair)
    yield server
    code, stderr = server.stop()
    assert code == 0, stderr
    assert "Traceback" not in stderr


# A module's, not a session's: while it lives, asyncio takes this thread for busy, and other tests need a loop.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for all pages of a module."""
    sync_api = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        reason = "no Chromium is installed: scripts/install_browser.sh installs it on Debian"
        if os.environ.get("EMBEDKIT_REQUIRE_BROWSER"):
            pytest.fail(reason)
        pytest.skip(reason)
    # Chromium's sandbox does not start for root.
    sync_api.expect.set_options(timeout=60_000)
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"] if root else [])
        yield browser
        browser.close()


@pytest.fixture
def show(browser: Browser, site: Server) -> Iterator[Open]:
    """Return a function that opens the page with a query and columns; no page asks another host or breaks its policy."""
    sync_api = pytest.importorskip("playwright.sync_api")
    seen: list[str] = []
    problems: list[str] = []
    contexts = []

    def go(
        *columns: str, server: Server = site, width: int = 1360, height: int = 900, dark: bool = False,
        phone: bool = False, **state: Any,
    ) -> Page:  # fmt: skip
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", has_touch=phone,
            is_mobile=phone, reduced_motion="reduce",
        )  # fmt: skip
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda request: seen.append(request.url))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(f"dialog {dialog.message}"))
        page.on(
            "console",
            lambda said: problems.append(said.text) if "Content Security Policy" in said.text else None,
        )
        asked = [*state.items(), *(("task", name) for name in columns)]
        page.goto(f"{server.url}/?{urlencode(asked)}")
        if "settled" not in state:
            # The page is busy from the moment the columns are there until they are filled.
            sync_api.expect(
                page.locator("body:not(.busy) :is(#columns, #map-lists) section").first
            ).to_be_attached()
        return page

    yield go
    for context in contexts:
        context.close()
    assert not problems
    assert all(url.startswith(("http://127.0.0.1:", "data:")) for url in seen)
    assert seen


def until(page: Page, expression: str, argument: Any = None) -> None:
    """Wait until an expression holds; Playwright's own way of waiting is what the page's policy forbids."""
    end = time.monotonic() + 60
    while not page.evaluate(expression, argument):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(50)


def first_held(held: list[Route], page: Page) -> Route:
    """Wait until a request is held, and return it."""
    end = time.monotonic() + 60
    while not held:
        assert time.monotonic() < end, "nothing was asked"
        page.wait_for_timeout(50)
    return held[0]


def settled(page: Page) -> None:
    """Wait until what was asked is answered: until then what was found before stays."""
    sync_api = pytest.importorskip("playwright.sync_api")
    sync_api.expect(page.locator("body:not(.busy)")).to_be_attached()


def documents(page: Page, column: int) -> list[str]:
    """Return the chunk ids of a column's hits, best first, once what was asked is answered."""
    settled(page)
    found = page.locator(".column").nth(column).locator(".hit")
    return [str(chunk) for chunk in found.evaluate_all("all => all.map((hit) => hit.dataset.chunk)")]


def asked(server: Server, *tasks: Any, **body: Any) -> Any:
    """Return the results of POST /search."""
    told = {
        "query": QUERY,
        "index": "corpus",
        "tasks": list(tasks),
        "explain": True,
        "snippets": "meaning",
        **body,
    }
    return server.post("/search", told).json["results"]


def chunks(result: Any) -> list[str]:
    """Return the chunk ids of a result, best first."""
    return [str(hit["chunk_id"]) for hit in result["hits"]]
