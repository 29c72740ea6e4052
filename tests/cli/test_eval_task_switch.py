"""`embedkit eval task-switch`: tables, JSON and the picture, on word vectors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from embedkit.evaluation.task_switch import TASKS
from tests.cli.conftest import Invoke


def test_a_few_seeds_are_measured(invoke: Invoke, words: Path, tmp_path: Path) -> None:
    """`eval task-switch` and `--kind task-switch` are the same; JSON holds every task and both wordings' confusion."""
    asked = ["--embedder", words, "--seeds", "12", "--json"]
    picture = tmp_path / "confusion.svg"
    result = invoke("eval", "task-switch", *asked, "--plot", picture)
    assert result.exit_code == 0, result.stderr
    found, again = (
        json.loads(result.stdout),
        json.loads(invoke("eval", "--kind", "task-switch", *asked).stdout),
    )
    assert found["seeds"] == 12 and found["index"]["unchanged"] is True
    assert found["template"] == "Instruct: {instruction}\nQuery: {query}"
    assert "each is put before the query's text" in result.stderr and found["note"] in result.stderr
    assert {row["task"] for row in found["tasks"]} >= set(TASKS) - {"code"}
    assert set(found["confusion"]) == {"right", "held-out"} and found["default task"] in TASKS
    assert found["tasks"] == again["tasks"] and found["p-MRR by pair"] == again["p-MRR by pair"]
    assert picture.read_text(encoding="utf-8").startswith("<svg ")


def test_the_name_and_the_kind_may_both_be_given(invoke: Invoke, words: Path) -> None:
    """`eval task-switch --kind task-switch` is the task switch; under another kind the word is a SOURCE."""
    asked = ["--embedder", words, "--seeds", "2", "--json"]
    result = invoke("eval", "task-switch", "--kind", "task-switch", *asked)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["kind"] == "task-switch"
    other = invoke("eval", "task-switch", "--kind", "sts", "--embedder", words)
    assert other.exit_code == 2 and "task-switch" in other.stderr


def test_the_tables_fit_80_columns(invoke: Invoke, words: Path) -> None:
    """Nothing is cut off in a terminal of 80 columns; the held-out task and the default one are named."""
    result = invoke("eval", "task-switch", "--embedder", words, "--seeds", "8", env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.stderr
    assert "…" not in result.stdout
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    for words_ in ("contradicting", "headline*", "trained tasks", "default task", "index unchanged", "other"):
        assert words_ in result.stdout


def test_a_beir_folder_adds_distractors(invoke: Invoke, words: Path, tmp_path: Path) -> None:
    """--distractors puts a corpus's documents into the index."""
    (tmp_path / "corpus.jsonl").write_text('{"_id": "1", "text": "salt and pepper"}\n')
    result = invoke(
        "eval", "task-switch", "--embedder", words, "--seeds", "2", "--distractors", tmp_path, "--json"
    )
    assert json.loads(result.stdout)["further distractors"] == 1


@pytest.mark.parametrize("json_flag", [["--json"], []])
def test_a_picture_that_fails_leaves_the_report(
    invoke: Invoke, words: Path, tmp_path: Path, json_flag: list[str]
) -> None:
    """Where the disk is full when the picture is written, the report is printed; one sentence and exit code 2 follow."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no device that is always full")
    picture = tmp_path / "full.svg"
    picture.symlink_to("/dev/full")
    result = invoke("eval", "task-switch", "--embedder", words, "--seeds", "2", "--plot", picture, *json_flag)
    assert result.exit_code == 2
    assert f"error: --plot {picture} was not written (No space left on device)" in result.stderr
    if json_flag:
        assert json.loads(result.stdout)["plot"] is None
    else:
        assert "index unchanged" in result.stdout


def test_a_place_for_the_picture_is_tried_first(invoke: Invoke, tmp_path: Path) -> None:
    """A file that cannot be made is refused before the embedder is opened; the trial leaves no file, and none altered."""
    for picture in (tmp_path / f"{'x' * 300}.svg", tmp_path / "dangling.svg"):
        if picture.name == "dangling.svg":
            picture.symlink_to(tmp_path / "none" / "a.svg")
        result = invoke("eval", "task-switch", "--embedder", "nonsense", "--plot", picture)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith(f"error: --plot {picture} cannot be written (")
    old = tmp_path / "old.svg"
    old.write_text("as it was")
    for picture in (old, tmp_path / "new.svg"):
        result = invoke("eval", "task-switch", "--embedder", "nonsense", "--plot", picture)
        assert "unknown embedder" in result.stderr
    assert old.read_text() == "as it was" and not (tmp_path / "new.svg").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["task-switch", "more"], "error: task-switch takes no SOURCE"),
        (["task-switch", "--seeds", "0"], "error: invalid value for '--seeds'"),
        (["task-switch", "--plot", "a.png"], "error: --plot a.png does not end in .svg"),
        (["task-switch", "--plot", "{tmp}/none/a.svg"], "error: --plot {tmp}/none/a.svg cannot be written"),
        (
            ["task-switch", "--distractors", "{tmp}"],
            "error: {tmp}: holds no corpus.jsonl: give a BEIR folder",
        ),
        (["task-switch", "--instruction", "x"], "error: --instruction is for --kind retrieval, sts, "),
        (["task-switch", "--protocol", "paper"], "error: --protocol is for --kind retrieval, sts, "),
        (["task-switch", "--k", "20"], "error: --k is for --kind retrieval, not for task-switch"),
        (["--kind", "sts", "x", "--seeds", "5"], "error: --seeds is for --kind task-switch, not for sts"),
        (["task-switch", "--embedder", "nonsense"], "error: unknown embedder 'nonsense'"),
    ],
)
def test_bad_input_is_one_sentence(
    invoke: Invoke, tmp_path: Path, arguments: list[str], message: str
) -> None:
    """Each mistake ends with exit code 2 and one sentence."""
    result = invoke("eval", *(a.format(tmp=tmp_path) for a in arguments))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(message.format(tmp=tmp_path))
    assert result.stderr.count("\n") == 1
