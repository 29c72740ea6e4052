"""One training step, in GradCache's three passes (arXiv 2101.06983), of which a batch that fits needs one.

1. Embed every text chunk by chunk. As many chunks as fit beside one another keep their graph; the rest do not.
2. Take the loss of the whole global batch and its gradient with respect to every vector.
3. Send that gradient back through each chunk: through the kept graphs, and through a second forward pass, under
   the same random numbers, for the others.

The loss is therefore the same function on the same vectors whether one chunk or a hundred, one process or many
made them. Chunks are drawn by length, queries and documents together, so that little is padded.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from embedkit.errors import InputError
from embedkit_trainer.collate import Inputs, pack, pad, plan_chunks, rounded
from embedkit_trainer.distributed import Slice, World
from embedkit_trainer.embedding_gradient import in_place_embeddings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedkit_trainer.data.batches import Batch
    from embedkit_trainer.losses.objective import Objective, Outcome


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Say how a batch is cut into forward passes.

    `chunk_tokens` bounds one pass (None: the whole batch at once); `graph_tokens` bounds the chunks that keep
    their graph beside one another (None: one chunk's worth, the memory that step 3 needs anyway). `seed` makes
    each chunk's dropout a pure function of (seed, process, chunk). `frozen_documents` takes the documents' vectors
    from the batch's teacher instead of the model: the queries alone are embedded and trained.
    """

    chunk_tokens: int | None = None
    graph_tokens: int | None = None
    packed: bool = False
    bfloat16: bool = False
    seed: int = 0
    frozen_documents: bool = False


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step found: the global batch's loss, what the objective logs, and the work of this process.

    `tokens` counts real tokens, `padded` the token places that were computed, `recomputed` those of them that
    went forward a second time.
    """

    loss: float
    logs: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    padded: int = 0
    recomputed: int = 0
    chunks: int = 1


@dataclass(frozen=True, slots=True)
class _Cuts:
    """Say which texts of a process go into each chunk, and the token places that the chunk computes."""

    rows: list[NDArray[np.int64]]
    places: list[int]


class _Chunk:
    """One forward pass: which of the process's texts, and, where its graph was kept, their vectors."""

    def __init__(self, rows: NDArray[np.int64], inputs: Inputs, number: int) -> None:
        self.rows = torch.from_numpy(rows).to(inputs.ids.device)
        self.inputs = inputs
        self.number = number
        self.vectors: Tensor | None = None

    @property
    def places(self) -> int:
        """The token places of the pass, padding included."""
        return int(self.inputs.ids.numel())


def train_step(
    model: Any,
    batch: Batch,
    objective: Objective,
    *,
    plan: StepPlan | None = None,
    world: World | None = None,
    scale: float = 1.0,
) -> StepResult:
    """Leave the gradient of `scale` x the global batch's loss in the parameters' `.grad` (added to what is there).

    `model` takes Inputs and returns float32 `[n, dim]`; DDP and FSDP around it leave the mean over the processes,
    which amounts to the gradient of one process on the whole batch. Returns the loss before scaling.
    """
    step = _Step(model, batch, plan or StepPlan(), world or World())
    alone = step.world.size == 1
    with in_place_embeddings(model) if alone else nullcontext():
        local = step.embed()
        gradient, outcome = step.loss(local, objective)
        # DDP and FSDP divide the sum over processes by their number.
        step.send_back(gradient * (scale * step.world.size))
    return step.result(outcome)


