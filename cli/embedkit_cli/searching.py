"""`embedkit search`: one query under one or several tasks, or a file of queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from embedkit_cli.options import check_question, common, tasks_file, was_given
from embedkit_cli.output import note, print_json, rerank_note, truncated_note, untrained_note
from embedkit_cli.search_options import (
    How,
    effort_options,
    indexes_alone,
    mode_options,
    rerank_options,
    split_query,
    weights_option,
    where_option,
)

if TYPE_CHECKING:
    from embedkit.tasks import Task
    from embedkit_indexes.reader import IndexReader
    from embedkit_indexes.results import SearchResult


@click.command()
@click.argument("arguments", metavar="DIR… [QUERY]", nargs=-1, required=True)
@click.option(
    "--task", "names", metavar="NAME", multiple=True, help="Task of the query; several: side by side."
)
@click.option("--instruction", metavar="TEXT", help="What the query should find, in your own words.")
@click.option("-k", "--k", "k", type=int, metavar="N", default=10, show_default=True, help="How many hits.")
@click.option("--lang", metavar="CODE", help="Find documents of this language alone.")
@where_option
@mode_options
@weights_option
@rerank_options
@effort_options
@click.option(
    "--queries",
    "queries_path",
    metavar="FILE",
    help="Queries: JSON lines (_id, text, task) or one a line; -.",
)
@click.option(
    "--run", "form", type=click.Choice(["jsonl", "trec"]), default="jsonl", show_default=True,
    help="What --queries prints: chunks as JSON lines, or documents as a TREC run.",
)  # fmt: skip
@tasks_file
@common
def search(
    *,
    arguments: tuple[str, ...],
    names: tuple[str, ...],
    instruction: str | None,
    k: int,
    lang: str | None,
    queries_path: str | None,
    form: str,
    tasks_path: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Search the index DIR, or several indexes of one embedder as if they were one.

    A filter (--where) tests metadata and the chunk's own id, source, title, lang, position and text, by =, !=, <, <=,
    >, >=, in (…), contains, startswith, like, exists, is null, joined by and, or, not and parentheses.

    \b
    embedkit search docs.index "how do I cancel?" --task qa --task duplicate
    embedkit search docs.index faq.index "error E1234" --hybrid
    embedkit search docs.index "how do I cancel?" --where 'year >= 2020' -k 3
    embedkit search docs.index "how do I cancel?" --rerank cross-encoder/ms-marco-MiniLM-L6-v2
    embedkit search docs.index --queries questions.jsonl --run trec
    """
    from embedkit.errors import InputError
    from embedkit_cli.tasks import TaskBook
    from embedkit_indexes import open_indexes

    query: str | None = None
    if queries_path is None and len(arguments) < 2:
        raise InputError("give one query or --queries FILE, after the index")
    if queries_path is None:
        directories, query = split_query(arguments)
    else:
        directories = indexes_alone(arguments)
    check_question(query, names, instruction, k)
    index = open_indexes(directories)
    # The depth of a run is a ceiling, one query's k is a wish.
    if query is not None and k > len(index) and was_given("k"):
        held = f"{directories[0]} holds" if len(directories) == 1 else "these indexes hold"
        raise InputError(f"-k {k} is more than {held}: ask for {len(index)} or fewer")
    book = TaskBook(tasks_path, index.tasks)
    tasks: list[Task | None] = [book.find(name) for name in dict.fromkeys(names)] or [None]
    how = How.of(options)  # a reranker may take long to load: all that is quickly wrong is told before
    wanted = how.effort.recall if how.effort is not None else None
    if wanted is not None and index.reachable_recall < wanted < 1:
        note(
            f"a recall of {wanted:g} was asked for, and the index measured {index.reachable_recall:.3f} at most: --recall 1 "
            "compares with everything"
        )
    if queries_path is not None:
        from embedkit_cli.batches import Asking, run_queries

        if len(tasks) > 1:
            raise InputError(f"--queries takes one --task, got {len(tasks)}: run them one by one")
        run_queries(index, book, queries_path, Asking(tasks[0], instruction, k, lang, how), form)
        return
    asked = {"instruction": instruction, "k": k, "lang": lang, **how.arguments}
    results = [index.search(query or "", task=t, **asked) for t in tasks]
    _show(index, results, as_json)


def _show(index: IndexReader, results: Sequence[SearchResult], as_json: bool) -> None:
    remark = None if all(r.obeys for r in results) else untrained_note(index.embedder.info.name)
    if remark:
        note(remark)
    cut = (truncated_note(index.embedder, r.query, r.instruction, r.truncated) for r in results)
    for said in filter(None, dict.fromkeys(cut)):
        note(said)
    reports = [r.rerank for r in results if r.rerank is not None]
    if reports:
        note(rerank_note(reports))
    if as_json:
        records = [{**r.to_dict(), "note": None if r.obeys else remark} for r in results]
        print_json(records if len(records) > 1 else records[0])
        return
    from embedkit_cli.rendering import print_results

    print_results(results)
