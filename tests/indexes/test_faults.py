"""What is stored survives: killed builds, full disks, broken files, strange directories, bad vectors."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from embedkit.errors import (
    CorruptIndexError,
    EmbedderError,
    FingerprintError,
    InputError,
    NotAnIndexError,
    StoreError,
)
from embedkit_indexes import BuildProgress, Document, Index, ReadReport, read_corpus
from embedkit_indexes.manifest import Manifest
from embedkit_indexes.segment import Segment

from .conftest import HashEmbedder

Documents = list[Document]
SLOW_BUILD = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests started with `&` inherit that it is ignored
from tests.indexes.conftest import HashEmbedder
from embedkit_indexes import Document, Index
def endless():
    for i in range(10**9):
        if i == 9000: print("embedding", flush=True)
        if i > 9000: time.sleep(0.001)
        yield Document(f"n{i}", f"word{i} other", lang="en")
Index.build(sys.argv[1], endless(), HashEmbedder(), overwrite=True)
"""


def _first(directory: Path, embedder: HashEmbedder) -> str:
    return Index.open(directory, embedder).search("word1 word2", k=1).hits[0].document_id


def _files(directory: Path) -> set[str]:
    return {str(p.relative_to(directory)) for p in directory.rglob("*")}


def _killed_build(directory: Path, sign: signal.Signals) -> int:
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_BUILD, str(directory)],
        cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "embedding\n"
    time.sleep(0.2)
    process.send_signal(sign)
    process.communicate(timeout=60)
    return process.returncode


def test_a_killed_build_leaves_the_previous_index_whole(
    tmp_path: Path, embedder: HashEmbedder, documents: Documents
) -> None:
    """SIGKILL in the middle of a rebuild: the old index verifies and answers; the next build clears the litter."""
    place = tmp_path / "i"
    Index.build(place, documents, embedder)
    before = _first(place, embedder)
    assert _killed_build(place, signal.SIGKILL) == -signal.SIGKILL
    assert len(list(place.glob("segment-*"))) == 2
    Index.open(place).verify()
    assert _first(place, embedder) == before
    Index.build(place, documents[:50], embedder, overwrite=True)
    assert len(list(place.glob("segment-*"))) == 1
    assert len(Index.open(place)) == 50


def test_ctrl_c_leaves_the_previous_index_and_no_litter(
    tmp_path: Path, embedder: HashEmbedder, documents: Documents
) -> None:
    """SIGINT in the middle of a rebuild removes what it had written and nothing else."""
    place = tmp_path / "i"
    Index.build(place, documents, embedder)
    before = _files(place)
    assert _killed_build(place, signal.SIGINT) != 0
    assert _files(place) == before
    Index.open(place).verify()


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


def test_nan_from_a_plug_in_stores_nothing(
    tmp_path: Path, embedder: HashEmbedder, documents: Documents
) -> None:
    """One NaN vector stops the build with the embedder's name; the previous index stays."""

    class Bad(HashEmbedder):
        def _one(self, text: str) -> np.ndarray:
            return super()._one(text) * (np.nan if "word33" in text else 1.0)

    place = tmp_path / "i"
    Index.build(place, documents, embedder)
    before = _files(place)
    with pytest.raises(EmbedderError, match="hash-32.*NaN"):
        Index.build(place, documents, Bad(), overwrite=True)
    assert _files(place) == before
    Index.open(place).verify()


def test_a_failing_source_stores_nothing(
    tmp_path: Path, embedder: HashEmbedder, documents: Documents
) -> None:
    """An exception from the documents' own iterator leaves the previous index whole."""

    def broken() -> Iterator[Document]:
        yield from documents
        raise OSError("the network drive went away")

    place = tmp_path / "i"
    Index.build(place, documents, embedder)
    before = _files(place)
    with pytest.raises(StoreError, match="untouched"):
        Index.build(place, broken(), embedder, overwrite=True)
    assert _files(place) == before


