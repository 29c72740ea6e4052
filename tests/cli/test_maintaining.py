"""`embedkit delete`, `compact`, `verify`, `export`, `import` and `migrate`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.conftest import Invoke, Run

RECORDS = [
    {"_id": "git", "text": "how to undo the last git commit", "year": 2019},
    {"_id": "net", "text": "a mosquito net keeps you healthy", "year": 2021},
    {"_id": "bread", "text": "bread needs time and water", "year": 2023},
]


@pytest.fixture
def index(tmp_path: Path, words: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index of three records, and one of a text file in a segment of its own."""
    monkeypatch.chdir(tmp_path)
    Path("c.jsonl").write_text("".join(json.dumps(r) + "\n" for r in RECORDS))
    Path("moon.txt").write_text("the moon pulls the water")
    for arguments in (["index", "c.jsonl", "--embedder", words], ["add", "moon.txt"]):
        result = invoke(*arguments, "-o", "i")
        assert result.exit_code == 0, result.stderr
    return tmp_path / "i"


def _json(invoke: Invoke, *arguments: object) -> Any:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def _found(invoke: Invoke, index: object) -> list[tuple[str, float]]:
    hits = _json(invoke, "search", index, "git mosquito bread water moon")["hits"]
    return [(h["document_id"], h["score"]) for h in hits]


def _ids(invoke: Invoke, index: object) -> set[str]:
    return {id for id, _ in _found(invoke, index)}


@pytest.mark.parametrize(
    ("what", "left"),
    [
        (["git", "net"], {"bread", "moon.txt"}),
        (["--source", "moon.txt"], {"git", "net", "bread"}),
        (["--where", "year >= 2021"], {"git", "moon.txt"}),
        (["--source", "c.jsonl", "--where", "year < 2020"], {"net", "bread", "moon.txt"}),
        (["bread", "--where", 'id startswith "g"'], {"net", "moon.txt"}),
    ],
)
def test_documents_are_deleted_by_id_source_and_filter(
    index: Path, invoke: Invoke, what: list[str], left: set[str]
) -> None:
    """A dry run counts and deletes nothing; then just these are gone, and no search finds them."""
    told = _json(invoke, "delete", index, *what, "--dry-run")
    assert (told["removed"], told["documents"]) == (4 - len(left), 4)
    assert len(_ids(invoke, index)) == 4
    report = _json(invoke, "delete", index, *what)
    assert (report["removed"], report["documents"]) == (4 - len(left), len(left))
    assert _ids(invoke, index) == left


def test_ids_that_are_not_there_are_told(index: Path, invoke: Invoke) -> None:
    """Unknown ids are passed over with a note."""
    result = invoke("delete", index, "git", "nobody")
    assert (result.exit_code, result.stderr) == (0, f"note: 1 of the 2 ids is not in {index}\n")
    assert result.stdout.startswith(f"{index}: 1 document deleted\nnow: 3 documents")


def test_all_documents_may_go(index: Path, invoke: Invoke) -> None:
    """An index without documents stays one: it finds nothing, and takes new ones."""
    assert _json(invoke, "delete", index, "--where", "id exists")["documents"] == 0
    assert _found(invoke, index) == []
    assert _json(invoke, "add", "moon.txt", "-o", index)["documents"] == 1
    assert _ids(invoke, index) == {"moon.txt"}


def test_compacting_gives_back_what_is_deleted(index: Path, invoke: Invoke) -> None:
    """One segment without deleted chunks is left, hits are the same, and a second time there is nothing to do."""
    invoke("delete", index, "git")
    before = _found(invoke, index)
    done = invoke("compact", index)
    assert done.exit_code == 0, done.stderr
    segments = _json(invoke, "info", index)["segments"]
    assert [(s["documents"], s["deletions"]) for s in segments] == [(3, None)]
    assert _found(invoke, index) == before
    assert "nothing to do" in invoke("compact", index).stdout
    assert "every file verified" in invoke("verify", index).stdout


def test_compacting_changes_how_an_index_is_searched(index: Path, invoke: Invoke) -> None:
    """--engine, --recall and --memory-budget are stored, each on top of those before; nothing is embedded."""

    def stored() -> dict[str, Any]:
        engine: dict[str, Any] = json.loads((index / "embedkit.json").read_text())["engine"]
        return {name: engine[name] for name in ("type", "recall", "memory_budget")}

    before = _found(invoke, index)
    report = _json(invoke, "compact", index, "--engine", "exact", "--recall", "0.9")
    assert (report["embedded"], report["segments"]) == (0, 1)
    assert stored() == {"type": "exact", "recall": 0.9, "memory_budget": None}
    invoke("compact", index, "--memory-budget", "1GB")
    assert stored() == {"type": "exact", "recall": 0.9, "memory_budget": 10**9}
    assert _found(invoke, index) == before
    told = invoke("index", "-o", index, "--engine", "hnsw")
    assert told.exit_code == 2 and f"`embedkit compact {index} --engine hnsw`" in told.stderr
    refused = invoke("compact", index, "--memory-budget", "100")
    assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert "and the memory budget is 100 bytes: raise it" in refused.stderr
    assert stored()["memory_budget"] == 10**9
    assert _found(invoke, index) == before


