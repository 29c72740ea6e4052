"""`embedkit tasks`, and the one place where a task's name is looked up: your file, then the index, then built-in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from embedkit_cli.options import common, tasks_file
from embedkit_cli.output import console, print_json, printable

if TYPE_CHECKING:
    from embedkit.tasks import Task

FILE_VARIABLE = "EMBEDKIT_TASKS"


class TaskBook:
    """Look tasks up by name: the file given (else the one that EMBEDKIT_TASKS names), the index, the built-in."""

    def __init__(self, path: str | None = None, of_index: Mapping[str, Task] | None = None) -> None:
        from embedkit.tasks import BUILT_IN_TASKS, load_tasks

        file = path or os.environ.get(FILE_VARIABLE)
        self.of_file = load_tasks(file) if file else {}
        self.extra = {**(of_index or {}), **self.of_file}
        self.all = {**BUILT_IN_TASKS, **self.extra}
        self._of_index = of_index or {}

    def find(self, name: str) -> Task:
        """Return a task; raises UnknownNameError with the nearest names."""
        from embedkit.tasks import get_task

        return get_task(name, self.extra)

    def origin(self, name: str) -> str:
        """Say where a task comes from: file, index or built-in."""
        if name in self.of_file:
            return "file"
        return "index" if name in self._of_index else "built-in"


@click.command()
@click.argument("directory", metavar="[DIR]", required=False)
@tasks_file
@common
def tasks(directory: str | None, tasks_path: str | None, as_json: bool) -> None:
    """List the tasks a query can be asked under: your own, those stored in the index DIR, and the built-in ones."""
    of_index: Mapping[str, Task] = {}
    if directory is not None:
        from embedkit_indexes import Index

        of_index = Index.open(directory).tasks
    book = TaskBook(tasks_path, of_index)
    if as_json:
        print_json(
            [
                {
                    "name": t.name,
                    "instruction": t.instruction,
                    "description": t.description,
                    "origin": book.origin(name),
                }
                for name, t in sorted(book.all.items(), key=lambda item: _order(book, item[0]))
            ]
        )
        return
    _print(book)


def _order(book: TaskBook, name: str) -> int:
    return ("file", "index", "built-in").index(book.origin(name))


def _print(book: TaskBook) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("task", "instruction", "for"):
        table.add_column(heading, no_wrap=heading == "task")
    for name, task in sorted(book.all.items(), key=lambda item: _order(book, item[0])):
        origin = book.origin(name)
        label = Text(printable(name), style="bold")  # a file's and an index's tasks are anybody's text
        if origin != "built-in":
            label.append(f" ({origin})", style="dim")
        table.add_row(
            label, Text(printable(task.instruction)), Text(printable(task.description), style="dim")
        )
    console().print(table)
