"""`--dim`: an index of cut vectors is told of once, remembered, and never mixed with full ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from embedkit import get_embedder
from embedkit.errors import FingerprintError
from embedkit_indexes import Index
from tests.cli.conftest import Invoke


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two documents."""
    path = tmp_path / "corpus.jsonl"
    path.write_text(
        '{"_id": "moon", "text": "The moon pulls the tides."}\n{"_id": "bread", "text": "Bread needs time."}\n'
    )
    return path


def test_an_index_remembers_the_dim(invoke: Invoke, corpus: Path, tmp_path: Path) -> None:
    """Building warns of a length that the bundled model does not list; a search needs no option and is quiet."""
    built = invoke("index", corpus, "-o", tmp_path / "i", "--embedder", "bundled", "--dim", "100")
    assert built.exit_code == 0, built.stderr
    assert "first 100 of 384 numbers" in built.stderr
    found = invoke("search", tmp_path / "i", "why does the sea rise?", "-k", "1", "--json")
    assert found.exit_code == 0 and found.stderr == ""
    assert json.loads(found.stdout)["hits"][0]["document_id"] == "moon"
    assert "100 of 384 dimensions" in " ".join(invoke("info", tmp_path / "i").stdout.split())
    assert "100 of 384 dimensions" in " ".join(invoke("explain", tmp_path / "i", "sea").stdout.split())
    assert json.loads(invoke("info", tmp_path / "i", "--json").stdout)["options"] == {"dim": 100}
    with pytest.raises(FingerprintError, match=r"\(100 dimensions, ek1:\w+\), this is .* \(384 dimensions"):
        Index.open(tmp_path / "i", get_embedder("bundled"))


@pytest.mark.parametrize(
    "wrong",
    [
        ("--dim", "0"),
        ("--dim", "-1"),
        ("--dim", "many"),
        ("--dim", "385"),
        ("--embedder-option", "dim=0"),
        ("--embedder-option", "dim=many"),
        ("--embedder-option", "dim=12.5"),
    ],
)
def test_what_is_no_dim_is_refused(run: Any, corpus: Path, tmp_path: Path, wrong: tuple[str, str]) -> None:
    """One sentence that names the value, exit code 2, and no index."""
    done = run("index", corpus, "-o", tmp_path / "i", *wrong)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and wrong[1].rpartition("=")[2] in done.stderr
    assert not (tmp_path / "i").exists()
