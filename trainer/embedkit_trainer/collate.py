"""From token id rows to the tensors of one forward pass: right-padded, or packed end to end without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ids: TypeAlias = Sequence[int] | NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Inputs:
    """Hold the tensors of one forward pass.

    `ids` is `[n, longest]` where padded (with token 0, on the right) and `[1, tokens]` where packed; `lengths`
    `[n]` counts each row's tokens; `offsets` int32 `[n + 1]` is None where padded and says where each packed row
    begins.
    """

    ids: Tensor
    lengths: Tensor
    longest: int
    offsets: Tensor | None = None

    @property
    def full(self) -> bool:
        """Whether no row is padded."""
        return self.offsets is not None or self.ids.numel() == int(self.lengths.sum())

    def mask(self) -> Tensor:
        """Return the attention mask of padded rows, int64 `[n, longest]`: 1 where there is a token."""
        return (torch.arange(self.longest, device=self.ids.device) < self.lengths[:, None]).long()

    def positions(self) -> Tensor:
        """Return the position of every token in its own row, int64 of the shape of `ids`."""
        device = self.ids.device
        if self.offsets is None:
            return torch.arange(self.longest, device=device).expand_as(self.ids)
        starts = torch.repeat_interleave(self.offsets[:-1].long(), self.lengths)
        return (torch.arange(self.ids.shape[1], device=device) - starts)[None]


def pad(rows: Sequence[Ids], device: torch.device | str = "cpu", *, width: int = 0) -> Inputs:
    """Put rows of any lengths into one right-padded tensor, `width` tokens wide at least."""
    lengths = np.fromiter((len(r) for r in rows), np.int64, len(rows))
    longest = max(int(lengths.max()), width)
    ids = np.zeros((len(rows), longest), dtype=np.int64)
    ids[np.arange(longest) < lengths[:, None]] = _joined(rows)
    return Inputs(torch.from_numpy(ids).to(device), torch.from_numpy(lengths).to(device), longest)


def pack(rows: Sequence[Ids], device: torch.device | str = "cpu") -> Inputs:
    """Put rows end to end into one sequence, with the offsets that keep them apart."""
    lengths = np.fromiter((len(r) for r in rows), np.int64, len(rows))
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    ids = torch.from_numpy(_joined(rows))[None]
    return Inputs(
        ids.to(device),
        torch.from_numpy(lengths).to(device),
        int(lengths.max()),
        torch.from_numpy(offsets).to(device),
    )


def rounded(lengths: NDArray[np.int64], step: int = 16) -> NDArray[np.int64]:
    """Round lengths up to multiples of `step`, the longest apart: no row may come to exceed the model's positions.

    On a CPU in bfloat16, oneDNN compiles kernels for every shape and keeps them: with lengths as they come, a run's
    memory grows by a third in its first steps, and each new shape costs time.
    """
    up: NDArray[np.int64] = np.minimum(-(-lengths // step) * step, lengths.max())
    return up


def plan_chunks(
    lengths: NDArray[np.int64], budget: int | None, *, packed: bool = False
) -> list[NDArray[np.int64]]:
    """Split rows into chunks of one forward pass each, the longest rows first.

    A chunk costs rows x its longest row where padded, the sum of its rows where packed, and stays within `budget`
    tokens (a single longer row is a chunk of its own); None: one chunk. Sorting by length is what keeps padding
    small; the longest first is what makes memory fail on the first chunk, if it fails.
    """
    order = np.argsort(-lengths, kind="stable")
    if budget is None:
        return [order]
    chunks = []
    start = 0
    while start < len(order):
        if packed:
            ends = np.cumsum(lengths[order[start:]])
            count = max(int(np.searchsorted(ends, budget, side="right")), 1)
        else:
            count = max(budget // int(lengths[order[start]]), 1)
        chunks.append(order[start : start + count])
        start += count
    return chunks


def _joined(rows: Sequence[Ids]) -> NDArray[np.int64]:
    return np.concatenate([np.asarray(r, dtype=np.int64) for r in rows])
