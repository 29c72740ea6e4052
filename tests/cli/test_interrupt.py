"""Ctrl-C while `embedkit index` runs: one line, exit code 2, and what was stored stays searchable."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import SAMPLE, Run

_PLUG_IN = '''
import pathlib, time
import numpy as np
from embedkit import Embedder, EmbedderInfo

class Slow(Embedder):
    """Take a tenth of a second a batch, leave a mark that embedding has begun, and stand still after so many texts."""

    info = EmbedderInfo(name="slow", dim=8, max_length=64, pooling="none", weights="slow")
    window = 8

    def __init__(self, mark="", seconds=0.1, most=1e9):
        self.mark, self.seconds, self.left = mark, seconds, most

    @classmethod
    def open(cls, name, mark="", seconds=0.1, most=1e9):
        return cls(mark, seconds, most)

    def _embed(self, texts):
        self.left -= len(texts)
        if self.left < 0:
            time.sleep(600)
        if self.mark and len(texts) > 1:
            pathlib.Path(self.mark).touch()
            time.sleep(self.seconds)
        return np.array([[len(t), *np.frombuffer(t.encode()[:7].ljust(7), np.uint8)] for t in texts], float)
'''


@pytest.fixture
def plug_in(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH with an installed embedder plug-in called `slow`."""
    folder = tmp_path / "site"
    (folder / "slow-1.0.dist-info").mkdir(parents=True)
    (folder / "slow-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: slow\nVersion: 1.0\n"
    )
    (folder / "slow-1.0.dist-info" / "entry_points.txt").write_text(
        "[embedkit.embedders]\nslow = slow_plug_in:Slow\n"
    )
    (folder / "slow_plug_in.py").write_text(_PLUG_IN)
    return folder


def _await(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


def _start(plug_in: Path, *arguments: object, **options: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "from embedkit_cli.main import main; main()", *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(plug_in)}
    return subprocess.Popen(command, env=env, **options)  # type: ignore[call-overload,no-any-return]


def test_interrupting_a_build_keeps_the_index_that_was_there(run: Run, plug_in: Path, tmp_path: Path) -> None:
    """SIGINT in mid-embedding: exit code 2, one line, no traceback; the old index answers as before."""
    env = {"PYTHONPATH": str(plug_in)}
    (tmp_path / "one.jsonl").write_text('{"_id": "old", "text": "the first version"}\n')
    first = run("index", tmp_path / "one.jsonl", "-o", tmp_path / "i", "--embedder", "slow", env=env)
    assert first.returncode == 0, first.stderr
    mark = tmp_path / "embedding"
    process = _start(
        plug_in, "index", SAMPLE / "corpus.jsonl", "-o", tmp_path / "i", "--force", "--embedder", "slow",
        "--embedder-option", f"mark={mark}", stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    _await(mark.exists)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (2, b"")
    assert (
        stderr.decode().strip() == "interrupted: nothing that was stored is lost; run the same command again"
    )
    found = run("search", tmp_path / "i", "anything", "--json", env=env)
    assert [h["document_id"] for h in json.loads(found.stdout)["hits"]] == ["old"], found.stderr


def test_an_interrupted_first_build_can_be_run_again(run: Run, plug_in: Path, tmp_path: Path) -> None:
    """After SIGINT in the first build there is no index, and the same command builds it without --force."""
    mark = tmp_path / "embedding"
    build = ["index", SAMPLE / "corpus.jsonl", "-o", tmp_path / "i", "--embedder", "slow"]
    process = _start(plug_in, *build, "--embedder-option", f"mark={mark}", stderr=subprocess.PIPE)
    _await(mark.exists)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 2
    env = {"PYTHONPATH": str(plug_in)}
    assert run("info", tmp_path / "i", env=env).returncode == 2
    again = run(*build, "--json", env=env)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["documents"] == 313


def test_a_killed_build_goes_on_where_it_was(run: Run, plug_in: Path, tmp_path: Path) -> None:
    """After SIGKILL in mid-embedding the same command takes over what was embedded, and says how much."""
    lines = (json.dumps({"_id": str(i), "text": f"{i} is a number", "lang": "en"}) for i in range(5000))
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    build = ["index", tmp_path / "c.jsonl", "-o", tmp_path / "i", "--embedder", "slow"]
    process = _start(plug_in, *build, "--embedder-option", "most=4000")
    _await(lambda: any((tmp_path / "i").glob("embedding-*/*.shard")))
    process.kill()
    process.wait(60)
    assert not (tmp_path / "i" / "embedkit.json").exists()
    again = run(*build, env={"PYTHONPATH": str(plug_in)})
    assert again.returncode == 0, again.stderr
    told = re.search(
        r"^reused ([0-9,]+) of 5,000 chunks: their vectors were there already$", again.stdout, re.M
    )
    assert told and 2000 < int(told[1].replace(",", "")) < 5000
    env = {"PYTHONPATH": str(plug_in)}
    assert run("verify", tmp_path / "i", env=env).returncode == 0
    assert not list((tmp_path / "i").glob("embedding-*"))


def test_a_terminal_sees_progress(
    plug_in: Path, tmp_path: Path, read_terminal: Callable[[int], bytes]
) -> None:
    """On a terminal stderr shows documents, a rate and the time left while the build runs."""
    ours, theirs = pty.openpty()
    process = _start(
        plug_in, "index", SAMPLE / "corpus.jsonl", "-o", tmp_path / "i", "--embedder", "slow", "--embedder-option",
        f"mark={tmp_path / 'm'}", "--embedder-option", "seconds=0.03", stdout=subprocess.PIPE, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    seen = read_terminal(ours)
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"313 documents" in stdout
    assert b"documents, " in seen and b"/s" in seen and b"left" in seen
