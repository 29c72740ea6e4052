"""What a search returns; what takes time to read is read when it is first asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from embedkit_indexes.segment_format import HIDDEN, NODE_TEXT, UNKNOWN_LEAD

if TYPE_CHECKING:
    from embedkit.embedder import Embedder
    from embedkit_indexes.cells import Cells
    from embedkit_indexes.snapshot import Ranking

# The fields of a hit that lie in the index's files.
CELLS = frozenset(
    (
        "chunk_id", "document_id", "position", "title", "text", "lang", "source", "start", "end", "lead", "metadata",
    )
)  # fmt: skip
# The fields that the second stage of a search fills; without one they are None.
SECOND_STAGE = frozenset(("rerank_score", "first_rank"))
# What `object` does: the classes below are frozen.
_set = object.__setattr__

# Both classes are dataclasses with slots. A slot that was left empty is an attribute that is not found, for which
# Python calls `__getattr__`: there it is filled, once. So every use of a field gets its value: `==`, `repr`, `asdict`,
# `replace`, copying and pickling too. A type checker must not see `__getattr__`: it would take any name for a field.


class _FromCells:
    """What a hit's cells are read from: a row of a segment."""

    __slots__ = ("_cells", "_row")

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name in CELLS:
                value = self._cells.cell(self._row, name)
                if name == "lead" and value == UNKNOWN_LEAD:
                    value = None
            elif name in SECOND_STAGE:
                value = None
            else:
                return object.__getattribute__(self, name)  # its error
            _set(self, name, value)
            return value


@dataclass(frozen=True, slots=True)
class SearchHit(_FromCells):
    """One chunk found.

    `score` is the cosine of query and chunk, -1..1, higher is nearer; with mode "hybrid" the fused rank (a sum of
    weight / (60 + rank), of use for the order alone), with mode "lexical" the BM25 score. `cosine` and `bm25` say what
    each of the two gave, None where it was not asked or did not find the chunk. Where a reranker ordered the hits,
    `rerank_score` is its score, of use for the order alone, and `first_rank` the rank before; `score` stays. `chunk_id` stays the chunk's own
    through every change; `index` names the directory where several were searched. `lead` is the white space before `start`
    in the document, of which chunks hold none; None where that is not known.

    What is stored with the chunk, its text above all, is read from the index when it is first asked for, and stays; a
    damaged file raises CorruptIndexError then. A hit can be read whatever becomes of the index: it keeps that file open.
    So where hits are kept for long, keep `asdict(hit)` or a pickle, which have read all of it.
    """

    rank: int
    score: float
    document_id: str
    position: int
    title: str
    text: str
    lang: str
    source: str
    start: int
    end: int
    metadata: Mapping[str, Any]
    chunk_id: int = -1
    cosine: float | None = None
    bm25: float | None = None
    index: str = ""
    rerank_score: float | None = None
    first_rank: int | None = None
    lead: str | None = None


def late_hits(
    ranking: Ranking,
    places: Sequence[tuple[Cells, int, str]],
    cosines: Mapping[int, float],
    bm25: Mapping[int, float],
) -> tuple[SearchHit, ...]:
    """Return the hits of a ranking, whose `CELLS` are read at these places when they are asked for.

    A place is a segment's cells, the row in it, and the directory of one of several.
    """
    hits: list[SearchHit] = []
    for score, number, (cells, row, index) in zip(*ranking, places, strict=True):
        hit = object.__new__(SearchHit)
        _set(hit, "rank", len(hits) + 1)
        _set(hit, "score", score)
        _set(hit, "cosine", cosines.get(number))
        _set(hit, "bm25", bm25.get(number))
        _set(hit, "index", index)
        _set(hit, "_cells", cells)
        _set(hit, "_row", row)
        hits.append(hit)
    return tuple(hits)


def place_of(hit: SearchHit) -> tuple[Cells | None, int]:
    """Return a segment's cells and the row in it that a hit is read from; None and -1 of a copied hit."""
    return getattr(hit, "_cells", None), getattr(hit, "_row", -1)


