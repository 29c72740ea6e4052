"""A record's fields to a document: which one is the text, the title, the id, the language."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from embedkit_indexes.corpus.options import Problem, ReadOptions

_TEXT = (
    "text",
    "content",
    "contents",
    "body",
    "passage",
    "document",
    "page_content",
    "raw_content",
    "raw_text",
    "markdown",
    "paragraph",
    "article",
    "abstract",
    "sentence",
    "chunk",
    "context",
    "description",
    "code",
)
_TITLE = ("title", "headline", "heading", "subject", "name")
_ID = ("_id", "id", "docid", "doc_id", "document_id", "docno", "pid", "passage_id", "uuid", "guid")
_LANG = ("lang", "language", "lang_code", "language_code", "locale")


# A search copies metadata value by value, several calls deep for each level.
_DEEPEST = 64


class Fields(NamedTuple):
    """Name the fields of one kind of record; None where there is none."""

    text: str | None
    title: str | None
    id: str | None
    lang: str | None


def find_fields(names: Iterable[str], options: ReadOptions) -> Fields:
    """Choose among the field names: the one the options give, else the first usual name, in any case."""
    names = list(names)
    lower = {name.lower().strip(): name for name in reversed(names)}

    def choose(given: str | None, usual: tuple[str, ...]) -> str | None:
        if given is not None:
            return given if given in names else None
        return next((lower[name] for name in usual if name in lower), None)

    text = choose(options.text_field, _TEXT)
    if (
        text is None
        and options.text_field is None
        and len(names) == 1
        and lower.keys().isdisjoint(_ID + _LANG)
    ):
        text = names[0]
    return Fields(
        text,
        choose(options.title_field, _TITLE),
        choose(options.id_field, _ID),
        choose(options.lang_field, _LANG),
    )


def require(fields: Fields, names: Iterable[str], options: ReadOptions, name: str, line: int | None) -> None:
    """Raise Problem where a field that was asked for, or any text field, is not among the names."""
    seen = ", ".join(repr(n) for n in names) or "none"
    asked = (
        ("text_field", options.text_field, fields.text),
        ("title_field", options.title_field, fields.title),
        ("id_field", options.id_field, fields.id),
        ("lang_field", options.lang_field, fields.lang),
    )
    for option, given, found in asked:
        if given is not None and found is None and option in ("text_field", "id_field"):
            raise Problem("no such field", name, f"no field {given!r} ({option}); fields seen: {seen}", line)
    if fields.text is None:
        raise Problem(
            "no text field", name, f"no text field; fields seen: {seen}; name one by text_field", line
        )


class Record(NamedTuple):
    """A record taken apart; `id` and `lang` are None where it has none."""

    text: str
    title: str
    id: str | None
    lang: str | None
    metadata: dict[str, Any]


def record(
    row: Mapping[str, Any], fields: Fields, options: ReadOptions, name: str, line: int | None
) -> Record:
    """Take a row apart; raise Problem where its text is no text."""
    require(fields, row, options, name, line)
    value = row[fields.text] if fields.text is not None else None
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = "\n".join(value)
    if value is not None and not isinstance(value, str):
        kind = type(value).__name__
        raise Problem("text is no string", name, f"field {fields.text!r} is {kind}, not a string", line)
    kept = (
        row if options.metadata_fields is None else {k: row[k] for k in options.metadata_fields if k in row}
    )
    try:
        metadata = {clean(k): json_value(v) for k, v in kept.items() if k not in fields}
    except RecursionError:
        why = f"malformed metadata: nested more than {_DEEPEST} levels deep"
        raise Problem("malformed", name, why, line) from None
    return Record(
        clean(value or ""),
        " ".join(_string(row, fields.title).split()),
        _string(row, fields.id).strip() or None,
        _string(row, fields.lang).strip() or None,
        metadata,
    )


def clean(text: str) -> str:
    """Return the text without NUL and with U+FFFD for lone surrogates, so that it can be stored anywhere."""
    if "\0" in text:
        text = text.replace("\0", " ")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def json_value(value: Any, levels: int = _DEEPEST) -> Any:
    """Return the value as JSON can hold it: NaN is None, dates are ISO 8601, bytes are hexadecimal.

    Raises RecursionError where it is nested more than `levels` deep.
    """
    if not levels:
        raise RecursionError(f"nested more than {_DEEPEST} levels deep")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, Mapping):
        return {clean(str(k)): json_value(v, levels - 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(v, levels - 1) for v in value]
    if isinstance(value, bytes):
        value = value.hex()
    if hasattr(value, "tolist"):  # NumPy's scalars and arrays
        return json_value(value.tolist(), levels - 1)
    return clean(value.isoformat() if hasattr(value, "isoformat") else str(value))


def _string(row: Mapping[str, Any], field: str | None) -> str:
    value = row.get(field) if field is not None else None
    if value is None or isinstance(value, Mapping | list):
        return ""
    return clean(value if isinstance(value, str) else str(value))
