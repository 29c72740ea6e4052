"""Run rows of token ids through a model that gives each a score: load, batch by tokens, one device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedkit.embedders.batching import BudgetedForward, plan_batches
from embedkit.errors import InputError, MissingExtraError
from embedkit.rerankers.folder import CrossEncoderFolder
from embedkit.rerankers.pairs import PairIds

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

DTYPES = ("auto", "float32", "bfloat16", "float16")
# On a CPU a small batch stays in the cache: 1,024 tokens took 0.77 of the time of 2,048.
_CPU_BUDGET, _GPU_BUDGET = 1024, 16384


@dataclass(frozen=True, slots=True)
class Loading:
    """Say which model is loaded, and how: `name` is what errors call it."""

    name: str
    folder: CrossEncoderFolder
    device: torch.device
    dtype: torch.dtype
    max_length: int | None
    token_budget: int | None
    trust_remote_code: bool

    def tokenizer(self) -> Any:
        """Return transformers' tokenizer. Raises EmbedderError for a broken or slow one."""
        from embedkit.embedders.tokens import load_tokenizer

        return load_tokenizer(self.folder.model, self.trust_remote_code)

    def model(self, kind: Any) -> Any:
        """Return the model, of one of transformers' Auto classes. Raises EmbedderError for broken files."""
        from embedkit.embedders.loading import load_weights

        options = {"dtype": self.dtype, "trust_remote_code": self.trust_remote_code}
        return load_weights(kind, str(self.folder.model), **options).to(self.device).eval()


def require_torch() -> None:
    """Raise MissingExtraError where torch or transformers is missing."""
    try:
        import torch
        import transformers
    except ImportError as e:
        raise MissingExtraError("a cross-encoder", "torch") from e
    del torch, transformers


def pick_device(name: str | None) -> torch.device:
    """Return the one device of that name, "auto" (None): a GPU where there is one. Raises InputError."""
    import torch

    from embedkit.embedders.devices import resolve_devices
    from embedkit.threads import wanted_threads

    found = resolve_devices(name)
    if len(found) > 1:
        raise InputError(f"device {name!r}: a reranker runs on one device, such as cpu or cuda:1")
    threads = wanted_threads()
    if found[0] == "cpu" and threads is not None:
        torch.set_num_threads(threads)
    return torch.device(found[0])


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype to compute in; "auto" is float32 on a CPU, so that scores are the published ones."""
    import torch

    from embedkit.embedders.encoder import resolve_dtype

    if name not in DTYPES:
        raise InputError(f"dtype {name!r} is none of {', '.join(DTYPES)}")
    return torch.float32 if name == "auto" and device.type == "cpu" else resolve_dtype(name, device)


class Runner:
    """Score rows in batches of like lengths; `logits` maps a padded batch to one score a row."""

    def __init__(
        self,
        logits: Callable[[dict[str, Tensor]], Tensor],
        device: torch.device,
        *,
        pad: int,
        token_budget: int | None,
        types: bool = False,
        left: bool = False,
    ) -> None:
        import torch

        if token_budget is not None and token_budget < 1:
            raise InputError(f"token_budget is {token_budget}: give 1 or more")
        self._logits = logits
        self._device = device
        self._pad, self._types, self._left = pad, types, left
        cuda = device.type == "cuda"
        self._run = BudgetedForward(
            self._forward,
            token_budget or (_GPU_BUDGET if cuda else _CPU_BUDGET),
            lambda e: isinstance(e, torch.cuda.OutOfMemoryError),
            torch.cuda.empty_cache if cuda else lambda: None,
        )

    def __call__(self, rows: Sequence[PairIds]) -> NDArray[np.float32]:
        """Return float32 `[n]`."""
        import numpy as np

        out = np.empty(len(rows), dtype=np.float32)
        for batch in plan_batches([len(row) for row in rows], self._run.budget):
            out[batch] = self._run([rows[i] for i in batch])
        return out

    def _forward(self, batch: Sequence[Any]) -> NDArray[np.float32]:
        import torch

        width = max(len(row) for row in batch)
        inputs = {
            "input_ids": self._padded([list(row) for row in batch], width, self._pad),
            "attention_mask": self._padded([[1] * len(row) for row in batch], width, 0),
        }
        if self._types:
            inputs["token_type_ids"] = self._padded([list(row.types) for row in batch], width, 0)
        with torch.inference_mode():
            scores: NDArray[np.float32] = self._logits(inputs).float().cpu().numpy()
        return scores

    def _padded(self, rows: list[list[int]], width: int, filler: int) -> Tensor:
        import torch

        padding = [[filler] * (width - len(row)) for row in rows]
        pairs = zip(rows, padding, strict=True)
        return torch.tensor([p + r if self._left else r + p for r, p in pairs], device=self._device)
