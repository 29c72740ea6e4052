"""A server that answers everything rightly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainer.synthesis.scripted import Scripted, scripted


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Scripted]:
    """A scripted server without faults."""
    with scripted(tmp_path) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
