"""What a row becomes before tokens: its rendered strings, its instruction, and the keys that tell texts apart."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from embedkit.contract import Template
from embedkit_trainer.data.rows import Row


@dataclass(frozen=True)
class TokenizerPair:
    """Hold what turns rendered strings into token ids on each side, and the template that renders them.

    `query` and `document` return ids of each text, special tokens included and cut at `query_length` and
    `document_length` (None: the callable's own `max_length`, where it has one). `key` stands for all that decides
    the ids: a cached store is found by it.
    """

    query: Callable[[Sequence[str]], list[list[int]]]
    document: Callable[[Sequence[str]], list[list[int]]]
    template: Template
    key: str
    query_length: int | None = None
    document_length: int | None = None

    def limits(self) -> tuple[int | None, int | None]:
        """Return the longest query and the longest document in tokens, None where not known."""
        return (
            self.query_length or getattr(self.query, "max_length", None),
            self.document_length or getattr(self.document, "max_length", None),
        )


@dataclass(frozen=True, slots=True)
class Rendered:
    """Hold the exact strings that are encoded for a row: its query, and its positive before its negatives."""

    query: str
    documents: tuple[str, ...]
    instruction: str | None


def render(
    row: Row, template: Template, instructions: Sequence[str] = (), instruction_dropout: float = 0.0
) -> Rendered:
    """Render a row: a pure function of the row's content, the same in every epoch, process and order of rows.

    The instruction is the row's own, else one of `instructions`, drawn by a hash of the query, so that rows which
    share a query ask for the same, and their positives are not taken for negatives of one another; the share
    `instruction_dropout` of the queries, drawn likewise, goes without: the model also learns the bare query.
    """
    instruction = row.instruction
    if (instruction is None and instructions) or instruction_dropout:
        pick, drop = _draws(row.query)
        if instruction is None and instructions:
            instruction = instructions[pick % len(instructions)]
        if drop < instruction_dropout:
            instruction = None
    return Rendered(
        query=template.render_query(row.query, instruction),
        documents=tuple(template.render_document(t) for t in (row.positive, *row.negatives)),
        instruction=instruction,
    )


def _draws(query: str) -> tuple[int, float]:
    """Return 64 random bits and a uniform number in [0, 1), both of the query."""
    digest = blake2b(query.encode(), digest_size=16, person=b"instruction").digest()
    return int.from_bytes(digest[:8], "big"), (int.from_bytes(digest[8:], "big") >> 11) / (1 << 53)


def text_key(text: str) -> int:
    """Return a hash of the text in 1 ... 2^63 - 1, equal for texts that differ in white space or Unicode form alone."""
    return _hash(" ".join(unicodedata.normalize("NFC", text).split()))


def id_key(identity: str | None, source: str) -> int:
    """Return a hash of an id within its source, 0 for none; two sources' ids never meet."""
    return 0 if identity is None else _hash(f"{source}\0{identity}")


def _hash(text: str) -> int:
    return (int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1) or 1
