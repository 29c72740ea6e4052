"""`embedkit mine`: rows in, rows with hard negatives out, and every way it can be asked wrongly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedkit_trainer
from embedkit import get_embedder
from embedkit_trainer.data.rows import read_rows
from tests.cli.conftest import SAMPLE, Invoke

SQUAD = Path(embedkit_trainer.__file__).parent / "recipes" / "samples" / "squad"


def _write(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training rows from the sample corpus: each document's title asks for the document."""
    corpus = [json.loads(line) for line in (SAMPLE / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    corpus = [d for d in corpus if d.get("title")][:40] or corpus[:40]
    rows = [
        {
            "query": d.get("title") or d["text"][:40],
            "positive": d["text"],
            "positive_id": d["_id"],
            "instruction": "Find the text of this title",
        }
        for d in corpus
    ]
    return _write(tmp_path_factory.mktemp("train") / "rows.jsonl", *rows)


def test_rows_are_mined_among_their_own_documents(invoke: Invoke, train: Path, tmp_path: Path) -> None:
    """With the bundled embedder the nearest documents below 95% of the positive's score are taken, as NumPy says."""
    out = tmp_path / "mined.jsonl"
    result = invoke(
        "mine", train, "-o", out, "--negatives", 3, "--sample", "top", "--ranks", "1:20", "--scores", "--json"
    )
    assert result.exit_code == 0, result.stderr
    rows, mined = list(read_rows(train)), list(read_rows(out))
    embedder = get_embedder("bundled")
    texts = list(dict.fromkeys(r.positive for r in rows))
    documents = embedder.encode_document(texts)
    queries = np.concatenate([embedder.encode_query([r.query], instruction=r.instruction) for r in rows])
    for row, found, query in zip(rows, mined, queries, strict=True):
        known = {r.positive for r in rows if r.query == row.query}
        scores = documents @ query
        limit = 0.95 * scores[texts.index(row.positive)]
        order = [texts[i] for i in np.argsort(-scores)[:20] if scores[i] <= limit]
        assert list(found.negatives) == [t for t in order if t not in known][:3]
        assert (found.query, found.positive, found.instruction) == (row.query, row.positive, row.instruction)
        assert found.teacher_scores is not None and len(found.teacher_scores) == 1 + len(found.negatives)
        assert found.teacher_scores[0] == pytest.approx(scores[texts.index(row.positive)], abs=2e-3)
    report = json.loads(result.stdout)
    assert report["rows"] == len(rows)
    assert report["kept"] == sum(len(r.negatives) for r in mined) > len(rows)
    assert report["candidates"] == report["kept"] + sum(report["dropped"].values())


def test_rows_are_mined_in_an_index(invoke: Invoke, train: Path, sample_index: Path, tmp_path: Path) -> None:
    """Negatives are chunks of the index, with their documents' ids, never of the positive's document."""
    out = tmp_path / "mined.jsonl"
    result = invoke(
        "mine",
        train,
        "-o",
        out,
        "--index",
        sample_index,
        "--ranks",
        "2:30",
        "--negatives",
        2,
        "--max-ratio",
        0,
    )
    assert (result.exit_code, result.stderr) == (0, "")
    assert "taken" in result.stdout and "below the window of ranks" in result.stdout
    chunks = json.loads(invoke("search", sample_index, "git", "--json", "-k", 200).stdout)["hits"]
    texts = {h["text"]: h["document_id"] for h in chunks}
    mined = list(read_rows(out))
    for row in mined:
        assert len(row.negatives) == 2 and row.positive_id not in row.negative_ids
        for text, identifier in zip(row.negatives, row.negative_ids, strict=True):
            assert texts.get(text, identifier) == identifier
    assert sum(t in texts for r in mined for t in r.negatives) > len(mined)


def test_another_run_gives_the_same_bytes_and_another_seed_others(
    invoke: Invoke, train: Path, words: Path, tmp_path: Path
) -> None:
    """The random draw is a function of rows and seed."""
    written = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        out = tmp_path / f"{name}.jsonl"
        done = invoke("mine", train, "-o", out, "--embedder", words, "--seed", seed)
        assert done.exit_code == 0, done.stderr
        written.append(out.read_bytes())
    assert written[0] == written[1] != written[2]


def test_a_public_set_is_read_in_its_own_layout(invoke: Invoke, words: Path, tmp_path: Path) -> None:
    """--format names a loader, --limit takes the first rows, and Parquet is written where the name says so."""
    out = tmp_path / "squad.parquet"
    result = invoke("mine", SQUAD, "--format", "squad", "-o", out, "--embedder", words, "--limit", 5)
    assert result.exit_code == 0, result.stderr
    rows = list(read_rows(out))
    assert len(rows) == 5 and all(r.source == "squad" for r in rows)


def test_a_task_for_an_embedder_without_instructions_is_remarked(
    invoke: Invoke, train: Path, words: Path, tmp_path: Path
) -> None:
    """--task is used all the same, and the note says what it is worth; rows' own instructions bring no note."""
    plain = invoke("mine", train, "-o", tmp_path / "a.jsonl", "--embedder", words)
    assert (plain.exit_code, plain.stderr) == (0, "")
    told = invoke("mine", train, "-o", tmp_path / "b.jsonl", "--embedder", words, "--task", "qa")
    assert told.exit_code == 0
    assert "was not trained on instructions" in told.stderr and told.stderr.count("\n") == 1


def test_a_file_that_is_there_is_replaced_by_force_alone(
    invoke: Invoke, train: Path, words: Path, tmp_path: Path
) -> None:
    """Without --force the file stays and the embedder is not even opened; a failing run with it leaves the file too."""
    out = tmp_path / "out.jsonl"
    out.write_text("mine, all mine\n")
    refused = invoke("mine", train, "-o", out, "--embedder", "./no/such/model")
    assert refused.exit_code == 2
    assert (
        refused.stderr == f"error: {out} is there already: choose another name, or replace it with --force\n"
    )
    broken = _write(tmp_path / "in.jsonl", {"query": "q", "positive": "p"}, {"query": "q"})
    failed = invoke("mine", broken, "-o", out, "--embedder", words, "--force")
    assert failed.exit_code == 2 and "in.jsonl, line 2: " in failed.stderr
    assert out.read_text() == "mine, all mine\n"
    assert invoke("mine", train, "-o", out, "--embedder", words, "--force").exit_code == 0
    assert len(list(read_rows(out))) == len(list(read_rows(train)))


def test_the_rows_file_may_be_its_own_target(
    invoke: Invoke, train: Path, words: Path, tmp_path: Path
) -> None:
    """ROWS is read whole before FILE is written, so that both may be one."""
    own = tmp_path / "rows.jsonl"
    own.write_bytes(train.read_bytes())
    assert invoke("mine", own, "-o", own, "--embedder", words, "--force").exit_code == 0
    assert sum(bool(r.negatives) for r in read_rows(own)) > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{rows}", "-o", "{tmp}/out.txt"], "cannot write training rows to {tmp}/out.txt: name it .jsonl"),
        (["{rows}", "-o", "{tmp}/o.jsonl", "--ranks", "10-100"], "--ranks '10-100' is no window of ranks"),
        (["{rows}", "-o", "{tmp}/o.jsonl", "--ranks", "9:3"], "ranks 9 to 3 are no window"),
        (["{rows}", "-o", "{tmp}/o.jsonl", "--negatives", "0"], "negatives is 0"),
        (["{rows}", "-o", "{tmp}/o.jsonl", "--max-ratio", "2"], "max_ratio is 2.0"),
        (["{tmp}/none.jsonl", "-o", "{tmp}/o.jsonl"], "{tmp}/none.jsonl"),
        (["{rows}", "-o", "{tmp}/o.jsonl", "--format", "sqaud"], "unknown data format 'sqaud': did you mean squad"),
        (["{rows}", "-o", "{tmp}/o.jsonl", "--task", "qaa"], "unknown task 'qaa'"),
        (["{rows}", "-o", "{tmp}/o.jsonl", "--task", "qa", "--instruction", "x"], "--task and --instruction are both"),
        (["{rows}", "-o", "{tmp}/o.jsonl", "--index", "{index}", "--embedder", "x"], "an index has its embedder"),
        (["{rows}", "-o", "{tmp}/o.jsonl", "--index", "{tmp}"], "{tmp}"),
        (["{rows}", "-o", "{tmp}/o.jsonl", "--judge", "{tmp}"], "the judge '{tmp}' is no model folder"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_sentence_and_writes_nothing(
    invoke: Invoke, train: Path, sample_index: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    """Exit code 2, one line on stderr, and no file."""
    names = {"rows": train, "tmp": tmp_path, "index": sample_index}
    result = invoke("mine", *(a.format(**names) for a in arguments))
    assert (result.exit_code, result.stdout) == (2, "")
    assert message.format(**names) in result.stderr and result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
