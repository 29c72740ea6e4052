"""What counts a context's tokens: an embedder's tokenizer, another model's, or four bytes a token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from embedkit.errors import InputError
from embedkit.texts import without_surrogates

if TYPE_CHECKING:
    from embedkit.embedder import Embedder

Counter = Callable[[str], int]


def count_by_bytes(text: str) -> int:
    """Return an estimate: one token for every four bytes of UTF-8, rounded up."""
    return (len(text.encode("utf-8", "replace")) + 3) // 4


def counter_of(embedder: Embedder) -> Counter:
    """Return what counts by an embedder's own tokenizer, or estimates where it has none."""
    if embedder.tokenizer is None:
        return count_by_bytes
    return lambda text: embedder.count_tokens([text])[0]


def open_counter(name: str) -> Counter:
    """Return what counts by a model's tokenizer: a `tokenizer.json`, a folder with one, or a Hugging Face id.

    Raises InputError where there is none.
    """
    if not name.strip():
        raise InputError(
            "no tokenizer is named: give a tokenizer.json, a folder with one, or a Hugging Face id"
        )
    from tokenizers import Tokenizer

    path = Path(name).expanduser()
    # A path is no model's name, and nobody's server is asked for it.
    local = path.exists() or name.startswith((".", "/", "~", "\\")) or name.endswith(".json")
    if path.is_dir():
        path /= "tokenizer.json"
    try:
        if local and not path.is_file():
            raise FileNotFoundError("there is no such file")
        tokenizer = Tokenizer.from_file(str(path)) if local else Tokenizer.from_pretrained(name)
    except Exception as e:  # of any class: the library raises bare Exceptions
        what = str(path) if local else name
        raise InputError(
            f"no tokenizer can be read from {what} ({' '.join(str(e).split())[:200]}): give a tokenizer.json, a folder "
            "with one, or the Hugging Face id of a model that has one"
        ) from e
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: len(tokenizer.encode(without_surrogates(text), add_special_tokens=False).ids)
