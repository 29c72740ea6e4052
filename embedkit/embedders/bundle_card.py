"""The file `embedkit_model.json` of a folder of the bundled format: read, and every field checked, before anything runs.

A person may edit it. A wrong number there would show as a crash deep in OpenVINO, or as vectors that mean nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from embedkit.contract import Pooling, Template
from embedkit.errors import EmbedderError, InputError
from embedkit.tasks import BUILT_IN_TASKS
from embedkit.texts import half_surrogate

FILE = "embedkit_model.json"
FORMAT = 1
_MEND = "mend it, or reinstall or re-export the model"
# [CLS], [SEP] and one token of the text.
_SHORTEST = 3


@dataclass(frozen=True, slots=True)
class BundleCard:
    """Say what the graph and the tokenizer of a model folder do not say of themselves; see `EmbedderInfo`."""

    name: str
    dim: int
    max_length: int
    pooling: Pooling
    dtype: str
    pad_id: int
    template: Template
    instruction_trained: bool
    default_task: str | None
    matryoshka_dims: tuple[int, ...] = ()


def read_card(folder: Path) -> BundleCard:
    """Return the card of a model folder. Raises EmbedderError naming the file, the field and its value."""
    path = folder / FILE
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise EmbedderError(f"{path} cannot be read ({e}): reinstall or re-export the model") from e
    if not isinstance(card, dict):
        raise EmbedderError(f"{path} holds {type(card).__name__}, not an object: {_MEND}")
    if type(card.get("format")) is int and card["format"] > FORMAT:
        raise EmbedderError(f"{path} is of format {card['format']}, from a newer embedkit: update embedkit")
    card = {"matryoshka_dims": [], **card}
    for field, (fits, expected) in _FIELDS.items():
        if field not in card:
            raise EmbedderError(f"{path} lacks {field} ({expected}): {_MEND}")
        if not fits(card[field]):
            raise _wrong(path, field, card[field], expected)
        if half_surrogate(json.dumps(card[field], ensure_ascii=False)) is not None:
            raise _wrong(path, field, card[field], "text without half a surrogate pair")
    width = _width(folder / "model.xml")
    if width not in (None, card["dim"]):
        raise _wrong(path, "dim", card["dim"], f"{width}, the length of the vectors that model.xml gives")
    if any(d >= card["dim"] for d in card["matryoshka_dims"]):
        raise _wrong(
            path, "matryoshka_dims", card["matryoshka_dims"], f"lengths below dim, which is {card['dim']}"
        )
    try:
        template = Template.of(card["template"])
    except InputError as e:
        raise EmbedderError(f"{path}: {e}") from e
    fields = {name: card[name] for name in BundleCard.__dataclass_fields__}
    return BundleCard(**{**fields, "template": template, "matryoshka_dims": tuple(card["matryoshka_dims"])})


def too_long(folder: Path, max_length: int, positions: int) -> EmbedderError:
    """Return the error for a `max_length` beyond the positions that the graph has."""
    return _wrong(folder / FILE, "max_length", max_length, f"{positions} or less, the positions of model.xml")


def _wrong(path: Path, field: str, value: Any, expected: str) -> EmbedderError:
    shown = json.dumps(value)
    shown = shown if len(shown) <= 80 else shown[:79] + "…"
    return EmbedderError(f"{path}: {field} is {shown}, expected {expected}: {_MEND}")


def _width(graph: Path) -> int | None:
    """Return the length of the vectors that a graph says it gives, None where it says nothing."""
    result = re.search(rb'type="Result".*?<dim>(\d+)</dim>\s*</port>', graph.read_bytes(), re.DOTALL)
    return int(result[1]) if result else None


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and value >= least


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


_FIELDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "format": (lambda value: type(value) is int and value == FORMAT, str(FORMAT)),
    "name": (_is_text, "a name"),
    "dim": (_whole(1), "a whole number from 1 on"),
    "max_length": (_whole(_SHORTEST), f"a whole number from {_SHORTEST} on"),
    "pooling": (lambda value: value in get_args(Pooling), f"one of {', '.join(get_args(Pooling))}"),
    "dtype": (_is_text, "the dtype of the weights as text"),
    "pad_id": (_whole(0), "a token id from 0 on"),
    "template": (lambda value: isinstance(value, dict), "an object with query, instruct and document"),
    "instruction_trained": (lambda value: isinstance(value, bool), "true or false"),
    "default_task": (
        lambda value: value is None or (isinstance(value, str) and value in BUILT_IN_TASKS),
        "null or the name of a built-in task",
    ),
    "matryoshka_dims": (
        lambda value: isinstance(value, list) and all(map(_whole(1), value)),
        "a list of whole numbers from 1 on",
    ),
}
