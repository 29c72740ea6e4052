"""An embedder with a real tokenizer, trained on a few lines, and no model behind it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from embedkit.contract import EmbedderInfo, Template
from embedkit.embedder import Embedder

SENTENCES = [
    "The library keeps old maps of the harbour, and nobody may borrow them.",
    "A chunk is a piece of a document that is embedded as one vector.",
    "Die Bibliothek bewahrt alte Karten des Hafens auf.",
    "Η βιβλιοθήκη φυλάσσει παλιούς χάρτες του λιμανιού.",
]


@cache
def tokenizer() -> Tokenizer:
    """Return a byte-level BPE tokenizer of 600 tokens that puts [CLS] and [SEP] round a text."""
    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["[CLS]", "[SEP]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    built.train_from_iterator(SENTENCES * 3, trainer)
    built.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", built.token_to_id("[CLS]")), ("[SEP]", built.token_to_id("[SEP]"))],
    )
    return built


class ToyEmbedder(Embedder):
    """Count and cut texts; its vectors mean nothing."""

    def __init__(self, max_length: int = 64, document: str = "{text}", tokens: bool = True) -> None:
        self.info = EmbedderInfo("toy", 4, max_length, "mean", "none", template=Template(document=document))
        self.texts_counted = 0
        self.calls = 0
        self._tokens = tokens

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Return the small tokenizer, or None where there shall be none."""
        return tokenizer() if self._tokens else None

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count as the base class does, and note the call."""
        self.calls += 1
        self.texts_counted += len(texts)
        return super().count_tokens(texts)

    def _embed(self, texts: Sequence[str]) -> NDArray[np.floating[Any]]:
        return np.ones((len(texts), 4), dtype=np.float32)
