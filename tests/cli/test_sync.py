"""`embedkit index` on an index that is there, and `embedkit add`: what a person expects of an edited folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Invoke

Change = Callable[..., dict[str, Any]]
COUNTS = ("added", "updated", "removed", "unchanged", "kept")


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with three documents in docs/."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs" / "more").mkdir(parents=True)
    (tmp_path / "docs" / "git.md").write_text("how to undo the last git commit")
    (tmp_path / "docs" / "net.md").write_text("a mosquito net keeps you healthy")
    (tmp_path / "docs" / "more" / "bread.md").write_text("bread needs time and water")
    return tmp_path


@pytest.fixture
def change(invoke: Invoke, words: Path) -> Change:
    """Return a function that runs a command with --json and returns its report."""

    def call(*arguments: object) -> dict[str, Any]:
        result = invoke(*arguments, "--json")
        assert result.exit_code == 0, result.stderr
        report: dict[str, Any] = json.loads(result.stdout)
        return report

    return call


@pytest.fixture
def built(desk: Path, words: Path, change: Change) -> Path:
    """The working folder with docs/ indexed as docs.index."""
    change("index", "docs", "-o", "docs.index", "--embedder", words)
    return desk


def _counts(report: dict[str, Any]) -> dict[str, int]:
    return {name: report[name] for name in COUNTS if report[name]}


def _ids(invoke: Invoke, index: object) -> set[str]:
    result = invoke("search", index, "git mosquito bread water commit", "--json")
    assert result.exit_code == 0, result.stderr
    return {hit["document_id"] for hit in json.loads(result.stdout)["hits"]}


def test_an_edited_folder_is_brought_into_step(built: Path, invoke: Invoke, change: Change) -> None:
    """One file edited, one removed, one new: each is counted, only new text is embedded, and searches see it."""
    (built / "docs" / "net.md").write_text("a mosquito net needs water")
    (built / "docs" / "git.md").unlink()
    (built / "docs" / "new.md").write_text("the moon pulls the water")
    report = change("index", "docs", "-o", "docs.index")
    assert _counts(report) == {"added": 1, "updated": 1, "removed": 1, "unchanged": 1}
    assert (report["documents"], report["embedded"], report["change"]) == (3, 2, "synchronised")
    assert _ids(invoke, "docs.index") == {"net.md", "new.md", "more/bread.md"}
    hits = json.loads(invoke("search", "docs.index", "mosquito", "-k", "1", "--json").stdout)["hits"]
    assert hits[0]["text"] == "a mosquito net needs water"


def test_a_file_that_only_moved_is_not_embedded_again(built: Path, change: Change) -> None:
    """A renamed file is a new document with the old one's vector."""
    (built / "docs" / "git.md").rename(built / "docs" / "undo.md")
    report = change("index", "docs", "-o", "docs.index")
    assert _counts(report) == {"added": 1, "removed": 1, "unchanged": 2}
    assert (report["embedded"], report["reused"]) == (0, 1)


def test_nothing_changed_writes_nothing(built: Path, invoke: Invoke) -> None:
    """An unchanged folder is told as such, and not a byte of the index is written."""
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in _files(built / "docs.index")}
    result = invoke("index", "docs", "-o", "docs.index")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "docs.index: nothing changed: 3 documents\n"
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in _files(built / "docs.index")} == before


def test_a_change_that_embeds_nothing_opens_no_embedder(
    desk: Path, words: Path, invoke: Invoke, change: Change
) -> None:
    """Where nothing is new the model need not even be there; where something is, nothing is changed without it."""
    shutil.copy(words, desk / "mine.txt")
    change("index", "docs", "-o", "i", "--embedder", "mine.txt")
    (desk / "mine.txt").unlink()
    assert _counts(change("index", "docs", "-o", "i")) == {"unchanged": 3}
    (desk / "docs" / "git.md").unlink()
    assert _counts(change("index", "docs", "-o", "i")) == {"removed": 1, "unchanged": 2}
    (desk / "docs" / "git.md").write_text("water")
    refused = invoke("index", "docs", "-o", "i")
    assert refused.exit_code == 2 and "mine.txt" in refused.stderr
    (desk / "mine.txt").write_text("water 1 0\nbread 0 1\n")
    refused = invoke("index", "docs", "-o", "i")
    assert refused.exit_code == 2 and "their vectors cannot be compared" in refused.stderr
    assert json.loads(invoke("info", "i", "--json").stdout)["documents"] == 2


def _files(index: Path) -> list[Path]:
    return sorted(p for p in index.rglob("*") if p.is_file() and p.name != "writer.lock")


