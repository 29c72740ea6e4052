"""`embedkit doctor`: is this installation in order, and if not, what mends it?"""

from __future__ import annotations

import click

from embedkit_cli.options import common
from embedkit_cli.output import print_json

_MARKS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "problem": ("PROBLEM", "red")}
_FOUND_PROBLEMS = 2


@click.command()
@common
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check Python, packages, faiss, GPUs, the processor, the bundled model and the cache.

    Exits with 2 where something is broken, and prints the repair.
    """
    from embedkit_cli.checks import run_checks

    checks = run_checks()
    problems = [c for c in checks if c.status == "problem"]
    if as_json:
        print_json({"ok": not problems, "checks": [c.to_dict() for c in checks]})
    else:
        for check in checks:
            mark, colour = _MARKS[check.status]
            click.echo(
                f"{click.style(f'{mark:<8}', fg=colour)}{click.style(f'{check.name:<10}', bold=True)}{check.detail}"
            )
            if check.repair:
                click.echo(f"{'':<18}{click.style('repair:', bold=True)} {check.repair}")
    if problems:
        ctx.exit(_FOUND_PROBLEMS)
