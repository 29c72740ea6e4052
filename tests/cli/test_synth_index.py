"""`embedkit synth from-index` end to end: a real index, a real server process, the trainer's own reader."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from embedkit_indexes import Index
from embedkit_indexes.sampling import sample_chunks
from embedkit_trainer.data.rows import read_rows
from embedkit_trainer.synthesis.answers import Rejected
from embedkit_trainer.synthesis.store import read_records
from tests.cli.conftest import Invoke
from tests.trainer.synthesis.index_server import index_server
from tests.trainer.synthesis.scripted import Scripted, write_config

TASK = "Given a question, find the text that answers it"
ROWS = Path("out/rows/from-index/rows.jsonl")
TRAINING = """\
output = "model"
device = "cpu"
[model]
name = "mistralai/Mistral-7B-v0.1"
[[stages]]
batch_size = 4
[[stages.sources]]
path = "out/rows"
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Scripted]:
    """A server that answers everything rightly."""
    with index_server(tmp_path) as running:
        yield running


def _config(folder: Path, url: str, examples: int = 30) -> Path:
    return write_config(folder, url, examples=examples, shares="sts = 1")


def _record(invoke: Invoke, *arguments: Any) -> dict[str, Any]:
    result = invoke("synth", "from-index", *arguments, "--task", TASK, "-o", "out", "--json")
    assert result.exit_code == 0, f"{result.stderr}\n{result.exception!r}"
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def _rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]


def test_an_index_becomes_training_data(
    invoke: Invoke, server: Scripted, sample_index: Path, tmp_path: Path
) -> None:
    """Each row has a query for a chunk, the task, negatives of other documents, and trains."""
    report = _record(invoke, sample_index, _config(tmp_path, server.url), "--negatives", 2)
    run, rows = report["queries"], _rows()
    assert run["stored"] + run["rejected"] == len(server.requests) == 30
    assert run["stored"] == report["rows"]["rows"] == len(rows) > 20
    assert report["rows"]["mining"]["rows"] == len(rows)
    texts = {c.text: c.document_id for c in sample_chunks(Index.open(sample_index), 1)}
    for row in rows:
        assert texts[row["positive"]] == row["positive_id"]
        assert row["instruction"] == TASK
        assert [texts[n] for n in row["negatives"]] == row["negative_ids"]
        assert row["positive_id"] not in row["negative_ids"]
        assert set(row["metadata"]["placeholders"]) > {"persona", "difficulty", "query_length"}
    assert len(list(read_rows("out/rows"))) == len(rows)
    Path("train.toml").write_text(TRAINING)
    trained = invoke("train", "train.toml", "--tiny", "--dry-run", "--json")
    assert trained.exit_code == 0, trained.stderr


def test_what_was_answered_is_not_asked_again(
    invoke: Invoke, server: Scripted, sample_index: Path, tmp_path: Path
) -> None:
    """The same command asks nothing and gives the same bytes; more examples ask for those alone."""
    config = _config(tmp_path, server.url, 10)
    _record(invoke, sample_index, config)
    before = ROWS.read_bytes()
    assert _record(invoke, sample_index, config)["queries"]["stored"] == 0
    assert (ROWS.read_bytes(), len(server.requests)) == (before, 10)
    _record(invoke, sample_index, config, "--set", "examples=15")
    assert len(server.requests) == 15
    assert ROWS.read_bytes().startswith(before)


def test_the_judge_decides(invoke: Invoke, server: Scripted, sample_index: Path, tmp_path: Path) -> None:
    """What answers is no negative, the best answer is the positive, and what nothing answers is left out."""
    arguments = (sample_index, _config(tmp_path, server.url), "--judge", "--negatives", 3, "--candidates", 5)
    report = _record(invoke, *arguments)
    queries, judging, rows = report["queries"], report["judging"], report["rows"]
    assert judging["stored"] == queries["stored"]
    assert rows["rows"] + rows["unanswered"] == judging["stored"]
    assert rows["unjudged"] == 0
    verdicts = {v["request"]: v["answer"] for v in read_records("out/judge")}
    for row in _rows():
        verdict = verdicts[row["metadata"]["request"]]
        assert len(verdict["passages"]) <= 6
        answers = [verdict["passages"][a] for a in verdict["answers"]]
        assert (row["positive"], row["positive_id"]) == (answers[0]["text"], answers[0]["id"])
        assert row["metadata"]["judge"]["relabelled"] == (verdict["answers"][0] != 0)
        assert not {a["id"] for a in answers} & set(row["negative_ids"])
    asked, before = len(server.requests), ROWS.read_bytes()
    _record(invoke, *arguments)
    assert (len(server.requests), ROWS.read_bytes()) == (asked, before)
    assert list(read_rows(ROWS))


