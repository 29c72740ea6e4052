"""How an index is searched, as `search`, `explain` and `eval` take it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from embedkit_cli.options import group

if TYPE_CHECKING:
    from embedkit.rerankers.base import Reranker
    from embedkit_indexes import SearchEffort
    from embedkit_indexes.request import Mode

where_option = click.option(
    "--where", metavar="FILTER", help="""Chunks that satisfy it alone: 'year >= 2020 and source = "wiki"'."""
)
effort_options = group(
    click.option("--recall", type=float, metavar="R", help="Recall@10 to reach, by the index's own measurement; 1 compares all."),
    click.option("--nprobe", type=click.IntRange(min=1), metavar="N", help="Cells that an IVF engine looks into."),
    click.option("--ef-search", type=click.IntRange(min=1), metavar="N", help="Candidates that an HNSW engine keeps on its way."),
    click.option("--refine", type=click.IntRange(min=1), metavar="N", help="Candidates of an engine that are compared exactly."),
)  # fmt: skip
mode_options = group(
    click.option("--hybrid", is_flag=True, help="By vectors and words (BM25), fused by reciprocal rank."),
    click.option("--lexical", is_flag=True, help="By words alone (BM25), without the instruction."),
)
rerank_options = group(
    click.option("--rerank", "rerank_name", metavar="NAME", help="Score the best hits anew: a cross-encoder (folder or Hugging Face id), llm:MODEL@URL, or embedder:NAME."),
    click.option("--rerank-depth", type=click.IntRange(min=1), metavar="N", help="How many hits --rerank scores; else 50, and k at least."),
    click.option("--rerank-option", "rerank_pairs", metavar="KEY=VALUE", multiple=True, help="Option of the reranker."),
)  # fmt: skip
weights_option = click.option(
    "--weights", metavar="V,W", help="With --hybrid: weights of vectors and words; else 1,1."
)


@dataclass(frozen=True, slots=True)
class How:
    """By which filter, effort, mode and second stage a question is answered."""

    where: str | None = None
    effort: SearchEffort | None = None
    mode: Mode = "dense"
    weights: tuple[float, float] = (1.0, 1.0)
    rerank: Reranker | None = None
    rerank_depth: int | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> How:
        """Read the options that a command takes, and open its reranker. Raises InputError for what does not go together."""
        from embedkit.errors import InputError

        if options.get("hybrid") and options.get("lexical"):
            raise InputError("--hybrid and --lexical are both given: choose one")
        mode: Mode = "hybrid" if options.get("hybrid") else "lexical" if options.get("lexical") else "dense"
        weights = options.get("weights")
        if weights is not None and mode != "hybrid":
            raise InputError("--weights is for --hybrid: give both")
        names = ("recall", "nprobe", "ef_search", "refine")
        effort = {n: options[n] for n in names if options.get(n) is not None}
        if effort and mode == "lexical":
            option = next(iter(effort)).replace("_", "-")
            raise InputError(f"--{option} is for a search by vectors: leave it out with --lexical")
        return cls(
            options.get("where"),
            _effort(effort),
            mode,
            _weights(weights) if weights is not None else (1.0, 1.0),
            _reranker(options),
            options.get("rerank_depth"),
        )

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `Index.search`, `search_many` and `rank`."""
        plain = {"where": self.where, "effort": self.effort, "mode": self.mode, "weights": self.weights}
        if self.rerank is None:
            return plain
        depth = {} if self.rerank_depth is None else {"rerank_depth": self.rerank_depth}
        return {**plain, "rerank": self.rerank, **depth}


def _effort(given: Mapping[str, Any]) -> SearchEffort | None:
    if not given:
        return None
    from embedkit_indexes import SearchEffort

    return SearchEffort(**given)


def _reranker(options: Mapping[str, Any]) -> Reranker | None:
    from embedkit.errors import InputError

    name = options.get("rerank_name")
    if name is None:
        given = {"rerank_depth": "--rerank-depth", "rerank_pairs": "--rerank-option"}
        for option in (flag for key, flag in given.items() if options.get(key)):
            raise InputError(f"{option} is for --rerank NAME: give both")
        return None
    from embedkit.rerankers.registry import get_reranker
    from embedkit_cli.options import parse_pairs

    return get_reranker(name, **parse_pairs(options.get("rerank_pairs") or (), "--rerank-option"))


def _weights(text: str) -> tuple[float, float]:
    from embedkit.errors import InputError

    try:
        vectors, words = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"--weights {text!r} is not two numbers, of vectors and of words, such as 1,0.5"
        ) from None
    return vectors, words


def split_query(arguments: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Part a command's arguments into indexes and the query, the last. Raises InputError."""
    from embedkit.errors import InputError

    if len(arguments) < 2:
        raise InputError(
            "one argument is given: name an index, and then the query (search: or --queries FILE)"
        )
    return tuple(arguments[:-1]), arguments[-1]


def indexes_alone(arguments: Sequence[str]) -> tuple[str, ...]:
    """Return the arguments, which are indexes, as a file holds the queries. Raises InputError for a query."""
    from pathlib import Path

    from embedkit.errors import InputError

    if len(arguments) > 1 and not Path(arguments[-1]).exists():
        raise InputError(f"give one query or --queries FILE, not both: {arguments[-1]!r:.60} is no index")
    return tuple(arguments)
