"""`embedkit index` and `embedkit add`: read a corpus and store it, or bring an index into step with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from embedkit_cli.options import (
    EmbedderChoice,
    chunk_options,
    chunk_settings,
    common,
    embedder_options,
    engine_options,
    engine_settings,
    given,
    reading_options,
    strict_option,
    tasks_file,
    vectors_option,
)
from embedkit_cli.output import print_json
from embedkit_cli.reporting import print_build, print_change

if TYPE_CHECKING:
    from embedkit_cli.origins import Origin
    from embedkit_indexes import BuildProgress, BuildReport

T = TypeVar("T")
_output = click.option(
    "-o", "--output", "directory", metavar="DIR", required=True, help="Where the index is, or goes."
)
_tuning_option = click.option(
    "--tune-queries",
    metavar="FILE",
    help="Real queries to tune the engine on: JSON lines or one a line; else perturbed chunks.",
)


@click.command()
@click.argument("sources", metavar="[SOURCE…]", nargs=-1)
@_output
@embedder_options
@reading_options
@chunk_options
@engine_options
@_tuning_option
@vectors_option
@tasks_file
@strict_option
@click.option("--force", is_flag=True, help="Build an index that is there anew, from these SOURCEs alone.")
@common
def index(*, sources: tuple[str, ...], directory: str, force: bool, as_json: bool, **told: Any) -> None:
    """Read the SOURCEs (files, folders, - for stdin), embed them, and store them as an index in DIR.

    Where DIR holds an index of these SOURCEs, it is brought into step with them: only what is new or changed is
    embedded, and what is gone is deleted; without SOURCE those it was made of are read again. Its embedder, chunks and
    engine stay as they are. Documents of a file that cannot be read this time are kept.

    Your own tasks (--tasks) are stored with the index, so that a search finds them by name. A record that cannot
    be read is skipped and reported. The index stays searchable, as it was, until the change is complete; what a killed
    run has embedded is not embedded again.
    """
    from embedkit_indexes.manifest import NAME

    if (Path(directory) / NAME).exists() and not force:
        change(directory, sources, told, as_json, "sync")
    else:
        build(directory, sources, told, as_json, force)


@click.command()
@click.argument("sources", metavar="SOURCE…", nargs=-1, required=True)
@_output
@embedder_options
@reading_options
@tasks_file
@strict_option
@common
def add(*, sources: tuple[str, ...], directory: str, as_json: bool, **told: Any) -> None:
    """Read further SOURCEs and add their documents to the index DIR; nothing is removed.

    A document whose id is there takes the other's place, and is embedded where it changed. The index remembers the
    SOURCEs: `embedkit index` reads them together with those before.
    """
    change(directory, sources, told, as_json, "upsert")


def build(directory: str, sources: Sequence[str], told: dict[str, Any], as_json: bool, force: bool) -> None:
    """Make a new index and print what it holds. Raises InputError without sources."""
    from embedkit.errors import InputError
    from embedkit_cli.origins import Origin, read_all
    from embedkit_cli.tasks import TaskBook
    from embedkit_indexes import ChunkConfig, EngineConfig, Index, ReadReport
    from embedkit_indexes.changes import check_target

    if not sources:
        raise InputError("no SOURCE was given: name the files and folders to index")
    book = TaskBook(told["tasks_path"])
    choice = _choice(told)
    chunking = ChunkConfig(**chunk_settings(told["max_tokens"], told["overlap"], told["no_split"]))
    engine = EngineConfig(**engine_settings(told))
    queries = _tuning_queries(told["tune_queries"])
    read_report = ReadReport()
    origins = [Origin.here(sources, _reading(told))]
    documents = read_all(origins, read_report, told["strict"])
    check_target(Path(directory), force)  # before a model of many GB is fetched and opened
    opened = choice.open()

    def run(progress: Callable[[BuildProgress], None]) -> BuildReport:
        return Index.build(
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
            engine=engine,
            dtype=told["vectors"] or "float16",
            sources=[o.to_dict(Path(directory)) for o in origins],
            tuning_queries=queries,
        )

    report = metered(run, origins)
    if as_json:
        print_json({"directory": directory, "embedder": choice.spec, "change": "built", **report.to_dict()})
    else:
        print_build(directory, report)


def change(
    directory: str,
    sources: Sequence[str],
    told: dict[str, Any],
    as_json: bool,
    mode: Literal["sync", "upsert"],
) -> None:
    """Bring an index into step with its sources, or add further ones, and print what changed."""
    from embedkit_cli.agreement import check_settings, opened_for
    from embedkit_cli.origins import Origin, check_same, merged, read_all
    from embedkit_cli.tasks import TaskBook
    from embedkit_indexes import Index, ReadReport

    path = Path(directory)
    found = Index.open(directory)
    manifest = found.manifest
    recorded = Origin.of(manifest, path)
    book = TaskBook(told["tasks_path"])
    reading = _reading(told)
    check_settings(directory, manifest, told)
    if mode == "sync":
        if sources or not recorded:
            check_same(directory, recorded, sources)
        origins = stored = _reread(directory, recorded, sources, reading)
    else:
        new = Origin.here(sources, reading, recorded[0].base if recorded else None)
        # A source that is known already is read as it was, and with what is said now.
        known = merged(recorded, new)
        origins = [o for o in known if o.places == new.places][-1:] or [new]
        # What a program put in is known to no source: to record others would allow a sync that removes it.
        stored = known if recorded else []
    read_report = ReadReport()
    documents = read_all(origins, read_report, told["strict"])
    embedder = opened_for(found, told["embedder"], _choice(told))
    changed = Index.open(directory, embedder) if embedder is not None else found
    # Those of the environment are for new indexes: they shall not take the place of an index's own unasked.
    kept: dict[str, Any] = {"tasks": book.of_file} if told["tasks_path"] else {}
    dicts = tuple(o.to_dict(path) for o in stored)

    def run(progress: Callable[[BuildProgress], None]) -> BuildReport:
        method = changed.sync if mode == "sync" else changed.upsert
        return method(documents, progress=progress, read_report=read_report, sources=dicts, **kept)

    report = metered(run, origins)
    if as_json:
        name = (
            "none"
            if report.generation == manifest.generation
            else "synchronised"
            if mode == "sync"
            else "added"
        )
        spec = changed.manifest.spec or changed.manifest.embedder["name"]
        print_json({"directory": directory, "embedder": spec, "change": name, **report.to_dict()})
    else:
        print_change(directory, report, manifest.generation)


def metered(
    run: Callable[[Callable[[BuildProgress], None]], T],
    origins: Sequence[Origin] = (),
    chunks: int | None = None,
) -> T:
    """Run what takes its time with an index, its progress shown on a terminal; `chunks` is how many there will be."""
    from embedkit_cli.progress import Meter, estimate_documents

    with Meter("documents" if origins else "chunks") as meter:
        meter.expect(chunks)
        if origins and meter.shown:
            meter.expect(estimate_documents(p for o in origins for p in o.places))

        def progress(state: BuildProgress) -> None:
            done = state.documents if origins else state.chunks
            meter.update(state.phase, done, state.tokens, "tokens")

        return run(progress)


def _reread(
    directory: str, recorded: Sequence[Origin], sources: Sequence[str], reading: dict[str, Any]
) -> list[Origin]:
    from dataclasses import replace

    from embedkit.errors import InputError
    from embedkit_cli.origins import STDIN

    if not sources and any(STDIN in o.paths for o in recorded):
        raise InputError(
            f"{directory} was read from standard input: pipe it in again, and name `-` as the SOURCE"
        )
    # What is not said again holds on: without its id field, every document would be another one.
    return [replace(o, options={**o.options, **reading}) for o in recorded]


def _choice(told: dict[str, Any]) -> EmbedderChoice:
    names = ("device", "dtype", "token_budget", "dim")
    return EmbedderChoice.of(told["embedder"], told["pairs"], **{n: told[n] for n in names})


def _reading(told: dict[str, Any]) -> dict[str, Any]:
    names = ("text_field", "title_field", "id_field", "lang_field", "lang")
    return given(format=told["form"], **{n: told[n] for n in names})


def _tuning_queries(path: str | None) -> list[str] | None:
    if path is None:
        return None
    import sys

    from embedkit.evaluation import read_queries

    return [q.text for q in read_queries(path, sys.stdin if path == "-" else None)]