def test_a_full_disk_is_one_sentence_and_harms_nothing(
    tmp_path: Path, embedder: HashEmbedder, documents: Documents
) -> None:
    """A file-size limit stops the write as a full disk does: StoreError, litter removed, old index whole."""
    place = tmp_path / "i"
    Index.build(place, documents, embedder)
    before = _files(place)
    many = [Document(f"d{i}", f"word{i} " * 20, lang="en") for i in range(3000)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StoreError, match="disk is full"):
            Index.build(place, many, embedder, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert _files(place) == before
    Index.open(place).verify()


@pytest.mark.parametrize("name", ["chunks.arrow", "vectors.arrow", "faiss.index", "embedkit.json"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "emptied"])
def test_a_damaged_file_is_named(
    tmp_path: Path, embedder: HashEmbedder, documents: Documents, name: str, damage: str
) -> None:
    """A truncated, missing or emptied file makes opening fail with its name and the way out."""
    place = tmp_path / "i"
    Index.build(place, documents, embedder, exact_limit=50)
    path = next(place.rglob(name))
    if damage == "missing":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size // 2 if damage == "truncated" else 0)
    wanted = NotAnIndexError if (name, damage) == ("embedkit.json", "missing") else CorruptIndexError
    with pytest.raises(wanted, match="embedkit index") as e:
        Index.open(place, embedder)
    assert name in str(e.value) or wanted is NotAnIndexError


@pytest.mark.parametrize("name", ["chunks.arrow", "vectors.arrow", "faiss.index"])
def test_verify_finds_one_flipped_byte(
    tmp_path: Path, embedder: HashEmbedder, documents: Documents, name: str
) -> None:
    """A byte that changed without changing the size is found by `verify`, which names the file."""
    place = tmp_path / "i"
    Index.build(place, documents, embedder, exact_limit=50)
    path = next(place.rglob(name))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptIndexError, match=name):
        Index.open(place).verify()


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"format": 99}', '{"format": 1}', "\x00\x01"])
def test_a_manifest_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    """Whatever stands in embedkit.json, opening gives one CorruptIndexError that names it."""
    (tmp_path / "embedkit.json").write_text(text)
    with pytest.raises(CorruptIndexError, match="embedkit.json"):
        Index.open(tmp_path)


@pytest.mark.parametrize(
    "edit",
    [
        {"chunks": "3"},
        {"segment": 5},
        {"engine": []},
        {"engine": {}},
        {"embedder": {}},
        {"options": []},
        {"languages": []},
        {"skipped": 5},
        {"tasks": [5]},
        {"tasks": [{"x": 1}]},
        {"probes": []},
        {"probes": [{"text": "a", "vector": [1, 2]}]},
        {"files": {"chunks.arrow": {"bytes": "1", "sha256": "a"}}},
    ],
    ids=str,
)
def test_an_edited_manifest_is_refused(
    tmp_path: Path, embedder: HashEmbedder, documents: Documents, edit: dict[str, object]
) -> None:
    """A value of the wrong type or shape in the manifest is found when the index is opened, not at some later step."""
    place = tmp_path / "i"
    Index.build(place, documents, embedder)
    data = json.loads((place / "embedkit.json").read_text())
    (place / "embedkit.json").write_text(json.dumps({**data, **edit}))
    with pytest.raises(CorruptIndexError, match="embedkit.json cannot be read"):
        Index.open(place, embedder)


@pytest.mark.parametrize("name", ["chunks.arrow", "vectors.arrow"])
def test_any_scrambled_bytes_are_a_damaged_index(
    tmp_path: Path, embedder: HashEmbedder, documents: Documents, name: str
) -> None:
    """Wherever a stretch of a file is zeroed, its size kept, a search answers or says that the file is damaged."""
    Index.build(tmp_path / "i", documents, embedder)
    path = next((tmp_path / "i").rglob(name))
    whole = path.read_bytes()
    heads = [*range(0, 800, 40), *range(len(whole) - 800, len(whole) - 40, 40)]
    for start in heads:
        path.write_bytes(whole[:start] + bytes(40) + whole[start + 40 :])
        try:
            Index.open(tmp_path / "i", embedder).verify()
        except CorruptIndexError as e:
            assert name in str(e)
        try:
            Segment(path.parent).map()
        except CorruptIndexError as e:
            assert name in str(e)


def test_a_manifest_cannot_lead_elsewhere(
    tmp_path: Path, embedder: HashEmbedder, documents: Documents
) -> None:
    """A segment or file name that is a path is refused: an index reads nothing outside its directory."""
    place = tmp_path / "i"
    Index.build(place, documents, embedder)
    text = (place / "embedkit.json").read_text()
    name = Index.open(place).manifest.segment
    for old, new in ((f'"{name}"', f'"../i/{name}"'), ('"chunks.arrow"', '"../chunks.arrow"')):
        (place / "embedkit.json").write_text(text.replace(old, new))
        with pytest.raises(CorruptIndexError, match="path where a name"):
            Index.open(place)


