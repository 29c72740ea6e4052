"""The demo and the repository, as a newcomer meets them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_demo_shows_the_switch(tmp_path: Path) -> None:
    """`make demo`'s script runs to its end; under another task the same query's first hit is another kind of document."""
    done = subprocess.run(
        ["sh", str(ROOT / "examples" / "demo.sh")], capture_output=True, text=True, check=False,
        env={
            **os.environ, "EMBEDKIT": str(Path(sys.executable).parent / "embedkit"),
            "DEMO_INDEX": str(tmp_path / "index"), "COLUMNS": "80", "PYTHONUTF8": "1",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    leap = done.stdout.split("leap year or not?", 1)[1].split("A stable sort", 1)[0]
    first = re.findall(r"^ 1  [\d.]+  .*(leap-years-\d+)", leap, flags=re.MULTILINE)
    assert first == ["leap-years-12", "leap-years-08", "leap-years-06"], "an answer, the same question, code"
    assert "task code" in done.stdout


def test_the_repository_stays_small() -> None:
    """All tracked files together stay under 48 MiB."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no git checkout: nothing says which files are tracked")
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    size = sum((ROOT / n).stat().st_size for n in names if n and (ROOT / n).is_file())
    assert 20 * 2**20 < size < 48 * 2**20
