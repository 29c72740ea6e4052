"""The terms of lexical search: cut words, parts of identifiers, pairs where words are not spaced.

Each rule was chosen by nDCG@10 over 25 evaluation sets in 14 languages; `benchmarks/lexical.py` gives the figures.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache, lru_cache
from hashlib import blake2b
from itertools import chain
from operator import add

# A word's first letters stand for it, a stemmer for every language. Latin spends more letters on a stem.
_LATIN_CUT, _CUT = 6, 5
_FIRST_BEYOND_LATIN = "\u0370"
# Han, kana and Hangul: pairs of characters. Hangul has spaces, but particles and compounds stick to its words.
_PAIRS = (
    "\u1100-\u11ff\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3038-\u303b\u3041-\u3096\u3099\u309a\u309d-\u309f"
    "\u30a1-\u30fa\u30fc-\u30ff\u3130-\u318f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff"
    "\uf900-\ufaff\U00020000-\U0003ffff"
)
# Thai, Lao, Myanmar and Khmer letters and marks: pairs of clusters, as one character is less than a sound.
_CLUSTERS = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0eae\u0eb0-\u0ece\u0edc-\u0edf\u1000-\u103f\u1050-\u108f\u109a-\u109f"
    "\u1780-\u17d3\u17d7\u17dc\u17dd\ua9e0-\ua9ef\ua9fa-\ua9fe\uaa60-\uaa76\uaa7a-\uaa7f"
)
_BEFORE = "\u0e40-\u0e44\u0ec0-\u0ec4"  # vowels written before their consonant
_AFTER = "\u0e30\u0e32\u0e33\u0eb0\u0eb2\u0eb3"  # vowels that are no marks but follow their consonant
_STACKERS = "\u1039\u17d2"  # the next consonant goes below this one
_CACHED_CHUNK = 32  # characters; longer ones hardly come again

_UNSPACED = re.compile(f"[{_PAIRS}{_CLUSTERS}]")
_RUNS = re.compile(f"([{_PAIRS}]+)|([{_CLUSTERS}]+)")
_ASCII_WORD = re.compile(rf"([a-z0-9]{{1,{_LATIN_CUT}}})[a-z0-9]*")
# A name in code: letters that change case inside the word, or an underscore inside it.
_NAME = re.compile(r"(?<![A-Za-z0-9])[A-Za-z0-9]++(?:_++[A-Za-z0-9]++)*+")
_HUMP = re.compile("(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
# Arabic: vowel points and the stretch go, the forms of alif, ya and ta marbuta are one (Larkey et al., SIGIR 2002).
_SAME = str.maketrans(
    dict.fromkeys([*range(0x64B, 0x660), 0x670, 0x640]) | dict(zip("أإآٱىة", "اااايه", strict=True))
)
_ARABIC = re.compile("[\u0620-\u064a]")
_ARTICLE = re.compile("(?<![\u0620-\u064a])(?:[وبكف]?ال|لل)(?=[\u0620-\u064a]{3})")
_INVISIBLE = re.compile("[\u00ad\u200d\u2060\ufeff]")  # soft hyphens and joiners lie inside a word


def tokenize(text: str) -> list[str]:
    """Return the terms of a text as a bag: how often a term comes matters, their order does not.

    NFKC and casefold come first. A word (letters, digits and the marks on them) is cut to six characters if Latin,
    to five otherwise; an Arabic one loses its article. `snake_case` and `camelCase` give their parts and the
    whole. Han, kana and Hangul give pairs of characters; Thai, Lao, Khmer and Myanmar pairs of clusters (a letter
    with its vowels and marks); a run of one gives itself.
    """
    chunks = text.split()
    if max(map(len, chunks), default=0) <= _CACHED_CHUNK:
        return list(chain.from_iterable(map(_cached_terms, chunks)))
    terms: list[str] = []
    for chunk in chunks:
        terms += _cached_terms(chunk) if len(chunk) <= _CACHED_CHUNK else _terms(chunk)
    return terms


def term_hash(term: str) -> int:
    """Return a term's hash of 64 bits, the same on every machine and in every process."""
    return int.from_bytes(blake2b(term.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


@lru_cache(maxsize=1 << 16)
def _cached_terms(chunk: str) -> tuple[str, ...]:
    return tuple(_terms(chunk))


def _terms(chunk: str) -> list[str]:
    """Return the terms of a text without white space."""
    if chunk.isascii():
        return _ascii_terms(chunk)
    text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", chunk))
    terms = _names(text)
    if terms:
        text = _HUMP.sub(" ", text)
    text = text.casefold()
    if _ARABIC.search(text):
        text = _ARTICLE.sub("", text.translate(_SAME))
    if _UNSPACED.search(text):
        for pairs, clusters in _RUNS.findall(text):
            parts = pairs or _cluster().findall(clusters)
            terms += map(add, parts, parts[1:]) if len(parts) > 1 else parts
        text = _RUNS.sub(" ", text)
    if not text.isalnum():
        # Python's \w leaves out the marks that carry the vowels of Indian scripts.
        text = "".join(c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in text)
    terms += (w[: _LATIN_CUT if w < _FIRST_BEYOND_LATIN else _CUT] for w in text.split())
    return terms


def _ascii_terms(chunk: str) -> list[str]:
    names = _names(chunk)
    return names + _ASCII_WORD.findall((_HUMP.sub(" ", chunk) if names else chunk).lower())


def _names(chunk: str) -> list[str]:
    """Return the names in code that have parts, whole and in lower case."""
    if "_" not in chunk and (chunk.islower() or chunk.istitle() or not _HUMP.search(chunk)):
        return []
    return [name.lower() for name in _NAME.findall(chunk) if "_" in name or _HUMP.search(name)]


@cache
def _cluster() -> re.Pattern[str]:
    """Return the pattern of one letter of Thai, Lao, Khmer or Myanmar with all that is written around it."""
    all_of_them = map(
        chr, chain(range(0xE00, 0xF00), range(0x1000, 0x1100), range(0x1780, 0x1800), range(0xA9E0, 0xAA80))
    )
    marks = "".join(c for c in all_of_them if unicodedata.category(c)[0] == "M")
    tail = f"[{marks}{_AFTER}]*"
    return re.compile(f"[{_BEFORE}]?.{tail}(?:(?<=[{_STACKERS}]).{tail})*")
