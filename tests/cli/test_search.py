"""`embedkit search`: one task, several, files of queries, bad input, and how little it imports."""

from __future__ import annotations

import gzip
import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import SAMPLE, Invoke, Run

QUERY = "How do I undo my last git commit?"


def test_json_holds_hits_and_what_was_encoded(invoke: Invoke, sample_index: Path) -> None:
    """The JSON of one task is an object: ranked hits, the exact encoded string, and that it is not obeyed."""
    result = invoke("search", sample_index, QUERY, "--task", "topic", "-k", 3, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert [h["rank"] for h in found["hits"]] == [1, 2, 3]
    assert [h["score"] for h in found["hits"]] == sorted((h["score"] for h in found["hits"]), reverse=True)
    assert {"document_id", "title", "text", "lang", "position", "start", "end", "source"} <= found["hits"][
        0
    ].keys()
    assert found["encoded"] == f"Instruct: {found['instruction']}\nQuery: {QUERY}"
    assert (found["query"], found["task"], found["obeys"]) == (QUERY, "topic", False)
    assert "not trained on instructions" in found["note"]


def test_the_note_is_shown_once(invoke: Invoke, sample_index: Path) -> None:
    """With an embedder that obeys no instruction, two tasks give one note on stderr; a bare query gives none."""
    result = invoke("search", sample_index, QUERY, "--task", "qa", "--task", "topic", "--json")
    assert result.stderr.count("note: ") == result.stderr.count("\n") == 1
    bare = invoke("search", sample_index, QUERY, "--json")
    assert bare.stderr == ""
    assert json.loads(bare.stdout)["note"] is None


def test_several_tasks_give_a_list(invoke: Invoke, sample_index: Path) -> None:
    """The JSON of several tasks is a list in the order asked; a task named twice is asked once."""
    result = invoke(
        "search", sample_index, QUERY, "--task", "topic", "--task", "qa", "--task", "topic", "--json"
    )
    assert [r["task"] for r in json.loads(result.stdout)] == ["topic", "qa"]


@pytest.mark.parametrize(("width", "beside"), [(160, True), (60, False)])
def test_tasks_stand_side_by_side_where_there_is_room(
    invoke: Invoke, sample_index: Path, width: int, beside: bool
) -> None:
    """At 160 columns two tasks' headings share a line, at 60 they stand one below the other."""
    arguments = ["search", sample_index, QUERY, "--task", "topic", "--task", "code", "-k", 2]
    lines = invoke(*arguments, env={"COLUMNS": str(width)}).stdout.splitlines()
    heading = next(line for line in lines if line.startswith("topic"))
    assert ("  code  " in heading) is beside
    assert all(len(line) <= width for line in lines)


def test_hits_show_score_title_language_and_snippet(invoke: Invoke, sample_index: Path) -> None:
    """Each hit shows rank, score, title or id, language, and the first words of its text in at most two lines."""
    found = json.loads(invoke("search", sample_index, QUERY, "--json").stdout)["hits"]
    text = invoke("search", sample_index, QUERY, env={"COLUMNS": "200"}).stdout
    for hit in found:
        line = next(x for x in text.splitlines() if x.startswith(f"{hit['rank']:>2}  {hit['score']:.3f}"))
        assert (hit["title"] or hit["document_id"]) in line
        assert f"[{hit['lang']}]" in line


@pytest.mark.parametrize(
    "query", ["आज का मौसम", "如何撤销提交", "كيف أحذف الملف", "Wie nehme ich das zurück?"]
)
def test_scripts_of_the_world_are_printed(run: Run, sample_index: Path, query: str) -> None:
    """Queries and hits in Devanagari, Chinese, Arabic and Latin letters print without error, JSON unescaped."""
    assert run("search", sample_index, query).returncode == 0
    done = run("search", sample_index, query, "--json")
    assert f'"query": "{query}"' in done.stdout


def test_output_stays_json_where_stdout_is_ascii(run: Run, sample_index: Path) -> None:
    """Under an ASCII stdout the JSON is escaped and reads back to the same text."""
    done = run("search", sample_index, "如何撤销提交", "--json", env={"PYTHONIOENCODING": "ascii"})
    assert done.stdout.isascii()
    assert json.loads(done.stdout)["query"] == "如何撤销提交"


def test_a_document_cannot_steer_the_terminal(invoke: Invoke, words: Path, tmp_path: Path) -> None:
    """Escape sequences and rich markup in a document are printed as text, not obeyed."""
    record = {"_id": "evil", "title": "[red]x[/red]", "text": "git \x1b]0;owned\x07 commit [/nothing]"}
    (tmp_path / "c.jsonl").write_text(json.dumps(record))
    assert invoke("index", tmp_path / "c.jsonl", "-o", tmp_path / "i", "--embedder", words).exit_code == 0
    result = invoke("search", tmp_path / "i", "git commit")
    assert result.exit_code == 0, result.stderr
    assert "\x1b" not in result.stdout and "\x07" not in result.stdout
    assert "[red]x[/red]" in result.stdout and "[/nothing]" in result.stdout


def test_an_index_of_a_stranger_cannot_steer_the_terminal(
    invoke: Invoke, words: Path, tmp_path: Path
) -> None:
    """Escape sequences in a language field and in stored tasks are printed as text by every command."""
    record = {"_id": "1", "text": "git commit", "lang": "x\x1b]0;owned\x07"}
    (tmp_path / "c.jsonl").write_text(json.dumps(record))
    (tmp_path / "t.toml").write_text('[evil]\ninstruction = "\\u001b[2J find"\ndescription = "\\u001b[31m"\n')
    build = [
        "index",
        tmp_path / "c.jsonl",
        "-o",
        tmp_path / "i",
        "--embedder",
        words,
        "--tasks",
        tmp_path / "t.toml",
    ]
    for command in (
        build,
        ["search", tmp_path / "i", "git", "--task", "evil"],
        ["tasks", tmp_path / "i"],
        ["info", tmp_path / "i"],
    ):
        result = invoke(*command, color=True)
        assert result.exit_code == 0, result.stderr
        assert not any(c in result.stdout + result.stderr for c in "\x1b\x07"), command


def test_lang_finds_documents_of_that_language_alone(invoke: Invoke, sample_index: Path) -> None:
    """--lang de gives German hits, as many as asked for while there are any."""
    found = json.loads(invoke("search", sample_index, "Git Commit", "--lang", "de", "-k", 5, "--json").stdout)
    assert [h["lang"] for h in found["hits"]] == ["de"] * 5


def test_k_larger_than_the_corpus_is_refused(invoke: Invoke, sample_index: Path) -> None:
    """With k of all chunks every one comes once; one more is refused with the number that there are."""
    chunks = json.loads(invoke("info", sample_index, "--json").stdout)["chunks"]
    hits = json.loads(invoke("search", sample_index, QUERY, "-k", chunks, "--json").stdout)["hits"]
    assert len(hits) == chunks == len({(h["document_id"], h["position"]) for h in hits})
    refused = invoke("search", sample_index, QUERY, "-k", chunks + 1)
    assert refused.exit_code == 2
    assert refused.stderr.endswith(f"holds: ask for {chunks} or fewer\n")


def test_the_default_k_fits_any_index(invoke: Invoke, tmp_path: Path, words: Path) -> None:
    """An index of one document is searched without saying how many hits there can be."""
    (tmp_path / "a.txt").write_text("The tide comes in twice a day.")
    assert invoke("index", tmp_path / "a.txt", "-o", tmp_path / "i", "--embedder", words).exit_code == 0
    assert len(json.loads(invoke("search", tmp_path / "i", "tide", "--json").stdout)["hits"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{index}", "  "], "error: the query is empty"),
        (["{index}"], "error: give one query or --queries FILE"),
        (["{index}", "x", "--queries", "y"], "error: give one query or --queries FILE, not both"),
        (["{index}", "{index}", "x"], "error: {index} was named twice"),
        (["{index}", "x", "--where", "topik = 3"], "error: unknown field 'topik': did you mean topic?"),
        (["{index}", "x", "--where", "topic = 3"], "error: topic holds strings"),
        (["{index}", "x", "--where", "topic ="], "error: "),
        (["{index}", "x", "--hybrid", "--lexical"], "error: --hybrid and --lexical are both given"),
        (["{index}", "x", "--weights", "1,2"], "error: --weights is for --hybrid"),
        (["{index}", "x", "--hybrid", "--weights", "1"], "error: --weights '1' is not two numbers"),
        (["{index}", "x", "--hybrid", "--weights", "0,0"], "error: weights are (0.0, 0.0)"),
        (["{index}", "x", "--lexical", "--ef-search", "9"], "error: --ef-search is for a search by vectors"),
        (["{index}", "x", "--recall", "1.5"], "error: recall is 1.5"),
        (["{index}", "x", "-k", "0"], "error: -k 0 is too small"),
        (["{index}", "x", "-k", "-3"], "error: -k -3 is too small"),
        (["{index}", "x", "--task", "topik"], "error: unknown task 'topik': did you mean topic?"),
        (
            ["{index}", "x", "--task", "qa", "--instruction", "y"],
            "error: --task and --instruction are both given",
        ),
        (["{index}", "x", "--instruction", " "], "error: the instruction is empty"),
        (["{index}", "--queries", "{tmp}/none.jsonl"], "error: {tmp}/none.jsonl: No such file"),
        (["{index}", "x", "--tasks", "{tmp}/none.toml"], "error: tasks file {tmp}/none.toml: "),
        (["{tmp}/nowhere", "x"], "error: "),
        (["{tmp}", "x"], "error: "),
    ],
)
def test_bad_input_is_one_sentence(
    invoke: Invoke, sample_index: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    """Each mistake ends with exit code 2 and one sentence, nothing on stdout."""
    filled = [a.format(index=sample_index, tmp=tmp_path) for a in arguments]
    result = invoke("search", *filled, "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(message.format(tmp=tmp_path, index=sample_index)), result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["search", "explain"])
@pytest.mark.parametrize("option", [[], ["git", "--instruction"]])
def test_bytes_that_are_no_text_are_refused(
    run: Run, sample_index: Path, command: str, option: list[str]
) -> None:
    """A query or instruction of bytes that are not UTF-8 is one sentence, exit code 2."""
    done = run(command, sample_index, *option, os.fsdecode(b"caf\xe9"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "not UTF-8 text" in done.stderr and done.stderr.count("\n") == 1


def test_a_damaged_index_is_one_sentence(invoke: Invoke, sample_index: Path, tmp_path: Path) -> None:
    """An index whose largest file lost its second half is refused with exit code 2."""
    copy = shutil.copytree(sample_index, tmp_path / "copy")
    largest = max((p for p in copy.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    with largest.open("r+b") as handle:
        handle.truncate(largest.stat().st_size // 2)
    result = invoke("search", copy, QUERY)
    assert result.exit_code == 2, result.stdout
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Five queries of the sample, the second and fourth under tasks of their own."""
    lines = (SAMPLE / "queries.jsonl").read_text(encoding="utf-8").splitlines()[:5]
    records = [json.loads(line) for line in lines]
    records[1]["task"], records[3]["task"] = "qa", "recipe"
    path = tmp_path / "questions.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, records)).encode()))
    return path


def test_many_queries_give_json_lines_in_their_order(
    invoke: Invoke, sample_index: Path, questions: Path
) -> None:
    """Each query gives one line in the file's order, under its own task where it has one, as if asked alone."""
    result = invoke("search", sample_index, "--queries", questions, "-k", 4)
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [f["_id"] for f in found] == [f"q-git-undo-{i}" for i in (1, 2, 3, 4, 5)]
    assert [f["task"] for f in found] == [None, "qa", None, "recipe", None]
    assert found[3]["instruction"] == "Find the recipe"
    alone = json.loads(
        invoke("search", sample_index, found[1]["query"], "--task", "qa", "-k", 4, "--json").stdout
    )
    assert [h["document_id"] for h in found[1]["hits"]] == [h["document_id"] for h in alone["hits"]]


def test_the_command_lines_task_overrides_the_queries(
    invoke: Invoke, sample_index: Path, questions: Path
) -> None:
    """--task holds for every query of the file."""
    result = invoke("search", sample_index, "--queries", questions, "--task", "topic")
    assert {json.loads(line)["task"] for line in result.stdout.splitlines()} == {"topic"}


def test_a_trec_run_ranks_documents(invoke: Invoke, sample_index: Path, questions: Path) -> None:
    """The TREC run has six columns, ranks from 1 without a gap and no document twice for a query."""
    result = invoke("search", sample_index, "--queries", questions, "--run", "trec", "-k", 20)
    rows = [line.split() for line in result.stdout.splitlines()]
    assert len(rows) == 5 * 20
    assert all(len(r) == 6 and r[1] == "Q0" for r in rows)
    for start in range(0, 100, 20):
        part = rows[start : start + 20]
        assert [int(r[3]) for r in part] == list(range(1, 21))
        assert len({r[2] for r in part}) == 20
        assert [float(r[4]) for r in part] == sorted((float(r[4]) for r in part), reverse=True)


def test_a_trec_run_keeps_its_columns(invoke: Invoke, words: Path, tmp_path: Path) -> None:
    """White space in an id (a file's name) is written %20, as a run's columns are parted by it."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "my notes.txt").write_text("git commit")
    (tmp_path / "q.txt").write_text("git\n")
    assert invoke("index", tmp_path / "docs", "-o", tmp_path / "i", "--embedder", words).exit_code == 0
    result = invoke("search", tmp_path / "i", "--queries", tmp_path / "q.txt", "--run", "trec")
    assert result.stdout.split()[:4] == ["1", "Q0", "my%20notes.txt", "1"]
    assert len(result.stdout.split()) == 6


def test_queries_come_from_stdin_as_plain_lines(run: Run, sample_index: Path) -> None:
    """`--queries -` reads one query a line; the line number is its id."""
    done = run("search", sample_index, "--queries", "-", "-k", 1, input="git commit\n\nmosquito net\n")
    assert [json.loads(line)["_id"] for line in done.stdout.splitlines()] == ["1", "3"]


def test_an_unknown_task_in_a_queries_file_fails_before_output(
    invoke: Invoke, sample_index: Path, tmp_path: Path
) -> None:
    """A task that does not exist in the last line stops the run before the first result."""
    (tmp_path / "q.jsonl").write_text(
        '{"_id": 1, "text": "a"}\n{"_id": 2, "text": "b", "task": "nonsense"}\n'
    )
    result = invoke("search", sample_index, "--queries", tmp_path / "q.jsonl")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "unknown task 'nonsense'" in result.stderr


def test_search_json_imports_little(sample_index: Path) -> None:
    """`search --json` loads no rich, torch, transformers, llama-index or metrics."""
    code = (
        "import sys; from embedkit_cli.main import main\n"
        f"sys.argv = ['embedkit', 'search', {str(sample_index)!r}, 'git commit', '--json']\n"
        "try: main()\nexcept SystemExit as e: assert not e.code\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.splitlines()[-1].split())
    assert not loaded & {
        "rich",
        "torch",
        "transformers",
        "llama_index",
        "pytrec_eval",
        "scipy",
        "pandas",
    }
    assert not loaded & {
        "embedkit.evaluation",
        "embedkit_cli.batches",
        "embedkit_cli.rendering",
        "embedkit_trainer",
    }


def test_a_terminal_gets_colour_and_a_pipe_does_not(
    sample_index: Path, read_terminal: Callable[[int], bytes]
) -> None:
    """On a terminal hits are coloured; piped output holds no escape sequence."""
    command = [
        sys.executable,
        "-c",
        "from embedkit_cli.main import main; main()",
        "search",
        str(sample_index),
        QUERY,
    ]
    piped = subprocess.run(command, capture_output=True, check=True)
    assert b"\x1b[" not in piped.stdout
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm-256color"}
    )
    os.close(theirs)
    seen = read_terminal(ours)
    assert process.wait(60) == 0
    assert b"\x1b[" in seen


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a", "m": ' + "[" * 100_000, "nested too deeply"),
        ('{"text": "a \\ud800"}', "half a surrogate pair"),
    ],
)
def test_a_query_that_cannot_be_read_is_named_by_its_line(
    invoke: Invoke, sample_index: Path, tmp_path: Path, line: str, message: str
) -> None:
    """JSON nested without end, and half a character, are one sentence with file and line."""
    (tmp_path / "q.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    result = invoke("search", sample_index, "--queries", tmp_path / "q.jsonl")
    assert result.exit_code == 2 and result.stdout == ""
    assert "q.jsonl, line 2: " in result.stderr and message in result.stderr


@pytest.fixture
def other_index(tmp_path: Path, words: Path, invoke: Invoke) -> Path:
    """A second index of the same embedder, with records of three years."""
    texts = {"undo": "undo my last git commit", "net": "mosquito net", "bread": "bread and water"}
    rows = (
        json.dumps({"_id": id, "text": text, "year": 2020 + i}) for i, (id, text) in enumerate(texts.items())
    )
    (tmp_path / "c.jsonl").write_text("\n".join(rows))
    done = invoke("index", tmp_path / "c.jsonl", "-o", tmp_path / "other", "--embedder", words)
    assert done.exit_code == 0, done.stderr
    return tmp_path / "other"


def _hits(invoke: Invoke, *arguments: object) -> list[dict[str, Any]]:
    result = invoke("search", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    hits: list[dict[str, Any]] = json.loads(result.stdout)["hits"]
    return hits


def test_several_indexes_are_searched_as_one(invoke: Invoke, sample_index: Path, other_index: Path) -> None:
    """The hits are those of each index by itself, merged by score, and each names its index."""
    alone = [h for i in (sample_index, other_index) for h in _hits(invoke, i, QUERY, "-k", 3)]
    together = _hits(invoke, sample_index, other_index, QUERY, "-k", 3)
    best = sorted(alone, key=lambda h: -h["score"])[:3]
    assert [(h["document_id"], h["score"]) for h in together] == [
        (h["document_id"], h["score"]) for h in best
    ]
    assert {h["index"] for h in together} == {str(sample_index), str(other_index)}
    shown = invoke("search", sample_index, other_index, QUERY, env={"COLUMNS": "400"}).stdout
    assert str(other_index) in shown
    assert all(h["index"] == "" for h in alone)


def test_several_indexes_answer_a_file_of_queries(
    invoke: Invoke, sample_index: Path, other_index: Path, questions: Path
) -> None:
    """With --queries all arguments are indexes; a run holds documents of each."""
    result = invoke("search", sample_index, other_index, "--queries", questions, "--run", "trec", "-k", 1000)
    assert result.exit_code == 0, result.stderr
    found = {line.split()[2] for line in result.stdout.splitlines()}
    assert {"undo", "net", "bread"} < found and len(found) == 316


def test_indexes_of_two_embedders_are_refused(invoke: Invoke, sample_index: Path, tmp_path: Path) -> None:
    """Vectors of different embedders are not compared: one sentence names both."""
    (tmp_path / "v.txt").write_text("git 1 0\nnet 0 1\n")
    (tmp_path / "a.txt").write_text("git")
    assert (
        invoke("index", tmp_path / "a.txt", "-o", tmp_path / "i", "--embedder", tmp_path / "v.txt").exit_code
        == 0
    )
    result = invoke("search", sample_index, tmp_path / "i", "git")
    assert result.exit_code == 2
    assert "words.txt" in result.stderr and "v.txt" in result.stderr and result.stderr.count("\n") == 1


def test_a_filter_keeps_what_satisfies_it(invoke: Invoke, other_index: Path, tmp_path: Path) -> None:
    """--where tests metadata and the chunk's own fields, for one query and for a file of them."""
    where = ["--where", 'year >= 2021 and not text contains "bread"']
    assert [h["document_id"] for h in _hits(invoke, other_index, QUERY, *where)] == ["net"]
    (tmp_path / "q.txt").write_text("git\nbread\n")
    lines = invoke("search", other_index, "--queries", tmp_path / "q.txt", *where).stdout.splitlines()
    assert [[h["document_id"] for h in json.loads(line)["hits"]] for line in lines] == [["net"], ["net"]]
    plan = json.loads(invoke("explain", other_index, QUERY, *where, "--json").stdout)["plan"]
    assert plan["matches"] == 1


def test_words_find_what_vectors_do_not_know(invoke: Invoke, words: Path, tmp_path: Path) -> None:
    """A part number that the embedder has no vector for is found by --lexical, and comes first with --hybrid."""
    (tmp_path / "c.jsonl").write_text(
        '{"_id": "a", "text": "git commit"}\n{"_id": "b", "text": "part XK-4711"}\n{"_id": "c", "text": "bread"}\n'
    )
    assert invoke("index", tmp_path / "c.jsonl", "-o", tmp_path / "i", "--embedder", words).exit_code == 0
    lexical = _hits(invoke, tmp_path / "i", "XK-4711 bread", "--lexical")
    assert [h["document_id"] for h in lexical] == ["b", "c"]
    assert all(h["score"] == h["bm25"] > 0 and h["cosine"] is None for h in lexical)
    hybrid = _hits(invoke, tmp_path / "i", "XK-4711 commit", "--hybrid", "--weights", "0.5,2")
    assert hybrid[0]["document_id"] == "b" and hybrid[0]["bm25"] > 0
    assert all(-1 <= h["cosine"] <= 1 and 0 < h["score"] < 0.1 for h in hybrid)
    assert "bm25" in invoke("search", tmp_path / "i", "XK-4711", "--hybrid").stdout


def test_effort_is_taken(invoke: Invoke, sample_index: Path) -> None:
    """A search that is exact finds the same under any effort."""
    plain = _hits(invoke, sample_index, QUERY)
    for effort in (["--recall", "1"], ["--nprobe", "3", "--refine", "40"], ["--ef-search", "50"]):
        assert _hits(invoke, sample_index, QUERY, *effort) == plain
