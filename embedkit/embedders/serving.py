"""What a model folder amounts to before its weights are loaded: pooling, template, token ids, adapter.

Searching and training open a folder through here, so that both see the same ids and the same template.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from embedkit.contract import Pooling, Template
from embedkit.embedders.folder import ModelFolder, adapter_base, read_folder
from embedkit.embedders.hub import local_folder
from embedkit.embedders.positions import FROM_PADDING
from embedkit.embedders.presets import Preset, get_preset, match_preset
from embedkit.embedders.saved import SavedModel, check_golden_ids, read_saved
from embedkit.embedders.tokens import TokenBuilder, build_tokens, load_tokenizer
from embedkit.errors import EmbedderError, InputError

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
    `saved` is the embedkit.json of a model that embedkit trained; its golden vectors are those of this very model.
    """

    folder: ModelFolder
    adapter: Path | None
    pooling: Pooling
    template: Template
    tokenizer: Any
    tokens: TokenBuilder
    instruction_trained: bool
    default_task: str | None
    saved: SavedModel | None = None


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

    What is not given comes from embedkit.json, else from the sentence-transformers files, then from the preset that
    the name matches, then from the architecture; `default_template` stands in where neither files nor preset give a template
    (None: the instruction before the query). Raises InputError, EmbedderError or UnknownNameError.
    """
    chosen = None if preset is None else get_preset(preset)
    root, over, names = local_folder(name_or_path, revision), None, [name_or_path]
    base = None if (root / "config.json").is_file() else adapter_base(root)
    if adapter is not None:
        if base is not None:
            raise InputError(f"{root} is an adapter itself and {adapter!r} is given too: choose one")
        over = local_folder(adapter)
    elif base is not None:
        record = read_saved(root)
        over, root = root, local_folder(base, record.commit if record else None)
        names.append(base)
    folder = read_folder(root) if over is None else read_folder(over, read_folder(root))
    own = read_saved(over or root)
    saved = own or (read_saved(root) if over else None)
    if saved is not None and preset is not None:
        raise InputError(
            f"{folder.root} says itself how it is used (embedkit.json): leave preset {preset!r} out"
        )
    names.append(str(folder.config.get("_name_or_path", "")))
    matched = None if saved else chosen or match_preset(*names)
    pooling = pooling or (_saved_pooling(folder, saved) if saved else _pooling(folder, chosen, matched))
    tokenizer = load_tokenizer(folder.tokenizer, trust_remote_code)
    limit = _max_length(folder, tokenizer, matched, saved, max_length)
    if saved is None:
        tokens = build_tokens(
            tokenizer,
            bos=_bos(folder, tokenizer, matched),
            eos=matched.eos if matched else None,
            last=pooling == "last",
            max_length=limit,
            lower_case=folder.lower_case,
        )
        template = template or (chosen.template if chosen else None)
        template = template or _stored_template(folder, matched, default_template)
        trained = matched.instruction_trained if matched else folder.instruct_prompt
        task = _default_task(folder, matched, trained, template)
    else:  # the saved tokenizer adds exactly what was trained with
        tokens = build_tokens(tokenizer, bos=None, eos=None, last=False, max_length=limit)
        check_golden_ids(saved, tokens, folder.tokenizer)
        if pooling == "last" and saved.pooling != "last":  # training goes on with another pooling
            tokens = build_tokens(tokenizer, bos=None, eos=None, last=True, max_length=limit)
        template, trained, task = template or saved.template, saved.instruction_trained, saved.default_task
    return OpenedFolder(
        folder=folder,
        adapter=over,
        pooling=pooling,
        template=template,
        tokenizer=tokenizer,
        tokens=tokens,
        instruction_trained=trained,
        default_task=task,
        saved=own,
    )


def _saved_pooling(folder: ModelFolder, saved: SavedModel) -> Pooling:
    if folder.pooling not in (None, saved.pooling):
        raise EmbedderError(
            f"{folder.root} was trained with pooling {saved.pooling}, its Pooling module says {folder.pooling}: "
            "restore the files that were saved with the model"
        )
    return saved.pooling


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


def _bos(folder: ModelFolder, tokenizer: Any, preset: Preset | None) -> bool | None:
    """Return whether texts begin with BOS; None leaves it to the tokenizer's post-processor."""
    if preset is not None and preset.bos is not None:
        return preset.bos
    begins = folder.config.get("model_type") in _BEGIN_WITH_BOS and tokenizer.bos_token_id is not None
    return True if begins else None


def _max_length(
    folder: ModelFolder, tokenizer: Any, preset: Preset | None, saved: SavedModel | None, wanted: int | None
) -> int:
    limit = _position_limit(folder)
    if wanted is not None:
        if limit is not None and wanted > limit:
            raise InputError(f"max_length {wanted} is above the model's {limit} positions: lower it")
        return wanted
    own = int(min(tokenizer.model_max_length or _UNBOUNDED, _UNBOUNDED))
    choices = (
        saved and saved.max_length,
        folder.max_length,
        preset and preset.max_length,
        own if own < _UNBOUNDED else None,
    )
    found = next((c for c in choices if c), limit or _NO_MAXIMUM)
    return min(found, limit) if limit else found


def _position_limit(folder: ModelFolder) -> int | None:
    positions = folder.config.get("max_position_embeddings")
    if not isinstance(positions, int) or positions < 1:
        return None
    if folder.config.get("model_type") in FROM_PADDING:
        positions -= int(folder.config.get("pad_token_id") or 0) + 1  # counted from padding_idx + 1
    return positions