def test_the_same_sources_are_known_by_any_path(
    built: Path, change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another folder, by another spelling, or unnamed: they are the same sources, with the same ids and names."""
    (built / "elsewhere").mkdir()
    monkeypatch.chdir(built / "elsewhere")
    for sources in ([built / "docs"], ["../docs/"], []):
        assert _counts(change("index", *sources, "-o", built / "docs.index")) == {"unchanged": 3}


def test_a_project_may_move(built: Path, change: Change, tmp_path_factory: pytest.TempPathFactory) -> None:
    """An index and its sources that move together stay in step."""
    moved = tmp_path_factory.mktemp("moved")
    shutil.copytree(built / "docs", moved / "docs")
    shutil.copytree(built / "docs.index", moved / "docs.index")
    (moved / "docs" / "git.md").unlink()
    report = change("index", moved / "docs", "-o", moved / "docs.index")
    assert _counts(report) == {"removed": 1, "unchanged": 2}


def test_other_sources_are_refused(built: Path, invoke: Invoke, change: Change) -> None:
    """Another folder would remove what the index holds: refused with both ways out; --force takes it alone."""
    (built / "notes").mkdir()
    (built / "notes" / "moon.md").write_text("the moon")
    for sources in (["notes"], ["docs", "notes"], ["docs/more"]):
        result = invoke("index", *sources, "-o", "docs.index")
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith("error: docs.index was made of docs, ")
        assert "embedkit add" in result.stderr and "--force" in result.stderr
        assert result.stderr.count("\n") == 1
    assert _ids(invoke, "docs.index") == {"git.md", "net.md", "more/bread.md"}
    assert change("index", "notes", "-o", "docs.index", "--force")["documents"] == 1


def test_an_added_source_stays(built: Path, words: Path, invoke: Invoke, change: Change) -> None:
    """`add` removes nothing, keeps apart files of one name, and the next `index` reads both sources."""
    (built / "notes").mkdir()
    (built / "notes" / "git.md").write_text("water and bread")
    assert _counts(change("add", "notes", "-o", "docs.index")) == {"added": 1}
    both = {"git.md", "net.md", "more/bread.md", "../notes/git.md"}
    assert _ids(invoke, "docs.index") == both
    for sources in (["docs", "notes"], ["notes", "docs"], []):
        assert _counts(change("index", *sources, "-o", "docs.index")) == {"unchanged": 4}
    result = invoke("index", "docs", "-o", "docs.index")
    assert result.exit_code == 2 and "was made of docs, notes" in result.stderr
    (built / "notes" / "git.md").write_text("the moon")
    (built / "docs" / "net.md").unlink()
    assert _counts(change("index", "-o", "docs.index")) == {"updated": 1, "removed": 1, "unchanged": 2}
    assert _counts(change("add", "notes", "-o", "docs.index")) == {"unchanged": 1}


def test_added_records_take_the_place_of_those_before(built: Path, words: Path, change: Change) -> None:
    """A later file's record of the same id replaces the earlier one, when added and at every synchronisation."""
    (built / "a.jsonl").write_text('{"_id": "x", "text": "git"}\n{"_id": "y", "text": "net"}\n')
    (built / "b.jsonl").write_text('{"_id": "x", "text": "bread"}\n')
    change("index", "a.jsonl", "-o", "i", "--embedder", words)
    assert _counts(change("add", "b.jsonl", "-o", "i")) == {"updated": 1}
    assert _counts(change("index", "a.jsonl", "b.jsonl", "-o", "i")) == {"unchanged": 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-tokens", "64"], "error: docs.index was built with --max-tokens 256, not 64: "),
        (["--overlap", "0.25"], "error: docs.index was built with --overlap 0.125, not 0.25: "),
        (["--no-split"], "error: docs.index was built with --no-split off, not on: "),
        (["--vectors", "float32"], "error: docs.index was built with --vectors float16, not float32: "),
        (["--engine", "hnsw"], "error: docs.index was built with --engine auto, not hnsw: "),
        (["--recall", "0.99"], "error: docs.index was built with --recall 0.95, not 0.99: "),
        (
            ["--memory-budget", "2GB"],
            "error: docs.index was built with --memory-budget none, not 2,000,000,000: ",
        ),
        (
            ["--tune-queries", "q.txt"],
            "error: docs.index is there already, and --tune-queries tunes a new index: ",
        ),
        (["--embedder", "other.txt"], "error: docs.index was built with words.txt (32 dimensions, ek1:"),
    ],
)
def test_what_an_index_was_built_with_is_not_changed_by_an_option(
    built: Path, invoke: Invoke, options: list[str], message: str
) -> None:
    """An option that says otherwise is refused with both values and the way out; the index stays."""
    (built / "other.txt").write_text("git 1 0\nnet 0 1\n")
    (built / "docs" / "git.md").unlink()
    result = invoke("index", "docs", "-o", "docs.index", *options)
    assert (result.exit_code, result.stdout) == (2, "")
    engine = options[0] in ("--engine", "--recall", "--memory-budget")
    way = f"`embedkit compact docs.index {options[0]} " if engine else "--force"
    assert result.stderr.startswith(message) and way in result.stderr
    assert result.stderr.count("\n") == 1
    assert "git.md" in _ids(invoke, "docs.index")