class _FromEmbedder:
    """What counts a result's tokens; None once they are counted."""

    __slots__ = ("_embedder",)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name == "rerank":
                _set(self, name, None)
                return None
            embedder = self._embedder if name == "truncated" else None
            if embedder is None:
                # Its error; or another thread has counted just now.
                return object.__getattribute__(self, name)
            count = truncated_tokens(embedder, self.encoded)
            _set(self, name, count)
            # A result that is kept shall not keep a model.
            _set(self, "_embedder", None)
            return count


@dataclass(frozen=True, slots=True)
class RerankReport:
    """What a reranker did and cost: pairs of query and text scored, tokens read (0: not counted), seconds."""

    reranker: str
    candidates: int
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class SearchResult(_FromEmbedder):
    """The hits of one query, best first, and what was really encoded for it.

    `truncated` counts the tokens of `encoded` beyond what the embedder sees of a text (it counts when first asked).
    `task` is the task's name, None for a free instruction or a bare query; `obeys` is False where the embedder was not
    trained on instructions and an instruction was given all the same. `rerank` tells the cost of a second stage, None
    without one.
    """

    query: str
    task: str | None
    instruction: str | None
    encoded: str
    obeys: bool
    truncated: int
    hits: tuple[SearchHit, ...]
    rerank: RerankReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without the metadata that a program stored for itself (`_node_…`)."""
        # As `asdict` does, which takes as long as a search: it copies every string and number too.
        hits = tuple(
            {name: getattr(hit, name) for name in _HIT} | {"metadata": shown_metadata(hit.metadata)}
            for hit in self.hits
        )
        told = {name: getattr(self, name) for name in _RESULT} | {"hits": hits}
        if self.rerank is not None:
            told["rerank"] = asdict(self.rerank)
        return told


def own_text(hit: SearchHit) -> str:
    """Return a chunk's text, for a node of LlamaIndex's without the metadata that was embedded before it."""
    span = hit.metadata.get(NODE_TEXT)
    if not isinstance(span, list) or len(span) != 2 or not all(isinstance(n, int) for n in span):
        return hit.text
    return hit.text[span[0] : span[1]] or hit.text


def shown_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy without what a program stored for itself (`_node_…`)."""
    return {name: deepcopy(value) for name, value in metadata.items() if not name.startswith(HIDDEN)}


def late_result(
    *,
    query: str,
    task: str | None,
    instruction: str | None,
    encoded: str,
    obeys: bool,
    hits: tuple[SearchHit, ...],
    embedder: Embedder,
) -> SearchResult:
    """Return a result whose `truncated` is counted when it is asked for."""
    result = object.__new__(SearchResult)
    _set(result, "query", query)
    _set(result, "task", task)
    _set(result, "instruction", instruction)
    _set(result, "encoded", encoded)
    _set(result, "obeys", obeys)
    _set(result, "hits", hits)
    _set(result, "_embedder", embedder)
    return result


def reordered(
    result: SearchResult, order: Sequence[int], scores: Sequence[float], report: RerankReport
) -> SearchResult:
    """Return a new search's result with the hits at these places alone, in that order; `scores` are of all its hits."""
    hits = tuple(result.hits[i] for i in order)
    for rank, (place, hit) in enumerate(zip(order, hits, strict=True), 1):
        # Nobody has seen them yet: a copy would have to read them whole.
        _set(hit, "first_rank", hit.rank)
        _set(hit, "rerank_score", scores[place])
        _set(hit, "rank", rank)
    _set(result, "hits", hits)
    _set(result, "rerank", report)
    return result


_HIT = [field.name for field in fields(SearchHit)]
_RESULT = [field.name for field in fields(SearchResult)]


def truncated_tokens(embedder: Embedder, encoded: str) -> int:
    """Count the tokens of a rendered query that the embedder does not see."""
    return max(0, embedder.count_tokens([encoded])[0] - embedder.info.max_length)


class RankedChunk(NamedTuple):
    """A chunk found, by its document's id; several chunks of one document come several times."""

    document_id: str
    score: float
