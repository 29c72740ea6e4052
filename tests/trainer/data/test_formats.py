"""Loaders of public sets: each layout gives the rows it stands for, and wrong files are named with their line."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import embedkit_trainer
from embedkit.compression import COMPRESSED
from embedkit.errors import CorpusError, UnknownNameError
from embedkit_trainer.data.files import writer
from embedkit_trainer.data.formats import files
from embedkit_trainer.data.formats.judged import Passages
from embedkit_trainer.data.formats.registry import FORMATS, load_rows
from embedkit_trainer.data.rows import Row

SAMPLES = Path(embedkit_trainer.__file__).parent / "recipes" / "samples"


def _rows(name: str, path: Path | str) -> list[Row]:
    return list(load_rows(name, path))


def _lines(path: Path, *records: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def _table(path: Path, *rows: Sequence[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(map(str, r)) + "\n" for r in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_a_sample_that_loads(name: str) -> None:
    """A sample of each format ships with the package and gives clean rows under its own name."""
    rows = _rows(name, SAMPLES / name)
    assert 8 <= len(rows) <= 64
    for row in rows:
        assert row.query.strip() and row.positive.strip()
        assert row.positive not in row.negatives and len(set(row.negatives)) == len(row.negatives)
        assert name == "rows" or (row.source == name and len(row.negative_ids) == len(row.negatives))


def test_every_file_of_a_rows_folder_is_read(tmp_path: Path) -> None:
    """The project's own schema has no splits: a file is read whether or not its name says train."""
    for name in ("train", "more"):
        _lines(tmp_path / f"{name}.jsonl", {"query": name, "positive": "p"})
    assert [(r.query, r.source) for r in load_rows("rows", tmp_path, source="s")] == [
        ("more", "s"),
        ("train", "s"),
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_no_sample_row_has_a_positive_of_its_query_as_negative(name: str) -> None:
    """Over all rows that share a query, no positive stands among the negatives, by text or by id."""
    rows = _rows(name, SAMPLES / name)
    positives: dict[str, set[str | None]] = {}
    for row in rows:
        positives.setdefault(row.query, set()).update((row.positive, row.positive_id))
    for row in rows:
        assert not positives[row.query] & (set(row.negatives) | {i for i in row.negative_ids if i})


@pytest.mark.parametrize("suffix", COMPRESSED)
@pytest.mark.parametrize("name", FORMATS)
def test_a_sample_loads_compressed_alike(name: str, suffix: str, tmp_path: Path) -> None:
    """Every file packed by gzip, xz or Zstandard gives the same rows."""
    shutil.copytree(SAMPLES / name, tmp_path / name)
    for file in [p for p in (tmp_path / name).rglob("*") if p.is_file() and p.suffix not in COMPRESSED]:
        with writer(Path(f"{file}{suffix}")) as packed:
            packed.write(file.read_bytes())
        file.unlink()
    assert _rows(name, tmp_path / name) == _rows(name, SAMPLES / name)


def test_samples_are_small() -> None:
    """The samples weigh less than 150 KB together."""
    assert sum(p.stat().st_size for p in SAMPLES.rglob("*") if p.is_file()) < 150_000


def test_instructions_are_given_for_every_labelled_set() -> None:
    """Each labelled set has one or two instructions, NLI and Quora two; plain layouts have none."""
    plain = {"rows", "pairs", "texts", "beir", "passages"}
    assert {n for n, f in FORMATS.items() if not f.instructions} == plain
    assert {n for n, f in FORMATS.items() if len(f.instructions) == 2} == {"nli", "quora"}


def test_an_unknown_format_gets_suggestions() -> None:
    """A misspelt format is answered with the nearest name."""
    with pytest.raises(UnknownNameError, match="did you mean hotpotqa"):
        _rows("hotpot-qa", SAMPLES)


def test_msmarco_joins_queries_judgements_and_collection(tmp_path: Path) -> None:
    """Two judged passages of a query give two rows; a triple's negative that is judged relevant is dropped."""
    _table(tmp_path / "collection.tsv", (1, "alpha"), (2, "beta"), (3, "gamma"), (4, "delta"))
    _table(tmp_path / "queries.train.tsv", (10, "letters"), (11, "unjudged"))
    _table(tmp_path / "qrels.train.tsv", (10, 0, 1, 1), (10, 0, 2, 1))
    _table(tmp_path / "qidpidtriples.train.tsv", (10, 1, 2), (10, 1, 3), (10, 2, 4), (10, 1, 3))
    rows = _rows("msmarco", tmp_path)
    assert [(r.positive, r.positive_id, r.negatives, r.negative_ids) for r in rows] == [
        ("alpha", "1", ("gamma", "delta"), ("3", "4")),
        ("beta", "2", ("gamma", "delta"), ("3", "4")),
    ]


def test_msmarco_takes_triples_of_texts_and_refuses_triples_of_ids_alone(tmp_path: Path) -> None:
    """Lines of one query and positive become one row; ids without their collection are refused with the line."""
    file = _table(tmp_path / "triples.train.tsv", ("q", "p", "n1"), ("q", "p", "n2"), ("r", "p", "n1"))
    assert [(r.query, r.negatives, r.line) for r in _rows("msmarco", file)] == [("q", ("n1", "n2"), 1), ("r", ("n1",), 3)]  # fmt: skip
    _table(file, (1, 2, 3))
    with pytest.raises(CorpusError, match=r"triples.train.tsv, line 1: holds ids"):
        _rows("msmarco", file)


def test_passages_keep_what_is_wanted_alone() -> None:
    """Of a corpus only the wanted texts are kept, and reading stops at the last of them."""
    seen: list[str] = []

    def corpus() -> Any:
        for number in range(1000):
            seen.append(str(number))
            yield str(number), f"text {number} é"

    with Passages({"3", "500"}, corpus()) as passages:
        assert (len(passages), len(seen)) == (2, 501)
        assert (passages.get("500"), passages.get("3"), passages.get("4")) == ("text 500 é", "text 3 é", None)


def test_a_corpus_of_other_ids_is_an_error(tmp_path: Path) -> None:
    """Judgements none of whose passages is in the corpus are refused; a single missing one is left out."""
    _lines(tmp_path / "corpus.jsonl", {"_id": "d1", "text": "one"})
    _lines(tmp_path / "queries.jsonl", {"_id": "q", "text": "number"})
    _table(tmp_path / "qrels" / "train.tsv", ("q", "d1", 1), ("q", "d9", 1))
    assert [r.positive for r in _rows("beir", tmp_path)] == ["one"]
    _table(tmp_path / "qrels" / "train.tsv", ("q", "9", 1))
    with pytest.raises(CorpusError, match="none of the judged passages is in the corpus"):
        _rows("beir", tmp_path)


def test_dpr_takes_the_annotated_positive_and_drops_the_others_from_the_negatives(tmp_path: Path) -> None:
    """The second positive is neither positive nor negative; questions without a positive are left out."""
    ctx = [{"title": "T", "text": t, "passage_id": i} for i, t in enumerate(("gold", "also", "wrong"))]
    records = [
        {"question": "q", "positive_ctxs": ctx[:2], "hard_negative_ctxs": [ctx[1], ctx[2]]},
        {"question": "none", "positive_ctxs": [], "hard_negative_ctxs": [ctx[2]]},
    ]
    (tmp_path / "train.json").write_text(json.dumps(records))
    (row,) = _rows("nq", tmp_path / "train.json")
    assert (row.positive, row.positive_id, row.negatives) == ("T\ngold", "0", ("T\nwrong",))


def test_a_large_array_is_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A JSON array is parsed out of a small buffer, with the lines its objects stand on; a cut one is an error."""
    monkeypatch.setattr(files, "_STEP", 7)
    records = [{"number": i, "text": 'x\n]}{" é' * i} for i in range(30)]
    file = tmp_path / "array.json"
    file.write_text(json.dumps(records, indent=1), encoding="utf-8")
    found = list(files.objects(file))
    assert [r for _, r in found] == records
    assert [line for line, _ in found][:3] == [2, 6, 10]
    file.write_text(file.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    with pytest.raises(CorpusError, match="is no JSON array that ends"):
        list(files.objects(file))


def test_squad_leaves_impossible_questions_out() -> None:
    """SQuAD 2.0's unanswerable questions, whose paragraph is no positive, are left out."""
    data = files.whole(SAMPLES / "squad" / "train-v2.0.json")["data"]
    assert sum(q["is_impossible"] for a in data for p in a["paragraphs"] for q in p["qas"]) == 12
    rows = _rows("squad", SAMPLES / "squad")
    assert len(rows) == 12 and not any("book" in r.query for r in rows)
    assert rows[0].positive.startswith("Lighthouse\n" if "\n" in rows[0].positive else "A lighthouse")


def test_hotpotqa_gives_a_row_for_each_supporting_paragraph(tmp_path: Path) -> None:
    """Two gold paragraphs give two rows, distractors alone are negatives, and the hub's layout gives the same."""
    official = {"question": "q", "supporting_facts": [["B", 0], ["A", 1], ["A", 0]], "context": [["A", ["a1. ", "a2."]], ["B", ["b."]], ["C", ["c."]]]}  # fmt: skip
    hub = {"question": "q", "supporting_facts": {"title": ["B", "A"], "sent_id": [0, 1]}, "context": {"title": ["A", "B", "C"], "sentences": [["a1. ", "a2."], ["b."], ["c."]]}}  # fmt: skip
    (tmp_path / "hotpot.json").write_text(json.dumps([official]))
    rows = _rows("hotpotqa", tmp_path / "hotpot.json")
    assert [(r.positive, r.positive_id, r.negatives) for r in rows] == [
        ("A\na1. a2.", "A", ("C\nc.",)),
        ("B\nb.", "B", ("C\nc.",)),
    ]
    assert _rows("hotpotqa", _lines(tmp_path / "hub.jsonl", hub)) == rows


def test_fever_finds_the_paragraph_that_kilt_names(tmp_path: Path) -> None:
    """Evidence is one paragraph of a page; a claim with evidence on two pages gives two rows, without any none."""
    place = [{"wikipedia_id": "7", "start_paragraph_id": 1}, {"wikipedia_id": 8, "start_paragraph_id": 0}]
    _lines(
        tmp_path / "fever-train-kilt.jsonl",
        {"input": "claim", "output": [{"answer": "REFUTES", "provenance": place}]},
        {"input": "unproven", "output": [{"answer": "SUPPORTS"}]},
    )
    _lines(
        tmp_path / "kilt_knowledgesource.json",
        {"wikipedia_id": "7", "wikipedia_title": "Seven", "text": ["Seven\n", "Odd.\n"]},
        {"wikipedia_id": "8", "wikipedia_title": "Eight", "text": ["Even.\n"]},
    )
    rows = _rows("fever", tmp_path)
    assert [(r.query, r.positive, r.positive_id) for r in rows] == [
        ("claim", "Seven\nOdd.", "7#1"),
        ("claim", "Eight\nEven.", "8#0"),
    ]
    shutil.copytree(SAMPLES / "beir", tmp_path / "beir")
    assert [r.query for r in _rows("fever", tmp_path / "beir")] == [r.query for r in _rows("beir", SAMPLES / "beir")]  # fmt: skip


def test_nli_groups_hypotheses_by_premise(tmp_path: Path) -> None:
    """Each entailed hypothesis is a row with all contradictions; '-', neutral and doubly labelled ones are left out."""
    pairs = [("yes", "entailment"), ("no", "contradiction"), ("maybe", "neutral"), ("?", "-"), ("sure", "entailment"), ("never", "contradiction"), ("sure", "contradiction")]  # fmt: skip
    file = _lines(tmp_path / "n.jsonl", *({"sentence1": "P", "sentence2": h, "gold_label": g} for h, g in pairs))  # fmt: skip
    rows = _rows("nli", file)
    assert [(r.positive, r.negatives) for r in rows] == [("yes", ("no", "never")), ("sure", ("no", "never"))]
    assert {r.positive_id for r in rows} == {"P"}
    codes = {"entailment": 0, "neutral": 1, "contradiction": 2, "-": -1}
    hub = _lines(tmp_path / "h.jsonl", *({"premise": "P", "hypothesis": h, "label": codes[g]} for h, g in pairs))  # fmt: skip
    assert _rows("nli", hub) == rows
    with pytest.raises(CorpusError, match=r"x.jsonl, line 1: the label 'perhaps' is none of"):
        _rows(
            "nli", _lines(tmp_path / "x.jsonl", {"sentence1": "P", "sentence2": "h", "gold_label": "perhaps"})
        )


def test_quora_makes_joined_questions_one_class(tmp_path: Path) -> None:
    """Duplicates of duplicates share their id; a pair judged different is no negative where others join the two."""
    head = ("id", "qid1", "qid2", "question1", "question2", "is_duplicate")
    pairs = [("a", "b", 1), ("b", "c", 1), ("a", "c", 0), ("a", "x", 0), ("y", "z", 1)]
    file = _table(tmp_path / "q.tsv", head, *((i, 0, 0, *p) for i, p in enumerate(pairs)))
    rows = _rows("quora", file)
    assert [(r.query, r.positive, r.negatives) for r in rows] == [("a", "b", ("x",)), ("b", "c", ()), ("y", "z", ())]  # fmt: skip
    assert rows[0].positive_id == rows[1].positive_id != rows[2].positive_id
    file.write_text("question1\tquestion2\na\tb\n")
    with pytest.raises(CorpusError, match=r"q.tsv, line 2: needs the columns question1"):
        _rows("quora", file)


def test_quora_reads_quoted_csv(tmp_path: Path) -> None:
    """A question with commas and a line break stands in one quoted cell."""
    (tmp_path / "train.csv").write_text(
        'id,qid1,qid2,question1,question2,is_duplicate\n0,1,2,"what, and\nwhen?","why, ""then""?",1\n'
    )
    (row,) = _rows("quora", tmp_path / "train.csv")
    assert (row.query, row.positive) == ("what, and\nwhen?", 'why, "then"?')


def test_eli5_takes_the_best_voted_answer(tmp_path: Path) -> None:
    """The answer with most votes is the positive, in KILT's layout and the hub's."""
    rows = _rows("eli5", SAMPLES / "eli5")
    assert rows[0].positive.startswith("Cutting an onion")
    hub = {"title": "Why?", "selftext": "Please.", "answers": {"text": ["bad", "good"], "score": [1, 9]}}
    (row,) = _rows("eli5", _lines(tmp_path / "e.jsonl", hub))
    assert (row.query, row.positive) == ("Why?\nPlease.", "good")


def test_languages_with_equal_ids_do_not_clash() -> None:
    """MIRACL's and Mr. TyDi's passages of several languages get the language before their ids."""
    rows = _rows("miracl", SAMPLES / "miracl")
    ids = {r.positive_id for r in rows}
    assert len(ids) == len(rows) and {"de:0#0", "ja:0#0", "sw:0#0"} <= ids
    assert all(len(r.negatives) == 1 for r in rows)
    assert {(r.positive_id or "").split(":")[0] for r in _rows("mrtydi", SAMPLES / "mrtydi")} == {"finnish", "korean", "indonesian"}  # fmt: skip


def test_a_language_without_its_corpus_is_an_error(tmp_path: Path) -> None:
    """Topics whose language has no corpus are refused by name."""
    shutil.copytree(SAMPLES / "miracl", tmp_path / "m")
    shutil.rmtree(tmp_path / "m" / "miracl-corpus-v1.0-sw")
    with pytest.raises(CorpusError, match=r"topics.miracl-v1.0-sw-train.tsv: there is no corpus"):
        _rows("miracl", tmp_path / "m")


@pytest.mark.parametrize("name", ["miracl", "mrtydi", "dureader", "msmarco", "passages"])
def test_passage_lines_are_a_layout_of_many_sets(name: str, tmp_path: Path) -> None:
    """Every positive passage gives a row; a passage listed on both sides is no negative."""
    one, two, other = ({"docid": d, "title": "", "text": d * 3} for d in "abc")
    record = {"query": "q", "positive_passages": [one, two], "negative_passages": [two, other]}
    rows = _rows(name, _lines(tmp_path / "train.jsonl", record))
    assert [(r.positive, r.negatives, r.positive_id) for r in rows] == [("aaa", ("ccc",), "a"), ("bbb", ("ccc",), "b")]  # fmt: skip


def test_dureader_takes_the_organisers_paragraphs(tmp_path: Path) -> None:
    """Each answer paragraph of a question is a row with its id."""
    paragraphs = [
        {"paragraph_id": "x", "paragraph_text": "甲"},
        {"paragraph_id": "y", "paragraph_text": "乙"},
    ]
    rows = _rows("dureader", _lines(tmp_path / "t.jsonl", {"question_id": "1", "question": "问", "answer_paragraphs": paragraphs}))  # fmt: skip
    assert [(r.positive, r.positive_id) for r in rows] == [("甲", "x"), ("乙", "y")]


def test_t2ranking_reads_grades(tmp_path: Path) -> None:
    """Grades 2 and 3 are positives, 0 is a negative, 1 is neither; without grades all named pairs are positives."""
    _table(tmp_path / "collection.tsv", ("pid", "text"), *((i, f"p{i}") for i in range(4)))
    _table(tmp_path / "queries.train.tsv", ("qid", "text"), (0, "q"))
    _table(tmp_path / "qrels.train.tsv", ("qid", "-", "pid", "rel"), *((0, 0, i, i) for i in range(4)))
    assert [(r.positive, r.negatives) for r in _rows("t2ranking", tmp_path)] == [
        ("p2", ("p0",)),
        ("p3", ("p0",)),
    ]
    (tmp_path / "qrels.train.tsv").unlink()
    _table(tmp_path / "qrels.retrieval.train.tsv", ("qid", "pid"), (0, 1))
    assert [(r.positive, r.negatives) for r in _rows("t2ranking", tmp_path)] == [("p1", ())]


def test_code_does_not_hold_the_query() -> None:
    """Python's docstring is cut out of the code, and the query is the docstring's first paragraph."""
    rows = _rows("codesearchnet", SAMPLES / "codesearchnet")
    assert rows[0].query == "Return the sum of the squares of a list of numbers."
    assert rows[0].positive == "def sum_of_squares(values):\n    return sum(v * v for v in values)"
    assert not any(r.query in r.positive for r in rows)


def test_sts_knows_a_header_and_the_benchmarks_own_columns(tmp_path: Path) -> None:
    """The score is read from the right column, with a header, without one, and in STS benchmark's files."""
    header = _table(tmp_path / "a.tsv", ("score", "sentence1", "sentence2"), (2.5, "a", "b"))
    bare = _table(tmp_path / "b.tsv", ("a", "b", 2.5))
    own = _table(tmp_path / "c.csv.tsv", ("news", "f", "2012", "7", "2.5", "a", "b"))
    for file in (header, bare, own):
        assert [(r.query, r.positive, r.score) for r in _rows("sts", file)] == [("a", "b", 2.5)]
    with pytest.raises(CorpusError, match=r"d.tsv, line 2: the score 'high' is no number"):
        _rows("sts", _table(tmp_path / "d.tsv", ("a", "b", 1), ("a", "b", "high")))


def test_texts_are_their_own_positives() -> None:
    """SimCSE's rows have the text on both sides."""
    assert all(r.query == r.positive for r in _rows("texts", SAMPLES / "texts"))


def test_parquet_is_read_like_lines(tmp_path: Path) -> None:
    """A hub's Parquet file gives the rows its JSON lines give."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    records = [
        {"premise": "P", "hypothesis": "yes", "label": 0},
        {"premise": "P", "hypothesis": "no", "label": 2},
    ]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "train.parquet")
    assert _rows("nli", tmp_path) == _rows("nli", _lines(tmp_path / "n.jsonl", *records))


def test_a_glob_names_several_files(tmp_path: Path) -> None:
    """A pattern reads its files in the order of their names; one that matches nothing is an error."""
    for number in (2, 1):
        _table(tmp_path / f"part{number}.tsv", (f"q{number}", "p"))
    assert [r.query for r in _rows("pairs", tmp_path / "part*.tsv")] == ["q1", "q2"]
    with pytest.raises(CorpusError, match="does not exist"):
        _rows("pairs", tmp_path / "none*.tsv")


def test_blank_and_broken_texts_never_reach_training(tmp_path: Path) -> None:
    """Rows without text are left out, and half a surrogate pair becomes a question mark."""
    (tmp_path / "p.jsonl").write_text(
        '{"query": "q\\ud83d", "positive_passages": [{"text": "p"}, {"text": " "}], '
        '"negative_passages": [{"text": ""}, {"text": "n"}, {"text": "n "}]}\n'
    )
    (row,) = _rows("passages", tmp_path / "p.jsonl")
    assert (row.query, row.negatives) == ("q?", ("n",))


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        ("passages", "a.jsonl", '{"query": "q", "positive_passages": []}\n{"quer\n', "line 2: is no JSON"),
        ("passages", "a.jsonl", '{"query": "q"}\n', "line 1: has no 'positive_passages'"),
        ("passages", "a.jsonl", '{"positive_passages": []}\n', "line 1: 'query' is missing"),
        ("passages", "a.jsonl", "[1]\n", "line 1: needs a JSON object, got list"),
        ("passages", "a.jsonl", '{"query": "q", "positive_passages": {"a": 1}}\n', "needs a list"),
        ("pairs", "a.tsv", "a\tb\nc\n", "line 2: needs 2 columns between tabs, got 1: 'c'"),
        ("nq", "a.json", '[{"question": "q"}]', "line 1: has no 'positive_ctxs'"),
        ("nq", "a.json", "[3]", "needs a JSON object, got int"),
        ("hotpotqa", "a.json", '[{"question": "q", "context": 3}]', "needs 'context' and 'supporting_facts'"),
        ("squad", "a.json", '{"data": []}', "holds no articles under 'data'"),
        ("squad", "a.json", "{", "is no JSON"),
        ("codesearchnet", "a.jsonl", '{"code": "x"}\n', "line 1: 'docstring' is missing"),
        ("texts", "a.gz", "not gzip", "a.gz"),
    ],
)  # fmt: skip
def test_wrong_files_are_named_with_their_line(
    name: str, file: str, text: str, message: str, tmp_path: Path
) -> None:
    """What a file lacks is said in one sentence that names it."""
    (tmp_path / file).write_text(text)
    with pytest.raises(CorpusError) as caught:
        _rows(name, tmp_path / file)
    assert message in str(caught.value) and file in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [("t2ranking", "collection.tsv"), ("beir", "queries.jsonl"), ("fever", "kilt_knowledgesource.json"), ("nli", ".jsonl or .parquet"), ("miracl", ".jsonl")],
)  # fmt: skip
def test_an_empty_folder_is_told_what_it_lacks(name: str, message: str, tmp_path: Path) -> None:
    """The error names the file that is looked for."""
    with pytest.raises(CorpusError, match=message):
        _rows(name, tmp_path)


@pytest.mark.parametrize("suffix", COMPRESSED)
@pytest.mark.parametrize("name", ["quora", "nq", "squad", "t2ranking"])
def test_a_cut_archive_is_an_error_with_its_file(name: str, suffix: str, tmp_path: Path) -> None:
    """A compressed file that ends too early is a sentence that names it, whichever reader meets it."""
    shutil.copytree(SAMPLES / name, tmp_path / name)
    for file in [p for p in (tmp_path / name).rglob("*") if p.is_file()]:
        with writer(Path(f"{file}{suffix}")) as packed:
            packed.write(file.read_bytes())
        whole = Path(f"{file}{suffix}").read_bytes()
        Path(f"{file}{suffix}").write_bytes(whole[: len(whole) // 2])
        file.unlink()
    with pytest.raises(CorpusError, match=re.escape(suffix)):
        _rows(name, tmp_path / name)
