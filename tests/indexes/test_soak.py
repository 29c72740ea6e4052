"""The full counts of fault and load tests: `make soak`. Miniatures of the same run in `make test`."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from embedkit import Embedder, EmbedderInfo, get_embedder
from embedkit.errors import CorruptIndexError
from embedkit_indexes import Document, Index

from .conftest import HashEmbedder

ROOT = Path(__file__).resolve().parents[2]
REBUILD = """
import sys
from tests.indexes.conftest import HashEmbedder
from embedkit_indexes import Document, Index
print("start", flush=True)
Index.build(sys.argv[1], (Document(f"n{i}", f"word{i} other", lang="en") for i in range(6000)), HashEmbedder(),
            overwrite=True, exact_limit=1000)
"""


class RandomEmbedder(Embedder):
    """A vector drawn from the text's number: fast enough for a million texts."""

    window = 8192

    def __init__(self) -> None:
        self.info = EmbedderInfo(name="random", dim=64, max_length=64, pooling="mean", weights="random-1")
        self._centres = np.random.default_rng(0).standard_normal((512, 64)).astype(np.float32)

    def _embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        numbers = np.array([int(t.rsplit(" ", 1)[-1]) if t[-1].isdigit() else 0 for t in texts])
        noise = np.stack([np.random.default_rng(n).standard_normal(64, dtype=np.float32) for n in numbers])
        out: NDArray[np.float32] = self._centres[numbers % 512] + 0.5 * noise
        return out


def check_kills(tmp_path: Path, embedder: HashEmbedder, documents: list[Document], times: int) -> None:
    """SIGKILL a rebuild at random moments: what is there is always whole, the old index or the new one."""
    place = tmp_path / "i"
    Index.build(place, documents, embedder)
    rng = random.Random(0)
    survived = 0
    for _ in range(times):
        process = subprocess.Popen(
            [sys.executable, "-c", REBUILD, str(place)],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0.0, 1.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        index = Index.open(place, embedder)
        index.verify()
        assert len(index) in (len(documents), 6000)
        assert len(index.search("word1 other", k=5).hits) == 5
        survived += len(index) == 6000
        if len(index) == 6000:
            Index.build(place, documents, embedder, overwrite=True)
    Index.build(place, documents, embedder, overwrite=True)
    assert len(list(place.glob("segment-*"))) == 1


def test_kills_in_miniature(tmp_path: Path, embedder: HashEmbedder, documents: list[Document]) -> None:
    """Three rebuilds killed at seeded moments leave a whole index each time."""
    check_kills(tmp_path, embedder, documents, 3)


@pytest.mark.soak
def test_kills(tmp_path: Path, embedder: HashEmbedder, documents: list[Document]) -> None:
    """A hundred rebuilds killed at seeded moments leave a whole index each time."""
    check_kills(tmp_path, embedder, documents, 100)


def check_flips(tmp_path: Path, embedder: HashEmbedder, documents: list[Document], times: int) -> None:
    """Flip a random bit of a random file: `verify` names the file, whichever it is."""
    place = tmp_path / "i"
    Index.build(place, documents, embedder, exact_limit=50)
    files = [place / Index.open(place).manifest.segment / name for name in Index.open(place).manifest.files]
    rng = random.Random(1)
    for _ in range(times):
        path = rng.choice(files)
        at = rng.randrange(path.stat().st_size)
        with path.open("r+b") as f:
            f.seek(at)
            old = f.read(1)[0]
            f.seek(at)
            f.write(bytes([old ^ (1 << rng.randrange(8))]))
        with pytest.raises(CorruptIndexError, match=path.name):
            Index.open(place).verify()
        with path.open("r+b") as f:
            f.seek(at)
            f.write(bytes([old]))
    Index.open(place).verify()


def test_flips_in_miniature(tmp_path: Path, embedder: HashEmbedder, documents: list[Document]) -> None:
    """Twenty seeded bit flips are all found."""
    check_flips(tmp_path, embedder, documents, 20)


@pytest.mark.soak
def test_flips(tmp_path: Path, embedder: HashEmbedder, documents: list[Document]) -> None:
    """Two thousand seeded bit flips are all found."""
    check_flips(tmp_path, embedder, documents, 2000)


def load(folder: str, count: int, exact_limit: int, budget_mib: int) -> None:
    """Index `count` documents from a stream: memory stays near that of the vectors' file and the index."""
    embedder = RandomEmbedder()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    documents = (Document(f"d{i}", f"text number {i}", lang="en") for i in range(count))
    report = Index.build(folder, documents, embedder, exact_limit=exact_limit)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert report.chunks == count
    assert report.engine == "ivf-sq8"
    assert grown < budget_mib, f"{grown:.0f} MiB"
    index = Index.open(folder, embedder)
    index.verify()
    asked = np.random.default_rng(5).choice(count, 200, replace=False)
    found = index.search_many([f"text number {i}" for i in asked], k=1)
    assert np.mean([r.hits[0].document_id == f"d{i}" for r, i in zip(found, asked, strict=True)]) >= 0.99


def check_load(folder: Path, count: int, exact_limit: int, budget_mib: int) -> None:
    """Run `load` in a process of its own, whose peak of memory is its own too."""
    code = f"from tests.indexes.test_soak import load; load({str(folder)!r}, {count}, {exact_limit}, {budget_mib})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_load_in_miniature(tmp_path: Path) -> None:
    """Twenty thousand documents through a trained index: each finds itself, memory stays small."""
    check_load(tmp_path / "i", 20_000, 5_000, 150)


@pytest.mark.soak
def test_load(tmp_path: Path) -> None:
    """A million documents through a trained index: each finds itself, within 1.5 GiB."""
    check_load(tmp_path / "i", 1_000_000, 100_000, 1536)


def check_threads(times: int) -> None:
    """Encode from eight threads at once, embedders coming and going: same vectors, no deadlock."""
    texts = [f"The tide comes in at {i} o'clock, " * (1 + i % 7) for i in range(60)]
    expected = get_embedder("bundled").encode_document(texts)
    for _ in range(times):
        embedder = get_embedder("bundled")
        worst: list[float] = []

        def work(embedder: Embedder = embedder, worst: list[float] = worst) -> None:
            worst.append(float((embedder.encode_document(texts) * expected).sum(axis=1).min()))
            worst.append(float(embedder.encode_query(["tide"])[0] @ embedder.encode_query(["tide"])[0]))

        threads = [threading.Thread(target=work, daemon=True) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=120)
            assert not thread.is_alive(), "deadlock"
        assert len(worst) == 16
        assert min(worst) > 0.9995


def test_threads_in_miniature() -> None:
    """Two embedders in turn, eight threads each."""
    check_threads(2)


@pytest.mark.soak
def test_threads() -> None:
    """Two hundred embedders in turn, eight threads each."""
    check_threads(200)
