"""Measures against hand-computed values, and the readers of queries and judgements."""

from __future__ import annotations

import gzip
import io
import math
import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkit.errors import CorpusError, InputError, MissingExtraError
from embedkit.evaluation import (
    Measures,
    Query,
    QueryMeasures,
    find_qrels,
    is_query_itself,
    mean,
    measure,
    pooled,
    rank_documents,
    read_qrels,
    read_queries,
    restrict_qrels,
    sample,
)


def test_ndcg_gains_by_grade_and_discounts_by_log_rank() -> None:
    """NDCG@10 of grades (0, 1, 2) where (2, 1) is ideal is (1/log2 3 + 2/log2 4) / (2 + 1/log2 3)."""
    found = measure({"q": {"a": 2, "b": 1}}, {"q": ["x", "b", "a"]})["q"]
    dcg = 1 / math.log2(3) + 2 / math.log2(4)
    assert found.ndcg == pytest.approx(dcg / (2 + 1 / math.log2(3)))
    assert found.recall == 1.0
    assert found.mrr == 0.5


@pytest.mark.parametrize(("rank", "mrr", "recalled"), [(1, 1.0, 1), (10, 0.1, 1), (11, 0.0, 1), (100, 0.0, 1), (101, 0.0, 0)])  # fmt: skip
def test_mrr_is_cut_at_10_and_recall_at_the_depth(rank: int, mrr: float, recalled: int) -> None:
    """MRR@10 is 0 from rank 11 on, where trec_eval's uncut reciprocal rank would still count; Recall@100 to 100."""
    ranking = [f"x{i}" for i in range(1, rank)] + ["hit"] + [f"y{i}" for i in range(50)]
    found = measure({"q": {"hit": 1}}, {"q": ranking})["q"]
    assert found.mrr == pytest.approx(mrr)
    assert found.recall == recalled
    assert found.ndcg == (pytest.approx(1 / math.log2(rank + 1)) if rank <= 10 else 0.0)


def test_recall_counts_every_relevant_document() -> None:
    """Recall at depth 10 is the share of the relevant documents found; grade 0 is not relevant."""
    qrels = {"q": {"a": 1, "b": 1, "c": 1, "d": 3, "no": 0}}
    assert measure(qrels, {"q": ["a", "no", "d"]}, depth=10)["q"].recall == 0.5


def test_a_query_without_ranking_counts_as_zero() -> None:
    """A judged query that was not answered lowers the mean, where trec_eval would leave it out."""
    found = measure({"q1": {"a": 1}, "q2": {"b": 1}, "q3": {"c": 1}}, {"q1": ["a"], "q2": []})
    assert found == {"q1": QueryMeasures(1, 1, 1), "q2": QueryMeasures(0, 0, 0), "q3": QueryMeasures(0, 0, 0)}
    assert mean(found.values()) == Measures(3, 1 / 3, 1 / 3, 1 / 3, 100)


def test_a_query_without_relevant_document_is_left_out() -> None:
    """A query whose judgements are all 0 has no measures; a ranking without judgements is ignored."""
    assert list(measure({"q1": {"a": 0}, "q2": {"a": 1}}, {"q1": ["a"], "q2": ["a"], "q3": ["a"]})) == ["q2"]


def test_mean_of_nothing_is_zero() -> None:
    """The mean over no query is zeros over 0 queries, and its JSON names carry the cut-offs."""
    assert mean([], depth=50).to_dict() == {"queries": 0, "nDCG@10": 0.0, "Recall@50": 0.0, "MRR@10": 0.0}


def test_pooled_means_weigh_each_query_alike() -> None:
    """The mean of one query at 1 and three at 0 is a quarter; of no group there is none."""
    one, three = mean([QueryMeasures(1, 1, 1)]), mean([QueryMeasures(0, 0, 0)] * 3)
    assert pooled([one, three]) == Measures(4, 0.25, 0.25, 0.25)
    with pytest.raises(InputError, match="no group"):
        pooled([])


def test_depth_below_ten_is_refused() -> None:
    """A depth of 9 is refused, because nDCG@10 needs ten ranks."""
    with pytest.raises(InputError, match="9 is below 10"):
        measure({"q": {"a": 1}}, {"q": ["a"]}, depth=9)


