"""A tiny tokenizer's ids as a token store takes them, with a count of the texts that were tokenised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from embedkit.contract import Template
from embedkit.embedders.tokens import TokenBuilder, build_tokens, load_tokenizer
from embedkit_trainer.data.rendering import TokenizerPair
from tests.embedkit.tiny_models import LLAMA, save_tokenizer


@dataclass
class Counting:
    """Tokenise, and remember every text."""

    tokens: TokenBuilder
    seen: list[str] = field(default_factory=list)

    @property
    def max_length(self) -> int:
        """The longest sequence, as the builder has it."""
        return self.tokens.max_length

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text."""
        self.seen.extend(texts)
        return self.tokens(texts)


def tiny_pair(
    folder: Path, template: Template | None = None, query_length: int = 24, document_length: int = 32
) -> tuple[TokenizerPair, Counting, Counting]:
    """Return the pair for a tokenizer saved in `folder`, and its two counting sides."""
    if not (folder / "tokenizer.json").exists():
        save_tokenizer(folder, LLAMA)
    loaded = load_tokenizer(folder, False)
    sides = [
        Counting(build_tokens(loaded, bos=None, eos="eos", last=True, max_length=n))
        for n in (query_length, document_length)
    ]
    return TokenizerPair(sides[0], sides[1], template or Template(), "tiny"), sides[0], sides[1]
