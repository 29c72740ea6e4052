"""`embedkit index`: read a corpus, embed it, store it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedkit_cli.options import (
    EmbedderChoice,
    chunk_options,
    chunk_settings,
    common,
    embedder_options,
    given,
    tasks_file,
)
from embedkit_cli.output import print_json, printable

if TYPE_CHECKING:
    from embedkit_indexes import BuildReport

_SHOWN = 5


@click.command()
@click.argument("sources", metavar="SOURCE…", nargs=-1, required=True)
@click.option("-o", "--output", "directory", metavar="DIR", required=True, help="Where the index goes.")
@embedder_options
@click.option("--format", "form", metavar="NAME", help="Format of the sources; else told by their names.")
@click.option("--text-field", metavar="NAME", help="Field or column that holds the text.")
@click.option("--title-field", metavar="NAME", help="Field or column that holds the title.")
@click.option("--id-field", metavar="NAME", help="Field or column that holds the id.")
@click.option("--lang-field", metavar="NAME", help="Field or column that holds the language.")
@click.option("--lang", metavar="CODE", help="Language of all documents; else detected.")
@chunk_options
@tasks_file
@click.option("--strict", is_flag=True, help="Stop at the first record that cannot be read; else skip it.")
@click.option("--force", is_flag=True, help="Replace an index that is there.")
@common
def index(
    *,
    sources: tuple[str, ...],
    directory: str,
    embedder: str | None,
    pairs: tuple[str, ...],
    device: str | None,
    dtype: str | None,
    token_budget: int | None,
    dim: int | None,
    form: str | None,
    text_field: str | None,
    title_field: str | None,
    id_field: str | None,
    lang_field: str | None,
    lang: str | None,
    max_tokens: int | None,
    overlap: float | None,
    no_split: bool,
    tasks_path: str | None,
    strict: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Read the SOURCEs (files, folders, - for stdin), embed them, and store them as an index in DIR.

    Your own tasks (--tasks) are stored with the index, so that a search finds them by name. A record that cannot
    be read is skipped and reported. An index that is there stays searchable until the new one is complete.
    """
    from embedkit_cli.progress import Meter, estimate_documents
    from embedkit_cli.tasks import TaskBook
    from embedkit_indexes import BuildProgress, ChunkConfig, Index, ReadOptions, ReadReport, read_corpus
    from embedkit_indexes.builder import check_target

    book = TaskBook(tasks_path)
    choice = EmbedderChoice.of(
        embedder, pairs, device=device, dtype=dtype, token_budget=token_budget, dim=dim
    )
    reading = ReadOptions(
        **given(
            format=form,
            text_field=text_field,
            title_field=title_field,
            id_field=id_field,
            lang_field=lang_field,
            lang=lang,
            strict=strict or None,
        )
    )
    chunking = ChunkConfig(**chunk_settings(max_tokens, overlap, no_split))
    read_report = ReadReport()
    documents = read_corpus(sources, reading, read_report)
    check_target(Path(directory), force)  # before a model of many GB is fetched and opened
    opened = choice.open()
    with Meter("documents") as meter:
        meter.expect(estimate_documents(sources) if meter.shown else None)

        def progress(state: BuildProgress) -> None:
            meter.update(state.phase, state.documents, state.tokens, "tokens")

        report = Index.build(
            directory,
            documents,
            opened,
            chunking=chunking,
            tasks=book.of_file,
            embedder_spec=choice.spec,
            embedder_options=choice.options,
            progress=progress,
            read_report=read_report,
            overwrite=force,
        )
    if as_json:
        print_json({"directory": directory, "embedder": choice.spec, **report.to_dict()})
    else:
        _print(directory, report)


def _print(directory: str, report: BuildReport) -> None:
    click.echo(
        f"{directory}: {report.documents:,} documents, {report.chunks:,} chunks, {report.tokens:,} tokens "
        f"in {report.seconds:.1f} s ({report.engine})"
    )
    if report.languages:
        most = sorted(report.languages.items(), key=lambda item: (-item[1], item[0]))
        rest = f" and {len(most) - 12} more" if len(most) > 12 else ""
        click.echo(printable("languages: " + ", ".join(f"{code} {n:,}" for code, n in most[:12]) + rest))
    cut = (
        f"; {report.truncated_tokens:,} tokens of {report.truncated_chunks:,} chunks lie beyond the embedder's length"
        if report.truncated_tokens
        else ", nothing truncated"
    )
    click.echo(f"coverage: {_percent(report.coverage)} of the text lies in a chunk{cut}")
    if report.blank_vectors:
        click.echo(
            f"blank: the embedder knows no token of {report.blank_vectors:,} chunks; no query finds them"
        )
    if report.skipped_count:
        click.echo(f"skipped: {report.skipped_count:,}", err=True)
        for item in report.skipped[:_SHOWN]:
            click.echo(printable(f"  {_where(item)}: {item.reason}"), err=True)
        if report.skipped_count > _SHOWN:
            click.echo("  … (--json lists more, --strict stops at the first)", err=True)


def _percent(share: float) -> str:
    # Rounded down: "100%" stands for all of it.
    return f"{math.floor(share * 1000) / 10:g}%"


def _where(item: Any) -> str:
    return item.source if item.line is None else f"{item.source}, line {item.line}"
