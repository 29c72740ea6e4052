"""What docs/server.md shows works against a real server, and its tables tell the limits that hold."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from embedkit_cli.server.config import Limits
from tests.cli.server.conftest import Start, embedkit
from tests.docs.test_docs import REPOSITORY, blocks

PAGE = "docs/server.md"


def test_the_blocks_run(start: Start, environment: dict[str, str], tmp_path: Path) -> None:
    """Every block without `no-run` ends with exit code 0 against a server of an index of the bundled embedder."""
    pytest.importorskip("openai")
    (tmp_path / "plans.md").write_text("# Plans\n\nYou can cancel your plan at any time, in the settings.\n")
    embedkit(environment, "index", tmp_path / "plans.md", "-o", tmp_path / "docs.index")
    server = start(tmp_path / "docs.index")
    runnable = [b for b in blocks(PAGE) if b.reason is None]
    assert len(runnable) == 3
    for block in runnable:
        code = block.code.replace("http://127.0.0.1:8000", server.url)
        command = ["sh", "-eu", "-c", code] if block.language == "sh" else [sys.executable, "-c", code]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{PAGE}, line {block.line}: {done.stdout}\n{done.stderr}"
        assert '"error"' not in done.stdout


def test_the_readme_serves(start: Start, environment: dict[str, str], tmp_path: Path) -> None:
    """The README's line serves an index from the command line, with a page at `/`, and its search answers under both tasks."""
    shown = [b.code for b in blocks("README.md") if b.section == "See it, serve it"]
    serve, ask = shown
    words = serve.partition("#")[0].split()
    assert words == ["embedkit", "serve", "my-index"]
    (tmp_path / "plans.md").write_text("# Plans\n\nYou can cancel your plan at any time, in the settings.\n")
    embedkit(environment, "index", tmp_path / "plans.md", "-o", tmp_path / words[-1])
    server = start(tmp_path / words[-1])
    assert b"<html" in server.get("/").body
    command = ["sh", "-eu", "-c", ask.replace("http://127.0.0.1:8000", server.url)]
    answer = json.loads(
        subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    )
    assert [result["task"] for result in answer["results"]] == ["qa", "duplicate"]
    assert all(result["hits"][0]["title"] == "Plans" for result in answer["results"])


def test_the_limits_are_those_that_hold() -> None:
    """The numbers of the section Load are the defaults of `Limits`."""
    text = (REPOSITORY / PAGE).read_text(encoding="utf-8").partition("## Load")[2]
    limits = Limits()
    shown = [
        int(n.replace(",", ""))
        for n in re.findall(r"[0-9][0-9,]*", text.partition("| limit")[2].partition("SIGTERM")[0])
    ]
    for number in (
        limits.queue, limits.queue_characters, limits.searches, int(limits.request_timeout), limits.body // 10**6, limits.header_bytes // 1024,
        limits.texts, limits.text_characters, int(limits.body_timeout), int(limits.header_timeout), limits.connections,
    ):  # fmt: skip
        assert number in shown
