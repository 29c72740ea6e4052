"""`embedkit delete`, `compact`, `verify`, `export`, `import` and `migrate`: what keeps an index well for years."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedkit_cli.options import (
    EmbedderChoice,
    common,
    embedder_options,
    engine_options,
    engine_settings,
    vectors_option,
)
from embedkit_cli.output import counted, note, print_json, printable, size_text
from embedkit_cli.reporting import print_build, print_state, print_truncated

if TYPE_CHECKING:
    from embedkit_indexes.manifest import Manifest


@click.command()
@click.argument("directory", metavar="DIR")
@click.argument("ids", metavar="[ID…]", nargs=-1)
@click.option("--source", metavar="NAME", help="Documents of this file, as `source` names it in a hit.")
@click.option(
    "--where",
    metavar="FILTER",
    help="Documents of which a chunk satisfies it: 'year < 2010 and lang = \"de\"'.",
)
@click.option("--dry-run", is_flag=True, help="Say how many documents would go, and delete none.")
@common
def delete(
    *,
    directory: str,
    ids: tuple[str, ...],
    source: str | None,
    where: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Delete documents from the index DIR by their IDs, by the file they came from, or by a filter.

    --source and --where together delete what satisfies both, beside the IDs. The room is given back by `compact`, or
    by later changes. `embedkit index` would add documents again whose source still holds them.
    """
    from embedkit_indexes import Index

    index = Index.open(directory)
    report = index.delete(ids, source=source, where=where, dry_run=dry_run)
    if ids and source is None and where is None and report.removed < len(set(ids)):
        missing = len(set(ids)) - report.removed
        note(f"{missing:,} of the {len(set(ids)):,} ids {'is' if missing == 1 else 'are'} not in {directory}")
    if as_json:
        print_json({"directory": directory, "dry_run": dry_run, **report.to_dict()})
        return
    done = "would be deleted" if dry_run else "deleted"
    click.echo(f"{printable(directory)}: {counted(report.removed, 'document')} {done}")
    if not dry_run:
        print_state(report)


@click.command()
@click.argument("directory", metavar="DIR")
@engine_options
@common
def compact(*, directory: str, as_json: bool, **told: Any) -> None:
    """Write the index DIR as one segment, without what is deleted; nothing is embedded, searches go on.

    --engine, --recall and --memory-budget change how the index is searched from now on; what is not given stays as it
    is.
    """
    from embedkit_cli.indexing import metered
    from embedkit_indexes import EngineConfig, Index

    index = Index.open(directory)
    before = index.manifest
    asked = engine_settings(told)
    engine = EngineConfig(**{**before.engine, **asked}) if asked else None
    report = metered(lambda progress: index.compact(progress, engine=engine))
    after = index.manifest
    if as_json:
        freed = {
            "segments_before": len(before.segments),
            "bytes_before": _bytes(before),
            "bytes": _bytes(after),
        }
        print_json({"directory": directory, **freed, **report.to_dict()})
        return
    if after.generation == before.generation:
        click.echo(f"{printable(directory)}: nothing to do: one segment without deleted chunks")
        return
    dead = sum(s.chunks - s.live for s in before.segments)
    click.echo(
        f"{printable(directory)}: {counted(len(before.segments), 'segment')} became {len(after.segments)}, "
        f"{counted(dead, 'deleted chunk')} gone, {size_text(_bytes(before))} became {size_text(_bytes(after))}, "
        f"in {report.seconds:.1f} s"
    )
    print_state(report)


@click.command()
@click.argument("directory", metavar="DIR")
@common
def verify(directory: str, as_json: bool) -> None:
    """Read every file of the index DIR and compare its checksum; exit with 2 at the first that was altered."""
    from embedkit_indexes import Index

    index = Index.open(directory)
    index.verify()
    files = sum(1 for _ in index.manifest.files())
    if as_json:
        size = _bytes(index.manifest)
        print_json({"directory": directory, "verified": True, "files": files, "bytes": size})
    else:
        click.echo(
            f"{printable(directory)}: every file verified ({counted(files, 'file')}, {size_text(_bytes(index.manifest))})"
        )


