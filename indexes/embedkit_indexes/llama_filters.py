"""LlamaIndex's metadata filters as conditions on chunks: each test says what core's own simple store says of a value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from embedkit.errors import InputError
from embedkit_indexes.conditions import DEEPEST, And, Condition, Not, Or, Source, Test
from embedkit_indexes.llama_nodes import NODE_TYPE, SOURCE_ID, parts_of_id
from embedkit_indexes.segment import FIELDS

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

# What core's stores call the document that a node was made of, and what they write where there is none.
_SOURCE_NAMES = (SOURCE_ID, "doc_id", "document_id")
_NO_SOURCE = "None"


class _NodeCondition(Condition):
    """A condition that no index refuses: a key that no node has is missing everywhere, as in core's stores."""

    __slots__ = ()
    depth = 1

    def tests(self) -> Iterator[Test]:
        """Yield nothing: no name and no type has to be there."""
        return iter(())

    def to_dict(self) -> dict[str, Any]:
        """Return what it asks, in words."""
        return {"llama_index": str(self)}


class Everything(_NodeCondition):
    """All chunks."""

    __slots__ = ()

    def mask(self, source: Source) -> NDArray[np.bool_]:
        """Return True for every row, bool [rows]."""
        import numpy as np

        return np.ones(source.rows, dtype=bool)

    def __str__(self) -> str:
        return "everything"


class NodeIds(_NodeCondition):
    """The nodes with one of these ids; a chunk of a document is found as `document#position`."""

    __slots__ = ("_ids",)

    def __init__(self, ids: Sequence[str]) -> None:
        self._ids = frozenset(ids)

    def mask(self, source: Source) -> NDArray[np.bool_]:
        """Return which rows are asked for, bool [rows]."""
        import numpy as np

        from embedkit_indexes.column_masks import member_mask

        ids = source.column("id")
        if ids is None or not self._ids:
            return np.zeros(source.rows, dtype=bool)
        nodes = is_node(source)
        out: NDArray[np.bool_] = member_mask(ids, sorted(self._ids)) & nodes
        places = {parts for id in self._ids if (parts := parts_of_id(id)) is not None}
        chunks = [] if nodes.all() or not places else _rows_of(source, ids, sorted({d for d, _ in places}))
        positions = source.column("position")
        for row in chunks:
            if not nodes[row] and positions is not None:
                out[row] = (ids[row].as_py(), positions[row].as_py()) in places
        return out

    def __str__(self) -> str:
        return f"node id in {sorted(self._ids)!r}"


class MetadataMatch(_NodeCondition):
    """One filter of LlamaIndex's on a metadata key.

    A key that no node has is missing. Values that cannot be compared, which core's store raises a TypeError for, do not
    match. On chunks that no node was stored as, the key may also be one of the chunk's own fields.
    """

    __slots__ = ("_key", "_operator", "_value")

    def __init__(self, key: str, operator: FilterOperator, value: Any) -> None:
        self._key, self._operator, self._value = key, operator, value

    def mask(self, source: Source) -> NDArray[np.bool_]:
        """Return which rows pass, bool [rows]."""
        import numpy as np

        from embedkit_indexes.column_masks import valid_mask

        nodes = is_node(source)
        default = np.full(source.rows, self._passes(None))
        if self._key in _SOURCE_NAMES:
            default[nodes] = self._passes(_NO_SOURCE)
        fallback = dict.fromkeys(_SOURCE_NAMES, "id") | {name: name for name in FIELDS}
        columns = [source.column(f"metadata.{self._key}")]
        if self._key in _SOURCE_NAMES[1:]:
            columns.append(source.column(f"metadata.{SOURCE_ID}"))
        out: NDArray[np.bool_] = default
        if self._key in fallback and not nodes.all():
            own = source.column(fallback[self._key])
            if own is not None:
                out = np.where(nodes, out, _each(own, self._passes))
        for column in reversed(columns):
            if column is not None:
                out = np.where(valid_mask(column), _each(column, self._passes), out)
        if self._operator is FilterOperator.IS_EMPTY:
            out &= ~_objects(source, self._key)
        return out

    def _passes(self, found: Any) -> bool:
        if found is None:
            return self._operator in (FilterOperator.NE, FilterOperator.NIN, FilterOperator.IS_EMPTY)
        try:
            return bool(_TESTS[self._operator](found, self._value))
        except TypeError:
            return self._operator is FilterOperator.NIN

    def __str__(self) -> str:
        return f"metadata {self._key!r} {self._operator.value} {self._value!r}"


