"""accelerate's part: one process, DDP, FSDP2 or DeepSpeed ZeRO-3, and the weights brought together from them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit.errors import InputError, MissingExtraError
from embedkit_trainer.distributed import World

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from embedkit_trainer.config import RunConfig

DEEPSPEED_CONFIG = Path(__file__).parent / "recipes" / "deepspeed-zero3.json"


class Backend:
    """Hold the accelerator of a run; `world` is what the training step sees of it."""

    def __init__(self, config: RunConfig) -> None:
        try:
            from accelerate import Accelerator
        except ImportError as e:
            raise MissingExtraError("training", "train") from e
        kind = config.backend
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        if kind == "auto":
            kind = "ddp"
        if kind == "deepspeed" and len(config.stages) > 1:
            raise InputError("backend 'deepspeed' trains one stage a run: split the stages into two configs")
        options: dict[str, Any] = {"cpu": config.device == "cpu"}
        if several and kind == "fsdp2":
            options |= _fsdp2(config)
        elif several and kind == "deepspeed":
            options |= _deepspeed()
        if config.tracker != "none":
            options |= {"log_with": config.tracker, "project_dir": str(work_folder(config) / "logs")}
        self.kind = kind if several else "one"
        self.accelerator = Accelerator(**options)
        if config.tracker != "none":
            self.accelerator.init_trackers(config.name)
        self.tracked = config.tracker != "none"
        self.world = World(self.accelerator if several else None)
        self.device: torch.device = self.accelerator.device
        self._prepared = False

    def prepare(self, model: Any, optimizer: Any) -> tuple[Any, Any]:
        """Return the model and the optimiser as the backend runs them."""
        if self.kind == "one":
            return model, optimizer
        if self.kind == "ddp":
            # The optimiser needs no wrapping: DDP leaves the same gradient in every process.
            return self.accelerator.prepare_model(model), optimizer
        if self._prepared:
            return model, optimizer
        self._prepared = True
        prepared = self.accelerator.prepare(model, optimizer)
        return prepared[0], prepared[1]

    def clip(self, parameters: list[Tensor], limit: float) -> float:
        """Clip the gradient to the norm `limit`; return the norm it had."""
        import torch

        if self.kind in ("one", "ddp"):
            norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        else:
            norm = self.accelerator.clip_grad_norm_(parameters, limit)
        full = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        return float(full) if full is not None else 0.0

    def unwrapped(self, model: Any) -> Any:
        """Return the plain module."""
        return model if self.kind == "one" else self.accelerator.unwrap_model(model)

    def weights(self, model: Any, *, trained: bool = True) -> dict[str, Tensor]:
        """Return the weights (those that train, or all) on the CPU, whole; every process must call it."""
        plain = self.unwrapped(model)
        if self.kind in ("one", "ddp"):
            named: Mapping[str, Any] = dict(plain.named_parameters())
        else:
            named = self.accelerator.get_state_dict(model)
        wanted = {n for n, p in plain.named_parameters() if p.requires_grad or not trained}
        return {n: t.detach().cpu().clone() for n, t in named.items() if n in wanted}

    def optimizer_state(self, model: Any, optimizer: Any) -> dict[str, Any]:
        """Return the optimiser's state on the CPU, whole; every process must call it."""
        if self.kind in ("one", "ddp"):
            state: dict[str, Any] = optimizer.state_dict()
            return state
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return get_optimizer_state_dict(model, _plain_optimizer(optimizer), options=options)

    def load_optimizer_state(self, model: Any, optimizer: Any, state: dict[str, Any]) -> None:
        """Give the optimiser a state that `optimizer_state` returned."""
        if self.kind in ("one", "ddp"):
            optimizer.load_state_dict(state)
            return
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

        options = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(model, _plain_optimizer(optimizer), state, options=options)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Hand figures to the tracker, where there is one."""
        if self.tracked:
            self.accelerator.log(dict(values), step=step)

    def end(self) -> None:
        """Close the trackers."""
        if self.tracked:
            self.accelerator.end_training()


def load_weights(model: Any, weights: Mapping[str, Tensor]) -> None:
    """Copy checkpointed weights into a plain module. Raises InputError for one that does not fit."""
    import torch

    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in weights.items():
            if name not in named or named[name].shape != tensor.shape:
                raise InputError(f"the checkpoint's weight {name} does not fit the model")
            named[name].copy_(tensor)


def work_folder(config: RunConfig) -> Path:
    """Return the folder of checkpoints, caches and logs."""
    return Path(config.work) if config.work else Path(f"{config.output.rstrip('/')}.work")


def _plain_optimizer(optimizer: Any) -> Any:
    return getattr(optimizer, "optimizer", optimizer)


def _fsdp2(config: RunConfig) -> dict[str, Any]:
    from accelerate import FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=True,
        state_dict_type="FULL_STATE_DICT",
    )
    precision = "bf16" if config.precision == "bfloat16" else "no"
    return {"fsdp_plugin": plugin, "mixed_precision": precision}


def _deepspeed() -> dict[str, Any]:
    try:
        import deepspeed
    except ImportError as e:
        raise InputError("backend 'deepspeed' needs the package deepspeed: pip install deepspeed") from e
    from accelerate import DeepSpeedPlugin

    del deepspeed
    return {"deepspeed_plugin": DeepSpeedPlugin(hf_ds_config=str(DEEPSPEED_CONFIG))}