def test_verify_names_the_file_in_which_a_byte_changed(index: Path, invoke: Invoke) -> None:
    """Each file in its turn: one flipped bit is found, exit code 2, one sentence with the file's name."""
    assert _json(invoke, "verify", index)["verified"] is True
    for path in sorted(p for p in index.rglob("*") if p.is_file() and p.name != "writer.lock"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        result = invoke("verify", index)
        assert (result.exit_code, result.stdout) == (2, ""), path
        assert path.name in result.stderr and result.stderr.count("\n") == 1
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    assert invoke("verify", index).exit_code == 0


def test_an_exported_index_is_imported_whole(index: Path, invoke: Invoke) -> None:
    """Export and import give the same hits with the same scores; a file or index that is there needs --force."""
    invoke("delete", index, "git")
    assert _json(invoke, "export", index, "i.parquet")["chunks"] == 3
    assert _json(invoke, "import", "i.parquet", "-o", "copy")["documents"] == 3
    assert _found(invoke, "copy") == _found(invoke, index)
    for again in (["export", index, "i.parquet"], ["import", "i.parquet", "-o", "copy"]):
        refused = invoke(*again)
        assert refused.exit_code == 2 and "--force" in refused.stderr
        assert invoke(*again, "--force").exit_code == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_export_and_import_show_their_progress(
    index: Path, run: Run, read_terminal: Callable[[int], bytes]
) -> None:
    """On a terminal both say what they do and how many chunks are done; elsewhere stderr stays empty."""
    import pty

    for arguments, phase in (
        (["export", index, "i.parquet"], "exporting"),
        (["import", "i.parquet", "-o", "copy"], "importing"),
    ):
        assert run(*arguments).stderr == ""
        ours, theirs = pty.openpty()
        done = run(*arguments, "--force", capture_output=False, stdout=subprocess.PIPE, stderr=theirs)
        os.close(theirs)
        seen = read_terminal(ours).decode()
        assert done.returncode == 0, seen
        assert phase in seen and "4 chunks" in seen


def test_an_imported_index_is_synchronised(index: Path, invoke: Invoke) -> None:
    """Beside the sources that it was made of, an imported index is brought into step as the first one was."""
    invoke("export", index, "i.parquet")
    invoke("import", "i.parquet", "-o", "copy")
    Path("moon.txt").unlink()
    Path("moon.txt").write_text("bread")
    report = _json(invoke, "index", "c.jsonl", "moon.txt", "-o", "copy")
    assert (report["updated"], report["unchanged"], report["embedded"]) == (1, 3, 1)


def test_an_index_migrates_to_another_embedder(index: Path, words: Path, invoke: Invoke) -> None:
    """All chunks are embedded again without their sources, ids and texts stay, and the next sync is with the new one."""
    vectors = np.random.default_rng(1).standard_normal((9, 16))
    known = ("git", "commit", "mosquito", "net", "bread", "water", "moon", "time", "last")
    rows = (f"{w} {' '.join(f'{x:.3f}' for x in v)}\n" for w, v in zip(known, vectors, strict=True))
    Path("other.txt").write_text("".join(rows))
    before = _ids(invoke, index)
    report = _json(invoke, "migrate", index, "--embedder", "other.txt")
    assert (report["embedded"], report["chunks"]) == (4, 4)
    assert report["fingerprint"] != report["fingerprint_before"]
    info = _json(invoke, "info", index)
    assert (info["dim"], info["fingerprint"]) == (16, report["fingerprint"])
    assert _ids(invoke, index) == before
    assert _json(invoke, "index", "-o", index)["unchanged"] == 4
    assert invoke("verify", index).exit_code == 0
    back = _json(invoke, "migrate", index, "--embedder", words, "--vectors", "float32")
    assert (back["fingerprint"], _json(invoke, "info", index)["dtype"]) == (
        report["fingerprint_before"],
        "float32",
    )


def test_migrating_to_what_it_is_does_nothing(index: Path, words: Path, invoke: Invoke) -> None:
    """The same embedder under the same name changes nothing; moved to another path, it is only noted."""
    assert "nothing to do" in invoke("migrate", index, "--embedder", words).stdout
    moved = Path("moved.txt").resolve()
    moved.write_bytes(words.read_bytes())
    report = _json(invoke, "migrate", index, "--embedder", "moved.txt")
    assert (report["embedded"], report["reused"]) == (0, 4)
    assert _json(invoke, "info", index)["spec"] == f"static:{moved}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["delete", "i"], "error: nothing was named to delete"),
        (["delete", "i", "--where", "yaer > 3"], "error: unknown field 'yaer': did you mean year?"),
        (["delete", "i", "--where", "year >"], "error: "),
        (["delete", "none", "x"], "error: none does not exist"),
        (["compact", "none"], "error: none does not exist"),
        (["compact", "i", "--engine", "hsnw"], "error: unknown engine 'hsnw': did you mean hnsw?"),
        (["compact", "i", "--recall", "2"], "error: recall is 2.0"),
        (["verify", "none"], "error: none does not exist"),
        (["export", "none", "x.parquet"], "error: none does not exist"),
        (["export", "i", "no/such/x.parquet"], "error: no/such is no folder"),
        (["import", "none.parquet", "-o", "j"], "error: none.parquet: no such file"),
        (["import", "c.jsonl", "-o", "j"], "error: c.jsonl: is no Parquet file"),
        (["import", "x.parquet"], "error: missing option '-o'"),
        (["migrate", "i"], "error: say what to migrate to"),
        (["migrate", "i", "--embedder", "no-such"], "error: unknown embedder 'no-such'"),
        (["migrate", "none", "--embedder", "bundled"], "error: none does not exist"),
    ],
)
def test_bad_input_is_one_sentence(index: Path, invoke: Invoke, arguments: list[str], message: str) -> None:
    """Each mistake ends with exit code 2 and one sentence, and the index is as it was."""
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(message), result.stderr
    assert result.stderr.count("\n") == 1
    assert len(_ids(invoke, index)) == 4
