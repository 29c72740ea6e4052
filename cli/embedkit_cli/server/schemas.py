"""What requests hold: checked here, and described so in the server's OpenAPI."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
)

from embedkit_cli.server.errors import ApiError, invalid

if TYPE_CHECKING:
    from embedkit_cli.server.config import Limits

_M = TypeVar("_M", bound=BaseModel)
# Deeper than any filter may be (64 levels, an object and a list each), and far from the end of Python's stack.
_DEEPEST = 200
# Characters of a filter's text, or values in its object.
_FILTER = 20_000
# Not looked at one by one: far above what any server is told to take.
_MOST = 100_000


def _checked_input(value: Any) -> Any:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise ValueError("give a text or a list of texts")
    if len(value) > _MOST:
        raise ValueError(f"{len(value):,} texts are too many for one request")
    if not value:
        raise ValueError("the list is empty: give at least one text")
    for number, text in enumerate(value):
        if isinstance(text, str):
            continue
        if isinstance(text, int | list) and not isinstance(text, bool):
            raise ValueError(
                "token arrays are not taken, as they belong to another model's tokenizer: give texts"
            )
        raise ValueError(f"item {number} is no text")
    return value


_INPUT = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
    ],
    "description": "A text, or several. Token arrays are refused: they belong to another model's tokenizer.",
}
Texts = Annotated[list[str], BeforeValidator(_checked_input), WithJsonSchema(_INPUT)]
# A longer name is none, and not compared with those that there are.
Name = Annotated[str, Field(max_length=200)]
# Of fields that may be of several kinds: their own errors name the kinds one by one.
_KINDS = {
    "tasks": 'give a task\'s name (200 characters at most) or {"instruction": "…"}',
    "where": "give a filter as text or as an object",
    "snippets": 'give true, false, "words" or "meaning"',
}


def _checked_weights(weights: list[float]) -> list[float]:
    if min(weights) < 0 or not 0 < sum(weights) < float("inf"):
        raise ValueError(
            f"{weights} cannot weigh vectors and words: give none below 0, not both 0, and none too large to add up"
        )
    return weights


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class EmbeddingsBody(_Body):
    """The body of POST /v1/embeddings: OpenAI's, with `input_type`, `task` and `instruction`."""

    input: Texts
    model: Name | None = Field(None, description="One of GET /v1/models; else the first of them.")
    encoding_format: Literal["float", "base64"] | None = Field(None, description="Else float.")
    dimensions: int | None = Field(
        None, ge=1, description="Shorter vectors, where the model was trained to be cut."
    )
    user: Name | None = Field(None, description="Taken as OpenAI takes it, and not used.")
    input_type: Literal["query", "document", "rendered"] | None = Field(
        None,
        description="A query carries a task's instruction, a document none, and a rendered text is encoded as it is; "
        "else document, or query where a task or an instruction is given.",
    )
    task: Name | None = Field(None, description="The task of the queries, one of GET /tasks.")
    instruction: str | None = Field(None, description="What the queries should find, in your own words.")


class TaskBody(_Body):
    """A task in the words of whoever asks."""

    instruction: str = Field(min_length=1)


class ContextBody(_Body):
    """How what is found is made passages for a prompt."""

    budget: int = Field(
        2000, ge=1, le=200_000, description="Most tokens of what `format` gives, citations too."
    )
    format: Literal["text", "markdown", "json", "messages"] = "text"
    expand: int = Field(0, ge=0, le=100, description="Chunks before and after each hit to take in.")
    order: Literal["score", "source"] = Field(
        "score", description="Best passage first, or those of a document together."
    )


