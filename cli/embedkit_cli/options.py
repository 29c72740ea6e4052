"""Options that several commands share, and the opening of embedders they describe."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

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


class Number(click.FloatRange):
    """A finite number within bounds; NaN is within all that click knows."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number; fails for what is none."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is no finite number", param, ctx)
        return number


# The flag is read from the command line before anything runs (main.py); here it is only allowed.
debug_option = click.option("--debug", is_flag=True, expose_value=False, hidden=True)
common = group(click.option("--json", "as_json", is_flag=True, help="Print JSON."), debug_option)
tasks_file = click.option(
    "--tasks", "tasks_path", metavar="FILE", help="TOML file of your own tasks; else EMBEDKIT_TASKS."
)
embedder_options = group(
    click.option("--embedder", metavar="NAME", help="Kind, kind:model, path or Hugging Face id; else the index's own, or bundled."),
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
        type=Number(min=0),
        metavar="N",
        help="Tokens that neighbouring chunks share; below 1, a share of the longest.",
    ),
    click.option("--no-split", is_flag=True, help="One chunk a document; what is too long is truncated."),
)
reading_options = group(
    click.option("--format", "form", metavar="NAME", help="Format of the sources; else told by their names."),
    click.option("--text-field", metavar="NAME", help="Field or column that holds the text."),
    click.option("--title-field", metavar="NAME", help="Field or column that holds the title."),
    click.option("--id-field", metavar="NAME", help="Field or column that holds the id."),
    click.option("--lang-field", metavar="NAME", help="Field or column that holds the language."),
    click.option("--lang", metavar="CODE", help="Language of all documents; else detected."),
)
strict_option = click.option(
    "--strict", is_flag=True, help="Stop at the first record that cannot be read; else skip it."
)
vectors_option = click.option(
    "--vectors", type=click.Choice(["float16", "float32"]), help="How vectors are stored; else float16."
)


class Size(click.ParamType[int]):
    """A number of bytes, such as 2GB, 500MB, 1.5GiB or 4096."""

    name = "size"
    _UNITS: ClassVar[dict[str, int]] = {
        "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
        "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40,
    }  # fmt: skip

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes, 1 or more; fails for what is no size."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", value.strip().lower())
        unit = self._UNITS.get(found[2]) if found else None
        if found is None or unit is None or float(found[1]) * unit < 1:
            self.fail(f"{value!r} is no size: write one like 2GB, 500MB or 1.5GiB", param, ctx)
        return int(float(found[1]) * unit)


engine_options = group(
    click.option("--engine", metavar="NAME", help="auto, exact, ivf-pq, ivf-rabitq, ivf-sq8, hnsw, cagra (on a GPU), or a FAISS factory string; else auto, by size."),
    click.option("--recall", type=float, metavar="R", help="Recall@10 that searches shall reach; else 0.95."),
    click.option("--memory-budget", type=Size(), metavar="SIZE", help="Memory that the searched structure may take, such as 2GB."),
)  # fmt: skip


def given(**values: Any) -> dict[str, Any]:
    """Return the options that were given."""
    return {name: value for name, value in values.items() if value is not None}


def engine_settings(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of EngineConfig that were given."""
    return given(type=told["engine"], recall=told["recall"], memory_budget=told["memory_budget"])


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


def parse_pairs(pairs: Iterable[str], option: str = "--embedder-option") -> dict[str, Any]:
    """Read `key=value` options; a value is a number, true, false or null where it reads as one."""
    import json

    from embedkit.errors import InputError

    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise InputError(f"{option} {pair!r} is not KEY=VALUE, such as max_length=256")
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
