"""Attention in float32 on a CPU while the products around it are bfloat16.

torch's bfloat16 attention has a backward pass on CPUs that takes ten times its float32 one's time (35 against 4 ms
for 1,400 tokens of 8 heads; docs/experiments.md), which made up 40% of a whole training step. The scores are the
smallest part of the arithmetic, so float32 costs next to nothing there, and is exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

ATTENTION = "embedkit_float32"


def use_float32_attention(backbone: Any) -> None:
    """Switch a transformers model that attends through torch's fused attention; leave every other as it is."""
    config = backbone.config
    if getattr(config, "_attn_implementation", None) != "sdpa":
        return
    if not getattr(type(backbone), "_supports_attention_backend", False):
        return
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(ATTENTION, float32_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    backbone.set_attn_implementation(ATTENTION)


def float32_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attend as transformers' "sdpa" does, in float32; the result has the dtype of `value`."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast("cpu", enabled=False):
        out, _ = sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), attention_mask, **options
        )
    return out.to(value.dtype), None