class SearchBody(_Body):
    """The body of POST /search."""

    query: str = Field(min_length=1)
    index: Name | None = Field(None, description="One of GET /indexes; else the first of them.")
    tasks: list[Name | TaskBody] | None = Field(
        None,
        min_length=1,
        max_length=8,
        description="Tasks by name or in your own words, answered side by side; else the embedder's default.",
    )
    k: int = Field(10, ge=1, le=1000, description="How many hits.")
    lang: Name | None = Field(None, description="Find chunks of this language alone.")
    where: str | dict[str, Any] | None = Field(None, description="A filter, as text or as an object.")
    mode: Literal["dense", "hybrid", "lexical"] = "dense"
    weights: (
        Annotated[list[float], Field(min_length=2, max_length=2), AfterValidator(_checked_weights)] | None
    ) = Field(None, description="Of vectors and words, with mode hybrid.")
    recall: float | None = Field(
        None, gt=0, le=1, description="Recall@10 to reach, by the index's own measurement."
    )
    rerank: Name | None = Field(
        None, description="Score the best hits anew: one of the rerankers of GET /indexes."
    )
    rerank_depth: int = Field(50, ge=1, le=1000, description="How many hits are scored anew, k at least.")
    explain: bool = Field(False, description="Show the exact encoded strings and their tokens.")
    snippets: bool | Literal["words", "meaning"] = Field(
        True,
        description="Show the passage of each chunk that matches best: by the query's words (true), or by meaning, "
        "for which the passages are encoded.",
    )
    context: ContextBody | None = Field(
        None,
        description="Give each result's hits as numbered, cited passages for a language model's prompt too.",
    )


def read_body(model: type[_M], raw: bytes) -> _M:
    """Return the body that these bytes are. Raises ApiError 400 saying which field is wrong."""
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError as e:
        raise invalid(f"the body is no JSON: {str(e)[:200]}", code="invalid_json") from None
    if not isinstance(data, dict):
        raise invalid("the body is no JSON object")
    for name in data:
        if name not in model.model_fields:
            near = difflib.get_close_matches(name[:40], model.model_fields, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(model.model_fields)}"
            raise invalid(f"there is no field {name[:60]!r}: {advice}", name[:60], "unknown_field")
    try:
        return model.model_validate(data)
    except ValidationError as e:
        raise _told(e) from None


def _told(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = first["loc"]
    message = first["msg"].removeprefix("Value error, ")
    kinds = _KINDS.get(str(where[0])) if where else None
    own = 2 if where and where[0] == "tasks" else 1
    if kinds is not None and len(where) > own:
        where, message = where[:own], kinds
    elif first["type"] == "model_type":
        message = "give an object"
    place = ".".join(map(str, where))
    return invalid(f"{place}: {message[:1].lower()}{message[1:]}", place)


def check_cost(body: SearchBody, limits: Limits) -> None:
    """Raise ApiError 400 for fields that are small each, and together more than one search may cost."""
    tasks = len(body.tasks or (None,))
    depth = max(body.k, body.rerank_depth)
    if body.rerank is not None and (scored := tasks * depth) > limits.reranked:
        raise invalid(
            f"{tasks} tasks x {depth:,} hits (rerank_depth, or k) are {scored:,} to score anew, more than the "
            f"{limits.reranked:,} of one search",
            "rerank_depth",
        )
    around = 2 * body.context.expand + 1 if body.context is not None else 0
    if (pieces := tasks * body.k * around) > limits.pieces:
        raise invalid(
            f"{tasks} tasks x {body.k:,} hits (k) x {around} chunks (context.expand) are {pieces:,}, more than the "
            f"{limits.pieces:,} of one search",
            "context.expand",
        )


def check_filter(where: str | dict[str, Any]) -> None:
    """Raise ApiError 400 for a filter too large or too deep to be worked through while others wait."""
    if isinstance(where, str):
        if len(where) > _FILTER:
            raise invalid(f"the filter has {len(where):,} characters, more than {_FILTER:,}", "where")
        return
    level: list[Any] = [where]
    count = 0
    for _ in range(_DEEPEST):
        count += sum(map(len, level))
        if count > _FILTER:
            raise invalid(f"the filter holds more than {_FILTER:,} values", "where")
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise invalid(f"the filter is nested more than {_DEEPEST} levels deep: write it flatter", "where")
