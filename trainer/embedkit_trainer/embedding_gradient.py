"""The gradient of an embedding table, added to the rows that were looked up instead of to the whole table.

torch's backward pass of a lookup makes a gradient as large as the table, zeros it, and adds all of it to `.grad`: with
250,000 tokens of 384 numbers 240 ms on one core, for every chunk of a step, against 0.4 ms for the 1,400 rows that a
chunk looks up (docs/experiments.md). On a GPU that is little, and the whole-table way sums in a fixed order there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor


@contextmanager
def in_place_embeddings(model: torch.nn.Module) -> Iterator[None]:
    """Let the trained embedding tables of a model on a CPU receive their gradient row by row meanwhile.

    For one process alone: DDP and FSDP wait for whole gradients.
    """
    switched = [m for m in model.modules() if isinstance(m, torch.nn.Embedding) and _fits(m)]
    for module in switched:
        module.forward = partial(_look_up, module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in switched:
            del module.forward


def _fits(module: torch.nn.Embedding) -> bool:
    # Subclasses (Gemma's scaled embedding) look up in their own way; a forward of its own is somebody's wrapper.
    return (
        type(module) is torch.nn.Embedding
        and "forward" not in module.__dict__
        and module.weight.requires_grad
        and module.weight.device.type == "cpu"
        and type(module.weight.detach()) is torch.Tensor  # no shard of one
        and module.max_norm is None
        and not module.scale_grad_by_freq
        and not module.sparse
    )


def _look_up(module: torch.nn.Embedding, ids: Tensor) -> Tensor:
    rows: Tensor = _Rows.apply(ids, module.weight, module.padding_idx)  # type: ignore[no-untyped-call]
    return rows


class _Rows(torch.autograd.Function):
    """Look rows up; add what comes back to the same rows of `weight.grad`."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.weight, ctx.padding = weight, padding
        return torch.nn.functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        (ids,) = ctx.saved_tensors
        weight = ctx.weight
        if ctx.padding is not None:
            gradient = gradient.masked_fill((ids == ctx.padding)[..., None], 0.0)
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        weight.grad.index_add_(0, ids.reshape(-1), gradient.reshape(-1, weight.shape[1]).to(weight.dtype))
        return None, None, None
