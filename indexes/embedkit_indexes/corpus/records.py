"""The records that pass from readers to chunker to index."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from embedkit.errors import InputError
from embedkit.texts import half_surrogate

Form = Literal["text", "markdown", "code"]


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a corpus, as a reader yields it.

    `id` is unique in the corpus; `lang` is an ISO 639-1 code, the programming language where `form` is
    "code", or None until it is detected; `source` is the path (or stream) it came from; `metadata` holds
    JSON values.
    """

    id: str
    text: str
    title: str = ""
    lang: str | None = None
    source: str = ""
    form: Form = "text"
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document that is embedded as one vector.

    `text` is what is embedded: the piece, after its title or heading where there is one. `start` and
    `end` are character offsets of the piece in the document's text; `tokens` counts what the embedder
    sees, special tokens included; `truncated` counts the tokens beyond its `max_length`. `lead` is
    the white space before `start`, its last 1,000 characters at most.
    """

    document: Document
    position: int
    text: str
    start: int
    end: int
    tokens: int
    truncated: int = 0
    lead: str = ""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file or record that was left out, and why."""

    source: str
    reason: str
    line: int | None = None


def check_documents(documents: Any) -> None:
    """Refuse what holds no documents, or is a single one, before anything is begun."""
    if isinstance(documents, str | bytes | Mapping | Document) or not isinstance(documents, Iterable):
        raise InputError(
            f"documents is {documents!r:.60}, {type(documents).__name__}: give an iterable of Documents, as in "
            "[Document(id=…, text=…)]"
        )


def check_document(document: Any, number: int) -> None:
    """Refuse what a program passed in place of a document before a model has worked for it."""
    if not isinstance(document, Document):
        raise InputError(f"document {number} is {type(document).__name__}: make it a Document(id=…, text=…)")
    if isinstance(document.id, str) and half_surrogate(document.id) is not None:
        raise InputError(
            f"document {number} has half a surrogate pair in its id {document.id!r:.60}: give another id"
        )
    for name in ("id", "text", "title", "source", "lang", "metadata"):
        value = getattr(document, name)
        wanted = Mapping if name == "metadata" else str
        if not isinstance(value, wanted) and not (name == "lang" and value is None):
            raise InputError(
                f"document {number} has {type(value).__name__} as its {name}, not {wanted.__name__}: {value!r:.60}"
            )
