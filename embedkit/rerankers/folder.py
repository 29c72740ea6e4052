"""What a cross-encoder's folder says of itself: architecture, labels, activation, prompt, longest input."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedkit.embedders.positions import FROM_PADDING
from embedkit.errors import InputError

ACTIVATIONS = ("Identity", "Sigmoid", "Tanh", "ReLU", "GELU", "SiLU")
_UNBOUNDED = 1 << 20
# What tells a folder of sentence-transformers' CrossEncoder, in config.json; the older name first.
_MARKS = ("sbert_ce_default_activation_function", "sentence_transformers")


@dataclass(frozen=True, slots=True)
class CrossEncoderFolder:
    """Describe a model folder that scores pairs.

    `labels` are the outputs of its head, 0 for a causal model without one; `activation` is a class of torch.nn;
    `prompt` stands before every query.
    """

    model: Path
    architecture: str
    model_type: str
    labels: int
    activation: str
    prompt: str
    positions: int | None

    def longest(self, tokenizer_length: int | None, wanted: int | None) -> int:
        """Return the longest pair in tokens: what is wanted, else the tokenizer's or the positions' length.

        Raises InputError where more is wanted than there are positions.
        """
        if wanted is not None:
            if wanted < 1 or (self.positions is not None and wanted > self.positions):
                limit = f"1 to {self.positions}" if self.positions else "1 or more"
                raise InputError(f"max_length is {wanted}: this model takes {limit} tokens")
            return wanted
        own = tokenizer_length if tokenizer_length and tokenizer_length < _UNBOUNDED else None
        found = [n for n in (own, self.positions) if n]
        return min(found) if found else 512


def read_cross_encoder(root: Path) -> CrossEncoderFolder:
    """Read a folder of transformers or of sentence-transformers' CrossEncoder.

    Raises InputError for an embedder, for a model of more than two labels, for modules that are not known here, and for
    values that no such file has.
    """
    try:
        return _read_folder(root)
    except (TypeError, ValueError, KeyError, AttributeError) as e:
        if isinstance(e, InputError):
            raise
        raise InputError(f"{root} cannot be read as a cross-encoder ({e}): fetch or save it again") from e


def _read_folder(root: Path) -> CrossEncoderFolder:
    model = root
    modules = _read(root / "modules.json", list)
    if modules:
        model = root / str(modules[0].get("path", ""))
        _check_modules(root, [str(m.get("type", "")).rsplit(".", 1)[-1] for m in modules])
    config = _read(model / "config.json", dict)
    if config is None:
        raise InputError(f"{root} is no model folder: it has no config.json")
    saved = _read(root / "config_sentence_transformers.json", dict) or {}
    architecture = str((config.get("architectures") or [""])[0])
    if saved.get("model_type") == "SentenceTransformer" or not _scores(architecture):
        raise InputError(
            f"{root} is no cross-encoder ({architecture or 'no architecture named'}): an embedder's folder re-scores as "
            f"embedder:{root}"
        )
    labels = 0 if architecture.endswith("ForCausalLM") else _labels(config)
    if labels > 2:
        raise InputError(
            f"{root} has {labels} labels: a cross-encoder of 1 (a score) or 2 (its second is relevance) is needed"
        )
    return CrossEncoderFolder(
        model,
        architecture,
        str(config.get("model_type", "")),
        labels,
        _activation(root, config, saved, labels),
        _prompt(saved),
        _positions(config),
    )


def _scores(architecture: str) -> bool:
    return architecture.endswith(("ForSequenceClassification", "ForCausalLM"))


def _check_modules(root: Path, kinds: list[str]) -> None:
    if kinds[0] != "Transformer" or "Pooling" in kinds:
        raise InputError(
            f"{root} is an embedder ({', '.join(kinds)}), not a cross-encoder: it re-scores as embedder:{root}"
        )
    for kind in kinds[1:]:
        if kind != "LogitScore":
            raise InputError(
                f"{root} holds a {kind} module, which is not known here (known: Transformer, LogitScore)"
            )


def _labels(config: Mapping[str, Any]) -> int:
    names = config.get("id2label")
    # transformers writes neither where there are two.
    return len(names) if isinstance(names, Mapping) and names else int(config.get("num_labels") or 2)


def _activation(root: Path, config: Mapping[str, Any], saved: Mapping[str, Any], labels: int) -> str:
    """Return what sentence-transformers applies to a score: what is stored, else Sigmoid; elsewhere the raw logit."""
    if labels != 1:
        return "Identity"
    own = config.get("sentence_transformers")
    stored = saved.get("activation_fn") or (own.get("activation_fn") if isinstance(own, Mapping) else None)
    stored = stored or config.get("sbert_ce_default_activation_function")
    if stored is None:
        theirs = saved.get("model_type") == "CrossEncoder" or any(mark in config for mark in _MARKS)
        return "Sigmoid" if theirs else "Identity"
    name = str(stored).rsplit(".", 1)[-1]
    if not str(stored).startswith("torch.nn.") or name not in ACTIVATIONS:
        raise InputError(
            f"{root} has the activation {stored}: known are {', '.join(ACTIVATIONS)} of torch.nn"
        )
    return name


def _prompt(saved: Mapping[str, Any]) -> str:
    prompts = saved.get("prompts") or {}
    return str(prompts.get(saved.get("default_prompt_name") or "") or "")


def _positions(config: Mapping[str, Any]) -> int | None:
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int) or positions < 1:
        return None
    if config.get("model_type") in FROM_PADDING:
        positions -= int(config.get("pad_token_id") or 0) + 1  # counted from padding_idx + 1
    return positions


def _read(path: Path, kind: type[Any]) -> Any:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise InputError(f"{path} cannot be read: {e}") from e
    if not isinstance(value, kind) or (kind is list and not all(isinstance(m, dict) for m in value)):
        raise InputError(f"{path} is no model's file: it holds {type(value).__name__}")
    return value
