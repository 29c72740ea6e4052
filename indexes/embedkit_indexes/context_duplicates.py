"""Leave out the chunks that say what a chunk of another document says."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from embedkit_indexes.context_pieces import Piece, Run, joined
from embedkit_indexes.lexical_tokens import tokenize

# From here on scripts are written without spaces, or cut into terms by `tokenize` as well.
_FIRST_UNSPACED = "\u0e00"
# Characters from which on a text that stands whole in another one is the same, not a word that both use.
_LEAST_PART = 40


@dataclass(frozen=True, slots=True)
class _Known:
    """A text to compare with: its words, its numbers in their order, and itself with single spaces."""

    words: frozenset[str]
    numbers: tuple[str, ...]
    folded: str


def without_duplicates(pieces: Iterable[Piece], near: float) -> tuple[list[Run], int]:
    """Return the pieces as runs, best first, and how many were left out.

    Documents are gone through in the order of their best chunks. A chunk goes where a document before it has the same
    text, white space aside, or nearly: the same numbers in their order, and a share of `near` or more of all words of
    both (Jaccard). What stays is ranked as the better of the two.
    """
    documents: dict[tuple[str, str], list[Piece]] = {}
    for piece in sorted(pieces, key=lambda p: p.rank):
        documents.setdefault(piece.document, []).append(piece)
    runs: list[Run] = []
    kept: list[tuple[Piece, _Known]] = []
    copies: dict[tuple[tuple[str, str], int | str], list[tuple[Piece, bool]]] = {}
    left_out = 0
    for own in documents.values():
        new = []
        for piece in own:
            known = _known(piece.text)
            twin = next(((p, k) for p, k in kept if _alike(known, k, near)), None)
            if twin is None:
                new.append((piece, known))
                continue
            left_out += piece.found
            same = known.folded in twin[1].folded
            copies.setdefault((twin[0].document, twin[0].name), []).append((piece, same))
        # A neighbour whose chunk is told elsewhere has nothing left to stand beside.
        here = [run for run in joined([piece for piece, _ in new]) if run.best.found]
        shown = {piece.name for run in here for piece in run.pieces}
        kept += [(piece, known) for piece, known in new if piece.name in shown]
        runs += here
    if copies:
        runs = [
            replace(run, pieces=tuple(_with(p, copies.get((p.document, p.name), ())) for p in run.pieces))
            for run in runs
        ]
    return sorted(runs, key=lambda run: run.best.rank), left_out


def _with(piece: Piece, copies: Sequence[tuple[Piece, bool]]) -> Piece:
    """Return a piece that names the places of others with its text, and stands where the best of them stood."""
    if not copies:
        return piece
    best = min([piece, *(other for other, _ in copies)], key=lambda p: p.rank)
    places = tuple(replace(other.place, same=same) for other, same in copies)
    return replace(piece, rank=best.rank, score=best.score, also_in=places)


def _known(text: str) -> _Known:
    folded = " ".join(unicodedata.normalize("NFKC", text).split())
    words: set[str] = set()
    for word in re.findall(r"\w+", folded.casefold()):
        words.update(tokenize(word) if max(word) >= _FIRST_UNSPACED else (word,))
    return _Known(frozenset(words), tuple(re.findall(r"\d+", folded)), folded)


def _alike(new: _Known, old: _Known, near: float) -> bool:
    if new.folded == old.folded:
        return True
    if _LEAST_PART <= len(new.folded) < len(old.folded) and new.folded in old.folded:
        return True
    few, many = sorted((len(new.words), len(old.words)))
    if near >= 1 or few < near * many or new.numbers != old.numbers or not few:
        return False
    return len(new.words & old.words) >= near * len(new.words | old.words)
