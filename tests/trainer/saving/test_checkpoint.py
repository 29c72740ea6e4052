"""Checkpoints: whole or absent, the newest kept, another run's or a damaged one refused."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from embedkit.errors import CheckpointError
from embedkit_trainer.saving.checkpoint import Checkpoints, Progress, read

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}


def _optimizer() -> dict[str, Any]:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([{"params": [parameter], "peak_lr": 0.5}])
    parameter.grad = torch.ones(3)
    optimizer.step()
    return optimizer.state_dict()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Progress, weights of any dtype, views among them, and the optimiser's state come back exactly."""
    checkpoints, state = Checkpoints(tmp_path / "deep" / "er"), _optimizer()
    path = checkpoints.save(Progress("run", 1, 20, 0.5), {**WEIGHTS, "view": WEIGHTS["a.weight"].T}, state)
    progress, weights, optimizer = read(path, "run")
    assert (progress.run, progress.stage, progress.step, progress.best) == ("run", 1, 20, 0.5)
    assert torch.equal(weights["a.weight"], WEIGHTS["a.weight"])
    assert torch.equal(weights["view"], WEIGHTS["a.weight"].T)
    assert weights["b"].dtype == torch.bfloat16
    assert optimizer is not None
    assert optimizer["param_groups"] == state["param_groups"]
    assert torch.equal(optimizer["state"][0]["exp_avg"], state["state"][0]["exp_avg"])


def test_the_newest_are_kept(tmp_path: Path) -> None:
    """As many as asked for stay, by stage and then step; the best one is beside them and does not count."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() is None
    assert checkpoints.best() is None
    checkpoints.save_best(Progress("run", 0, 2, 0.7), WEIGHTS)
    for stage, step in ((0, 5), (0, 1000), (1, 1)):
        checkpoints.save(Progress("run", stage, step), WEIGHTS, None)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "best",
        "stage00-step00001000",
        "stage01-step00000001",
    ]
    assert checkpoints.latest() == tmp_path / "stage01-step00000001"
    best = checkpoints.best()
    assert best is not None
    progress, _, optimizer = read(best, "run")
    assert (progress.best, optimizer) == (0.7, None)
    checkpoints.clear()
    assert checkpoints.latest() is None


def test_a_better_one_replaces_the_best(tmp_path: Path) -> None:
    """The best checkpoint is one folder, with the weights given last."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_best(Progress("run", 0, 2, 0.7), WEIGHTS)
    path = checkpoints.save_best(Progress("run", 0, 4, 0.8), {"c": torch.zeros(1)})
    assert read(path, "run")[1].keys() == {"c"}
    assert [p.name for p in tmp_path.iterdir()] == ["best"]