def test_a_strange_directory_is_left_alone(
    tmp_path: Path, embedder: HashEmbedder, documents: Documents
) -> None:
    """A directory with other things in it is neither opened nor built into; a file no more."""
    (tmp_path / "thesis.docx").write_text("years of work")
    with pytest.raises(NotAnIndexError, match="holds no embedkit index"):
        Index.open(tmp_path)
    with pytest.raises(NotAnIndexError, match="thesis.docx"):
        Index.build(tmp_path, documents, embedder, overwrite=True)
    with pytest.raises(NotAnIndexError, match="is a file"):
        Index.build(tmp_path / "thesis.docx", documents, embedder)
    assert _files(tmp_path) == {"thesis.docx"}
    with pytest.raises(NotAnIndexError, match="does not exist"):
        Index.open(tmp_path / "nowhere")


def test_an_index_is_not_replaced_unasked(
    tmp_path: Path, embedder: HashEmbedder, documents: Documents
) -> None:
    """Without `overwrite` a second build is refused before any work."""
    Index.build(tmp_path / "i", documents, embedder)
    with pytest.raises(InputError, match="holds an index already"):
        Index.build(tmp_path / "i", documents, HashEmbedder(), overwrite=False)


def test_a_place_without_permission_is_one_sentence(
    tmp_path: Path, embedder: HashEmbedder, documents: Documents
) -> None:
    """Where nothing may be written the error says so: /proc refuses even root."""
    if not Path("/proc/self").exists():
        pytest.skip("no /proc here, and permissions do not bind root")
    with pytest.raises(StoreError, match="cannot use /proc"):
        Index.build("/proc/embedkit-index", documents, embedder)
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(StoreError, match="no permission"):
            Index.build(tmp_path / "locked" / "i", documents, embedder)


def test_a_reader_keeps_its_snapshot_through_a_rebuild(
    tmp_path: Path, embedder: HashEmbedder, documents: Documents
) -> None:
    """An index that was opened and searched before a rebuild goes on answering from what it had."""
    place = tmp_path / "i"
    Index.build(place, documents, embedder)
    reader = Index.open(place, embedder)
    before = reader.search("word1 word2", k=3)
    Index.build(place, documents[100:], embedder, overwrite=True)
    assert reader.search("word1 word2", k=3) == before
    assert len(Index.open(place)) == 100


def test_an_index_opened_before_a_rebuild_follows_it(
    tmp_path: Path, embedder: HashEmbedder, documents: Documents
) -> None:
    """A rebuild between opening and the first search is followed, not reported as damage."""
    place = tmp_path / "i"
    Index.build(place, documents, embedder)
    reader = Index.open(place, embedder)
    Index.build(place, documents[100:], embedder, overwrite=True)
    assert len(reader.search("word1", k=500).hits) == 100
    stale = Index.open(place, embedder)
    Index.build(place, documents, HashEmbedder(weights="hash-2"), overwrite=True)
    with pytest.raises(FingerprintError, match="open it again"):
        stale.search("word1")


def test_a_second_writer_is_refused(tmp_path: Path, embedder: HashEmbedder, documents: Documents) -> None:
    """While one build runs, another into the same directory is refused with the owner's process number."""
    seen: list[str] = []

    def build_too(_: BuildProgress) -> None:
        with pytest.raises(StoreError) as e:
            Index.build(tmp_path / "i", documents, HashEmbedder(), overwrite=True)
        seen.append(str(e.value))

    Index.build(tmp_path / "i", documents, embedder, progress=build_too)
    assert f"process {os.getpid()}" in seen[0]
    assert len(Index.open(tmp_path / "i")) == 200


def test_an_interrupt_after_the_commit_keeps_the_new_index(
    tmp_path: Path, embedder: HashEmbedder, documents: Documents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C just after the manifest's renaming leaves the new index in force, not a manifest without files."""
    place = tmp_path / "i"
    Index.build(place, documents, embedder)
    write = Manifest.write

    def write_and_stop(self: Manifest, directory: Path) -> None:
        write(self, directory)
        raise KeyboardInterrupt

    monkeypatch.setattr(Manifest, "write", write_and_stop)
    with pytest.raises(KeyboardInterrupt):
        Index.build(place, documents[:30], embedder, overwrite=True)
    monkeypatch.undo()
    Index.open(place).verify()
    assert len(Index.open(place)) == 30


def test_an_error_in_the_progress_callback_harms_nothing(
    tmp_path: Path, embedder: HashEmbedder, documents: Documents
) -> None:
    """A caller that raises from its progress callback (to cancel) gets its own error and no litter."""

    def cancel(_: BuildProgress) -> None:
        raise RuntimeError("cancelled")

    with pytest.raises(RuntimeError, match="cancelled"):
        Index.build(tmp_path / "i", documents, embedder, progress=cancel)
    assert not (tmp_path / "i").exists()
