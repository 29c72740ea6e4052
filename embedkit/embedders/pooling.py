"""From token states to one vector a text: mean, CLS or last token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedkit.contract import Pooling

if TYPE_CHECKING:
    from torch import Tensor


def pool(states: Tensor, lengths: Tensor, pooling: Pooling) -> Tensor:
    """Return float32 `[n, dim]` from right-padded `states` `[n, length, dim]`.

    `lengths` `[n]` counts the real tokens of each row, special ones included; sums run in float32.
    """
    import torch

    if pooling == "cls":
        return states[:, 0].float()
    if pooling == "last":
        rows = torch.arange(states.shape[0], device=states.device)
        return states[rows, lengths - 1].float()
    positions = torch.arange(states.shape[1], device=states.device)
    real = (positions < lengths[:, None]).float()
    return (states.float() * real[..., None]).sum(1) / lengths[:, None]