def test_an_unfinished_one_does_not_count(tmp_path: Path) -> None:
    """A folder that a killed process left behind is neither the latest nor in the way."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(Progress("run", 0, 1), WEIGHTS, None)
    left = tmp_path / ".stage00-step00000002.part"
    left.mkdir()
    (left / "weights.safetensors").write_bytes(b"half")
    (tmp_path / "stage00-step00000003").mkdir()  # nor one without its state
    assert checkpoints.latest() == tmp_path / "stage00-step00000001"
    path = checkpoints.save(Progress("run", 0, 2), WEIGHTS, None)
    assert torch.equal(read(path, "run")[1]["a.weight"], WEIGHTS["a.weight"])
    assert not left.exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.pt"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, damage: str) -> None:
    """A byte that changed, a file cut short and one that is gone are found before anything is loaded."""
    path = Checkpoints(tmp_path).save(Progress("run", 0, 1), WEIGHTS, _optimizer())
    content = bytearray((path / name).read_bytes())
    if damage == "remove":
        (path / name).unlink()
    else:
        content[len(content) // 2] ^= 4
        (path / name).write_bytes(content if damage == "flip" else content[:-3])
    with pytest.raises(
        CheckpointError, match=rf"{name.replace('.', '[.]')} is missing or altered: remove the folder"
    ):
        read(path, "run")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"run": "run", "other": 1}'])
def test_a_broken_state_is_named(tmp_path: Path, text: str) -> None:
    """A state file that is empty, of another shape or of another version is a sentence, not a traceback."""
    path = Checkpoints(tmp_path).save(Progress("run", 0, 1), WEIGHTS, None)
    (path / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"state\.json cannot be read"):
        read(path, "run")


def test_another_run_is_refused(tmp_path: Path) -> None:
    """A checkpoint of another fingerprint names both, and the ways out."""
    path = Checkpoints(tmp_path).save(Progress("aaa", 0, 1), WEIGHTS, None)
    with pytest.raises(CheckpointError, match="run aaa, this one is bbb.*--fresh"):
        read(path, "bbb")


def test_a_full_disk_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk is full the error says so and which checkpoint is left; nothing half-written stays."""
    checkpoints = Checkpoints(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("torch.save", _full)
        with pytest.raises(CheckpointError, match="the disk is full.*make room and start again"):
            checkpoints.save(Progress("run", 0, 1), WEIGHTS, _optimizer())
        assert list(tmp_path.iterdir()) == []
    checkpoints.save(Progress("run", 0, 1), WEIGHTS, None)
    monkeypatch.setattr("torch.save", _full)
    with pytest.raises(CheckpointError, match="goes on from stage00-step00000001"):
        checkpoints.save(Progress("run", 0, 2), WEIGHTS, _optimizer())
    assert [p.name for p in tmp_path.iterdir()] == ["stage00-step00000001"]
    assert json.loads((tmp_path / "stage00-step00000001" / "state.json").read_text())["step"] == 1


def _full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "change", [{"step": -5}, {"step": "1"}, {"stage": 7}, {"stage": True}, {"hashes": None}, {"format": 2}, {"best": "x"}]
)  # fmt: skip
def test_an_edited_state_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    """Values that no run writes are a sentence, not an error somewhere in the loop."""
    path = Checkpoints(tmp_path).save(Progress("run", 0, 1), WEIGHTS, None)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(state | change))
    with pytest.raises(CheckpointError, match="none that a run has written"):
        read(path, "run")


def test_weights_without_a_hash_are_refused(tmp_path: Path) -> None:
    """A state that vouches for no weights does not let any through, and an optimiser's state beside it is not read."""
    path = Checkpoints(tmp_path).save(Progress("run", 0, 1), WEIGHTS, None)
    (path / "optimizer.pt").write_bytes(b"")
    assert read(path, "run")[2] is None
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(state | {"hashes": {}}))
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is missing or altered"):
        read(path, "run")


def test_a_full_disk_under_torch_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's writer hides the system's error behind "unexpected pos": the sentence still says that the disk is full."""

    def fail(*_: Any) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 30144 vs 30036")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(CheckpointError, match="the disk is full"):
        Checkpoints(tmp_path).save(Progress("run", 0, 1), WEIGHTS, _optimizer())


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second Ctrl-C in the middle of a checkpoint removes what was written of it, and keeps the one before."""
    checkpoints = Checkpoints(tmp_path)
    before = checkpoints.save(Progress("run", 0, 1), WEIGHTS, None)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(Progress("run", 0, 2), WEIGHTS, _optimizer())
    assert list(tmp_path.iterdir()) == [before]


def test_a_kill_between_two_renames_loses_no_best(tmp_path: Path) -> None:
    """A run that dies while the best is replaced finds the former best again."""
    checkpoints = Checkpoints(tmp_path)
    best = checkpoints.save_best(Progress("run", 0, 2, 0.7), WEIGHTS)
    best.rename(tmp_path / ".best.old")
    found = checkpoints.best()
    assert found == best
    assert read(found, "run")[0].best == 0.7


def test_what_a_kill_left_half_deleted_goes(tmp_path: Path) -> None:
    """A checkpoint that a killed process was writing or deleting takes no room after the next one."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    for name in (".stage00-step00000001.part", "stage00-step00000002", ".stage00-step00000003.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.safetensors").write_bytes(b"x")
    best = checkpoints.save_best(Progress("run", 0, 2, 0.7), WEIGHTS)
    latest = checkpoints.save(Progress("run", 0, 4), WEIGHTS, None)
    assert sorted(tmp_path.iterdir()) == [best, latest]
