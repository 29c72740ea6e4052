"""`embedkit mine`: hard negatives for training rows, out of an index or of the rows' own documents."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedkit_cli.options import EmbedderChoice, common, embedder_options, given, tasks_file
from embedkit_cli.output import console, note, print_json, untrained_note

if TYPE_CHECKING:
    from embedkit_indexes import Index
    from embedkit_trainer.data.rows import Row
    from embedkit_trainer.mining.negatives import Judge, MiningReport


@click.command()
@click.argument("rows_path", metavar="ROWS")
@click.option("-o", "--output", metavar="FILE", required=True, help="Where the rows go: .jsonl or .parquet.")
@click.option(
    "--index", "directory", metavar="DIR", help="Mine in this index; else among ROWS' own documents."
)
@click.option(
    "--format",
    "form",
    metavar="NAME",
    default="rows",
    show_default=True,
    help="Format of ROWS, such as squad.",
)
@embedder_options
@click.option("--task", "task_name", metavar="NAME", help="Task of the queries whose row has no instruction.")
@click.option("--instruction", metavar="TEXT", help="The same in your own words.")
@click.option(
    "--negatives", type=int, metavar="N", default=1, show_default=True, help="How many a row gets at most."
)
@click.option(
    "--ranks",
    metavar="FIRST:LAST",
    default="1:100",
    show_default=True,
    help="Ranks of the search to mine from.",
)
@click.option("--margin", type=float, metavar="X", help="Score at least X less than the positive.")
@click.option(
    "--max-ratio",
    type=float,
    metavar="X",
    default=0.95,
    show_default=True,
    help="Score at most X times the positive; 0: no limit.",
)
@click.option("--min-score", type=float, metavar="X", help="Score at least X.")
@click.option("--max-score", type=float, metavar="X", help="Score at most X.")
@click.option(
    "--sample",
    "sampling",
    type=click.Choice(["random", "top"]),
    default="random",
    show_default=True,
    help="Draw, or take the nearest.",
)
@click.option("--seed", type=int, metavar="N", default=42, show_default=True, help="Which are drawn.")
@click.option(
    "--judge",
    "judge_path",
    metavar="DIR",
    help="Cross-encoder (sequence classification) that refuses relevant ones.",
)
@click.option("--replace", is_flag=True, help="Drop the negatives that rows have; else add to them.")
@click.option("--scores", is_flag=True, help="Keep the scores as teacher_scores.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="The first N rows alone.")
@tasks_file
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@common
def mine(
    *,
    rows_path: str,
    output: str,
    directory: str | None,
    form: str,
    embedder: str | None,
    pairs: tuple[str, ...],
    device: str | None,
    dtype: str | None,
    token_budget: int | None,
    dim: int | None,
    task_name: str | None,
    instruction: str | None,
    judge_path: str | None,
    limit: int | None,
    tasks_path: str | None,
    force: bool,
    as_json: bool,
    ranks: str,
    max_ratio: float,
    **rules: Any,
) -> None:
    """Write ROWS with hard negatives: texts near a query that do not answer it.

    \b
    embedkit mine train.jsonl -o mined.jsonl --ranks 10:100
    embedkit mine train.jsonl -o mined.jsonl --index docs.index --negatives 4

    Never taken are a row's positive and the other positives of its query, by id or by text. What scores above 95% of
    the positive is most often an answer that nobody labelled, and is dropped too. Ids of an index are its documents'.
    """  # fmt: skip
    from embedkit.errors import InputError
    from embedkit_cli.candidates import Asking, Mining
    from embedkit_cli.tasks import TaskBook
    from embedkit_trainer.data.rows import write_rows
    from embedkit_trainer.mining.negatives import MiningConfig, MiningReport

    started = time.perf_counter()
    first, last = _window(ranks)
    config = MiningConfig(min_rank=first, max_rank=last, max_ratio=max_ratio or None, **given(**rules))
    choice = EmbedderChoice.of(
        embedder, pairs, device=device, dtype=dtype, token_budget=token_budget, dim=dim
    )
    if task_name is not None and instruction is not None:
        raise InputError("--task and --instruction are both given: choose one")
    if directory is not None and (embedder or choice.options):
        raise InputError("an index has its embedder: leave --embedder and its options out")
    _check_output(Path(output), force)
    rows = _read(form, rows_path, limit)
    index = _opened(directory)
    book = TaskBook(tasks_path, index.tasks if index is not None else None)
    task = book.find(task_name) if task_name is not None else None
    judge = _judge(judge_path, device)
    found_by = index.embedder if index is not None else choice.open()
    asking = Asking(found_by, task.instruction if task is not None else instruction)
    if asking.explicit is not None and not found_by.info.instruction_trained:
        note(untrained_note(found_by.info.name))
    mining = Mining(rows, asking, config, judge, MiningReport())
    mined = mining.from_index(index) if index is not None else mining.from_rows()
    report = mining.report
    write_rows(output, mined)
    record = {
        "output": output,
        "embedder": found_by.info.name,
        "index": directory,
        **report.to_dict(),
        "seconds": round(time.perf_counter() - started, 3),
    }
    if as_json:
        print_json(record)
    else:
        _print(record, report)


def _window(ranks: str) -> tuple[int, int]:
    from embedkit.errors import InputError

    first, colon, last = ranks.partition(":")
    if not colon or not first.strip().isdigit() or not last.strip().isdigit():
        raise InputError(f"--ranks {ranks!r} is no window of ranks: write FIRST:LAST, such as 10:100")
    return int(first), int(last)


def _check_output(output: Path, force: bool) -> None:
    """Refuse a place that is taken or badly named before a model is opened."""
    from embedkit.errors import InputError
    from embedkit_trainer.data.files import KINDS, kind_of

    if not kind_of(output):
        raise InputError(f"cannot write training rows to {output}: name it {KINDS}")
    if output.is_dir():
        raise InputError(f"{output} is a folder: name a file")
    if output.exists() and not force:
        raise InputError(f"{output} is there already: choose another name, or replace it with --force")


def _read(form: str, path: str, limit: int | None) -> list[Row]:
    from itertools import islice

    from embedkit.errors import InputError
    from embedkit_trainer.data.formats.registry import load_rows

    rows = list(islice(load_rows(form, path), limit))
    if not rows:
        raise InputError(f"{path} holds no rows: check it, and --format {form}")
    return rows


def _opened(directory: str | None) -> Index | None:
    if directory is None:
        return None
    from embedkit_indexes import Index

    return Index.open(directory)


def _judge(path: str | None, device: str | None) -> Judge | None:
    if path is None:
        return None
    from embedkit_trainer.mining.cross_encoder import CrossEncoderJudge

    return CrossEncoderJudge(path, device=device)


def _print(record: dict[str, Any], report: MiningReport) -> None:
    from rich.table import Table
    from rich.text import Text

    screen = console()
    screen.print(
        Text(f"{record['output']}: {report.rows:,} rows, {record['embedder']}, {record['seconds']:.1f} s")
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("candidates")
    table.add_column("", justify="right")
    table.add_column("", justify="right")
    for name, count in (("taken", report.kept), *report.dropped.items()):
        if count or name == "taken":
            share = count / max(1, report.candidates)
            table.add_row(Text(name, style="bold" if name == "taken" else ""), f"{count:,}", f"{share:.1%}")
    screen.print(table)
    if report.short or report.without:
        screen.print(
            Text(f"{report.short:,} rows got fewer than asked for, {report.without:,} got none", style="dim")
        )
