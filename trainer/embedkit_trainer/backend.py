"""accelerate's part: one process, DDP, FSDP2 or DeepSpeed ZeRO-3, and the weights brought together from them."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit.errors import InputError, MissingExtraError
from embedkit_trainer.distributed import World

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from embedkit_trainer.config.records import RunConfig

DEEPSPEED_CONFIG = Path(__file__).parent / "recipes" / "deepspeed-zero3.json"
_PATIENCE = timedelta(hours=2)


class Backend:
    """Hold the accelerator of a run; `world` is what the training step sees of it."""

    def __init__(self, config: RunConfig) -> None:
        try:
            from accelerate import Accelerator
        except ImportError as e:
            raise MissingExtraError("training", "train") from e
        kind = "ddp" if config.backend == "auto" else config.backend
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        if several:
            _check_stages(config, kind)
        else:
            _choose_device(config.device)
        options: dict[str, Any] = {"cpu": config.device == "cpu"}
        if several:
            options |= _several(config, kind)
        if config.tracker != "none":
            options |= {"log_with": config.tracker, "project_dir": str(work_folder(config) / "logs")}
        self.kind = kind if several else "one"
        self.accelerator = Accelerator(**options)
        if self.kind == "fsdp2" and self.accelerator.device.type == "cpu":
            _shard_on_cpu(self.accelerator, options["fsdp_plugin"])
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
            self.accelerator.free_memory()  # forgets the wrapper of the stage before
            # The optimiser needs no wrapping: DDP leaves the same gradient in every process.
            return self.accelerator.prepare_model(model), optimizer
        if self._prepared:  # sharded in place, the optimiser was built over the shards
            return model, optimizer
        self._prepared = True
        if self.kind == "fsdp2":
            self.accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = _layers(model)
        prepared, wrapped = self.accelerator.prepare(model, optimizer)
        return prepared, wrapped.optimizer if self.kind == "fsdp2" else wrapped

    def step(self, optimizer: Any) -> None:
        """Take the optimiser's step and clear the gradients."""
        if self.kind == "deepspeed":
            self.accelerator.deepspeed_engine_wrapped.engine.step()
        else:
            optimizer.step()
            self.clear(optimizer)

    def clear(self, optimizer: Any) -> None:
        """Forget the gradients."""
        if self.kind == "deepspeed":
            optimizer = self.accelerator.deepspeed_engine_wrapped.engine.optimizer
        optimizer.zero_grad(set_to_none=True)

    def clip(self, parameters: list[Tensor], limit: float) -> float:
        """Clip the gradient to the norm `limit`; return the norm it had."""
        import torch

        if self.kind in ("one", "ddp"):
            norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        else:
            norm = self.accelerator.clip_grad_norm_(parameters, limit)
        full = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        return float(full) if full is not None else 0.0

    @property
    def sharded(self) -> bool:
        """Whether each process holds its share of the weights alone."""
        return self.kind in ("fsdp2", "deepspeed")

    def unwrapped(self, model: Any) -> Any:
        """Return the plain module."""
        return model if self.kind == "one" else self.accelerator.unwrap_model(model)

    def reshard(self, model: Any) -> None:
        """Let every process hold its share of the weights alone, after an evaluation.

        FSDP2's root keeps the whole ones after a forward pass, for a backward pass that an evaluation never runs.
        """
        if self.kind != "fsdp2":
            return
        from torch.distributed.fsdp import FSDPModule

        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def weights(self, model: Any, names: Collection[str]) -> dict[str, Tensor]:
        """Return the named weights on the CPU, whole; every process must call it, the main one gets them."""
        self.reshard(model)
        found = {}
        for name, parameter in self.unwrapped(model).named_parameters():
            if name in names:
                whole = self._whole(parameter)
                if self.world.main:
                    found[name] = whole.detach().cpu().clone()
        return found

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Return the optimiser's state, whole: as one process would have it; every process must call it."""
        if self.kind == "deepspeed":
            return {}  # its shards have a layout of their own
        state: dict[str, Any] = optimizer.state_dict()
        if self.kind != "fsdp2":
            return state
        moments: dict[int, dict[str, Any]] = {}
        for number, entry in state["state"].items():
            whole = {k: self._whole(v) for k, v in entry.items()}
            if self.world.main:
                moments[number] = {k: v.cpu() for k, v in whole.items()}
        return {**state, "state": moments}

    def load_optimizer_state(self, optimizer: Any, state: dict[str, Any]) -> None:
        """Give the optimiser a state that `optimizer_state` returned, in a run of any number of processes.

        Raises InputError where DeepSpeed wrote it or should read it.
        """
        if self.kind == "deepspeed" or not state:
            raise InputError(
                "a run of backend 'deepspeed' cannot be gone on with, its checkpoints hold no optimiser: begin anew "
                "(--fresh), with backend 'fsdp2' if it may be stopped"
            )
        if self.kind == "fsdp2":
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            moments = {
                number: {k: _shard(v, parameters[number]) for k, v in entry.items()}
                for number, entry in state["state"].items()
            }
            state = {**state, "state": moments}
        optimizer.load_state_dict(state)

    def _whole(self, tensor: Any) -> Tensor:
        """Return a tensor of which processes may hold shards."""
        if self.kind == "deepspeed":
            from deepspeed.utils import safe_get_full_fp32_param

            full: Tensor = safe_get_full_fp32_param(tensor)
            return full
        return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[no-any-return]

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


