"""How the server looks for new versions, in one process: when it tries again, and what it takes for gone."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from embedkit.errors import InputError
from embedkit_cli.server import indexes
from embedkit_cli.server.batching import Batcher
from embedkit_cli.server.config import Limits, ServedPath
from embedkit_cli.server.embedders import EmbedderPool, ServedEmbedder
from embedkit_cli.server.indexes import ServedIndex
from embedkit_indexes import Document, Index
from embedkit_indexes.manifest import Manifest
from tests.indexes.conftest import HashEmbedder


class Pool(EmbedderPool):
    """A pool of one embedder that notes how often it is asked, and may refuse it."""

    def __init__(self) -> None:
        super().__init__(Limits(), lambda texts, seconds: None)
        embedder = HashEmbedder()
        self.own = ServedEmbedder(embedder, "hash", Batcher(embedder, 100, 10_000))
        self.refuses = False
        self.asked = 0

    def of_index(self, manifest: Manifest, place: str) -> ServedEmbedder:
        """Return the embedder. Raises InputError where it is refused."""
        self.asked += 1
        if self.refuses:
            raise InputError("the model is not there")
        return super().of_index(manifest, place)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The directory of a small index."""
    Index.build(tmp_path / "index", [Document("a", "some text")], HashEmbedder())
    return tmp_path / "index"


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool whose thread ends."""
    pool = Pool()
    yield pool
    assert pool.own is not None
    pool.own.batcher.close()


@pytest.fixture
def served(place: Path, pool: Pool) -> ServedIndex:
    """The index, opened to be served."""
    index = ServedIndex(ServedPath("index", place), pool, lambda: None)
    index.open()
    return index


def change(place: Path, text: str) -> None:
    """Make a new version."""
    Index.open(place, HashEmbedder()).upsert([Document("b", text)])


def test_what_cannot_be_opened_is_tried_less_and_less(
    served: ServedIndex,
    place: Path,
    pool: Pool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """After 1, 2, 4 … seconds, a minute at most; it is told once, and the version before is served meanwhile."""
    now = 0.0
    monkeypatch.setattr(indexes, "time", SimpleNamespace(monotonic=lambda: now))
    change(place, "another text")
    pool.refuses = True
    tried = []
    for second in range(200):
        now, asked = float(second), pool.asked
        served.look()
        tried += [second] if pool.asked > asked else []
    assert tried == [0, 1, 3, 7, 15, 31, 63, 123, 183]
    assert [r.message for r in caplog.records if r.levelno == logging.WARNING] == [
        "the index index has a new version that cannot be served: the model is not there"
    ]
    assert served.current().manifest.generation == 1
    # The next version is another one, and tried at once.
    pool.refuses = False
    change(place, "yet another")
    served.look()
    assert served.current().manifest.generation == 3


def test_what_cannot_be_looked_at_is_not_gone(
    served: ServedIndex, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the file system gives an error, which is told once, the version that is open goes on to be served."""
    place.rename(place.with_name("aside"))
    place.symlink_to(place)  # a circle: ELOOP
    for _ in range(3):
        served.look()
    assert served.current().manifest.generation == 1
    assert len(caplog.records) == 1 and "cannot be looked at" in caplog.text
    place.unlink()
    served.look()
    assert served.index is None
    place.write_text("a file in its place")
    served.look()
    assert served.index is None
    place.unlink()
    place.with_name("aside").rename(place)
    served.look()
    assert served.current().manifest.generation == 1


def test_embedders_are_listed_while_others_are_opened(pool: Pool) -> None:
    """A request that lists the embedders meets no half of a change that the refreshing thread makes."""
    assert pool.own is not None
    many = [ServedEmbedder(HashEmbedder(), str(n), pool.own.batcher) for n in range(500)]
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            for number, embedder in enumerate(many):
                pool._open[str(number)] = embedder
            for number in range(len(many)):
                del pool._open[str(number)]

    thread = threading.Thread(target=work)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        for _ in range(2000):
            assert pool.all()[0] is pool.own
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(before)
