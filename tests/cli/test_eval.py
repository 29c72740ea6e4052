"""`embedkit eval`: figures against a plain computation, tasks, language pairs, filters, bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedkit import get_embedder
from embedkit.tasks import BUILT_IN_TASKS
from tests.cli.conftest import SAMPLE, Invoke

TASKS = ("bitext", "code", "duplicate", "paraphrase", "qa", "topic")


def _evaluate(invoke: Invoke, *arguments: Any) -> dict[str, Any]:
    result = invoke("eval", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def _records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _plain_ndcg(words: Path, task: str, documents: list[dict[str, Any]]) -> dict[str, float]:
    """nDCG@10 by its definition: whole documents, one matrix product, ties by id."""
    embedder = get_embedder(str(words))
    ids = [d["_id"] for d in documents]
    texts = [f"{d['title']}\n\n{d['text']}" if d["title"] else d["text"] for d in documents]
    matrix = embedder.encode_document(texts)
    queries = {q["_id"]: q["text"] for q in _records(SAMPLE / "queries.jsonl")}
    qrels: dict[str, dict[str, int]] = {}
    for line in (SAMPLE / "qrels" / f"{task}.tsv").read_text().splitlines()[1:]:
        query, document, grade = line.split("\t")
        if document in ids:
            qrels.setdefault(query, {})[document] = int(grade)
    values = {}
    for query, grades in qrels.items():
        rendered = f"Instruct: {BUILT_IN_TASKS[task].instruction}\nQuery: {queries[query]}"
        scores = matrix @ embedder.encode_document([rendered])[0]
        order = sorted(zip(-np.round(scores, 6), ids, strict=True))
        gains = [grades.get(d, 0) for _, d in order if d != query.removeprefix("q-")][:10]
        ideal = sorted(grades.values(), reverse=True)[:10]
        values[query] = _dcg(gains) / _dcg(ideal)
    return values


def _dcg(gains: list[int]) -> float:
    return sum(g / math.log2(i + 2) for i, g in enumerate(gains))


@pytest.fixture(scope="module")
def report(words: Path) -> dict[str, Any]:
    """The sample corpus evaluated once, documents whole."""
    from click.testing import CliRunner

    from embedkit_cli.main import cli

    result = CliRunner().invoke(cli, ["eval", str(SAMPLE), "--embedder", str(words), "--no-split", "--json"])
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_each_qrels_file_is_evaluated_under_its_task(report: dict[str, Any]) -> None:
    """A folder qrels/ of six TASK.tsv files gives six tasks, each with that task's instruction."""
    assert [t["task"] for t in report["tasks"]] == list(TASKS)
    assert [t["instruction"] for t in report["tasks"]] == [BUILT_IN_TASKS[t].instruction for t in TASKS]
    assert [t["queries"] for t in report["tasks"]] == [92, 26, 47, 46, 54, 102]


@pytest.mark.parametrize("task", TASKS)
def test_ndcg_equals_the_plain_computation(report: dict[str, Any], words: Path, task: str) -> None:
    """nDCG@10 of every task equals a matrix product and the definition to three decimals."""
    expected = _plain_ndcg(words, task, _records(SAMPLE / "corpus.jsonl"))
    found = next(t for t in report["tasks"] if t["task"] == task)
    assert found["nDCG@10"] == pytest.approx(np.mean(list(expected.values())), abs=5e-4)


def test_overall_is_the_mean_over_all_judged_queries(report: dict[str, Any]) -> None:
    """The overall figures weigh every (task, query) alike."""
    assert report["overall"]["queries"] == sum(t["queries"] for t in report["tasks"])
    for name in ("nDCG@10", "Recall@100", "MRR@10"):
        weighted = sum(t[name] * t["queries"] for t in report["tasks"]) / report["overall"]["queries"]
        assert report["overall"][name] == pytest.approx(weighted)


def test_a_language_pair_is_searched_among_its_documents_alone(
    invoke: Invoke, report: dict[str, Any], words: Path
) -> None:
    """The pair en -> de of the whole run equals the run with --query-lang en --doc-lang de."""
    pair = next(p for p in report["languages"] if (p["query"], p["document"]) == ("en", "de"))
    alone = _evaluate(
        invoke, SAMPLE, "--embedder", words, "--no-split", "--query-lang", "en", "--doc-lang", "de"
    )
    assert [(p["query"], p["document"]) for p in alone["languages"]] == [("en", "de")]
    assert alone["documents"] == 17
    for name in ("queries", "nDCG@10", "Recall@100", "MRR@10"):
        assert pair[name] == alone["overall"][name] == alone["languages"][0][name]


