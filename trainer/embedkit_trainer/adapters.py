"""LoRA and QLoRA: put an adapter on a backbone, prove that training moves it, merge it at the end."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit.embedders.merging import merge_adapter
from embedkit.errors import EmbedderError, MissingExtraError, TrainingError
from embedkit_trainer.config.records import LoraConfig

if TYPE_CHECKING:
    import torch

    from embedkit.embedders.batching import Ids

_SAMPLED = 512  # values of each weight that are compared: all of them would be a second copy of the model


def add_lora(model: Any, config: LoraConfig) -> Any:
    """Return a PeftModel around a bare backbone: W + (lora_alpha / r) B A on every target, B zero at first.

    `target_modules` "all-linear" is every linear layer but a pooler, whose output no pooling reads: q, k, v, o,
    gate, up and down in Mistral-7B, 41,943,040 parameters with r = 16 (arXiv 2401.00368, appendix C). Raises
    MissingExtraError without peft, TrainingError for targets that the model does not have.
    """
    try:
        import peft
    except ImportError as e:
        raise MissingExtraError("LoRA", "torch") from e
    targets = config.target_modules
    pooled = any(name.split(".")[-1] == "pooler" for name, _ in model.named_modules())
    options = peft.LoraConfig(
        task_type="FEATURE_EXTRACTION",
        r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        exclude_modules=r"(.*\.)?pooler\..*" if pooled else None,
    )
    try:
        return peft.get_peft_model(model, options)
    except ValueError as e:
        names = sorted({n.split(".")[-1] for n, m in model.named_modules() if hasattr(m, "in_features")})
        raise TrainingError(
            f"LoRA finds no layer for target_modules {targets!r} in {type(model).__name__}, whose linear layers are "
            f"{', '.join(names)}: name some of them, or write all-linear"
        ) from e


def keep_input_dtype(model: Any) -> None:
    """Let an adapter take bfloat16 as it comes, where autocast rounds its products' inputs anyway.

    PEFT widens every input to the adapter's float32 first, and dropout then runs on that copy: at Mistral-7B's sizes
    some 26 MB of memory traffic a token, where 6 do.
    """
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False


def load_quantized(folder: Path, *, attention: str | None = None, trust_remote_code: bool = False) -> Any:
    """Load a backbone in bitsandbytes' nf4 with bfloat16 arithmetic, frozen and ready for `add_lora` (QLoRA).

    The scales are quantised once more (arXiv 2305.14314, section 3). Raises MissingExtraError without
    bitsandbytes, TrainingError without a CUDA device or where the weights cannot be loaded.
    """
    import torch

    if importlib.util.find_spec("bitsandbytes") is None or importlib.util.find_spec("peft") is None:
        raise MissingExtraError("tuning = qlora", "qlora")
    if not torch.cuda.is_available():
        raise TrainingError("tuning = qlora needs a CUDA GPU, and torch sees none: use tuning = lora")
    return _load_nf4(folder, {"": torch.cuda.current_device()}, attention, trust_remote_code)


def _load_nf4(folder: Path, device_map: Any, attention: str | None, trust_remote_code: bool) -> Any:
    import peft
    import torch
    import transformers

    nf4: Any = transformers.BitsAndBytesConfig
    prepare: Any = peft.prepare_model_for_kbit_training
    options: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    try:
        model = transformers.AutoModel.from_pretrained(
            str(folder),
            dtype=torch.bfloat16,
            device_map=device_map,
            quantization_config=nf4(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=torch.bfloat16,
                bnb_4bit_use_double_quant=True,
            ),
            trust_remote_code=trust_remote_code,
            **options,
        )
    except (OSError, ValueError, RuntimeError) as e:
        raise TrainingError(f"the model in {folder} cannot be loaded in nf4: {e}") from e
    return prepare(model, use_gradient_checkpointing=False)


def is_quantized(model: Any) -> bool:
    """Tell whether a backbone holds nf4 weights, which an adapter is not merged into."""
    return any(type(p).__name__ == "Params4bit" for p in model.parameters())


@dataclass(frozen=True, slots=True)
class Start:
    """Hold a sample of every trained weight, as it was before the first step; by name, on the CPU."""

    samples: Mapping[str, torch.Tensor]


def remember(model: torch.nn.Module) -> Start:
    """Return a sample of the trained weights for `require_moved`. Raises TrainingError where none is trained."""
    samples = {n: _sample(p).clone() for n, p in model.named_parameters() if p.requires_grad}
    if not samples:
        raise TrainingError("no weight of the model is trained: every requires_grad is false; check tuning")
    return Start(samples)


def require_moved(model: torch.nn.Module, start: Start, *, step: int = 1) -> float:
    """Return the share of trained weights (tensors) that moved since `start`; 0 is an error.

    Call it after the first optimiser step whose learning rate is above zero. A LoRA run whose every lora_B is
    still zero computes what the base computes, whatever its loss says. Raises TrainingError.
    """
    import torch

    now = {n: p for n, p in model.named_parameters() if p.requires_grad}
    lora_b = [p for n, p in now.items() if "lora_B" in n]
    if lora_b and not any(bool(_local(p).any()) for p in lora_b):
        raise TrainingError(
            f"after step {step} every lora_B is zero ({len(lora_b)} of them): the adapter gets no gradient and the model "
            "stays the base model; check that the loss reaches the backbone and the learning rate is above 0"
        )
    moved = sum(not torch.equal(_sample(p), start.samples[n]) for n, p in now.items() if n in start.samples)
    if not moved:
        raise TrainingError(
            f"after step {step} none of {len(start.samples)} trained weights has moved: check that the loss reaches the "
            "backbone, that the learning rate is above 0, and that bfloat16 weights are not rounded back"
        )
    return moved / len(start.samples)


def _local(parameter: torch.Tensor) -> torch.Tensor:
    shard = getattr(parameter, "to_local", None)  # FSDP2 keeps a share of each weight on each process
    local: torch.Tensor = parameter.detach() if shard is None else shard().detach()
    return local


def _sample(parameter: torch.Tensor) -> torch.Tensor:
    flat = _local(parameter).reshape(-1)
    return flat[:: max(1, flat.numel() // _SAMPLED)].cpu()


def merge(
    model: Any, rows: Sequence[Ids] | None = None, *, weights: Mapping[str, torch.Tensor] | None = None
) -> Any:
    """Return a float32 model with the adapter merged in; the given PeftModel stays as it is.

    The states of `rows` (token ids) must keep a cosine of 0.9999 through the merge. An nf4 backbone is taken out
    of nf4 first: what the adapter was trained around are those weights, not the base's own. `weights` are the
    gathered ones where the model holds shards (FSDP). Holds a second copy of the model, in float32. Raises
    TrainingError where the merged model computes something else.
    """
    try:
        if is_quantized(model):
            whole = _unquantized(model)
        elif weights is not None:
            whole = _gathered(model, weights)
        else:
            whole = copy.deepcopy(model).float()
        return merge_adapter(whole, rows)
    except EmbedderError as e:
        raise TrainingError(f"{e}; or keep the adapter beside its base (merge = false)") from e


def _gathered(model: Any, weights: Mapping[str, torch.Tensor]) -> Any:
    """Return a float32 copy, on the CPU, of a PeftModel whose weights lie in shards."""
    import peft

    base = model.get_base_model()
    wrapped: Any = peft.get_peft_model(type(base)(copy.deepcopy(base.config)), model.peft_config["default"])
    missing, unknown = wrapped.float().load_state_dict(dict(weights), strict=False)
    if missing or unknown:
        raise TrainingError(
            f"the gathered weights do not fit the model ({len(missing)} missing, {len(unknown)} unknown, such as "
            f"{(missing + unknown)[0]!r}): keep the adapter beside its base (merge = false)"
        )
    return wrapped


def _unquantized(model: Any) -> Any:
    """Return a float32 copy, on the CPU, of a PeftModel over nf4 weights."""
    import peft

    base = model.get_base_model()
    config = copy.deepcopy(base.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = type(base)(config).float()
    with tempfile.TemporaryDirectory() as folder:
        # Before the weights are read: it takes them out of the order that bitsandbytes gives them on CPUs.
        model.save_pretrained(folder, save_embedding_layers=False)
        weights = {
            name.replace(".base_layer.", "."): _in_full(parameter)
            for name, parameter in base.named_parameters()
            if "lora_" not in name
        }
        missing = {n for n, _ in plain.named_parameters()} - set(weights)
        if missing:
            raise TrainingError(
                f"the nf4 model lacks {min(missing)!r}: keep the adapter beside its base (merge = false)"
            )
        plain.load_state_dict(weights, strict=False)
        return peft.PeftModel.from_pretrained(plain, folder)


def _in_full(parameter: Any) -> torch.Tensor:
    if type(parameter).__name__ == "Params4bit":
        functional = importlib.import_module("bitsandbytes.functional")
        parameter = functional.dequantize_4bit(parameter.data, parameter.quant_state)
    full: torch.Tensor = parameter.detach().float().cpu()
    return full
