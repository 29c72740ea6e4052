"""Placeholders in a row's metadata are those that its template declares, with values that it can have drawn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from embedkit.errors import InputError
from embedkit_trainer.data.files import row_files
from embedkit_trainer.synthesis.filters.example import Dropped, Example
from embedkit_trainer.synthesis.filters.output import Target
from embedkit_trainer.synthesis.filters.pipeline import filter_rows, read_examples
from embedkit_trainer.synthesis.filters.placeholders import DECLARED, PlaceholderFilter, write_declared
from tests.trainer.synthesis.made_rows import example, reasons, write

SEED_SET = Path(__file__).resolve().parents[3] / "examples" / "synthetic"
LOST = "unknown-placeholder"


def _row(template: str | None = "short-long-1", task: str = "short-long", **drawn: Any) -> Example:
    metadata = {"placeholders": drawn} | ({} if template is None else {"template": template})
    return example(task=task, metadata=metadata)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (_row(clarity="ambiguous", num_words="50"), ""),
        (_row(num_words=50), ""),
        (_row(clarity="banana"), LOST),
        (_row(clarity=["clear"]), LOST),
        (_row(clarity=True), LOST),
        (_row(clarity=None), ""),
        (_row(unit="sentence"), LOST),
        (_row(num_words="51"), LOST),
        (_row("of-my-own", clarity="banana"), ""),
        (_row("sts-1", "sts", low_score="1.5"), LOST),
        (_row("sts-1", "sts", low_score=3), ""),
    ],
)
def test_a_value_is_known_to_its_template(row: Example, reason: str) -> None:
    """Numbers as numbers or texts; the null that Parquet puts for what is not there says nothing."""
    assert reasons(PlaceholderFilter(), [row]) == [reason]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (_row(None, "long-short", num_words=50, clarity="clear"), ""),
        (_row(None, "long-short", num_words="at least 50"), ""),
        (_row(None, "long-short", num_words=77), LOST),
        (_row(None, "bitext", low_score=3), LOST),
        (_row(None, "bitext", subject="bees"), ""),
        (_row(None, "another", clarity="banana"), ""),
        (example(task="sts", metadata={"unit": "page"}), LOST),
        (example(task="sts", metadata={"unit": "phrase", "licence": "CC0"}), ""),
    ],
)
def test_a_row_without_a_template_is_compared_with_those_of_its_type(row: Example, reason: str) -> None:
    """What none of them speaks of is passed over, for metadata may hold anything."""
    assert reasons(PlaceholderFilter(), [row]) == [reason]


def test_the_lists_beside_the_rows_hold(tmp_path: Path) -> None:
    """What a config drew from is known, in the folder of the rows and the one above; what it left out is not."""
    write_declared(tmp_path, {"short-long-1": {"clarity": ["clear", "murky"]}})
    near, below, elsewhere = tmp_path / "a.jsonl", tmp_path / "sts" / "a.jsonl", tmp_path.parent / "a.jsonl"
    rows = [
        replace(_row(clarity=c), file=file)
        for file in (near, below, elsewhere)
        for c in ("murky", "ambiguous")
    ]
    assert reasons(PlaceholderFilter(), rows) == ["", LOST, "", LOST, LOST, ""]


def test_the_lists_go_along_with_the_rows(tmp_path: Path) -> None:
    """A filtered folder may be filtered again."""
    write_declared(tmp_path / "rows", {"short-long-1": {"clarity": ["murky"]}})
    write(tmp_path / "rows" / "short-long" / "rows.jsonl", dict(_row(clarity="murky").record))
    for source, target in (("rows", "once"), ("once", "twice")):
        report = filter_rows(Target.of(tmp_path / source, tmp_path / target), [PlaceholderFilter()])
        assert report.kept == 1
    assert json.loads((tmp_path / "twice" / DECLARED).read_text()) == {"short-long-1": {"clarity": ["murky"]}}


@pytest.mark.parametrize(
    "text", ["", "[]", '{"short-long-1": 3}', '{"short-long-1": {"clarity": 3}}', "[" * 99_999]
)
def test_a_list_that_was_edited_into_nonsense_is_named(tmp_path: Path, text: str) -> None:
    """One sentence says what to do."""
    (tmp_path / DECLARED).write_text(text)
    with pytest.raises(InputError, match=r"placeholders\.json is no list of placeholders"):
        PlaceholderFilter().check([replace(_row(clarity="clear"), file=tmp_path / "a.jsonl")])


def test_the_seed_set_holds_what_the_templates_declare() -> None:
    """Written by hand, and found where one value is edited."""
    rows = list(read_examples(row_files(SEED_SET)))
    assert [o.detail for o in PlaceholderFilter().check(rows) if isinstance(o, Dropped)] == []
    edited = {**rows[0].record, "metadata": {**rows[0].metadata, "difficulty": "impossible"}}
    (outcome,) = PlaceholderFilter().check([replace(rows[0], record=edited)])
    assert isinstance(outcome, Dropped)
    assert (
        outcome.detail == f"difficulty is 'impossible', which a template of {rows[0].type} cannot have drawn"
    )
