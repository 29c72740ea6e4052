"""Checkpoints of a run: what trains and the optimiser's state, written beside and renamed, the newest few kept.

Nothing else needs storing: the order of batches, the learning rate and the random numbers of dropout are pure
functions of the seed and the step.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit.errors import CheckpointError
from embedkit.syncing import sync_file, sync_folder

if TYPE_CHECKING:
    from torch import Tensor

_STATE = "state.json"
_WEIGHTS = "weights.safetensors"
_OPTIMIZER = "optimizer.pt"
_BEST = "best"
_FORMAT = 1
# torch's zip writer drops the system's error, and says in these words that its file did not grow.
_TORCH_FULL = ("unexpected pos", "PytorchStreamWriter failed writing")


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
    format: int = _FORMAT


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
            (old / _STATE).unlink(missing_ok=True)  # half deleted, it must not count
        for debris in self.folder.glob("*stage*-step*"):  # of this and of killed processes
            if debris.name.startswith(".") or not (debris / _STATE).is_file():
                shutil.rmtree(debris, ignore_errors=True)
        return target

    def save_best(self, progress: Progress, weights: Mapping[str, Tensor]) -> Path:
        """Keep these weights as the best so far, in place of the former."""
        self._write(self.folder / _BEST, progress, weights, None)
        return self.folder / _BEST

    def latest(self) -> Path | None:
        """Return the newest checkpoint, None where there is none."""
        found = self._all()
        return found[-1] if found else None

    def best(self) -> Path | None:
        """Return the best checkpoint by the dev sets, None where there is none."""
        path = self.folder / _BEST
        old = _old(path)
        if not path.exists() and (old / _STATE).is_file():  # killed between the two renames of `_replace`
            old.rename(path)
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
                sync_file(path)
            _replace(fresh, target)
        except Exception as e:  # safetensors and torch wrap the disk's errors in their own
            raise CheckpointError(
                f"the checkpoint {target.name} cannot be written to {target.parent} ({_reason(e)}): "
                f"{_what_is_left(self.latest())}"
            ) from e
        finally:
            shutil.rmtree(fresh, ignore_errors=True)  # Ctrl-C leaves nothing either


def read(path: Path, run: str) -> tuple[Progress, dict[str, Tensor], dict[str, Any] | None]:
    """Return a checkpoint's progress, weights and optimiser state (None in a best one).

    Raises CheckpointError for a file that is missing or altered, and for another run's checkpoint.
    """
    progress = _progress(path)
    if progress.run != run:
        raise CheckpointError(
            f"the checkpoint {path} was written by another config or over other data (run {progress.run}, "
            f"this one is {run}): give another `work` folder, or --fresh to begin anew"
        )
    hashes = progress.hashes or {}
    for name in dict.fromkeys((*hashes, _WEIGHTS)):
        if not (path / name).is_file() or _hash(path / name) != hashes.get(name):
            raise CheckpointError(
                f"{path / name} is missing or altered: remove the folder {path} to go on from an earlier one"
            )
    import torch
    from safetensors.torch import load_file

    optimizer = None
    if _OPTIMIZER in hashes:
        optimizer = torch.load(path / _OPTIMIZER, map_location="cpu", weights_only=True)
    return progress, load_file(path / _WEIGHTS), optimizer


def _progress(path: Path) -> Progress:
    """Return what state.json says, its types and signs checked: a hand may have edited it."""
    try:
        record = json.loads((path / _STATE).read_text(encoding="utf-8"))
        progress = Progress(**record)
        best = progress.best
        if (
            not all(type(n) is int and n >= 0 for n in (progress.stage, progress.step))
            or not isinstance(progress.hashes, dict)
            or not (best is None or isinstance(best, int | float))
            or progress.format != _FORMAT
            or (path.name != _BEST and path.name != _name(progress))
        ):
            raise ValueError("its values are none that a run has written")
    except (OSError, ValueError, TypeError) as e:
        raise CheckpointError(
            f"{path / _STATE} cannot be read ({e}): remove the folder {path} to go on from an earlier one"
        ) from e
    return progress


def _name(progress: Progress) -> str:
    return f"stage{progress.stage:02d}-step{progress.step:08d}"


def _hash(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "blake2b").hexdigest()[:32]


def _replace(fresh: Path, target: Path) -> None:
    """Put `fresh` in the place of `target`; at every moment one of both is whole."""
    old = _old(target)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _reason(error: Exception) -> str:
    text = str(error)
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(
        words in text for words in ("No space left", *_TORCH_FULL)
    )
    return "the disk is full" if full else f"{type(error).__name__}: {text}"


def _what_is_left(latest: Path | None) -> str:
    if latest is None:
        return "make room and start again"
    return f"make room and run the same command again; it goes on from {latest.name}"
