"""What is stored survives: killed changes go on where they were, full disks, strange directories, bad vectors."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, tzinfo
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from embedkit.errors import EmbedderError, FingerprintError, InputError, NotAnIndexError, StoreError
from embedkit_indexes import BuildProgress, BuildReport, Document, Index, ReadReport, read_corpus, statistics
from embedkit_indexes.manifest import Manifest

from .changing import (
    CHUNKING,
    ENGINE,
    documents,
    first_embedder,
    litter,
    make_base,
    open_index,
    second_embedder,
    state,
)
from .conftest import HashEmbedder
from .crashing import ROOT, Crasher, crasher, environment

Documents = list[Document]


@pytest.fixture(scope="module")
def crashes() -> Iterator[Crasher]:
    """The process whose victims die while they change an index."""
    with crasher() as made:
        yield made


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A small index of two segments with deletions."""
    make_base(tmp_path / "i")
    return tmp_path / "i"


def _files(directory: Path) -> set[str]:
    return {str(p.relative_to(directory)) for p in directory.rglob("*")}


def _first(directory: Path, embedder: HashEmbedder) -> str:
    return Index.open(directory, embedder).search("word1 word2", k=1).hits[0].document_id


class Counting(HashEmbedder):
    """Count the texts that reach the embedder, and stop with Ctrl-C where there are more than `most`."""

    def __init__(self, dim: int = 16, weights: str = "hash-1", most: int = 1 << 30) -> None:
        super().__init__(dim, weights)
        self.texts = 0
        self._most = most

    def _embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        self.texts += len(texts)
        if self.texts > self._most:
            signal.raise_signal(signal.SIGINT)
        return super()._embed(texts)


def _build(place: Path, embedder: HashEmbedder) -> BuildReport:
    return Index.build(
        place, documents(0, 120, 1), embedder, engine=ENGINE, chunking=CHUNKING, overwrite=True
    )


@pytest.mark.parametrize("first", [True, False], ids=["first build", "rebuild"])
def test_a_killed_build_goes_on_where_it_was(base: Path, crashes: Crasher, first: bool) -> None:
    """SIGKILL when nine tenths are embedded, and run again: the last tenth alone reaches the embedder."""
    if first:
        shutil.rmtree(base)
    assert crashes.run("build", base, texts=108, window=12).how == "killed"
    embedder = Counting()
    report = _build(base, embedder)
    assert (report.embedded, report.reused) == (12, 108)
    assert embedder.texts == 12 + (2 if first else 0)  # a new index has two probe texts
    assert litter(base) == set()
    kept = state(base)
    assert kept is not None
    _build(base, first_embedder())
    again = state(base)
    assert again is not None
    assert [r[1:] for r in kept.rows.values()] == [r[1:] for r in again.rows.values()]


def test_a_killed_sync_goes_on_where_it_was(base: Path, crashes: Crasher) -> None:
    """Of 40 new texts 36 were embedded when it died: the next run embeds four."""
    assert crashes.run("sync", base, texts=36 + 2, window=12).how == "killed"
    embedder = Counting()
    report = Index.open(base, embedder).sync([*documents(10, 120), *documents(120, 160, 1)])
    assert (report.embedded, report.reused, report.unchanged) == (4, 36, 110)
    assert embedder.texts == 4 + 2
    assert litter(base) == set()


def test_a_killed_migration_goes_on_where_it_was(base: Path, crashes: Crasher) -> None:
    """The first segment's vectors were made when it died, the index still serves the old ones; the next run makes the rest."""
    assert crashes.run("migrate", base, texts=129).how == "killed"
    assert len(Index.open(base, first_embedder()).search("word1", k=1000).hits) == 148
    embedder = Counting(24, "hash-2")
    report = open_index(base).migrate(embedder)
    assert (report.embedded, report.reused) == (19, 129)
    assert embedder.texts == 19 + 2  # and the two probe texts
    assert litter(base) == set()
    assert len(Index.open(base, second_embedder()).search("word1", k=1000).hits) == 148


