"""The training step: whatever the chunks, the cache, the packing and the checkpoints, it leaves the plain gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from embedkit.errors import InputError
from embedkit_trainer.adapters import keep_input_dtype
from embedkit_trainer.config.records import LossConfig
from embedkit_trainer.data.batches import Batch
from embedkit_trainer.distributed import World
from embedkit_trainer.gradcache import StepPlan, StepResult, train_step
from embedkit_trainer.losses.distillation import distil_kl
from embedkit_trainer.losses.objective import build_objective
from embedkit_trainer.losses.pairs import cosent, gte_contrastive, info_nce
from embedkit_trainer.model import EmbeddingModel
from tests.trainer.tiny_backbones import (
    FAMILIES,
    distance,
    flat_gradient,
    tiny_backbone,
    tiny_model,
    token_batch,
)

T = 0.1
#: All four ways through the step: at once; chunks that all keep their graph; one kept, the rest twice; some kept.
MODES = {
    "plain": StepPlan(),
    "kept": StepPlan(chunk_tokens=40, graph_tokens=10_000),
    "cached": StepPlan(chunk_tokens=40),
    "some": StepPlan(chunk_tokens=40, graph_tokens=90),
}
LOSSES = {
    "info_nce": LossConfig("info_nce", temperature=T),
    "gte": LossConfig("gte", temperature=T),
    "matryoshka": LossConfig("info_nce", temperature=T, matryoshka=(8, 16), matryoshka_weights=(0.5, 2.0)),
    "cosent": LossConfig("cosent", temperature=T),
    "distil_kl": LossConfig("distil_kl", temperature=T, teacher_temperature=2.0),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: models this small only wait for a second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _left_out(batch: Batch) -> dict[str, Tensor]:
    """Return gte's masks of `token_batch` by going through all pairs, as masks.py defines them."""
    starts, ends = batch.offsets[:-1], batch.offsets[1:]
    rows, documents = range(len(starts)), range(int(ends[-1]))

    def is_positive(j: int, i: int) -> bool:
        p = starts[i]
        return bool(
            j == p
            or batch.text_keys[j] == batch.text_keys[p]
            or (batch.id_keys[p] and batch.id_keys[j] == batch.id_keys[p])
        )

    def known(i: int, j: int) -> bool:
        own = starts[i] <= j < ends[i]
        same = [k for k in rows if batch.query_keys[k] == batch.query_keys[i]]
        return is_positive(j, i) or (not own and any(is_positive(j, k) for k in same))

    query_document = torch.tensor([[known(i, j) and j != starts[i] for j in documents] for i in rows])
    query_query = torch.tensor(
        [
            [i == k or batch.query_keys[i] == batch.query_keys[k] or is_positive(starts[k], i) for k in rows]
            for i in rows
        ]
    )
    document_document = query_document.clone()
    document_document[list(rows), starts] = True
    return {
        "query_document": query_document,
        "query_query": query_query,
        "document_query": query_document[:, starts].T,
        "document_document": document_document,
    }


def _plain_loss(name: str, q: Tensor, d: Tensor, batch: Batch) -> Tensor:
    """Return the loss by the pure functions alone, without objective and candidates."""
    offsets = torch.tensor(batch.offsets)
    positives = offsets[:-1]
    left_out = _left_out(batch)
    assert left_out["query_document"].any()

    def one(q: Tensor, d: Tensor) -> Tensor:
        return info_nce(q, d, positives, left_out["query_document"], T)

    calls: dict[str, Callable[[], Tensor]] = {
        "info_nce": lambda: one(q, d),
        "gte": lambda: gte_contrastive(q, d, positives, T, **left_out),
        "matryoshka": lambda: 0.5 * one(q[:, :8], d[:, :8]) + 2 * one(q[:, :16], d[:, :16]) + one(q, d),
        "cosent": lambda: cosent(q, d[positives], torch.tensor(batch.scores), T),
        "distil_kl": lambda: distil_kl(
            q, d, torch.tensor(batch.teacher_scores), offsets, temperature=T, teacher_temperature=2.0
        ),
    }
    return calls[name]()


def _pooled(states: Tensor, pooling: str) -> Tensor:
    weights = torch.arange(1, len(states) + 1, dtype=states.dtype)
    return {
        "mean": states.mean(0),
        "cls": states[0],
        "last": states[-1],
        "weightedmean": (states * weights[:, None]).sum(0) / weights.sum(),
    }[pooling]


