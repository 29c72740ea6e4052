"""`embedkit info` and `embedkit explain`: what an index is, and what happens to a query."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from embedkit_cli.options import common, tasks_file
from embedkit_cli.output import console, note, print_json, printable, untrained_note

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_SHOWN = 20


@click.command()
@click.argument("directory", metavar="DIR")
@common
def info(directory: str, as_json: bool) -> None:
    """Show what the index DIR holds: documents, chunks, engine, and the embedder that built it."""
    from embedkit.tasks import dump_tasks
    from embedkit_indexes import Index

    index = Index.open(directory)
    record: dict[str, Any] = {"directory": directory, **index.manifest.to_dict()}
    record["tasks"] = dump_tasks(index.tasks.values())
    if as_json:
        print_json(record)
    else:
        console().print(_rows(record))


@click.command()
@click.argument("directory", metavar="DIR")
@click.argument("query")
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
@tasks_file
@common
def explain(
    *,
    directory: str,
    query: str,
    names: tuple[str, ...],
    instruction: str | None,
    k: int,
    tasks_path: str | None,
    as_json: bool,
) -> None:
    """Show the exact string that is encoded for a query, its tokens, and how the index DIR is searched for it."""
    from embedkit.errors import InputError
    from embedkit.tasks import Task
    from embedkit_cli.tasks import TaskBook
    from embedkit_indexes import Index

    if not query.strip():
        raise InputError("the query is empty: give it some text")
    if k < 1:
        raise InputError(f"-k {k} is too small: give 1 or more")
    if names and instruction is not None:
        raise InputError("--task and --instruction are both given: choose one")
    index = Index.open(directory)
    book = TaskBook(tasks_path, index.tasks)
    tasks: list[Task | None] = [book.find(name) for name in dict.fromkeys(names)] or [None]
    records = [index.explain(query, task=task, instruction=instruction, k=k) for task in tasks]
    if any(not r["obeys"] for r in records):
        note(untrained_note(index.embedder.info.name))
    if as_json:
        print_json(records if len(records) > 1 else records[0])
        return
    screen = console()
    for i, record in enumerate(records):
        if i:
            screen.print()
        screen.print(_rows(record))


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
    if isinstance(value, Mapping) and value:
        return _rows(value)
    if value is None or value in ("", {}, [], ()):
        return Text("none", style="dim")
    return Text(_plain(value))


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
