"""Tiny seeded backbones without a tokenizer, batches of random ids, and gradients as one long vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embedkit.contract import Pooling
from embedkit_trainer.attention.packing import use_packing
from embedkit_trainer.data.batches import Batch
from embedkit_trainer.model import EmbeddingModel
from tests.trainer.made_batches import make_batch

VOCABULARY = 50
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    # Far from transformers' 0.02: attention must not be uniform, or a wrong mask would not show.
    "initializer_range": 0.15,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
#: Every family with its pooling and what makes it special: a sliding window shorter than the texts, positions that
#: count from the padding id, attention in both directions within a window.
FAMILIES: dict[str, tuple[Pooling, dict[str, Any]]] = {
    "Bert": ("mean", _SIZES),
    "XLMRoberta": ("cls", {**_SIZES, "pad_token_id": 1}),
    "Mistral": ("last", {**_GROUPED, "sliding_window": 4}),
    "Qwen3": ("weightedmean", _GROUPED),
    "Gemma3Text": (
        "mean",
        {
            **_GROUPED,
            "use_bidirectional_attention": True,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
}


def tiny_backbone(family: str, *, dropout: float = 0.0, seed: int = 0, packed: bool = False) -> Any:
    """Return a seeded transformers model in training mode, its pooler frozen as `load_backbone` does."""
    import transformers

    options = dict(FAMILIES[family][1])
    if family in ("Bert", "XLMRoberta"):
        options |= {
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": 0.0 if packed else dropout,
        }
    else:
        options["attention_dropout"] = 0.0 if packed else dropout
    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**options)
    backbone = getattr(transformers, f"{family}Model")(config)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            if name.startswith("pooler."):
                parameter.requires_grad_(False)
    if packed:
        use_packing(backbone)
    return backbone.train()


def tiny_model(
    family: str,
    *,
    dropout: float = 0.0,
    packed: bool = False,
    checkpointing: bool = False,
    lora: float | None = None,
) -> EmbeddingModel:
    """Return the family's model with its pooling; `lora` is the dropout of an adapter whose B is not zero."""
    backbone = tiny_backbone(family, dropout=dropout, packed=packed)
    if lora is not None:
        from embedkit_trainer.adapters import add_lora
        from embedkit_trainer.config.records import LoraConfig

        torch.manual_seed(1)
        backbone = add_lora(backbone, LoraConfig(r=4, lora_alpha=8, lora_dropout=lora)).train()
        with torch.no_grad():
            for name, parameter in backbone.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.1)
    if checkpointing:
        backbone.gradient_checkpointing_enable({"use_reentrant": False})
    return EmbeddingModel(backbone, FAMILIES[family][0])


def token_batch(counts: Sequence[int] = (2, 1, 3, 1, 2, 1), *, seed: int = 0, **fields: Any) -> Batch:
    """Return a batch of random ids of 1 to 20 tokens; row i owns `counts[i]` documents, with scores of all kinds.

    Among them are false negatives: the first row's negative has the text of the second row's positive, the fifth
    row's positive the id of the third's, and the fourth row asks the very same query as the first.
    """
    draw = np.random.default_rng(seed)
    total = sum(counts)

    def text(longest: int) -> Any:
        return draw.integers(2, VOCABULARY, int(draw.integers(1, longest + 1))).astype(np.int32)

    values: dict[str, Any] = {
        "queries": [text(8) for _ in counts],
        "documents": [text(20) for _ in range(total)],
        "scores": draw.random(len(counts)).astype(np.float32),
        "teacher_scores": draw.normal(size=total).astype(np.float32),
    }
    starts = np.cumsum([0, *counts])
    if len(counts) >= 5 and counts[0] > 1:
        texts, ids, queries = (
            np.arange(1, total + 1),
            np.zeros(total, np.int64),
            np.arange(1, len(counts) + 1),
        )
        texts[starts[1]] = texts[1]
        ids[[starts[2], starts[4]]] = 9
        queries[3] = queries[0]
        values |= {"text_keys": texts, "id_keys": ids, "query_keys": queries}
    return make_batch(counts, **(values | fields))


def flat_gradient(model: torch.nn.Module) -> Tensor:
    """Return all gradients as one float64 vector, in the order of the trained parameters; each must have one."""
    parts = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} has no gradient"
            parts.append(parameter.grad.double().reshape(-1))
    return torch.cat(parts)


def distance(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Return 1 - the cosine of two gradients, and their largest difference relative to the largest entry of `b`."""
    apart = 1 - float(a @ b / (a.norm() * b.norm()))
    return apart, float((a - b).abs().max() / b.abs().max())