def test_a_broken_shard_is_embedded_again(base: Path, crashes: Crasher) -> None:
    """Shards that are cut short, flipped, emptied or something else are not used, and the vectors are right."""
    _build(base, first_embedder())
    wanted = [r[1:] for r in state(base).rows.values()]  # type: ignore[union-attr]
    assert crashes.run("build", base, texts=108, window=12).how == "killed"
    shards = sorted(next(base.glob("embedding-*")).glob("*.shard"))
    assert len(shards) == 9
    os.truncate(shards[0], shards[0].stat().st_size // 2)
    os.truncate(shards[1], 0)
    shards[2].write_bytes(b"something else")
    for shard, at in zip(shards[3:6], (0, 300, -1), strict=True):
        data = bytearray(shard.read_bytes())
        data[at] ^= 4
        shard.write_bytes(data)
    report = _build(base, first_embedder())
    assert (report.embedded, report.reused) == (12 + 6 * 12, 3 * 12)
    assert [r[1:] for r in state(base).rows.values()] == wanted  # type: ignore[union-attr]


def test_another_embedders_shards_are_not_used(base: Path, crashes: Crasher) -> None:
    """What one embedder has embedded is neither taken nor left by a build with another of the same dimensions."""
    assert crashes.run("build", base, texts=108, window=12).how == "killed"
    report = _build(base, HashEmbedder(16, "hash-3"))
    assert (report.embedded, report.reused) == (120, 0)
    assert litter(base) == set()


def test_ctrl_c_leaves_the_previous_index_and_what_was_embedded(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGINT in the middle of a rebuild removes its segment; the vectors stay for the next try."""
    before, held = _files(base), state(base)
    monkeypatch.setattr("embedkit_indexes.embedding._WINDOW", 12)
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            _build(base, Counting(most=60))
    finally:
        signal.signal(signal.SIGINT, old)
    assert {name.partition("/")[0].partition("-")[0] for name in _files(base) - before} == {"embedding"}
    assert before <= _files(base)
    assert state(base) == held
    assert _build(base, first_embedder()).embedded == 60


def test_a_first_build_that_fails_leaves_no_directory(tmp_path: Path, embedder: HashEmbedder) -> None:
    """Nothing remains of an index that never came to be."""
    with pytest.raises(InputError, match="no text to index"):
        Index.build(tmp_path / "i", [], embedder)
    assert not (tmp_path / "i").exists()


def test_an_empty_corpus_says_what_was_skipped(tmp_path: Path, embedder: HashEmbedder) -> None:
    """A folder of junk is refused with the count and the reasons, not stored as an empty index."""
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "junk.txt").write_bytes(b"\x00\x01\x02" * 100)
    (tmp_path / "c" / "empty.txt").write_text("  \n")
    report = ReadReport()
    with pytest.raises(InputError, match="2 skipped"):
        Index.build(
            tmp_path / "i", read_corpus([tmp_path / "c"], report=report), embedder, read_report=report
        )


def test_nan_from_a_plug_in_stores_nothing(base: Path) -> None:
    """One NaN vector stops the build with the embedder's name; the previous index stays."""

    class Bad(HashEmbedder):
        def _one(self, text: str) -> NDArray[np.float64]:
            return super()._one(text) * (np.nan if "n33" in text else 1.0)

    before = _files(base)
    with pytest.raises(EmbedderError, match="hash-16.*NaN"):
        _build(base, Bad(16))
    assert _files(base) == before
    Index.open(base).verify()


def test_a_failing_source_stores_nothing(base: Path) -> None:
    """An exception from the documents' own iterator leaves the previous index whole, whatever the change."""

    def broken() -> Iterator[Document]:
        yield from documents(0, 60, 3)
        raise OSError("the network drive went away")

    before, held = _files(base), state(base)
    with pytest.raises(StoreError, match="untouched"):
        Index.build(base, broken(), first_embedder(), overwrite=True)
    with pytest.raises(StoreError, match="untouched"):
        open_index(base).sync(broken())
    assert _files(base) == before
    assert state(base) == held


def test_a_full_disk_is_one_sentence_and_harms_nothing(base: Path) -> None:
    """A file-size limit stops the write as a full disk does: StoreError, the segment removed, old index whole."""
    before = _files(base)
    many = [Document(f"d{i}", f"word{i} " * 20, lang="en") for i in range(1500)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StoreError, match="disk is full"):
            Index.build(base, many, first_embedder(), overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert {f for f in _files(base) - before if not f.startswith("embedding-")} == set()
    Index.open(base).verify()


# In a namespace of its own, so that what is mounted is gone with the process.
MOUNTED = """
import os, sys
from pathlib import Path
from embedkit.errors import StoreError
from tests.indexes.changing import documents, first_embedder, litter, make_base, open_index, state
place = Path(sys.argv[1]) / "disk" / "i"
if sys.argv[2] == "full":
    make_base(place)
    held, full = state(place), 0
    for left in range(0, 200_000, 12_288):
        free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
        (place.parent / "ballast").write_bytes(bytes(max(0, free - left)))
        try:
            open_index(place).sync([*documents(10, 120), *documents(120, 160, 1)])
        except StoreError as e:
            assert "the disk is full" in str(e), e
            assert state(place) == held, left
            full += 1
        else:
            break
        finally:
            (place.parent / "ballast").unlink()
    assert full > 3, full
    assert len(state(place).rows) == 150
    assert litter(place) == set()
else:
    assert len(open_index(place).search("word1", k=1000).hits) == 148
    for change in (lambda i: i.delete(["d1"]), lambda i: i.sync(documents(0, 9)), lambda i: i.compact()):
        try:
            change(open_index(place))
        except StoreError as e:
            assert "no permission" in str(e) and "\\n" not in str(e), e
        else:
            raise SystemExit("it was written")
    open_index(place).verify()
"""


def _mounted(folder: Path, mount: str, what: str) -> None:
    """Run MOUNTED where `mount` has made FOLDER/disk; skip where nothing can be mounted."""
    namespace = ["unshare", "-rm", "sh", "-ec"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*namespace, mount, "sh", folder], capture_output=True, check=False).returncode
    ):
        pytest.skip("nothing can be mounted here")
    script = f'{mount}; exec "$2" -c "$3" "$1" "$4"'
    done = subprocess.run(
        [*namespace, script, "sh", folder, sys.executable, MOUNTED, what],
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_disk_that_fills_up_at_any_point(tmp_path: Path) -> None:
    """On a file system with a little more room each time, a change is refused in one sentence until it fits."""
    (tmp_path / "disk").mkdir()
    _mounted(tmp_path, 'mount -t tmpfs -o size=1m none "$1/disk"', "full")


def test_a_read_only_directory_is_searched_and_not_changed(tmp_path: Path) -> None:
    """An index on a read-only file system opens, answers and verifies; changes are refused in one sentence."""
    make_base(tmp_path / "disk" / "i")
    mount = 'mount --bind "$1/disk" "$1/disk" && mount -o remount,bind,ro "$1/disk"'
    _mounted(tmp_path, mount, "read-only")


def test_a_place_without_permission_is_one_sentence(tmp_path: Path, embedder: HashEmbedder) -> None:
    """Where nothing may be written, or read, the error says so: /proc refuses even root."""
    if Path("/proc/self").exists():
        with pytest.raises(StoreError, match="cannot use /proc"):
            Index.build("/proc/embedkit-index", documents(0, 3), embedder)
    make_base(tmp_path / "i")
    (tmp_path / "i" / "embedkit.json").chmod(0)
    if os.geteuid() == 0:
        tmp_path.chmod(0o700)
        os.seteuid(65534)  # nobody
    try:
        with pytest.raises(StoreError, match="no permission"):
            Index.open(tmp_path / "i")
        with pytest.raises(StoreError, match="no permission"):
            Index.build(tmp_path / "j", documents(0, 3), embedder)
    finally:
        if os.getuid() == 0:
            os.seteuid(0)


def test_a_clock_that_is_set_back_changes_nothing(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files from the future and a clock of 1999: readers see the change, versions go up, what is old is removed."""
    reader = open_index(base)
    for path in base.rglob("*"):
        os.utime(path, (4e9, 4e9))

    class Past(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Past:
            return cls(1999, 1, 1, tzinfo=tz)

    monkeypatch.setattr(statistics, "datetime", Past)
    monkeypatch.setattr("time.time", lambda: 915148800.0)
    generation = reader.manifest.generation
    report = open_index(base).sync(documents(0, 50, 1))
    assert (report.generation, report.removed, report.updated) == (generation + 1, 99, 49)
    assert reader.refresh()
    assert len(reader) == 50
    assert reader.manifest.updated == datetime(1999, 1, 1, tzinfo=UTC).isoformat()
    open_index(base).compact()
    assert litter(base) - reader.manifest.names() == set()


def test_a_strange_directory_is_left_alone(tmp_path: Path, embedder: HashEmbedder) -> None:
    """A directory with other things in it is neither opened nor built into; a file no more."""
    (tmp_path / "thesis.docx").write_text("years of work")
    with pytest.raises(NotAnIndexError, match="holds no embedkit index"):
        Index.open(tmp_path)
    with pytest.raises(NotAnIndexError, match="thesis.docx"):
        Index.build(tmp_path, documents(0, 3), embedder, overwrite=True)
    with pytest.raises(NotAnIndexError, match="is a file"):
        Index.build(tmp_path / "thesis.docx", documents(0, 3), embedder)
    assert _files(tmp_path) == {"thesis.docx"}
    with pytest.raises(NotAnIndexError, match="does not exist"):
        Index.open(tmp_path / "nowhere")


def test_an_index_is_not_replaced_unasked(base: Path, embedder: HashEmbedder) -> None:
    """Without `overwrite` a second build is refused before any work."""
    with pytest.raises(InputError, match="holds an index already"):
        Index.build(base, documents(0, 3), embedder)
    assert embedder.calls == 0


def test_a_rebuild_under_a_reader_is_followed_when_asked(base: Path) -> None:
    """An open index answers from its version through a rebuild; `refresh` refuses one by another embedder."""
    reader = open_index(base)
    before = reader.search("word1 word2", k=3)
    _build(base, first_embedder())
    assert reader.search("word1 word2", k=3) == before
    assert reader.refresh()
    assert len(reader.search("word1", k=500).hits) == 120
    _build(base, second_embedder())
    with pytest.raises(FingerprintError, match="cannot be compared"):
        reader.refresh()
    assert len(reader.search("word1", k=500).hits) == 120


def test_an_interrupt_after_the_commit_keeps_the_new_index(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C just after the manifest's renaming leaves the new index in force, not a manifest without files."""
    write = Manifest.write

    def write_and_stop(self: Manifest, directory: Path) -> None:
        write(self, directory)
        raise KeyboardInterrupt

    monkeypatch.setattr(Manifest, "write", write_and_stop)
    with pytest.raises(KeyboardInterrupt):
        _build(base, first_embedder())
    monkeypatch.undo()
    Index.open(base).verify()
    assert len(Index.open(base)) == 120


def test_an_error_in_the_progress_callback_harms_nothing(tmp_path: Path, base: Path) -> None:
    """A caller that raises from its progress callback (to cancel) gets its own error; the index stays as it was."""

    def cancel(_: BuildProgress) -> None:
        raise RuntimeError("cancelled")

    held = state(base)
    with pytest.raises(RuntimeError, match="cancelled"):
        open_index(base).compact(progress=cancel)
    with pytest.raises(RuntimeError, match="cancelled"):
        Index.build(tmp_path / "j", documents(0, 3), first_embedder(), progress=cancel)
    assert state(base) == held
    assert litter(base) == set()
    with pytest.raises(NotAnIndexError):
        Index.open(tmp_path / "j")
