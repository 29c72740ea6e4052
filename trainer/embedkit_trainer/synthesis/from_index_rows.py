"""From queries and verdicts to training rows with hard negatives."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from embedkit_trainer.data.files import replaced
from embedkit_trainer.mining.negatives import MiningConfig, MiningReport, Scorer, Search, mine_negatives
from embedkit_trainer.synthesis.from_index_judge import row_of
from embedkit_trainer.synthesis.languages import LANGUAGES
from embedkit_trainer.synthesis.store import read_records
from embedkit_trainer.synthesis.types import TaskType

Records = Mapping[int, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class RowsReport:
    """Count the rows: those written, those without a negative, and of a judge's those with another positive.

    `unanswered` are queries that no passage answers, `unjudged` those without a usable verdict; neither becomes a row.
    `mining` says what became of the candidates where nobody judged.
    """

    rows: int = 0
    without: int = 0
    relabelled: int = 0
    unanswered: int = 0
    unjudged: int = 0
    mining: Mapping[str, Any] = field(default_factory=dict)


def read_queries(store: Path, total: int) -> dict[int, dict[str, Any]]:
    """Return the stored queries below `total` by their numbers, in that order."""
    found: dict[int, dict[str, Any]] = {}
    for record in read_records(store):
        found.setdefault(record["request"], record)
    return {number: found[number] for number in sorted(found) if number < total}


def write_mined(  # noqa: PLR0917
    path: Path,
    records: Records,
    kind: TaskType,
    search: Search,
    positive_scores: Scorer,
    config: MiningConfig,
) -> RowsReport:
    """Write a row for each query, with negatives that the rules of mining let through."""
    report = MiningReport()
    rows = [row_of(record, kind) for record in records.values()]
    mined = mine_negatives(rows, search, positive_scores, config, report=report)
    made = (
        _base(record, kind) | {"negatives": list(row.negatives), "negative_ids": list(row.negative_ids)}
        for record, row in zip(records.values(), mined, strict=True)
    )
    count = _write(path, made)
    return RowsReport(rows=count, without=report.without, mining=asdict(report))


def write_judged(path: Path, records: Records, kind: TaskType, verdicts: Path, negatives: int) -> RowsReport:
    """Write a row for each query that a passage answers: the best one is its positive.

    Negatives are the nearest passages that do not answer, none of them of a document that does.
    """
    judged = {v["request"]: v for v in read_records(verdicts)}
    rows: list[dict[str, Any]] = []
    relabelled = unanswered = 0
    for number, record in records.items():
        verdict = judged.get(number)
        if verdict is None:
            continue
        answers = verdict["answer"]["answers"]
        passages = verdict["answer"]["passages"]
        if not answers:
            unanswered += 1
            continue
        best = passages[answers[0]]
        answering = {passages[a]["id"] for a in answers}
        others = [p for i, p in enumerate(passages) if i not in answers and p["id"] not in answering][
            :negatives
        ]
        row = _base(record, kind)
        row["positive"], row["positive_id"] = best["text"], best["id"]
        row["negatives"], row["negative_ids"] = [p["text"] for p in others], [p["id"] for p in others]
        row["metadata"]["judge"] = {key: verdict[key] for key in ("model", "template", "tokens", "cost")}
        row["metadata"]["judge"]["relabelled"] = bool(answers[0])
        if answers[0]:
            relabelled += 1
            row.pop("lang_d", None)  # the other passage's is not known
        rows.append(row)
    if rows:
        _write(path, rows)
    else:
        path.unlink(missing_ok=True)
    return RowsReport(
        rows=len(rows),
        without=sum(not row["negatives"] for row in rows),
        relabelled=relabelled,
        unanswered=unanswered,
        unjudged=len(records) - len(rows) - unanswered,
    )


def _base(record: Mapping[str, Any], kind: TaskType) -> dict[str, Any]:
    row = kind.row(record)
    for key in ("lang_q", "lang_d"):
        if row[key] not in LANGUAGES:  # und, or what is no language of people, as of code
            del row[key]
    row["positive_id"] = record["document_id"]
    row["metadata"]["chunk_id"] = record["chunk_id"]
    return row


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    count = 0
    with replaced(path) as beside, beside.open("wb") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            count += 1
    return count
