"""Masks over Arrow columns: which rows pass a filter's test, as `predicates.holds` says of each value."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

from embedkit.errors import CorruptIndexError
from embedkit_indexes.predicates import ORDER, Value, family, holds, wildcards

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

_ARROW = {
    "=": "equal",
    "!=": "not_equal",
    "<": "less",
    "<=": "less_equal",
    ">": "greater",
    ">=": "greater_equal",
}
# Up to here a comparison for each value is faster than sorting them.
_FEW = 16
_FORMS = {
    "null": "nothing",
    "json": "values of several types",
    "string": "strings",
    "boolean": "booleans",
    "integer": "integers",
    "number": "numbers",
}


def column_mask(column: pa.ChunkedArray, test: str, value: Value) -> NDArray[np.bool_]:
    """Return which rows pass the test, bool [rows]."""
    return _by_chunk(column, lambda chunk: _test(chunk, test, value))


def member_mask(column: pa.ChunkedArray, values: Sequence[Value]) -> NDArray[np.bool_]:
    """Return which rows hold one of the values, bool [rows]."""
    return _by_chunk(column, lambda chunk: _members(chunk, values))


def valid_mask(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Return which rows hold anything, bool [rows]."""
    return _by_chunk(column, _valid)


def accepts(type: pa.DataType, test: str, value: Value) -> bool:
    """Say whether the test can be true of any value of this type, `!=` apart."""
    form = _form(type)
    if form in ("null", "json"):
        return True
    if form == "list":
        return test == "contains" and accepts(type.value_type, "=", value)
    if form == "string":
        return isinstance(value, str)
    if form == "boolean":
        return isinstance(value, bool) and test in ("=", "!=")
    return family(value) == "number" and test in ORDER


def describe(type: pa.DataType) -> str:
    """Return in words what a column holds: "integers", "lists of strings" …"""
    form = _form(type)
    return f"lists of {describe(type.value_type)}" if form == "list" else _FORMS[form]


def sample(column: pa.ChunkedArray) -> Any:
    """Return the first value there is, None where there is none."""
    for chunk in column.chunks:
        places = _valid(chunk).nonzero()[0]
        if len(places):
            return chunk[int(places[0])].as_py()
    return None


def _form(type: pa.DataType) -> str:
    import pyarrow.types as pt

    if pt.is_dictionary(type):
        return _form(type.value_type)
    tests = (
        ("null", pt.is_null),
        ("json", pt.is_binary),
        ("list", pt.is_list),
        ("string", pt.is_string),
        ("string", pt.is_large_string),
        ("boolean", pt.is_boolean),
        ("integer", pt.is_integer),
    )
    return next((form for form, test in tests if test(type)), "number")


def _by_chunk(column: pa.ChunkedArray, mask: Callable[[pa.Array], NDArray[np.bool_]]) -> NDArray[np.bool_]:
    import numpy as np

    out, start = np.zeros(len(column), dtype=bool), 0
    for chunk in column.chunks:
        if len(chunk):
            out[start : start + len(chunk)] = mask(chunk)
        start += len(chunk)
    return out


def _test(chunk: pa.Array, test: str, value: Value) -> NDArray[np.bool_]:
    form = _form(chunk.type)
    if form == "null" or not accepts(chunk.type, test, value):
        return _valid(chunk) if test == "!=" else _none(chunk)
    if form == "json" or hasattr(chunk, "dictionary"):
        return _by_distinct(chunk, lambda found: holds(found, test, value))
    if form == "list":
        passed = _any_item(chunk, _test(chunk.values, "=", value))
    elif isinstance(value, str):
        passed = _bits(_strings(chunk, test, value))
    elif form == "boolean":
        passed = _bits(chunk) == (value if test == "=" else not value)
    else:
        passed = _numbers(_buffer(chunk), test, value)
    return passed & _valid(chunk)


def _members(chunk: pa.Array, values: Sequence[Value]) -> NDArray[np.bool_]:
    import numpy as np

    form = _form(chunk.type)
    if form == "json" or hasattr(chunk, "dictionary"):
        # True equals 1 in Python, not in JSON; and a list or an object equals no value, besides having no hash.
        wanted = {(family(v), v) for v in values}
        return _by_distinct(chunk, lambda f: family(f) != "other" and (family(f), f) in wanted)
    usable = [v for v in values if accepts(chunk.type, "=", v)]
    if form == "null" or not usable:
        return _none(chunk)
    if form == "string":
        import pyarrow.compute as pc

        found = pc.is_in(chunk, value_set=_string_array([str(v) for v in usable], chunk.type))
        return _bits(found) & _valid(chunk)
    numbers: NDArray[Any] = _bits(chunk) if form == "boolean" else _buffer(chunk)
    held = [h for v in usable if not isinstance(v, str) and (h := _held(numbers.dtype, v)) == v]
    if len(held) > _FEW:
        return np.isin(numbers, np.array(held, dtype=numbers.dtype)) & _valid(chunk)
    return reduce(np.logical_or, [numbers == h for h in held], _none(chunk)) & _valid(chunk)


