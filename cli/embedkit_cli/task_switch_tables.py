"""The tables of `embedkit eval task-switch`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from embedkit_cli.output import console, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from embedkit.evaluation.task_switch.metrics import Estimate
    from embedkit.evaluation.task_switch.report import Report, Row

_SHORT = {
    "answer": "ans", "paraphrase": "para", "duplicate": "dup", "translation_1": "tr 1", "translation_2": "tr 2",
    "entailed": "ent", "contradicting": "cont", "topic": "top", "headline": "head*", "code": "code",
}  # fmt: skip


def print_report(report: Report, seconds: float) -> None:
    """Print what was measured, three tables and what they come to."""
    from rich.text import Text

    from embedkit.evaluation.task_switch import HELD_OUT_TASKS
    from embedkit.evaluation.task_switch.report import CONDITIONS

    screen = console()
    facts = report.facts
    screen.print(
        Text(
            printable(
                f"task-switch: {facts['embedder']}, {facts['seeds']} seeds, {facts['queries']:,} queries, one index of "
                f"{facts['texts']:,} texts, {seconds:.1f} s"
            )
        )
    )
    rows = [*report.tasks, report.trained, report.overall]
    means = {report.trained.name, report.overall.name}

    def heading(words: str) -> None:
        screen.print(Text(f"\n{words}", style="bold"))

    def fill(table: Table, row: Row, cells: Sequence[str]) -> None:
        name = row.name.replace("_", " ") + ("*" if row.name in HELD_OUT_TASKS else "")
        table.add_row(Text(name, style="bold" if row.name in means else ""), *cells)

    heading("nDCG@10 of the task's own text, by the instruction that the query carries")
    table = _table("", "queries", *(c.replace(" ", "\n") for c in CONDITIONS))
    for row in rows:
        fill(table, row, [f"{row.queries:,}", *(_number(row.ndcg[c]) for c in CONDITIONS)])
    screen.print(table)

    heading("What the right instruction adds to nDCG@10 [95% interval]")
    table = _table("", "over none", "over wrong ones")
    for row in rows:
        fill(table, row, [_interval(e, "+.3f") for e in (row.right_minus_none, row.right_minus_wrong)])
    screen.print(table)

    heading("Does it switch? Right one first of the seed's own; worst wording; p-MRR")
    table = _table(
        "", "switch\nseen", "switch\nheld-out", "chance", "Robust-\nness@10", "p-MRR\nseen", "p-MRR\nheld-out"
    )
    for row in rows:
        cells = [
            _number(row.switch_right, ".1%"), _number(row.switch_held_out, ".1%"), f"{row.chance:.1%}",
            _number(row.robustness), _number(row.p_mrr_right, "+.1f"), _number(row.p_mrr_held_out, "+.1f"),
        ]  # fmt: skip
        fill(table, row, cells)
    screen.print(table)

    heading("Which of a seed's own texts comes first, % (row: asked for; column: found)")
    _print_confusion(screen, report.confusion["right"])
    screen.print()
    for line in _summary(report):
        screen.print(Text(printable(line)))


def _print_confusion(screen: Console, counts: Mapping[str, Mapping[str, int]]) -> None:
    from rich.text import Text

    table = _table("", *(_SHORT[task] for task in counts))
    for asked, found in counts.items():
        total = sum(found.values())
        if not total:
            continue
        cells = [
            Text(f"{100 * found.get(task, 0) / total:.0f}", style="bold" if task == asked else "dim")
            for task in counts
        ]
        table.add_row(Text(_SHORT[asked]), *cells)
    screen.print(table)


def _summary(report: Report) -> list[str]:
    lines = [
        f"{row.name}: {what} {_interval(estimate, form)}"
        for row in (report.trained, report.overall)
        for what, estimate, form in (
            ("switch accuracy, seen", row.switch_right, ".1%"),
            ("switch accuracy, held-out", row.switch_held_out, ".1%"),
            ("p-MRR, seen", row.p_mrr_right, "+.1f"),
            ("Robustness@10", row.robustness, ".3f"),
        )
    ]
    state = "unchanged" if report.unchanged else "CHANGED"
    before, after = report.checksum_before[:16], report.checksum_after[:16]
    return [
        *lines,
        f"default task (the best one without an instruction): {report.default_task.replace('_', ' ')}",
        f"index {state}: sha256 {before} before the first query, {after} after the last",
        "* held out of training; left out of the means over trained tasks",
    ]


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True, vertical="bottom")
    return table


def _number(estimate: Estimate, form: str = ".3f") -> str:
    return "" if estimate.value is None else format(estimate.value, form)


def _interval(estimate: Estimate, form: str) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return ""
    return f"{estimate.value:{form}} [{estimate.low:{form}}, {estimate.high:{form}}]"
