"""Training rows: what one example holds, and how it stands in JSONL and Parquet files.

One JSON object a line; in Parquet one column a key, where null counts as absent:

    query            string, required                what is searched with, without any instruction
    positive         string, required                what it shall find
    negatives        list of strings, 0 or more      what it shall not find; `negative` is the same
    instruction      string                          the task's sentence
    source           string                          where the row comes from
    positive_id      string or integer               identity or class of the positive
    negative_ids     list, as long as negatives      likewise of each negative; null: none
    teacher_scores   list of numbers, 1 + negatives  a teacher's score of the positive, then of each negative
    score            number                          graded similarity of query and positive
    lang_q, lang_d, lang, task, group, licence, license, id, query_id, split, metadata: anything, ignored

Any other key is an error, because a misspelt one would silently train on less.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from embedkit.errors import CorpusError, InputError
from embedkit_trainer.data.files import KINDS, kind_of, replaced, row_files, text_lines, writer

IGNORED = frozenset(
    "lang_q lang_d lang task group licence license id query_id split metadata".split()  # noqa: SIM905
)
_OWN = (
    "query", "positive", "negatives", "negative", "instruction", "source", "positive_id", "negative_ids",
    "teacher_scores", "score",
)  # fmt: skip
_KNOWN = IGNORED | frozenset(_OWN)
_BATCH = 1024
_LARGEST = 3.4e38  # scores are trained on in float32


@dataclass(frozen=True, slots=True)
class Row:
    """Hold one training example.

    `positive_id` is an identity and may be a class: rows that share it never serve each other as negatives.
    `teacher_scores` belong to the positive first, then to each negative. `score` is a graded similarity of
    query and positive (STS). `line` says where the row stands in its file, from 1 (0: nowhere).
    """

    query: str
    positive: str
    negatives: tuple[str, ...] = ()
    instruction: str | None = None
    source: str = ""
    positive_id: str | None = None
    negative_ids: tuple[str | None, ...] = ()
    teacher_scores: tuple[float, ...] | None = None
    score: float | None = None
    line: int = 0


def read_rows(path: str | os.PathLike[str], *, source: str = "") -> Iterator[Row]:
    """Yield the rows of a file, a folder or a glob; `source` names those that do not say where they come from.

    Raises InputError where `path` means no file; CorpusError, with the line (Parquet: the row, from 1), for the first
    row that breaks the schema and for a file that holds no rows or cannot be read.
    """
    for file in row_files(path):
        for row, _ in read_records(file, source=source):
            yield row


def read_records(file: Path, *, source: str = "") -> Iterator[tuple[Row, Mapping[str, Any]]]:
    """Yield each row of one file with the object it stands for, ignored keys and all; raises as `read_rows` does."""
    empty = True
    objects = _lines(file) if kind_of(file) == "lines" else _parquet(file)
    for line, value in objects:
        empty = False
        try:
            yield parse_row(value, source=source, line=line), value
        except InputError as e:
            raise CorpusError(str(file), str(e), line) from None
    if empty:
        raise CorpusError(str(file), "holds no rows: take it out, or fill it")


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    for line, text in text_lines(path):
        try:
            value = json.loads(text)
        except RecursionError:
            raise CorpusError(str(path), "malformed JSON: nested too deeply", line) from None
        except ValueError as e:
            raise CorpusError(str(path), f"malformed JSON: {e}", line) from None
        yield line, value


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    line = 0
    try:
        with pq.ParquetFile(path) as file:
            _check_keys(file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=_BATCH):
                for record in batch.to_pylist():
                    line += 1
                    yield line, record
    except (pa.ArrowException, OSError) as e:
        raise CorpusError(str(path), f"no readable Parquet file after row {line}: {e}") from e
    except InputError as e:
        raise e if isinstance(e, CorpusError) else CorpusError(str(path), str(e)) from None


def parse_row(value: Any, *, source: str = "", line: int = 0) -> Row:
    """Return the row of one JSON object. Raises InputError (without file and line) where it breaks the schema."""
    if not isinstance(value, Mapping):
        raise InputError(f"expected an object with query and positive, not {_type(value)}")
    if not _KNOWN.issuperset(value):
        _check_keys(value)
    negatives = _negatives(value)
    return Row(
        query=_text(value.get("query"), "query"),
        positive=_text(value.get("positive"), "positive"),
        negatives=negatives,
        instruction=_optional_text(value, "instruction"),
        source=_optional_text(value, "source") or source,
        positive_id=_identity(value.get("positive_id"), "positive_id"),
        negative_ids=_negative_ids(value.get("negative_ids"), len(negatives)),
        teacher_scores=_teacher_scores(value.get("teacher_scores"), len(negatives)),
        score=None if value.get("score") is None else _number(value["score"], "score"),
        line=line,
    )


def _check_keys(keys: Iterable[Any]) -> None:
    import difflib

    for key in keys:
        if key not in _KNOWN:
            near = difflib.get_close_matches(str(key).lower(), _KNOWN, n=1, cutoff=0.6)
            advice = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(_OWN)}"
            raise InputError(f"unknown key {key!r}: {advice}")


def _type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def _text(value: Any, key: str) -> str:
    if value is None:
        raise InputError(f"{key} is missing: every row needs a query and a positive")
    if not isinstance(value, str):
        raise InputError(f"{key} is {_type(value)}, not a string")
    if not value.strip():
        raise InputError(f"{key} is empty: give it some text, or leave the row out")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as e:
            raise InputError(
                f"{key} holds half a surrogate pair at character {e.start}: mend the text"
            ) from None
    return value


def _optional_text(value: Mapping[str, Any], key: str) -> str | None:
    found = value.get(key)
    return None if found is None else _text(found, key)


def _negatives(value: Mapping[str, Any]) -> tuple[str, ...]:
    found = value.get("negatives")
    other = value.get("negative")
    if found is not None and other is not None:
        raise InputError("the row has both negatives and negative, which mean the same: keep one")
    key = "negatives" if other is None else "negative"
    given = found if other is None else other
    if given is None:
        return ()
    if not isinstance(given, list | tuple):
        raise InputError(
            f"{key} is {_type(given)}, not a list of strings: write [...], also around a single one"
        )
    return tuple(_text(text, f"{key}[{i}]") for i, text in enumerate(given))


def _identity(value: Any, key: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _text(value, key)


def _negative_ids(value: Any, count: int) -> tuple[str | None, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise InputError(f"negative_ids is {_type(value)}, not a list")
    if len(value) != count:
        raise InputError(f"negative_ids holds {len(value)} for {count} negatives: give one for each, or null")
    return tuple(_identity(v, f"negative_ids[{i}]") for i, v in enumerate(value))


def _teacher_scores(value: Any, count: int) -> tuple[float, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple):
        raise InputError(f"teacher_scores is {_type(value)}, not a list of numbers")
    if len(value) != count + 1:
        raise InputError(
            f"teacher_scores holds {len(value)} numbers, expected {count + 1}: the positive's, then each negative's"
        )
    return tuple(_number(v, f"teacher_scores[{i}]") for i, v in enumerate(value))


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{key} is {_type(value)}, not a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{key} is {value}: give a finite number")
    if abs(value) > _LARGEST:
        shown = f"an integer of {len(str(abs(value)))} digits" if isinstance(value, int) else value
        raise InputError(f"{key} is {shown}, beyond what float32 holds: give a smaller number")
    return float(value)


def write_rows(path: str | os.PathLike[str], rows: Iterable[Row]) -> int:
    """Write rows as JSONL (compressed where the name says so) or Parquet, and return how many.

    The file appears whole or not at all. Raises InputError where there are no rows or the name is of no known kind;
    StoreError where the disk is full or forbids it.
    """
    target = Path(path).expanduser()
    kind = kind_of(target)
    if not kind:
        raise InputError(f"cannot write training rows to {target}: name it {KINDS}")
    with replaced(target) as beside:
        count = (_write_lines if kind == "lines" else _write_parquet)(beside, iter(rows))
        if not count:
            raise InputError(f"there are no rows to write to {target}: nothing was written")
    return count


def row_record(row: Row) -> dict[str, Any]:
    """Return the row as its JSON object; keys that say nothing are left out, and so is `line`."""
    record: dict[str, Any] = {"query": row.query, "positive": row.positive}
    if row.negatives:
        record["negatives"] = list(row.negatives)
    for key in ("instruction", "source", "positive_id", "score"):
        found = getattr(row, key)
        if found is not None and found != "":
            record[key] = found
    if row.negative_ids:
        record["negative_ids"] = list(row.negative_ids)
    if row.teacher_scores is not None:
        record["teacher_scores"] = list(row.teacher_scores)
    return record


def _write_lines(path: Path, rows: Iterator[Row]) -> int:
    count = 0
    with writer(path) as f:
        for row in rows:
            f.write(json.dumps(row_record(row), ensure_ascii=False, allow_nan=False).encode() + b"\n")
            count += 1
    return count


def _write_parquet(path: Path, rows: Iterator[Row]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = pa.list_(pa.string())
    schema = pa.schema(
        {
            "query": pa.string(),
            "positive": pa.string(),
            "negatives": texts,
            "instruction": pa.string(),
            "source": pa.string(),
            "positive_id": pa.string(),
            "negative_ids": texts,
            "teacher_scores": pa.list_(pa.float64()),
            "score": pa.float64(),
        }
    )
    count = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as file:
        while records := [row_record(row) for row in islice(rows, _BATCH)]:
            file.write_batch(pa.RecordBatch.from_pylist(records, schema=schema))
            count += len(records)
    return count
