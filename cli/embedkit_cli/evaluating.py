"""`embedkit eval`: retrieval, similarity, classes, clusters, bitext, long texts, mteb's tasks, or the task switch."""

from __future__ import annotations

from typing import Any

import click

from embedkit_cli.options import (
    EmbedderChoice,
    Number,
    chunk_options,
    chunk_settings,
    common,
    embedder_options,
    group,
    tasks_file,
    was_given,
)
from embedkit_cli.search_options import mode_options, rerank_options, weights_option

KINDS = ("retrieval", "sts", "bitext", "classification", "clustering", "passkey", "mteb", "task-switch")
_INSTRUCTED = {"task_name", "instruction", "tasks_path", "protocol"}
# The options that not every kind takes.
_OWN_OPTIONS = {
    "retrieval": {
        "queries_path", "qrels_path", "query_lang", "doc_lang", "k", "sample_size", "seed", "by_pair", "max_tokens",
        "overlap", "no_split", "hybrid", "lexical", "weights", "rerank_name", "rerank_depth", "rerank_pairs", *_INSTRUCTED,
    },
    "sts": {"langs", "split", "sample_size", "seed", *_INSTRUCTED},
    "bitext": {"langs", "split", "sample_size", "seed", *_INSTRUCTED},
    "classification": {"langs", "per_label", "experiments", "seed", *_INSTRUCTED},
    "clustering": {"langs", "split", "sample_size", "experiments", "seed", *_INSTRUCTED},
    "passkey": {"lengths", "seed", *_INSTRUCTED},
    "mteb": {"langs", "split", "cache", *_INSTRUCTED},
    "task-switch": {"seeds", "seed", "distractors", "plot"},
}  # fmt: skip
_SPECIAL = set().union(*_OWN_OPTIONS.values())

_retrieval_options = group(
    click.option("--queries", "queries_path", metavar="FILE", help="Queries (_id, text, lang, task); else SOURCE's."),
    click.option("--qrels", "qrels_path", metavar="PATH", help="A judgements file, or a folder of TASK.tsv files."),
    click.option("--task", "task_name", metavar="NAME", help="Task of all queries; else the name of each file in a qrels folder."),
    click.option("--instruction", metavar="TEXT", help="Instruction of all queries, in your own words."),
    click.option("--query-lang", metavar="CODE", help="Ask queries of this language alone."),
    click.option("--doc-lang", metavar="CODE", help="Search documents of this language alone."),
    click.option("--k", "k", type=click.IntRange(min=10), metavar="N", default=100, show_default=True, help="Depth of Recall."),
    click.option("--sample", "sample_size", type=click.IntRange(min=1), metavar="N", help="Ask N of the queries, or take N of the records."),
    click.option("--seed", type=click.IntRange(0, 2**32 - 1), metavar="N", default=0, show_default=True, help="Which N are drawn; for other kinds, all that is drawn."),
    click.option("--pairs/--no-pairs", "by_pair", default=True, help="Measure language pairs too.", show_default=True),
)  # fmt: skip
_kind_options = group(
    click.option("--kind", type=click.Choice(KINDS), default="retrieval", show_default=True, help="What is measured, and so what SOURCE is."),
    click.option("--protocol", type=click.Choice(("one-sided", "paper")), default="one-sided", show_default=True,
                 help="one-sided: the query alone carries the instruction. paper: in all kinds but retrieval every text does, and classification leaves vectors un-normalised, as E5-mistral's authors evaluate."),
    click.option("--lang", "langs", metavar="CODE", multiple=True, help="Records of this language alone, as the file writes it; for mteb ISO 639-3 (deu). May be repeated."),
    click.option("--split", metavar="NAME", help="Records whose split says so alone; for mteb, its split."),
    click.option("--per-label", type=click.IntRange(min=1), metavar="N", default=8, show_default=True, help="classification: training examples of a label."),
    click.option("--experiments", type=click.IntRange(min=1), metavar="N", default=10, show_default=True, help="classification, clustering: seeded runs whose mean counts."),
    click.option("--lengths", metavar="N,N", help="passkey: lengths in tokens; else 256 to 32768, as far as the embedder reads."),
    click.option("--cache", metavar="DIR", help="mteb: folder that keeps results, so that a task is not run again."),
    click.option("--seeds", type=click.IntRange(min=1), metavar="N", help="task-switch: ask N of the 240 texts alone."),
    click.option("--distractors", metavar="FOLDER", help="task-switch: add the corpus of a BEIR folder to the index."),
    click.option("--plot", metavar="FILE.svg", help="task-switch: draw which task is found for which."),
    click.option("--rope-base", type=Number(min=0, min_open=True), metavar="X", help="Base of the transformer's rotary positions, in place of its own."),
    click.option("--window", type=click.IntRange(min=1), metavar="N", help="Sliding attention window of the transformer in tokens, in place of its own."),
)  # fmt: skip


