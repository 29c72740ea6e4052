"""`Context`: what a search found, as numbered passages for a language model's prompt, within a budget of tokens."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from embedkit.errors import InputError, UnknownNameError
from embedkit_indexes.context_blocks import AlsoIn, Block, LeftOut
from embedkit_indexes.context_counting import Counter, count_by_bytes
from embedkit_indexes.context_duplicates import without_duplicates
from embedkit_indexes.context_fitting import fit
from embedkit_indexes.context_forms import FORMS, Form, Shown, markdown_of, messages_of, text_of
from embedkit_indexes.context_pieces import neighbours, piece_of, unique
from embedkit_indexes.results import SearchHit, SearchResult

__all__ = ["AlsoIn", "Block", "Context", "ContextConfig", "LeftOut", "build_context"]

Order = Literal["score", "source"]
ORDERS: tuple[Order, ...] = get_args(Order)


@dataclass(frozen=True, slots=True)
class ContextConfig:
    """Say what a context is to be.

    `budget` bounds the tokens of all that is written in `form`, citations too: of "messages" the two contents; "json" is
    for programs, and bounds its `text`. `expand` chunks on each side of a hit are taken in from the index. Order "score"
    puts the best passage first; "source" puts the passages of a document together, in its own order. A chunk with the same
    words in the same order as another document's is left out, whatever their case and punctuation; with `near_duplicate`
    below 1 also one with that share of the word pairs of both (Jaccard) and the same numbers, which may say the opposite.
    """

    budget: int = 2000
    form: Form = "text"
    expand: int = 0
    order: Order = "score"
    near_duplicate: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (("budget", 1), ("expand", 0)):
            value = getattr(self, name)
            try:
                number = operator.index(value)
            except TypeError:
                raise InputError(f"{name} is {value!r}: give a whole number") from None
            if number < least:
                raise InputError(f"{name} is {number}: give {least} or more")
        if self.form not in FORMS:
            raise UnknownNameError("form", str(self.form), FORMS)
        if self.order not in ORDERS:
            raise UnknownNameError("order", str(self.order), ORDERS)
        if not isinstance(self.near_duplicate, int | float) or not 0 < self.near_duplicate <= 1:
            raise InputError(f"near_duplicate is {self.near_duplicate!r}: give a share above 0, up to 1")


@dataclass(frozen=True, slots=True)
class Context:
    """Passages for a prompt, numbered in the order in which they stand; `tokens` counts what `config.form` writes."""

    question: str
    blocks: tuple[Block, ...]
    tokens: int
    left_out: LeftOut
    config: ContextConfig
    shown_source: Shown = field(default=str, repr=False, compare=False)

    def to_text(self) -> str:
        """Return numbered passages: a line with the citation, and the text between fences."""
        return text_of(self.blocks, self.shown_source)

    def to_markdown(self) -> str:
        """Return numbered passages under headings, and the list of their sources."""
        return markdown_of(self.blocks, self.shown_source)

    def to_messages(self) -> list[dict[str, str]]:
        """Return chat messages: how to answer and to cite, then the passages and the question."""
        return messages_of(self.blocks, self.question, self.shown_source)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: every block with all that is known of it, and the text for a prompt."""
        blocks = []
        for block in self.blocks:
            record = asdict(block)
            record["source"] = self.shown_source(block.source)
            record["also_in"] = [
                {**asdict(place), "source": self.shown_source(place.source)} for place in block.also_in
            ]
            blocks.append(record)
        return {
            "question": self.question,
            "budget": self.config.budget,
            "tokens": self.tokens,
            "left_out": asdict(self.left_out),
            "blocks": blocks,
            "text": self.to_text(),
        }

    def render(self) -> str:
        """Return it in the form that it was made for; messages and JSON as one JSON text."""
        form = self.config.form
        if form == "text":
            return self.to_text()
        if form == "markdown":
            return self.to_markdown()
        return json.dumps(
            self.to_dict() if form == "json" else self.to_messages(), ensure_ascii=False, indent=2
        )


def build_context(
    found: SearchResult | Iterable[SearchHit],
    config: ContextConfig = ContextConfig(),
    *,
    question: str | None = None,
    count_tokens: Counter | None = None,
    shown_source: Shown = str,
) -> Context:
    """Return the passages of a search's hits, best first: duplicates once, neighbouring chunks as one, cut to a budget.

    `count_tokens` counts the tokens of a text, best by the tokenizer of the model that will read it; without it four
    bytes are one. `shown_source` says how a source is written in citations. Hits of several searches may be passed one
    after the other. `Index.context` searches and does this. Raises InputError where the budget does not even hold what
    stands around the passages.
    """
    if isinstance(found, SearchResult):
        question = found.query if question is None else question
        found = found.hits
    hits = list(found)
    for hit in hits:
        if not isinstance(hit, SearchHit):
            raise InputError(f"a hit is {hit!r:.60}, {type(hit).__name__}: pass what a search returned")
    pieces = [piece_of(hit, rank) for rank, hit in enumerate(hits)]
    named = {piece.index: hit.index for piece, hit in zip(pieces, hits, strict=True)}
    if config.expand:
        pieces += neighbours(hits, config.expand)
    pieces = unique(pieces)
    runs, duplicates = without_duplicates(pieces, config.near_duplicate)
    asked, count = question or "", _checked(count_tokens or count_by_bytes)

    def tokens(blocks: Sequence[Block]) -> int:
        placed = ordered(blocks, config.order)
        if config.form == "messages":
            return sum(count(m["content"]) for m in messages_of(placed, asked, shown_source))
        write = markdown_of if config.form == "markdown" else text_of
        return count(write(placed, shown_source))

    if (least := tokens(())) > config.budget:
        raise InputError(
            f"budget {config.budget} is too small: {least} tokens are needed without any passage"
        )
    blocks = fit(runs, tokens, count, config.budget)
    shown = {(block.index, block.document_id, chunk) for block in blocks for chunk in block.chunk_ids}
    # Not by what is found in the runs: a neighbour stands there in the place of its copy.
    wanted = {(p.index, p.document[1], p.chunk_id) for p in pieces if p.found}
    kept = {(p.index, p.document[1], p.chunk_id) for run in runs for p in run.pieces}
    beyond = len(wanted & kept - shown)
    # Where one index was searched, there is nothing to tell apart.
    several = len(named) > 1
    blocks = [replace(b, index=named[b.index] or (b.index if several else "")) for b in blocks]
    placed = tuple(ordered(blocks, config.order))
    return Context(asked, placed, tokens(blocks), LeftOut(duplicates, beyond), config, shown_source)


def ordered(blocks: Sequence[Block], order: Order) -> list[Block]:
    """Return blocks in their order and with their numbers; they come best first."""
    if order == "source":
        first: dict[tuple[str, str], int] = {}
        for place, block in enumerate(blocks):
            first.setdefault((block.index, block.document_id), place)
        blocks = sorted(blocks, key=lambda b: (first[b.index, b.document_id], b.start or 0))
    return [replace(block, number=number) for number, block in enumerate(blocks, 1)]


def _checked(count_tokens: Counter) -> Counter:
    if not callable(count_tokens):
        raise InputError(
            f"count_tokens is {count_tokens!r:.60}: give a function that takes a text and returns its tokens' number"
        )

    def count(text: str) -> int:
        counted = count_tokens(text)
        try:
            return operator.index(counted)
        except TypeError:
            raise InputError(
                f"count_tokens returned {counted!r:.60}: it has to return a whole number"
            ) from None

    return count
