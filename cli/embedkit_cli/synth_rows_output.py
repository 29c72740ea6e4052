"""How `embedkit synth filter` and `embedkit synth stats` print."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from embedkit_cli.output import console, counted, note, printable

if TYPE_CHECKING:
    from collections import Counter

    from rich.table import Table

    from embedkit_trainer.synthesis.filters.pipeline import FilterReport
    from embedkit_trainer.synthesis.statistics import Statistics

_SHOWN = 8
_MUCH = 0.15


def print_report(report: FilterReport, output: str, beside: str) -> None:
    """Print what each filter dropped and changed."""
    from rich.text import Text

    screen = console()
    head = f"{output}: {report.kept:,} of {counted(report.rows, 'row')} kept, {report.seconds:.1f} s"
    screen.print(Text(head, style="bold"))
    table = _table("filter", "", "", right=("rows", ""))
    for count in report.filters:
        found = [("dropped", *item) for item in count.dropped.items()]
        found += [("changed", *item) for item in count.changed.items()]
        for i, (what, reason, n) in enumerate(found or [("", "nothing found", 0)]):
            share = f"{n / max(1, count.seen):.1%}" if n else ""
            table.add_row(count.name if i == 0 else "", what, reason, f"{n:,}" if n else "", share)
    screen.print(table)
    if any(count.dropped or count.changed for count in report.filters):
        screen.print(Text(f"with their reasons in {beside}", style="dim"))


def warn_of_judge(report: FilterReport, judge: str) -> None:
    """Tell when an embedder or a model finds more fault than rows are likely to have."""
    for count in report.filters:
        found = count.dropped.get("inconsistent", 0) + count.changed.get("relabelled", 0)
        if count.name == "consistency" and found > _MUCH * count.seen:
            note(
                f"{judge} takes a negative for the better answer in {found / count.seen:.0%} of the rows: look at some of "
                "them, for a stronger judge may think otherwise"
            )


def print_statistics(made: Statistics) -> None:
    """Print the table beside the paper, then what is counted, a line each."""
    from rich.text import Text

    from embedkit_trainer.synthesis.comparison import compare

    screen = console()
    table = _table("", right=("paper", "here"))
    for line in compare(made):
        table.add_row(Text(printable(line.name)), line.paper, Text(printable(line.here)))
    screen.print(table)
    for name, text in _lines(made):
        if text:
            screen.print(Text.assemble((f"{name}: ", "bold"), printable(text)))
    table = _table("words", right=("texts", "mean", "5%", "25%", "median", "75%", "95%", "longest"))
    for name, found in made.lengths.items():
        marks = (f"{cut:,.0f}" for cut in found.percentiles.values())
        table.add_row(name, f"{found.count:,}", f"{found.mean:,.1f}", *marks, f"{found.longest:,.0f}")
    screen.print(table)


def _lines(made: Statistics) -> Iterable[tuple[str, str]]:
    yield "types", _listed(made.types)
    yield "languages of queries", _listed(made.languages)
    yield "languages of documents", _listed(made.document_languages)
    yield "models", _listed(made.models)
    yield "templates", _listed(made.templates)
    for name, counts in made.placeholders.items():
        yield name, _listed(counts)
    for name, count in made.values.items():
        yield name, f"{count:,} different values"
    yield "hard negatives a row", ", ".join(f"{n}: {rows:,}" for n, rows in sorted(made.negatives.items()))
    near = made.near_duplicates
    told = (
        "not looked for" if near is None else f"{near:,} ({near / made.rows:.1%}) alike by {made.likeness:g}"
    )
    yield "duplicates", f"exact {made.duplicates:,} ({made.duplicates / made.rows:.1%}), near {told}"
    if made.priced:
        sent, answered = made.tokens
        yield "tokens", f"{sent:,} of prompts, {answered:,} of answers, cost {made.cost:,.2f}"
    if made.rejected:
        lost = sum(made.rejected_tokens)
        yield "rejected answers", f"{_listed(made.rejected)}; {lost:,} tokens, cost {made.rejected_cost:,.2f}"


def _listed(counts: Counter[str]) -> str:
    shown = ", ".join(f"{name} {n:,}" for name, n in counts.most_common(_SHOWN))
    return shown + (f" and {len(counts) - _SHOWN:,} more" if len(counts) > _SHOWN else "")


def _table(*left: str, right: Sequence[str]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right")
    return table
