"""Chunks found as pieces of their documents, and neighbouring pieces joined to one text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from embedkit.errors import InputError
from embedkit_indexes.context_blocks import AlsoIn, Block
from embedkit_indexes.results import late_hits, own_text, place_of, shown_metadata
from embedkit_indexes.segment_format import NODE_CONTENT
from embedkit_indexes.snapshot import Ranking

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embedkit_indexes.results import SearchHit

# Of a chunk that was not found itself, but stands beside one that was.
_NOT_FOUND = 1 << 60
# Characters between two pieces that follow each other that are white space, where nothing tells what lies there.
_LEAST_GAP = 2
# White space between two pieces beyond which it becomes a blank line.
_MOST_GAP = 64


@dataclass(frozen=True)
class Piece:
    """A chunk without what was put before it to be embedded.

    `document` tells its index and version too, of which `index` is the index alone. `rank` is its place among what was
    found, from 0. `start` and `end` are None where its place in the document is not known. `name` is what the chunk is
    called within its document, and `next_name` what the following one is. `lead` is the white space before it, None
    where that is not known.
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
    index: str = ""
    lead: str | None = None

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
    cells, _ = place_of(hit)
    # Within a segment, and from the first to the last id of its chunks, a document has one version.
    version = cells.folder.name if cells else hit.chunk_id - hit.position if hit.chunk_id >= 0 else ""
    index = _index(hit)
    return Piece(
        (f"{index}\n{version}", hit.document_id), hit.position, hit.position + 1, text,
        hit.start if known else None, hit.end if known else None, rank, score, hit.title, heading, hit.source,
        hit.lang, hit.chunk_id, shown_metadata(hit.metadata), (), index, hit.lead if known else None,
    )  # fmt: skip


def _index(hit: SearchHit) -> str:
    """Return the directory of a hit's index; of a copy what it says itself."""
    cells, _ = place_of(hit)
    return hit.index if cells is None else str(cells.folder.parent.absolute())


def _piece_of_node(hit: SearchHit, record: Mapping[str, Any], rank: int, score: float) -> Piece:
    text = own_text(hit)
    start, end = record.get("start_char_idx"), record.get("end_char_idx")
    known = isinstance(start, int) and isinstance(end, int) and end - start == len(text)
    related = record.get("relationships") or {}
    source, after = (related.get(kind) for kind in ("1", "3"))  # NodeRelationship.SOURCE and NEXT
    document = source["node_id"] if isinstance(source, dict) else hit.document_id
    index = _index(hit)
    return Piece(
        (index, document), hit.document_id, after["node_id"] if isinstance(after, dict) else None, text,
        start if known else None, end if known else None, rank, score, hit.title, "", hit.source, hit.lang,
        hit.chunk_id, shown_metadata(hit.metadata), (), index,
    )  # fmt: skip


def neighbours(hits: Sequence[SearchHit], count: int) -> list[Piece]:
    """Return up to `count` chunks before and after each hit in its document, once. Raises InputError for copied hits."""
    known = {place_of(hit) for hit in hits}
    places = []
    for hit in hits:
        cells, row = place_of(hit)
        if cells is None:
            raise InputError(
                "expand needs hits as a search returned them: these are copies, read from elsewhere"
            )
        for step in (-1, 1):
            for at in range(row + step, row + step * (count + 1), step):
                if not 0 <= at < len(cells) or cells.cell(at, "document_id") != hit.document_id:
                    break
                if (cells, at) not in known:
                    known.add((cells, at))
                    places.append((cells, at, hit.index))
    rows = list(range(len(places)))
    return [
        piece_of(other, _NOT_FOUND) for other in late_hits(Ranking([0.0] * len(rows), rows), places, {}, {})
    ]


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
            number, text, best.document[1], best.title, first.heading, best.source,
            (first.start or 0) - len(self.parts[0][1]) if known else None,
            self._end(len(text)) if known else None, best.lang, best.score,
            tuple(p.chunk_id for p in self.pieces), best.index, best.metadata, tuple(also),
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
            runs.append(Run((piece,), ((piece.start or 0, _indent(piece.lead), piece.text),)))
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
        # Of two versions of a document, places mean nothing, and of nodes the version is not known.
        if tail.text[start - first : start - first + shared] != piece.text[:shared]:
            return None
        return start + shared, "", piece.text[shared:]
    follows, gap = piece.name in (tail.next_name, last.next_name), start - done
    if not gap:
        return (start, "", piece.text) if follows or isinstance(piece.name, int) else None
    if piece.lead is None:
        return (start, "\n" * gap, piece.text) if follows and gap <= _LEAST_GAP else None
    if gap > len(piece.lead):
        return None
    white = piece.lead[-gap:]
    if gap > _MOST_GAP:
        white = min(white, f"\n\n{_indent(white)}", key=len)
    return start, white, piece.text


def _indent(lead: str | None) -> str:
    """Return what stands before the text on its line, "" where it does not begin one."""
    *above, line = f"{lead or ''}|".splitlines()
    return line[:-1] if above and len(line) <= _MOST_GAP else ""


def unique(pieces: Sequence[Piece]) -> list[Piece]:
    """Return each chunk once, as it was found best, in the order given."""
    kept: dict[tuple[str, ...], Piece] = {}
    for piece in pieces:
        # A chunk keeps its id when an index is compacted; one that is built anew gives its ids again.
        index = piece.index or piece.document[0]
        key = (index, piece.document[1], str(piece.name), str(piece.chunk_id), piece.text)
        if key not in kept or piece.rank < kept[key].rank:
            kept[key] = piece
    return list(kept.values())
