"""Base models by architecture: what their config.json says where it cannot be read, and how many parameters train."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedkit.errors import InputError
from embedkit_trainer.config.records import LoraConfig, ModelConfig


@dataclass(frozen=True, slots=True)
class Architecture:
    """Name transformers' model type and what differs from that type's default configuration."""

    model_type: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Count the parameters that are trained, and all of them, adapter included."""

    trained: int
    total: int


_MINILM = {"hidden_size": 384, "intermediate_size": 1536}
_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
_XLMR = {"vocab_size": 250002, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1}

#: The configurations that the models' publishers put beside them. transformers' defaults are Mistral-7B-v0.1,
#: LLaMA-2-7B and BERT base; keys are lower-cased hub ids without the owner.
_KNOWN = {
    "mistral-7b-v0.1": Architecture("mistral"),
    "llama-2-7b-hf": Architecture("llama"),
    "bert-base-uncased": Architecture("bert"),
    "bert-large-uncased": Architecture("bert", _LARGE),
    "xlm-roberta-base": Architecture("xlm-roberta", _XLMR),
    "xlm-roberta-large": Architecture("xlm-roberta", {**_XLMR, **_LARGE}),
    "minilm-l12-h384-uncased": Architecture("bert", _MINILM),
    "minilm-l6-h384-uncased": Architecture("bert", {**_MINILM, "num_hidden_layers": 6}),
}
#: What a name gives away of an unknown model, first match first.
_FAMILIES = (
    (r"mistral|mixtral", "mistral"),
    (r"llama|vicuna", "llama"),
    (r"qwen-?3", "qwen3"),
    (r"qwen-?[12]", "qwen2"),
    (r"gemma", "gemma3_text"),
    (r"xlm-?r|multilingual-e5|bge-m3|labse", "xlm-roberta"),
    (r"bert|minilm|gte|bge|e5-|simcse|arctic-embed", "bert"),
)


def find_architecture(name: str) -> Architecture:
    """Return the architecture of a folder (its config.json) or of a hub id (by name; nothing is fetched).

    An adapter folder gives its base's. Raises InputError for a name that says nothing.
    """
    folder = Path(name)
    if folder.is_dir():
        return _of_folder(folder)
    short = name.rsplit("/", 1)[-1].lower()
    if short in _KNOWN:
        return _KNOWN[short]
    for pattern, model_type in _FAMILIES:
        if re.search(pattern, short):
            return Architecture(model_type)
    raise InputError(
        f"the architecture of {name!r} cannot be told from its name: fetch the model and name its folder"
    )


def count_parameters(model: ModelConfig) -> ParameterCount | None:
    """Count a model's parameters without weights; None where its exact configuration is not at hand.

    The model is laid out on torch's meta device, which allocates nothing; an adapter's share is computed as
    r x (in + out) for each linear layer that `target_modules` names (arXiv 2106.09685).
    """
    exact = Path(model.name).is_dir() or model.name.rsplit("/", 1)[-1].lower() in _KNOWN
    if not exact or model.trust_remote_code:
        return None
    import torch
    import transformers

    auto: Any = transformers.AutoModel
    architecture = find_architecture(model.name)
    try:
        config = transformers.AutoConfig.for_model(architecture.model_type, **architecture.settings)
        with torch.device("meta"):
            backbone = auto.from_config(config)
    except (ValueError, KeyError, TypeError, ImportError, AttributeError):
        return None
    if getattr(backbone, "pooler", None) is not None:  # training leaves it out
        backbone.pooler = None
    total = sum(p.numel() for p in backbone.parameters())
    if model.tuning == "full":
        return ParameterCount(total, total)
    added = sum(
        model.lora.r * (layer.in_features + layer.out_features)
        for name, layer in backbone.named_modules()
        if isinstance(layer, torch.nn.Linear) and _targeted(name, model.lora)
    )
    return ParameterCount(added, total + added)


def _targeted(name: str, lora: LoraConfig) -> bool:
    """Match as PEFT does: a list holds ends of names, a text is a pattern for the whole name."""
    targets = lora.target_modules
    if isinstance(targets, str):
        return targets == "all-linear" or re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _of_folder(folder: Path) -> Architecture:
    for path in (folder / "config.json", folder / "adapter_config.json"):
        if not path.is_file():
            continue
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            raise InputError(f"{path} cannot be read: {e}") from e
        if path.name == "adapter_config.json":
            return find_architecture(str(config.get("base_model_name_or_path", "")))
        model_type = config.pop("model_type", None)
        if not model_type:
            raise InputError(f"{path} names no model_type: it is no Hugging Face model folder")
        return Architecture(str(model_type), config)
    raise InputError(f"{folder} has no config.json: it is no Hugging Face model folder")
