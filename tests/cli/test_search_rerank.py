"""`embedkit search --rerank`, runs of queries and `eval` with it, and what goes wrong."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.conftest import SAMPLE, Invoke

QUERY = "How do I undo my last git commit?"


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory, words: Path) -> Path:
    """Other seeded vectors for the words of the index's embedder: another order of the same hits."""
    names = [line.split()[0] for line in words.read_text(encoding="utf-8").splitlines()]
    vectors = np.random.default_rng(11).standard_normal((len(names), 16))
    path = tmp_path_factory.mktemp("second") / "second.txt"
    rows = (f"{w} {' '.join(f'{x:.4f}' for x in v)}\n" for w, v in zip(names, vectors, strict=True))
    path.write_text("".join(rows), encoding="utf-8")
    return path


def _json(invoke: Invoke, *arguments: object) -> dict[str, Any]:
    result = invoke("search", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_hits_are_ordered_anew(invoke: Invoke, sample_index: Path, second: Path) -> None:
    """The JSON holds both scores, the rank before and the cost; the hits are of the first stage's twenty."""
    first = _json(invoke, sample_index, QUERY, "-k", 20)
    assert first["rerank"] is None and {h["rerank_score"] for h in first["hits"]} == {None}
    found = _json(
        invoke, sample_index, QUERY, "-k", 4, "--rerank", f"embedder:{second}", "--rerank-depth", 20
    )
    scores = [h["rerank_score"] for h in found["hits"]]
    assert scores == sorted(scores, reverse=True) and len(scores) == 4
    before = {h["chunk_id"]: h for h in first["hits"]}
    for hit in found["hits"]:
        assert (hit["first_rank"], hit["score"]) == tuple(
            before[hit["chunk_id"]][n] for n in ("rank", "score")
        )
    assert [h["first_rank"] for h in found["hits"]] != [1, 2, 3, 4]
    cost = found["rerank"]
    assert cost["candidates"] == 20 and cost["tokens"] > 20 and cost["seconds"] > 0


def test_the_cost_is_a_note(invoke: Invoke, sample_index: Path, second: Path) -> None:
    """Depth, name, time and tokens stand on stderr; each hit shows its score, and rank and score before."""
    result = invoke("search", sample_index, QUERY, "-k", 3, "--rerank", f"embedder:{second}")
    note = re.fullmatch(
        r"note: reranked 50 candidates with (\S+) in [\d.,]+ ms \([\d,]+ tokens\)\n", result.stderr
    )
    assert note and "second.txt" in note[1]
    assert len(re.findall(r"was #\d+ \(-?\d\.\d{3}\)", result.stdout)) == 3
    assert "was #" not in invoke("search", sample_index, QUERY).stdout


def test_options_reach_the_reranker(invoke: Invoke, sample_index: Path, second: Path) -> None:
    """`--rerank-option` is the reranker's own; an unknown one is told with the nearest, the flag where it is no pair."""
    name = f"embedder:{second}"
    plain = invoke("search", sample_index, QUERY, "--rerank", name, "--rerank-option", "lower")
    assert (plain.exit_code, plain.stderr) == (
        2,
        "error: --rerank-option 'lower' is not KEY=VALUE, such as max_length=256\n",
    )
    wrong = invoke("search", sample_index, QUERY, "--rerank", name, "--rerank-option", "max_lenght=9")
    assert wrong.exit_code == 2 and "'max_lenght'" in wrong.stderr


def test_runs_of_queries(invoke: Invoke, sample_index: Path, second: Path, tmp_path: Path) -> None:
    """JSON lines carry the cost of each query; a TREC run is ordered and scored by the reranker."""
    (tmp_path / "queries.txt").write_text(f"{QUERY}\nWhen is a leap year?\n")
    options = ["--queries", tmp_path / "queries.txt", "-k", 3, "--rerank", f"embedder:{second}"]
    lines = invoke("search", sample_index, *options)
    assert lines.exit_code == 0, lines.stderr
    records = [json.loads(line) for line in lines.stdout.splitlines()]
    assert [r["rerank"]["candidates"] for r in records] == [50, 50]
    run = invoke("search", sample_index, *options, "--run", "trec").stdout.splitlines()
    best = records[0]["hits"][0]
    assert run[0].split()[2:5] == [best["document_id"], "1", f"{best['rerank_score']:.6f}"]


def test_eval_measures_the_second_stage(
    invoke: Invoke, sample_index: Path, second: Path, tmp_path: Path
) -> None:
    """An evaluation with a reranker names it, and measures its order."""
    pytest.importorskip("pytrec_eval")
    queries = [
        json.loads(line) for line in (SAMPLE / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    best = {
        q["_id"]: _json(invoke, sample_index, q["text"], "-k", 1, "--rerank", f"embedder:{second}")["hits"][0]
        for q in queries[:3]
    }
    rows = "".join(f"{q}\t{hit['document_id']}\t1\n" for q, hit in best.items())
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    options = [
        "--queries",
        SAMPLE / "queries.jsonl",
        "--qrels",
        tmp_path / "qrels.tsv",
        "--no-pairs",
        "--json",
    ]
    plain, anew = (
        invoke("eval", sample_index, *options, *extra) for extra in ([], ["--rerank", f"embedder:{second}"])
    )
    assert anew.exit_code == plain.exit_code == 0, anew.stderr
    told, first = json.loads(anew.stdout), json.loads(plain.stdout)
    assert first["reranker"] is None and "second.txt" in told["reranker"]
    assert told["overall"] != first["overall"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rerank", "cross-encodr"], "unknown reranker 'cross-encodr': did you mean cross-encoder?"),
        (["--rerank", "{tmp}/none/x"], "does not exist"),
        (["--rerank", "{tmp}"], "is no model folder: it has no config.json"),
        (["--rerank", "{tmp}/embedder"], "is no cross-encoder (BertModel): an embedder's folder re-scores as embedder:"),
        (["--rerank", "{tmp}/classes"], "has 3 labels"),
        (["--rerank", "llm:"], "needs a model"),
        (["--rerank-depth", "5"], "--rerank-depth is for --rerank NAME"),
        (["--rerank-option", "a=1"], "--rerank-option is for --rerank NAME"),
        (["--rerank", "llm", "--rerank-depth", "0"], "0 is not in the range"),
    ],
)  # fmt: skip
def test_errors_are_one_sentence(
    invoke: Invoke, sample_index: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    """What cannot be done is said in a line, with exit code 2, and nothing is printed."""
    for name, config in (
        ("embedder", {"architectures": ["BertModel"]}),
        (
            "classes",
            {"architectures": ["BertForSequenceClassification"], "id2label": {"0": 0, "1": 1, "2": 2}},
        ),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    result = invoke("search", sample_index, QUERY, *(o.replace("{tmp}", str(tmp_path)) for o in options))
    assert result.exit_code == 2 and message in result.stderr
    assert result.stderr.count("\n") == 1 and not result.stdout


def test_a_missing_extra_is_named(
    invoke: Invoke, sample_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without torch, or without the client, the error names the pip command."""
    config = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "score"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for module, name, extra in (
        ("torch", str(tmp_path), "torch"),
        ("openai", "llm:m@http://127.0.0.1:1/v1", "openai"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        result = invoke("search", sample_index, QUERY, "--rerank", name)
        assert result.exit_code == 2 and f"pip install 'embedkit-retrieval[{extra}]'" in result.stderr
