"""The embedder `transformer`: any Hugging Face encoder or decoder, sentence-transformers folders as they are."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from embedkit.contract import EmbedderInfo, Pooling, Template
from embedkit.embedder import Embedder
from embedkit.embedders.folder import ModelFolder, adapter_files
from embedkit.embedders.matryoshka import check_dim, cut, listed_dims
from embedkit.embedders.saved import check_golden_vectors
from embedkit.embedders.serving import open_folder
from embedkit.errors import EmbedderError, InputError, MissingExtraError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from embedkit.embedders.batching import Ids
    from embedkit.embedders.encoder import EncoderSpec
    from embedkit.embedders.tokens import TokenBuilder

POOLINGS = ("mean", "weightedmean", "cls", "last")
DTYPES = ("auto", "float32", "bfloat16", "float16")


class Backend(Protocol):
    """Turn token ids into vectors, on one device or several."""

    @property
    def dim(self) -> int:
        """The width of the vectors."""

    def encode(self, rows: Sequence[Ids]) -> NDArray[np.float32]:
        """Return float32 `[n, dim]`."""


class ModelCodeWarning(UserWarning):
    """Warn that a model's own code was not run, and that transformers' class of the same name stood in."""


class TransformerEmbedder(Embedder):
    """Embed with a transformer: last-token, (weighted) mean or CLS pooling, an optional PEFT adapter, CPU or CUDA."""

    window: ClassVar[int] = 2048

    def __init__(self, info: EmbedderInfo, tokens: TokenBuilder, backend: Backend) -> None:
        self.info = info
        self._tokens = tokens
        self._backend = backend

    @classmethod
    def open(
        cls,
        name_or_path: str,
        *,
        preset: str | None = None,
        pooling: Pooling | None = None,
        template: Template | None = None,
        max_length: int | None = None,
        adapter: str | None = None,
        dtype: str | None = None,
        device: str | Sequence[str] | None = None,
        token_budget: int | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        rope_theta: float | None = None,
        sliding_window: int | None = None,
        dim: int | None = None,
    ) -> TransformerEmbedder:
        """Load a model folder, a PEFT adapter folder or a hub id.

        What is not given comes from embedkit.json (a model trained here, whose golden ids and vectors are
        checked), then from the sentence-transformers files, the preset that the name matches, the architecture.
        `dtype` "auto" (the default) is bfloat16 where the device multiplies it fast. `device` "cuda:all" or a list
        starts one process per device. `token_budget` bounds rows x length of a batch. `rope_theta` and
        `sliding_window` override the base of the rotary positions and the attention window (tokens), to try longer
        texts than the model was trained on. `dim` cuts vectors to their first numbers. Raises InputError, EmbedderError or MissingExtraError; warns where the
        folder brings code of its own, which runs with `trust_remote_code` alone.
        """
        _check_options(
            pooling,
            dtype,
            max_length=max_length,
            token_budget=token_budget,
            rope_theta=rope_theta,
            sliding_window=sliding_window,
        )
        if dim is not None:
            check_dim(dim)  # before a model of many GB is loaded
        _require_torch()
        opened = open_folder(
            name_or_path,
            preset=preset,
            pooling=pooling,
            template=template,
            max_length=max_length,
            adapter=adapter,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        folder, tokens, saved = opened.folder, opened.tokens, opened.saved
        if saved is not None and opened.pooling != saved.pooling:
            raise InputError(f"{folder.root} was trained with pooling {saved.pooling}: leave {pooling!r} out")

        from embedkit.embedders.devices import open_backend
        from embedkit.embedders.encoder import EncoderSpec

        spec = EncoderSpec(
            str(folder.model),
            None if opened.adapter is None else str(opened.adapter),
            dtype or "auto",
            opened.pooling,
            folder.dense,
            token_budget,
            tokens.suffix[-1] if opened.pooling == "last" else None,
            trust_remote_code,
            rope_theta,
            sliding_window,
        )
        backend = open_backend(spec, device)
        if not trust_remote_code:
            _warn_of_own_code(folder)
        if saved is not None and rope_theta is None and sliding_window is None:
            check_golden_vectors(saved, backend.encode([golden.ids for golden in saved.golden]), folder.root)
        info = EmbedderInfo(
            name=f"transformer:{name_or_path}",
            dim=backend.dim,
            max_length=tokens.max_length,
            pooling=opened.pooling,
            weights=_weights_hash(folder, spec),
            tokenizer=_tokenizer_hash(folder, tokens),
            dtype=folder.stored_dtype(),
            template=opened.template,
            instruction_trained=opened.instruction_trained,
            default_task=opened.default_task,
        )
        if dims := listed_dims(folder.root, folder.config):
            info = replace(info, matryoshka_dims=tuple(d for d in dims if d < info.dim))
        return cls(cut(info, dim), tokens, backend)

    @property
    def tokenizer(self) -> Tokenizer:
        """The fast tokenizer, its post-processor adding exactly the special tokens that are encoded."""
        return self._tokens.tokenizer

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids that are encoded for rendered texts, special ones included, truncated."""
        return self._tokens(texts)

    def _embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._backend.encode(self._tokens(texts))


def _check_options(pooling: str | None, dtype: str | None, **numbers: float | None) -> None:
    problems = []
    if pooling is not None and pooling not in POOLINGS:
        problems.append(f"pooling {pooling!r} is none of {', '.join(POOLINGS)}")
    if dtype is not None and dtype not in DTYPES:
        problems.append(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
    problems += [
        f"{name} {value} must be at least 1"
        for name, value in numbers.items()
        if value is not None and value < 1
    ]
    if problems:
        raise InputError("; ".join(problems))


def _require_torch() -> None:
    try:
        import torch
        import transformers
    except ImportError as e:
        raise MissingExtraError("the transformer embedder", "torch") from e
    del torch, transformers


def _warn_of_own_code(folder: ModelFolder) -> None:
    # Such code may attend in both directions where the class that stands in is causal (gte-Qwen2-7B): the
    # vectors look like any others, and retrieve nothing.
    own = (folder.config.get("auto_map") or {}).get("AutoModel")
    if own:
        warnings.warn(
            f"{folder.model} names code of its own ({own}), which was not run: transformers' "
            f"{folder.config.get('model_type')} stood in, and vectors may differ from the published ones; "
            "trust_remote_code=true runs it, if you trust it",
            ModelCodeWarning,
            stacklevel=3,
        )


def _weights_hash(folder: ModelFolder, spec: EncoderSpec) -> str:
    from embedkit.hashing import joint_hash

    files = folder.weight_files()
    if spec.adapter is not None:
        files += adapter_files(Path(spec.adapter))
    weights = joint_hash(files)
    if spec.rope_theta is None and spec.sliding_window is None:
        return weights
    # Other positions are another model: an index built with them is searched with them alone.
    return f"{weights} rope_theta {spec.rope_theta} sliding_window {spec.sliding_window}"


def _tokenizer_hash(folder: ModelFolder, tokens: TokenBuilder) -> str:
    """Return a hash of the tokenizer's files and of what is put around and done to a text."""
    import hashlib

    from embedkit.hashing import joint_hash

    files = folder.tokenizer_files()
    if not files:
        raise EmbedderError(f"{folder.model} holds no tokenizer file: fetch it again")
    record = f"{joint_hash(files)} {tokens.prefix} {tokens.suffix} {folder.lower_case}"
    return hashlib.sha256(record.encode()).hexdigest()