def test_a_better_passage_becomes_the_positive(invoke: Invoke, sample_index: Path, tmp_path: Path) -> None:
    """Where the judge takes another passage alone, that is the positive, and the query's own may be a negative."""
    second = {"fault": "text", "value": '{"answers": [2]}', "match": '"answers"', "tries": 0}
    with index_server(tmp_path, second) as server:
        arguments = (sample_index, _config(tmp_path, server.url, 20), "--judge", "--candidates", 1)
        report = _record(invoke, *arguments)["rows"]
    queries = {r["request"]: r["answer"]["passage"] for r in read_records("out/store")}
    rows = _rows()
    assert report["rows"] == len(rows) > report["relabelled"] > 0
    for row in rows:
        own = queries[row["metadata"]["request"]]
        if row["metadata"]["judge"]["relabelled"]:
            assert (row["positive"] != own, row["negatives"]) == (True, [own])
        else:
            assert row["positive"] == own not in row["negatives"]


def test_useless_verdicts_are_kept_aside(invoke: Invoke, sample_index: Path, tmp_path: Path) -> None:
    """Numbers out of range, doubled or of another type are no verdict; the row waits for --retry-failed."""
    wrong = [{"fault": "text", "value": json.dumps({"answers": a}), "match": '"answers"', "every": every, "tries": 1}
             for a, every in (([99], 2), ([1, 1], 3), (["1"], 1))]  # fmt: skip
    with index_server(tmp_path, *wrong) as server:
        arguments = (sample_index, _config(tmp_path, server.url, 12), "--judge")
        report = _record(invoke, *arguments)
        written = report["queries"]["stored"]
        assert report["judging"]["reasons"] == {"wrong-schema": written}
        assert (report["rows"]["rows"], report["rows"]["unjudged"]) == (0, written)
        assert not ROWS.exists()
        again = _record(invoke, *arguments, "--retry-failed")
        assert again["judging"]["stored"] == written
        assert again["rows"]["rows"] + again["rows"]["unanswered"] == written


def test_ceilings_hold_for_both_steps(
    invoke: Invoke, server: Scripted, sample_index: Path, tmp_path: Path
) -> None:
    """Queries and verdicts share the ceilings; judged rows are written, and a raised ceiling goes on."""
    arguments = (
        "synth",
        "from-index",
        sample_index,
        _config(tmp_path, server.url, 10),
        "--task",
        TASK,
        "-o",
        "out",
    )
    stopped = invoke(*arguments, "--judge", "--set", "max_requests=14")
    assert (stopped.exit_code, len(server.requests)) == (2, 14), stopped.stderr
    assert "stopped at the ceiling max_requests = 14" in stopped.stderr
    done = invoke(*arguments, "--judge", "--set", "max_requests=20")
    assert done.exit_code == 0, done.stderr
    assert len(server.requests) <= 20


