"""Tiny seeded cross-encoders and causal rerankers, and scores computed from them by plain transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.embedkit.tiny_models import BERT, QWEN3, XLMR, Specials, save_tokenizer

QUERY = "salt and pepper in the soup"
_SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}


def save_cross_encoder(
    folder: Path, specials: Specials = BERT, labels: int = 1, positions: int = 64, **changes: Any
) -> Path:
    """Save a seeded BERT or XLM-R for sequence classification, with its tokenizer for pairs."""
    import torch
    import transformers

    vocab = save_tokenizer(folder, specials)
    _teach_pairs(folder, specials, positions)
    family = "Bert" if specials == BERT else "XLMRoberta"
    sizes = dict(_SIZES) | {"vocab_size": vocab, "num_labels": labels, "initializer_range": 0.2}
    if specials == XLMR:  # <pad> has id 1, and positions are counted from 2
        sizes |= {
            "pad_token_id": 1,
            "max_position_embeddings": positions + 2,
            "type_vocab_size": 1,
        }
    else:
        sizes |= {"max_position_embeddings": positions}
    config = getattr(transformers, f"{family}Config")(**(sizes | changes))
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForSequenceClassification")(config)
    _move_biases(model)
    model.eval().save_pretrained(str(folder))
    return folder


def save_causal_reranker(folder: Path, architecture: str = "Qwen3") -> Path:
    """Save a seeded causal model whose tokenizer knows yes and no."""
    import torch
    import transformers

    vocab = save_tokenizer(folder, QWEN3)
    wrapper: Any = transformers.AutoTokenizer
    tokenizer = wrapper.from_pretrained(str(folder))
    added = tokenizer.add_tokens(["yes", "no"])
    tokenizer.save_pretrained(str(folder))
    options: dict[str, Any] = {
        **_SIZES,
        "vocab_size": vocab + added,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "initializer_range": 0.2,
    }
    if architecture == "Qwen3":
        options["head_dim"] = 16
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(**options)
    model = getattr(transformers, f"{architecture}ForCausalLM")(config)
    _move_biases(model)
    model.eval().save_pretrained(str(folder))
    return folder


def plain_scores(folder: Path, query: str, texts: Sequence[str], length: int) -> NDArray[np.float32]:
    """Return the logits by plain transformers, float32 [n, labels]: one pair a time, only the text cut."""
    import torch
    import transformers

    loader: Any = transformers.AutoTokenizer
    tokenizer = loader.from_pretrained(str(folder))
    kind: Any = transformers.AutoModelForSequenceClassification
    model = kind.from_pretrained(str(folder), dtype=torch.float32).eval()
    rows = []
    for text in texts:
        # Lists: with one string, transformers takes an empty text for none.
        inputs = tokenizer([query], [text], truncation="only_second", max_length=length, return_tensors="pt")
        with torch.no_grad():
            rows.append(model(**inputs).logits[0].numpy())
    return np.stack(rows)


def _teach_pairs(folder: Path, specials: Specials, positions: int) -> None:
    """Give a saved tokenizer the family's form of a pair, and its names for what a model reads."""
    import json

    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    path = folder / "tokenizer.json"
    tokenizer: Any = Tokenizer.from_file(str(path))
    begin, end = specials.before[0], specials.after[0]
    bert = specials == BERT
    tokenizer.post_processor = TemplateProcessing(
        single=[begin, "$A", end],
        pair=[begin, "$A", end, "$B:1", f"{end}:1"] if bert else [begin, "$A", end, end, "$B", end],
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in (begin, end)],
    )
    tokenizer.save(str(path))
    config = folder / "tokenizer_config.json"
    settings = json.loads(config.read_text())
    names = ["input_ids", *(["token_type_ids"] if bert else []), "attention_mask"]
    settings |= {"model_max_length": positions, "model_input_names": names}
    config.write_text(json.dumps(settings))


def _move_biases(model: Any) -> None:
    """Move what begins at 0 and 1, so that forgetting one shows."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and "norm" not in name.lower():
                parameter.normal_(0, 0.1)
            elif parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
