"""What a run that was killed leaves beside its output: real processes, real SIGKILL."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from embedkit_trainer.synthesis.filters.duplicates import DuplicateFilter
from embedkit_trainer.synthesis.filters.leftovers import clear
from embedkit_trainer.synthesis.filters.output import Target
from embedkit_trainer.synthesis.filters.pipeline import filter_rows
from tests.trainer.synthesis.made_rows import read, write

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")


def _start(rows: Path, output: Path, moves: int = 99, begun: Callable[[], None] = lambda: None) -> int:
    """Start a process that filters, and kills itself once it has moved so many files or folders into place."""
    process = os.fork()
    if process:
        return process
    rename = Path.rename
    done: list[Path] = []

    def counted(self: Path, target: Path) -> Path:
        if len(done) == moves:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(target)
        return rename(self, target)

    try:
        Path.rename = counted  # type: ignore[method-assign, assignment]
        target = Target.of(rows, output, replace=True)
        filter_rows(target, [DuplicateFilter()], watch=lambda n: begun() if n == 1024 else None)
        os._exit(0)
    finally:
        os._exit(1)


def _status(process: int) -> int:
    """Wait for the end of a process; what is negative is a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _hidden(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.startswith(".")]


def _rows(path: Path, *texts: str) -> Path:
    return write(path, *({"query": text, "positive": f"answer to {text}"} for text in texts))


def test_the_next_run_clears_away_what_dead_runs_left_and_nothing_of_live_ones(tmp_path: Path) -> None:
    """A stopped run is alive, and its folder stays; once it is killed the next run removes it. Other outputs' stay."""
    many = _rows(tmp_path / "many.jsonl", *map(str, range(3000)))
    few = _rows(tmp_path / "few.jsonl", "a", "b")
    output, other = tmp_path / "out.jsonl", tmp_path / ".0123abcd.my-out.jsonl"
    other.mkdir()
    run = _start(many, output, begun=lambda: os.kill(os.getpid(), signal.SIGSTOP))
    try:
        assert os.WIFSTOPPED(os.waitpid(run, os.WUNTRACED)[1])
        (living,) = set(_hidden(tmp_path)) - {other.name}
        filter_rows(Target.of(few, output), [DuplicateFilter()])
        assert (tmp_path / living / "kept").is_dir()
    finally:
        os.kill(run, signal.SIGKILL)
        assert _status(run) == -signal.SIGKILL
    assert (tmp_path / living / "kept").is_dir()
    filter_rows(Target.of(few, output, replace=True), [DuplicateFilter()])
    assert _hidden(tmp_path) == [other.name]
    assert [row["query"] for row in read(output)] == ["a", "b"]


@pytest.mark.parametrize("name", ["out", "out.jsonl"])
def test_a_run_killed_while_it_replaces_its_output_loses_nothing(tmp_path: Path, name: str) -> None:
    """Whichever of the four moves it died before, output and what was dropped belong together afterwards."""
    old, new = (_rows(tmp_path / f"{age}.jsonl", *texts) for age, texts in (("old", "aa"), ("new", "bcbc")))
    output = tmp_path / name
    rows = output / "new.jsonl" if name == "out" else output
    for moves in range(4):
        filter_rows(Target.of(old, output, replace=True), [DuplicateFilter()])
        assert _status(_start(new, output, moves)) == -signal.SIGKILL
        assert len(_hidden(tmp_path)) == 1
        Target.of(old, output, replace=True)
        assert _hidden(tmp_path) == []
        assert [row["query"] for row in read(rows)] == ["b", "c"]
        assert len(read(tmp_path / "out.dropped" / "dropped-exact-duplicate.jsonl")) == 2


def test_a_run_killed_before_its_lock_leaves_an_empty_folder_that_goes_too(tmp_path: Path) -> None:
    """A folder of that name with something in it and no lock is not ours, and stays."""
    empty, foreign = tmp_path / ".01234567.out", tmp_path / ".89abcdef.out"
    empty.mkdir()
    _rows(foreign / "mine.jsonl", "a")
    Target.of(_rows(tmp_path / "rows.jsonl", "a"), tmp_path / "out")
    assert _hidden(tmp_path) == [foreign.name]


def test_nobody_takes_the_folder_of_a_run_that_begins(tmp_path: Path) -> None:
    """Its output is there in the end, however often others clear up meanwhile."""
    rows, output = _rows(tmp_path / "rows.jsonl", *map(str, range(200))), tmp_path / "out.jsonl"
    for _ in range(5):
        run = _start(rows, output)
        while not (ended := os.waitpid(run, os.WNOHANG))[0]:
            clear(output, tmp_path / "out.dropped")
        assert os.waitstatus_to_exitcode(ended[1]) == 0
        assert len(read(output)) == 200
    assert _hidden(tmp_path) == []