@cache
def _reference(family: str, loss: str) -> tuple[float, Tensor]:
    """Return loss and gradient the plain way: one text at a time through transformers, autograd through it all."""
    backbone, batch = tiny_backbone(family), token_batch()

    def embed(ids: Any) -> Tensor:
        states = backbone(
            input_ids=torch.tensor(ids[None].astype(np.int64)), use_cache=False
        ).last_hidden_state[0]
        return _pooled(states, FAMILIES[family][0])

    q = torch.stack([embed(ids) for ids in batch.queries])
    d = torch.stack([embed(ids) for ids in batch.documents])
    value = _plain_loss(loss, q, d, batch)
    value.backward()  # type: ignore[no-untyped-call]
    return float(value.detach()), flat_gradient(backbone)


def _step(model: EmbeddingModel, plan: StepPlan, loss: str = "info_nce", **options: Any) -> StepResult:
    model.zero_grad(set_to_none=True)
    return train_step(model, token_batch(), build_objective(LOSSES[loss]), plan=plan, **options)


@pytest.mark.parametrize(
    ("family", "loss"),
    [*product(("Bert", "Mistral"), LOSSES), *product(("XLMRoberta", "Qwen3", "Gemma3Text"), ("info_nce",))],
)
def test_every_combination_gives_the_plain_gradient(family: str, loss: str) -> None:
    """Chunks, cache, checkpoints and packing, in all combinations, give the gradient of texts embedded one by one."""
    value, gradient = _reference(family, loss)
    for packed, checkpointing in product((False, True), (False, True)):
        model = tiny_model(family, packed=packed, checkpointing=checkpointing)
        for mode, plan in MODES.items():
            result = _step(model, replace(plan, packed=packed), loss)
            apart, largest = distance(flat_gradient(model), gradient)
            where = f"{mode}, packed={packed}, checkpointing={checkpointing}"
            assert apart < 1e-8, where  # float64 sums of float32 values
            assert largest < 1e-4, where
            assert result.loss == pytest.approx(value, rel=1e-5), where


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["Bert", "XLMRoberta"])
def test_the_cache_meets_the_same_dropout(family: str, checkpointing: bool, packed: bool) -> None:
    """With dropout on, the second forward pass repeats the first: cached equals kept under the same chunks and seed."""
    model = tiny_model(family, dropout=0.3, checkpointing=checkpointing, packed=packed)
    results = {}
    for mode in ("kept", "cached", "some"):
        result = _step(model, replace(MODES[mode], packed=packed, seed=5))
        results[mode] = result.loss, flat_gradient(model)
    for mode in ("cached", "some"):
        assert results[mode][0] == results["kept"][0]
        assert distance(results[mode][1], results["kept"][1])[1] < 1e-6
    other = _step(model, replace(MODES["kept"], packed=packed, seed=6))
    assert other.loss != results["kept"][0]
    assert distance(flat_gradient(model), results["kept"][1])[0] > 1e-3


def test_attention_dropout_is_repeated_too() -> None:
    """A decoder with dropout in its attention gives the same gradient with the cache as without."""
    model = tiny_model("Mistral", dropout=0.3)
    kept = _step(model, MODES["kept"]).loss, flat_gradient(model)
    assert _step(model, MODES["cached"]).loss == kept[0]
    assert distance(flat_gradient(model), kept[1])[1] < 1e-6
    assert kept[0] != pytest.approx(_reference("Mistral", "info_nce")[0], rel=1e-3)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("family", ["Bert", "Mistral"])
def test_lora_with_dropout(family: str, packed: bool, checkpointing: bool) -> None:
    """An adapter with dropout gives the same gradient with the cache as without, and the base gets none."""
    model = tiny_model(family, packed=packed, checkpointing=checkpointing, lora=0.1)
    kept = _step(model, replace(MODES["kept"], packed=packed)).loss, flat_gradient(model)
    for mode in ("cached", "some"):
        assert _step(model, replace(MODES[mode], packed=packed)).loss == kept[0]
        assert distance(flat_gradient(model), kept[1])[1] < 1e-6
    trained = {n.split(".")[-3] for n, p in model.named_parameters() if p.grad is not None}
    assert trained == {"lora_A", "lora_B"}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("family", ["Bert", "Mistral", "Qwen3"])
