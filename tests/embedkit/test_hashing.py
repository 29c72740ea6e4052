"""File hashes: right, remembered, and never in the way."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from embedkit import hashing
from embedkit.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test its own cache folder and an empty memory."""
    monkeypatch.setenv("EMBEDKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashing, "_known", {})
    monkeypatch.setattr(hashing, "_SMALLEST_CACHED", 0)
    return tmp_path / "cache" / "embedkit" / "file-hashes.json"


def _forget() -> None:
    hashing._known.clear()


def test_hash_is_sha256_of_content(tmp_path: Path) -> None:
    """The hash is the plain sha256 of the bytes, first time and from the cache."""
    path = tmp_path / "weights"
    path.write_bytes(b"abc" * 1000)
    expected = hashlib.sha256(b"abc" * 1000).hexdigest()
    assert hashing.file_hash(path) == expected
    _forget()
    assert hashing.file_hash(str(path)) == expected


def test_second_process_does_not_read_the_file_again(tmp_path: Path, cache: Path) -> None:
    """With path, size and mtime unchanged the digest comes from the cache file, not from the content."""
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    hashing.file_hash(path)
    entries = json.loads(cache.read_text())
    entries[str(path.resolve())][2] = "f" * 64
    cache.write_text(json.dumps(entries))
    _forget()
    assert hashing.file_hash(path) == "f" * 64


def test_small_files_are_not_worth_a_record(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is read faster than the cache is written is hashed every time, and crowds out no large one."""
    monkeypatch.setattr(hashing, "_SMALLEST_CACHED", 4)
    for name, content in (("small", b"abc"), ("large", b"abcd")):
        (tmp_path / name).write_bytes(content)
        assert hashing.file_hash(tmp_path / name) == hashlib.sha256(content).hexdigest()
    assert list(json.loads(cache.read_text())) == [str((tmp_path / "large").resolve())]


def test_changed_content_changes_the_hash(tmp_path: Path) -> None:
    """A new size, or the same size with a new mtime, makes the file be read again."""
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    first = hashing.file_hash(path)
    path.write_bytes(b"xyz")
    os.utime(path, ns=(1, 1))
    second = hashing.file_hash(path)
    path.write_bytes(b"longer")
    assert len({first, second, hashing.file_hash(path)}) == 3


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', '{"a": [1, 2, 3, 4]}', '{"a": [1, 2, "zz"]}'])
def test_corrupt_cache_is_ignored_and_mended(tmp_path: Path, cache: Path, content: str) -> None:
    """A cache file of any wrong shape gives the right digest and is replaced by a good one."""
    cache.parent.mkdir(parents=True)
    cache.write_text(content)
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    assert hashing.file_hash(path) == hashlib.sha256(b"abc").hexdigest()
    assert str(path.resolve()) in json.loads(cache.read_text())


def test_unusable_cache_folder_costs_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the cache folder cannot be made (here: a file is in its place) the digest still comes."""
    (tmp_path / "blocked").write_text("a file")
    monkeypatch.setenv("EMBEDKIT_CACHE", str(tmp_path / "blocked"))
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    assert hashing.file_hash(path) == hashlib.sha256(b"abc").hexdigest()


def test_no_temporary_file_stays(tmp_path: Path, cache: Path) -> None:
    """After writing, the cache folder holds the cache file alone."""
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    hashing.file_hash(path)
    assert [p.name for p in cache.parent.iterdir()] == [cache.name]


def test_missing_file_is_an_input_error(tmp_path: Path) -> None:
    """A path that does not exist is refused with the path in the message."""
    with pytest.raises(InputError, match="nowhere"):
        hashing.file_hash(tmp_path / "nowhere")


def test_joint_hash_depends_on_content_and_order_not_on_names(tmp_path: Path) -> None:
    """Renaming a shard keeps the joint hash; swapping two shards changes it."""
    a, b, c = (tmp_path / n for n in "abc")
    a.write_bytes(b"1")
    b.write_bytes(b"2")
    c.write_bytes(b"1")
    assert hashing.joint_hash([a, b]) == hashing.joint_hash([c, b])
    assert hashing.joint_hash([a, b]) != hashing.joint_hash([b, a])


def test_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """EMBEDKIT_CACHE wins over XDG_CACHE_HOME, which wins over ~/.cache; the sub-folder is embedkit."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert hashing.cache_dir() == tmp_path / "cache" / "embedkit"
    monkeypatch.delenv("EMBEDKIT_CACHE")
    assert hashing.cache_dir() == tmp_path / "xdg" / "embedkit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert hashing.cache_dir() == tmp_path / "home" / ".cache" / "embedkit"


def test_import_loads_no_numpy() -> None:
    """Importing the module brings in neither numpy nor torch."""
    code = "import embedkit.hashing, sys; print([m for m in ('numpy', 'torch') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