def test_an_index_is_evaluated_with_queries_and_qrels(invoke: Invoke, words: Path, tmp_path: Path) -> None:
    """An index of the same corpus gives the BEIR folder's figures, language pairs included."""
    build = ["index", SAMPLE / "corpus.jsonl", "-o", tmp_path / "i", "--embedder", words]
    assert invoke(*build).exit_code == 0
    judged = ["--queries", SAMPLE / "queries.jsonl", "--qrels", SAMPLE / "qrels" / "qa.tsv", "--task", "qa"]
    from_index = _evaluate(invoke, tmp_path / "i", *judged)
    from_folder = _evaluate(invoke, SAMPLE, "--embedder", words, *judged[2:])
    assert from_index["overall"] == from_folder["overall"]
    assert from_index["tasks"] == from_folder["tasks"]
    assert from_index["languages"] == from_folder["languages"]
    german = _evaluate(invoke, tmp_path / "i", *judged, "--doc-lang", "de", "--query-lang", "en")
    pair = next(p for p in from_index["languages"] if (p["query"], p["document"]) == ("en", "de"))
    assert german["overall"]["nDCG@10"] == pair["nDCG@10"]


def test_words_are_measured_without_the_embedder(invoke: Invoke, words: Path, tmp_path: Path) -> None:
    """--lexical gives the same figures under any embedder, --hybrid others; both are told in the report."""
    (tmp_path / "v.txt").write_text("git 1 0\nnet 0 1\n")
    asked = ["--no-split", "--no-pairs", "--task", "qa"]
    lexical = [
        _evaluate(invoke, SAMPLE, *asked, "--lexical", "--embedder", e) for e in (words, tmp_path / "v.txt")
    ]
    assert lexical[0]["overall"] == lexical[1]["overall"]
    assert lexical[0]["overall"]["nDCG@10"] > 0.1
    hybrid = _evaluate(invoke, SAMPLE, *asked, "--hybrid", "--weights", "1,0.5", "--embedder", words)
    assert hybrid["overall"] != lexical[0]["overall"]
    assert (lexical[0]["mode"], hybrid["mode"]) == ("lexical", "hybrid")


def test_a_sample_is_seeded(invoke: Invoke, words: Path) -> None:
    """--sample 10 asks at most 10 queries under each task, the same ones for the same seed."""
    small = [SAMPLE, "--embedder", words, "--sample", 10, "--no-pairs"]
    first, again, other = (_evaluate(invoke, *small, "--seed", seed) for seed in (1, 1, 2))
    assert all(t["queries"] <= 10 for t in first["tasks"])
    assert first["tasks"] == again["tasks"] != other["tasks"]
    assert first["languages"] == []


@pytest.fixture
def places(sample_index: Path, tmp_path: Path) -> tuple[Path, Path]:
    """An index, and a folder for a test's own files."""
    return sample_index, tmp_path


def _beir(folder: Path, queries: list[dict[str, str]], qrels: dict[str, str]) -> Path:
    (folder / "corpus.jsonl").write_text(
        "".join(
            json.dumps({"_id": i, "text": t}) + "\n" for i, t in [("1", "git commit"), ("2", "mosquito net")]
        )
    )
    (folder / "queries.jsonl").write_text("".join(json.dumps(q) + "\n" for q in queries))
    for name, rows in qrels.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("query-id\tcorpus-id\tscore\n" + rows)
    return folder


def test_the_query_itself_is_left_out_of_the_ranking(invoke: Invoke, words: Path, tmp_path: Path) -> None:
    """The nearest document is the query itself (`q-1` and `1`): the judged one moves to the first rank."""
    source = _beir(tmp_path, [{"_id": "q-1", "text": "git commit"}], {"qrels.tsv": "q-1\t2\t1\n"})
    assert _evaluate(invoke, source, "--embedder", words)["overall"]["MRR@10"] == 1.0


def test_a_relevant_document_with_the_querys_number_counts(
    invoke: Invoke, words: Path, tmp_path: Path
) -> None:
    """Where queries `q-1`, `q-2` and documents `1`, `2` are only numbered alike, the judged ones are ranked."""
    queries = [{"_id": "q-1", "text": "git commit"}, {"_id": "q-2", "text": "mosquito net"}]
    source = _beir(tmp_path, queries, {"qrels.tsv": "q-1\t1\t1\nq-2\t2\t1\n"})
    assert _evaluate(invoke, source, "--embedder", words)["overall"]["nDCG@10"] == 1.0


