"""The run over files: every row comes out once, kept or with its reason, and an output appears whole or not at all."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedkit.errors import CorpusError, InputError
from embedkit_indexes.corpus.language import identify_language, known_languages
from embedkit_trainer.data.rows import read_rows
from embedkit_trainer.synthesis.filters import pipeline
from embedkit_trainer.synthesis.filters.compliance import LengthFilter
from embedkit_trainer.synthesis.filters.duplicates import DuplicateFilter
from embedkit_trainer.synthesis.filters.example import Example, Outcome
from embedkit_trainer.synthesis.filters.language import LanguageFilter
from embedkit_trainer.synthesis.filters.output import Target
from embedkit_trainer.synthesis.filters.pipeline import filter_rows
from tests.trainer.synthesis.made_rows import read, write


def _rows(*numbers: int, **keys: Any) -> list[dict[str, Any]]:
    return [{"id": n, "query": f"question {n}", "positive": f"answer {n}", **keys} for n in numbers]


def test_a_folder_keeps_its_files_and_every_row_comes_out_once(tmp_path: Path) -> None:
    """Kept rows under their files' names, dropped ones with reason, detail and place; the report adds up."""
    write(tmp_path / "in" / "sts" / "a.jsonl", *_rows(1, 2, 1, metadata={"model": "m"}))
    with gzip.open(tmp_path / "in" / "b.jsonl.gz", "wt", encoding="utf-8") as f:
        f.write("".join(json.dumps(r) + "\n" for r in _rows(3, 2, lang_q="en")))
    pq.write_table(pa.Table.from_pylist(_rows(4, 3)), tmp_path / "in" / "c.parquet")
    target = Target.of(tmp_path / "in", tmp_path / "out")
    seen: list[int] = []
    report = filter_rows(target, [DuplicateFilter(), LengthFilter()], watch=seen.append)
    assert (report.rows, report.kept, report.dropped) == (7, 4, {"exact-duplicate": 3})
    assert [count.seen for count in report.filters] == [7, 4]
    assert seen[-1] == 7
    files = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*"))
    assert files == ["b.jsonl.gz", "c.parquet.jsonl", "sts/a.jsonl"]
    assert read(tmp_path / "out" / "sts" / "a.jsonl") == _rows(1, metadata={"model": "m"})
    assert {r.query for r in read_rows(tmp_path / "out")} == {f"question {n}" for n in (1, 2, 3, 4)}
    dropped = read(tmp_path / "out.dropped" / "dropped-exact-duplicate.jsonl")
    places = [(r["id"], r["dropped"]["reason"], r["dropped"]["from"]) for r in dropped]
    assert places == [
        (3, "exact-duplicate", "c.parquet, line 2"),
        (2, "exact-duplicate", "sts/a.jsonl, line 2"),
        (1, "exact-duplicate", "sts/a.jsonl, line 3"),
    ]
    written = json.loads((tmp_path / "out.dropped" / "report.json").read_text(encoding="utf-8"))
    assert written == report.to_dict()


def test_dropped_rows_cannot_be_trained_on_by_mistake(tmp_path: Path) -> None:
    """Their key `dropped` is none of the trainer's."""
    write(tmp_path / "a.jsonl", *_rows(1, 1))
    filter_rows(Target.of(tmp_path / "a.jsonl", tmp_path / "kept.jsonl"), [DuplicateFilter()])
    assert [r.query for r in read_rows(tmp_path / "kept.jsonl")] == ["question 1"]
    with pytest.raises(CorpusError, match="unknown key 'dropped'"):
        list(read_rows(tmp_path / "kept.dropped"))


def test_a_changed_row_is_kept_as_it_becomes_and_as_it_was(tmp_path: Path) -> None:
    """The row without its repeated negative goes on; the one before lies beside."""
    write(tmp_path / "a.jsonl", *_rows(1, negative=["x", "answer 1", "y"]))
    report = filter_rows(Target.of(tmp_path / "a.jsonl", tmp_path / "kept.jsonl"), [DuplicateFilter()])
    assert report.kept == 1 and report.filters[0].changed == {"repeated-negative": 1}
    assert read(tmp_path / "kept.jsonl")[0]["negative"] == ["x", "y"]
    (before,) = read(tmp_path / "kept.dropped" / "changed-repeated-negative.jsonl")
    assert before["negative"] == ["x", "answer 1", "y"]
    assert before["changed"]["from"] == "a.jsonl, line 1"


