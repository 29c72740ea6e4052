"""`embedkit tasks`, `info` and `explain`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from embedkit.tasks import BUILT_IN_TASKS
from embedkit_indexes import Index
from tests.cli.conftest import SAMPLE, Invoke


def _instruction(invoke: Invoke, *arguments: object, **env: str) -> tuple[str, str]:
    result = invoke("tasks", *arguments, "--json", env=env)
    assert result.exit_code == 0, result.stderr
    task = next(t for t in json.loads(result.stdout) if t["name"] == "qa")
    return task["instruction"], task["origin"]


def test_a_task_is_taken_from_file_then_index_then_built_in(
    invoke: Invoke, sample_index: Path, tmp_path: Path
) -> None:
    """The same name in all three places: --tasks wins over EMBEDKIT_TASKS, that over the index, that over built-in."""
    (tmp_path / "a.toml").write_text('[qa]\ninstruction = "From the file"\n')
    (tmp_path / "b.toml").write_text('[qa]\ninstruction = "From the variable"\n')
    variable = {"EMBEDKIT_TASKS": str(tmp_path / "b.toml")}
    assert _instruction(invoke) == (BUILT_IN_TASKS["qa"].instruction, "built-in")
    assert _instruction(invoke, sample_index) == ("The index's own qa", "index")
    assert _instruction(invoke, sample_index, **variable) == ("From the variable", "file")
    assert _instruction(invoke, sample_index, "--tasks", tmp_path / "a.toml", **variable) == (
        "From the file",
        "file",
    )


def test_search_uses_the_same_order(invoke: Invoke, sample_index: Path, tmp_path: Path) -> None:
    """What `tasks` shows for a name is what `search` and `explain` encode."""
    (tmp_path / "a.toml").write_text('[qa]\ninstruction = "From the file"\n')
    for extra, expected in ([], "The index's own qa"), (["--tasks", tmp_path / "a.toml"], "From the file"):
        for command in ("search", "explain"):
            result = invoke(command, sample_index, "x", "--task", "qa", "--json", *extra)
            assert json.loads(result.stdout)["instruction"] == expected


def test_tasks_are_listed_for_people(invoke: Invoke, sample_index: Path) -> None:
    """Every built-in task is listed with its instruction; the index's own carry where they come from."""
    text = invoke("tasks", sample_index, env={"COLUMNS": "200"}).stdout
    assert all(name in text for name in BUILT_IN_TASKS)
    assert "recipe (index)" in text and "Find the recipe" in text


def test_info_names_the_embedder_and_its_fingerprint(invoke: Invoke, sample_index: Path) -> None:
    """`info` shows counts, engine, the embedder's full name and fingerprint, and the index's tasks."""
    found = json.loads(invoke("info", sample_index, "--json").stdout)
    assert found["documents"] == 313
    assert "ek1:" in json.dumps(found) and "static:" in json.dumps(found)
    assert {t["name"] for t in found["tasks"]} == {"qa", "recipe"}
    people = invoke("info", sample_index, env={"COLUMNS": "120"})
    assert people.exit_code == 0, people.stderr
    assert "documents" in people.stdout and "313" in people.stdout and "ek1:" in people.stdout


def test_verify_finds_an_altered_byte(invoke: Invoke, sample_index: Path, tmp_path: Path) -> None:
    """`info --verify` passes on a whole index, and names the file in which one byte was changed."""
    assert "every file verified" in invoke("info", sample_index, "--verify").stdout
    copy = shutil.copytree(sample_index, tmp_path / "copy")
    vectors = next(copy.rglob("vectors*"))
    data = bytearray(vectors.read_bytes())
    data[len(data) // 2] ^= 1
    vectors.write_bytes(data)
    result = invoke("info", copy, "--verify")
    assert result.exit_code == 2
    assert vectors.name in result.stderr and result.stderr.count("\n") == 1


def test_info_shows_what_an_engine_measured_of_itself(invoke: Invoke, words: Path, tmp_path: Path) -> None:
    """Of an engine that is not exact `info` shows settings, recall and rate, of every segment chunks and deletions."""
    built = invoke(
        "index", SAMPLE / "corpus.jsonl", "-o", tmp_path / "i", "--embedder", words, "--engine", "ivf-rabitq", "--recall", "0.9"
    )  # fmt: skip
    assert built.exit_code == 0, built.stderr
    assert "(ivf-rabitq)" in built.stdout
    assert invoke("delete", tmp_path / "i", "git-undo-03").exit_code == 0
    text = invoke("info", tmp_path / "i", env={"COLUMNS": "140"}).stdout
    assert "ivf-rabitq: cells" in text and "recall 0.9" in text
    head = next(line for line in text.splitlines() if line.startswith("measured"))
    assert head.split() == ["measured", "nprobe", "refine", "recall@10", "queries/s"]
    segments = text.splitlines().index(next(s for s in text.splitlines() if s.startswith("segments")))
    assert text.splitlines()[segments + 1].split()[:2] == ["312", "1"]
    assert "corpus.jsonl" in next(line for line in text.splitlines() if line.startswith("sources"))
    top = max(p["recall"] for p in Index.open(tmp_path / "i").manifest.segments[0].engine["curve"])
    said = invoke("search", tmp_path / "i", "undo a commit", "--recall", f"{top / 2:.4f}").stderr
    assert "measured" not in said
    said = invoke("search", tmp_path / "i", "undo a commit", "--recall", f"{(1 + top) / 2:.6f}").stderr
    assert f"measured {top:.3f} at most" in said or top == 1


def test_explain_shows_what_search_encodes(invoke: Invoke, sample_index: Path) -> None:
    """The string that `explain` shows is the one that `search` reports; the plan names the engine."""
    arguments = [sample_index, "undo a commit", "--task", "code", "--json"]
    explained = json.loads(invoke("explain", *arguments).stdout)
    searched = json.loads(invoke("search", *arguments).stdout)
    assert explained["encoded"] == searched["encoded"]
    assert explained["obeys"] is searched["obeys"] is False
    assert explained["token_count"] > 0 and isinstance(explained["plan"], dict)
    assert explained["plan"]


def test_explain_prints_the_prompt_with_its_line_break_visible(invoke: Invoke, sample_index: Path) -> None:
    """The prompt's line break is shown as a backslash n, and several tasks are explained one after another."""
    result = invoke("explain", sample_index, "undo", "--task", "qa", "--task", "code", env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.stderr
    assert r"Instruct: The index's own qa\nQuery: undo" in result.stdout
    assert result.stdout.count("\\nQuery: undo") == 2
    assert result.stderr.count("note: ") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "{index}", " "], "error: the query is empty"),
        (["explain", "{index}", "x", "-k", "0"], "error: -k 0 is too small"),
        (["explain", "{index}", "x", "--task", "nope"], "error: unknown task 'nope'"),
        (
            ["explain", "{index}", "x", "--task", "qa", "--instruction", "y"],
            "error: --task and --instruction are both",
        ),
        (["info", "{tmp}"], "error: "),
        (["info", "{tmp}/none"], "error: "),
        (["tasks", "{tmp}"], "error: "),
        (["tasks", "--tasks", "{tmp}/bad.toml"], "error: tasks file {tmp}/bad.toml, [x]: needs instruction"),
    ],
)
def test_bad_input_is_one_sentence(
    invoke: Invoke, sample_index: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    """Each mistake ends with exit code 2 and one sentence."""
    (tmp_path / "bad.toml").write_text("[x]\n")
    result = invoke(*(a.format(index=sample_index, tmp=tmp_path) for a in arguments))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(message.format(tmp=tmp_path))
    assert result.stderr.count("\n") == 1