_TESTS: dict[FilterOperator, Callable[[Any, Any], Any]] = {
    FilterOperator.EQ: lambda found, value: found == value,
    FilterOperator.NE: lambda found, value: found != value,
    FilterOperator.GT: lambda found, value: found > value,
    FilterOperator.GTE: lambda found, value: found >= value,
    FilterOperator.LT: lambda found, value: found < value,
    FilterOperator.LTE: lambda found, value: found <= value,
    FilterOperator.IN: lambda found, value: found in value,
    FilterOperator.NIN: lambda found, value: found not in value,
    FilterOperator.CONTAINS: lambda found, value: value in found,
    FilterOperator.ANY: lambda found, value: any(v in found for v in value),
    FilterOperator.ALL: lambda found, value: all(v in found for v in value),
    FilterOperator.TEXT_MATCH: lambda found, value: _text(value) in _text(found),
    FilterOperator.TEXT_MATCH_INSENSITIVE: lambda found, value: _text(value).lower() in _text(found).lower(),
    FilterOperator.IS_EMPTY: lambda found, value: found in ("", []),
}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def condition_of(
    filters: MetadataFilters | None,
    *,
    node_ids: Sequence[str] | None = None,
    doc_ids: Sequence[str] | None = None,
) -> Condition | None:
    """Return as one condition what a query of LlamaIndex's asks for, None for nothing.

    Raises InputError for a filter that is none, or nested too deep.
    """
    parts: list[Condition] = []
    if filters is not None and (not isinstance(filters, MetadataFilters) or filters.filters):
        try:
            parts.append(_group(filters))
        except RecursionError:
            raise InputError(
                f"the filter is nested more than {DEEPEST} levels deep: write it flatter"
            ) from None
    if node_ids is not None:
        parts.append(NodeIds(_checked(node_ids, "node_ids")))
    if doc_ids is not None:
        parts.append(MetadataMatch(SOURCE_ID, FilterOperator.IN, _checked(doc_ids, "doc_ids")))
    return _joined(And, parts) if parts else None


def _checked(ids: Sequence[str], name: str) -> list[str]:
    listed = [] if isinstance(ids, str) or not isinstance(ids, Iterable) else list(ids)
    if not all(isinstance(id, str) for id in listed) or (ids and not listed):
        raise InputError(f"{name} is {ids!r:.60}: give a list of strings")
    return listed


def _group(filters: MetadataFilters) -> Condition:
    if not isinstance(filters, MetadataFilters):
        raise InputError(f"filters is {filters!r:.60}: give MetadataFilters(filters=[MetadataFilter(…)])")
    parts = [_group(f) if isinstance(f, MetadataFilters) else _leaf(f) for f in filters.filters]
    if not parts:
        return Everything()
    if filters.condition is FilterCondition.NOT:
        return Not(_joined(Or, parts))  # none of them matches
    return _joined(Or if filters.condition is FilterCondition.OR else And, parts)


def _leaf(found: MetadataFilter) -> Condition:
    return MetadataMatch(found.key, found.operator, found.value)


def _joined(kind: type[And | Or], parts: Sequence[Condition]) -> Condition:
    return parts[0] if len(parts) == 1 else kind(tuple(parts))


def is_node(source: Source) -> NDArray[np.bool_]:
    """Return which rows hold a node of LlamaIndex's, bool [rows]; the others are chunks of documents."""
    import numpy as np

    from embedkit_indexes.column_masks import valid_mask

    column = source.column(f"metadata.{NODE_TYPE}")
    return np.zeros(source.rows, dtype=bool) if column is None else valid_mask(column)


def _rows_of(source: Source, ids: pa.ChunkedArray, wanted: Sequence[str]) -> list[int]:
    import numpy as np

    from embedkit_indexes.column_masks import member_mask

    rows: list[int] = np.flatnonzero(member_mask(ids, wanted)).tolist()
    return rows


def _objects(source: Source, key: str) -> NDArray[np.bool_]:
    """Return which rows hold an object with keys of its own under this one, which have columns of dotted names."""
    import numpy as np

    from embedkit_indexes.column_masks import valid_mask

    out = np.zeros(source.rows, dtype=bool)
    for name in source.names():
        if name.startswith(f"{key}.") and (column := source.column(f"metadata.{name}")) is not None:
            out |= valid_mask(column)
    return out


def _each(column: pa.ChunkedArray, passes: Callable[[Any], bool]) -> NDArray[np.bool_]:
    """Test each distinct value once, in Python: core's meaning of a test is Python's."""
    import json

    import numpy as np
    import pyarrow as pa

    out = np.zeros(len(column), dtype=bool)
    start = 0
    for chunk in column.chunks:
        kind = chunk.type
        if pa.types.is_list(kind) or pa.types.is_null(kind):
            answers = [passes(value) for value in chunk.to_pylist()]
        else:
            coded = chunk if pa.types.is_dictionary(kind) else chunk.dictionary_encode()
            values = coded.dictionary.to_pylist()
            if pa.types.is_binary(kind):
                values = [None if v is None else json.loads(v) for v in values]
            known = [passes(v) for v in values]
            missing = passes(None)
            answers = [missing if i is None else known[i] for i in coded.indices.to_pylist()]
        out[start : start + len(chunk)] = answers
        start += len(chunk)
    return out
