"""Merge a PEFT adapter into its model, and prove that the merged model computes what the two computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from embedkit.errors import EmbedderError

if TYPE_CHECKING:
    from torch import Tensor

    from embedkit.embedders.batching import Ids

MERGE_COSINE = 0.9999


def merge_adapter(wrapped: Any, rows: Sequence[Ids] | None = None) -> Any:
    """Merge a PeftModel's adapter into its float32 model, in eval mode, and return that model.

    `rows` are token ids (None: sixteen that every vocabulary has) whose states are compared before and after:
    each token's cosine must be at least 0.9999. The given model is used up. Raises EmbedderError otherwise.
    """
    import torch

    odd = {str(p.dtype) for p in wrapped.parameters() if p.dtype != torch.float32}
    if odd:
        raise EmbedderError(
            f"an adapter is merged in float32, the model holds {', '.join(sorted(odd))}: convert it first"
        )
    if rows is None:
        vocabulary = wrapped.get_input_embeddings().num_embeddings
        rows = [[i % vocabulary for i in range(1, 17)]]
    wrapped.eval()
    before = [_states(wrapped, row) for row in rows]
    merged = wrapped.merge_and_unload()
    after = [_states(merged, row) for row in rows]
    least = min(_least_cosine(old, new) for old, new in zip(before, after, strict=True))
    if not least >= MERGE_COSINE:
        raise EmbedderError(
            f"merging the adapter changes the model's states (cosine {least:.4f}, at least {MERGE_COSINE} "
            "expected): save the merged model with peft, and open that"
        )
    return merged


def _least_cosine(old: Tensor, new: Tensor) -> float:
    import torch

    cosines = torch.cosine_similarity(old, new, dim=-1)
    same = (old == new).all(-1)  # a padding token's state may be zero, which has no cosine
    return float(torch.where(same, 1.0, cosines).min())


def _states(model: Any, ids: Ids) -> Tensor:
    import torch

    device = model.get_input_embeddings().weight.device
    with torch.inference_mode():
        row = torch.tensor([list(ids)], device=device)
        states: Tensor = model(input_ids=row, return_dict=True).last_hidden_state[0].float()
    return states
