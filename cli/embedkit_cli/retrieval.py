"""`embedkit eval --kind retrieval`: a BEIR folder, indexed in a temporary place, or an index with judgements."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit_cli.options import EmbedderChoice
from embedkit_cli.output import console, note, print_json, printable, untrained_note
from embedkit_cli.search_options import How

if TYPE_CHECKING:
    from embedkit.evaluation import Measures
    from embedkit_cli.judging import PairScore, Report
    from embedkit_indexes import Index
    from embedkit_indexes.corpus.records import Document

_MOST_PAIRS = 30


@dataclass(frozen=True, slots=True)
class RetrievalOptions:
    """What the command line says of a retrieval evaluation."""

    queries_path: str | None = None
    qrels_path: str | None = None
    task_name: str | None = None
    instruction: str | None = None
    query_lang: str | None = None
    doc_lang: str | None = None
    k: int = 100
    sample_size: int | None = None
    seed: int = 0
    by_pair: bool = True
    tasks_path: str | None = None
    as_json: bool = False
    chunks: dict[str, Any] = field(default_factory=dict)
    how: How = field(default_factory=How)


def evaluate_retrieval(source: str, choice: EmbedderChoice, named: bool, wanted: RetrievalOptions) -> None:
    """Measure and print; `named` says that the command line names an embedder. Raises InputError."""
    from embedkit.errors import InputError
    from embedkit.evaluation import find_file, read_queries, sample
    from embedkit_cli import judging
    from embedkit_cli.batches import Asking
    from embedkit_cli.progress import Meter
    from embedkit_cli.tasks import TaskBook

    started = time.perf_counter()
    folder = Path(source)
    corpus = find_file(folder, "corpus.jsonl")
    if corpus is None and (wanted.queries_path is None or wanted.qrels_path is None):
        kinds = "; for a file of pairs or labels, say its --kind" if folder.is_file() else ""
        raise InputError(
            f"{source} is no BEIR folder (no corpus.jsonl): for an index, give --queries and --qrels{kinds}"
        )
    if corpus is None and (named or choice.options or wanted.chunks):
        raise InputError("an index has its embedder and chunks: leave --embedder and its options out")
    with ExitStack() as stack:
        index = None if corpus is not None else _opened(source)
        book = TaskBook(wanted.tasks_path, index.tasks if index is not None else None)
        task = book.find(wanted.task_name) if wanted.task_name is not None else None
        judged = Path(wanted.qrels_path) if wanted.qrels_path else folder
        cases = judging.load_cases(judged, book, Asking(task, wanted.instruction, wanted.k, how=wanted.how))
        queries_file = wanted.queries_path or find_file(folder, "queries.jsonl") or folder / "queries.jsonl"
        queries = judging.judged_queries(read_queries(queries_file), cases, wanted.query_lang)
        queries = sample(queries, wanted.sample_size, wanted.seed)
        lang = (
            judging.canonical(wanted.doc_lang) if corpus is None and wanted.doc_lang else None
        )  # a folder's other documents are not indexed at all
        if index is None:
            index = _temporary(stack, corpus or folder, choice, wanted.chunks, wanted.doc_lang)
        with Meter("queries") as meter:
            done = 0

            def advance(count: int) -> None:
                nonlocal done
                done += count
                meter.update("searching", done)

            judge = judging.Judge(index, book, lang=lang, by_pair=wanted.by_pair, advance=advance)
            report = judge.run(cases, queries)
        name = index.embedder.info.name
        remark = untrained_note(name) if any(not t.obeys for t in report.tasks) else None
        if remark:
            note(remark)
        record = {
            "source": source,
            "embedder": name,
            "mode": wanted.how.mode,
            "reranker": wanted.how.rerank.info.name if wanted.how.rerank is not None else None,
            "documents": index.manifest.documents,
            **report.to_dict(),
            "note": remark,
            "seconds": round(time.perf_counter() - started, 3),
        }
        if wanted.as_json:
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
