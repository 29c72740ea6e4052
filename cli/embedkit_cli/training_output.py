"""How `embedkit train` prints: the recipes, the paper-fidelity table, and what a dry run found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from embedkit_cli.output import console, printable

if TYPE_CHECKING:
    from rich.table import Table

    from embedkit_trainer.config.fidelity import Fidelity, FidelityRow
    from embedkit_trainer.config.file import ConfigFile
    from embedkit_trainer.data.dry_run import EncodedText, Lengths, SourceSurvey, StageSurvey, Survey

_MARKS = {"same": "", "differs": "≠ paper", "ours": "ours", "open": "open"}
_STYLES = {"same": "", "differs": "yellow", "ours": "cyan", "open": "dim"}
_LEGEND = (
    "= : as the config · ≠ paper: the config (a figure: the run) is not as in the paper · ≠ config: the run is not as "
    "the config · ours: the paper is silent or unread · open: known once the data is read"
)
_IDS_SHOWN = 48


def recipe_records(recipes: Mapping[str, ConfigFile]) -> list[dict[str, Any]]:
    """Return the recipes as plain records."""
    return [
        {
            "name": name,
            "paper": file.paper.get("title", ""),
            "citation": file.paper.get("citation", ""),
            "result": file.paper.get("result", ""),
            "stages": [stage.get("name") for stage in file.tables.get("stages", ())],
            "ablations": {n: a.get("note", "") for n, a in file.ablations.items()},
        }
        for name, file in recipes.items()
    ]


def print_recipes(records: Sequence[Mapping[str, Any]]) -> None:
    """Print a recipe a line, its ablations below it."""
    for record in records:
        click.echo(f"{record['name']:<30}{record['citation']}: {record['result']}")
        for name, about in record["ablations"].items():
            click.echo(f"  --ablation {name:<24}{about}")


def print_fidelity(fidelity: Fidelity) -> None:
    """Print the table of paper, config and run, stage by stage, and the remarks below it."""
    from rich.text import Text

    screen = console()
    screen.print(Text(f"paper: {fidelity.title}, {fidelity.citation}. {fidelity.result}", style="bold"))
    table = _table("setting", "paper", "config", "this run", "")
    for column in (table.columns[0], table.columns[-1]):
        column.no_wrap = True
    for group, rows in _groups(fidelity.rows).items():
        if group:
            table.add_row(Text(group, style="bold"))
        for name, row in rows:
            mark, style = _mark(row)
            run = row.effective if row.effective != row.config else "="
            table.add_row(f"  {name}" if group else name, row.paper, row.config, run, Text(mark, style=style))
    screen.print(table)
    screen.print(Text(_LEGEND, style="dim"))
    for row in fidelity.rows:
        if row.note:
            screen.print(Text(f"{row.setting}: {row.note}", style="dim"))


def print_survey(survey: Survey) -> None:
    """Print what a run would do, stage by stage, with rendered examples."""
    from rich.text import Text

    screen = console()
    if survey.parameters is not None:
        screen.print(f"parameters: {survey.parameters.trained:,} of {survey.parameters.total:,} are trained")
    for stage in survey.stages:
        screen.print(Text(f"stage {stage.name}", style="bold"))
        lines = _stage_lines(stage, survey.processes)
        for line in [*lines, *(line for source in stage.sources for line in _source_lines(source))]:
            screen.print(Text(f"  {line}"))
        for remark in stage.remarks:
            screen.print(Text(f"  note: {remark}", style="yellow"))
        for source in stage.sources:
            for example in source.examples:
                screen.print(Text(f"  example: {source.name}, line {example.line}", style="bold"))
                for text in example.texts:
                    for line in _example_lines(text):
                        screen.print(Text(f"    {printable(line)}"))


def _groups(rows: Sequence[FidelityRow]) -> dict[str, list[tuple[str, FidelityRow]]]:
    """Return the rows under "stage NAME", or under nothing, with what is left of their key paths."""
    groups: dict[str, list[tuple[str, FidelityRow]]] = {"": []}
    for row in rows:
        group, name = "", row.setting
        if name.startswith("stages."):
            _, stage, name = name.split(".", 2)
            group = f"stage {stage}"
        groups.setdefault(group, []).append((name, row))
    return groups


def _stage_lines(stage: StageSurvey, processes: int) -> list[str]:
    batch = f"batch: {stage.batch_size:,} queries"
    if processes > 1:
        batch += f" ({processes} processes x {stage.per_process:g})"
    return [
        batch,
        f"negatives per query: up to {stage.negatives_per_query:,}, before any is masked",
        f"one update: {stage.queries_per_update:,} queries ({stage.accumulation} "
        f"{'batch' if stage.accumulation == 1 else 'batches, which share no negatives'})",
        f"steps: {stage.updates:,} ({stage.warmup:,} of warm-up); an epoch has {stage.steps_per_epoch:,} batches "
        f"of {stage.examples:,} rows",
    ]


def _source_lines(source: SourceSurvey) -> list[str]:
    return [
        f"source {source.name}: {source.rows:,} rows, {source.taken:,} an epoch; {source.negatives:.1f} negatives a row; "
        f"{source.instructed:,} with an instruction; {source.tokens:,} tokens",
        f"  query tokens {_lengths(source.queries)}",
        f"  document tokens {_lengths(source.documents)}",
    ]


def _lengths(lengths: Lengths) -> str:
    return f"{lengths.median} median, {lengths.p95} at 95%, {lengths.longest} longest; {lengths.cut:.1%} fill the limit"


def _example_lines(text: EncodedText) -> list[str]:
    special = "" if text.ends_with_special else ", which is NO special token"
    return [
        f"{text.side}: {text.text!r}",
        f"  {len(text.ids)} tokens, the last is {text.tokens[-1]}{special}: {' '.join(_shortened(text.tokens))}",
        f"  ids: {' '.join(_shortened([str(i) for i in text.ids]))}",
    ]


def _shortened(items: Sequence[str]) -> list[str]:
    if len(items) <= _IDS_SHOWN:
        return list(items)
    half = _IDS_SHOWN // 2
    return [*items[:half], "…", *items[-half:]]


def _mark(row: FidelityRow) -> tuple[str, str]:
    marks = [_MARKS[row.verdict], "≠ config" if row.changed else ""]
    return ", ".join(m for m in marks if m), "yellow" if row.changed else _STYLES[row.verdict]


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