def test_what_is_drawn_may_be_said(
    invoke: Invoke, server: Scripted, sample_index: Path, tmp_path: Path
) -> None:
    """Persona, difficulty and language are the command line's, chunks the filter's; a dry run asks nothing."""
    config = _config(tmp_path, server.url)
    result = invoke(
        "synth", "from-index", sample_index, config, "--task", TASK, "-o", "out", "--dry-run", "--prompts", 30, "--json",
        "--persona", "a chess player", "--difficulty", "easy", "--language", "pl", "--where", 'lang = "en"', "--each", 2,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    prompts = [p["prompt"] for p in json.loads(result.stdout)["prompts"]]
    assert len(prompts) == 30
    assert all("a chess player" in p and "Polish" in p and "easy" in p and TASK in p for p in prompts)
    assert not server.requests and not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", " "], "the task must be one line"),
        (["--task", "a\nb"], "the task must be one line"),
        (["--ranks", "5"], "--ranks '5' is no window of ranks"),
        (["--language", "xx"], "--language xx is unknown"),
        (["--where", "nothing = 3"], "nothing"),
        (["--where", 'lang = "tlh"'], "holds no chunk with enough text"),
        (["--max-ratio", "3"], "max_ratio is 3.0"),
    ],
)
def test_wrong_input_is_one_sentence(
    invoke: Invoke,
    server: Scripted,
    sample_index: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    """Exit code 2, one line, nothing asked."""
    common = ("synth", "from-index", sample_index, _config(tmp_path, server.url), "--task", TASK, "-o", "out")
    result = invoke(*common, *arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.stderr
    assert message in result.stderr and result.stderr.count("error: ") == 1
    assert not server.requests


@pytest.mark.parametrize("below", ["", "rows"])
def test_an_index_is_no_output(
    invoke: Invoke, server: Scripted, sample_index: Path, tmp_path: Path, below: str
) -> None:
    """An output in the index that is read is refused, and nothing is asked."""
    config = _config(tmp_path, server.url)
    output = sample_index / below
    result = invoke("synth", "from-index", sample_index, config, "--task", TASK, "-o", output)
    assert result.exit_code == 2
    assert "lies in the index that is read: choose another output" in result.stderr
    assert not server.requests


@pytest.mark.parametrize(
    "line", ["x", "{}", "[]", '{"draw": 0, "id": "a", "document_id": "b", "text": 5}', "[" * 5000]
)
def test_chunks_edited_into_nonsense(
    invoke: Invoke, server: Scripted, sample_index: Path, tmp_path: Path, line: str
) -> None:
    """A line of chunks.jsonl that is no chunk is named, before anything is asked."""
    config = _config(tmp_path, server.url, 5)
    _record(invoke, sample_index, config)
    file = Path("out/chunks.jsonl")
    kept = file.read_text(encoding="utf-8").splitlines()[1:]
    file.write_text("\n".join([line, *kept, ""]), encoding="utf-8")
    asked = len(server.requests)
    for examples in (5, 6):
        wanted = ("--set", f"examples={examples}", "--task", TASK, "-o", "out", "--retry-failed")
        shutil.rmtree("out/store", ignore_errors=True)
        result = invoke("synth", "from-index", sample_index, config, *wanted)
        assert result.exit_code == 2, repr(result.exception)
        assert "chunks.jsonl, line 1 is no chunk: choose another output" in result.stderr
    assert len(server.requests) == asked


def test_an_output_belongs_to_task_and_index(
    invoke: Invoke, server: Scripted, sample_index: Path, tmp_path: Path
) -> None:
    """Another task for the same folder is refused, and nothing changes."""
    config = _config(tmp_path, server.url, 5)
    _record(invoke, sample_index, config)
    before = ROWS.read_bytes()
    result = invoke("synth", "from-index", sample_index, config, "--task", "Another", "-o", "out")
    assert result.exit_code == 2
    assert "another plan (what differs: types, task)" in result.stderr
    assert ROWS.read_bytes() == before


def test_a_copy_of_the_passage_is_no_query(invoke: Invoke, sample_index: Path, tmp_path: Path) -> None:
    """A query that repeats its passage would teach nothing: it is rejected with its reason."""
    from embedkit_trainer.synthesis.chunks import Chunk
    from embedkit_trainer.synthesis.from_index import ChunkPlan, FromIndexConfig, own_config
    from embedkit_trainer.synthesis.settings_file import load_synthesis

    config = own_config(load_synthesis(_config(tmp_path, "http://127.0.0.1:1/v1")), tmp_path / "out")
    chunk = Chunk(1, "d", "绿茶的水温用八十度左右的水就好，水烧开后放两三分钟再冲。", lang="zh")
    plan = ChunkPlan(config, FromIndexConfig(TASK, "index"), [chunk])
    with pytest.raises(Rejected, match="copies the passage"):
        plan.request(0).parse(json.dumps({"user_query": chunk.text}), "stop")
    assert "Chinese" in plan.request(0).prompt
