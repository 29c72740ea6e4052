"""From token states to one vector a text: mean, position-weighted mean, CLS or last token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedkit.contract import Pooling

if TYPE_CHECKING:
    from torch import Tensor


def pool(states: Tensor, lengths: Tensor, pooling: Pooling) -> Tensor:
    """Return float32 `[n, dim]` from right-padded `states` `[n, length, dim]`.

    `lengths` `[n]` counts the real tokens of each row, special ones included; sums run in float32. "weightedmean"
    weighs the token at position i (from 1) by i, for decoders, whose later states have seen more (SGPT,
    arXiv 2202.08904, section 3.1; sentence-transformers' mode of that name).
    """
    import torch

    if pooling == "cls":
        return states[:, 0].float()
    if pooling == "last":
        rows = torch.arange(states.shape[0], device=states.device)
        return states[rows, lengths - 1].float()
    positions = torch.arange(states.shape[1], device=states.device)
    weights = (positions < lengths[:, None]).float()
    if pooling == "weightedmean":
        weights = weights * (positions + 1)
    return (states.float() * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)
