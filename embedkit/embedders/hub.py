"""From a hub id to the local snapshot folder; the only place that asks the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from embedkit.errors import EmbedderError, InputError, MissingExtraError

# With them the Dense layers of sentence-transformers, which many repositories hold as .bin alone.
_ALWAYS = ["*.json", "*.txt", "*.model", "*.py", "*_Dense/pytorch_model.bin"]
_IGNORED = ["consolidated*", "onnx/*", "openvino/*", "coreml/*", "gguf/*", "*.onnx", "*.gguf"]


def local_folder(name_or_path: str, revision: str | None = None) -> Path:
    """Return the folder of a local path or a hub id, downloading what is missing.

    Safetensors are taken where the repository has them, else pytorch_model*.bin. Raises InputError for a
    path that does not exist, EmbedderError where the hub gives nothing.
    """
    if not name_or_path.strip():
        raise InputError("the transformer embedder needs a model: a folder, or a hub id such as org/name")
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if path.exists() or name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1:
        raise InputError(f"model folder {name_or_path!r} does not exist or is no folder: check it")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as e:
        raise MissingExtraError("the transformer embedder", "torch") from e
    try:
        for weights in ("*.safetensors", "*.bin"):
            folder = Path(
                snapshot_download(
                    name_or_path,
                    revision=revision,
                    allow_patterns=[*_ALWAYS, weights],
                    ignore_patterns=_IGNORED,
                )
            )
            if any(folder.glob(weights)) or any(folder.glob(f"*/{weights}")):
                break
    except Exception as e:  # the hub client raises errors of many libraries
        raise EmbedderError(
            f"model {name_or_path!r} cannot be fetched from the hub ({type(e).__name__}: {e}): "
            "check the name and the connection, or give a local folder"
        ) from e
    return folder
