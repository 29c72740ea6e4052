"""Options that several commands share, and the opening of embedders they describe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

if TYPE_CHECKING:
    from embedkit.embedder import Embedder

F = TypeVar("F", bound=Callable[..., Any])


def group(*options: Callable[[Any], Any]) -> Callable[[F], F]:
    """Return one decorator for several options, in the order given."""

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


# The flag is read from the command line before anything runs (main.py); here it is only allowed.
debug_option = click.option("--debug", is_flag=True, expose_value=False, hidden=True)
common = group(click.option("--json", "as_json", is_flag=True, help="Print JSON."), debug_option)
tasks_file = click.option(
    "--tasks", "tasks_path", metavar="FILE", help="TOML file of your own tasks; else EMBEDKIT_TASKS."
)
embedder_options = group(
    click.option("--embedder", metavar="NAME", help="Kind, kind:model, path or Hugging Face id; else bundled."),
    click.option("--embedder-option", "pairs", metavar="KEY=VALUE", multiple=True, help="Option of the embedder."),
    click.option("--device", help="Where the embedder runs, such as cpu or cuda."),
    click.option("--dtype", help="Arithmetic of the embedder, such as float32 or bfloat16."),
    click.option("--token-budget", type=click.IntRange(min=1), metavar="N", help="Tokens in one batch."),
    click.option("--dim", type=click.IntRange(min=1), metavar="N", help="Keep the first N numbers of each vector, normalised again."),
)  # fmt: skip
chunk_options = group(
    click.option(
        "--max-tokens",
        type=click.IntRange(min=1),
        metavar="N",
        help="Longest chunk, in the embedder's tokens.",
    ),
    click.option(
        "--overlap",
        type=click.FloatRange(min=0),
        metavar="N",
        help="Tokens that neighbouring chunks share; below 1, a share of the longest.",
    ),
    click.option("--no-split", is_flag=True, help="One chunk a document; what is too long is truncated."),
)


def given(**values: Any) -> dict[str, Any]:
    """Return the options that were given."""
    return {name: value for name, value in values.items() if value is not None}


def was_given(name: str) -> bool:
    """Say whether the running command's option was written out, not left at its default."""
    return click.get_current_context().get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def check_question(query: str | None, names: Sequence[str], instruction: str | None, k: int) -> None:
    """Raise InputError for what no search can be asked: an empty query, k < 1, two instructions, broken text."""
    from embedkit.errors import InputError

    if query is not None and not query.strip():
        raise InputError("the query is empty: give it some text")
    if k < 1:
        raise InputError(f"-k {k} is too small: give 1 or more")
    if names and instruction is not None:
        raise InputError("--task and --instruction are both given: choose one")
    for what, text in (("query", query), ("instruction", instruction)):
        # The shell hands over bytes; those that are no UTF-8 arrive as half surrogate pairs.
        if text is not None and any("\ud800" <= c <= "\udfff" for c in text):
            raise InputError(f"the {what} is not UTF-8 text: check the terminal's encoding (LANG, LC_ALL)")


def chunk_settings(max_tokens: int | None, overlap: float | None, no_split: bool) -> dict[str, Any]:
    """Return the arguments of ChunkConfig that were given."""
    return given(max_tokens=max_tokens, overlap_tokens=overlap, split=False if no_split else None)


def parse_pairs(pairs: Iterable[str]) -> dict[str, Any]:
    """Read `key=value` options; a value is a number, true, false or null where it reads as one."""
    import json

    from embedkit.errors import InputError

    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--embedder-option {pair!r} is not KEY=VALUE, such as pooling=mean")
        try:
            options[key.strip().replace("-", "_")] = json.loads(value)
        except ValueError:
            options[key.strip().replace("-", "_")] = value
    return options


class EmbedderChoice(NamedTuple):
    """The embedder that a command's options describe."""

    name: str
    options: dict[str, Any]

    @classmethod
    def of(cls, embedder: str | None, pairs: Iterable[str], **options: Any) -> EmbedderChoice:
        """Read the options; without a name it is the bundled one."""
        from embedkit.registry import DEFAULT

        return cls(embedder or DEFAULT, {**parse_pairs(pairs), **given(**options)})

    def open(self) -> Embedder:
        """Open the embedder."""
        from embedkit.registry import get_embedder

        return get_embedder(self.name, **self.options)

    @property
    def spec(self) -> str:
        """The name spelt out, so that an index opens from any folder and after a change of the default."""
        from embedkit.registry import full_name

        return full_name(self.name)