def test_bfloat16(family: str, packed: bool, checkpointing: bool) -> None:
    """Under bfloat16 the gradient keeps a cosine of 0.99 with float32's, is float32 itself, and the cache alters nothing."""
    model = tiny_model(family, packed=packed, checkpointing=checkpointing)
    gradients = {}
    for mode, plan in MODES.items():
        _step(model, replace(plan, packed=packed, bfloat16=True))
        gradients[mode] = flat_gradient(model)
        assert distance(gradients[mode], _reference(family, "info_nce")[1])[0] < 0.01
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in model.parameters())
    assert distance(gradients["cached"], gradients["kept"])[1] < 1e-6
    assert distance(gradients["some"], gradients["kept"])[1] < 1e-6
    # It was bfloat16 indeed.
    assert distance(gradients["plain"], _reference(family, "info_nce")[1])[1] > 1e-4


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["Bert", "Mistral"])
def test_bfloat16_lora(family: str, checkpointing: bool) -> None:
    """An adapter that takes bfloat16 as it comes keeps float32 gradients at a cosine of 0.99 with float32's."""
    model = tiny_model(family, lora=0.0)
    _step(model, MODES["cached"])
    exact = flat_gradient(model)
    model = tiny_model(family, lora=0.0, checkpointing=checkpointing)
    seen: list[torch.dtype] = []
    for name, module in model.named_modules():
        if name.endswith("lora_A.default"):
            module.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].dtype))
    keep_input_dtype(model)
    _step(model, replace(MODES["cached"], bfloat16=True))
    assert torch.bfloat16 in seen
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)
    assert distance(flat_gradient(model), exact)[0] < 0.01


