"""`embedkit info` and `embedkit explain`: what an index is, and what happens to a query."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from embedkit_cli.options import check_question, common, tasks_file
from embedkit_cli.output import console, note, print_json, printable, untrained_note

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_SHOWN = 20


@click.command()
@click.argument("directory", metavar="DIR")
@click.option("--verify", is_flag=True, help="Read every file and compare its checksum.")
@common
def info(directory: str, verify: bool, as_json: bool) -> None:
    """Show what the index DIR holds: documents, chunks, languages, engine, and the embedder that built it."""
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
    total = sum(f.bytes for f in index.manifest.files.values())
    embedder = index.manifest.embedder
    shown = {
        "directory": directory,
        **{key: record[key] for key in ("documents", "chunks", "tokens", "truncated_tokens", "coverage")},
        "skipped": ", ".join(f"{reason} {n:,}" for reason, n in index.manifest.skipped.items()),
        "languages": ", ".join(f"{code} {n:,}" for code, n in index.manifest.languages.items()),
        "embedder": f"{index.manifest.spec or embedder['name']}, {_dimensions(index.manifest.dim, embedder)}",
        "options": ", ".join(f"{key}={value}" for key, value in index.manifest.options.items()),
        "fingerprint": index.manifest.fingerprint,
        "engine": ", ".join(f"{key} {value}" for key, value in index.manifest.engine.items()),
        "chunker": ", ".join(f"{key} {value}" for key, value in index.manifest.chunker.items()),
        "size": f"{total / 1e6:,.1f} MB" + (", every file verified" if verify else ""),
        "created": f"{index.manifest.created} by embedkit {index.manifest.version}",
        "tasks": ", ".join(index.tasks),
    }
    console().print(_rows(shown))


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
    from embedkit.tasks import Task
    from embedkit_cli.tasks import TaskBook
    from embedkit_indexes import Index

    check_question(query, names, instruction, k)
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
        used = record["embedder"]
        told = f"{used['name']}, {_dimensions(index.manifest.dim, used)}, at most {used['max_length']} tokens"
        screen.print(_rows({**record, "embedder": told}))


def _dimensions(dim: int, embedder: Mapping[str, Any]) -> str:
    # An index of an earlier version says nothing of a cut.
    full, dims = embedder.get("full_dim"), embedder.get("matryoshka_dims")
    length = f"{dim} of {full}" if full else str(dim)
    return f"{length} dimensions" + (f" (trained to be cut to {', '.join(map(str, dims))})" if dims else "")


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