def test_queries_may_name_their_task(invoke: Invoke, words: Path, tmp_path: Path) -> None:
    """Where qrels name no task, each query's own task holds."""
    queries = [{"_id": "a", "text": "git", "task": "qa"}, {"_id": "b", "text": "net"}]
    source = _beir(tmp_path, queries, {"qrels/test.tsv": "a\t1\t1\nb\t2\t1\n"})
    found = _evaluate(invoke, source, "--embedder", words)
    assert [(t["task"], t["queries"]) for t in found["tasks"]] == [("qa", 1), (None, 1)]
    assert found["overall"]["nDCG@10"] == 1.0


def test_a_free_instruction_holds_for_every_qrels_file(invoke: Invoke, words: Path, tmp_path: Path) -> None:
    """--instruction overrides the task that a file's name says, even one that does not exist."""
    source = _beir(tmp_path, [{"_id": "a", "text": "git"}], {"qrels_no-such-task.tsv": "a\t1\t1\n"})
    found = _evaluate(invoke, source, "--embedder", words, "--instruction", "Find it")
    assert [(t["task"], t["instruction"]) for t in found["tasks"]] == [(None, "Find it")]


def test_people_get_a_table(invoke: Invoke, words: Path) -> None:
    """The table has a row overall, one a task and one a language pair."""
    result = invoke(
        "eval", SAMPLE, "--embedder", words, "--query-lang", "de", "--doc-lang", "en", env={"COLUMNS": "120"}
    )
    assert result.exit_code == 0, result.stderr
    assert "nDCG@10" in result.stdout and "overall" in result.stdout
    assert "task bitext" in result.stdout and "de → en" in result.stdout
    assert result.stderr.count("note: ") == result.stderr.count("\n") == 1


def test_many_pairs_are_summed_up_for_people(invoke: Invoke, words: Path) -> None:
    """More than 30 language pairs become two rows: same language and across languages."""
    one_task = ["--qrels", SAMPLE / "qrels" / "topic.tsv", "--sample", 20]
    result = invoke("eval", SAMPLE, "--embedder", words, *one_task, env={"COLUMNS": "140"})
    assert "pairs, same language (--json lists them)" in result.stdout
    assert "pairs, across languages (--json lists them)" in result.stdout
    assert "→" not in result.stdout


def test_language_tags_are_compared_as_readers_store_them(
    invoke: Invoke, words: Path, tmp_path: Path
) -> None:
    """Queries tagged eng_Latn and documents tagged EN are the pair en -> en, and --query-lang en finds them."""
    source = _beir(tmp_path, [{"_id": "a", "text": "git", "lang": "eng_Latn"}], {"qrels.tsv": "a\t1\t1\n"})
    (tmp_path / "corpus.jsonl").write_text('{"_id": "1", "text": "git commit", "lang": "EN"}\n')
    found = _evaluate(invoke, source, "--embedder", words, "--query-lang", "en", "--doc-lang", "en")
    assert [(p["query"], p["document"]) for p in found["languages"]] == [("en", "en")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/none"], "error: {tmp}/none is no BEIR folder"),
        (["{tmp}", "--queries", "{tmp}/queries.jsonl", "--qrels", "{tmp}/none"], "error: {tmp}"),
        (["{tmp}", "--task", "qaa"], "error: unknown task 'qaa': did you mean qa?"),
        (["{tmp}", "--task", "qa", "--instruction", "x"], "error: --task and --instruction are both given"),
        (["{tmp}"], "error: unknown task 'nonsense'"),
        (["{tmp}", "--task", "qa", "--query-lang", "xx"], "error: no judged query is left of 1 (language xx"),
        (["{tmp}", "--task", "qa", "--doc-lang", "xx"], "error: "),
        (["{tmp}", "--task", "qa", "--qrels", "{tmp}/other.tsv"], "error: no judged query is left"),
        (["{tmp}", "--k", "5"], "error: invalid value for '--k': 5 is not in the range x>=10"),
        (["{index}", "--queries", "{tmp}/queries.jsonl", "--qrels", "{tmp}", "--embedder", "x"], "error: "),
    ],
)
def test_bad_input_is_one_sentence(
    invoke: Invoke, places: tuple[Path, Path], words: Path, arguments: list[str], message: str
) -> None:
    """Each mistake ends with exit code 2 and one sentence."""
    sample_index, tmp_path = places
    source = _beir(tmp_path, [{"_id": "a", "text": "git", "lang": "en"}], {"qrels_nonsense.tsv": "a\t1\t1\n"})
    (tmp_path / "other.tsv").write_text("zzz\t1\t1\n")
    filled = [a.format(tmp=source, index=sample_index) for a in arguments]
    embedder = [] if "--embedder" in filled or "--queries" in filled else ["--embedder", words]
    result = invoke("eval", *filled, *embedder)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(message.format(tmp=tmp_path))
    assert result.stderr.count("\n") == 1
