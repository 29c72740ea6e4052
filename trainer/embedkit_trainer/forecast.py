"""Memory and time, told before the first step: the worst batch is run once, and nothing of it is kept."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedkit.errors import EmbedkitError, TrainingError

if TYPE_CHECKING:
    import torch

    from embedkit_trainer.config.records import StageConfig
    from embedkit_trainer.data.batches import Batch
    from embedkit_trainer.gradcache import StepPlan
    from embedkit_trainer.stage import Stage

_GIB = 1 << 30


@dataclass
class Memory:
    """Peak memory in bytes: of the GPU's tensors, or of the process on a CPU; `total` is what there is (0: unknown)."""

    peak: int = 0
    total: int = 0


@contextmanager
def measured_memory(device: torch.device) -> Iterator[Memory]:
    """Measure the peak of what runs inside."""
    import torch

    memory = Memory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield memory
        memory.peak = torch.cuda.max_memory_allocated(device)
        memory.total = torch.cuda.mem_get_info(device)[1]
    else:
        yield memory
        if sys.platform != "win32":
            import resource

            # Linux counts kilobytes, macOS bytes.
            unit = 1 if sys.platform == "darwin" else 1024
            memory.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def describe_worst(stage: Stage, batch: Batch, memory: Memory, seconds: float, model: Any) -> str:
    """Say what the worst batch took, and what that means for the run."""
    tokens = sum(len(t) for t in (*batch.queries, *batch.documents))
    states = optimizer_bytes(model)
    text = (
        f"stage {stage.config.name!r}: the most expensive batch ({len(batch.queries):,} queries, "
        f"{len(batch.documents):,} documents, {tokens:,} tokens) took {seconds:.1f} s and "
        f"{(memory.peak + states) / _GIB:.2f} GiB, the optimiser's states ({states / _GIB:.2f}) counted in; "
        f"{stage.steps:,} steps take {_duration(stage.steps * seconds * stage.config.accumulation)} at most"
    )
    if memory.total and memory.peak + states > 0.95 * memory.total:
        text += f"; only {memory.total / _GIB:.1f} GiB are there: lower chunk_tokens before you wait for the failure"
    return text


def optimizer_bytes(model: Any) -> int:
    """Return the bytes that AdamW's two moments will take, in the dtype of what trains."""
    return sum(2 * p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


def out_of_memory(batch: Batch, config: StageConfig, plan: StepPlan) -> str:
    """Say what to change when the worst batch does not fit."""
    longest = max(len(t) for t in (*batch.queries, *batch.documents))
    advice = [f"lower chunk_tokens (now {plan.chunk_tokens:,}) towards {longest:,}, the longest text"]
    if config.graph_tokens:
        advice.append(f"lower graph_tokens (now {config.graph_tokens:,})")
    if not config.gradient_checkpointing:
        advice.append("set gradient_checkpointing = true")
    return (
        f"stage {config.name!r}: memory does not suffice for the most expensive batch, which was tried first: "
        f"{', or '.join(advice)}; batch_size and the negatives can stay"
    )


@contextmanager
def enough_memory() -> Iterator[None]:
    """Turn memory that fails outside the worst batch (loading, the optimiser's states, merging) into a TrainingError."""
    import torch

    try:
        yield
    except EmbedkitError:
        raise
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as e:
        if not isinstance(e, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in str(e):
            raise
        raise TrainingError(
            "memory does not suffice for the weights with their gradients and the optimiser's states: set "
            'model.tuning = "lora" (or a smaller r), take a smaller model, or more GPUs with backend = "fsdp2"; '
            "what was saved stays"
        ) from e


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