class _Failing:
    name: ClassVar[str] = "failing"
    parallel: ClassVar[bool] = False

    def check(self, batch: Sequence[Example]) -> list[Outcome]:
        raise InputError("the filter cannot go on")


def test_after_an_error_the_output_is_as_it_was(tmp_path: Path) -> None:
    """A broken row, a filter that fails, no row left: the old output stays, and nothing lies about."""
    rows = write(tmp_path / "in" / "a.jsonl", *_rows(1, 2))
    filter_rows(Target.of(rows, tmp_path / "out"), [DuplicateFilter()])
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    broken = write(tmp_path / "broken" / "a.jsonl", *_rows(1), {"query": "no positive"})
    long = write(tmp_path / "long" / "a.jsonl", *_rows(1, metadata={"num_words": 500}))
    before |= {p: p.read_bytes() for p in (broken, long)}
    for path, judge, sentence in (
        (broken, DuplicateFilter(), r"broken.a\.jsonl, line 2: positive is missing"),
        (rows, _Failing(), "cannot go on"),
        (long, LengthFilter(), r"none of 1 rows is left \(num-words 1\)"),
    ):
        with pytest.raises(InputError, match=sentence):
            filter_rows(Target.of(path, tmp_path / "out", replace=True), [judge])
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_an_output_of_ours_is_replaced_whole(tmp_path: Path) -> None:
    """Files of the earlier run that this one does not write are gone, beside it too."""
    write(tmp_path / "in" / "a.jsonl", *_rows(1, 1))
    write(tmp_path / "in" / "b.jsonl", *_rows(2))
    filter_rows(Target.of(tmp_path / "in", tmp_path / "out"), [DuplicateFilter()])
    (tmp_path / "in" / "b.jsonl").unlink()
    write(tmp_path / "in" / "a.jsonl", *_rows(3))
    filter_rows(Target.of(tmp_path / "in", tmp_path / "out", replace=True), [DuplicateFilter()])
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.jsonl"]
    assert sorted(p.name for p in (tmp_path / "out.dropped").iterdir()) == ["report.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out", "out.dropped"]


@pytest.mark.parametrize(
    ("rows", "output", "replace", "sentence"),
    [
        ("in", "there", False, "is there already"),
        ("in", "there", True, "is not this command's own"),
        ("in", "file.jsonl", False, "is there already"),
        ("in", "in", True, "holds .*, which is read"),
        ("in/a.jsonl", "in/a.jsonl", True, "holds .*, which is read"),
        ("in", "in/out", False, "would lie among the rows that are read"),
        ("in", "out.parquet", False, "name a folder, or a file ending in .jsonl"),
        ("missing", "out", False, "does not exist"),
    ],
)
def test_a_place_that_would_lose_something_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: str, output: str, replace: bool, sentence: str
) -> None:
    """What is there and not ours, what is read, and what would be read the next time."""
    monkeypatch.chdir(tmp_path)
    write(Path("in/a.jsonl"), *_rows(1))
    write(Path("there/mine.txt"), {})
    write(Path("file.jsonl"), *_rows(1))
    with pytest.raises(InputError, match=sentence):
        Target.of(rows, output, replace=replace)


def test_what_a_killed_run_left_is_not_read(tmp_path: Path) -> None:
    """Its unfinished files lie in a hidden folder, which no folder of rows takes in."""
    write(tmp_path / "rows.jsonl", *_rows(1))
    write(tmp_path / ".1234abcd.out" / "kept" / "rows.jsonl", *_rows(2))
    assert [row.query for row in read_rows(tmp_path)] == ["question 1"]
    assert len(list(read_rows(tmp_path / ".1234abcd.out"))) == 1


def test_workers_give_the_same_rows_in_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches judged in another process come back in their order."""
    monkeypatch.setattr(pipeline, "_WORTH_WORKERS", 0)
    german = "Der letzte Bus nach Hause fährt heute wegen der Bauarbeiten schon um zehn Uhr."
    rows = [_rows(n, lang="en", **({"positive": german} if n % 7 == 0 else {}))[0] for n in range(3000)]
    write(tmp_path / "a.jsonl", *rows)
    kept = []
    for workers in (0, 1):
        target = Target.of(tmp_path / "a.jsonl", tmp_path / f"{workers}.jsonl")
        judge = LanguageFilter(identify_language, known_languages())
        report = filter_rows(target, [DuplicateFilter(), judge], workers=workers)
        assert report.dropped == {"other-language": len(range(0, 3000, 7))}
        kept.append((tmp_path / f"{workers}.jsonl").read_bytes())
    assert kept[0] == kept[1]
