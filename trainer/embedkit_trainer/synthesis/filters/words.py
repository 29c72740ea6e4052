"""Words of a text in any script: counted for lengths, listed for shingles and n-grams."""

from __future__ import annotations

import re
from functools import lru_cache

# Scripts written without spaces, and how many characters make a word there (news and encyclopaedia text).
_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_SYLLABLES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
_IDEOGRAPH = re.compile(f"[{_IDEOGRAPHS}]")
_SYLLABLE = re.compile(f"[{_SYLLABLES}]")
_UNSPACED = re.compile(f"[{_IDEOGRAPHS}{_SYLLABLES}]")
_IDEOGRAPHS_A_WORD = 1.7
_SYLLABLES_A_WORD = 5.0
_PIECE = re.compile(f"[{_IDEOGRAPHS}{_SYLLABLES}]|[^\\W_{_IDEOGRAPHS}{_SYLLABLES}]+")

# Texts of a batch of rows, which one filter cuts after the other; longer ones would take much memory.
_REMEMBERED, _SHORT = 4096, 2000


def count_words(text: str) -> float:
    """Return how many words a text holds; an estimate where its script has no spaces."""
    if text.isascii() or _UNSPACED.search(text) is None:
        return float(len(text.split()))
    ideographs, syllables = len(_IDEOGRAPH.findall(text)), len(_SYLLABLE.findall(text))
    spaced = len(_UNSPACED.sub(" ", text).split())
    return spaced + ideographs / _IDEOGRAPHS_A_WORD + syllables / _SYLLABLES_A_WORD


def is_spaced(text: str) -> bool:
    """Say whether words are separated by spaces, so that their count is exact."""
    return text.isascii() or _UNSPACED.search(text) is None


def pieces(text: str) -> tuple[str, ...]:
    """Return the words in small letters, without punctuation; where there are no spaces, the characters."""
    return _remembered(text) if len(text) <= _SHORT else _cut(text)


def _cut(text: str) -> tuple[str, ...]:
    return tuple(_PIECE.findall(text.casefold()))


_remembered = lru_cache(_REMEMBERED)(_cut)
