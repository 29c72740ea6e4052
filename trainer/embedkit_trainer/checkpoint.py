"""Checkpoints of a run: what trains and the optimiser's state, written beside and renamed, the newest few kept.

Nothing else needs storing: the order of batches, the learning rate and the random numbers of dropout are pure
functions of the seed and the step.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_STATE = "state.json"
_WEIGHTS = "weights.safetensors"
_OPTIMIZER = "optimizer.pt"


@dataclass(frozen=True, slots=True)
class Progress:
    """Say how far a run is: `step` steps of stage number `stage` are done; `best` is the best dev mean so far.

    `run` is the fingerprint of the config and data; `format` that of the files. `hashes` guards the files beside.
    `dev` stands for the dev sets that `best` was measured on: means over others do not compare.
    """

    run: str
    stage: int
    step: int
    best: float | None = None
    dev: str = ""
    hashes: Mapping[str, str] | None = None
    format: int = 1


class Checkpoints:
    """The checkpoint folder of one run."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self._keep = max(keep, 1)

    def save(
        self, progress: Progress, weights: Mapping[str, Tensor], optimizer: Mapping[str, Any] | None
    ) -> Path:
        """Write a checkpoint and drop the oldest beyond those kept.

        Raises CheckpointError where the disk refuses; the earlier checkpoints are untouched then.
        """
        target = self.folder / _name(progress)
        self._write(target, progress, weights, optimizer)
        for old in self._all()[: -self._keep]:
            shutil.rmtree(old, ignore_errors=True)
        return target

    def save_best(self, progress: Progress, weights: Mapping[str, Tensor]) -> Path:
        """Keep these weights as the best so far, in place of the former."""
        self._write(self.folder / "best", progress, weights, None)
        return self.folder / "best"

    def latest(self) -> Path | None:
        """Return the newest checkpoint, None where there is none."""
        found = self._all()
        return found[-1] if found else None

    def best(self) -> Path | None:
        """Return the best checkpoint by the dev sets, None where there is none."""
        path = self.folder / "best"
        return path if (path / _STATE).is_file() else None

    def clear(self) -> None:
        """Remove all checkpoints of this run."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _all(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        found = [p for p in self.folder.glob("stage*-step*") if (p / _STATE).is_file()]
        return sorted(found, key=lambda p: p.name)

    def _write(
        self,
        target: Path,
        progress: Progress,
        weights: Mapping[str, Tensor],
        optimizer: Mapping[str, Any] | None,
    ) -> None:
        import torch
        from safetensors.torch import save_file

        fresh = target.with_name(f".{target.name}.part")
        try:
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
            save_file({k: v.contiguous() for k, v in weights.items()}, fresh / _WEIGHTS)
            if optimizer is not None:
                torch.save(optimizer, fresh / _OPTIMIZER)
            hashes = {p.name: _hash(p) for p in sorted(fresh.iterdir())}
            record = asdict(progress) | {"hashes": hashes}
            (fresh / _STATE).write_text(json.dumps(record, indent=1), encoding="utf-8")
            for path in fresh.iterdir():
                _sync(path)
            _replace(fresh, target)
        except Exception as e:  # safetensors and torch wrap the disk's errors in their own
            shutil.rmtree(fresh, ignore_errors=True)
            raise CheckpointError(
                f"the checkpoint {target.name} cannot be written to {target.parent} ({_reason(e)}): "
                f"{_what_is_left(self.latest())}"
            ) from e


def read(path: Path, run: str) -> tuple[Progress, dict[str, Tensor], dict[str, Any] | None]:
    """Return a checkpoint's progress, weights and optimiser state (None in a best one).

    Raises CheckpointError for a file that is missing or altered, and for another run's checkpoint.
    """
    import torch
    from safetensors.torch import load_file

    try:
        progress = Progress(**json.loads((path / _STATE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as e:
        raise CheckpointError(f"{path / _STATE} cannot be read ({e}): remove the folder {path}") from e
    if progress.run != run:
        raise CheckpointError(
            f"the checkpoint {path} was written by another config or over other data (run {progress.run}, "
            f"this one is {run}): give another `work` folder, or --fresh to begin anew"
        )
    for name, wanted in (progress.hashes or {}).items():
        if not (path / name).is_file() or _hash(path / name) != wanted:
            raise CheckpointError(
                f"{path / name} is missing or altered: remove the folder {path} to go on from an earlier one"
            )
    optimizer = None
    if (path / _OPTIMIZER).is_file():
        optimizer = torch.load(path / _OPTIMIZER, map_location="cpu", weights_only=True)
    return progress, load_file(path / _WEIGHTS), optimizer


def _name(progress: Progress) -> str:
    return f"stage{progress.stage:02d}-step{progress.step:08d}"


def _hash(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "blake2b").hexdigest()[:32]


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace(fresh: Path, target: Path) -> None:
    """Put `fresh` in the place of `target`; at every moment one of both is whole."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _reason(error: Exception) -> str:
    text = str(error)
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in text
    return "the disk is full" if full else f"{type(error).__name__}: {text}"


def _what_is_left(latest: Path | None) -> str:
    if latest is None:
        return "make room and start again"
    return f"make room and run the same command again; it goes on from {latest.name}"
