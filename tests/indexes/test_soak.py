"""The full counts of fault and load tests: `make soak`. Miniatures of the same run in `make test`."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from embedkit import Embedder, EmbedderInfo, get_embedder
from embedkit_indexes import Document, EngineConfig, Index

from .changing import CHANGES, State, litter, make_base, open_index, state
from .crashing import ROOT, Crasher, Death, Disk, crasher, environment

FIRST = "first build"


class Faults:
    """A small index, and what each change makes of it where nothing goes wrong."""

    def __init__(self, folder: Path, crashes: Crasher) -> None:
        self.folder = folder
        self.crashes = crashes
        self._base = folder / "base"
        make_base(self._base)
        self.old = state(self._base)
        self.whole: dict[str, tuple[State | None, Death]] = {}

    def fresh(self, change: str) -> Path:
        """Return a place with the index that the change begins with."""
        place = self.folder / "place"
        shutil.rmtree(place, ignore_errors=True)
        if change != FIRST:
            shutil.copytree(self._base, place)
        return place

    def undisturbed(self, change: str) -> tuple[State | None, Death]:
        """Return what the change makes, and how many file operations and how long it takes."""
        if change not in self.whole:
            place = self.fresh(change)
            death = self.crashes.run(change, place)
            self.whole[change] = state(place), death
            assert self.whole[change][0] != self.old
        return self.whole[change]

    def check(self, change: str, place: Path, death: Death) -> bool:
        """Check what a death has left, the old version or the new one; return whether it was the new one.

        The next change does what the dead one was to do, and leaves nothing that its version does not need.
        """
        old = None if change == FIRST else self.old
        new, _ = self.undisturbed(change)
        found = state(place)
        assert found in (old, new), f"{change}: {death.how} after {death.operations} operations"
        if found == old:
            assert death.how != "done"
            CHANGES[change](place)
            assert state(place) == new
        else:
            open_index(place).compact()
            after = state(place)
            assert new is not None
            assert after is not None
            assert (after.fingerprint, after.rows) == (new.fingerprint, new.rows)
        assert litter(place) == set()
        return found == new


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    """A process that lets changes die, and an index for them to change."""
    with crasher() as crashes, pytest.MonkeyPatch.context() as patch:
        # The victims alone need a disk.
        patch.setattr(os, "fsync", lambda fd: None)
        yield Faults(tmp_path_factory.mktemp("faults"), crashes)


def check_kills(faults: Faults, times: int) -> None:
    """SIGKILL changes at random moments of their length."""
    rng = random.Random(0)
    lengths = {change: faults.undisturbed(change)[1].seconds for change in CHANGES}
    killed = tries = 0
    while killed < times:
        change = list(CHANGES)[killed % len(CHANGES)]
        place = faults.fresh(change)
        death = faults.crashes.run(change, place, kill_after=rng.uniform(0.0, lengths[change]))
        faults.check(change, place, death)
        # One that was done before its moment says how long it takes on the machine as busy as it is.
        lengths[change] = 0.9 * death.seconds if death.how == "done" else 1.02 * lengths[change]
        killed += death.how == "killed"
        tries += 1
        assert tries < 10 * times


def test_kills_in_miniature(faults: Faults) -> None:
    """Ten changes, one of each kind, killed at seeded moments: the old version or the new one, nothing between."""
    check_kills(faults, 10)


@pytest.mark.soak
def test_kills(faults: Faults) -> None:
    """Two hundred changes of ten kinds killed at seeded moments: the old version or the new one each time."""
    check_kills(faults, 200)


def check_deaths(faults: Faults, step: int, *, power: bool) -> int:
    """End changes before their n-th file operation, every n or each `step`th; with `power`, what was not synced goes."""
    rng = random.Random(2)
    deaths = 0
    for number, change in enumerate(CHANGES):
        seen = set()
        operations = faults.undisturbed(change)[1].operations
        for at in [*range(number * 7 % step, operations, step), *([operations] if power else [])]:
            place = faults.fresh(change)
            disk = Disk.of(place)
            death = faults.crashes.run(change, place, die_at=at)
            assert death.how == ("died" if at < operations else "done")
            if power:
                disk.cut_power(place, death, rng)
            seen.add(faults.check(change, place, death))
            deaths += 1
        # The manifest's renaming lies between the first operation and the last.
        assert step > 1 or seen == {False, True}
    return deaths


def test_deaths_in_miniature(faults: Faults) -> None:
    """Changes that end before a file operation, some of them: the old version or the new one."""
    assert check_deaths(faults, 37, power=False) > 10


@pytest.mark.soak
def test_deaths(faults: Faults) -> None:
    """Changes that end before a file operation, for every one of them: the old version or the new one."""
    assert check_deaths(faults, 1, power=False) > 400


def test_power_cuts_in_miniature(faults: Faults) -> None:
    """What was not forced to the disk when the power went, contents or names, was not needed."""
    assert check_deaths(faults, 29, power=True) > 20


@pytest.mark.soak
def test_power_cuts(faults: Faults) -> None:
    """The same before every file operation of every change."""
    assert check_deaths(faults, 1, power=True) > 400


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


def peak() -> float:
    """Return the most MiB that this process has had: `ru_maxrss` knows those of the process that started it, too."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


def load(folder: str, count: int, exact_limit: int, budget_mib: int) -> None:
    """Index `count` documents from a stream: memory stays near that of the vectors' file and the index."""
    embedder = RandomEmbedder()
    documents = (Document(f"d{i}", f"text number {i}", lang="en") for i in range(count))
    # What is imported on the way counts for nothing.
    Index.build(f"{folder}-small", islice(documents, 500), embedder, engine=EngineConfig(exact_limit=100))
    documents = (Document(f"d{i}", f"text number {i}", lang="en") for i in range(count))
    before = peak()
    report = Index.build(folder, documents, embedder, engine=EngineConfig(exact_limit=exact_limit))
    grown = peak() - before
    assert report.chunks == count
    assert report.engine.startswith("ivf")
    assert grown < budget_mib, f"{grown:.0f} MiB"
    index = Index.open(folder, embedder)
    index.verify()
    asked = np.random.default_rng(5).choice(count, 200, replace=False)
    found = index.search_many([f"text number {i}" for i in asked], k=1)
    assert np.mean([r.hits[0].document_id == f"d{i}" for r, i in zip(found, asked, strict=True)]) >= 0.95


def check_load(folder: Path, count: int, exact_limit: int, budget_mib: int) -> None:
    """Run `load` in a process of its own, whose peak of memory is its own too."""
    code = f"from tests.indexes.test_soak import load; load({str(folder)!r}, {count}, {exact_limit}, {budget_mib})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_load_in_miniature(tmp_path: Path) -> None:
    """Twenty thousand documents through a trained index: they find themselves, memory stays small."""
    check_load(tmp_path / "i", 20_000, 5_000, 150)


@pytest.mark.soak
def test_load(tmp_path: Path) -> None:
    """A million documents through a trained index: they find themselves, within 1.5 GiB."""
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