def _shard(moment: Tensor, parameter: Any) -> Tensor:
    """Return this process's share of an optimiser's `moment` of a sharded parameter; a step count as it is."""
    from torch.distributed.tensor import distribute_tensor

    if moment.shape != parameter.shape or not hasattr(parameter, "device_mesh"):
        return moment
    return distribute_tensor(moment.to(parameter.device), parameter.device_mesh, parameter.placements)


def _layers(model: Any) -> list[str]:
    """Return the names of the classes that FSDP gathers one at a time: the backbone's layers."""
    wanted = set(getattr(model.backbone, "_no_split_modules", None) or ())
    return sorted({type(m).__name__ for m in model.modules()} & wanted)


def _choose_device(name: str) -> None:
    """Let accelerate find the device that the config names: it asks torch alone. InputError where it is not there."""
    import torch

    kind, _, number = name.partition(":")
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(kind, True):
        raise InputError(
            f'device = {name!r}, and torch sees none: write "auto", or install a torch that knows it'
        )
    if number:
        count = torch.cuda.device_count()
        if int(number) >= count:
            raise InputError(
                f"device = {name!r}, and torch sees {count} of them, counted from 0: choose another"
            )
        torch.cuda.set_device(int(number))


def _check_stages(config: RunConfig, kind: str) -> None:
    if kind == "deepspeed" and len(config.stages) > 1:
        raise InputError("backend 'deepspeed' trains one stage a run: split the stages into two configs")
    if kind == "fsdp2" and len({stage.trainable for stage in config.stages}) > 1:
        raise InputError(
            "backend 'fsdp2' shards what trains once, and the stages differ in `trainable`: give all the same, "
            "or take backend 'ddp'"
        )


def _several(config: RunConfig, kind: str) -> dict[str, Any]:
    """Return the accelerator's options for several processes."""
    import torch
    from accelerate import DistributedDataParallelKwargs, InitProcessGroupKwargs

    options: dict[str, Any] = {
        "cpu": config.device == "cpu" or not torch.cuda.is_available(),
        # The others wait while one process tokenises or saves.
        "kwargs_handlers": [InitProcessGroupKwargs(timeout=_PATIENCE)],
    }
    if kind == "fsdp2":
        return options | _fsdp2(config)
    if kind == "deepspeed":
        return options | _deepspeed(config)
    # Buffers are tables here, the same everywhere.
    options["kwargs_handlers"].append(DistributedDataParallelKwargs(broadcast_buffers=False))
    return options | {"mixed_precision": "no"}


def _fsdp2(config: RunConfig) -> dict[str, Any]:
    from accelerate import FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=True,
        state_dict_type="FULL_STATE_DICT",
        cpu_ram_efficient_loading=False,
    )
    precision = "bf16" if config.precision == "bfloat16" else "no"
    return {"fsdp_plugin": plugin, "mixed_precision": precision}


def _shard_on_cpu(accelerator: Any, plugin: Any) -> None:
    """Tell accelerate to shard on CPUs too, which torch can: it would fall back to DDP."""
    from accelerate import DistributedType, PartialState

    PartialState().distributed_type = DistributedType.FSDP
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin


def _deepspeed(config: RunConfig) -> dict[str, Any]:
    try:
        import deepspeed
    except ImportError as e:
        raise InputError("backend 'deepspeed' needs the package deepspeed: pip install deepspeed") from e
    from accelerate import DeepSpeedPlugin

    del deepspeed
    settings = json.loads(DEEPSPEED_CONFIG.read_text(encoding="utf-8"))
    settings["bf16"] = {"enabled": config.precision == "bfloat16"}
    settings["gradient_clipping"] = config.stages[0].optimizer.max_grad_norm
    return {"deepspeed_plugin": DeepSpeedPlugin(hf_ds_config=settings)}
