"""A source's store: which instructions its queries get, and what its path may name."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedkit_trainer.config.records import SourceConfig
from embedkit_trainer.config.tiny import sample_path
from embedkit_trainer.data.formats.registry import get_format
from embedkit_trainer.data.sources import open_store
from tests.trainer.tiny_tokens import tiny_pair


@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, set(get_format("nli").instructions)), ((), {None}), (("Find it",), {"Find it"})],
)
def test_instructions_of_a_source(
    tmp_path: Path, given: tuple[str, ...] | None, expected: set[str | None]
) -> None:
    """A source that says nothing has its format's instructions, an empty list means none, and its own go first."""
    pair, _, _ = tiny_pair(tmp_path)
    source = SourceConfig(path=str(sample_path("nli")), format="nli", instructions=given)
    store = open_store(source, pair, tmp_path / "cache")
    found = {store.texts(i).instruction for i in range(len(store))}
    assert found == expected
    assert store.counts.instructed == (0 if given == () else len(store))
