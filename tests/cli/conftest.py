"""A word-vector embedder and an index of the sample corpus, and the command as a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

REPOSITORY = Path(__file__).resolve().parents[2]
SAMPLE = REPOSITORY / "examples" / "corpus"
Run = Callable[..., subprocess.CompletedProcess[str]]
Invoke = Callable[..., Result]


@pytest.fixture(autouse=True)
def _own_settings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDKIT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    for name in ("EMBEDKIT_TASKS", "EMBEDKIT_DEBUG", "COLUMNS", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GloVe file with a seeded random vector for every word of the sample corpus."""
    text = (SAMPLE / "corpus.jsonl").read_text(encoding="utf-8").lower()
    vocabulary = sorted(set(re.findall(r"[^\W_]+", text)))
    vectors = np.random.default_rng(7).standard_normal((len(vocabulary), 32))
    path = tmp_path_factory.mktemp("embedder") / "words.txt"
    rows = (f"{w} {' '.join(f'{x:.4f}' for x in v)}\n" for w, v in zip(vocabulary, vectors, strict=True))
    path.write_text("".join(rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def sample_index(tmp_path_factory: pytest.TempPathFactory, words: Path) -> Path:
    """An index of the sample corpus with two tasks of its own; no test writes to it."""
    folder = tmp_path_factory.mktemp("sample")
    tasks = '[qa]\ninstruction = "The index\'s own qa"\n[recipe]\ninstruction = "Find the recipe"\n'
    (folder / "tasks.toml").write_text(tasks)
    done = _run(
        "index", SAMPLE / "corpus.jsonl", "-o", folder / "index", "--embedder", words, "--tasks", folder / "tasks.toml",
        env={"EMBEDKIT_CACHE": str(tmp_path_factory.getbasetemp() / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "index"


@pytest.fixture
def read_terminal() -> Callable[[int], bytes]:
    """Return a function that reads our end of a pseudo-terminal until the other is closed, and closes it."""

    def read(ours: int) -> bytes:
        seen = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the terminal's other end is closed
                break
            if not part:
                break
            seen += part
        os.close(ours)
        return seen

    return read


@pytest.fixture
def run() -> Run:
    """Return a function that runs `embedkit` as a process."""
    return _run


@pytest.fixture
def invoke() -> Invoke:
    """Return a function that runs `embedkit` in this process."""
    from embedkit_cli.main import cli

    def call(*arguments: Any, **options: Any) -> Result:
        return CliRunner().invoke(cli, [str(a) for a in arguments], **options)

    return call


def _run(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONIOENCODING": "utf-8", **options.pop("env", {})}
    command = [sys.executable, "-c", "from embedkit_cli.main import main; main()", *map(str, arguments)]
    options = {"capture_output": True, "text": True, "timeout": 400, "encoding": "utf-8", **options}
    return subprocess.run(command, env=env, check=False, **options)
