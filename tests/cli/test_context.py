"""`embedkit context`: what is printed, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from embedkit_indexes.context_counting import count_by_bytes
from tests.cli.conftest import Invoke, Run

QUESTION = "how do I undo my last git commit?"


def test_passages_are_printed_and_counted(run: Run, sample_index: Path) -> None:
    """The output is the context within the budget, by the counter asked for; what is left out is told on stderr."""
    done = run("context", sample_index, QUESTION, "--task", "qa", "--budget", 200, "--tokenizer", "bytes")
    assert done.returncode == 0, done.stderr
    text = done.stdout.removesuffix("\n")
    assert text.startswith("[1] ") and "corpus.jsonl#" in text.split("\n", 1)[0]
    used = count_by_bytes(text)
    assert f"{used} of 200 tokens" in done.stderr and used <= 200
    assert "beyond the budget" in done.stderr


def test_every_output_holds_the_same_passages(invoke: Invoke, sample_index: Path) -> None:
    """Text, Markdown, JSON and messages tell the same passages; --json is --output json."""
    asked = ("context", sample_index, QUESTION, "--budget", 5000, "-k", 3)
    text, markdown, as_json, messages = (
        invoke(*asked, "--output", form).stdout for form in ("text", "markdown", "json", "messages")
    )
    record = json.loads(as_json)
    assert invoke(*asked, "--json").stdout == as_json
    assert record["text"] + "\n" == text and record["question"] == QUESTION
    assert record["left_out"] == {"duplicates": 0, "budget": 0}
    assert len(record["blocks"]) == 3
    for block in record["blocks"]:
        assert block["text"] in text and f"## [{block['number']}] " in markdown
        assert f"#{block['document_id']}, characters {block['start']}–{block['end']}\n" in text
    system, user = json.loads(messages)
    assert (system["role"], user["role"]) == ("system", "user")
    assert record["text"] in user["content"] and user["content"].endswith(f"Question: {QUESTION}")


def test_places_lead_back_to_the_source(invoke: Invoke, sample_index: Path) -> None:
    """Source, document and characters name the text in the file that was indexed."""
    record = json.loads(invoke("context", sample_index, QUESTION, "--json", "-k", 5).stdout)
    rows = [json.loads(line) for line in Path(record["blocks"][0]["source"]).read_text("utf-8").splitlines()]
    texts = {row["_id"]: row["text"] for row in rows}
    for block in record["blocks"]:
        assert texts[block["document_id"]][block["start"] : block["end"]] == block["text"]


def test_the_task_chooses_what_is_found(invoke: Invoke, sample_index: Path) -> None:
    """A task of the index, a free instruction and a filter narrow and turn what the context holds."""
    filtered = invoke(
        "context", sample_index, QUESTION, "--json", "--where", 'lang = "de"', "--task", "recipe"
    )
    assert {b["lang"] for b in json.loads(filtered.stdout)["blocks"]} == {"de"}
    unknown = invoke("context", sample_index, QUESTION, "--task", "qaa")
    assert unknown.exit_code == 2


def test_words_find_too(run: Run, sample_index: Path) -> None:
    """--lexical and --order work as they do elsewhere."""
    done = run("context", sample_index, "git commit", "--lexical", "--order", "source", "--expand", 1)
    assert done.returncode == 0 and "git" in done.stdout


def test_nothing_found_is_told(run: Run, sample_index: Path) -> None:
    """An empty context prints nothing, and says so."""
    done = run("context", sample_index, "zzzzqqq", "--lexical")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "note: nothing was found\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["q", "--budget", "0"], "budget is 0: give 1 or more"),
        (["q", "--budget", "10", "--output", "messages"], "budget 10 is too small"),
        (["q", "--expand", "-1"], "expand is -1"),
        (["q", "--json", "--output", "markdown"], "--json and --output markdown are both given"),
        (["q", "--task", "qa", "--instruction", "x"], "choose one"),
        (["q", "--task", "qa", "--task", "duplicate"], "a context is of one --task, got 2"),
        (["q", "--tokenizer", ""], "no tokenizer is named"),
        (["q", "--tokenizer", "./absent"], "no tokenizer can be read from absent"),
        ([" "], "the query is empty"),
        ([], "name an index, and then the query"),
    ],
)
def test_mistakes_are_one_sentence(
    invoke: Invoke, sample_index: Path, arguments: list[str], sentence: str
) -> None:
    """What cannot be done ends with code 2 and a sentence that says why."""
    done = invoke("context", sample_index, *arguments)
    assert done.exit_code == 2 and sentence in done.stderr and done.stderr.count("\n") == 1
    assert done.stdout == ""
