"""What commands say beside their results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from embedkit import Embedder, EmbedderInfo
from embedkit_cli.output import truncated_note


class Small(Embedder):
    """Read eight tokens, words and two special ones."""

    info = EmbedderInfo("small", 2, 8, "mean", "w", instruction_trained=True)

    def _embed(self, texts: Sequence[str]) -> Any:
        return [[1, 0] for _ in texts]

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count words."""
        return [2 + len(text.split()) for text in texts]


@pytest.mark.parametrize(
    ("query", "instruction", "said"),
    [
        ("a b c d e f", None, None),
        ("a b c d e f g h", None, "the query is 2 tokens too long for small: its end was not encoded"),
        ("a b c d e f g", "x", "the query is 4 tokens too long for small: its end was not encoded"),
        (
            "a b c d",
            "x x",
            "the instruction leaves 2 of the 8 tokens that small reads, 2 too few for the query: its end was not "
            "encoded; shorten the instruction",
        ),
        ("a", "x x x x x", None),
    ],
)
def test_the_note_blames_what_is_too_long(query: str, instruction: str | None, said: str | None) -> None:
    """A query that does not fit alone is too long itself, else its instruction is; a warning tells of no room at all."""
    embedder = Small()
    cut = embedder.count_tokens([embedder.info.template.render_query(query, instruction)])[0] - 8
    assert truncated_note(embedder, query, instruction, max(0, cut)) == said
