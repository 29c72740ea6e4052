"""How commands print: JSON on stdout without rich, tables by rich, notes on stderr."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from embedkit.embedder import Embedder
    from embedkit_indexes.results import RerankReport

_SNIPPET = 160


def json_text(value: Any, indent: int | None = 2) -> str:
    """Return a value as JSON; text stays readable where stdout is UTF-8."""
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "")
    text = json.dumps(value, ensure_ascii=encoding != "utf8", indent=indent, default=str)
    if text.isascii() or not _has_surrogate(text):
        return text
    return json.dumps(value, indent=indent, default=str)  # half a surrogate pair from a broken corpus


def print_json(value: Any) -> None:
    """Write a value as JSON and a line break."""
    click.echo(json_text(value))


def note(message: str) -> None:
    """Write a remark on stderr."""
    click.echo(f"note: {printable(message)}", err=True)


def discard_stdout() -> None:
    """Write nothing more to a stdout whose reader has left."""
    # The interpreter flushes stdout once more at exit: give it a place to write to.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def untrained_note(name: str) -> str:
    """Say what an instruction is worth with an embedder that did not learn to obey any."""
    return (
        f"{name} was not trained on instructions: the instruction is encoded as part of the query's text, and "
        "rankings may change little or for the worse"
    )


def truncated_note(embedder: Embedder, query: str, instruction: str | None, cut: int) -> str | None:
    """Say what of a query was not encoded, and whether it or its instruction is too long; `cut` counts the tokens.

    None where nothing was cut, or where the embedder warned that the instruction leaves no room at all.
    """
    if cut < 1 or (room := embedder.room_for_query(instruction)) < 1:
        return None
    name, limit = embedder.info.name, embedder.info.max_length
    if (
        instruction is None
        or embedder.count_tokens([embedder.info.template.render_query(query, None)])[0] > limit
    ):
        return f"the query is {cut:,} tokens too long for {name}: its end was not encoded"
    return (
        f"the instruction leaves {room:,} of the {limit:,} tokens that {name} reads, {cut:,} too few for the query: its "
        "end was not encoded; shorten the instruction"
    )


def rerank_note(reports: Sequence[RerankReport]) -> str:
    """Say what the second stage of some searches cost."""
    pairs, tokens = (sum(getattr(r, field) for r in reports) for field in ("candidates", "tokens"))
    seconds = sum(r.seconds for r in reports)
    took = f"{seconds * 1000:,.0f} ms" if seconds < 10 else f"{seconds:,.1f} s"
    read = f" ({tokens:,} tokens)" if tokens else ""
    return f"reranked {counted(pairs, 'candidate')} with {reports[0].reranker} in {took}{read}"


def console() -> Console:
    """Return a console on stdout that takes no markup from the texts it prints."""
    from rich.console import Console

    class Screen(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # main.py ends quietly; rich would exit with 1

    return Screen(markup=False, emoji=False, highlight=False, soft_wrap=False)


def snippet(text: str, limit: int = _SNIPPET) -> str:
    """Return the first characters of a text on one line, cut at a word where there is one near."""
    line = " ".join(printable(text[: limit * 4]).split())
    if len(line) <= limit:
        return line
    head, space, _ = line[:limit].rpartition(" ")
    return (head if space and len(head) > limit * 3 // 4 else line[:limit]) + "…"


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: `1 document`, `2,000 documents`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def size_text(size: int) -> str:
    """Return a number of bytes in kB or MB."""
    return f"{size / 1e3:,.0f} kB" if size < 1_000_000 else f"{size / 1e6:,.1f} MB"


def printable(text: str) -> str:
    """Return a text without control characters, so that no document can steer the terminal."""
    return "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in text)
