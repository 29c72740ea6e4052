"""What a build or a change tells people: what it did, what the index holds now, what was left out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import click

from embedkit_cli.output import counted, printable

if TYPE_CHECKING:
    from embedkit_indexes import BuildReport, Skipped

_SHOWN = 5
_LANGUAGES = 12


def print_build(directory: str, report: BuildReport) -> None:
    """Print what a new index holds."""
    click.echo(
        f"{printable(directory)}: {counted(report.documents, 'document')}, {counted(report.chunks, 'chunk')}, "
        f"{report.tokens:,} tokens in {report.seconds:.1f} s ({report.engine})"
    )
    if report.reused:
        click.echo(
            f"reused {report.reused:,} of {counted(report.chunks, 'chunk')}: their vectors were there already"
        )
    _print_content(report)


def print_change(directory: str, report: BuildReport, generation: int) -> None:
    """Print what a change did to an index; `generation` is that before it."""
    if report.generation == generation:
        click.echo(f"{printable(directory)}: nothing changed: {counted(report.documents, 'document')}")
        print_kept(report)
        print_skipped(report)
        return
    counts = {"added": report.added, "updated": report.updated, "removed": report.removed}
    told = [f"{count:,} {name}" for name, count in counts.items()] + [f"{report.unchanged:,} unchanged"]
    click.echo(
        f"{printable(directory)}: {', '.join(told)} documents; {counted(report.embedded, 'chunk')} embedded, "
        f"{report.reused:,} reused in {report.seconds:.1f} s"
    )
    print_kept(report)
    print_state(report)
    _print_content(report)


def print_state(report: BuildReport) -> None:
    """Print what an index holds after a change."""
    holds = f"{counted(report.documents, 'document')}, {counted(report.chunks, 'chunk')}"
    click.echo(f"now: {holds} in {counted(report.segments, 'segment')} ({report.engine})")


def print_kept(report: BuildReport) -> None:
    """Print how many documents stayed because they may stand in what could not be read."""
    if report.kept:
        click.echo(
            f"kept: {counted(report.kept, 'document')} that may stand in a file or record that could not be read this time"
        )


def print_truncated(report: BuildReport) -> None:
    """Print how much of the text the embedder does not see, where it is any."""
    if report.truncated_tokens:
        click.echo(
            f"truncated: {report.truncated_tokens:,} tokens of {counted(report.truncated_chunks, 'chunk')} lie beyond the "
            "embedder's length"
        )


def print_skipped(report: BuildReport) -> None:
    """Print the first records that were left out on stderr."""
    if not report.skipped_count:
        return
    click.echo(f"skipped: {report.skipped_count:,}", err=True)
    for item in report.skipped[:_SHOWN]:
        click.echo(printable(f"  {_where(item)}: {item.reason}"), err=True)
    if report.skipped_count > _SHOWN:
        click.echo("  … (--json lists more, --strict stops at the first)", err=True)


def _print_content(report: BuildReport) -> None:
    if report.languages:
        most = sorted(report.languages.items(), key=lambda item: (-item[1], item[0]))
        rest = f" and {len(most) - _LANGUAGES} more" if len(most) > _LANGUAGES else ""
        click.echo(
            printable("languages: " + ", ".join(f"{code} {n:,}" for code, n in most[:_LANGUAGES]) + rest)
        )
    cut = (
        f"; {report.truncated_tokens:,} tokens of {counted(report.truncated_chunks, 'chunk')} lie beyond the embedder's length"
        if report.truncated_tokens
        else ", nothing truncated"
    )
    click.echo(f"coverage: {_percent(report.coverage)} of the text lies in a chunk{cut}")
    if report.blank_vectors:
        click.echo(
            f"blank: the embedder knows no token of {counted(report.blank_vectors, 'chunk')}; no query finds them"
        )
    print_skipped(report)


def _percent(share: float) -> str:
    # Rounded down: "100%" stands for all of it.
    return f"{math.floor(share * 1000) / 10:g}%"


def _where(item: Skipped) -> str:
    return item.source if item.line is None else f"{item.source}, line {item.line}"
