"""What each of several processes runs, started by torchrun from test_distributed.py: `worker.py BACKEND FOLDER`.

It computes gradients, then trains every config that lies in the folder; what it found is put there.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from embedkit_trainer.backend import Backend
from embedkit_trainer.config.records import LossConfig, RunConfig, StageConfig
from embedkit_trainer.events import Event, NoteEvent
from embedkit_trainer.gradcache import StepPlan, train_step
from embedkit_trainer.loop import train
from embedkit_trainer.losses.objective import build_objective
from tests.trainer.tiny_backbones import tiny_model, token_batch

PLANS = (StepPlan(), StepPlan(40, 10_000), StepPlan(40), StepPlan(40, 90))
#: Rows of uneven size: even shares of rows, uneven shares of texts and chunks; the last leaves a process without any.
BATCHES = ((2, 1, 3, 1, 2, 1), (9, 1, 1), (2,))
MODELS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("Bert", {}),
    ("Mistral", {"packed": True, "lora": 0.0, "checkpointing": True}),
)


def loss_config() -> LossConfig:
    """Return the loss that workers and the test compare gradients of."""
    return LossConfig("info_nce", temperature=0.1)


def compare_gradients(kind: Any, folder: Path) -> None:
    """Save the gradient of every model, plan and batch, whole, as (loss, gradients by name)."""
    backend = Backend(RunConfig(device="cpu", backend=kind, stages=(StageConfig(),)))
    found = {}
    for family, options in MODELS:
        model: Any = tiny_model(family, **options)
        backend._prepared = False
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        model, optimizer = backend.prepare(model, optimizer)
        for i, plan in enumerate(PLANS):
            for j, counts in enumerate(BATCHES):
                model.zero_grad(set_to_none=True)
                result = train_step(
                    model,
                    token_batch(counts),
                    build_objective(loss_config()),
                    plan=replace(plan, packed=options.get("packed", False)),
                    world=backend.world,
                )
                parts = []
                for parameter in backend.unwrapped(model).parameters():
                    if parameter.requires_grad:
                        grad = parameter.grad
                        whole = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
                        parts.append(whole.double().reshape(-1))
                found[family, i, j] = result.loss, torch.cat(parts)
    if backend.world.main:
        torch.save(found, folder / "gradients.pt")


def train_twice(path: Path) -> None:
    """Train as the pickled config says; the second process gets a SIGTERM at step 3, and both go on from there."""
    config: RunConfig = pickle.loads(path.read_bytes())
    rank = int(os.environ["RANK"])
    notes: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, NoteEvent):
            notes.append(event.text)

    steps, step = 0, torch.optim.AdamW.step

    def counted(self: Any, *args: Any, **options: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 3 and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **options)

    torch.optim.AdamW.step = counted  # type: ignore[method-assign]
    first = train(config, listen)
    torch.optim.AdamW.step = step  # type: ignore[method-assign]
    second = train(config, listen)
    path.with_suffix(f".report{rank}").write_bytes(pickle.dumps((first, second, notes)))


def main() -> None:
    """Do everything, one thread each."""
    torch.set_num_threads(1)
    kind, folder = sys.argv[1], Path(sys.argv[2])
    compare_gradients(kind, folder)
    for path in sorted(folder.glob("*.pickle")):
        train_twice(path)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
