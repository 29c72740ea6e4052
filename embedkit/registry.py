"""Find embedders by name or path; plug-ins are listed from package metadata without importing them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit.contract import Template
from embedkit.embedder import Embedder
from embedkit.errors import EmbedderError, InputError, UnknownNameError
from embedkit.plug_ins import find_plug_ins, open_plug_in

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "embedkit.embedders"
DEFAULT = "bundled"
# The model that `bundled` stands for; an index records the full name, so that a later default leaves it valid.
BUNDLED = "openvino:embedkit-small-v1"
_STATIC_SUFFIXES = (".vec", ".bin", ".glove", ".w2v", ".txt")


@cache
def list_embedders() -> dict[str, EntryPoint]:
    """Return the installed embedder kinds by name, sorted, none of them imported."""
    return find_plug_ins(GROUP)


def get_embedder(name_or_path: str = DEFAULT, /, **options: Any) -> Embedder:
    """Open an embedder.

    `name_or_path` is a kind (`bundled`), a kind and its model (`transformer:intfloat/e5-mistral-7b-instruct`,
    `openai:text-embedding-3-small`, `static:glove.6B.300d.txt`), a path (a Hugging Face or
    sentence-transformers folder, a model2vec folder, a word-vector file) or a Hugging Face id (`org/name`).
    `options` go to the embedder. Raises UnknownNameError, InputError or MissingExtraError; EmbedderError,
    naming the plug-in, where its import or its opening fails. Warns where `dim` cuts vectors to a length that the
    model does not say it was trained for.
    """
    embedder = _open(name_or_path, options)
    if options.get("dim") is not None:
        from embedkit.embedders.matryoshka import warn_of_untrained

        warn_of_untrained(embedder.info)
    return embedder


def _open(name_or_path: str, options: dict[str, Any]) -> Embedder:
    kind, model = _split(name_or_path)
    kinds = list_embedders()
    if kind not in kinds:
        raise UnknownNameError("embedder", kind, [*kinds, DEFAULT], "`embedkit embedders` lists all.")
    if isinstance(options.get("template"), Mapping):  # from JSON: the command line, or an index
        options["template"] = Template.of(options["template"])
    # mypy: the base class is abstract, and any subclass of it will do.
    return open_plug_in(kinds[kind], model, options, Embedder, EmbedderError)  # type: ignore[type-abstract]


def reopen_embedder(spec: str, options: Mapping[str, Any]) -> Embedder:
    """Open the embedder that a stored index names, trusting it with nothing but names and settings.

    Whoever wrote the index may be a stranger: it can neither allow a model's own code to run here, nor send the
    environment's API key to an address of its choice. Raises InputError for such an address, and as
    `get_embedder` does.
    """
    if options.get("trust_remote_code") and os.environ.get("EMBEDKIT_TRUST_REMOTE_CODE") != "1":
        raise InputError(
            f"the index's model {spec} runs code of its own: if you trust it, set EMBEDKIT_TRUST_REMOTE_CODE=1, or "
            "open the embedder yourself and pass it to Index.open"
        )
    address = str(options.get("base_url") or "")
    if address and not _is_own(address):
        raise InputError(
            f"the index was built with the server {address}, to which your API key would be sent: if you trust it, "
            f"set OPENAI_BASE_URL={address}, or open the embedder yourself and pass it to Index.open"
        )
    return _open(spec, dict(options))  # who built the index was warned of its dim


def _is_own(address: str) -> bool:
    from urllib.parse import urlsplit

    host = urlsplit(address).hostname
    own = urlsplit(os.environ.get("OPENAI_BASE_URL", "")).hostname
    return host in ("api.openai.com", "localhost", "127.0.0.1", "::1") or (host is not None and host == own)


def full_name(name_or_path: str) -> str:
    """Return the name to store in an index: `bundled` spelt out, a path made absolute."""
    if name_or_path == DEFAULT:
        return BUNDLED
    kind, model = _split(name_or_path)
    name = f"{kind}:{model}"
    # A folder that happens to be called as a server's model, or as the bundled one, is not meant.
    if not model or kind == "openai" or name == BUNDLED or not Path(model).exists():
        return name
    return f"{kind}:{Path(model).resolve()}"


def _split(spec: str) -> tuple[str, str]:
    if not spec:
        raise InputError("the embedder's name is empty: leave it out for the bundled one")
    if spec in list_embedders():
        # A folder that happens to be called so is ./bundled.
        return spec, ""
    if spec == DEFAULT:
        spec = BUNDLED
    path = Path(spec).expanduser()
    if path.exists() and (path.is_dir() or path.suffix):
        return _kind_of_path(path), str(path)
    kind, colon, model = spec.partition(":")
    if colon and kind in list_embedders():
        return kind, model
    if spec not in list_embedders() and "/" in spec:
        if spec.startswith((".", "/", "~")) or spec.count("/") > 1:
            raise InputError(f"embedder path {spec!r} does not exist: check it")
        return "transformer", spec
    return spec, ""


def _kind_of_path(path: Path) -> str:
    if path.is_file():
        unzipped = path.with_suffix("") if path.suffix == ".gz" else path
        if unzipped.suffix in _STATIC_SUFFIXES:
            return "static"
        raise InputError(
            f"{path} is no embedder: give a model folder or a word-vector file "
            f"({', '.join(_STATIC_SUFFIXES)}, or .gz of these)"
        )
    config = path / "config.json"
    modules = path / "modules.json"
    try:
        if modules.is_file() and "StaticEmbedding" in modules.read_text(encoding="utf-8"):
            return "static"
        if config.is_file():
            data = json.loads(config.read_text(encoding="utf-8"))
            return "static" if data.get("model_type") == "model2vec" else "transformer"
    except (OSError, ValueError, AttributeError) as e:
        raise InputError(f"{path} is no readable model folder: {e}") from e
    if (path / "embedkit_model.json").is_file():
        return "openvino"
    if modules.is_file() or (path / "adapter_config.json").is_file():
        return "transformer"
    raise InputError(f"{path} is no model folder: it has neither config.json nor modules.json")
