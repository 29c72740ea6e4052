"""Save a trained model as one folder that embedkit, sentence-transformers and LlamaIndex open and agree on.

The folder is written beside its place, opened again, compared with the model in memory, and only then renamed:
a full disk or a model that does not come back as it was leaves what stood there before.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit.contract import Template
from embedkit.embedders.loading import without_bars
from embedkit.embedders.saved import Golden, SavedModel, check_golden_vectors, read_saved
from embedkit.errors import EmbedkitError, InputError, StoreError, TrainingError
from embedkit.hashing import joint_hash
from embedkit.syncing import sync_file
from embedkit.tasks import resolve_instruction
from embedkit_trainer.adapters import is_quantized, merge
from embedkit_trainer.saving.folder_files import check_record, write_json, write_modules, write_tokenizer
from embedkit_trainer.saving.golden import golden_texts
from embedkit_trainer.saving.model_card import model_card

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from embedkit.embedders.batching import Ids
    from embedkit.embedders.folder import ModelFolder
    from embedkit.embedders.tokens import TokenBuilder

    Embed = Callable[[Sequence[Ids]], NDArray[np.float32]]

_NF4_COSINE = 0.5  # over its base's own weights a QLoRA adapter gives other vectors, but not anyhow
_NF4_FIGURE = "least cosine of the vectors with those of training (over nf4 weights)"


@dataclass(frozen=True)
class Trained:
    """Hold a model as it is at the end of training.

    `backbone` is a PreTrainedModel or PeftModel; `tokenizer` transformers' own, `tokens` the builder whose ids were
    trained on. `embed` returns float32 `[n, dim]` for rows of ids, from the model in eval mode.
    `state_dict` are the gathered weights where the backbone holds shards alone (FSDP).
    """

    backbone: Any
    tokenizer: Any
    tokens: TokenBuilder
    embed: Embed
    state_dict: dict[str, torch.Tensor] | None = None


def save_model(
    trained: Trained,
    record: SavedModel,
    folder: Path,
    *,
    merged: bool = True,
    replace_existing: bool = False,
    trust_remote_code: bool = False,
) -> SavedModel:
    """Write a model folder at `folder`; return the record it holds, golden vectors and version filled in.

    A PeftModel is merged in float32 and stored in the dtype of its base; with `merged` false the folder holds the
    adapter alone and names `record.base`. `record.base` must be a folder or a hub id; `base_revision` see
    `base_revision`. A folder that stands there is replaced only if it is a finished model (embedkit.json) and
    `replace_existing` says so. Raises StoreError (no room, no permission, something else in the way) or
    TrainingError (the folder gives other ids or vectors than the model in memory).
    """
    check_destination(folder, replace_existing)
    folder = folder.resolve()  # a link stays, and what it points to is written
    record = _with_golden(trained, record)
    dim = record.golden[0].unit().shape[0]
    with _failures(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.writing"
        beside.mkdir()
        try:
            with without_bars():
                adapter = _write_weights(trained, record, beside, merged)
            write_tokenizer(beside, trained.tokenizer, trained.tokens, record)
            write_modules(beside, dim, record)
            record = _opened_again(trained, record, beside, adapter, trust_remote_code)
            record.write(beside)
            card = model_card(record, name=folder.name, adapter=adapter, dim=dim)
            (beside / "README.md").write_text(card, encoding="utf-8")
            _sync(beside)
            _put(beside, folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return record


def check_destination(folder: Path, replace_existing: bool) -> None:
    """Raise StoreError where `save_model` would refuse `folder`; ask before the first step, not after the last."""
    parent = next(p for p in folder.resolve().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise StoreError(f"{folder} cannot be written: {parent} is no folder that you may write to")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        saved = read_saved(folder) if folder.is_dir() else None
    except InputError:  # an index has a file of that name too
        saved = None
    if saved is None:
        raise StoreError(f"{folder} holds something that is no saved model: name another output folder")
    if not replace_existing:
        raise StoreError(
            f"{folder} holds a finished model already: name another output, or ask to replace it"
        )


def base_revision(folder: ModelFolder) -> str:
    """Return the hub commit of a downloaded base, else `sha256:` and the joint hash of its weight files."""
    parts = folder.root.resolve().parts
    if len(parts) > 2 and parts[-2] == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", parts[-1]):
        return parts[-1]
    return f"sha256:{joint_hash(folder.weight_files())}"


def _with_golden(trained: Trained, record: SavedModel) -> SavedModel:
    import numpy as np

    check_record(record)
    tokens = replace(trained.tokens, max_length=record.max_length)
    texts = golden_texts(resolve_instruction(record.default_task, None))
    drafts = [Golden(text, side, instruction, (), "") for text, side, instruction in texts]
    rows = tokens([draft.rendered(record.template) for draft in drafts])
    vectors = np.asarray(trained.embed(rows), dtype=np.float32)
    if not np.isfinite(vectors).all() or not np.linalg.norm(vectors, axis=1).all():
        raise TrainingError(
            "the model gives NaN, infinite or zero vectors: it is not saved; lower the learning rate"
        )
    golden = tuple(
        Golden.of(d.text, d.side, d.instruction, row, vector)
        for d, row, vector in zip(drafts, rows, vectors, strict=True)
    )
    return replace(record, golden=golden, version=version("embedkit-retrieval"))


def _write_weights(trained: Trained, record: SavedModel, folder: Path, merged: bool) -> bool:
    """Write weights and config; return whether they are an adapter's alone."""
    model = trained.backbone
    if not hasattr(model, "peft_config"):
        model.save_pretrained(str(folder), state_dict=trained.state_dict)
        return False
    if merged:
        whole = merge(model, [golden.ids for golden in record.golden], weights=trained.state_dict)
        whole.to(_dtype(model)).save_pretrained(str(folder))
        return False
    # Embeddings are never resized here; "auto" would ask the hub for the base's vocabulary.
    model.save_pretrained(str(folder), state_dict=trained.state_dict, save_embedding_layers=False)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    base = Path(record.base).expanduser()
    config["base_model_name_or_path"] = str(base.resolve()) if base.is_dir() else record.base
    write_json(path, config | {"revision": record.commit})
    return True


