"""Read what an evaluation beyond retrieval is made of: pairs of texts (scored or not), and labelled texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from embedkit.errors import CorpusError, InputError
from embedkit.evaluation.lines import read_lines, read_object, required_text

UNKNOWN = "und"
_FIRST = ("sentence1", "text1", "query", "source")
_SECOND = ("sentence2", "text2", "positive", "target")
_SCORE = ("score", "similarity")
_LANGS = (("lang1", "lang2"), ("lang_q", "lang_d"), ("source_lang", "target_lang"))
_TEXT = ("text", "sentence", "query")
_LABEL = ("label", "category", "topic", "intent")
_KNOWN = {*_FIRST, *_SECOND, *_SCORE, *_TEXT, *_LABEL, "lang", "split", *(n for pair in _LANGS for n in pair)}


@dataclass(frozen=True, slots=True)
class Pair:
    """Two texts, how alike people found them (None in a file without scores), and their languages."""

    first: str
    second: str
    score: float | None = None
    langs: tuple[str, str] = (UNKNOWN, UNKNOWN)
    split: str | None = None

    @property
    def group(self) -> str:
        """The language pair, such as `en → de`; one language alone where both are the same."""
        first, second = self.langs
        return first if first == second else f"{first} → {second}"


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text and its label."""

    text: str
    label: str
    lang: str = UNKNOWN
    split: str | None = None

    @property
    def langs(self) -> tuple[str, ...]:
        """The text's language."""
        return (self.lang,)


class _Filterable(Protocol):
    @property
    def langs(self) -> tuple[str, ...]: ...
    @property
    def split(self) -> str | None: ...


R = TypeVar("R", bound=_Filterable)


def read_pairs(path: str | Path, *, scored: bool) -> list[Pair]:
    """Read pairs: JSON lines or tab-separated columns, compressed or not.

    JSON lines hold `sentence1` and `sentence2` (or `text1`/`text2`, `query`/`positive`, `source`/`target`), `score`
    where `scored`, and if wanted `lang` or `lang1` and `lang2`, and `split`. Columns may be named so in a first
    line; else they are first text, second text and score. Raises CorpusError with the line.
    """
    positional = ["sentence1", "sentence2", "score"] if scored else ["sentence1", "sentence2"]
    return _read(path, positional, lambda record, line: _pair(str(path), line, record, scored))


def read_labelled(path: str | Path) -> list[Labelled]:
    """Read labelled texts: JSON lines or columns with `text` and `label` (and `lang`, `split`), compressed or not.

    Columns without a first line of names are text and label. Raises CorpusError with the line.
    """
    return _read(path, ["text", "label"], lambda record, line: _labelled(str(path), line, record))


def restrict(records: Sequence[R], path: str, langs: Sequence[str], split: str | None) -> list[R]:
    """Return the records of these languages (all where none is named) and this split; InputError where none is left."""
    kept = [
        r
        for r in records
        if (split is None or r.split == split) and (not langs or any(code in langs for code in r.langs))
    ]
    if not kept:
        splits = sorted({str(r.split) for r in records if r.split})
        codes = sorted({code for r in records for code in r.langs})[:30]
        raise InputError(
            f"no record of {path} is left of {len(records)}: its languages are {', '.join(codes)}; "
            f"its splits are {', '.join(splits) or 'not named'}; check --lang and --split"
        )
    return kept


T = TypeVar("T")


def _read(path: str | Path, positional: list[str], make: Callable[[Mapping[str, Any], int], T]) -> list[T]:
    found = [make(record, number) for number, record in _records(path, positional)]
    if not found:
        raise CorpusError(str(path), "holds no record: write one a line")
    return found


def _records(path: str | Path, positional: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    names: list[str] | None = None
    as_json: bool | None = None
    for number, line in read_lines(path):
        if not line.strip():
            continue
        if as_json is None:
            as_json = line.lstrip().startswith("{")
        if as_json:
            yield number, read_object(str(path), number, line)
            continue
        cells = line.rstrip("\r\n").split("\t")
        if names is None:
            named = [c.strip().lower() for c in cells]
            names = named if set(named) <= _KNOWN else positional
            if names is named:
                continue
        if len(cells) != len(names):
            raise CorpusError(
                str(path), f"needs {len(names)} tab-separated columns ({', '.join(names)}), got {len(cells)}", number
            )  # fmt: skip
        yield number, dict(zip(names, cells, strict=True))


def _pair(path: str, number: int, record: Mapping[str, Any], scored: bool) -> Pair:
    score = _score(path, number, record) if scored else None
    langs = next(((record[a], record[b]) for a, b in _LANGS if record.get(a) and record.get(b)), None)
    langs = langs or (record.get("lang"), record.get("lang"))
    return Pair(
        _text(path, number, record, _FIRST),
        _text(path, number, record, _SECOND),
        score,
        (_lang(path, number, langs[0]), _lang(path, number, langs[1])),
        _split(record),
    )


def _labelled(path: str, number: int, record: Mapping[str, Any]) -> Labelled:
    name = next((n for n in _LABEL if n in record), "label")
    label = record.get(name)
    if isinstance(label, bool) or not isinstance(label, str | int) or not str(label).strip():
        raise CorpusError(path, f'needs a "label" that is a word or a number, got {label!r}', number)
    text = _text(path, number, record, _TEXT)
    return Labelled(
        text, str(label).strip(), _lang(path, number, record.get("lang")), _split(record)
    )  # fmt: skip


def _text(path: str, number: int, record: Mapping[str, Any], names: Sequence[str]) -> str:
    name = next((n for n in names if n in record), names[0])
    return required_text(path, number, record, name)


def _score(path: str, number: int, record: Mapping[str, Any]) -> float:
    value = next((record[n] for n in _SCORE if n in record), None)
    try:
        score = float("nan") if isinstance(value, bool) or value is None else float(value)
    except (TypeError, ValueError):
        score = float("nan")
    if score - score != 0:  # NaN or infinite
        raise CorpusError(path, f'needs a "score" that is a number, got {value!r}', number)
    return score


def _lang(path: str, number: int, value: object) -> str:
    if value is None or value == "":
        return UNKNOWN
    if not isinstance(value, str):
        raise CorpusError(path, f'"lang" must be a string, got {value!r}', number)
    return value.strip() or UNKNOWN


def _split(record: Mapping[str, Any]) -> str | None:
    value = record.get("split")
    return str(value) if value not in (None, "") else None
