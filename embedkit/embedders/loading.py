"""Read a model's weights whole, or not at all: one sentence for whatever the libraries make of broken files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from embedkit.errors import EmbedderError, EmbedkitError

_LONGEST = 300  # characters of another library's message


def load_weights(kind: Any, folder: str, **options: Any) -> Any:
    """Return `kind.from_pretrained(folder, **options)`.

    transformers draws weights that a file lacks at random, and says so in its log alone. A pooler may lack: no pooling
    reads it. Raises EmbedderError for that, and for files that are missing, cut, or of other shapes than config.json says.
    """
    with broken_files(f"the model in {folder} cannot be loaded"), without_bars():
        model, found = kind.from_pretrained(folder, output_loading_info=True, **options)
    named = dict(model.named_parameters())
    lacking = sorted(n for n in found["missing_keys"] if n in named and "pooler" not in n.split("."))
    if lacking or any(p.is_meta for p in named.values()):
        first = f": {len(lacking)}, such as {lacking[0]}" if lacking else ""
        raise EmbedderError(
            f"the model in {folder} lacks weights that its config.json asks for{first}; fetch or save it again"
        )
    return model


@contextmanager
def broken_files(problem: str) -> Iterator[None]:
    """Turn whatever a library raises while it reads files, or runs a model's own code, into an EmbedderError.

    Which error a cut or altered file gives is nobody's promise: OSError, SafetensorError, TypeError, …
    """
    from transformers.utils import logging as their_logging

    logging: Any = their_logging
    level = logging.get_verbosity()
    if level == logging.WARNING:  # a table of what did not fit: the error says it in one line
        logging.set_verbosity_error()
    try:
        yield
    except (EmbedkitError, MemoryError):
        raise
    except Exception as e:
        raise EmbedderError(f"{problem}: {_reason(e)}") from e
    finally:
        logging.set_verbosity(level)


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep transformers from drawing its bar: a program has its own lines, and tqdm's lock can hang its end."""
    from transformers.utils import logging as their_logging

    logging: Any = their_logging
    if not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"
    if "ignore_mismatched_sizes" in text:
        return "its weights have other shapes than its config.json says"
    if isinstance(error, OSError | ValueError | ImportError | RuntimeError):
        return text
    return f"{type(error).__name__}: {text}"
