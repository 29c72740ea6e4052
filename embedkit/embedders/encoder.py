"""Token ids to vectors on one device: load the model once, run batches under a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedkit.contract import Pooling
from embedkit.embedders.batching import BudgetedForward, Ids, plan_batches
from embedkit.embedders.folder import DenseLayer
from embedkit.embedders.loading import broken_files, load_weights
from embedkit.embedders.packing import LENGTH_STEP, PackedBert
from embedkit.embedders.pooling import pool
from embedkit.embedders.positions import needs_no_mask, override_positions
from embedkit.errors import EmbedderError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

_MERGE_LIMIT = 2_000_000_000  # parameters; above it an adapter stays beside the weights (memory)


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """Say all that a process needs to build an encoder; picklable.

    `rope_theta` and `sliding_window` override the model's own (`positions.py`).
    """

    model: str
    adapter: str | None
    dtype: str
    pooling: Pooling
    dense: tuple[DenseLayer, ...]
    token_budget: int | None
    eos: int | None
    trust_remote_code: bool
    rope_theta: float | None = None
    sliding_window: int | None = None


class Encoder:
    """Run one model on one device; `model` stands in for loading `spec.model` (benchmarks, random weights)."""

    def __init__(self, spec: EncoderSpec, device: str, model: Any = None) -> None:
        import torch

        self._spec = spec
        self.device = torch.device(device)
        self._dtype = resolve_dtype(spec.dtype, self.device)
        model = _load(spec, self._dtype) if model is None else model
        self.hidden = int(getattr(model.config, "hidden_size", 0) or model.config.d_model)
        self._dense = [_load_dense(layer, self.device) for layer in spec.dense]
        self._packed: PackedBert | None = None
        self._model: Any = None
        cpu = self.device.type == "cpu"
        if cpu and PackedBert.fits(model):
            self._packed = PackedBert(model)
        else:
            self._model = model.to(self.device)
        self._causal = needs_no_mask(model.config)
        self._threads = torch.get_num_threads() if self._packed is not None else 1
        default = (1024 if self._packed is not None else 2048) if cpu else 16384
        self.run_batch = BudgetedForward(
            self.forward,
            spec.token_budget or default,
            lambda e: isinstance(e, torch.cuda.OutOfMemoryError),
            torch.cuda.empty_cache if self.device.type == "cuda" else lambda: None,
        )

    @property
    def dim(self) -> int:
        """The width of the vectors, after the Dense layers."""
        return self._spec.dense[-1].out_features if self._spec.dense else self.hidden

    def encode(self, rows: Sequence[Ids]) -> NDArray[np.float32]:
        """Return float32 `[n, dim]` for token ids of any lengths, not normalised."""
        import numpy as np

        out = np.empty((len(rows), self.dim), dtype=np.float32)
        step = LENGTH_STEP if self._packed is not None else 1
        batches = plan_batches([len(r) for r in rows], self.run_batch.budget, step)
        taken = [[rows[i] for i in batch] for batch in batches]
        if self._threads > 1 and len(batches) > 1:
            vectors = self._in_threads(taken)
        else:
            vectors = [self.run_batch(batch) for batch in taken]
        for batch, part in zip(batches, vectors, strict=True):
            out[batch] = part
        return out

    def forward(self, batch: Sequence[Ids]) -> NDArray[np.float32]:
        """Return float32 `[n, dim]` for one batch."""
        import torch

        if self._spec.pooling == "last" and self._spec.eos is not None:
            wrong = next((ids for ids in batch if ids[-1] != self._spec.eos), None)
            if wrong is not None:
                raise EmbedderError(
                    f"last-token pooling would read token {wrong[-1]}, not EOS ({self._spec.eos}): "
                    "the token ids were built wrongly"
                )
        with torch.inference_mode():
            lengths = torch.tensor([len(ids) for ids in batch], device=self.device)
            states = self._packed(batch) if self._packed is not None else self._states(batch, lengths)
            vectors = pool(states, lengths, self._spec.pooling)
            for layer in self._dense:
                vectors = layer(vectors)
            result: NDArray[np.float32] = vectors.cpu().numpy()
        return result

    def _states(self, batch: Sequence[Ids], lengths: Tensor) -> Tensor:
        import torch

        width = max(len(ids) for ids in batch)
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in batch], device=self.device)
        inputs: dict[str, Any] = {"input_ids": ids}
        if not self._causal:
            inputs["attention_mask"] = (torch.arange(width, device=self.device) < lengths[:, None]).long()
        states: Tensor = self._model(**inputs, return_dict=True).last_hidden_state
        return states

    def _in_threads(self, batches: list[list[Ids]]) -> list[NDArray[np.float32]]:
        """Run the batches on several threads of one core each: no product waits for another core."""
        from concurrent.futures import ThreadPoolExecutor

        import torch

        before = torch.get_num_threads()
        try:
            with ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(1,)) as pool_:
                return list(pool_.map(self.run_batch, batches))
        finally:
            torch.set_num_threads(before)  # MKL's count is the process's, not the thread's


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype to compute in: "auto" is bfloat16 where the device multiplies it fast, else float32."""
    import torch

    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    fast = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return torch.bfloat16 if fast else torch.float32