class _Step:
    """The chunks of one step on one process, and the three passes over them."""

    def __init__(self, model: Any, batch: Batch, plan: StepPlan, world: World) -> None:
        self.model = model
        self.batch = batch
        self.plan = plan
        self.world = world
        self.device: torch.device = next(model.parameters()).device
        self.slices = world.slices(batch)
        texts = self._texts(self.slices[world.rank])
        self.count = len(texts)
        plans = [self._plan(self._texts(s)) for s in self.slices]
        self.chunks = self._cut(texts, plans)
        self.kept = self.chunks[len(self.chunks) - self._keep(plans) :][::-1]
        # Kept graphs go back first, which frees their memory.
        self.rest = [c for c in self.chunks if c not in self.kept]
        self.last = [*self.kept, *self.rest][-1]

    def embed(self) -> Tensor:
        """Return this process's vectors `[texts, dim]` without a graph; the kept chunks hold theirs with one."""
        parts: list[tuple[_Chunk, Tensor]] = []
        # The bfloat16 copies of the weights are made once a context; those made without a graph must not be met
        # again with one, hence two contexts.
        for group, with_graph in ((self.rest, False), (self.kept, True)):
            with torch.set_grad_enabled(with_graph), self._precision():
                for chunk in group:
                    with self.world.synchronised(self.model, with_graph and chunk is self.last):
                        vectors = self._forward(chunk)
                    chunk.vectors = vectors if with_graph else None
                    parts.append((chunk, vectors.detach()))
        local = torch.empty((self.count, parts[0][1].shape[1]), device=self.device)
        for chunk, vectors in parts:
            if len(chunk.rows):
                local[chunk.rows] = vectors
        return local

    def loss(self, local: Tensor, objective: Objective) -> tuple[Tensor, Outcome]:
        """Return the gradient for this process's texts `[texts, dim]`, and what the objective found."""
        mine = self.slices[self.world.rank]
        split = mine.queries[1] - mine.queries[0]
        gather = self.world.gather
        queries = gather(local[:split], [s.queries[1] - s.queries[0] for s in self.slices])
        if self.plan.frozen_documents:
            documents = self._known_documents()
        else:
            documents = gather(local[split:], [s.documents[1] - s.documents[0] for s in self.slices])
        queries, documents = queries.detach().requires_grad_(), documents.detach().requires_grad_()
        outcome = objective(queries, documents, self.batch)
        parts = torch.autograd.grad(outcome.loss, (queries, documents), allow_unused=True)
        of_queries, of_documents = (
            torch.zeros_like(v) if g is None else g for g, v in zip(parts, (queries, documents), strict=True)
        )
        if self.plan.frozen_documents:
            return of_queries[slice(*mine.queries)], outcome
        return torch.cat([of_queries[slice(*mine.queries)], of_documents[slice(*mine.documents)]]), outcome

    def send_back(self, gradient: Tensor) -> None:
        """Run every chunk's backward pass from the gradient of its vectors."""
        for chunk in self.kept:
            with self.world.synchronised(self.model, chunk is self.last):
                self._backward(chunk, gradient)
        with self._precision():
            for chunk in self.rest:
                with self.world.synchronised(self.model, chunk is self.last):
                    chunk.vectors = self._forward(chunk)
                    self._backward(chunk, gradient)

    def result(self, outcome: Outcome) -> StepResult:
        """Return the figures of the step."""
        real = [c for c in self.chunks if len(c.rows)]
        return StepResult(
            float(outcome.loss.detach()),
            dict(outcome.logs),
            tokens=sum(int(c.inputs.lengths.sum()) for c in real),
            padded=sum(c.places for c in real),
            recomputed=sum(c.places for c in real if c in self.rest),
            chunks=len(real),
        )

    def _known_documents(self) -> Tensor:
        vectors = self.batch.teacher_documents
        if vectors is None:
            raise InputError("frozen documents need the vectors of a teacher: the batch carries none")
        return torch.as_tensor(vectors, device=self.device)

    def _texts(self, share: Slice) -> list[NDArray[np.int32]]:
        if self.plan.frozen_documents:
            return self.batch.queries[slice(*share.queries)]
        return [*self.batch.queries[slice(*share.queries)], *self.batch.documents[slice(*share.documents)]]

    def _plan(self, texts: list[NDArray[np.int32]]) -> _Cuts:
        if not texts:
            return _Cuts([], [])
        lengths = np.fromiter((len(t) for t in texts), np.int64, len(texts))
        if self.plan.bfloat16 and self.device.type == "cpu" and not self.plan.packed:
            lengths = rounded(lengths)
        rows = plan_chunks(lengths, self.plan.chunk_tokens, packed=self.plan.packed)
        cost = [lengths[r].sum() if self.plan.packed else len(r) * lengths[r].max() for r in rows]
        return _Cuts(rows, [int(c) for c in cost])

    def _cut(self, texts: list[NDArray[np.int32]], plans: list[_Cuts]) -> list[_Chunk]:
        """Return this process's chunks, as many as the process with the most has.

        FSDP gathers weights in every forward pass: each process must run the same number of them, so that one
        with fewer chunks (or no texts) runs a short text again, and sends no gradient through it.
        """
        mine = plans[self.world.rank]

        def collate(rows: list[NDArray[np.int32]], places: int = 0) -> Inputs:
            if self.plan.packed:
                return pack(rows, self.device)
            return pad(rows, self.device, width=places // len(rows))

        chunks = [
            _Chunk(r, collate([texts[i] for i in r], places), n)
            for n, (r, places) in enumerate(zip(mine.rows, mine.places, strict=True))
        ]
        most = max(len(p.rows) for p in plans)
        if len(chunks) < most:
            spare = collate([min(self.batch.queries, key=len)])
            chunks += [_Chunk(np.empty(0, np.int64), spare, n) for n in range(len(chunks), most)]
        return chunks

    def _keep(self, plans: list[_Cuts]) -> int:
        """Return how many chunks keep their graph: from the last one on, while they fit; one always.

        Passes forward and backward must alternate in the same way in every process (FSDP gathers weights in both),
        so the process that can keep the fewest decides. DDP sums gradients in the backward pass that follows the
        last forward pass: among several processes, the last of several chunks is run anew just before.
        """
        budget = self.plan.graph_tokens
        if budget is None:
            budget = self.plan.chunk_tokens or 0
        fewest = len(self.chunks)
        for plan in plans:
            costs = [*plan.places, *[0] * (len(self.chunks) - len(plan.places))]
            fewest = min(fewest, int(np.count_nonzero(np.cumsum(costs[::-1]) <= budget)))
        if self.world.size > 1 and 1 < fewest == len(self.chunks):
            fewest -= 1
        return 1 if self.world.one_graph else max(fewest, 1)

    def _forward(self, chunk: _Chunk) -> Tensor:
        torch.manual_seed(_derived(self.plan.seed, self.world.rank, chunk.number))
        vectors: Tensor = self.model(chunk.inputs)
        return vectors

    def _backward(self, chunk: _Chunk, gradient: Tensor) -> None:
        vectors, chunk.vectors = chunk.vectors, None
        assert vectors is not None
        part = gradient[chunk.rows] if len(chunk.rows) else torch.zeros_like(vectors)
        self.world.backward((vectors * part).sum(), chunk is self.last)

    def _precision(self) -> AbstractContextManager[Any]:
        if not self.plan.bfloat16:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def _derived(*numbers: int) -> int:
    return int(np.random.SeedSequence([n & 0xFFFFFFFF for n in numbers]).generate_state(1, np.uint64)[0] >> 1)
