"""Embedding tables receive their gradient by rows: torch's own values, without a table's worth of zeros."""

from __future__ import annotations

import pytest
import torch

from embedkit_trainer.config.records import LossConfig
from embedkit_trainer.embedding_gradient import in_place_embeddings
from embedkit_trainer.gradcache import StepPlan, train_step
from embedkit_trainer.losses.objective import build_objective
from tests.trainer.tiny_backbones import flat_gradient, tiny_model, token_batch


@pytest.mark.parametrize("padding", [None, 2])
def test_the_gradient_is_torchs(padding: int | None) -> None:
    """Repeated ids add up, the padding id gets nothing, and a second pass adds to the first."""
    torch.manual_seed(0)
    table = torch.nn.Embedding(7, 3, padding_idx=padding)
    ids = torch.tensor([[1, 2, 2], [5, 1, 1]])
    weights = torch.randn(2, 3, 3)

    def twice() -> torch.Tensor:
        table.weight.grad = None
        for _ in range(2):
            (table(ids) * weights).sum().backward()
        assert table.weight.grad is not None
        return table.weight.grad.clone()

    expected = twice()
    with in_place_embeddings(table):
        found = twice()
    assert torch.allclose(found, expected, atol=1e-6)
    assert (found[2] == 0).all() == (padding == 2)


def test_no_table_of_zeros_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole training step runs without torch's dense backward pass, and the model is as before afterwards."""
    model = tiny_model("Mistral")
    table = model.backbone.get_input_embeddings()

    def calls() -> int:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            train_step(
                model,
                token_batch(),
                build_objective(LossConfig(temperature=0.1)),
                plan=StepPlan(chunk_tokens=40),
            )
        names = [event.name for event in profile.events() or []]
        assert "aten::embedding" in names
        return names.count("aten::embedding_dense_backward")

    assert calls() == 0
    assert "forward" not in table.__dict__
    row_by_row = flat_gradient(model)
    model.zero_grad()
    monkeypatch.setattr("embedkit_trainer.embedding_gradient._fits", lambda _: False)
    assert calls() > 0
    assert torch.allclose(row_by_row, flat_gradient(model), atol=1e-7)


def test_other_tables_are_left_alone() -> None:
    """Frozen tables, subclasses and wrapped ones keep their forward; an error puts the others back."""
    frozen, wrapped, plain = (torch.nn.Embedding(4, 2) for _ in range(3))
    frozen.weight.requires_grad_(False)
    wrapped.forward = lambda input: input  # type: ignore[method-assign]
    own = wrapped.forward

    class Scaled(torch.nn.Embedding):
        pass

    scaled = Scaled(4, 2)
    model = torch.nn.ModuleList([frozen, wrapped, plain, scaled])
    with pytest.raises(KeyError), in_place_embeddings(model):
        assert "forward" in plain.__dict__
        assert "forward" not in frozen.__dict__ and "forward" not in scaled.__dict__
        assert wrapped.forward is own
        raise KeyError
    assert "forward" not in plain.__dict__
    assert wrapped.forward is own
