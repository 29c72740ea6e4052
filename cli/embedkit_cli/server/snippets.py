"""The passage of a chunk that matches best: by its words at once, or by its meaning, for which passages are encoded."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from embedkit_cli.server.units import Unit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedkit_cli.server.embedders import ServedEmbedder

# The end of a sentence, of whatever script, or of a line. It begins with a class, so that all other characters are passed quickly.
_END = re.compile(r"[.!?…。！？｡।։؟።\n](?:(?<=[.!?…])['\")\]]?\s+|(?<=[。！？｡।։؟።])\s*|(?<=\n)\n*)")
_SHORTEST, _LONGEST, _MOST = 40, 240, 64
_KEPT = 64_000_000


class Passage(NamedTuple):
    """A part of a chunk's text, by characters."""

    start: int
    end: int


def passages(text: str) -> list[Passage]:
    """Cut a text into passages of a sentence or a few short ones, white space at the ends left out."""
    out: list[Passage] = []
    begin = 0
    for end in [*(found.end() for found in _END.finditer(text)), len(text)]:
        if end - begin < _SHORTEST and end < len(text):
            continue
        while end - begin > _LONGEST:
            space = text.rfind(" ", begin + _LONGEST // 2, begin + _LONGEST)
            cut = begin + _LONGEST if space < 0 else space
            _add(out, text, begin, cut)
            begin = cut
        _add(out, text, begin, end)
        begin = end
    return out[:_MOST]


def _add(out: list[Passage], text: str, start: int, end: int) -> None:
    piece = text[start:end]
    start += len(piece) - len(piece.lstrip())
    end -= len(piece) - len(piece.rstrip())
    if start < end:
        out.append(Passage(start, end))


def by_words(query: str, texts: Sequence[str]) -> list[Passage | None]:
    """Return of each text the passage with the most of the query's words, the first where none has any."""
    from embedkit_indexes.lexical_tokens import tokenize

    wanted = set(tokenize(query))
    out: list[Passage | None] = []
    for text in texts:
        cut = passages(text)
        if len(cut) > 1:
            shared = [len(wanted.intersection(tokenize(text[p.start : p.end]))) for p in cut]
            cut = [cut[shared.index(max(shared))]]
        out.append(cut[0] if cut else None)
    return out


class PassageVectors:
    """The vectors of the passages of chunks that were found lately, by embedder and text.

    `most` bounds the bytes of vectors and characters of texts; what was not asked for the longest goes first.
    """

    def __init__(self, most: int = _KEPT) -> None:
        self.size = 0
        self._most = most
        self._kept: OrderedDict[tuple[str, str], NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    def best(
        self, embedder: ServedEmbedder, asked: Sequence[tuple[NDArray[np.float32], str]]
    ) -> list[Passage | None]:
        """Return for each pair of a query's vector and a chunk's text the passage that is nearest to the query."""
        texts = list(dict.fromkeys(text for _, text in asked))
        cut = {text: passages(text) for text in texts}
        vectors = self._vectors(embedder, {text: p for text, p in cut.items() if len(p) > 1})
        out: list[Passage | None] = []
        for vector, text in asked:
            if text in vectors:
                out.append(cut[text][int((vectors[text] @ vector).argmax())])
            else:
                out.append(cut[text][0] if cut[text] else None)
        return out

    def _vectors(
        self, embedder: ServedEmbedder, cut: dict[str, list[Passage]]
    ) -> dict[str, NDArray[np.float32]]:
        key = embedder.fingerprint
        with self._lock:
            known = {text: self._kept[key, text] for text in cut if (key, text) in self._kept}
            for text in known:
                self._kept.move_to_end((key, text))
        units = {
            t: [Unit("document", None, t[p.start : p.end]) for p in cut[t]] for t in cut if t not in known
        }
        if units:
            done = embedder.batcher.encode_waiting([unit for some in units.values() for unit in some])
            row = 0
            with self._lock:
                for text, some in units.items():
                    known[text] = done.vectors[row : row + len(some)].copy()
                    row += len(some)
                    if (key, text) not in self._kept:  # another search may have been faster
                        self._kept[key, text] = known[text]
                        self.size += known[text].nbytes + len(text)
                while self.size > self._most:
                    (_, oldest), vectors = self._kept.popitem(last=False)
                    self.size -= vectors.nbytes + len(oldest)
        return known
