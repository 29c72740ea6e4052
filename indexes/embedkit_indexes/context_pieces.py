"""Chunks found as pieces of their documents, and neighbouring pieces joined to one text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from embedkit.errors import InputError
from embedkit_indexes.context_blocks import AlsoIn, Block
from embedkit_indexes.results import late_hits, own_text, shown_metadata
from embedkit_indexes.segment_format import NODE_CONTENT
from embedkit_indexes.snapshot import Ranking

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embedkit_indexes.results import SearchHit

# Of a chunk that was not found itself, but stands beside one that was.
_NOT_FOUND = 1 << 60


@dataclass(frozen=True)
class Piece:
    """A chunk without what was put before it to be embedded.

    `rank` is its place among what was found, from 0. `start` and `end` are None where its place in the document is not
    known. `name` is what the chunk is called within its document, and `next_name` what the following one is.
    """

    document: tuple[str, str]
    name: int | str
    next_name: int | str | None
    text: str
    start: int | None
    end: int | None
    rank: int
    score: float
    title: str
    heading: str
    source: str
    lang: str
    chunk_id: int | str
    metadata: Mapping[str, Any]
    also_in: tuple[AlsoIn, ...] = ()

    @property
    def found(self) -> bool:
        """Whether it was found itself, not taken in as a neighbour."""
        return self.rank < _NOT_FOUND

    @property
    def place(self) -> AlsoIn:
        """Where it stands, to be named at another piece with the same text."""
        return AlsoIn(self.document[1], self.title, self.source, self.start, self.end, True)


def piece_of(hit: SearchHit, rank: int) -> Piece:
    """Return a hit as a piece; a node that LlamaIndex stored is a piece of the document that it was made of."""
    score = hit.score if hit.rerank_score is None else hit.rerank_score
    content = hit.metadata.get(NODE_CONTENT)
    if isinstance(content, str):
        return _piece_of_node(hit, json.loads(content), rank, score)
    text, heading, known = hit.text, "", False
    if 0 < (length := hit.end - hit.start) <= len(text):
        before = text[: len(text) - length]
        # Title and headings are one line before the document's own text.
        known = not before or (before.endswith("\n") and "\n" not in before[:-1])
        if known:
            text, heading = text[len(before) :], before[:-1]
    return Piece(
        (hit.index, hit.document_id), hit.position, hit.position + 1, text,
        hit.start if known else None, hit.end if known else None, rank, score, hit.title, heading, hit.source,
        hit.lang, hit.chunk_id, shown_metadata(hit.metadata),
    )  # fmt: skip


def _piece_of_node(hit: SearchHit, record: Mapping[str, Any], rank: int, score: float) -> Piece:
    text = own_text(hit)
    start, end = record.get("start_char_idx"), record.get("end_char_idx")
    known = isinstance(start, int) and isinstance(end, int) and end - start == len(text)
    related = record.get("relationships") or {}
    source, after = (related.get(kind) for kind in ("1", "3"))  # NodeRelationship.SOURCE and NEXT
    document = source["node_id"] if isinstance(source, dict) else hit.document_id
    return Piece(
        (hit.index, document), hit.document_id, after["node_id"] if isinstance(after, dict) else None, text,
        start if known else None, end if known else None, rank, score, hit.title, "", hit.source, hit.lang,
        hit.chunk_id, shown_metadata(hit.metadata),
    )  # fmt: skip


def neighbours(hit: SearchHit, count: int) -> list[Piece]:
    """Return up to `count` chunks before and after a hit in its document. Raises InputError for a copied hit."""
    cells, row = getattr(hit, "_cells", None), getattr(hit, "_row", -1)
    if cells is None:
        raise InputError("expand needs hits as a search returned them: these are copies, read from elsewhere")
    rows = []
    for step in (-1, 1):
        for at in range(row + step, row + step * (count + 1), step):
            if not 0 <= at < len(cells) or cells.cell(at, "document_id") != hit.document_id:
                break
            rows.append(at)
    places = [(cells, at, hit.index) for at in rows]
    beside = late_hits(Ranking([0.0] * len(rows), rows), places, {}, {})
    return [piece_of(other, _NOT_FOUND) for other in beside]


@dataclass(frozen=True)
class Run:
    """Pieces of one document that follow each other."""

    pieces: tuple[Piece, ...]
    parts: tuple[tuple[int, str, str], ...] = field(default=(), compare=False)
    """Where each part begins in the document, what stands between it and the last one, and its text."""

    @property
    def best(self) -> Piece:
        """The piece that was found first."""
        return min(self.pieces, key=lambda p: p.rank)

    @cached_property
    def text(self) -> str:
        """The text of all pieces, what they share once."""
        return "".join(gap + text for _, gap, text in self.parts)

    def block(self, number: int = 0, length: int | None = None) -> Block:
        """Return it as a block, or its first `length` characters."""
        best, first = self.best, self.pieces[0]
        known = first.start is not None
        text = self.text if length is None else self.text[:length].rstrip()
        also = dict.fromkeys(place for piece in self.pieces for place in piece.also_in)
        return Block(
            number, text, best.document[1], best.title, first.heading, best.source, first.start if known else None,
            self._end(len(text)) if known else None, best.lang, best.score,
            tuple(p.chunk_id for p in self.pieces), best.document[0], best.metadata, tuple(also),
            cut=length is not None and len(text) < len(self.text),
        )  # fmt: skip

    def _end(self, length: int) -> int:
        """Return the character of the document at which the first `length` characters of the text end."""
        end = at = 0
        for start, gap, text in self.parts:
            at += len(gap)
            if length <= at and at:
                break
            end = start + min(len(text), length - at)
            at += len(text)
        return end


def joined(pieces: Iterable[Piece]) -> list[Run]:
    """Return the pieces of a document as runs, in reading order; those without a place each alone, at the end."""
    known = [p for p in pieces if p.start is not None]
    runs: list[Run] = []
    tail: Piece | None = None
    for piece in sorted(known, key=lambda p: (p.start or 0, -(p.end or 0))):
        part = None if tail is None else _continued(tail, runs[-1].pieces[-1], piece)
        if part is None:
            runs.append(Run((piece,), ((piece.start or 0, "", piece.text),)))
            tail = piece
            continue
        last = runs[-1]
        runs[-1] = Run((*last.pieces, piece), (*last.parts, part) if part[2] else last.parts)
        if tail is None or (piece.end or 0) > (tail.end or 0):
            tail = piece
    alone = [Run((p,), ((0, "", p.text),)) for p in pieces if p.start is None]
    return runs + alone


def _continued(tail: Piece, last: Piece, piece: Piece) -> tuple[int, str, str] | None:
    """Return the part that a piece adds to a run, whose text ends with `tail`'s; None where it does not go on."""
    start, end, done, first = piece.start or 0, piece.end or 0, tail.end or 0, tail.start or 0
    if start < done:
        shared = min(end, done) - start
        # Of two versions of a document, places mean nothing.
        if tail.text[start - first : start - first + shared] != piece.text[:shared]:
            return None
        return start + shared, "", piece.text[shared:]
    if start == done:
        return start, "", piece.text
    if piece.name not in (tail.next_name, last.next_name):
        return None
    # Between two chunks lies white space alone, which is stored in neither.
    return start, "\n" if start - done == 1 else "\n\n", piece.text


def unique(pieces: Sequence[Piece]) -> list[Piece]:
    """Return each chunk once, as it was found best, in the order given."""
    kept: dict[tuple[tuple[str, str], int | str, int | str], Piece] = {}
    for piece in pieces:
        key = (piece.document, piece.name, piece.chunk_id)
        if key not in kept or piece.rank < kept[key].rank:
            kept[key] = piece
    return list(kept.values())
