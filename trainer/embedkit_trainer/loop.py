"""Training as the papers' steps: for each stage, draw the batch, embed, take the loss, send it back, step.

    report = train(load_config("e5-mistral-synthetic"))

Everything random is a pure function of the seed and the step, so that a run that was stopped goes on exactly
where it was.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit.errors import MissingExtraError
from embedkit_trainer.backend import Backend, load_weights, work_folder
from embedkit_trainer.data.vocabulary import check_vocabulary
from embedkit_trainer.events import Listener, NoteEvent, TrainReport
from embedkit_trainer.interrupt import StopRequest
from embedkit_trainer.optimization import trainable_names
from embedkit_trainer.saving.checkpoint import Checkpoints, Progress, read
from embedkit_trainer.saving.lock import only_run
from embedkit_trainer.stage_run import METRICS, RunState, StageRun

if TYPE_CHECKING:
    from embedkit_trainer.config.records import RunConfig


def train(config: RunConfig, listener: Listener | None = None, *, fresh: bool = False) -> TrainReport:
    """Run all stages and save the model to `config.output`.

    A run whose work folder holds a checkpoint goes on from there, with the same batches and the same numbers;
    `fresh` removes the checkpoints first. SIGINT and SIGTERM save a checkpoint and return with `stopped`.
    Raises InputError for what the config or the data lacks, CheckpointError for a checkpoint that cannot be read
    or written, TrainingError where training itself goes wrong, MissingExtraError without the extra [train].
    """
    try:
        import torch
        import transformers
    except ImportError as e:
        raise MissingExtraError("training", "train") from e
    del torch, transformers
    from embedkit_trainer.forecast import enough_memory

    tell: Listener = listener or (lambda _: None)

    def heard() -> None:
        if os.environ.get("RANK", "0") == "0":  # every process hears it, one says so
            tell(NoteEvent("stopping: a checkpoint is saved after this step; Ctrl-C once more ends at once"))

    with StopRequest(heard) as stop, only_run(work_folder(config)), enough_memory():
        return _Run(config, tell, stop).run(fresh)


class _Run:
    """One run: the model, the stages and what is done of them."""

    def __init__(self, config: RunConfig, listener: Listener, stop: StopRequest) -> None:
        from embedkit_trainer.saving.finish import check_finish
        from embedkit_trainer.stage import open_stages

        self.config = config
        self.started = time.perf_counter()
        self.backend = Backend(config)
        self.world = self.backend.world
        work = work_folder(config)

        def note(text: str) -> None:
            if self.world.main:
                listener(NoteEvent(text))

        # Data first: what is wrong with it shows before the weights are read.
        self.opened, stages, run_id = open_stages(config, note)
        check_finish(config, self.opened, stages)
        checkpoints = Checkpoints(work / "checkpoints", config.keep)
        self.state = RunState(config, self.backend, stop, listener, checkpoints, work, stages, run_id)

    def run(self, fresh: bool) -> TrainReport:
        """Run what is left of the stages and save the model."""
        state = self.state
        if fresh and self.world.main:
            state.checkpoints.clear()
            (state.work / METRICS).unlink(missing_ok=True)
        self.world.wait()
        model = self._load(self.backend.device)
        embeddings = model.backbone.get_input_embeddings().weight.shape[0]
        check_vocabulary(state.stages, self.opened.tokens.tokenizer, embeddings)
        state.could_train = [n for n, p in model.named_parameters() if p.requires_grad]
        state.trained = {
            n for stage in self.config.stages for n in trainable_names(state.could_train, stage.trainable)
        }
        progress, optimizer_state = self._resume(model)
        best: float | None = None
        for number, stage in enumerate(state.stages):
            if number < progress.stage:
                continue
            if number > progress.stage:
                progress, optimizer_state = Progress(state.run_id, number, 0), None
            runner = StageRun(state, stage, number, model)
            best = runner.run(progress, optimizer_state)
            model = runner.model
            if runner.stopped:
                self.backend.end()
                seconds = time.perf_counter() - self.started
                return TrainReport(state.checkpoints.folder, state.total_steps, seconds, best, True)
        return self._finish(model, best)

    def _load(self, device: Any) -> Any:
        import torch

        from embedkit_trainer.model import load_model

        torch.manual_seed(
            self.config.seed
        )  # an adapter begins at random, at the same weights in every process
        stages = self.config.stages
        return load_model(
            self.config.model,
            max(s.query_length for s in stages),
            max(s.document_length for s in stages),
            precision=self.config.precision,
            device=device,
            packing=self.state.packing,
        ).model

    def _resume(self, model: Any) -> tuple[Progress, dict[str, Any] | None]:
        latest = self.state.checkpoints.latest()
        if latest is None:
            return Progress(self.state.run_id, 0, 0), None
        progress, weights, optimizer_state = read(latest, self.state.run_id)
        load_weights(model, weights)
        stage = self.config.stages[progress.stage].name
        self.state.note(f"going on from {latest.name}: {progress.step} steps of stage {stage!r} are done")
        return progress, optimizer_state

    def _finish(self, model: Any, best: float | None) -> TrainReport:
        """Save the best weights of the last stage (the last ones, without dev sets) as the finished model."""
        from embedkit_trainer.saving.finish import save_finished

        weights = self.backend.weights(model, self.state.trained)
        if self.world.main:
            kept = self.state.checkpoints.best()
            metrics = {}
            if self.config.dev is not None and kept is not None and best is not None:
                progress, weights, _ = read(kept, self.state.run_id)
                metrics = {"nDCG@10 dev": best}
                self.state.note(f"the best weights are those after step {progress.step} (nDCG@10 {best:.4f})")
            plain = self._whole_model() if self.backend.sharded else self.backend.unwrapped(model)
            load_weights(plain, weights)
            save_finished(self.config, self.opened, self.state.stages, plain, metrics=metrics)
        self.world.wait()
        self.backend.end()
        seconds = time.perf_counter() - self.started
        return TrainReport(Path(self.config.output), self.state.total_steps, seconds, best, False)

    def _whole_model(self) -> Any:
        """Load the base once more, in one process: where each holds a share, none could compute a vector alone."""
        return self._load(self.backend.device if self.config.model.tuning == "qlora" else "cpu")
