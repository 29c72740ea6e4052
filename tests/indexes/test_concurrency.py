"""Readers and writers at once, in processes and threads: every result belongs to one version."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from embedkit.errors import StoreError
from embedkit_indexes import BuildProgress, Index, SearchResult
from embedkit_indexes import durable as durable_module

from .changing import CHUNKING, ENGINE, documents, first_embedder, litter, make_base, open_index
from .crashing import ROOT, environment

OPEN = """
import sys
from embedkit_indexes import Index
index = Index.open(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""
QUESTIONS: list[dict[str, Any]] = [
    {},
    {"mode": "lexical"},
    {"mode": "hybrid"},
    {"where": "number >= 5"},
    {"lang": "de", "mode": "hybrid"},
]
TEXTS: dict[int, dict[str, str]] = {}


def size(edition: int) -> int:
    """Return how many documents an edition has."""
    return 110 + edition % 7


def texts(edition: int) -> dict[str, str]:
    """Return the texts of an edition by document."""
    return TEXTS.setdefault(edition, {d.id: d.text for d in documents(0, size(edition), edition)})


def make(place: Path, edition: int, *, overwrite: bool = False) -> None:
    """Build an index of one edition."""
    Index.build(
        place,
        documents(0, size(edition), edition),
        first_embedder(),
        engine=ENGINE,
        chunking=CHUNKING,
        overwrite=overwrite,
    )


def next_edition(index: Index, edition: int) -> None:
    """Change an index to another edition, in one of several ways."""
    if edition % 4 == 0:
        index.delete([f"d{i}" for i in range(1 + edition % 9)])
        index.compact()
    elif edition % 7 == 5:
        make(index.directory, edition, overwrite=True)
    else:
        index.sync(documents(0, size(edition), edition))


def check(result: SearchResult) -> int:
    """Check that all hits are of one edition, with its texts; return the edition."""
    editions = {h.metadata["edition"] for h in result.hits}
    assert len(editions) == 1, editions
    edition: int = editions.pop()
    assert {h.document_id: h.text for h in result.hits}.items() <= texts(edition).items()
    assert len({h.document_id for h in result.hits}) == len(result.hits)
    return edition


def read(place: Path, seed: int, ready: int) -> None:
    """Search until the writer is done; raise for any result that is not of one version, whole."""
    rng = random.Random(seed)
    index = Index.open(place, first_embedder())
    seen = {check(index.search("word1", k=5))}
    os.write(ready, b"1")
    last = False
    while not last:
        last = (place.parent / "done").exists()
        if last or rng.random() < 0.3:
            index.refresh()
        elif rng.random() < 0.2:
            index = Index.open(place, first_embedder())
        if rng.random() < 0.05:
            index.verify()
        result = index.search("word1 word7", k=1000)
        assert len(result.hits) == index.manifest.documents == len(index)
        seen.add(check(result))
        asked = rng.choice(QUESTIONS)
        check(index.search("word1 word7 word9 word11 word40", k=rng.choice([3, 10, 200]), **asked))
    assert len(seen) > 1


def write(place: Path, editions: int, seconds: float) -> None:
    """Change the index from edition to edition, so many times and for so long at least."""
    index, edition, until = Index.open(place, first_embedder()), 0, time.monotonic() + seconds
    while edition < editions or time.monotonic() < until:
        edition += 1
        next_edition(index, edition)
    sys.stdout.write(f"{edition} editions\n")


def run(place: Path, readers: int, editions: int, seconds: float) -> None:
    """Let a writer and readers work in processes of their own; raise where one fails."""
    make(place, 0)
    # Done once here, all that they need is imported.
    for question in QUESTIONS:
        check(Index.open(place, first_embedder()).search("word1", **question))
    gc.collect()
    is_ready, ready = os.pipe()
    children = [_fork(lambda n=n: read(place, n, ready)) for n in range(readers)]  # type: ignore[misc]
    for _ in children:
        os.read(is_ready, 1)
    try:
        write(place, editions, seconds)
    finally:
        (place.parent / "done").touch()
        failed = [c for c in children if os.waitpid(c, 0)[1]]
    assert not failed
    open_index(place).delete(["none of these"])
    assert litter(place) == set()


def _fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return child


def check_processes(folder: Path, readers: int, editions: int, seconds: float) -> None:
    """Run a writer and readers."""
    call = f"run(Path({str(folder / 'i')!r}), {readers}, {editions}, {seconds})"
    code = f"from pathlib import Path; from tests.indexes.test_concurrency import run; {call}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_writer_and_readers_in_miniature(tmp_path: Path) -> None:
    """One writer and two readers in processes, eight changes: no error, each result whole and of one version."""
    check_processes(tmp_path, 2, 8, 0)


@pytest.mark.soak
def test_a_writer_and_readers(tmp_path: Path) -> None:
    """One writer and eight readers in processes for a minute: no error, each result whole and of one version."""
    check_processes(tmp_path, 8, 20, 60)


def test_threads_search_while_the_index_changes(tmp_path: Path) -> None:
    """Eight threads search an Index that another one changes and refreshes: no error, each result of one version."""
    make(tmp_path / "i", 0)
    index = Index.open(tmp_path / "i", first_embedder())
    failures: list[BaseException] = []
    seen: set[int] = set()
    done = threading.Event()

    def search(seed: int) -> None:
        rng = random.Random(seed)
        try:
            while not done.is_set():
                # More filters than a snapshot remembers.
                where = f"number >= {rng.randrange(30)}" if rng.random() < 0.7 else None
                question = {} if where else dict(rng.choice(QUESTIONS))
                seen.add(
                    check(index.search("word1 word7", k=rng.choice([5, 200]), **{"where": where, **question}))
                )
        except BaseException as e:  # shown by the test's own thread
            failures.append(e)

    threads = [threading.Thread(target=search, args=(i,), daemon=True) for i in range(8)]
    for thread in threads:
        thread.start()
    for edition in range(1, 6):
        next_edition(index, edition)
    until = time.monotonic() + 60
    while len(seen) < 2 and not failures and time.monotonic() < until:
        time.sleep(0.01)
    done.set()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive(), "deadlock"
    if failures:
        raise failures[0]
    assert len(seen) > 1


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """An index with deletions, and a process that has it open."""
    place = tmp_path / "i"
    make_base(place)
    process = subprocess.Popen(
        [sys.executable, "-c", OPEN, str(place)],
        cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    yield place, process
    process.kill()
    process.communicate()


def test_old_files_stay_while_a_reader_lives_and_go_after_it(
    holder: tuple[Path, subprocess.Popen[str]],
) -> None:
    """Segments and bitmaps of an older version stay as long as a process holds it, were it killed, and no longer."""
    place, reader = holder
    old = Index.open(place).manifest.names()
    index = open_index(place)
    index.compact()
    index.delete(["d9"])
    assert old <= litter(place)
    reader.send_signal(signal.SIGKILL)
    reader.communicate()
    index.delete(["d10"])
    assert litter(place) == set()


def test_an_older_version_answers_and_verifies(tmp_path: Path) -> None:
    """A snapshot whose bitmaps and segments were replaced since, before its first search too, stays what it was."""
    make_base(tmp_path / "i")
    fresh, used = open_index(tmp_path / "i"), open_index(tmp_path / "i")
    before = used.search("word1", k=1000)
    changing = open_index(tmp_path / "i")
    changing.delete(["d7", "d142"])
    changing.compact()
    changing.sync(documents(0, 20, 5))
    for index in (fresh, used):
        assert index.search("word1", k=1000) == before
        index.verify()
    assert used.refresh()
    assert len(used.search("word1", k=1000).hits) == 20


def test_readers_go_on_while_a_change_is_under_way(tmp_path: Path) -> None:
    """A second writer is refused with the owner's process number; reading and opening go on."""
    make_base(tmp_path / "i")
    reader = open_index(tmp_path / "i")
    before = reader.search("word1", k=1000)
    told: list[str] = []

    def meanwhile(_: BuildProgress) -> None:
        with pytest.raises(StoreError) as e:
            open_index(tmp_path / "i").delete(["d1"])
        told.append(str(e.value))
        assert reader.search("word1", k=1000) == before
        assert open_index(tmp_path / "i").search("word1", k=1000) == before

    open_index(tmp_path / "i").sync(documents(0, 60, 1), progress=meanwhile)
    assert told
    assert all(f"is being written by process {os.getpid()}" in t for t in told)


def test_a_dead_owners_lock_is_free(tmp_path: Path) -> None:
    """A lock file whose owner was killed names it still, and holds nobody up."""
    make_base(tmp_path / "i")
    code = (
        "import sys, time; from pathlib import Path; from embedkit_indexes.durable import writer_lock\n"
        "with writer_lock(Path(sys.argv[1])):\n print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "i")],
        cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True,
    ) as owner:  # fmt: skip
        assert owner.stdout is not None
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match=f"process {owner.pid}"):
            open_index(tmp_path / "i").delete(["d1"])
        owner.kill()
    assert f"process {owner.pid}" in (tmp_path / "i" / "writer.lock").read_text()
    assert open_index(tmp_path / "i").delete(["d1"]).removed == 1


def test_a_lock_that_was_removed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waited for the lock of a first build that failed, and was cleared away, is not let in."""
    make_base(tmp_path / "i")
    take = durable_module._take

    def take_too_late(f: object) -> bool:
        (tmp_path / "i" / "writer.lock").unlink()
        return take(f)  # type: ignore[arg-type]

    monkeypatch.setattr(durable_module, "_take", take_too_late)
    with pytest.raises(StoreError, match="cleared by another process"):
        open_index(tmp_path / "i").delete(["d1"])
