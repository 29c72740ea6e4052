"""What a search found as passages for a prompt: the field `context` of POST /search."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from embedkit.errors import InputError
from embedkit_cli.server.errors import invalid
from embedkit_cli.server.hits import public_metadata, shown_source

if TYPE_CHECKING:
    from embedkit_cli.server.schemas import ContextBody
    from embedkit_indexes import Index, SearchResult


def context_of(index: Index, result: SearchResult, body: ContextBody, mode: str) -> dict[str, Any]:
    """Return the passages of a result, and in the form asked for what is put into a prompt.

    Raises ApiError 400 for a budget that is too small.
    """
    from embedkit_indexes import ContextConfig, build_context
    from embedkit_indexes.context_counting import counter_of

    config = ContextConfig(body.budget, body.format, body.expand, body.order)
    count = None if mode == "lexical" else counter_of(index.embedder)
    try:
        context = build_context(result, config, count_tokens=count, shown_source=shown_source)
    except InputError as e:
        raise invalid(str(e), "context") from None
    out: dict[str, Any] = {"format": body.format, **context.to_dict()}
    del out["question"]
    for block in out["blocks"]:
        block["metadata"] = public_metadata(block["metadata"])
    if body.format == "markdown":
        out["markdown"] = context.to_markdown()
    elif body.format == "messages":
        out["messages"] = context.to_messages()
    if body.format in ("markdown", "messages"):
        del out["text"]
    return out
