"""AdamW as the papers use it: which weights decay, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from embedkit.errors import InputError

if TYPE_CHECKING:
    import torch

    from embedkit_trainer.config.records import OptimizerConfig


def lr_factor(config: OptimizerConfig, step: int, steps: int) -> float:
    """Return the share of the peak rate at `step` (from 1) of `steps`: linear warm-up, then the schedule's decay.

    The decay reaches `lr_end` (0) one step after the last, so that no step is wasted.
    """
    warmup = warmup_steps(config, steps)
    if step <= warmup:
        return step / max(warmup, 1)
    if config.schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(steps + 1 - warmup, 1)
    left = 1 - progress if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr_end + (1 - config.lr_end) * left


def warmup_steps(config: OptimizerConfig, steps: int) -> int:
    """Return the number of warm-up steps, at most a tenth of a run that is too short for the number asked for."""
    if config.warmup_ratio is not None:
        return round(config.warmup_ratio * steps)
    return config.warmup_steps if config.warmup_steps < steps else steps // 10


def trainable_names(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Return those of the parameters' names that match one of `patterns`; all of them, where there are none.

    Raises InputError for a pattern that matches nothing.
    """
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            raise InputError(
                f"trainable {pattern!r} matches no parameter; they are named like {names[0]!r} and {names[-1]!r}"
            )
    return [n for n in names if not patterns or any(re.search(p, n) for p in patterns)]


def select_trainable(model: torch.nn.Module, names: Sequence[str]) -> None:
    """Let the named parameters train, and no others."""
    chosen = set(names)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad != (name in chosen):
            parameter.requires_grad_(name in chosen)


def build_optimizer(model: torch.nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Return AdamW over what trains; biases and norms (one-dimensional weights) do not decay.

    `embedding_lr` is the peak rate of the embedding tables (tokens, and positions where they are learnt), in groups of
    their own behind the others.
    """
    import torch

    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.dim() > 1
        own_rate = config.embedding_lr is not None and id(parameter) in embeddings
        group = groups.setdefault(
            (decays, own_rate),
            {
                "params": [],
                "weight_decay": config.weight_decay if decays else 0.0,
                "peak_lr": config.embedding_lr if own_rate else config.lr,
            },
        )
        group["params"].append(parameter)
    if not groups:
        raise InputError("nothing is trainable: every parameter is frozen")
    ordered = [groups[key] for key in sorted(groups, key=lambda key: key[1])]
    return torch.optim.AdamW(ordered, lr=config.lr, betas=config.betas, eps=config.eps)


def keep_tokens(backbone: Any, count: int) -> None:
    """Take the gradient of the first `count` token vectors away, so that a step leaves them as they are."""
    gradient = backbone.get_input_embeddings().weight.grad
    if gradient is not None:
        gradient[:count] = 0.0


def set_lr(optimizer: Any, factor: float) -> float:
    """Set every group's rate to `factor` of its peak; return the first group's, which is the stage's `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])
