"""What several processes share: which rows are whose, the vectors of all, and one wrapped model.

Every process knows the whole global batch (it is a pure function of the step, read from a memory map), embeds its
own contiguous slice of rows, and sees everybody's vectors: so losses and masks are those of one process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from embedkit_trainer.data.batches import Batch


@dataclass(frozen=True, slots=True)
class Slice:
    """Say which queries and documents of the global batch a process embeds: half-open ranges."""

    queries: tuple[int, int]
    documents: tuple[int, int]


class World:
    """Stand for the processes of a run; without an accelerator, this one alone."""

    def __init__(self, accelerator: Any = None) -> None:
        self.accelerator = accelerator
        self.rank = int(accelerator.process_index) if accelerator is not None else 0
        self.size = int(accelerator.num_processes) if accelerator is not None else 1

    @property
    def one_graph(self) -> bool:
        """Whether every forward pass must be sent back before the next: DeepSpeed counts its micro-steps by them."""
        return getattr(self.accelerator, "deepspeed_engine_wrapped", None) is not None

    @property
    def main(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def slices(self, batch: Batch) -> list[Slice]:
        """Return every process's share: rows as even as can be, in order."""
        bounds = np.linspace(0, len(batch.queries), self.size + 1).round().astype(int)
        starts = np.asarray(batch.offsets)[bounds]
        return [
            Slice((int(bounds[r]), int(bounds[r + 1])), (int(starts[r]), int(starts[r + 1])))
            for r in range(self.size)
        ]

    def gather(self, local: Tensor, counts: Sequence[int]) -> Tensor:
        """Return the rows of all processes in order, without a graph; `counts[r]` rows come from process r."""
        if self.size == 1:
            return local
        # all_gather wants equal shapes: pad to the longest share.
        most = max(counts)
        padded = local.new_zeros((most, local.shape[1]))
        padded[: local.shape[0]] = local
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        torch.distributed.all_gather(parts, padded.contiguous())
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @contextmanager
    def synchronised(self, model: Any, wanted: bool) -> Iterator[None]:
        """Sum gradients over processes in this forward and backward pass, or hold them back."""
        if self.size == 1 or wanted:
            yield
        else:
            with self.accelerator.no_sync(model):
                yield

    def backward(self, loss: Tensor, last: bool = True) -> None:
        """Run one backward pass of a step; `last` says whether the step's gradient is whole with it."""
        engine = getattr(self.accelerator, "deepspeed_engine_wrapped", None)
        if engine is None:
            torch.autograd.backward(loss)
            return
        # accelerate's own backward would take an optimiser step with every chunk.
        engine.engine.set_gradient_accumulation_boundary(is_boundary=last)
        engine.engine.backward(loss)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is up in any process."""
        if self.size == 1:
            return flag
        device = self.accelerator.device
        total = torch.tensor([int(flag)], device=device)
        torch.distributed.all_reduce(total)
        return bool(total.item())

    def wait(self) -> None:
        """Wait for the other processes."""
        if self.size > 1:
            self.accelerator.wait_for_everyone()
