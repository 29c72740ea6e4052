"""The public names of embedkit's core: a change here is a change for users."""

from __future__ import annotations

import inspect

import embedkit
from embedkit import errors

PUBLIC = [
    "BUILT_IN_TASKS",
    "Embedder",
    "EmbedderInfo",
    "EmbedkitError",
    "InstructionWarning",
    "Reranker",
    "RerankerInfo",
    "Task",
    "Template",
    "get_embedder",
    "get_reranker",
    "get_task",
    "list_embedders",
    "list_rerankers",
    "load_tasks",
]
ERRORS = {
    "EmbedkitError": Exception,
    "InputError": ValueError,
    "UnknownNameError": LookupError,
    "CorpusError": ValueError,
    "MissingExtraError": ImportError,
    "EmbedderError": RuntimeError,
    "ServerError": RuntimeError,
    "RerankerError": RuntimeError,
    "TrainingError": RuntimeError,
    "StoreError": OSError,
    "NotAnIndexError": OSError,
    "CorruptIndexError": OSError,
    "FingerprintError": OSError,
    "CheckpointError": OSError,
}


def test_public_names() -> None:
    """`embedkit` offers exactly these names, sorted, and every one of them exists."""
    assert embedkit.__all__ == PUBLIC == sorted(PUBLIC)
    assert all(hasattr(embedkit, name) for name in PUBLIC)


def test_error_tree() -> None:
    """Every error is an EmbedkitError and the built-in exception that fits it."""
    found = {n: c for n, c in vars(errors).items() if inspect.isclass(c) and issubclass(c, Exception)}
    assert found.keys() == ERRORS.keys()
    for name, builtin in ERRORS.items():
        assert issubclass(found[name], embedkit.EmbedkitError)
        assert issubclass(found[name], builtin)


def test_embedder_signatures() -> None:
    """The calls that plug-ins and users rely on keep their arguments."""
    signatures = {
        name: list(inspect.signature(getattr(embedkit.Embedder, name)).parameters)
        for name in ("encode_query", "encode_document", "render_query", "count_tokens", "_embed")
    }
    assert signatures == {
        "encode_query": ["self", "texts", "task", "instruction"],
        "encode_document": ["self", "texts"],
        "render_query": ["self", "text", "task", "instruction"],
        "count_tokens": ["self", "texts"],
        "_embed": ["self", "texts"],
    }
    assert list(inspect.signature(embedkit.get_embedder).parameters) == ["name_or_path", "options"]
