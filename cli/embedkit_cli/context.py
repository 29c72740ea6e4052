"""`embedkit context`: what a search finds, as numbered passages for a language model's prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from embedkit_cli.options import check_question, common, tasks_file
from embedkit_cli.output import counted, note, print_json, rerank_note, truncated_note, untrained_note
from embedkit_cli.search_options import (
    How,
    effort_options,
    mode_options,
    rerank_options,
    split_query,
    weights_option,
    where_option,
)

if TYPE_CHECKING:
    from embedkit_indexes import Context


@click.command()
@click.argument("arguments", metavar="DIR… QUESTION", nargs=-1, required=True)
@click.option(
    "--budget",
    type=int,
    default=2000,
    show_default=True,
    metavar="N",
    help="Most tokens of all that is printed, citations too.",
)
@click.option(
    "--output",
    "form",
    type=click.Choice(["text", "markdown", "json", "messages"]),
    help="What is printed; else text. messages: as chat endpoints take them.",
)
@click.option("--task", "names", metavar="NAME", multiple=True, help="Task of the question; one.")
@click.option("--instruction", metavar="TEXT", help="What the question should find, in your own words.")
@click.option("-k", "--k", "k", type=int, metavar="N", default=10, show_default=True, help="How many hits.")
@click.option(
    "--expand",
    type=int,
    default=0,
    show_default=True,
    metavar="N",
    help="Chunks before and after each hit to take in.",
)
@click.option(
    "--order",
    type=click.Choice(["score", "source"]),
    default="score",
    show_default=True,
    help="Best passage first, or those of a document together.",
)
@click.option(
    "--tokenizer",
    metavar="NAME",
    help="What counts tokens: a tokenizer.json, a folder, a Hugging Face id, or bytes (4 a token); else the embedder's own.",
)
@click.option("--lang", metavar="CODE", help="Find documents of this language alone.")
@where_option
@mode_options
@weights_option
@rerank_options
@effort_options
@tasks_file
@common
def context(
    *,
    arguments: tuple[str, ...],
    budget: int,
    form: str | None,
    names: tuple[str, ...],
    instruction: str | None,
    k: int,
    expand: int,
    order: str,
    tokenizer: str | None,
    lang: str | None,
    tasks_path: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Search the index DIR, or several as one, and print what is found as numbered passages for a prompt.

    Each passage names its source and the characters there, so that an answer's [1] leads back to them. Neighbouring chunks
    become one passage, what another document says again is left out and named, and the last passage is cut where a sentence
    ends. With --output json the budget bounds the field `text`.

    \b
    embedkit context docs.index "how do I cancel?" --task qa --budget 1000
    embedkit context docs.index "how do I cancel?" --expand 1 --output messages
    """  # fmt: skip
    from embedkit.errors import InputError
    from embedkit_cli.tasks import TaskBook
    from embedkit_indexes import ContextConfig, build_context, open_indexes
    from embedkit_indexes.context_counting import count_by_bytes, counter_of, open_counter

    directories, question = split_query(arguments)
    check_question(question, names, instruction, k)
    if len(names) > 1:
        raise InputError(f"a context is of one --task, got {len(names)}: ask for them one by one")
    if as_json and form in ("text", "markdown"):
        raise InputError(f"--json and --output {form} are both given: choose one")
    config = ContextConfig(budget, form or ("json" if as_json else "text"), expand, order)  # type: ignore[arg-type]
    count = None
    if tokenizer is not None:
        count = count_by_bytes if tokenizer == "bytes" else open_counter(tokenizer)
    index = open_indexes(directories)
    task = TaskBook(tasks_path, index.tasks).find(names[0]) if names else None
    how = How.of(options)
    result = index.search(question, task=task, instruction=instruction, k=k, lang=lang, **how.arguments)
    if not result.obeys:
        note(untrained_note(index.embedder.info.name))
    if (
        cut := truncated_note(index.embedder, question, result.instruction, result.truncated)
        if result.truncated
        else None
    ):
        note(cut)
    if result.rerank is not None:
        note(rerank_note([result.rerank]))
    if count is None and how.mode != "lexical":
        count = counter_of(index.embedder)
    _show(build_context(result, config, count_tokens=count))


def _show(context: Context) -> None:
    form = context.config.form
    if form == "json":
        print_json(context.to_dict())
        return
    if form == "messages":
        print_json(context.to_messages())
    elif context.blocks:
        click.echo(context.render())
    note(_summary(context))


def _summary(context: Context) -> str:
    """Say how much of the budget is used, and what is not in the passages."""
    used = f"{context.tokens:,} of {context.config.budget:,} tokens"
    if not context.blocks and not context.left_out.budget:
        return "nothing was found"
    left = []
    if context.left_out.duplicates:
        left.append(f"{counted(context.left_out.duplicates, 'chunk')} left out as the same as others")
    if context.left_out.budget:
        left.append(f"{counted(context.left_out.budget, 'chunk')} beyond the budget")
    said = [f"{counted(len(context.blocks), 'passage')}, {used}", *left]
    return "; ".join(said)