@click.command("eval")
@click.argument("sources", metavar="[SOURCE]...", nargs=-1)
@_kind_options
@_retrieval_options
@mode_options
@weights_option
@rerank_options
@embedder_options
@chunk_options
@tasks_file
@common
def evaluate(
    *,
    sources: tuple[str, ...],
    kind: str,
    embedder: str | None,
    pairs: tuple[str, ...],
    device: str | None,
    dtype: str | None,
    token_budget: int | None,
    dim: int | None,
    rope_base: float | None,
    window: int | None,
    **wanted: Any,
) -> None:
    """Measure an embedder: retrieval from a BEIR folder or an index, or another kind of task from files of yours.

    retrieval: nDCG@10, Recall@100 and MRR@10 of documents, overall, by task and by language pair. SOURCE is a BEIR
    folder (corpus.jsonl, queries.jsonl, qrels), which is indexed in a temporary place, or an index with --queries
    and --qrels. A document counts at its best chunk's score; the one that is the query itself (same id, or the
    query's without its q-) is left out unless it is judged relevant. A pair's queries search that language's
    documents alone. Documents of code whose lang is a programming language give one row a language.

    sts: Spearman's correlation on pairs of sentences with a score. bitext: F1 and accuracy of the nearest neighbour
    on pairs of translations, both ways. classification: accuracy and macro F1 of a logistic regression; SOURCE is a
    training and a test file, or a folder with train.jsonl and test.jsonl. clustering: V-measure of k-means. Files
    are JSON lines or tab-separated (sentence1, sentence2, score; text, label; lang, split), also as .gz.

    passkey: does a vector hold what stands anywhere in a long text? 100 notes of each length, 50 questions, top-1;
    without SOURCE. It proves length, not understanding: BM25 scores 100 too. mteb: SOURCEs are names of tasks or
    benchmarks of the library mteb (MIRACLRetrieval, "MTEB(eng, v2)"), whose data it fetches, or Python files that
    define tasks of your own.

    task-switch (`embedkit eval task-switch` is enough): does the ranking follow the instruction? 240 texts, each with
    an answer, a paraphrase, a duplicate question, two translations, an entailed and a contradicting statement, a text
    on the topic, a headline and, where it fits, code, all in one index that is encoded once and bare. Only the query's
    instruction changes: the right one in a wording that training may use or in one held out, none, the wrong ones,
    nonsense, another language. nDCG@10, p-MRR, Robustness@10, and how often the right one of a text's own comes first.
    """
    from embedkit.errors import InputError

    if sources[:1] == ("task-switch",) and (kind == "task-switch" or not was_given("kind")):
        kind, sources = "task-switch", sources[1:]
    _refuse_foreign(kind)
    if wanted["task_name"] is not None and wanted["instruction"] is not None:
        raise InputError("--task and --instruction are both given: choose one")
    choice = EmbedderChoice.of(
        embedder, pairs, device=device, dtype=dtype, token_budget=token_budget, dim=dim,
        rope_theta=rope_base, sliding_window=window,
    )  # fmt: skip
    if kind == "task-switch":
        from embedkit_cli.task_switch import TaskSwitchOptions, evaluate_task_switch

        names = TaskSwitchOptions.__dataclass_fields__
        evaluate_task_switch(
            sources, choice, TaskSwitchOptions(**{k: v for k, v in wanted.items() if k in names})
        )
        return
    if kind != "retrieval":
        from embedkit_cli.kind_options import KindOptions
        from embedkit_cli.kinds import evaluate_kind

        names = KindOptions.__dataclass_fields__
        evaluate_kind(kind, sources, choice, KindOptions(**{k: v for k, v in wanted.items() if k in names}))
        return
    from embedkit_cli.retrieval import RetrievalOptions, evaluate_retrieval
    from embedkit_cli.search_options import How

    if len(sources) != 1:
        raise InputError(
            f"retrieval is measured on one SOURCE, a BEIR folder or an index; {len(sources)} are given"
        )
    chunks = chunk_settings(wanted["max_tokens"], wanted["overlap"], wanted["no_split"])
    names = RetrievalOptions.__dataclass_fields__
    options = {k: v for k, v in wanted.items() if k in names}
    how = How.of(wanted)
    evaluate_retrieval(
        sources[0], choice, embedder is not None, RetrievalOptions(**options, chunks=chunks, how=how)
    )


def _refuse_foreign(kind: str) -> None:
    """Raise InputError for an option that the kind would ignore."""
    from embedkit.errors import InputError

    for parameter in click.get_current_context().command.params:
        name = parameter.name or ""
        if name in _SPECIAL - _OWN_OPTIONS[kind] and was_given(name):
            takers = [k for k in KINDS if name in _OWN_OPTIONS[k]]
            raise InputError(f"{parameter.opts[0]} is for --kind {', '.join(takers)}, not for {kind}")