def _by_distinct(chunk: pa.Array, passes: Callable[[Any], bool]) -> NDArray[np.bool_]:
    """Test each distinct value once, in Python, and look the rows' answers up."""
    import numpy as np
    import pyarrow.types as pt

    as_json = pt.is_binary(chunk.type)
    if as_json:
        chunk = chunk.dictionary_encode()
    try:
        values = chunk.dictionary.to_pylist()
        answers = [passes(json.loads(v) if as_json and v is not None else v) for v in values]
    except ValueError as e:
        raise CorruptIndexError(
            f"a metadata column holds broken values ({e}): `embedkit verify` names the file"
        ) from e
    # Clipped, for a code that stands in place of null may be any.
    found = np.take(np.array([*answers, False]), _buffer(chunk.indices), mode="clip")
    return found & _valid(chunk)


def _strings(chunk: pa.Array, test: str, value: str) -> pa.Array:
    import pyarrow.compute as pc

    if test == "contains":
        return pc.match_substring(chunk, value)
    if test == "startswith":
        return pc.starts_with(chunk, value)
    if test == "like":
        return pc.match_substring_regex(chunk, _expression(value))
    return getattr(pc, _ARROW[test])(chunk, _string_array([value], chunk.type)[0])


def _numbers(found: NDArray[Any], test: str, value: float) -> NDArray[np.bool_]:
    """Compare without rounding: a bound that the column's type cannot hold becomes the nearest one that it can."""
    import numpy as np

    held = _held(found.dtype, value)
    if held != value:
        if test in ("=", "!="):
            return np.full(len(found), test == "!=")
        below = held < value
        test = ("<=" if below else "<") if test[0] == "<" else (">" if below else ">=")
    out: NDArray[np.bool_] = ORDER[test](found, held)
    return out


def _held(dtype: np.dtype[Any], value: float) -> float:
    """Return the number of this type that is next to the value, on either side."""
    import numpy as np

    if dtype.kind == "b":
        return value
    if dtype.kind == "f":
        return float(value)
    bounds = np.iinfo(dtype)
    return max(int(bounds.min), min(int(bounds.max), math.floor(value)))


def _expression(pattern: str) -> str:
    """Return the pattern as RE2, which Arrow runs in linear time, takes it."""
    known = {None: ".*", "": "."}
    return "(?s)\\A" + "".join(known.get(p) or re.escape(str(p)) for p in wildcards(pattern)) + "\\z"


def _string_array(values: Sequence[str], kind: pa.DataType) -> pa.Array:
    """Make an array from its buffers: `pa.array` and `pa.scalar` would import pandas where it is installed."""
    import numpy as np
    import pyarrow as pa

    # Half a surrogate pair, which no stored text holds, has a form that equals none of theirs.
    encoded = [v.encode(errors="surrogatepass") for v in values]
    width = np.int64 if pa.types.is_large_string(kind) else np.int32
    offsets = np.concatenate([[0], np.cumsum([len(v) for v in encoded])]).astype(width)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(kind, len(values), buffers)


def _any_item(chunk: pa.Array, passed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Say of each list whether one of its items passed; `passed` counts from the array's first item."""
    import numpy as np

    offsets = np.frombuffer(chunk.buffers()[1], np.int32, len(chunk) + 1, chunk.offset * 4)
    passed_before = np.zeros(len(passed) + 1, dtype=np.int32)
    np.cumsum(passed, out=passed_before[1:])
    bounds = passed_before[offsets]
    out: NDArray[np.bool_] = bounds[1:] > bounds[:-1]
    return out


# Buffers are read where they lie: `to_numpy` imports pandas where it is installed, a third of a second of a search.
def _buffer(chunk: pa.Array) -> NDArray[Any]:
    """Return the numbers, whatever stands in place of nulls among them."""
    import numpy as np

    dtype = np.dtype(chunk.type.to_pandas_dtype())
    return np.frombuffer(chunk.buffers()[1], dtype, len(chunk), chunk.offset * dtype.itemsize)


def _valid(chunk: pa.Array) -> NDArray[np.bool_]:
    import pyarrow.types as pt

    if pt.is_null(chunk.type):
        return _none(chunk)
    buffer = chunk.buffers()[0]
    return _all(chunk) if buffer is None else _unpack(buffer, chunk)


def _bits(chunk: pa.Array) -> NDArray[np.bool_]:
    """Return the booleans, whatever stands in place of nulls among them."""
    return _unpack(chunk.buffers()[1], chunk)


def _unpack(buffer: pa.Buffer, chunk: pa.Array) -> NDArray[np.bool_]:
    import numpy as np

    first, skipped = divmod(chunk.offset, 8)
    count = skipped + len(chunk)
    packed = np.frombuffer(buffer, np.uint8, (count + 7) // 8, first)
    return np.unpackbits(packed, count=count, bitorder="little")[skipped:].view(bool)


def _all(chunk: pa.Array) -> NDArray[np.bool_]:
    import numpy as np

    return np.ones(len(chunk), dtype=bool)


def _none(chunk: pa.Array) -> NDArray[np.bool_]:
    import numpy as np

    return np.zeros(len(chunk), dtype=bool)
