"""Run the task switch: one index, every condition, one report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from embedkit.errors import InputError
from embedkit.evaluation.task_switch.conditions import make_queries, render
from embedkit.evaluation.task_switch.data import Seed
from embedkit.evaluation.task_switch.instructions import Instructions
from embedkit.evaluation.task_switch.ranking import Advance, TextIndex, rank_members
from embedkit.evaluation.task_switch.report import Report, make_report

if TYPE_CHECKING:
    from embedkit.embedder import Embedder


def evaluate_task_switch(
    embedder: Embedder,
    seeds: Sequence[Seed],
    instructions: Instructions,
    *,
    distractors: Sequence[str] = (),
    seed: int = 0,
    advance: Advance = lambda count: None,
) -> Report:
    """Measure how an embedder's ranking follows the instruction.

    Every positive and distractor of the seeds, and the further `distractors`, are encoded once, bare, and never
    again: the conditions differ in the query's instruction alone. The seeds themselves are not in the index. `seed`
    draws the bootstrap's resamples. Raises InputError without seeds.
    """
    if not seeds:
        raise InputError("the task switch needs a seed at least, got none")
    own = [text for s in seeds for text in (*s.positives.values(), s.distractor)]
    index = TextIndex.build(embedder, [*own, *distractors], advance)
    before = index.checksum
    queries = make_queries(seeds, instructions, embedder.info)
    ranks = rank_members(embedder, queries, index, seeds, advance)
    facts = {
        "embedder": embedder.info.name,
        "instruction_trained": embedder.info.instruction_trained,
        "template": render(embedder.info, "{query}", "{instruction}"),
        "seeds": len(seeds),
        "texts": len(index.texts),
        "further distractors": len(index.texts) - len(set(own)),
        "queries": len(queries.texts),
    }
    return make_report(ranks, facts, (before, index.checksum), seed)