@click.command()
@click.argument("directory", metavar="DIR")
@click.argument("path", metavar="FILE")
@click.option("--force", is_flag=True, help="Replace a FILE that is there.")
@common
def export(directory: str, path: str, force: bool, as_json: bool) -> None:
    """Write all chunks of the index DIR with their vectors to the Parquet FILE, for `import` or any other tool."""
    from embedkit_cli.indexing import metered
    from embedkit_indexes import Index

    index = Index.open(directory)
    chunks = metered(
        lambda progress: index.export(path, overwrite=force, progress=progress), chunks=len(index)
    )
    size = Path(path).stat().st_size
    if as_json:
        print_json({"directory": directory, "file": path, "chunks": chunks, "bytes": size})
    else:
        click.echo(
            f"{printable(path)}: {counted(chunks, 'chunk')} of {printable(directory)}, {size_text(size)}"
        )


@click.command("import")
@click.argument("path", metavar="FILE")
@click.option("-o", "--output", "directory", metavar="DIR", required=True, help="Where the index goes.")
@click.option("--force", is_flag=True, help="Replace an index that is there.")
@common
def import_(path: str, directory: str, force: bool, as_json: bool) -> None:
    """Make the index DIR of a Parquet FILE that `export` wrote: the same chunks and vectors; nothing is embedded."""
    from embedkit_cli.indexing import metered
    from embedkit_indexes import Index

    report = metered(lambda progress: Index.restore(directory, path, overwrite=force, progress=progress))
    if as_json:
        print_json({"directory": directory, "file": path, **report.to_dict()})
    else:
        print_build(directory, report)


@click.command()
@click.argument("directory", metavar="DIR")
@embedder_options
@vectors_option
@common
def migrate(*, directory: str, vectors: str | None, as_json: bool, **told: Any) -> None:
    """Embed the chunks of the index DIR again, with the embedder that --embedder and its options name.

    The texts come from the index: the SOURCEs are not read. The index serves as it was until all is embedded, and what
    a killed migration has embedded is not embedded again. Chunks keep their bounds: `embedkit index --force` cuts
    them anew for an embedder of another length.
    """
    from embedkit.registry import reopen_embedder
    from embedkit_cli.indexing import metered
    from embedkit_indexes import Index

    names = ("device", "dtype", "token_budget", "dim")
    choice = EmbedderChoice.of(told["embedder"], told["pairs"], **{n: told[n] for n in names})
    index = Index.open(directory)
    before = index.manifest
    spec, options = choice.spec, choice.options
    if told["embedder"] is None:
        _check_target(directory, before, options, vectors)
        spec, options = before.spec, {**before.options, **options}
        embedder = reopen_embedder(spec, options)
    else:
        embedder = choice.open()
    same = (embedder.fingerprint, spec, vectors or before.dtype) == (
        before.fingerprint,
        before.spec,
        before.dtype,
    )
    if same:
        if as_json:
            print_json(
                {"directory": directory, "embedder": spec, "fingerprint": before.fingerprint, "embedded": 0}
            )
        else:
            click.echo(
                f"{printable(directory)}: nothing to do: it holds {spec} already ({before.fingerprint})"
            )
        return
    report = metered(
        lambda progress: index.migrate(
            embedder, embedder_spec=spec, embedder_options=options, dtype=vectors, progress=progress
        )
    )
    after = index.manifest
    if as_json:
        fingerprints = {"fingerprint_before": before.fingerprint, "fingerprint": after.fingerprint}
        print_json({"directory": directory, "embedder": spec, **fingerprints, **report.to_dict()})
        return
    click.echo(
        f"{printable(directory)}: from {_embedder(before)} to {_embedder(after)}, {counted(report.embedded, 'chunk')} embedded, "
        f"{report.reused:,} reused in {report.seconds:.1f} s"
    )
    print_truncated(report)
    print_state(report)


def _check_target(directory: str, manifest: Manifest, options: dict[str, Any], vectors: str | None) -> None:
    from embedkit.errors import InputError

    if not options and vectors is None:
        raise InputError("say what to migrate to: --embedder NAME, --dim N, or --vectors float16 or float32")
    if not manifest.spec:
        raise InputError(
            f"{directory} was built by a program's own embedder {manifest.embedder['name']!r}: name the new one with "
            "--embedder"
        )


def _embedder(manifest: Manifest) -> str:
    return printable(f"{manifest.embedder['name']} ({manifest.dim} dimensions, {manifest.dtype})")


def _bytes(manifest: Manifest) -> int:
    return sum(record.bytes for _, record in manifest.files())
