"""The parts of a context: passages of documents, each with the place that it is cited by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any


@dataclass(frozen=True, slots=True)
class AlsoIn:
    """Another place that says the same, and was left out; `same` is False where the words differ a little.

    `start` and `end` are characters of that document's text, None where they are not known.
    """

    document_id: str
    title: str
    source: str
    start: int | None
    end: int | None
    same: bool


@dataclass(frozen=True, slots=True)
class Block:
    """A passage, and what it is cited by.

    `text` is the document's text from character `start` to `end`; more than 64 characters of white space between two
    chunks are shortened, and of an index that was written before they were stored they are line breaks. `heading` is the path of title and headings over it, "" where the passage begins with them; `score` and
    `chunk_ids` are the best score and all chunks of the passage. `cut` says that it ends early, for the budget. Where the
    place of a node of LlamaIndex's is not known, `start` and `end` are None.
    """

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
    chunk_ids: tuple[int | str, ...]
    index: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    also_in: tuple[AlsoIn, ...] = ()
    cut: bool = False

    @property
    def is_code(self) -> bool:
        """Whether `lang` is a programming language."""
        return is_code(self.lang)


def is_code(lang: str) -> bool:
    """Return whether it is a programming language."""
    return lang in _code_languages()


@cache
def _code_languages() -> frozenset[str]:
    from embedkit_indexes.corpus.formats import CODE_LANGUAGES, CODE_OF

    return CODE_LANGUAGES | frozenset(CODE_OF.values())


@dataclass(frozen=True, slots=True)
class LeftOut:
    """How many of the chunks found are in no block: the same as another, or beyond the budget."""

    duplicates: int = 0
    budget: int = 0
