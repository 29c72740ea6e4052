"""Search results for people: score, title, language and the first words of each hit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from embedkit_cli.output import console, printable, snippet

if TYPE_CHECKING:
    from rich.console import RenderableType

    from embedkit_indexes.results import SearchHit, SearchResult

_NARROWEST_COLUMN = 44


def print_results(results: Sequence[SearchResult]) -> None:
    """Print one result, or several side by side where the terminal is wide enough, else one below another."""
    from rich.table import Table

    screen = console()
    if len(results) == 1:
        screen.print(_column(results[0], heading=results[0].instruction is not None))
    elif screen.width // len(results) >= _NARROWEST_COLUMN:
        table = Table.grid(padding=(0, 3), expand=True)
        for _ in results:
            table.add_column(ratio=1)
        table.add_row(*(_column(r, heading=True) for r in results))
        screen.print(table)
    else:
        for i, result in enumerate(results):
            if i:
                screen.print()
            screen.print(_column(result, heading=True))


def _column(result: SearchResult, heading: bool) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    if heading:
        name = result.task or ("instruction" if result.instruction is not None else "no task")
        line = Text(printable(name), style="bold cyan")
        if result.instruction is not None:
            line.append(f"  {printable(result.instruction)}", style="not bold dim")
        parts.append(line)
    parts.extend(_hit(hit) for hit in result.hits)
    if not result.hits:
        parts.append(Text("no document found", style="dim"))
    return Group(*parts)


def _hit(hit: SearchHit) -> RenderableType:
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    from embedkit_indexes.results import own_text

    title = snippet(hit.title or hit.document_id)
    line = Text(f"{hit.rank:>2}  ", style="dim")
    if hit.rerank_score is not None:
        line.append(f"{hit.rerank_score:.3f}  ", style="green")
        line.append(f"was #{hit.first_rank} ({hit.score:.3f})  ", style="dim green")
    else:
        line.append(f"{hit.score:.3f}  ", style="green")
    for name, value in (("cosine", hit.cosine), ("bm25", hit.bm25)):
        if value is not None and value != hit.score:
            line.append(f"{name} {value:.3f}  ", style="dim green")
    line.append(title, style="bold")
    if hit.lang:
        line.append(f"  [{printable(hit.lang)}]", style="magenta")
    if hit.title:
        line.append(f"  {snippet(hit.document_id)}", style="dim")
    if hit.index:
        line.append(f"  {snippet(hit.index)}", style="dim cyan")
    body = own_text(hit)
    body = body.removeprefix(hit.title).lstrip() if hit.title else body
    return Group(line, Padding(Text(snippet(body or hit.text)), (0, 0, 0, 4)))
