"""Packing: rows that lie end to end do not see one another, and attend as they would alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from embedkit.errors import InputError
from embedkit_trainer.attention.packing import ATTENTION, packed_attention, use_packing
from embedkit_trainer.collate import pack
from tests.trainer.tiny_backbones import FAMILIES, tiny_backbone, tiny_model, token_batch

LENGTHS = [7, 1, 12, 3]
HEADS, WIDTH = 4, 8
OFFSETS = torch.tensor([0, 7, 8, 20, 23], dtype=torch.int32)


def _drawn(heads: int, **options: Any) -> Tensor:
    return torch.randn(1, heads, sum(LENGTHS), WIDTH, **options)


def _dense(q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None, scale: float) -> Tensor:
    """Return softmax(q k^T scale) v `[tokens, heads, width]` under one mask over all tokens, the slow way."""
    row = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    distance = torch.arange(len(row))[:, None] - torch.arange(len(row))
    seen = row[:, None] == row
    if causal:
        seen &= distance >= 0
    if window:
        seen &= distance.abs() < window
    seen = seen.to(q.device)
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ v)[0].transpose(0, 1)


@pytest.mark.parametrize("window", [None, 1, 4, 50])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention_stays_within_rows(causal: bool, window: int | None, groups: int) -> None:
    """For every window, direction and number of key heads, outputs and gradients are those of one masked softmax."""
    torch.manual_seed(0)
    q, k, v = (_drawn(h, dtype=torch.float64, requires_grad=True) for h in (HEADS, groups, groups))
    module: Any = SimpleNamespace(is_causal=causal)
    found, weights = packed_attention(
        module, q, k, v, None, scaling=0.3, sliding_window=window, row_offsets=OFFSETS, longest_row=12
    )
    assert weights is None
    expected = _dense(q, k, v, causal, window, 0.3)
    assert torch.allclose(found[0], expected, atol=1e-6)  # torch's kernel rounds exp
    direction = torch.randn_like(expected)
    for a, b in zip(
        *(torch.autograd.grad((o * direction).sum(), (q, k, v)) for o in (found[0], expected)), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_do_not_see_one_another(family: str) -> None:
    """The vector of a packed row does not change by a bit more than rounding when its neighbours do."""
    model = tiny_model(family, packed=True).eval()
    texts = token_batch().documents
    with torch.no_grad():
        together = model(pack(texts))
        alone = torch.cat([model(pack([text])) for text in texts])
        reversed_ = model(pack(texts[::-1])).flip(0)
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(together, reversed_, atol=1e-5)


@pytest.mark.parametrize("family", ["Bert", "Mistral"])
def test_attention_dropout_is_refused(family: str) -> None:
    """The kernel has no dropout of attention: the error names the rate and both ways out."""
    with pytest.raises(InputError, match=r"asks for 0\.2: set model\.dropout = 0, or packing = false"):
        use_packing(tiny_backbone(family, dropout=0.2))


def test_a_model_that_attends_in_its_own_way_is_refused() -> None:
    """An architecture outside transformers' attention interface is named, before it ignores the offsets."""
    config = transformers.MPNetConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        attention_probs_dropout_prob=0.0,
    )
    with pytest.raises(InputError, match="MPNetModel cannot attend over packed rows"):
        use_packing(transformers.MPNetModel(config))


def test_packed_attention_needs_offsets() -> None:
    """A packed model that is called without offsets fails rather than attend across rows."""
    backbone = tiny_backbone("Bert", packed=True)
    assert backbone.config._attn_implementation == ATTENTION
    with pytest.raises(RuntimeError, match="without the rows' offsets"):
        backbone(input_ids=torch.tensor([[2, 3, 4]]))


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("groups", [2, 4])
def test_the_kernel_attends_as_the_cpu_does(causal: bool, window: int | None, groups: int) -> None:
    """On CUDA, the varlen kernel in bfloat16 gives outputs and gradients of the masked softmax in float32."""
    torch.manual_seed(0)
    shapes = [(1, h, sum(LENGTHS), 64) for h in (HEADS, groups, groups)]
    q, k, v = (torch.randn(*s, device="cuda", dtype=torch.bfloat16, requires_grad=True) for s in shapes)
    module: Any = SimpleNamespace(is_causal=causal)
    found, _ = packed_attention(
        module, q, k, v, None, scaling=0.1, sliding_window=window, row_offsets=OFFSETS.cuda(), longest_row=12
    )
    wide = [t.detach().float().requires_grad_() for t in (q, k, v)]
    expected = _dense(wide[0], wide[1], wide[2], causal, window, 0.1)
    assert torch.allclose(found[0].float(), expected, atol=2e-2)
    direction = torch.randn_like(expected)
    narrow = torch.autograd.grad((found[0].float() * direction).sum(), (q, k, v))
    for a, b in zip(narrow, torch.autograd.grad((expected * direction).sum(), wide), strict=True):
        assert torch.nn.functional.cosine_similarity(a.float().flatten(), b.flatten(), dim=0) > 0.999


@pytest.mark.gpu
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["Bert", "Mistral", "Qwen3"])
def test_packing_gives_the_padded_gradient_on_cuda(family: str, checkpointing: bool) -> None:
    """On CUDA in bfloat16, cached and packed, a step leaves the gradient of the padded float32 step on the CPU."""
    from embedkit_trainer.config.records import LossConfig
    from embedkit_trainer.gradcache import StepPlan, train_step
    from embedkit_trainer.losses.objective import build_objective
    from tests.trainer.tiny_backbones import distance, flat_gradient

    objective = build_objective(LossConfig("info_nce", temperature=0.1))
    plain = tiny_model(family)
    train_step(plain, token_batch(), objective)
    model = tiny_model(family, packed=True, checkpointing=checkpointing).cuda()
    for graph_tokens in (None, 10_000):
        model.zero_grad(set_to_none=True)
        plan = StepPlan(chunk_tokens=40, graph_tokens=graph_tokens, packed=True, bfloat16=True)
        train_step(model, token_batch(), objective, plan=plan)
        assert distance(flat_gradient(model).cpu(), flat_gradient(plain))[0] < 0.01