def test_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pytrec-eval-terrier the error holds the pip command of the extra [eval]."""
    monkeypatch.setitem(sys.modules, "pytrec_eval", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'embedkit-retrieval\[eval\]'"):
        measure({"q": {"a": 1}}, {"q": ["a"]})


def test_a_document_counts_at_its_best_chunk() -> None:
    """Chunks of one document collapse to one entry at the best score; equal scores are ordered by id."""
    chunks = [("b", 0.5), ("c", 0.9), ("a", 0.5), ("b", 0.2), ("c", 0.1)]
    assert rank_documents(chunks) == [("c", 0.9), ("a", 0.5), ("b", 0.5)]


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from([0.1, 0.2, 0.3]))),
    st.randoms(use_true_random=False),
)
def test_document_ranking_does_not_depend_on_the_order_of_chunks(
    chunks: list[tuple[str, float]], random: Random
) -> None:
    """Any permutation of the chunks gives the same ranking, ties included."""
    shuffled = list(chunks)
    random.shuffle(shuffled)
    assert rank_documents(shuffled) == rank_documents(chunks)


def test_the_query_itself_is_left_out() -> None:
    """A document with the query's id, or the query's id without `q-`, is not ranked; `q-` alone hides nothing else."""
    chunks = [("7", 0.9), ("q-7", 0.8), ("8", 0.7)]
    assert rank_documents(chunks, "q-7") == [("8", 0.7)]
    assert rank_documents(chunks, "7") == [("q-7", 0.8), ("8", 0.7)]
    assert not is_query_itself("q-7", "77")


def test_a_relevant_document_is_never_taken_for_the_query() -> None:
    """Queries and documents that are both numbered from 1 are no copies of each other: what is judged relevant stays."""
    chunks = [("7", 0.9), ("8", 0.7)]
    assert rank_documents(chunks, "q-7", {"7": 1}) == chunks
    assert rank_documents(chunks, "q-7", {"7": 0, "8": 1}) == [("8", 0.7)]


def test_a_damaged_gzip_is_named(tmp_path: Path) -> None:
    """Queries whose gzip is broken in its middle are a CorpusError with the path."""
    rows = "".join(f'{{"_id": "{i}", "text": "{i * 7919}"}}\n' for i in range(5000))
    data = bytearray(gzip.compress(rows.encode()))
    data[len(data) // 2 : len(data) // 2 + 40] = b"\xff" * 40
    (tmp_path / "queries.jsonl.gz").write_bytes(data)
    with pytest.raises(CorpusError, match=r"queries\.jsonl\.gz"):
        read_queries(tmp_path / "queries.jsonl.gz")


def test_restricting_qrels_drops_queries_without_relevant_document() -> None:
    """Judgements are cut to the documents given; a query left with grade 0 alone goes."""
    qrels = {"q1": {"a": 1, "b": 2}, "q2": {"c": 1}, "q3": {"a": 0, "c": 1}}
    assert restrict_qrels(qrels, ["a", "x"]) == {"q1": {"a": 1}}


def test_samples_are_seeded_and_keep_the_order() -> None:
    """The same seed draws the same items in their order; a larger count than there is gives all."""
    items = list(range(1000))
    assert sample(items, 50, seed=3) == sample(items, 50, seed=3) == sorted(sample(items, 50, seed=3))
    assert sample(items, 50, seed=3) != sample(items, 50, seed=4)
    assert sample(items, None) == sample(items, 5000) == items
    with pytest.raises(InputError, match="sample of 0"):
        sample(items, 0)


def test_queries_are_read_from_json_lines_plain_lines_gzip_and_streams(tmp_path: Path) -> None:
    """JSON lines keep id, language and task; plain lines get their line number; gzip and streams read alike."""
    line = '{"_id": "q1", "text": "où?", "lang": "fr", "task": "qa", "category": 3}\n'
    (tmp_path / "q.jsonl").write_text("\ufeff" + line + "\n", encoding="utf-8")
    (tmp_path / "q.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    (tmp_path / "q.txt").write_text("one\n\n two \n", encoding="utf-8")
    expected = [Query("q1", "où?", "fr", "qa")]
    assert read_queries(tmp_path / "q.jsonl") == read_queries(tmp_path / "q.jsonl.gz") == expected
    assert read_queries("-", io.StringIO(line)) == expected
    assert read_queries(tmp_path / "q.txt") == [Query("1", "one"), Query("3", "two")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"_id": 1, "text": "a"}\n{"_id": 2', "line 2: is no JSON"),
        ('{"_id": 1, "text": " "}', 'line 1: needs a "text"'),
        ('{"_id": 1}', 'line 1: needs a "text"'),
        ('{"_id": 1, "text": "a"}\n[1]', "line 2: needs an object, got list"),
        ('{"_id": 1, "text": "a"}\n{"_id": "1", "text": "b"}', "line 2: the query id '1' is used twice"),
        ('{"_id": 1, "text": "a", "task": 3}', 'line 1: "task" must be a string'),
        ("\n", "holds no query"),
    ],
)
def test_bad_queries_are_refused_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    """A queries file's error names file and line."""
    (tmp_path / "q.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(CorpusError, match=message):
        read_queries(tmp_path / "q.jsonl")


def test_unreadable_query_files_are_refused(tmp_path: Path) -> None:
    """A missing file, bytes that are not UTF-8 and a truncated gzip are each one CorpusError."""
    (tmp_path / "latin").write_bytes("é".encode("latin-1"))
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"a query\n" * 99)[:-12])
    for name, message in [("missing", "No such file"), ("latin", "not UTF-8"), ("cut.gz", "ended before")]:
        with pytest.raises(CorpusError, match=message):
            read_queries(tmp_path / name)


