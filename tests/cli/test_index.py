"""`embedkit index`: what is stored, what is reported, and every way a source can be wrong."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import SAMPLE, Invoke, Run

CORPUS = SAMPLE / "corpus.jsonl"


def test_the_report_counts_what_was_stored(invoke: Invoke, words: Path, tmp_path: Path) -> None:
    """--json reports documents, chunks, languages and the embedder's full name; `info` says the same."""
    result = invoke("index", CORPUS, "-o", tmp_path / "i", "--embedder", words, "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["documents"] == 313
    assert report["chunks"] >= 313
    assert report["languages"]["de"] == 17
    assert report["embedder"] == f"static:{words}"
    info = json.loads(invoke("info", tmp_path / "i", "--json").stdout)
    assert (info["documents"], info["chunks"]) == (report["documents"], report["chunks"])


def test_people_get_a_summary_on_stdout_and_no_progress_in_a_pipe(
    run: Run, words: Path, tmp_path: Path
) -> None:
    """Without --json stdout says what was stored; stderr stays empty where it is no terminal."""
    done = run("index", CORPUS, "-o", tmp_path / "i", "--embedder", words)
    assert "313 documents" in done.stdout and "languages: en " in done.stdout
    assert done.stderr == ""


def test_an_index_is_replaced_only_by_force(invoke: Invoke, words: Path, tmp_path: Path) -> None:
    """Other sources into the same folder are refused and leave the first index searchable; --force replaces it."""
    (tmp_path / "one.jsonl").write_text('{"_id": "only", "text": "mosquito net"}\n')
    build = ["index", "-o", tmp_path / "i", "--embedder", words]
    assert invoke(*build, CORPUS).exit_code == 0
    refused = invoke(*build, tmp_path / "one.jsonl")
    assert refused.exit_code == 2
    assert "--force" in refused.stderr and refused.stderr.count("\n") == 1
    assert json.loads(invoke("info", tmp_path / "i", "--json").stdout)["documents"] == 313
    assert invoke(*build, tmp_path / "one.jsonl", "--force").exit_code == 0
    assert json.loads(invoke("info", tmp_path / "i", "--json").stdout)["documents"] == 1


def test_a_taken_place_is_refused_before_the_model_is_opened(
    invoke: Invoke, words: Path, tmp_path: Path
) -> None:
    """The place is checked first: an embedder that could not even be opened is not asked for."""
    (tmp_path / "thesis.txt").write_text("years of work")
    result = invoke("index", CORPUS, "-o", tmp_path, "--embedder", "./no/such/model")
    assert result.exit_code == 2
    assert "thesis.txt" in result.stderr


def test_an_index_opens_from_any_folder(run: Run, words: Path, tmp_path: Path) -> None:
    """An embedder given by a relative path is stored by its full one."""
    run("index", CORPUS, "-o", "i", "--embedder", f"./{words.name}", cwd=tmp_path)
    done = run("index", CORPUS, "-o", tmp_path / "i", "--embedder", f"./{words.name}", cwd=words.parent)
    assert done.returncode == 0, done.stderr
    assert run("search", "i", "git", "--json", cwd=tmp_path).returncode == 0


def test_fields_and_language_can_be_named(invoke: Invoke, words: Path, tmp_path: Path) -> None:
    """--text-field, --title-field, --id-field and --lang choose what a record's fields mean."""
    (tmp_path / "c.jsonl").write_text('{"key": 7, "name": "Net", "body": "mosquito net"}\n')
    done = invoke(
        "index", tmp_path / "c.jsonl", "-o", tmp_path / "i", "--embedder", words,
        "--id-field", "key", "--title-field", "name", "--text-field", "body", "--lang", "nl",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    hit = json.loads(invoke("search", tmp_path / "i", "mosquito", "--json").stdout)["hits"][0]
    assert (hit["document_id"], hit["title"], hit["lang"]) == ("7", "Net", "nl")


def test_stdin_is_a_source(run: Run, words: Path, tmp_path: Path) -> None:
    """`-` reads JSON lines from standard input."""
    lines = '{"_id": "a", "text": "mosquito net"}\n{"_id": "b", "text": "git commit"}\n'
    done = run(
        "index", "-", "--format", "jsonl", "-o", tmp_path / "i", "--embedder", words, "--json", input=lines
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["documents"] == 2


BROKEN = '{"_id": "a", "text": "git commit"}\n{"_id": "b", "text": \n{"_id": "c", "text": "mosquito net"}\n'


def test_a_broken_record_is_skipped_and_reported(invoke: Invoke, words: Path, tmp_path: Path) -> None:
    """Without --strict the good records are stored and the broken one is named with its line."""
    (tmp_path / "c.jsonl").write_text(BROKEN)
    build = ["index", tmp_path / "c.jsonl", "--embedder", words]
    people = invoke(*build, "-o", tmp_path / "i")
    assert people.exit_code == 0
    assert "skipped: 1" in people.stderr and "c.jsonl, line 2: " in people.stderr
    report = json.loads(invoke(*build, "-o", tmp_path / "j", "--json").stdout)
    assert (report["documents"], report["skipped_count"]) == (2, 1)


def test_a_files_name_cannot_steer_the_terminal(invoke: Invoke, words: Path, tmp_path: Path) -> None:
    """Escape sequences in the names of skipped files and in errors are printed without their control characters."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "good.txt").write_text("git commit")
    (tmp_path / "docs" / "\x1b]0;owned\x07.txt").write_bytes(b"\0\1")
    result = invoke("index", tmp_path / "docs", "-o", tmp_path / "i", "--embedder", words, color=True)
    assert result.exit_code == 0
    assert "owned" in result.stderr
    wrong = invoke("search", "\x1b[31mno-index", "git", color=True)
    assert wrong.exit_code == 2
    assert not any(c in result.stderr + wrong.stderr for c in "\x1b\x07")


def test_a_file_name_that_is_no_utf8_is_indexed(invoke: Invoke, words: Path, tmp_path: Path) -> None:
    """A name in an old encoding is written with its bytes as escapes; the file is read like any other."""
    (tmp_path / "docs").mkdir()
    try:
        (tmp_path / "docs" / os.fsdecode(b"caf\xe9.txt")).write_text("git commit")
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    assert invoke("index", tmp_path / "docs", "-o", tmp_path / "i", "--embedder", words).exit_code == 0
    hit = json.loads(invoke("search", tmp_path / "i", "git", "--json").stdout)["hits"][0]
    assert hit["document_id"] == r"caf\xe9.txt"


def test_strict_stops_at_a_broken_record(invoke: Invoke, words: Path, tmp_path: Path) -> None:
    """With --strict the same file is refused with its line, and no index is left behind."""
    (tmp_path / "c.jsonl").write_text(BROKEN)
    result = invoke("index", tmp_path / "c.jsonl", "-o", tmp_path / "i", "--embedder", words, "--strict")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "c.jsonl, line 2: " in result.stderr and result.stderr.count("\n") == 1
    assert invoke("info", tmp_path / "i").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/none"], "error: {tmp}/none"),
        (["{tmp}/empty.jsonl"], "error: "),
        (["{tmp}/folder"], "error: "),
        (["{corpus}", "--embedder", "no-such"], "error: unknown embedder 'no-such'"),
        (["{corpus}", "--embedder", "./no/such"], "error: embedder path './no/such' does not exist"),
        (["{corpus}", "--embedder-option", "x"], "error: --embedder-option 'x' is not KEY=VALUE"),
        (
            ["{corpus}", "--embedder-option", "limitt=3"],
            "error: unknown option of the embedder 'static': 'limitt'",
        ),
        (["{corpus}", "--device", "cuda"], "error: unknown option of the embedder 'static': 'device'"),
        (["{corpus}", "--format", "jsonlines"], "error: unknown format 'jsonlines': did you mean json"),
        (["{corpus}", "--max-tokens", "1"], "error: max_tokens 1 is too small"),
        (["{corpus}", "--tasks", "{tmp}/none.toml"], "error: tasks file"),
    ],
)
def test_bad_input_is_one_sentence(
    invoke: Invoke, words: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    """Each mistake ends with exit code 2, one sentence and no index."""
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "folder").mkdir()
    filled = [a.format(tmp=tmp_path, corpus=CORPUS) for a in arguments]
    embedder = [] if "--embedder" in filled else ["--embedder", words]
    result = invoke("index", *filled, "-o", tmp_path / "i", *embedder)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(message.format(tmp=tmp_path))
    assert result.stderr.count("\n") == 1
    assert invoke("info", tmp_path / "i").exit_code == 2


def test_a_folder_with_other_files_is_not_overwritten(invoke: Invoke, words: Path, tmp_path: Path) -> None:
    """An output folder that holds something else is refused, and --force does not delete it."""
    (tmp_path / "thesis.txt").write_text("years of work")
    for force in ([], ["--force"]):
        result = invoke("index", CORPUS, "-o", tmp_path, "--embedder", words, *force)
        assert (tmp_path / "thesis.txt").read_text() == "years of work"
        if not force:
            assert result.exit_code == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB; skipped where this process may not mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except OSError:
        pytest.skip("no mount command")
    if done.returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield place
    subprocess.run(["umount", str(place)], check=False)


def test_a_full_disk_is_one_sentence(run: Run, words: Path, small_disk: Path) -> None:
    """A build onto a full file system ends with exit code 2 and the sentence about space."""
    done = run("index", CORPUS, "-o", small_disk / "i", "--embedder", words)
    assert done.returncode == 2, done.stderr
    assert "space" in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_a_file_size_limit_is_one_sentence(run: Run, words: Path, tmp_path: Path) -> None:
    """A build under `ulimit -f` of 16 KiB ends with exit code 2, one sentence and no index."""
    limit = 16 << 10
    done = run(
        "index", CORPUS, "-o", tmp_path / "i", "--embedder", words, "--embedder-option", "cache=false",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert run("info", tmp_path / "i").returncode == 2


def _without_override() -> None:
    # Root passes every permission check by this capability: give it up for good, before the exec.
    prctl, drop_from_bounding_set, dac_override = ctypes.CDLL(None).prctl, 24, 1
    if prctl(drop_from_bounding_set, dac_override, 0, 0, 0):
        raise OSError("the capability cannot be dropped")


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
def test_no_permission_is_one_sentence(run: Run, words: Path, tmp_path: Path) -> None:
    """A build into a folder without write permission ends with exit code 2 and one sentence, under root too."""
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    preexec = _without_override if os.geteuid() == 0 else None
    done = run("index", CORPUS, "-o", locked / "i", "--embedder", words, preexec_fn=preexec)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "permission" in done.stderr.lower()
