"""Tiny models as they stand at the end of training, for the tests of what is saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedkit.contract import Pooling, Template
from embedkit.embedders.pooling import pool
from embedkit.embedders.saved import SavedModel, SourceRecord
from embedkit.embedders.serving import open_folder
from embedkit_trainer.adapters import add_lora
from embedkit_trainer.config.records import LoraConfig
from embedkit_trainer.saving.export import Trained, base_revision
from tests.embedkit.tiny_models import BERT, LLAMA, QWEN3, XLMR, plain_model, save_model

FAMILIES = {"Mistral": LLAMA, "Qwen3": QWEN3, "Bert": BERT, "XLMRoberta": XLMR}


def trained_model(
    root: Path,
    architecture: str = "Mistral",
    *,
    lora: bool = False,
    pooling: Pooling | None = None,
    dtype: Any = None,
) -> tuple[Trained, SavedModel]:
    """Return a seeded model whose weights have moved from its base's, and the record it is saved under."""
    import torch

    base = root / f"base-{architecture}"
    if not base.exists():
        save_model(base, architecture, FAMILIES[architecture])
    opened = open_folder(str(base), pooling=pooling, default_template=Template(), max_length=64)
    model = plain_model(base)
    if dtype is not None:
        model = model.to(dtype)
    torch.manual_seed(7)
    if lora:
        model = add_lora(model, LoraConfig(r=4, lora_alpha=8))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or not lora:
                parameter.add_(torch.randn_like(parameter) * 0.1)

    def embed(rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        model.eval()
        vectors = []
        for ids in rows:
            with torch.no_grad():
                states = model(input_ids=torch.tensor([list(ids)])).last_hidden_state
            vectors.append(pool(states, torch.tensor([len(ids)]), opened.pooling)[0].numpy())
        return np.stack(vectors)

    record = SavedModel(
        base=str(base),
        base_revision=base_revision(opened.folder),
        pooling=opened.pooling,
        template=opened.template,
        query_length=48,
        document_length=64,
        default_task="search",
        instruction_trained=True,
        sources=(SourceRecord("questions", 1234, "CC-BY-4.0"), SourceRecord("a|b", 5)),
        metrics={"nDCG@10": 0.5},
        recipe="seed = 42",
    )
    return Trained(model, opened.tokenizer, opened.tokens, embed), record