def test_qrels_are_read_with_and_without_header_and_in_trec_columns(tmp_path: Path) -> None:
    """BEIR's three columns and TREC's four give the same judgements, gzip or not."""
    (tmp_path / "a.tsv").write_text("query-id\tcorpus-id\tscore\nq 1\td1\t2\nq 1\td2\t0\n")
    (tmp_path / "b.tsv").write_text("q 1\td1\t2\nq 1\td2\t0\n")
    (tmp_path / "c.txt").write_text("q1 0 d1 2\nq1 0 d2 -1\n")
    (tmp_path / "d.tsv.gz").write_bytes(gzip.compress(b"q 1\td1\t2\r\nq 1\td2\t0\r\n"))
    expected = {"q 1": {"d1": 2, "d2": 0}}
    assert read_qrels(tmp_path / "a.tsv") == read_qrels(tmp_path / "b.tsv") == expected
    assert read_qrels(tmp_path / "d.tsv.gz") == expected
    assert read_qrels(tmp_path / "c.txt") == {"q1": {"d1": 2, "d2": -1}}


@pytest.mark.parametrize(("text", "message"), [("q\td\t1\nq\td\n", "line 2"), ("q\td\t1\nq\td\tx\n", "line 2"), ("\n", "holds no")])  # fmt: skip
def test_bad_qrels_are_refused(tmp_path: Path, text: str, message: str) -> None:
    """A row without three columns or with a score that is no number is refused with its line."""
    (tmp_path / "q.tsv").write_text(text)
    with pytest.raises(CorpusError, match=message):
        read_qrels(tmp_path / "q.tsv")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["qrels.tsv"], {None: "qrels.tsv"}),
        (["qrels.tsv.gz"], {None: "qrels.tsv.gz"}),
        (["qrels/test.tsv", "qrels/train.tsv"], {None: "qrels/test.tsv"}),
        (["qrels/dev.tsv", "qrels/train.tsv"], {None: "qrels/dev.tsv"}),
        (["qrels/qa.tsv", "qrels/topic.tsv.gz"], {"qa": "qrels/qa.tsv", "topic": "qrels/topic.tsv.gz"}),
        (["qrels_a.tsv.gz", "qrels_b.tsv"], {"a": "qrels_a.tsv.gz", "b": "qrels_b.tsv"}),
        (["qa.tsv", "topic.tsv"], {"qa": "qa.tsv", "topic": "topic.tsv"}),
        (["qrels.tsv", "other.tsv"], {None: "qrels.tsv"}),
    ],
)
def test_qrels_are_found_by_task(tmp_path: Path, files: list[str], expected: dict[str | None, str]) -> None:
    """Files named after a task are found under it; a split (test before dev before train) names no task."""
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert {k: str(v.relative_to(tmp_path)) for k, v in find_qrels(tmp_path).items()} == expected


def test_a_folder_without_qrels_is_refused(tmp_path: Path) -> None:
    """The error lists the names that are looked for."""
    with pytest.raises(CorpusError, match=r"qrels_TASK\.tsv"):
        find_qrels(tmp_path)
