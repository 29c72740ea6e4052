"""One stage of a run: its steps, its dev sets, its checkpoints, and what it tells."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit.errors import TrainingError
from embedkit_trainer.events import DevEvent, Listener, NoteEvent, StepEvent
from embedkit_trainer.interrupt import StopRequest
from embedkit_trainer.optimization import (
    build_optimizer,
    keep_tokens,
    lr_factor,
    select_trainable,
    set_lr,
    trainable_names,
)
from embedkit_trainer.saving.checkpoint import Checkpoints, Progress

if TYPE_CHECKING:
    from embedkit_trainer.backend import Backend
    from embedkit_trainer.config.records import DevConfig, RunConfig, StageConfig
    from embedkit_trainer.distributed import World
    from embedkit_trainer.gradcache import StepPlan, StepResult
    from embedkit_trainer.stage import Stage

METRICS = "metrics.jsonl"
_IDLE = 10  # steps without any gradient after which a stage is given up
_WARM = 3  # steps left out of the forecast: the first ones pay for start-up


@dataclass
class RunState:
    """Hold what the stages of a run share.

    `run_id` stands for config and data, `could_train` names the weights that a stage may train, `trained` those
    that any stage does. `total_steps` counts what this process has done.
    """

    config: RunConfig
    backend: Backend
    stop: StopRequest
    listener: Listener
    checkpoints: Checkpoints
    work: Path
    stages: list[Stage]
    run_id: str
    could_train: list[str] = field(default_factory=list)
    trained: set[str] = field(default_factory=set)
    total_steps: int = 0

    @property
    def world(self) -> World:
        """The processes of the run."""
        return self.backend.world

    @property
    def packing(self) -> bool:
        """Whether rows are packed: attention is chosen once, for all stages."""
        return any(s.packing for s in self.config.stages)

    @property
    def dev_id(self) -> str:
        """What stands for the dev sets: runs whose means compare have the same."""
        return dev_fingerprint(self.config.dev)

    def note(self, text: str) -> None:
        """Tell the user a sentence, once over all processes."""
        if self.world.main:
            self.listener(NoteEvent(text))


class StageRun:
    """One stage of a run."""

    def __init__(self, run: RunState, stage: Stage, number: int, model: Any) -> None:
        self.run_ = run
        self.stage = stage
        self.config: StageConfig = stage.config
        self.number = number
        from embedkit_trainer.model import checkpoint_activations, keep_activations

        plain = run.backend.unwrapped(model)
        if self.config.gradient_checkpointing:
            checkpoint_activations(plain.backbone)
        elif number:  # an earlier stage may have asked for it
            keep_activations(plain.backbone)
        select_trainable(plain, trainable_names(run.could_train, self.config.trainable))
        self.optimizer: Any = build_optimizer(plain, self.config.optimizer)
        self.model, self.optimizer = run.backend.prepare(plain, self.optimizer)
        self.stopped = False
        # Trackers count on through the stages: one that is told an earlier step forgets what it is told.
        self._before = sum(s.steps for s in run.stages[:number])
        self._learning = False
        self._seconds: list[float] = []

    def run(self, progress: Progress, optimizer_state: dict[str, Any] | None) -> float | None:
        """Run the steps that are left; return the best dev mean, None without dev sets."""
        run = self.run_
        best = progress.best if progress.dev == run.dev_id else None
        if progress.step >= self.stage.steps:
            return best
        self._worst()  # before the optimiser's state is there, which the forecast adds
        if optimizer_state is not None:
            run.backend.load_optimizer_state(self.optimizer, optimizer_state)
        dev = run.config.dev
        if dev is not None and best is None:
            best = self._dev(progress.step, best)
        before = self._fingerprints() if progress.step == 0 else None
        for step in range(progress.step + 1, self.stage.steps + 1):
            self._step(step)
            run.total_steps += 1
            if before is not None:
                self._require_moved(before)
                before = None
            last = step == self.stage.steps
            if dev is not None and (step % dev.every == 0 or last):
                best = self._dev(step, best)
            self.stopped = run.world.any(run.stop.wanted) and not last
            if self.stopped or last or step % run.config.save_every == 0:
                self._save(step, best)
            if self.stopped:
                run.note(
                    f"stopped after step {step} of {self.stage.steps}: the same command goes on from there"
                )
                break
        return best

    def _step(self, step: int) -> None:
        """Do one optimiser step: `accumulation` batches, one after another."""
        run, count = self.run_, self.config.accumulation
        started = time.perf_counter()
        factor = lr_factor(self.config.optimizer, step, self.stage.steps)
        lr = set_lr(self.optimizer, factor)
        results = []
        for part in range(count):
            number = (step - 1) * count + part
            results.append(self._forward_backward(number, 1 / count))
            if not math.isfinite(results[-1].loss):
                raise TrainingError(self._blame(step, number, results[-1].loss))
        if self.config.train_tokens_from:
            keep_tokens(run.backend.unwrapped(self.model).backbone, self.config.train_tokens_from)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        norm = run.backend.clip(parameters, self.config.optimizer.max_grad_norm or math.inf)
        if not math.isfinite(norm):
            raise TrainingError(self._blame(step, (step - 1) * count, norm, "gradient norm"))
        # DeepSpeed tells no norm before its step.
        self._learning |= norm > 0 or run.backend.kind == "deepspeed"
        if not self._learning and len(self._seconds) + 1 >= min(_IDLE, self.stage.steps):
            raise TrainingError(self._why_idle(results[-1].logs))
        run.backend.step(self.optimizer)
        self._seconds.append(time.perf_counter() - started)
        self._tell(step, lr, norm, results)

    def _forward_backward(self, number: int, scale: float) -> StepResult:
        from embedkit_trainer.gradcache import train_step

        batch = self.stage.batch(number)
        plan = replace(self._plan(), seed=hash_seed(self.run_.config.seed, self.number, number))
        return train_step(
            self.model, batch, self.stage.objective, plan=plan, world=self.run_.world, scale=scale
        )

    def _plan(self) -> StepPlan:
        from embedkit_trainer.gradcache import StepPlan

        return StepPlan(
            self.stage.chunk_tokens(self.run_.backend.device.type),
            self.config.graph_tokens,
            self.run_.packing,
            self.run_.config.precision == "bfloat16",
            frozen_documents=self.config.frozen_documents,
        )

    def _worst(self) -> None:
        """Run the most expensive batch that can come, so that memory fails now or never."""
        import torch

        from embedkit_trainer.forecast import describe_worst, measured_memory, out_of_memory

        run, batch = self.run_, self.stage.worst_batch()
        from embedkit_trainer.gradcache import train_step

        started = time.perf_counter()
        with measured_memory(run.backend.device) as memory:
            try:
                train_step(self.model, batch, self.stage.objective, plan=self._plan(), world=run.world)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as e:
                if not isinstance(e, torch.OutOfMemoryError | MemoryError) and "alloc" not in str(e):
                    raise
                raise TrainingError(out_of_memory(batch, self.config, self._plan())) from e
        run.backend.clear(self.optimizer)
        seconds = time.perf_counter() - started
        run.note(describe_worst(self.stage, batch, memory, seconds, self.model))

    def _dev(self, step: int, best: float | None) -> float | None:
        """Measure the dev sets, keep the weights if they are the best; return the best mean so far."""
        from embedkit_trainer.dev import encode, score

        run, plan = self.run_, self._plan()

        def embed(rows: list[list[int]]) -> Any:
            budget = plan.chunk_tokens or 4096
            return encode(self.model, rows, chunk_tokens=budget, packed=plan.packed, bfloat16=plan.bfloat16)

        scores = {d.name: score(d, embed(d.queries), embed(d.documents)) for d in self.stage.dev_sets}
        run.backend.reshard(self.model)
        mean = sum(scores.values()) / len(scores)
        better = best is None or mean > best
        weights = run.backend.weights(self.model, run.trained) if better else {}
        if run.world.main:
            if better:
                run.checkpoints.save_best(Progress(run.run_id, self.number, step, mean, run.dev_id), weights)
            event = DevEvent(self.config.name, step, scores, mean, better)
            run.listener(event)
            self._record(asdict(event))
            run.backend.log({f"nDCG@10/{n}": s for n, s in scores.items()}, self._before + step)
        return mean if better else best

    def _save(self, step: int, best: float | None) -> None:
        run = self.run_
        weights = run.backend.weights(self.model, run.trained)
        state = run.backend.optimizer_state(self.optimizer)
        if run.world.main:
            run.checkpoints.save(Progress(run.run_id, self.number, step, best, run.dev_id), weights, state)
        run.world.wait()

    def _tell(self, step: int, lr: float, norm: float, results: list[StepResult]) -> None:
        run = self.run_
        last = results[-1]
        logs = self.stage.name_sources(last.logs)
        loss = sum(r.loss for r in results) / len(results)
        steady = self._seconds[_WARM:] or self._seconds
        left = sum(steady) / len(steady) * (self.stage.steps - step)
        tokens = sum(r.tokens for r in results) * run.world.size
        negatives = logs.get("negatives_per_query", 0.0)
        event = StepEvent(
            self.config.name, step, self.stage.steps, loss, lr, tokens / self._seconds[-1], negatives, norm, left,
            logs,
        )  # fmt: skip
        if not run.world.main:
            return
        self._record(asdict(event))
        run.backend.log({"loss": loss, "lr": lr, "grad_norm": norm, **logs}, self._before + step)
        if step % run.config.log_every == 0 or step in (1, self.stage.steps):
            run.listener(event)

    def _record(self, record: dict[str, Any]) -> None:
        """Append figures to metrics.jsonl; a resumed run writes the steps it repeats again, the later line counts."""
        path = self.run_.work / METRICS
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as f:
            f.write(json.dumps(record) + "\n")

    def _blame(self, step: int, number: int, value: float, what: str = "loss") -> str:
        latest = self.run_.checkpoints.latest()
        kept = f"the last good checkpoint is {latest}" if latest else "no checkpoint was written yet"
        rows = self.stage.describe_rows(number)
        return (
            f"stage {self.config.name!r}, step {step}: the {what} is {value}; its batch holds {rows}; {kept}. "
            "Lower the learning rate, use float32, or look at these rows"
        )

    def _why_idle(self, logs: Mapping[str, float]) -> str:
        contrastive = self.config.loss.name in ("info_nce", "gte", "simcse")
        alone = contrastive and logs.get("negatives_per_query") == 0
        why = (
            "no query has a document to be told from: each is alone in its batch, or all are masked as the same text"
            if alone
            else "no batch holds rows that the loss tells apart (are all scores equal?)"
        )
        advice = "give rows that differ, negatives, or a larger batch_size"
        return f"stage {self.config.name!r}: the gradient is zero at every step, nothing is learned: {why}; {advice}"

    def _fingerprints(self) -> Any:
        from embedkit_trainer.adapters import remember

        return remember(self.run_.backend.unwrapped(self.model))

    def _require_moved(self, before: Any) -> None:
        from embedkit_trainer.adapters import require_moved

        require_moved(self.run_.backend.unwrapped(self.model), before)


def dev_fingerprint(dev: DevConfig | None) -> str:
    """Return what stands for the dev sets: runs whose means compare have the same; "" without any."""
    if dev is None:
        return ""
    fields = json.dumps([dev.folders, dev.tasks, dev.instructions, dev.queries])
    return hashlib.sha256(fields.encode()).hexdigest()[:16]


def hash_seed(*numbers: int) -> int:
    """Return 32 bits that are a pure function of the numbers."""
    import numpy as np

    return int(np.random.SeedSequence(list(numbers)).generate_state(1)[0])
