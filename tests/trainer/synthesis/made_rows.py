"""Examples made by hand for the filters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embedkit_trainer.data.rows import parse_row
from embedkit_trainer.synthesis.filters.example import Changed, Dropped, Example, Filter


def example(query: str = "how do bees find home", positive: str = "By the sun.", **keys: Any) -> Example:
    """Return an example of these keys, as if read from rows.jsonl."""
    record = {"query": query, "positive": positive, **keys}
    return Example(parse_row(record, line=1), record, Path("rows.jsonl"))


def reasons(judge: Filter, examples: Sequence[Example]) -> list[str]:
    """Return the filter's word on each example: its reason, or an empty string where the example passes."""
    return [o.reason if isinstance(o, Dropped | Changed) else "" for o in judge.check(examples)]


def write(path: Path, *records: dict[str, Any]) -> Path:
    """Write records as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    """Return the records of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
