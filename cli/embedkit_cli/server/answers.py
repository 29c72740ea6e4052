"""What the server answers, for its OpenAPI alone: the bytes are built elsewhere, and are not checked against this."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class ErrorDetail(BaseModel):
    """One sentence, and what a program may tell it by."""

    message: str
    type: Literal[
        "invalid_request_error",
        "authentication_error",
        "permission_error",
        "rate_limit_error",
        "server_error",
    ]
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """An error, as OpenAI's API has it."""

    error: ErrorDetail


class Embedding(BaseModel):
    """A unit vector: numbers, or base64 of float32, little-endian."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """The tokens that were read; what was cut off is told in the header X-Truncated-Tokens."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    """Vectors in the order of the texts."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class Model(BaseModel):
    """An embedder."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    fingerprint: str
    dimensions: int
    shorter_dimensions: list[int]
    max_length: int
    instruction_trained: bool
    default_task: str | None


class ModelsAnswer(BaseModel):
    """The embedders."""

    object: Literal["list"]
    data: list[Model]


class StatusAnswer(BaseModel):
    """That all is well."""

    status: str


class IndexEmbedder(BaseModel):
    """What an index was built with."""

    name: str
    fingerprint: str
    dim: int
    instruction_trained: bool


class IndexAnswer(BaseModel):
    """An index; `tasks` are those stored with it."""

    name: str
    documents: int
    chunks: int
    languages: dict[str, int]
    embedder: IndexEmbedder
    generation: int
    updated: str
    tasks: list[str]


class IndexesAnswer(BaseModel):
    """The indexes that are there at present, and the rerankers that a search may name."""

    indexes: list[IndexAnswer]
    rerankers: list[str]


class TaskAnswer(BaseModel):
    """A task; `source` is an index's name, or built-in."""

    name: str
    instruction: str
    description: str
    source: str


class TasksAnswer(BaseModel):
    """The tasks of an index, and the built-in ones; `default` is asked under where none is named."""

    tasks: list[TaskAnswer]
    default: str | None


class Snippet(BaseModel):
    """The best-matching passage; `start` and `end` count characters of the hit's text."""

    text: str
    start: int
    end: int


class Hit(BaseModel):
    """A chunk found; `score` is as the mode says, `cosine` and `bm25` what each gave in mode hybrid.

    Where a reranker ordered the hits, `rerank_score` is its score, and `first_rank` the rank before.
    """

    rank: int
    first_rank: int | None = None
    score: float
    document_id: str
    chunk_id: int
    position: int
    title: str
    text: str
    lang: str
    source: str
    start: int
    end: int
    metadata: dict[str, Any]
    cosine: float | None
    bm25: float | None
    rerank_score: float | None = None
    snippet: Snippet | None = None


class AlsoIn(BaseModel):
    """Another place that says the same; `same` is false where the words differ a little."""

    document_id: str
    title: str
    source: str
    start: int | None
    end: int | None
    same: bool


class Passage(BaseModel):
    """A numbered passage; `start` and `end` count characters of the document, `cut` says that it ends early."""

    number: int
    text: str
    document_id: str
    title: str
    heading: str
    source: str
    start: int | None
    end: int | None
    lang: str
    score: float
    chunk_ids: list[int]
    index: str
    metadata: dict[str, Any]
    also_in: list[AlsoIn]
    cut: bool


class LeftOut(BaseModel):
    """How many of the hits are in no passage, and why."""

    duplicates: int
    budget: int


class ContextAnswer(BaseModel):
    """Passages for a prompt; `tokens` counts `text`, `markdown` or the contents of `messages`, whichever is there."""

    format: Literal["text", "markdown", "json", "messages"]
    budget: int
    tokens: int
    left_out: LeftOut
    blocks: list[Passage]
    text: str | None = None
    markdown: str | None = None
    messages: list[dict[str, str]] | None = None


class Rerank(BaseModel):
    """What a reranker did and cost: hits scored, tokens read (0: not counted), seconds."""

    reranker: str
    candidates: int
    tokens: int
    seconds: float


class Result(BaseModel):
    """What one task found; `truncated` counts tokens of the query that were not read."""

    task: str | None
    instruction: str | None
    obeys: bool
    truncated: int
    hits: list[Hit]
    took_ms: float
    encoded: str | None = None
    tokens: list[str] | None = None
    rerank: Rerank | None = None
    context: ContextAnswer | None = None


class SearchAnswer(BaseModel):
    """A result for each task, all of one version of the index."""

    index: str
    generation: int
    query: str
    results: list[Result]
    encode_ms: float
