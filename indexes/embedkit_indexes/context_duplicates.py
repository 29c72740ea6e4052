"""Leave out the chunks that say what a chunk of another document says."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil

from embedkit_indexes.context_pieces import Piece, Run, joined
from embedkit_indexes.lexical_tokens import tokenize

# From here on scripts are written without spaces, or cut into terms by `tokenize` as well.
_FIRST_UNSPACED = "\u0e00"
# Characters from which on a text that stands whole in another one is the same, not a word that both use.
_LEAST_PART = 40


@dataclass(frozen=True, slots=True)
class _Known:
    """A text to compare with: its words, the first and the last of them, its numbers in their order, and itself."""

    words: frozenset[str]
    edges: frozenset[str]
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
    texts = {text: _known(text) for text in {p.text for own in documents.values() for p in own}}
    kept = _Kept(texts.values(), near)
    runs: list[Run] = []
    copies: dict[tuple[tuple[str, str], int | str], list[tuple[Piece, bool]]] = {}
    left_out = 0
    for own in documents.values():
        new = []
        for piece in own:
            known = texts[piece.text]
            twin = kept.twin(known) if len(documents) > 1 else None
            if twin is None:
                new.append(piece)
                continue
            left_out += piece.found
            same = known.folded in texts[twin.text].folded
            copies.setdefault((twin.document, twin.name), []).append((piece, same))
        # A neighbour whose chunk is told elsewhere has nothing left to stand beside.
        here = [run for run in joined(new) if run.best.found]
        for run in here:
            for piece in run.pieces:
                kept.add(piece, texts[piece.text])
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
    found = re.findall(r"\w+", folded.casefold())
    cut = [tuple(tokenize(word)) if max(word) >= _FIRST_UNSPACED else (word,) for word in found]
    # Of a text within another one these may be parts of words.
    edges = frozenset(word for words in (cut[0], cut[-1]) for word in words) if cut else frozenset()
    words = frozenset(word for words in cut for word in words)
    return _Known(words, edges, tuple(re.findall(r"\d+", folded)), folded)


class _Kept:
    """The chunks that stay, by their words, so that each new one is compared with few of them."""

    def __init__(self, texts: Collection[_Known], near: float) -> None:
        self._near = near
        self._often = Counter(word for text in texts for word in text.words)
        self._pieces: list[tuple[Piece, _Known]] = []
        self._same: dict[str, Piece] = {}
        self._by_word: dict[str, list[int]] = {}

    def add(self, piece: Piece, text: _Known) -> None:
        """Keep a chunk."""
        self._same.setdefault(text.folded, piece)
        for word in text.words:
            self._by_word.setdefault(word, []).append(len(self._pieces))
        self._pieces.append((piece, text))

    def twin(self, text: _Known) -> Piece | None:
        """Return the first chunk that says what this text says, None where none does."""
        if text.folded in self._same:
            return self._same[text.folded]
        rare = sorted(text.words, key=lambda word: (self._often[word], word))
        # Two sets that share so much of all their words share one of any few of either's: of the rarest as well.
        few = rare[: len(rare) - ceil(self._near * len(rare)) + 1] if self._near < 1 else []
        whole = (
            [word for word in rare if word not in text.edges][:1] if len(text.folded) >= _LEAST_PART else []
        )
        for number in sorted({n for word in {*few, *whole} for n in self._by_word.get(word, ())}):
            piece, other = self._pieces[number]
            if (whole and text.folded in other.folded) or (few and _near(text, other, self._near)):
                return piece
        return None


def _near(one: _Known, other: _Known, near: float) -> bool:
    few, many = sorted((len(one.words), len(other.words)))
    if few < near * many or one.numbers != other.numbers:
        return False
    return len(one.words & other.words) >= near * len(one.words | other.words)