def test_gradients_add_up_and_scale() -> None:
    """Two steps with scale 1/2 leave the mean of both gradients, and the loss told is that before scaling."""
    model, objective = tiny_model("Bert"), build_objective(LOSSES["info_nce"])
    parts = []
    for seed in (0, 1):
        model.zero_grad()
        train_step(model, token_batch(seed=seed), objective, plan=MODES["some"])
        parts.append(flat_gradient(model))
    model.zero_grad()
    losses = [
        train_step(model, token_batch(seed=seed), objective, plan=MODES["some"], scale=0.5).loss
        for seed in (0, 1)
    ]
    assert distance(flat_gradient(model), (parts[0] + parts[1]) / 2)[1] < 1e-5
    assert losses[0] == pytest.approx(_reference("Bert", "info_nce")[0], rel=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_a_step_counts_its_work(packed: bool) -> None:
    """Tokens, computed places, places computed twice and passes are those that the model saw."""
    batch = token_batch()
    real = sum(len(t) for t in (*batch.queries, *batch.documents))
    model = tiny_model("Mistral", packed=packed)
    places: list[tuple[int, bool]] = []
    forward = model.forward

    def counted(inputs: Any) -> Tensor:
        places.append((inputs.ids.numel(), torch.is_grad_enabled()))
        return forward(inputs)

    model.forward = counted  # type: ignore[method-assign]
    for mode, plan in MODES.items():
        places.clear()
        result = _step(model, replace(plan, packed=packed))
        first = places[: result.chunks]
        assert result.tokens == real
        assert result.padded == sum(count for count, _ in first)
        assert result.recomputed == sum(count for count, _ in places[result.chunks :])
        # What went forward twice had no graph the first time, and no more of it was computed than that.
        assert result.recomputed == sum(count for count, graph in first if not graph)
        assert (result.padded == real) == packed
        assert (result.recomputed == 0) == (mode in ("plain", "kept"))
        assert (result.chunks == 1) == (mode == "plain")
        if plan.chunk_tokens:
            assert max(count for count, _ in places) <= plan.chunk_tokens
            graphs = sum(count for count, graph in first if graph)
            assert graphs <= max(plan.graph_tokens or plan.chunk_tokens, 40)


def test_bfloat16_on_a_cpu_meets_few_shapes() -> None:
    """Padded passes are multiples of 16 wide under bfloat16, but never wider than the batch's longest text."""
    model = tiny_model("Mistral")
    shapes: list[tuple[int, ...]] = []
    forward = model.forward

    def seen(inputs: Any) -> Tensor:
        shapes.append(tuple(inputs.ids.shape))
        return forward(inputs)

    model.forward = seen  # type: ignore[method-assign]
    batch = token_batch(documents=[np.full(n, 7, np.int32) for n in (19, 18, 15, 9, 3, 14, 2, 11, 5, 16)])
    longest = 19
    model.zero_grad()
    objective = build_objective(LOSSES["info_nce"])
    result = train_step(model, batch, objective, plan=StepPlan(chunk_tokens=40, bfloat16=True))
    assert {width for _, width in shapes} == {16, longest}
    assert all(rows * width <= 40 for rows, width in shapes)
    assert result.padded == sum(rows * width for rows, width in shapes[: result.chunks])


def test_a_batch_that_fits_goes_forward_once() -> None:
    """A single chunk keeps its graph, whatever the budget of graphs: no second pass where none is needed."""
    model = tiny_model("Bert")
    for graph_tokens in (None, 1, 10_000):
        result = _step(model, StepPlan(chunk_tokens=10_000, graph_tokens=graph_tokens))
        assert (result.chunks, result.recomputed) == (1, 0)


def test_one_graph_at_a_time() -> None:
    """Where every forward pass must be sent back before the next, one graph is kept, and the gradient is the same."""

    class OneGraph(World):
        one_graph = True

    model = tiny_model("Bert")
    alive: list[int] = []
    forward = model.forward

    def counted(inputs: Any) -> Tensor:
        alive.append(torch.is_grad_enabled())
        return forward(inputs)

    model.forward = counted  # type: ignore[method-assign]
    result = _step(model, MODES["kept"], world=OneGraph())
    assert sum(alive[: result.chunks]) == 1
    assert len(alive) == 2 * result.chunks - 1
    assert distance(flat_gradient(model), _reference("Bert", "info_nce")[1])[0] < 1e-8


def test_the_objective_sees_the_rows_in_order() -> None:
    """Chunks are drawn by length, yet query i and document j reach the objective as rows i and j."""
    model, rows = tiny_model("Bert"), token_batch()
    seen: list[tuple[Tensor, Tensor]] = []
    inner = build_objective(LOSSES["info_nce"])

    def spy(queries: Tensor, documents: Tensor, batch: Batch) -> Any:
        assert batch is rows
        seen.append((queries.detach().clone(), documents.detach().clone()))
        return inner(queries, documents, batch)

    for plan in MODES.values():
        train_step(model, rows, spy, plan=plan)
    for queries, documents in seen[1:]:
        assert torch.allclose(queries, seen[0][0], atol=1e-5)
        assert torch.allclose(documents, seen[0][1], atol=1e-5)


def test_a_text_longer_than_the_budget_is_a_chunk_of_its_own() -> None:
    """A budget below the longest text still gives the plain gradient."""
    model = tiny_model("Bert")
    result = _step(model, StepPlan(chunk_tokens=1))
    batch = token_batch()
    assert result.chunks == len(batch.queries) + len(batch.documents)
    assert distance(flat_gradient(model), _reference("Bert", "info_nce")[1])[0] < 1e-8


@pytest.mark.parametrize("mode", MODES)
def test_frozen_documents_keep_the_teachers_vectors(mode: str) -> None:
    """Only queries go through the model, and the gradient is that of InfoNCE against vectors that stand still."""
    batch = token_batch()
    model = tiny_model("Bert")
    width = model.backbone.config.hidden_size
    known = np.random.default_rng(3).normal(size=(len(batch.documents), width)).astype(np.float32)
    batch = replace(batch, teacher_documents=known)
    objective = build_objective(LOSSES["info_nce"])
    result = train_step(model, batch, objective, plan=replace(MODES[mode], frozen_documents=True))
    assert result.tokens == sum(len(t) for t in batch.queries)
    found = flat_gradient(model)

    backbone = tiny_backbone("Bert")
    q = torch.stack(
        [
            _pooled(backbone(input_ids=torch.tensor(t[None].astype(np.int64))).last_hidden_state[0], "mean")
            for t in batch.queries
        ]
    )
    value = _plain_loss("info_nce", q, torch.from_numpy(known), batch)
    value.backward()  # type: ignore[no-untyped-call]
    assert result.loss == pytest.approx(float(value.detach()), rel=1e-5)
    assert distance(found, flat_gradient(backbone))[1] < 1e-4


def test_frozen_documents_need_vectors() -> None:
    """Without a teacher's vectors there is nothing to compare with."""
    with pytest.raises(InputError, match="the batch carries none"):
        train_step(
            tiny_model("Bert"),
            token_batch(),
            build_objective(LOSSES["info_nce"]),
            plan=StepPlan(frozen_documents=True),
        )
