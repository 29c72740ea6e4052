"""Attention in float32 under bfloat16: the same gradient, nearer to float32's, for the models that can switch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from embedkit_trainer.attention.float32 import ATTENTION, use_float32_attention
from embedkit_trainer.config.records import LossConfig
from embedkit_trainer.gradcache import StepPlan, train_step
from embedkit_trainer.losses.objective import build_objective
from embedkit_trainer.model import EmbeddingModel
from tests.trainer.tiny_backbones import FAMILIES, distance, flat_gradient, tiny_backbone, token_batch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: models this small only wait for a second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _gradient(family: str, *, switched: bool, bfloat16: bool, dropout: float = 0.0) -> torch.Tensor:
    backbone = tiny_backbone(family, dropout=dropout)
    if switched:
        use_float32_attention(backbone)
        assert backbone.config._attn_implementation == ATTENTION
    model = EmbeddingModel(backbone, FAMILIES[family][0])
    plan = StepPlan(chunk_tokens=40, bfloat16=bfloat16, seed=3)
    train_step(model, token_batch(), build_objective(LossConfig(temperature=0.1)), plan=plan)
    return flat_gradient(model)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_float32_attention_is_the_models_own(family: str) -> None:
    """In float32 nothing changes, windows, padding masks, grouped heads and dropout included; under bfloat16 the
    gradient stays within a cosine of 0.99 of float32's."""
    exact = _gradient(family, switched=False, bfloat16=False)
    assert distance(_gradient(family, switched=True, bfloat16=False), exact)[1] < 1e-6
    assert distance(_gradient(family, switched=True, bfloat16=True), exact)[0] < 0.01


def test_attention_dropout_is_drawn_alike() -> None:
    """With attention dropout, the switched model draws what the unswitched one draws."""
    exact = _gradient("Mistral", switched=False, bfloat16=False, dropout=0.3)
    assert distance(_gradient("Mistral", switched=True, bfloat16=False, dropout=0.3), exact)[1] < 1e-6


def test_the_fused_attention_receives_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast the fused attention is called with float32 after the switch, and with bfloat16 before."""
    seen: list[torch.dtype] = []
    fused = torch._C._nn.scaled_dot_product_attention

    def spy(query: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        seen.append(torch.bfloat16 if torch.is_autocast_enabled("cpu") else query.dtype)
        result: torch.Tensor = fused(query, *args, **options)
        return result

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    _gradient("Mistral", switched=False, bfloat16=True)
    assert set(seen) == {torch.bfloat16}
    seen.clear()
    _gradient("Mistral", switched=True, bfloat16=True)
    assert set(seen) == {torch.float32}


def test_other_attention_is_left_alone() -> None:
    """A backbone that was told to attend otherwise keeps its way."""
    backbone = tiny_backbone("Mistral")
    backbone.set_attn_implementation("eager")
    use_float32_attention(backbone)
    assert backbone.config._attn_implementation == "eager"
