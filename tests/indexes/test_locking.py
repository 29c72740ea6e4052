"""The one writer's lock: who holds it, for how long, and what is said where there are no locks."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from embedkit.errors import StoreError
from embedkit_indexes import Document, Index

from .conftest import HashEmbedder

ROOT = Path(__file__).resolve().parents[2]
# A writer that starts another process while it holds the lock, and then is killed or waits for it.
WRITER = """
import ctypes, os, signal, sys, time
from embedkit_indexes import Document, Index
from tests.indexes.conftest import HashEmbedder

def documents():
    yield Document("b", "more text", lang="en")
    runs, says = os.pipe()
    child = ctypes.CDLL(None).fork() if sys.argv[2] == "unseen" else os.fork()
    if child == 0:
        if sys.argv[2] == "returns":
            raise SystemExit(0)
        os.write(says, b"1")
        time.sleep(120)
        os._exit(0)
    print(child, flush=True)
    if sys.argv[2] == "returns":
        os.waitpid(child, 0)
    else:
        os.read(runs, 1)  # what a child does first of all, it has done
        os.kill(os.getpid(), signal.SIGKILL)

Index.open(sys.argv[1], HashEmbedder()).add(documents())
"""
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


@pytest.fixture
def index(tmp_path: Path, embedder: HashEmbedder) -> Index:
    """An index of one document."""
    Index.build(tmp_path / "i", [Document("a", "some text", lang="en")], embedder)
    return Index.open(tmp_path / "i", embedder)


@pytest.fixture
def write(index: Index, tmp_path: Path) -> Iterator[Callable[[str], tuple[int, int]]]:
    """Return a function that runs WRITER and returns its process and its child's, which is killed at the end."""
    children = []

    def run(how: str) -> tuple[int, int]:
        with (tmp_path / "out").open("w") as out:
            writer = subprocess.Popen(
                [sys.executable, "-c", WRITER, index.directory, how],
                stdout=out, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            writer.wait(120)
        children.append(int((tmp_path / "out").read_text().split()[0]))
        return writer.pid, children[-1]

    yield run
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def test_a_forked_child_does_not_keep_the_lock(index: Index, write: Callable[[str], tuple[int, int]]) -> None:
    """A writer forks, as multiprocessing does, and is killed: with its child alive, the next writer goes on at once."""
    _, child = write("forked")
    os.kill(child, 0)  # it lives
    assert index.add([Document("c", "other text", lang="en")]).documents == 2


def test_a_lock_that_outlives_its_owner_is_told_as_such(
    index: Index, write: Callable[[str], tuple[int, int]]
) -> None:
    """Where a library forked behind Python's back, the error says that the owner has ended and its child has not."""
    writer, child = write("unseen")
    with pytest.raises(
        StoreError, match=f"locked by a process that process {writer} started before it ended"
    ):
        index.add([Document("c", "other text", lang="en")])
    os.kill(child, signal.SIGKILL)
    for _ in range(1000):
        try:
            assert index.add([Document("c", "other text", lang="en")]).documents == 2
            break
        except StoreError:
            time.sleep(0.05)
    else:
        pytest.fail("the lock is held though nobody lives")


def test_a_child_that_leaves_takes_nothing_with_it(
    index: Index, write: Callable[[str], tuple[int, int]]
) -> None:
    """A forked child that unwinds the writer's own stack neither frees its lock nor removes what it has written."""
    write("returns")
    assert index.refresh()
    assert len(index) == 2
    index.verify()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.EIO])
def test_a_place_without_locks_is_told_as_what_it_is(
    index: Index, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """A network drive without locks is not another writer: the sentence says why, and what to do."""

    def flock(handle: int, how: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(StoreError) as caught:
        index.add([Document("c", "other text", lang="en")])
    told = str(caught.value)
    assert told.startswith(f"{index.directory} cannot be locked ({os.strerror(code)})")
    assert "local disk" in told and "being written" not in told
    monkeypatch.undo()
    assert len(Index.open(index.directory)) == 1


def test_a_writer_at_work_is_named(index: Index) -> None:
    """A second writer is refused with the first one's process number."""

    def documents() -> Iterator[Document]:
        with pytest.raises(StoreError, match=f"is being written by process {os.getpid()} on "):
            Index.open(index.directory, HashEmbedder()).delete(["a"])
        yield Document("c", "other text", lang="en")

    assert index.add(documents()).documents == 2
