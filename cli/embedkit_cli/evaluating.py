"""`embedkit eval`: measure retrieval on a BEIR folder, or on an index with queries and judgements."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedkit_cli.options import (
    EmbedderChoice,
    chunk_options,
    chunk_settings,
    common,
    embedder_options,
    tasks_file,
)
from embedkit_cli.output import console, note, print_json, printable, untrained_note

if TYPE_CHECKING:
    from embedkit.evaluation import Measures
    from embedkit_cli.judging import PairScore, Report
    from embedkit_indexes import Index
    from embedkit_indexes.corpus.records import Document

_MOST_PAIRS = 30


@click.command("eval")
@click.argument("source", metavar="SOURCE")
@click.option(
    "--queries", "queries_path", metavar="FILE", help="Queries (_id, text, lang, task); else SOURCE's."
)
@click.option(
    "--qrels", "qrels_path", metavar="PATH", help="A judgements file, or a folder of TASK.tsv files."
)
@click.option(
    "--task",
    "task_name",
    metavar="NAME",
    help="Task of all queries; else the name of each file in a qrels folder.",
)
@click.option("--instruction", metavar="TEXT", help="Instruction of all queries, in your own words.")
@click.option("--query-lang", metavar="CODE", help="Ask queries of this language alone.")
@click.option("--doc-lang", metavar="CODE", help="Search documents of this language alone.")
@click.option(
    "--k",
    "k",
    type=click.IntRange(min=10),
    metavar="N",
    default=100,
    show_default=True,
    help="Depth of Recall.",
)
@click.option(
    "--sample", "sample_size", type=click.IntRange(min=1), metavar="N", help="Ask N of the queries."
)
@click.option("--seed", type=int, metavar="N", default=0, show_default=True, help="Which N are drawn.")
@click.option(
    "--pairs/--no-pairs", "by_pair", default=True, help="Measure language pairs too.", show_default=True
)
@embedder_options
@chunk_options
@tasks_file
@common
def evaluate(
    *,
    source: str,
    queries_path: str | None,
    qrels_path: str | None,
    task_name: str | None,
    instruction: str | None,
    query_lang: str | None,
    doc_lang: str | None,
    k: int,
    sample_size: int | None,
    seed: int,
    by_pair: bool,
    embedder: str | None,
    pairs: tuple[str, ...],
    device: str | None,
    dtype: str | None,
    token_budget: int | None,
    max_tokens: int | None,
    overlap: float | None,
    no_split: bool,
    tasks_path: str | None,
    as_json: bool,
) -> None:
    """Measure nDCG@10, Recall@100 and MRR@10 of documents, overall, by task and by language pair.

    SOURCE is a BEIR folder (corpus.jsonl, queries.jsonl, qrels), which is indexed in a temporary place, or an index
    with --queries and --qrels. A document counts at its best chunk's score; the one that is the query itself (same
    id, or the query's without its q-) is left out unless it is judged relevant. A pair's queries search that
    language's documents alone.
    """
    from embedkit.errors import InputError
    from embedkit.evaluation import find_file, read_queries, sample
    from embedkit_cli import judging
    from embedkit_cli.progress import Meter
    from embedkit_cli.tasks import TaskBook

    started = time.perf_counter()
    folder = Path(source)
    corpus = find_file(folder, "corpus.jsonl")
    if task_name is not None and instruction is not None:
        raise InputError("--task and --instruction are both given: choose one")
    if corpus is None and (queries_path is None or qrels_path is None):
        raise InputError(
            f"{source} is no BEIR folder (no corpus.jsonl): for an index, give --queries and --qrels"
        )
    choice = EmbedderChoice.of(embedder, pairs, device=device, dtype=dtype, token_budget=token_budget)
    chunks = chunk_settings(max_tokens, overlap, no_split)
    if corpus is None and (embedder or choice.options or chunks):
        raise InputError("an index has its embedder and chunks: leave --embedder and its options out")
    with ExitStack() as stack:
        index = None if corpus is not None else _opened(source)
        book = TaskBook(tasks_path, index.tasks if index is not None else None)
        task = book.find(task_name) if task_name is not None else None
        cases = judging.load_cases(Path(qrels_path) if qrels_path else folder, book, task, instruction, k)
        queries_file = queries_path or find_file(folder, "queries.jsonl") or folder / "queries.jsonl"
        queries = judging.judged_queries(read_queries(queries_file), cases, query_lang)
        queries = sample(queries, sample_size, seed)
        lang = (
            judging.canonical(doc_lang) if corpus is None and doc_lang else None
        )  # a folder's other documents are not indexed at all
        if index is None:
            index = _temporary(stack, corpus or folder, choice, chunks, doc_lang)
        with Meter("queries") as meter:
            done = 0

            def advance(count: int) -> None:
                nonlocal done
                done += count
                meter.update("searching", done)

            judge = judging.Judge(index, book, lang=lang, by_pair=by_pair, advance=advance)
            report = judge.run(cases, queries)
        name = index.embedder.info.name
        remark = untrained_note(name) if any(not t.obeys for t in report.tasks) else None
        if remark:
            note(remark)
        record = {
            "source": source,
            "embedder": name,
            "documents": index.manifest.documents,
            **report.to_dict(),
            "note": remark,
            "seconds": round(time.perf_counter() - started, 3),
        }
        if as_json:
            print_json(record)
        else:
            _print(record, report)


def _opened(source: str) -> Index:
    from embedkit_cli.judging import Remembering
    from embedkit_indexes import Index

    index = Index.open(source)
    return Index.open(source, Remembering(index.embedder))


def _temporary(
    stack: ExitStack, corpus: Path, choice: EmbedderChoice, chunks: dict[str, Any], doc_lang: str | None
) -> Index:
    import tempfile

    from embedkit.errors import InputError
    from embedkit_cli.judging import Remembering, canonical
    from embedkit_cli.progress import Meter, estimate_documents
    from embedkit_indexes import BuildProgress, ChunkConfig, Index, ReadOptions, ReadReport, read_corpus

    opened = choice.open()
    directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="embedkit-eval-"))
    read_report = ReadReport()

    def documents() -> Iterator[Document]:
        found = False
        for document in read_corpus([str(corpus)], ReadOptions(), read_report):
            if doc_lang is None or canonical(document.lang) == canonical(doc_lang):
                found = True
                yield document
        if not found and doc_lang is not None:
            raise InputError(f"{corpus} holds no document of the language {doc_lang!r}: check --doc-lang")

    with Meter("documents") as meter:
        meter.expect(estimate_documents([str(corpus)]) if meter.shown else None)

        def progress(state: BuildProgress) -> None:
            meter.update(state.phase, state.documents, state.tokens, "tokens")

        Index.build(
            directory, documents(), opened, chunking=ChunkConfig(**chunks), embedder_spec=choice.spec,
            embedder_options=choice.options, progress=progress, read_report=read_report,
        )  # fmt: skip
    return Index.open(directory, Remembering(opened))


def _print(record: dict[str, Any], report: Report) -> None:
    from rich.table import Table
    from rich.text import Text

    screen = console()
    screen.print(
        Text(
            f"{record['source']}: {record['documents']:,} documents, {record['embedder']}, {record['seconds']:.1f} s"
        )
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    columns = list(report.overall.to_dict())
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    table.add_row(Text("overall", style="bold"), *_cells(report.overall))
    if len(report.tasks) > 1 or report.tasks[0].task:
        for score in report.tasks:
            table.add_row(Text(f"task {score.task or 'none'}"), *_cells(score.measures))
    for name, measures in _pair_rows(report.pairs):
        table.add_row(Text(printable(name), style="dim"), *_cells(measures))
    screen.print(table)


def _pair_rows(pairs: Sequence[PairScore]) -> list[tuple[str, Measures]]:
    """Return a row a pair, or where that would flood the screen one for equal and one for different languages."""
    from embedkit.evaluation import pooled

    if len(pairs) <= _MOST_PAIRS:
        return [(f"{p.query_lang} → {p.document_lang}", p.measures) for p in pairs]
    same = [p.measures for p in pairs if p.query_lang == p.document_lang]
    other = [p.measures for p in pairs if p.query_lang != p.document_lang]
    named = ((f"{len(same)} pairs, same language", same), (f"{len(other)} pairs, across languages", other))
    return [(f"{name} (--json lists them)", pooled(rows)) for name, rows in named if rows]


def _cells(measures: Measures) -> list[str]:
    queries, *values = measures.to_dict().values()
    return [f"{queries:,}", *(f"{value:.3f}" for value in values)]
