"""`embedkit embedders`: what is installed, told from package metadata without importing any of it."""

from __future__ import annotations

from typing import Any

import click

from embedkit_cli.options import common
from embedkit_cli.output import console, print_json


@click.command()
@common
def embedders(as_json: bool) -> None:
    """List the installed kinds of embedders (plug-ins too), and the models whose settings are known."""
    from embedkit.embedders.presets import list_presets
    from embedkit.registry import DEFAULT, full_name, list_embedders

    default = full_name(DEFAULT)

    kinds = [
        {
            "name": name,
            "default": name == default.partition(":")[0],
            "object": entry.value,
            "package": entry.dist.name if entry.dist is not None else None,
            "version": entry.dist.version if entry.dist is not None else None,
        }
        for name, entry in list_embedders().items()
    ]
    presets = [
        {
            "name": preset.name,
            "description": preset.description,
            "pooling": preset.pooling,
            "instruction_trained": preset.instruction_trained,
        }
        for preset in list_presets().values()
    ]
    if as_json:
        print_json({"default": default, "kinds": kinds, "presets": presets})
        return
    _print(default, kinds, presets)


def _print(default: str, kinds: list[dict[str, Any]], presets: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    screen = console()
    screen.print(Text(f"default: {default}\n"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("kind", "object", "package"):
        table.add_column(heading, overflow="fold")
    for kind in kinds:
        package = f"{kind['package']} {kind['version']}" if kind["package"] else ""
        table.add_row(
            Text(kind["name"], style="bold"), Text(kind["object"], style="dim"), Text(package, style="dim")
        )
    screen.print(table)
    screen.print()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("known model family", "what it expects", "obeys instructions"):
        table.add_column(heading)
    for preset in presets:
        obeys = Text("yes" if preset["instruction_trained"] else "no", style="dim")
        table.add_row(Text(preset["name"], style="bold"), Text(preset["description"], style="dim"), obeys)
    screen.print(table)
