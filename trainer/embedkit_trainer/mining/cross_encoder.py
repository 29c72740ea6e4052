"""A cross-encoder as judge of mined negatives: it reads query and text together, so it knows more than a cosine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from embedkit.errors import InputError, MissingExtraError

_LENGTH = 512


class CrossEncoderJudge:
    """Accept a text as a negative where a sequence-classification model finds it irrelevant.

    Relevance is the sigmoid of a model's only logit, else the softmax of its last class. A text is accepted where
    its relevance is below `threshold` and below the positive's.
    """

    def __init__(self, folder: str | Path, *, threshold: float = 0.5, device: str | None = None) -> None:
        """Open a Hugging Face folder. Raises InputError where it is none, MissingExtraError without transformers."""
        if not (Path(folder) / "config.json").is_file():
            raise InputError(f"the judge {str(folder)!r} is no model folder: it holds no config.json")
        if not 0 < threshold <= 1:
            raise InputError(f"the judge's threshold is {threshold}: give more than 0 and at most 1")
        try:
            import torch
            from transformers import AutoModelForSequenceClassification, AutoTokenizer
        except ImportError as e:
            raise MissingExtraError("a cross-encoder", "torch") from e
        try:
            model = AutoModelForSequenceClassification.from_pretrained(str(folder))
            self._tokenizer = AutoTokenizer.from_pretrained(str(folder))
        except (OSError, ValueError) as e:
            reason = str(e).splitlines()[0]
            raise InputError(
                f"the judge {str(folder)!r} cannot be opened as a cross-encoder: {reason}"
            ) from e
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.to(self._device).eval()
        self._threshold = threshold

    def __call__(self, query: str, positive: str, texts: Sequence[str]) -> list[bool]:
        """Say of each text whether it may be a negative of the query."""
        reference, *found = self.relevance(query, [positive, *texts])
        # The positive itself scores a rounding apart where it stands in a batch of other lengths.
        return [
            text != positive and score < self._threshold and score < reference
            for text, score in zip(texts, found, strict=True)
        ]

    def relevance(self, query: str, texts: Sequence[str]) -> list[float]:
        """Return each text's relevance to the query, from 0 to 1."""
        import torch

        longest = min(_LENGTH, getattr(self._model.config, "max_position_embeddings", _LENGTH))
        batch = self._tokenizer(
            [query] * len(texts), list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt"
        )  # fmt: skip
        with torch.inference_mode():
            logits = self._model(**batch.to(self._device)).logits.float()
        share = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)
        scores: list[float] = share[:, -1].tolist()
        return scores