def _opened_again(
    trained: Trained, record: SavedModel, folder: Path, adapter: bool, trust: bool
) -> SavedModel:
    """Open the folder as a user will, which checks ids and vectors; return the record it holds at the end."""
    from embedkit.embedders.transformer import TransformerEmbedder

    dtype = str(_dtype(trained.backbone)).removeprefix("torch.")
    try:
        if adapter and is_quantized(trained.backbone):
            record = _in_full(record, folder, trust)
        record.write(folder)
        TransformerEmbedder.open(str(folder), dtype=dtype, device="cpu", trust_remote_code=trust)
    except EmbedkitError as e:
        raise TrainingError(f"the model as saved is not the model in memory, so it was not kept: {e}") from e
    return record


def _in_full(record: SavedModel, folder: Path, trust: bool) -> SavedModel:
    """Return the record with the vectors of the adapter over its base's own weights, which serve it.

    It was trained over nf4 weights; how near the two are is recorded among the figures.
    """
    from embedkit.embedders.transformer import TransformerEmbedder

    embedder = TransformerEmbedder.open(
        str(folder),
        dtype="bfloat16",
        device="cpu",
        pooling=record.pooling,
        template=Template(document="{text}"),
        max_length=record.max_length,
        trust_remote_code=trust,
    )
    vectors = embedder.encode_document([golden.rendered(record.template) for golden in record.golden])
    least = check_golden_vectors(record, vectors, folder, _NF4_COSINE)
    golden = [
        Golden.of(g.text, g.side, g.instruction, g.ids, vector)
        for g, vector in zip(record.golden, vectors, strict=True)
    ]
    metrics = {**record.metrics, _NF4_FIGURE: least}
    return replace(record, golden=tuple(golden), metrics=metrics)


def _dtype(model: Any) -> torch.dtype:
    """Return the dtype that the weights are stored in: the backbone's own, bfloat16 for nf4."""
    import torch

    if is_quantized(model):
        return torch.bfloat16
    found: torch.dtype = next(p.dtype for n, p in model.named_parameters() if "lora_" not in n)
    return found


def _put(beside: Path, folder: Path) -> None:
    """Move the finished folder into place; what stood there is deleted only afterwards."""
    old = beside.with_suffix(".old")
    if folder.exists():
        folder.rename(old)
    try:
        beside.rename(folder)
    except BaseException:  # Ctrl-C too
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            sync_file(path)


@contextlib.contextmanager
def _failures(folder: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission into one sentence."""
    from safetensors import SafetensorError

    try:
        yield
    except EmbedkitError:
        raise
    except (OSError, SafetensorError) as e:
        full = getattr(e, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "os error 28" in str(
            e
        )
        why = "the disk is full" if full else str(e)
        raise StoreError(
            f"the model cannot be written to {folder} ({why}): nothing there was changed; make room or name "
            "another output, and resume the run from its last checkpoint"
        ) from e
