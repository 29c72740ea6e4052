"""Every altered byte is found, and what is altered is read as damage: no crash, no row that does not exist."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from embedkit.errors import CorruptIndexError, NotAnIndexError
from embedkit_indexes import EngineConfig, Index
from embedkit_indexes.manifest import text_of

from .changing import documents, first_embedder, make_base, open_index, state
from .damaging import KINDS, damage_files, files, make_index

NAMES = (
    "chunks.arrow",
    "documents.arrow",
    "vectors.arrow",
    "faiss.index",
    "faiss.cells",
    "lexical.bin",
    "metadata.arrow",
    ".bits",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small index of two segments with deletions; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    make_base(folder / "i")
    return folder / "i"


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(made, tmp_path / "i")


def _file(place: Path, name: str) -> Path:
    """Return the largest file of the name."""
    return max((p for p in files(place) if p.name.endswith(name)), key=lambda p: p.stat().st_size)


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", [*NAMES, "embedkit.json"])
def test_a_damaged_file_is_named(place: Path, name: str) -> None:
    """A truncated, lengthened, emptied or missing file makes opening fail with its name and the way out."""
    path = _file(place, name)
    whole = path.read_bytes()
    for damage in (whole[: len(whole) // 2], whole + b"\0", b"", None):
        path.unlink()
        if damage is not None:
            path.write_bytes(damage)
        missing = damage is None and name == "embedkit.json"
        with pytest.raises(NotAnIndexError if missing else CorruptIndexError, match="embedkit index") as e:
            Index.open(place)
        assert missing or path.name in str(e.value)
        path.write_bytes(whole)
    Index.open(place).verify()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_altered_is_not_copied(place: Path, name: str) -> None:
    """One flipped byte: `verify`, `compact` and `migrate` name the file, and the index stays as it is."""
    path = _file(place, name)
    _flip(path, path.stat().st_size // 2)
    before = {p.name for p in place.iterdir()}
    with pytest.raises(CorruptIndexError, match=path.name):
        Index.open(place).verify()
    with pytest.raises(CorruptIndexError, match=path.name):
        open_index(place).compact()
    assert {p.name for p in place.iterdir()} == before


def test_every_byte_of_the_manifest_counts(place: Path) -> None:
    """Whichever byte of the manifest is another, opening refuses it, white space included."""
    path = place / "embedkit.json"
    whole = path.read_bytes()
    rng = random.Random(0)
    for at in range(0, len(whole), 31):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ rng.choice([1, 32, 41, 42])]) + whole[at + 1 :])
        with pytest.raises(CorruptIndexError, match="embedkit.json"):
            Index.open(place)
    for other in (
        b" " + whole,
        whole + b"\n",
        whole.replace(b": ", b":\t", 1),
        whole.replace(b"\n", b"\r\n"),
    ):
        path.write_bytes(other)
        with pytest.raises(CorruptIndexError, match="embedkit.json"):
            Index.open(place)


@pytest.mark.parametrize("text", ["{", "[]", "null", "5", "\x00\x01", "[" * 100_000])
def test_a_manifest_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    """Whatever stands in embedkit.json, opening gives one CorruptIndexError that names it."""
    (tmp_path / "embedkit.json").write_text(text)
    with pytest.raises(CorruptIndexError, match="embedkit.json"):
        Index.open(tmp_path)


def test_other_formats_say_what_to_do(place: Path) -> None:
    """A newer index asks for a newer embedkit, an older one to be rebuilt; neither is changed by a try."""
    data = json.loads((place / "embedkit.json").read_text())
    for format, advice in ((data["format"] + 1, "update embedkit"), (1, "rebuild it"), ("x", "rebuild it")):
        (place / "embedkit.json").write_text(json.dumps({"format": format, "new": True}))
        before = files(place)
        for use in (Index.open, lambda p: Index.open(p, first_embedder()).delete(["d1"])):
            with pytest.raises(CorruptIndexError, match=f"has format {format!r}.*{advice}"):
                use(place)
        assert files(place) == before


def _edited(place: Path, edit: dict[str, Any]) -> None:
    """Write a manifest with other values and a right checksum."""
    data = json.loads((place / "embedkit.json").read_text())
    data.pop("checksum")
    (place / "embedkit.json").write_text(text_of({**data, **edit}))


SEGMENT = {
    "name": "segment-0",
    "documents": 1,
    "chunks": 1,
    "engine": {"type": "exact"},
    "files": {},
    "deletions": None,
}


@pytest.mark.parametrize(
    "edit",
    [
        {"chunks": "3"},
        {"segments": 5},
        {"segments": [{}]},
        {"segments": [{**SEGMENT, "engine": []}]},
        {"segments": [{**SEGMENT, "engine": {}}]},
        {"segments": [{**SEGMENT, "documents": "1"}]},
        {"segments": [{**SEGMENT, "name": 5}]},
        {"segments": [{**SEGMENT, "deletions": {"name": "x"}}]},
        {"segments": [{**SEGMENT, "files": {"chunks.arrow": {"bytes": "1", "sha256": "a"}}}]},
        {"segments": [{**SEGMENT, "files": {"chunks.arrow": {"bytes": 1, "sha256": None}}}]},
        {"segments": [{**SEGMENT, "unknown": 1}]},
        {"engine": []},
        {"embedder": {}},
        {"options": []},
        {"languages": []},
        {"skipped": 5},
        {"tasks": [5]},
        {"tasks": [{"x": 1}]},
        {"probes": []},
        {"probes": [{"text": "a", "vector": [1, 2]}]},
        {"dtype": "int8"},
        {"generation": None},
    ],
    ids=str,
)
def test_an_edited_manifest_is_refused(place: Path, edit: dict[str, Any]) -> None:
    """A value of the wrong type or shape is found when the index is opened, even under a checksum that fits."""
    _edited(place, edit)
    with pytest.raises(CorruptIndexError, match="embedkit.json cannot be read"):
        Index.open(place)


def test_an_edit_without_its_checksum_is_refused(place: Path) -> None:
    """A number changed by hand is refused."""
    data = json.loads((place / "embedkit.json").read_text())
    (place / "embedkit.json").write_text(
        json.dumps({**data, "next_id": 0}, ensure_ascii=False, indent=1) + "\n"
    )
    with pytest.raises(CorruptIndexError, match="checksum"):
        Index.open(place)


def test_a_manifest_cannot_lead_elsewhere(place: Path) -> None:
    """A segment or file name that is a path is refused: an index reads nothing outside its directory."""
    segment = json.loads((place / "embedkit.json").read_text())["segments"][0]
    name = segment["name"]
    for other in (
        {**segment, "name": f"../i/{name}"},
        {**segment, "name": str(place / name)},
        {**segment, "files": {"../embedkit.json": segment["files"]["chunks.arrow"]}},
        {**segment, "deletions": {**segment["deletions"], "name": "../x"}},
    ):
        _edited(place, {"segments": [other]})
        with pytest.raises(CorruptIndexError, match="path where a name"):
            Index.open(place)


def check_truncations(place: Path, times: int) -> None:
    """Cut every file at random places: opening refuses each."""
    rng = random.Random(3)
    for path in files(place):
        whole = path.read_bytes()
        for _ in range(times):
            os.truncate(path, rng.randrange(len(whole)))
            with pytest.raises(CorruptIndexError, match=path.name):
                Index.open(place)
            path.write_bytes(whole)
    Index.open(place).verify()


def test_truncations_in_miniature(place: Path) -> None:
    """Each of an index's files, cut at three random places, is refused when the index is opened."""
    check_truncations(place, 3)


