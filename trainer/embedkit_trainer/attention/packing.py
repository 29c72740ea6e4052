"""Attention over rows packed end to end: torch's varlen kernel on CUDA, the same sums row by row elsewhere.

Row by row is also float32's way on CUDA, where the kernel knows only bfloat16 and float16: right, and slow.

It is registered with transformers under the name `embedkit_varlen`, so that any model that goes through
transformers' attention interface (the decoders, and BERT-like encoders) runs packed without a change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedkit.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ATTENTION = "embedkit_varlen"


def register() -> None:
    """Make the attention known to transformers; calling it again changes nothing."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(ATTENTION, packed_attention)
    AttentionMaskInterface.register(ATTENTION, _no_mask)


def use_packing(backbone: Any) -> None:
    """Switch a transformers model to packed attention.

    Raises InputError for an architecture that attends in its own way, and for attention dropout, which the kernel
    does not have.
    """
    register()
    config = backbone.config
    rate = float(
        getattr(config, "attention_dropout", None)
        or getattr(config, "attention_probs_dropout_prob", None)
        or 0.0
    )
    if rate:
        raise InputError(
            f"packing has no attention dropout, and {config.model_type} asks for {rate}: set model.dropout = 0, "
            "or packing = false"
        )
    if not getattr(type(backbone), "_supports_attention_backend", False):
        raise InputError(
            f"{type(backbone).__name__} cannot attend over packed rows (no attention interface): "
            "set packing = false"
        )
    backbone.set_attn_implementation(ATTENTION)


def undo_packing(backbone: Any) -> None:
    """Give a model, or the model inside a PEFT adapter, transformers' own attention back."""
    plain = backbone.get_base_model() if hasattr(backbone, "get_base_model") else backbone
    plain.set_attn_implementation("sdpa" if getattr(type(plain), "_supports_sdpa", False) else "eager")


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    row_offsets: Tensor | None = None,
    longest_row: int = 0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend within each packed row: `query` `[1, heads, tokens, width]`, offsets int32 `[n + 1]`.

    Keys and values may have fewer heads (grouped queries). Returns `[1, tokens, heads, width]`, as transformers'
    interface asks, and no weights.
    """
    import torch

    del attention_mask, dropout
    if row_offsets is None:
        raise RuntimeError("packed attention was called without the rows' offsets")
    # transformers gives the exclusive bound of a window, on both sides where attention looks both ways. One that no
    # row exceeds is none: the kernel is faster without.
    reach = sliding_window - 1 if sliding_window and sliding_window < longest_row else -1
    window = (reach, 0 if getattr(module, "is_causal", False) else reach)
    rows = _Rows(row_offsets, longest_row, scaling, window)
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
    if q.is_cuda:
        # Autocast knows the fused attention but not this kernel, and rotary positions leave q and k in float32.
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else q.dtype
        if dtype in (torch.bfloat16, torch.float16):
            return _varlen(q.to(dtype), k.to(dtype), v.to(dtype), rows)[None], None
    # The kernel has no float32; a CPU's bfloat16 backward pass is slow (see float32_attention.py).
    with torch.autocast(q.device.type, enabled=False):
        return _by_row(q.float(), k.float(), v.float(), rows).to(v.dtype)[None], None


@dataclass(frozen=True, slots=True)
class _Rows:
    """Where the packed rows lie, and how each attends: `window` is (left, right), -1 for no bound."""

    offsets: Tensor
    longest: int
    scale: float | None
    window: tuple[int, int]


def _varlen(q: Tensor, k: Tensor, v: Tensor, rows: _Rows) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(
        q, k, v, rows.offsets, rows.offsets, rows.longest, rows.longest,
        scale=rows.scale, window_size=rows.window, enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    return out[0] if isinstance(out, tuple) else out


def _by_row(q: Tensor, k: Tensor, v: Tensor, rows: _Rows) -> Tensor:
    """Attend row by row; what the kernel computes, where there is none."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    left, right = rows.window
    parts = []
    for start, end in zip(rows.offsets[:-1].tolist(), rows.offsets[1:].tolist(), strict=True):
        length = end - start
        mask = None
        if 0 <= left < length - 1:
            places = torch.arange(length, device=q.device)
            distance = places[:, None] - places
            mask = (distance >= -right) & (distance <= left)
        one_q, one_k, one_v = (t[start:end].transpose(0, 1)[None] for t in (q, k, v))
        part = scaled_dot_product_attention(
            one_q,
            one_k,
            one_v,
            attn_mask=mask,
            is_causal=mask is None and right == 0,
            scale=rows.scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        parts.append(part[0].transpose(0, 1))
    return torch.cat(parts)


def _no_mask(*_: Any, **__: Any) -> None:
    """Stand in for transformers' mask: the offsets keep the rows apart."""
