"""`embedkit info` and `embedkit explain`: what an index is, and what happens to a query."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from embedkit_cli.anatomy import Columns, dimensions
from embedkit_cli.options import check_question, common, tasks_file
from embedkit_cli.output import console, note, print_json, printable, untrained_note
from embedkit_cli.search_options import How, effort_options, mode_options, split_query, where_option

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_SHOWN = 20


@click.command()
@click.argument("directory", metavar="DIR")
@click.option("--verify", is_flag=True, help="Read every file and compare its checksum.")
@common
def info(directory: str, verify: bool, as_json: bool) -> None:
    """Show what the index DIR holds and was made of, the embedder that built it, and how it is searched.

    An engine that is not exact shows what it measured of itself: the recall@10 of each setting against exact search,
    and the time of one query on one thread.
    """
    from embedkit_indexes import Index

    index = Index.open(directory)
    if verify:
        index.verify()
    record = {"directory": directory, **index.manifest.to_dict()}
    # The probes are vectors against which the embedder is checked: of no use to a reader.
    record["probes"] = len(index.manifest.probes)
    if verify:
        record["verified"] = True
    if as_json:
        print_json(record)
        return
    from embedkit_cli.anatomy import summary

    console().print(_rows(summary(directory, index, verified=verify)))


@click.command()
@click.argument("arguments", metavar="DIR… QUERY", nargs=-1, required=True)
@click.option(
    "--task", "names", metavar="NAME", multiple=True, help="Task of the query; several: one after another."
)
@click.option("--instruction", metavar="TEXT", help="What the query should find, in your own words.")
@click.option(
    "-k",
    "--k",
    "k",
    type=int,
    metavar="N",
    default=10,
    show_default=True,
    help="How many hits the plan is for.",
)
@where_option
@mode_options
@effort_options
@tasks_file
@common
def explain(
    *,
    arguments: tuple[str, ...],
    names: tuple[str, ...],
    instruction: str | None,
    k: int,
    tasks_path: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Show the exact string that is encoded for a query, its tokens, and how the index DIR is searched for it.

    Several indexes are searched as one; the plan is that of the largest part.
    """
    from embedkit.tasks import Task
    from embedkit_cli.tasks import TaskBook
    from embedkit_indexes import open_indexes

    directories, query = split_query(arguments)
    check_question(query, names, instruction, k)
    how = How.of(options)
    index = open_indexes(directories)
    book = TaskBook(tasks_path, index.tasks)
    tasks: list[Task | None] = [book.find(name) for name in dict.fromkeys(names)] or [None]
    asked: dict[str, Any] = {
        "instruction": instruction,
        "k": k,
        "where": how.where,
        "effort": how.effort,
        "mode": how.mode,
    }
    records = [index.explain(query, task=task, **asked) for task in tasks]
    if any(not r["obeys"] for r in records):
        note(untrained_note(index.embedder.info.name))
    if as_json:
        print_json(records if len(records) > 1 else records[0])
        return
    screen = console()
    for i, record in enumerate(records):
        if i:
            screen.print()
        used = record["embedder"]
        told = f"{used['name']}, {dimensions(index.manifest.dim, used)}, at most {used['max_length']} tokens"
        screen.print(_rows({**record, "embedder": told}))


def _rows(record: Mapping[str, Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in record.items():
        table.add_row(Text(name.replace("_", " "), style="bold"), _value(name, value))
    return table


def _value(name: str, value: Any) -> Table | Text:
    from rich.text import Text

    if name == "encoded":
        return Text(repr(value), style="green")
    if name == "tokens" and isinstance(value, (list, tuple)):
        return Text(" ".join(printable(str(token)) for token in value))
    if isinstance(value, Columns):
        return _columns(value)
    if isinstance(value, Mapping) and value:
        return _rows(value)
    if value is None or value in ("", {}, [], ()):
        return Text("none", style="dim")
    return Text(_plain(value))


def _columns(value: Columns) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in value.names:
        wide = name == "engine"
        table.add_column(
            Text(name, style="dim"), justify="left" if wide else "right", no_wrap=not wide, overflow="fold"
        )
    for row in value.rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        more = [f"… and {len(value) - _SHOWN} more"] if len(value) > _SHOWN else []
        return "\n".join([_line(item) for item in value[:_SHOWN]] + more)
    return printable(str(value))


def _line(item: Any) -> str:
    if isinstance(item, Mapping):
        return " · ".join(printable(str(v)) for v in item.values() if v not in (None, ""))
    return printable(str(item))
