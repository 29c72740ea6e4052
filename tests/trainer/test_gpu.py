"""What the trainer promises on CUDA; see docs/gpu-checklist.md."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

from embedkit_trainer.adapters import keep_input_dtype
from embedkit_trainer.config.records import LossConfig
from embedkit_trainer.gradcache import StepPlan, train_step
from embedkit_trainer.losses.objective import build_objective
from tests.trainer.tiny_backbones import distance, flat_gradient, tiny_model, token_batch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

#: At once; chunks that all keep their graph; one kept, the rest twice.
PLANS = {
    "plain": StepPlan(),
    "kept": StepPlan(chunk_tokens=40, graph_tokens=10_000),
    "cached": StepPlan(chunk_tokens=40),
}
FAMILIES = ("Bert", "Mistral", "Gemma3Text")
T = 0.1


def _gradient(
    family: str,
    plan: StepPlan,
    *,
    device: str = "cuda",
    checkpointing: bool = False,
    dropout: float = 0.0,
    lora: float | None = None,
) -> torch.Tensor:
    """Return the gradient of one step on the CPU, in float64."""
    model = tiny_model(family, dropout=dropout, packed=plan.packed, checkpointing=checkpointing, lora=lora)
    if lora is not None and plan.bfloat16:
        keep_input_dtype(model)
    model = model.to(device)
    train_step(model, token_batch(), build_objective(LossConfig(temperature=T)), plan=plan)
    return flat_gradient(model).cpu()


@pytest.mark.parametrize("family", FAMILIES)
def test_cuda_gradients_equal_the_cpus(family: str) -> None:
    """In float32, all of chunks, cache, checkpoints and packing give the CPU's plain gradient: cosine 0.9999."""
    exact = _gradient(family, StepPlan(), device="cpu")
    for plan, packed, checkpointing in product(PLANS.values(), (False, True), (False, True)):
        found = _gradient(family, replace(plan, packed=packed), checkpointing=checkpointing)
        assert distance(found, exact)[0] < 1e-4, (plan, packed, checkpointing)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_varlen_kernel_in_bfloat16(family: str) -> None:
    """Under bfloat16, packed rows (windows, grouped heads, attention both ways) keep the padded rows' gradient."""
    exact = _gradient(family, StepPlan(), device="cpu")
    for plan, checkpointing in product(PLANS.values(), (False, True)):
        padded = _gradient(family, replace(plan, bfloat16=True), checkpointing=checkpointing)
        packed = _gradient(family, replace(plan, bfloat16=True, packed=True), checkpointing=checkpointing)
        assert distance(padded, exact)[0] < 0.01
        assert distance(packed, exact)[0] < 0.01
        assert distance(packed, padded)[0] < 0.01


def test_the_varlen_kernel_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under bfloat16 no packed row is attended to by itself."""
    from embedkit_trainer.attention import packing

    def refuse(*_: object) -> None:
        raise AssertionError("row by row")

    monkeypatch.setattr(packing, "_by_row", refuse)
    _gradient("Mistral", StepPlan(packed=True, bfloat16=True))
    with pytest.raises(AssertionError, match="row by row"):
        _gradient("Mistral", StepPlan(packed=True))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_the_cache_meets_the_same_dropout_on_cuda(packed: bool, checkpointing: bool) -> None:
    """With LoRA's and the model's dropout on, the second forward pass draws the first one's numbers."""
    for bfloat16 in (False, True):
        plans = {n: replace(p, packed=packed, bfloat16=bfloat16, seed=5) for n, p in PLANS.items()}
        found = {
            n: _gradient("Bert", plans[n], checkpointing=checkpointing, dropout=0.3, lora=0.3)
            for n in ("kept", "cached")
        }
        assert distance(found["cached"], found["kept"])[0] < 1e-4


@pytest.mark.parametrize("packed", [False, True])
def test_lora_trains_in_bfloat16(packed: bool) -> None:
    """A float32 adapter on frozen bfloat16 weights brings the loss of one batch down, and the base stays as it was."""
    model = tiny_model("Mistral", packed=packed, lora=0.0)
    keep_input_dtype(model)
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.to(torch.bfloat16)
    model = model.to("cuda")
    before = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    objective = build_objective(LossConfig(temperature=T))
    losses = []
    for _ in range(20):
        plan = StepPlan(chunk_tokens=40, packed=packed, bfloat16=True)
        losses.append(train_step(model, token_batch(), objective, plan=plan).loss)
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if not p.requires_grad)


def test_half_the_memory_with_the_cache() -> None:
    """Eight chunks under GradCache need less than half of the memory that they need at once."""
    batch = token_batch((1,) * 256)
    objective = build_objective(LossConfig(temperature=T))
    tokens = sum(len(t) for t in (*batch.queries, *batch.documents))
    peaks = []
    for chunk in (None, tokens // 8):
        model = tiny_model("Mistral", packed=True).to("cuda")
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
        train_step(model, batch, objective, plan=StepPlan(chunk_tokens=chunk, packed=True, bfloat16=True))
        peaks.append(torch.cuda.max_memory_allocated() - base)
    assert peaks[1] < peaks[0] / 2