@pytest.mark.soak
def test_truncations(place: Path) -> None:
    """Each of an index's files, cut at twenty random places, is refused when the index is opened."""
    check_truncations(place, 20)


def check_damages(folder: Path, engine: str, count: int) -> None:
    """Damage the files of an index: each is found, and what is searched all the same answers or says what it is."""
    make_index(folder, engine)
    outcomes, crashes = damage_files(folder, 0, count)
    assert crashes == []
    assert [o for o in outcomes if o.found not in ("open", "verify")] == []
    assert [o for o in outcomes if o.wrong] == []
    # Nearly every seed damages something: a few write what was there.
    assert len(outcomes) > 0.9 * count
    assert {o.kind for o in outcomes} == set(KINDS)
    assert Counter(o.found for o in outcomes)["verify"] > count // 2


def test_damages_in_miniature(tmp_path: Path) -> None:
    """Seeded damages, of one byte or some, four of each file: found, and survived where not looked for."""
    check_damages(tmp_path, "auto", 56)


@pytest.mark.soak
@pytest.mark.parametrize("engine", ["auto", "ivf-sq8", "hnsw", "IVF4,Flat"])
def test_damages(tmp_path: Path, engine: str) -> None:
    """Three thousand damages for each engine: found, and survived where not looked for."""
    check_damages(tmp_path, engine, 3000)


def test_a_lost_bitmap_brings_no_document_back(place: Path) -> None:
    """A bitmap of zeros in place of a segment's own is found, and a change on top of it keeps what it deleted."""
    before = state(place)
    assert before is not None
    index = open_index(place)
    index.delete(["d20"])
    path = _file(place, ".bits")
    whole = path.read_bytes()
    path.write_bytes(bytes(len(whole)))
    with pytest.raises(CorruptIndexError, match=path.name):
        Index.open(place).verify()
    path.write_bytes(whole)
    after = state(place)
    assert after is not None
    assert {r[0] for r in before.rows.values()} - {r[0] for r in after.rows.values()} == {"d20"}


def test_a_damaged_index_is_rebuilt_over(place: Path) -> None:
    """Where files are missing or the manifest is none, `overwrite` makes a whole index in their place."""
    for damage in ("vectors.arrow", "embedkit.json"):
        path = _file(place, damage)
        path.write_bytes(b"{")
        Index.build(place, documents(0, 30), first_embedder(), engine=EngineConfig(), overwrite=True)
        index = Index.open(place, first_embedder())
        index.verify()
        assert len(index.search("word1", k=100).hits) == 30
