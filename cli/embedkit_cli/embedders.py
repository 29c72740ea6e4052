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
    from embedkit.registry import DEFAULT, list_embedders

    kinds = [
        {
            "name": name,
            "default": name == DEFAULT,
            "object": entry.value,
            "package": entry.dist.name if entry.dist is not None else None,
            "version": entry.dist.version if entry.dist is not None else None,
        }
        for name, entry in list_embedders().items()
    ]
    presets = _presets()
    if as_json:
        print_json({"kinds": kinds, "presets": presets})
        return
    _print(kinds, presets)


def _presets() -> list[dict[str, Any]]:
    from dataclasses import asdict, is_dataclass
    from importlib.util import find_spec

    if find_spec("embedkit.embedders.presets") is None:
        return []
    from embedkit.embedders.presets import list_presets

    found = list_presets()
    return [asdict(p) if is_dataclass(p) and not isinstance(p, type) else {"name": str(p)} for p in found]


def _print(kinds: list[dict[str, Any]], presets: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("kind", "object", "package"):
        table.add_column(heading)
    for kind in kinds:
        label = Text(kind["name"], style="bold")
        if kind["default"]:
            label.append(" (default)", style="dim")
        package = f"{kind['package']} {kind['version']}" if kind["package"] else ""
        table.add_row(label, Text(kind["object"], style="dim"), Text(package, style="dim"))
    screen = console()
    screen.print(table)
    if presets:
        screen.print()
        screen.print(Text("models with known settings:", style="bold"))
        for preset in presets:
            screen.print(
                Text("  " + str(preset.get("name") or preset.get("model") or next(iter(preset.values()))))
            )