def _load(spec: EncoderSpec, dtype: torch.dtype) -> Any:
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding

    options: dict[str, Any] = {"trust_remote_code": spec.trust_remote_code}
    with broken_files(f"the model in {spec.model} cannot be loaded"):
        config = AutoConfig.from_pretrained(spec.model, **options)
    override_positions(config, spec.rope_theta, spec.sliding_window)
    kind = AutoModelForTextEncoding if getattr(config, "is_encoder_decoder", False) else AutoModel
    model = load_weights(kind, spec.model, config=config, dtype=dtype, **options)
    if spec.adapter is not None:
        model = _adapted(model, spec.adapter, dtype)
    return model.eval()


def _adapted(model: Any, adapter: str, dtype: torch.dtype) -> Any:
    """Put a PEFT adapter on the model; merge it, in float32, where the model is small."""
    import torch

    from embedkit.errors import MissingExtraError

    try:
        from peft import PeftModel
    except ImportError as e:
        raise MissingExtraError("a PEFT adapter", "torch") from e
    small = sum(p.numel() for p in model.parameters()) < _MERGE_LIMIT
    if small:
        model = model.to(torch.float32)
    with broken_files(f"the adapter in {adapter} does not fit the model"):
        wrapped = PeftModel.from_pretrained(model, adapter)
    lora_b = [p for name, p in wrapped.named_parameters() if "lora_B" in name]
    if lora_b and not any(bool(p.any()) for p in lora_b):
        raise EmbedderError(
            f"the adapter in {adapter} changes nothing (every lora_B is zero): it was not trained, "
            "or its weights carry other names than this model's layers"
        )
    if not small:
        return wrapped.to(dtype)
    from embedkit.embedders.merging import merge_adapter

    return merge_adapter(wrapped).to(dtype)


def _load_dense(layer: DenseLayer, device: torch.device) -> Any:
    from pathlib import Path

    import torch

    folder = Path(layer.folder)
    weights: dict[str, Tensor]
    with broken_files(f"the Dense layer in {layer.folder} cannot be loaded"):
        if (folder / "model.safetensors").is_file():
            from safetensors.torch import load_file

            weights = load_file(folder / "model.safetensors")
        else:
            weights = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    linear = torch.nn.Linear(layer.in_features, layer.out_features, layer.bias)
    try:
        linear.load_state_dict({k.removeprefix("linear."): v.float() for k, v in weights.items()})
    except RuntimeError as e:
        raise EmbedderError(f"the Dense layer in {layer.folder} does not fit its config: {e}") from e
    return torch.nn.Sequential(linear, getattr(torch.nn, layer.activation)()).to(device).eval()
