"""The embedder `transformer`: any Hugging Face encoder or decoder, sentence-transformers folders as they are."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from embedkit.contract import EmbedderInfo, Pooling, Template
from embedkit.embedder import Embedder
from embedkit.embedders.folder import ModelFolder, adapter_base, adapter_files, read_folder
from embedkit.embedders.hub import local_folder
from embedkit.embedders.presets import Preset, get_preset, match_preset
from embedkit.errors import EmbedderError, InputError, MissingExtraError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from embedkit.embedders.batching import Ids
    from embedkit.embedders.encoder import EncoderSpec
    from embedkit.embedders.tokens import TokenBuilder

DTYPES = ("auto", "float32", "bfloat16", "float16")
_DECODERS = (
    "mistral",
    "mixtral",
    "llama",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "phi3",
    "gpt2",
    "gpt_neox",
    "opt",
)
_BEGIN_WITH_BOS = ("mistral", "mixtral", "llama", "gemma", "gemma2", "gemma3_text")
_UNBOUNDED = 1_000_000  # tokenizers without a limit say 1e30
_NO_MAXIMUM = 8192


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
    """Embed with a transformer: last-token, mean or CLS pooling, an optional PEFT adapter, CPU or CUDA."""

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
    ) -> TransformerEmbedder:
        """Load a model folder, a PEFT adapter folder or a hub id.

        What is not given comes from the sentence-transformers files, then from the preset that the name
        matches, then from the architecture. `dtype` "auto" (the default) is bfloat16 where the device
        multiplies it fast. `device` "cuda:all" or a list starts one process per device. `token_budget`
        bounds rows x length of a batch. Raises InputError, EmbedderError or MissingExtraError; warns where the
        folder brings code of its own, which runs with `trust_remote_code` alone.
        """
        _check_options(pooling, dtype, max_length, token_budget)
        chosen = None if preset is None else get_preset(preset)
        _require_torch()
        root = local_folder(name_or_path, revision)
        names = [name_or_path]
        if not (root / "config.json").is_file() and not (root / "modules.json").is_file():
            base = adapter_base(root)
            if base is not None:
                if adapter is not None:
                    raise InputError(f"{root} is an adapter itself and {adapter!r} is given too: choose one")
                adapter, root = str(root), local_folder(base)
                names.append(base)
        if adapter is not None:
            adapter = str(local_folder(adapter))
        folder = read_folder(root)
        names += [str(folder.config.get("_name_or_path", ""))]
        matched = chosen or match_preset(*names)
        pooling = pooling or _pooling(folder, chosen, matched)
        template = template or (chosen and chosen.template) or _stored_template(folder, matched)
        tokens = _tokens(folder, matched, pooling, max_length, trust_remote_code)

        from embedkit.embedders.devices import open_backend
        from embedkit.embedders.encoder import EncoderSpec

        spec = EncoderSpec(
            str(folder.model),
            adapter,
            dtype or "auto",
            pooling,
            folder.dense,
            token_budget,
            tokens.suffix[-1] if pooling == "last" else None,
            trust_remote_code,
        )
        backend = open_backend(spec, device)
        if not trust_remote_code:
            _warn_of_own_code(folder)
        trained = matched.instruction_trained if matched else folder.instruct_prompt
        info = EmbedderInfo(
            name=f"transformer:{name_or_path}",
            dim=backend.dim,
            max_length=tokens.max_length,
            pooling=pooling,
            weights=_weights_hash(folder, spec),
            tokenizer=_tokenizer_hash(folder, tokens),
            dtype=folder.stored_dtype(),
            template=template,
            instruction_trained=trained,
            default_task=_default_task(folder, matched, trained, template),
        )
        return cls(info, tokens, backend)

    @property
    def tokenizer(self) -> Tokenizer:
        """The fast tokenizer, its post-processor adding exactly the special tokens that are encoded."""
        return self._tokens.tokenizer

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids that are encoded for rendered texts, special ones included, truncated."""
        return self._tokens(texts)

    def _embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._backend.encode(self._tokens(texts))


