"""`embedkit synth from-index`: an index becomes training data for its own domain. Trainer and index meet here."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedkit_cli.options import common
from embedkit_cli.output import counted, note, print_json
from embedkit_cli.synth_running import begin, end, run_requests

if TYPE_CHECKING:
    from embedkit_cli.candidates import Asking
    from embedkit_indexes import Index
    from embedkit_trainer.data.rows import Row
    from embedkit_trainer.mining.negatives import Candidate
    from embedkit_trainer.synthesis.chunks import Chunk, Draw
    from embedkit_trainer.synthesis.from_index import FromIndexConfig, FromIndexReport
    from embedkit_trainer.synthesis.settings import SynthesisConfig


@click.command("from-index")
@click.argument("directory", metavar="INDEX")
@click.argument("source", metavar="CONFIG")
@click.option(
    "--task",
    metavar="TEXT",
    required=True,
    help="What is searched for, in one sentence: the rows' instruction.",
)
@click.option("-o", "--output", metavar="OUT", required=True, help="Folder of answers and rows (OUT/rows).")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Override a value of CONFIG.")
@click.option("--persona", metavar="TEXT", multiple=True, help="Who asks; several are drawn from.")
@click.option("--difficulty", metavar="TEXT", multiple=True, help="How hard a query is; likewise.")
@click.option(
    "--language", metavar="CODE", multiple=True, help="The queries' language; else the chunk's own."
)
@click.option("--where", metavar="FILTER", help="Chunks that satisfy it alone: 'year >= 2020'.")
@click.option(
    "--each",
    type=click.IntRange(min=1),
    metavar="N",
    default=1,
    show_default=True,
    help="Queries for a chunk at most.",
)
@click.option(
    "--negatives",
    type=click.IntRange(min=1),
    metavar="N",
    default=1,
    show_default=True,
    help="How many a row gets at most.",
)
@click.option(
    "--ranks",
    metavar="FIRST:LAST",
    default="1:100",
    show_default=True,
    help="Ranks of the search to mine from.",
)
@click.option(
    "--max-ratio",
    type=float,
    metavar="X",
    default=0.95,
    show_default=True,
    help="Score at most X times the positive; 0: no limit. Not with --judge.",
)
@click.option("--judge", is_flag=True, help="Let the model say which passages answer a query.")
@click.option(
    "--candidates",
    type=click.IntRange(1, 50),
    metavar="N",
    default=8,
    show_default=True,
    help="Passages that it judges beside the query's own.",
)
@click.option("--dry-run", is_flag=True, help="Show prompts and the forecast; ask nothing.")
@click.option(
    "--prompts",
    type=click.IntRange(min=0),
    metavar="N",
    default=3,
    show_default=True,
    help="Prompts that --dry-run shows.",
)
@click.option(
    "--no-budget", is_flag=True, help="Go without prices; ceilings on requests and tokens still hold."
)
@click.option("--retry-failed", is_flag=True, help="Send those again whose answer could not be used.")
@common
def from_index(
    *,
    directory: str,
    source: str,
    task: str,
    output: str,
    overrides: tuple[str, ...],
    where: str | None,
    each: int,
    negatives: int,
    ranks: str,
    max_ratio: float,
    judge: bool,
    candidates: int,
    dry_run: bool,
    prompts: int,
    no_budget: bool,
    retry_failed: bool,
    as_json: bool,
    **drawn: tuple[str, ...],
) -> None:
    """Write training rows for the chunks of INDEX: a query for each, and hard negatives from the index.

    \b
    embedkit synth from-index docs.index synthesis.toml --task "Given a question, find the page that answers it" -o docs-rows
    embedkit synth from-index docs.index synthesis.toml --task "…" -o docs-rows --judge --set examples=1000

    CONFIG is that of the other commands; `examples` says how many queries are written. Persona, difficulty, language
    and length are drawn anew for each. Negatives are mined as `embedkit mine` does; with --judge the model reads the
    nearest passages, and the one that answers best becomes the positive.
    """  # fmt: skip
    from embedkit.errors import InputError
    from embedkit_cli.mining import _window
    from embedkit_indexes import Index
    from embedkit_trainer.mining.negatives import MiningConfig
    from embedkit_trainer.synthesis.from_index import FromIndexConfig, own_config, write_from_index
    from embedkit_trainer.synthesis.settings_file import load_synthesis

    first, last = _window(ranks)
    config = _drawn_from(own_config(load_synthesis(source, overrides), output), **drawn)
    index = Index.open(directory)
    if Path(directory).resolve() in (there := Path(output).expanduser().resolve(), *there.parents):
        raise InputError(f"{output} lies in the index that is read: choose another output")
    wanted = FromIndexConfig(
        task=task.strip(),
        origin=" where ".join((Path(directory).resolve().name, *([where] if where else []))),
        each=each,
        judge=judge,
        candidates=candidates,
        mining=MiningConfig(
            negatives=negatives, min_rank=first, max_rank=last, max_ratio=max_ratio or None, seed=config.seed
        ),
    )
    draw = _draw(index, config.seed, where)
    if dry_run:
        _show(config, wanted, draw, prompts=prompts, as_json=as_json)
        return
    planned: Any = None  # prices alone are checked
    begin(config, planned, 0, dry_run=False, prompts=0, no_budget=no_budget, as_json=as_json)
    asking = _asking(index)

    def search(rows: Sequence[Row], k: int) -> list[list[Candidate]]:
        return asking.search(index, rows, k)

    report = run_requests(
        lambda **told: write_from_index(
            config, wanted, draw, search, asking.scores, retry_failed=retry_failed, **told
        ),
        "asking",
    )
    _print(report, config, as_json)


def _drawn_from(config: SynthesisConfig, **given: tuple[str, ...]) -> SynthesisConfig:
    """Return the config with the personas, difficulties and languages of the command line."""
    from embedkit.errors import InputError
    from embedkit_trainer.config.schema import suggest
    from embedkit_trainer.synthesis.languages import LANGUAGES

    languages = given.pop("language")
    for code in languages:
        if code not in LANGUAGES:
            raise InputError(f"--language {code} is unknown: {suggest(code, LANGUAGES)}")
    named = {name: list(values) for name, values in given.items() if values}
    shared = {**config.placeholders.get("*", {}), **named}
    return replace(
        config,
        languages=dict.fromkeys(languages, 1.0) or config.languages,
        placeholders={**config.placeholders, "*": shared},
    )


def _draw(index: Index, seed: int, where: str | None) -> Draw:
    from embedkit_indexes.sampling import sample_chunks
    from embedkit_trainer.synthesis.chunks import Chunk

    def draw(number: int) -> Iterator[Chunk]:
        for c in sample_chunks(index, f"{seed}/{number}", where):
            yield Chunk(c.chunk_id, c.document_id, c.text, c.title, c.lang or "und")

    return draw


def _asking(index: Index) -> Asking:
    from embedkit_cli.candidates import Asking

    return Asking(index.embedder, None)


def _show(
    config: SynthesisConfig, wanted: FromIndexConfig, draw: Draw, *, prompts: int, as_json: bool
) -> None:
    """Print what a dry run shows; the chunks are drawn into a temporary file."""
    from embedkit_trainer.synthesis.chunks import Sample
    from embedkit_trainer.synthesis.from_index import ChunkPlan

    with tempfile.TemporaryDirectory() as folder:
        sample = Sample(Path(folder) / "chunks.jsonl")
        try:
            sample.extend(draw, config.examples, wanted.each)
            plan = ChunkPlan(config, wanted, sample)
            begin(
                config,
                plan,
                len(sample),
                dry_run=True,
                prompts=prompts,
                no_budget=True,
                as_json=as_json,
            )
        finally:
            sample.close()
    if wanted.judge and not as_json:
        note("the forecast is of the queries; what judging them takes is told once they are written")


def _print(report: FromIndexReport, config: SynthesisConfig, as_json: bool) -> None:
    from click.exceptions import Exit

    rows = report.rows
    if as_json:
        print_json(asdict(report))
    else:
        parts = [f"{rows.without:,} of them without a negative"]
        if report.judging is not None:
            parts.append(f"{rows.relabelled:,} with a better positive than the query's own passage")
            parts.append(f"{rows.unanswered:,} left out since no passage answers")
        click.echo(f"{counted(rows.rows, 'row')} in {report.folder}, {', '.join(parts)}")
    left = False
    for run in filter(None, (report.queries, report.judging)):
        try:
            end(run, config, as_json)
        except Exit:
            left = True
    if left:
        raise Exit(2)
