"""Cross-encoders: transformers' sequence classification, and sentence-transformers' CrossEncoder folders as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from embedkit.errors import InputError
from embedkit.rerankers.base import Reranker, RerankerInfo, Scores
from embedkit.rerankers.folder import ACTIVATIONS, read_cross_encoder
from embedkit.rerankers.running import Loading, Runner, pick_device, pick_dtype, require_torch

if TYPE_CHECKING:
    from torch import Tensor

    from embedkit.rerankers.pairs import PairBuilder


class CrossEncoderReranker(Reranker):
    """Score by a classifier over query and text: its logit, of two labels the second's minus the first's.

    Where the folder is sentence-transformers', the score goes through the activation that it stores, as in
    `CrossEncoder.predict`.
    """

    def __init__(self, info: RerankerInfo, pairs: PairBuilder, run: Runner, prompt: str = "") -> None:
        self.info = info
        self._pairs = pairs
        self._run = run
        self._prompt = prompt

    @classmethod
    def open(
        cls,
        name_or_path: str,
        *,
        max_length: int | None = None,
        activation: str | None = None,
        prompt: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        token_budget: int | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> Reranker:
        """Load a folder or a hub id.

        `activation` (a class of torch.nn, such as Identity) and `prompt` (put before the query) replace the folder's.
        `dtype` "auto" is float32 on a CPU. A causal model goes to `Qwen3Reranker` where it is one of Qwen3. Raises
        InputError for what is no cross-encoder, MissingExtraError, and EmbedderError for files that cannot be read.
        """
        from embedkit.embedders.hub import local_folder

        if not name_or_path:
            raise InputError(
                "the reranker cross-encoder needs a model: write cross-encoder:FOLDER, or a hub id"
            )
        if activation is not None and activation not in ACTIVATIONS:
            raise InputError(f"activation {activation!r} is none of {', '.join(ACTIVATIONS)}")
        folder = read_cross_encoder(local_folder(name_or_path, revision))
        require_torch()
        from embedkit.rerankers.qwen3 import open_causal

        where = pick_device(device)
        loading = Loading(
            name_or_path, folder, where, pick_dtype(dtype, where), max_length, token_budget, trust_remote_code
        )
        if folder.labels == 0:
            if activation or prompt:
                raise InputError(
                    f"{name_or_path} is a causal model, which has its own template: leave activation and prompt out"
                )
            return open_causal(loading)
        return _load(loading, activation or folder.activation, folder.prompt if prompt is None else prompt)

    def _score(self, query: str, texts: Sequence[str], instruction: str | None) -> Scores:
        rows = self._pairs(self._prompt + query, texts)
        return Scores(self._run(rows), sum(len(row) for row in rows))


def _load(loading: Loading, activation: str, prompt: str) -> CrossEncoderReranker:
    import torch
    from transformers import AutoModelForSequenceClassification

    from embedkit.rerankers.pairs import PairBuilder

    tokenizer = loading.tokenizer()
    longest = loading.folder.longest(tokenizer.model_max_length, loading.max_length)
    pairs = PairBuilder(tokenizer, longest, loading.name)
    model = loading.model(AutoModelForSequenceClassification)
    shape = getattr(torch.nn, activation)()

    def logits(inputs: dict[str, Tensor]) -> Tensor:
        found: Tensor = model(**inputs).logits.float()
        if found.shape[1] == 2:
            return found[:, 1] - found[:, 0]
        applied: Tensor = shape(found[:, 0])
        return applied

    run = Runner(
        logits, loading.device, pad=int(tokenizer.pad_token_id or 0), token_budget=loading.token_budget,
        types="token_type_ids" in tokenizer.model_input_names,
    )  # fmt: skip
    return CrossEncoderReranker(RerankerInfo(loading.name, longest, "cross-encoder"), pairs, run, prompt)
