"""The queries: every seed under every condition, rendered to the strings that are encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from embedkit.contract import EmbedderInfo, Template
from embedkit.evaluation.task_switch.data import TASKS, Seed
from embedkit.evaluation.task_switch.instructions import WORDINGS, Instructions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ABSENT = -1  # in an array of query numbers: the seed has no positive for the task


@dataclass(frozen=True, slots=True)
class Queries:
    """All queries, each string once, and where each condition's stand among them.

    `texts` are rendered. The arrays hold positions in `texts`, ABSENT where there is no such query: `bare` and
    `nonsense` `[seeds]`, the same query whatever the task; `right`, `held_out` and `other_language`
    `[seeds, tasks]`; `wordings` `[seeds, tasks, 5]`, of which the first two are `right` and `held_out`.
    """

    texts: tuple[str, ...]
    bare: NDArray[np.int64]
    nonsense: NDArray[np.int64]
    right: NDArray[np.int64]
    held_out: NDArray[np.int64]
    other_language: NDArray[np.int64]
    wordings: NDArray[np.int64]


def make_queries(seeds: Sequence[Seed], instructions: Instructions, info: EmbedderInfo) -> Queries:
    """Render every query of every condition as `render` does."""
    import numpy as np

    place: dict[str, int] = {}

    def number(seed: Seed, instruction: str | None) -> int:
        return place.setdefault(render(info, seed.text, instruction), len(place))

    shape = (len(seeds), len(TASKS))
    bare, nonsense = (np.full(len(seeds), ABSENT) for _ in range(2))
    other_language = np.full(shape, ABSENT)
    wordings = np.full((*shape, WORDINGS), ABSENT)
    for i, seed in enumerate(seeds):
        bare[i] = number(seed, None)
        nonsense[i] = number(seed, instructions.meaningless(seed))
        for task in seed.tasks:
            t = TASKS.index(task)
            several = [number(seed, told) for told in instructions.several(seed, task)]
            wordings[i, t, : len(several)] = several
            foreign = instructions.in_other_language(seed, task)
            if foreign is not None:
                other_language[i, t] = number(seed, foreign)
    return Queries(
        tuple(place), bare, nonsense, wordings[:, :, 0], wordings[:, :, 1], other_language, wordings
    )


def render(info: EmbedderInfo, text: str, instruction: str | None) -> str:
    """Return the string that is encoded for a query.

    Without an instruction it is the bare query, whatever the embedder's default task. An embedder that was not
    trained on instructions gets E5-mistral's `Instruct: …` and `Query: …` as its query's text, so that all such
    embedders are told the same, inside their own query prefix where they have one.
    """
    if instruction is None or info.instruction_trained:
        return info.template.render_query(text, instruction)
    return info.template.render_query(Template().render_query(text, instruction), None)
