"""What a model folder amounts to before its weights are loaded: pooling, template, token ids, adapter.

Searching and training open a folder through here, so that both see the same ids and the same template.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit.contract import Pooling, Template
from embedkit.embedders.folder import ModelFolder, adapter_base, read_folder
from embedkit.embedders.hub import local_folder
from embedkit.embedders.presets import Preset, get_preset, match_preset
from embedkit.errors import InputError

if TYPE_CHECKING:
    from embedkit.embedders.tokens import TokenBuilder

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


@dataclass(frozen=True)
class OpenedFolder:
    """Hold what a folder, its preset and the caller's choices resolve to.

    `adapter` is the folder of a PEFT adapter over `folder.model`. `tokenizer` is transformers' own, as it was
    loaded; `tokens` is what texts are encoded with (`dataclasses.replace(tokens, max_length=…)` for another length).
    """

    folder: ModelFolder
    adapter: Path | None
    pooling: Pooling
    template: Template
    tokenizer: Any
    tokens: TokenBuilder
    instruction_trained: bool
    default_task: str | None


def open_folder(
    name_or_path: str,
    *,
    preset: str | None = None,
    pooling: Pooling | None = None,
    template: Template | None = None,
    max_length: int | None = None,
    adapter: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    default_template: Template | None = None,
) -> OpenedFolder:
    """Resolve a model folder, a PEFT adapter folder or a hub id; load its tokenizer, and no weights.

    What is not given comes from the sentence-transformers files, then from the preset that the name matches,
    then from the architecture; `default_template` stands in where neither files nor preset give a template
    (None: the instruction before the query). Raises InputError, EmbedderError or UnknownNameError.
    """
    chosen = None if preset is None else get_preset(preset)
    root = local_folder(name_or_path, revision)
    names = [name_or_path]
    if not (root / "config.json").is_file() and not (root / "modules.json").is_file():
        base = adapter_base(root)
        if base is not None:
            if adapter is not None:
                raise InputError(f"{root} is an adapter itself and {adapter!r} is given too: choose one")
            adapter, root = str(root), local_folder(base)
            names.append(base)
    folder = read_folder(root)
    names.append(str(folder.config.get("_name_or_path", "")))
    matched = chosen or match_preset(*names)
    pooling = pooling or _pooling(folder, chosen, matched)
    template = template or (chosen and chosen.template) or _stored_template(folder, matched, default_template)
    tokenizer, tokens = _tokens(folder, matched, pooling, max_length, trust_remote_code)
    trained = matched.instruction_trained if matched else folder.instruct_prompt
    return OpenedFolder(
        folder=folder,
        adapter=None if adapter is None else local_folder(adapter),
        pooling=pooling,
        template=template,
        tokenizer=tokenizer,
        tokens=tokens,
        instruction_trained=trained,
        default_task=_default_task(folder, matched, trained, template),
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


def _stored_template(folder: ModelFolder, matched: Preset | None, default: Template | None) -> Template:
    """Return the template of the stored prompts, with the preset's form for instructions where it has one.

    The stored prompts are what sentence-transformers puts before a query and a document: they stay.
    """
    stored = folder.template()
    if matched is None:
        return stored or default or Template("{query}", "{instruction} {query}", "{text}")
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
) -> tuple[Any, TokenBuilder]:
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
    return loaded, build_tokens(
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
