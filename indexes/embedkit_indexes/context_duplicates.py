"""Leave out the chunks that say what a chunk of another document says."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from heapq import nsmallest
from itertools import chain, pairwise
from math import ceil, inf

from embedkit_indexes.context_pieces import Piece, Run, joined
from embedkit_indexes.lexical_tokens import tokenize

# From here on scripts are written without spaces, or cut into terms by `tokenize` as well.
_FIRST_UNSPACED = "\u0e00"
# Characters from which on a text that stands whole in another one is the same, not a word that both use.
_LEAST_PART = 40
# A number, a word, a minus, a negation of code, or any other mark.
_TOKEN = re.compile(r"\d+(?:[.,:]\d+)*|\w+|(?<!\w)[-\u2212](?=[.,]?\d)|!(?=[\w(=])|(?P<mark>[^\w\s])")
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
# Punctuation of which a change may change what is said, as that of a symbol or of a vowel's sign may.
_TELLING = frozenset("*/%&@#\\")
# A line of its own with a date, and no more than what the date is of.
_DATED = re.compile(
    r"\W*(?:[^\W\d]+\W+){0,4}"
    r"(?:\d{4}-\d{1,2}-\d{1,2}|\d{1,2}[./]\d{1,2}[./]\d{2,4}|\d{4} ?[年년] ?\d{1,2} ?[月월] ?\d{1,2} ?[日일]"
    r"|\d{1,2}\.? [^\W\d]{3,}\.? \d{4}|[^\W\d]{3,}\.? \d{1,2}, \d{4})\W*"
)
_LONGEST_DATED = 80

_Pair = tuple[str, str]
_Name = tuple[tuple[str, str], int | str, int | str, str]


@dataclass(frozen=True, slots=True)
class _Known:
    """A text to compare with.

    `folded` is the text, white space aside; `words` are its words and symbols, the lines of a date left out; `inner` are
    the pairs of neighbouring words that are there wherever the text is a part of another one.
    """

    folded: str
    words: str
    pairs: frozenset[_Pair]
    inner: frozenset[_Pair]
    numbers: tuple[str, ...]


def without_duplicates(pieces: Iterable[Piece], near: float) -> tuple[list[Run], int]:
    """Return the pieces as runs, best first, and how many of those found were left out.

    Documents are gone through in the order of their best chunks. A chunk goes where a document before it has the same
    words in the same order, case, punctuation, white space and a line with a date aside, or has the whole chunk in one of
    its own; with `near` below 1 also where that share of the word pairs of both (Jaccard), and all numbers, are the same.
    Then a chunk goes that is most of one found later. What stays is ranked as the better of the two.
    """
    documents: dict[tuple[str, str], list[Piece]] = {}
    for piece in sorted(pieces, key=lambda p: p.rank):
        documents.setdefault(piece.document, []).append(piece)
    if len(documents) < 2:
        runs = [run for own in documents.values() for run in joined(own)]
        return sorted(runs, key=lambda run: run.best.rank), 0
    texts = {text: _known(text) for text in {p.text for own in documents.values() for p in own}}
    keys = _Keys(texts.values(), near)
    kept = _Kept(keys)
    stay: list[Piece] = []
    copies: dict[_Name, list[Piece]] = {}
    for own in documents.values():
        new = []
        for piece in own:
            twin = kept.twin(texts[piece.text])
            if twin is None:
                new.append(piece)
            else:
                copies.setdefault(_name(twin), []).append(piece)
        for piece in _beside_found(new):
            kept.add(piece, texts[piece.text])
            stay.append(piece)
    # A neighbour that was found in another document stands for that hit from here on.
    stay, parts = _without_parts([_with(p, copies.get(_name(p), ()), texts) for p in stay], texts, keys)
    left: dict[tuple[str, str], list[Piece]] = {}
    for piece in stay:
        left.setdefault(piece.document, []).append(_with(piece, parts.get(_name(piece), ()), texts))
    runs = [run for own in left.values() for run in joined(own) if run.best.found]
    found = {_name(piece) for own in documents.values() for piece in own if piece.found}
    left_out = len(found.difference(_name(piece) for run in runs for piece in run.pieces))
    return sorted(runs, key=lambda run: run.best.rank), left_out


def _beside_found(pieces: Sequence[Piece]) -> list[Piece]:
    """Return the pieces but neighbours that have nothing left to stand beside."""
    return [piece for run in joined(pieces) if run.best.found for piece in run.pieces]


def _without_parts(
    pieces: Sequence[Piece], texts: Mapping[str, _Known], keys: _Keys
) -> tuple[list[Piece], dict[_Name, list[Piece]]]:
    """Return the pieces but those that are most of one that stays, and these by the name of that one.

    Of a piece that is much longer the budget might cut off just what was found better.
    """
    kept = _Kept(keys)
    parts: dict[_Name, list[Piece]] = {}
    gone = set()
    for piece in sorted(pieces, key=lambda p: (-len(texts[p.text].folded), p.rank)):
        text = texts[piece.text]
        whole = kept.whole(text, piece.document, 2 * len(text.folded))
        if whole is not None:
            parts.setdefault(_name(whole), []).append(piece)
            gone.add(_name(piece))
        elif piece.found:
            kept.add(piece, text)
    return [p for p in pieces if _name(p) not in gone], parts


def _with(piece: Piece, copies: Sequence[Piece], texts: Mapping[str, _Known]) -> Piece:
    """Return a piece that names the places of others with its text, and stands where the best of them stood."""
    if not copies:
        return piece
    best = min([piece, *copies], key=lambda p: p.rank)
    text = texts[piece.text].folded
    places = [*piece.also_in]
    for copy in copies:
        places += (replace(copy.place, same=texts[copy.text].folded in text), *copy.also_in)
    # A file that two indexes hold is one place.
    others = tuple(place for place in places if replace(place, same=True) != piece.place)
    return replace(piece, rank=best.rank, score=best.score, also_in=others)


def _name(piece: Piece) -> _Name:
    return piece.document, piece.name, piece.chunk_id, piece.text


def _known(text: str) -> _Known:
    text = unicodedata.normalize("NFKC", text)
    folded = " ".join(text.split())
    words = _words(folded)
    lines = text.splitlines()
    undated = [line for line in lines if len(line) > _LONGEST_DATED or not _DATED.fullmatch(line)]
    told = words if len(undated) == len(lines) else _words("\n".join(undated))
    cut = [tokenize(word) if max(word) >= _FIRST_UNSPACED else (word,) for word in words]
    return _Known(
        folded,
        " ".join(told) or folded,
        frozenset(pairwise(chain.from_iterable(cut))),
        # Of a text within another one the first and the last may be parts of words.
        frozenset(pairwise(chain.from_iterable(cut[1:-1]))),
        tuple(_NUMBER.findall(folded)),
    )


def _words(text: str) -> list[str]:
    return [found[0] for found in _TOKEN.finditer(text.casefold()) if not found["mark"] or _tells(found[0])]


@cache
def _tells(mark: str) -> bool:
    return mark in _TELLING or unicodedata.category(mark)[0] not in "PC"


class _Keys:
    """The few pairs of words by which each of some texts is looked for: of all its pairs the rarest."""

    def __init__(self, texts: Collection[_Known], near: float) -> None:
        often = Counter(chain.from_iterable(text.pairs for text in texts))

        def rarity(pair: _Pair) -> tuple[int, _Pair]:
            return often[pair], pair

        self.near = near
        # A text that holds another one has each pair within it.
        self.part = {
            text.folded: min(text.inner, key=rarity)
            for text in texts
            if text.inner and len(text.folded) >= _LEAST_PART
        }
        self.few: dict[str, list[_Pair]] = {}
        if near < 1:
            # Two sets that share so much of all their pairs share one of any few of either's: of the rarest as well.
            for text in texts:
                most = len(text.pairs) - ceil(near * len(text.pairs)) + 1
                self.few[text.folded] = nsmallest(most, text.pairs, key=rarity)
        self.sought = frozenset(chain(self.part.values(), *self.few.values()))


class _Kept:
    """The chunks that stay, so kept that each new one is compared with few of them."""

    def __init__(self, keys: _Keys) -> None:
        self._keys = keys
        self._pieces: list[tuple[Piece, _Known]] = []
        self._same: dict[str, Piece] = {}
        self._by_pair: dict[_Pair, list[int]] = {}

    def add(self, piece: Piece, text: _Known) -> None:
        """Keep a chunk."""
        self._same.setdefault(text.words, piece)
        for pair in text.pairs & self._keys.sought:
            self._by_pair.setdefault(pair, []).append(len(self._pieces))
        self._pieces.append((piece, text))

    def twin(self, text: _Known) -> Piece | None:
        """Return the first chunk that says what this text says, None where none does."""
        found = self._same.get(text.words) or self.whole(text)
        few = self._keys.few.get(text.folded, ()) if found is None else ()
        for number in sorted({n for pair in few for n in self._by_pair.get(pair, ())}):
            piece, other = self._pieces[number]
            if _near(text, other, self._keys.near):
                return piece
        return found

    def whole(
        self, text: _Known, document: tuple[str, str] | None = None, longest: float = inf
    ) -> Piece | None:
        """Return the first chunk, not of this document and not longer than this, that holds the whole text."""
        part = self._keys.part.get(text.folded)
        for number in self._by_pair.get(part, ()) if part is not None else ():
            piece, other = self._pieces[number]
            if piece.document != document and len(other.folded) <= longest and text.folded in other.folded:
                return piece
        return None


def _near(one: _Known, other: _Known, near: float) -> bool:
    few, many = sorted((len(one.pairs), len(other.pairs)))
    if few < near * many or one.numbers != other.numbers:
        return False
    shared = len(one.pairs & other.pairs)
    return shared >= near * (few + many - shared)
