"""Take a picture of the page in each of its states: `python scripts/screenshots.py FOLDER [--docs]`, and look at each.

A real server of examples/corpus and Chromium, as the page's tests have them. With --docs the two pictures of docs/server.md
are made anew as well.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

REPOSITORY = Path(__file__).resolve().parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUERY = "How can I tell whether a year is a leap year or not?"
ARABIC = "كيف أتراجع عن آخر commit؟"
THREE = ("qa", "duplicate", "code")
COMMAND = (sys.executable, "-m", "embedkit_cli.main")


def _none(page: Page) -> None:
    del page


def _second(page: Page) -> None:
    page.locator(".hit").nth(1).hover()


def _open(page: Page) -> None:
    page.get_by_text("What was encoded").first.click()
    page.locator(".hit-open").nth(3).click()


def _languages(page: Page) -> None:
    page.get_by_label("Colour all chunks by language").check()


def _card(page: Page) -> None:
    page.locator(".map-hit").nth(4).click()


def _hits(page: Page) -> None:
    page.locator("#zoom-hits").click()


def _edit(page: Page) -> None:
    page.get_by_role("button", name="Remove task code").click()
    page.locator(".task").nth(1).select_option(label="own words…")
    page.get_by_label("Instruction of task 2").press("Control+End")


def _busy(page: Page) -> None:
    error = {"message": "the server is busy: try again in 30 s", "type": "", "param": None, "code": None}
    page.route(
        "**/search",
        lambda route: route.fulfill(status=429, headers={"Retry-After": "30"}, json={"error": error}),
    )
    page.locator("#query").press("Enter")
    page.get_by_text("asking again in").wait_for()


def _gone(page: Page) -> None:
    page.route("**/search", lambda route: route.abort())
    page.locator("#query").press("Enter")
    page.get_by_text("The server does not answer").wait_for()


def _no_map(page: Page) -> None:
    told = {"index": "corpus", "generation": 1, "status": "unavailable", "stale": False, "computing": False,
            "message": "this server was installed without what lays out a map", "chunks": 313, "points": None}  # fmt: skip
    page.route("**/map?**", lambda route: route.fulfill(json=told))
    page.reload()
    page.locator("#map-message").wait_for()


def _api(page: Page) -> None:
    page.goto(re.sub(r"/\?.*", "/docs", page.url))
    page.locator(".opblock").first.wait_for()


# Name, the tasks, what is done before the picture, and the address and the browser of the state.
STATES: tuple[tuple[str, tuple[str, ...], Callable[[Page], None], dict[str, Any]], ...] = (
    ("page", THREE, _second, {"q": QUERY}),
    ("empty", (), _none, {}),
    ("details", THREE, _open, {"q": QUERY}),
    ("filter", ("qa", "code"), _none, {"q": QUERY, "lang": "de", "where": 'kind = "passage"'}),
    ("own-words", ("qa",), _none, {"q": QUERY, "ask": "Given a question, retrieve shell scripts"}),
    ("words-alone", ("qa",), _none, {"q": "git commit", "mode": "lexical"}),
    ("eight", ("qa", "duplicate", "bitext", "code", "topic", "paraphrase", "search", "fact-check"), _none, {"q": QUERY}),
    ("no-hits", ("qa", "code"), _none, {"q": QUERY, "where": 'kind = "nothing"'}),
    ("error-filter", ("qa",), _none, {"q": QUERY, "where": "kind >"}),
    ("error-task", ("qa", "qaa"), _none, {"q": QUERY}),
    ("busy", THREE, _busy, {"q": QUERY}),
    ("gone", THREE, _gone, {"q": QUERY}),
    ("dark", THREE, _second, {"q": QUERY, "dark": True}),
    ("right-to-left", ("qa", "bitext"), _second, {"q": ARABIC, "lang": "ar"}),
    ("map", THREE, _languages, {"q": QUERY, "view": "map", "dark": True}),
    ("map-light", THREE, _hits, {"q": QUERY, "view": "map"}),
    ("map-card", THREE, _card, {"q": QUERY, "view": "map"}),
    ("map-tasks", THREE, _edit, {"q": QUERY, "view": "map"}),
    ("map-empty", THREE, _none, {"view": "map"}),
    ("map-missing", THREE, _no_map, {"q": QUERY, "view": "map"}),
    ("phone", THREE, _none, {"q": QUERY, "phone": True}),
    ("phone-dark", THREE, _open, {"q": QUERY, "phone": True, "dark": True}),
    ("phone-map", THREE, _none, {"q": QUERY, "phone": True, "view": "map"}),
    ("api", (), _api, {}),
)  # fmt: skip


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the pictures go, as PNG")
    parser.add_argument(
        "--docs", action="store_true", help="write docs/images/page.webp and map.webp as well"
    )
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work, _browser() as browser:
        index = Path(work, "corpus")
        source = REPOSITORY / "examples" / "corpus" / "corpus.jsonl"
        subprocess.run([*COMMAND, "index", str(source), "-o", str(index)], check=True)
        with _server(index) as url:
            for name, tasks, act, state in STATES:
                _take(browser, url, args.folder / f"{name}.png", tasks, act, **state)
        with _server(index, EMBEDKIT_API_KEY="sesame") as url:
            _take(
                browser, url, args.folder / "key.png", (), lambda page: page.get_by_role("dialog").wait_for()
            )
    if args.docs:
        _write_docs(args.folder)


def _take(
    browser: Browser, url: str, file: Path, tasks: tuple[str, ...], act: Callable[[Page], None], *,
    dark: bool = False, phone: bool = False, **address: str,
) -> None:  # fmt: skip
    width, height = (390, 844) if phone else (1360, 900)
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", has_touch=phone,
        is_mobile=phone, reduced_motion="reduce",
    )  # fmt: skip
    page = context.new_page()
    page.goto(f"{url}/?{urlencode([*address.items(), *(('task', name) for name in tasks)])}")
    page.wait_for_load_state("networkidle")
    if address.get("view") == "map":
        page.locator("#map[data-status=ready]").wait_for(timeout=120_000)
        page.wait_for_load_state("networkidle")
    act(page)
    # Two requests a search, and a frame to draw what they brought.
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(300)
    page.screenshot(path=file)
    print(file)
    context.close()


@contextmanager
def _browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        sys.exit("no Chromium is installed: scripts/install_browser.sh installs it on Debian")
    # Chromium's sandbox does not start for root.
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"] if root else [])
        yield browser
        browser.close()


@contextmanager
def _server(index: Path, **environment: str) -> Iterator[str]:
    command = [*COMMAND, "serve", str(index), "--port", "0"]
    with subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"http://\S+:\d+", line)
            if found is None:
                sys.exit(f"the server did not start: {line}")
            yield found[0]
        finally:
            process.terminate()


def _write_docs(folder: Path) -> None:
    from PIL import Image

    for name in ("page", "map"):
        picture = Image.open(folder / f"{name}.png")
        smaller = picture.resize((picture.width * 3 // 4, picture.height * 3 // 4), Image.Resampling.LANCZOS)
        smaller.save(REPOSITORY / "docs" / "images" / f"{name}.webp", quality=88, method=6)


if __name__ == "__main__":
    main()
