"""The small frozen records that embedders are described by, and the fingerprint made from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from embedkit.errors import InputError

Pooling = Literal["mean", "weightedmean", "cls", "last", "none"]


@dataclass(frozen=True, slots=True)
class Template:
    """Say how text becomes the string that is encoded; the query side alone carries an instruction.

    `query` is used without an instruction and holds `{query}`; `instruct` is used with one and holds
    `{instruction}` and `{query}`; `document` holds `{text}`. The default is E5-mistral's
    (arXiv 2401.00368, section 3.2).
    """

    query: str = "{query}"
    instruct: str = "Instruct: {instruction}\nQuery: {query}"
    document: str = "{text}"

    def __post_init__(self) -> None:
        for name, value, needed in (
            ("query", self.query, ("{query}",)),
            ("instruct", self.instruct, ("{instruction}", "{query}")),
            ("document", self.document, ("{text}",)),
        ):
            missing = [n for n in needed if n not in value]
            if missing:
                raise InputError(f"template {name} {value!r} lacks {' and '.join(missing)}: add it")

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Template:
        """Return the template of plain values, as JSON holds it. Raises InputError for another field."""
        known = tuple(cls.__dataclass_fields__)
        for name, value in fields.items():
            if name not in known or not isinstance(value, str):
                raise InputError(
                    f"template holds {name!r}: {value!r}; it takes strings named {', '.join(known)}"
                )
        return cls(**fields)

    def render_query(self, query: str, instruction: str | None) -> str:
        """Return the exact string that is encoded for a query."""
        if instruction is None:
            return self.query.replace("{query}", query)
        head, tail = self.instruct.split("{query}", 1)
        return head.replace("{instruction}", instruction) + query + tail.replace("{instruction}", instruction)

    def render_document(self, text: str) -> str:
        """Return the exact string that is encoded for a document."""
        return text if self.document == "{text}" else self.document.replace("{text}", text)


@dataclass(frozen=True, slots=True)
class EmbedderInfo:
    """Describe an embedder: a plug-in author fills this in, the base class derives the rest.

    `max_length` counts tokens, special ones included; longer texts are truncated. `weights` and
    `tokenizer` are content hashes (any stable string for a remote model); `dtype` is that of the stored
    weights, not of the arithmetic, so that an index moves between machines. `instruction_trained` says
    whether the model learnt to obey instructions. `default_task` names the task whose instruction a query
    gets where the caller gives none (instruction-trained models do badly without; None: the bare query).
    `matryoshka_dims` are the lengths below the model's own that it was trained to be cut to. `full_dim` is set where
    vectors are cut: `_embed` gives so many numbers, and the base class keeps the first `dim`.
    """

    name: str
    dim: int
    max_length: int
    pooling: Pooling
    weights: str
    tokenizer: str = ""
    dtype: str = "float32"
    template: Template = field(default_factory=Template)
    instruction_trained: bool = False
    default_task: str | None = None
    matryoshka_dims: tuple[int, ...] = ()
    full_dim: int | None = None

    def fingerprint(self) -> str:
        """Return `ek1:` and 16 hex digits over everything that decides a document's vector.

        The name and the query side are left out: a renamed folder, or a better query encoder over the
        same document space, keeps every index valid. A cut vector differs from the full one by its `dim`.
        """
        record = asdict(self)
        for key in ("name", "instruction_trained", "default_task", "matryoshka_dims", "full_dim"):
            del record[key]
        record["template"] = self.template.document
        record["normalize"] = True
        text = json.dumps(record, sort_keys=True, ensure_ascii=False)
        return "ek1:" + hashlib.sha256(text.encode()).hexdigest()[:16]