def _check_options(
    pooling: str | None, dtype: str | None, max_length: int | None, token_budget: int | None
) -> None:
    problems = []
    if pooling is not None and pooling not in ("mean", "cls", "last"):
        problems.append(f"pooling {pooling!r} is none of mean, cls, last")
    if dtype is not None and dtype not in DTYPES:
        problems.append(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
    problems += [
        f"{name} {value} must be at least 1"
        for name, value in (("max_length", max_length), ("token_budget", token_budget))
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


def _pooling(folder: ModelFolder, chosen: Preset | None, matched: Preset | None) -> Pooling:
    """Return the pooling: the user's preset, the stored one, the matched preset's, the architecture's."""
    if chosen is not None:
        return chosen.pooling
    if folder.pooling is not None:
        return folder.pooling
    if matched is not None:
        return matched.pooling
    return "last" if folder.config.get("model_type") in _DECODERS else "mean"


def _stored_template(folder: ModelFolder, matched: Preset | None) -> Template:
    """Return the template of the stored prompts, with the preset's form for instructions where it has one.

    The stored prompts are what sentence-transformers puts before a query and a document: they stay.
    """
    stored = folder.template()
    if matched is None:
        return stored or Template("{query}", "{instruction} {query}", "{text}")
    if stored is None:
        return matched.template
    return replace(stored, instruct=matched.template.instruct) if matched.instruction_trained else stored


def _default_task(
    folder: ModelFolder, matched: Preset | None, trained: bool, template: Template
) -> str | None:
    if folder.query_prompt and template.query.startswith(folder.query_prompt):
        return None  # the stored prompt holds the instruction for a query without a task
    return matched.default_task if matched else ("search" if trained else None)


def _tokens(
    folder: ModelFolder, preset: Preset | None, pooling: Pooling, max_length: int | None, trust: bool
) -> TokenBuilder:
    from embedkit.embedders.tokens import build_tokens, load_tokenizer

    loaded = load_tokenizer(folder.model, trust)
    bos = preset.bos if preset else None
    if bos is None and folder.config.get("model_type") in _BEGIN_WITH_BOS and loaded.bos_token_id is not None:
        bos = True
    limit = _position_limit(folder)
    if max_length is None:
        own = int(min(loaded.model_max_length or _UNBOUNDED, _UNBOUNDED))
        choices = (folder.max_length, preset and preset.max_length, own if own < _UNBOUNDED else None)
        max_length = next((c for c in choices if c), limit or _NO_MAXIMUM)
        max_length = min(max_length, limit) if limit else max_length
    elif limit is not None and max_length > limit:
        raise InputError(f"max_length {max_length} is above the model's {limit} positions: lower it")
    return build_tokens(
        loaded,
        bos=bos,
        eos=preset.eos if preset else None,
        last=pooling == "last",
        max_length=max_length,
        lower_case=folder.lower_case,
    )


def _position_limit(folder: ModelFolder) -> int | None:
    positions = folder.config.get("max_position_embeddings")
    if not isinstance(positions, int) or positions < 1:
        return None
    if folder.config.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        positions -= int(folder.config.get("pad_token_id") or 0) + 1  # counted from padding_idx + 1
    return positions


def _weights_hash(folder: ModelFolder, spec: EncoderSpec) -> str:
    from embedkit.hashing import joint_hash

    files = folder.weight_files()
    if spec.adapter is not None:
        files += adapter_files(Path(spec.adapter))
    return joint_hash(files)


def _tokenizer_hash(folder: ModelFolder, tokens: TokenBuilder) -> str:
    """Return a hash of the tokenizer's files and of what is put around and done to a text."""
    import hashlib

    from embedkit.hashing import joint_hash

    files = folder.tokenizer_files()
    if not files:
        raise EmbedderError(f"{folder.model} holds no tokenizer file: fetch it again")
    record = f"{joint_hash(files)} {tokens.prefix} {tokens.suffix} {folder.lower_case}"
    return hashlib.sha256(record.encode()).hexdigest()