def test_the_same_options_may_be_said_again(built: Path, words: Path, change: Change) -> None:
    """The command that built an index synchronises it too."""
    again = ["--embedder", words, "--max-tokens", "256", "--vectors", "float16", "--engine", "auto"]
    assert _counts(change("index", "docs", "-o", "docs.index", *again)) == {"unchanged": 3}


def test_what_cannot_be_read_is_kept(built: Path, invoke: Invoke) -> None:
    """A file that became unreadable is reported, and what was read of it before stays."""
    (built / "docs" / "git.md").write_bytes(b"\xff\xfe\x00")
    result = invoke("index", "docs", "-o", "docs.index")
    assert result.exit_code == 0
    assert "kept: 1 document that may stand in a file or record that could not be read" in result.stdout
    assert "docs/git.md" in result.stderr
    assert "git.md" in _ids(invoke, "docs.index")


def test_what_cannot_be_read_is_kept_from_elsewhere(
    built: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same holds where the sources are named by another path than they were first."""
    (built / "docs" / "git.md").write_bytes(b"\xff\xfe\x00")
    monkeypatch.chdir("/")
    assert "kept: 1 document" in invoke("index", built / "docs", "-o", built / "docs.index").stdout


def test_an_empty_source_removes_nothing(built: Path, invoke: Invoke) -> None:
    """A folder without any document (a disk that is not mounted) is refused."""
    shutil.rmtree(built / "docs")
    (built / "docs").mkdir()
    result = invoke("index", "docs", "-o", "docs.index")
    assert result.exit_code == 2 and "nothing was removed" in result.stderr
    assert len(_ids(invoke, "docs.index")) == 3


RECORDS = [f'{{"_id": "r{i}", "text": "git number {i}"}}' for i in range(6)]
BROKEN = '{"_id": "r5", "text": '


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
@pytest.mark.parametrize(
    ("lines", "counts"),
    [
        ([*RECORDS[:2], BROKEN, *RECORDS[2:5]], {"unchanged": 5, "kept": 1}),
        ([BROKEN, *RECORDS[:3]], {"unchanged": 3, "removed": 3}),
        ([BROKEN, "null", *RECORDS[:4]], {"unchanged": 4, "kept": 2}),
        ([*RECORDS[:3], BROKEN], {"unchanged": 3, "kept": 3}),
        ([*RECORDS[:3], '{"_id": "r4", "text": ""}'], {"unchanged": 3, "removed": 3}),
    ],
    ids=["one broken", "more missing than broken", "two broken", "cut short", "no text"],
)
def test_records_that_are_gone_go_from_a_file_with_broken_ones(
    built: Path,
    words: Path,
    change: Change,
    lines: list[str],
    counts: dict[str, int],
    elsewhere: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a broken record may hold stays; where more is missing than is broken, or nothing is broken, it goes."""
    (built / "c.jsonl").write_text("\n".join(RECORDS))
    change("index", "c.jsonl", "-o", "i", "--embedder", words)
    (built / "c.jsonl").write_text("\n".join(lines))
    if elsewhere:
        monkeypatch.chdir("/")
    assert _counts(change("index", "-o", built / "i")) == counts


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
def test_one_empty_source_of_several_removes_nothing(
    built: Path, invoke: Invoke, change: Change, elsewhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source that gave documents and gives none is refused with their number, and deleting them is the way out."""
    (built / "notes").mkdir()
    (built / "notes" / "moon.md").write_text("the moon pulls the water")
    change("add", "notes", "-o", "docs.index")
    (built / "notes" / "moon.md").unlink()
    (built / "docs" / "new.md").write_text("git bread")
    before = _files(built / "docs.index")
    index = built / "docs.index" if elsewhere else Path("docs.index")
    if elsewhere:
        monkeypatch.chdir("/")
    refused = invoke("index", "-o", index)
    assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert refused.stderr.startswith(
        f"error: notes holds no document now, and 1 of {index} came from it; nothing"
    )
    assert [p for p in _files(built / "docs.index") if p.suffix != ".shard"] == before
    assert "../notes/moon.md" in _ids(invoke, index)
    way = 'source startswith "notes/"'
    assert f"embedkit delete {index} --where '{way}'" in refused.stderr
    assert change("delete", index, "--where", way)["removed"] == 1
    assert _counts(change("index", "-o", index)) == {"added": 1, "unchanged": 3}


def test_an_emptied_file_removes_nothing(built: Path, words: Path, invoke: Invoke, change: Change) -> None:
    """The same holds for a file among several sources; one that never gave anything hinders nobody."""
    (built / "c.jsonl").write_text('{"_id": "c", "text": "git"}\n')
    (built / "hollow").mkdir()
    change("index", "docs", "c.jsonl", "hollow", "-o", "i", "--embedder", words)
    assert _counts(change("index", "-o", "i")) == {"unchanged": 4}
    (built / "c.jsonl").write_text("")
    refused = invoke("index", "-o", "i")
    assert refused.exit_code == 2 and "`embedkit delete i --source c.jsonl`" in refused.stderr
    assert change("delete", "i", "--source", "c.jsonl")["removed"] == 1
    assert _counts(change("index", "-o", "i")) == {"unchanged": 3}


def test_a_source_inside_another_is_not_empty(built: Path, words: Path, change: Change) -> None:
    """A folder whose documents came with the one around it has given them, and may lose one."""
    change("index", "docs", "docs/more", "-o", "i", "--embedder", words)
    assert _counts(change("index", "-o", "i")) == {"unchanged": 3}
    (built / "docs" / "git.md").unlink()
    assert _counts(change("index", "-o", "i")) == {"removed": 1, "unchanged": 2}


def test_how_records_are_read_is_remembered(built: Path, words: Path, change: Change) -> None:
    """The fields named when an index was built hold for the next time; others may be named."""
    (built / "c.jsonl").write_text('{"_id": 1, "body": "git", "note": "bread"}\n')
    change("index", "c.jsonl", "-o", "i", "--embedder", words, "--text-field", "body")
    assert _counts(change("index", "c.jsonl", "-o", "i")) == {"unchanged": 1}
    assert _counts(change("index", "c.jsonl", "-o", "i", "--text-field", "note")) == {"updated": 1}
    assert _counts(change("index", "-o", "i")) == {"unchanged": 1}


def test_tasks_are_replaced_where_a_file_is_given(built: Path, invoke: Invoke) -> None:
    """--tasks replaces the stored tasks and embeds nothing; without it they stay, whatever EMBEDKIT_TASKS names."""
    (built / "t.toml").write_text('[law]\ninstruction = "Find the law"\n')

    def stored() -> list[str]:
        return [t["name"] for t in json.loads(invoke("info", "docs.index", "--json").stdout)["tasks"]]

    assert stored() == []
    told = invoke("index", "docs", "-o", "docs.index", "--tasks", "t.toml").stdout
    assert "3 unchanged documents; 0 chunks embedded" in told
    assert stored() == ["law"]
    (built / "docs" / "git.md").unlink()
    (built / "e.toml").write_text('[recipe]\ninstruction = "Find the recipe"\n')
    assert invoke("index", "docs", "-o", "docs.index", env={"EMBEDKIT_TASKS": "e.toml"}).exit_code == 0
    assert stored() == ["law"]


def test_an_index_of_a_program_is_not_synchronised(
    built: Path, words: Path, invoke: Invoke, change: Change
) -> None:
    """An index that names no sources is refused, also after `add`: what the program put in would go."""
    from embedkit_indexes import Document, Index

    Index.build("p", [Document("a", "git commit")], str(words))
    for _ in range(2):
        result = invoke("index", "docs", "-o", "p")
        assert result.exit_code == 2 and "p does not say what it was made of" in result.stderr
        report = change("add", "docs", "-o", "p")
        assert report["documents"] == 4


def test_piped_documents_are_piped_again(built: Path, words: Path, invoke: Invoke) -> None:
    """An index of standard input is synchronised with what is piped in, and refused where nothing is named."""
    for text, count in (("git", "added"), ("bread", "updated")):
        result = invoke("index", "-", "-o", "i", "--embedder", words, "--json", input=text)
        assert json.loads(result.stdout)[count] == 1
    result = invoke("index", "-o", "i")
    assert result.exit_code == 2 and "standard input" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["index", "-o", "new.index"], "error: no SOURCE was given"),
        (
            ["index", "-o", "new.index", "docs", "--memory-budget", "lots"],
            "error: invalid value for '--memory-budget'",
        ),
        (["index", "-o", "new.index", "docs", "--recall", "2"], "error: recall is 2.0"),
        (["index", "-o", "new.index", "docs", "--tune-queries", "none.txt"], "error: none.txt"),
        (["index", "-o", "docs.index", "none"], "error: docs.index was made of docs"),
        (["add", "-o", "docs.index", "none"], "error: none: no such file or folder"),
        (["add", "-o", "new.index", "docs"], "error: new.index does not exist"),
        (["add", "-o", "docs.index"], "error: missing argument"),
    ],
)
def test_bad_input_is_one_sentence(built: Path, invoke: Invoke, arguments: list[str], message: str) -> None:
    """Each mistake ends with exit code 2 and one sentence."""
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(message) and result.stderr.count("\n") == 1
