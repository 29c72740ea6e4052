"""The task switch: one text, one index, and what is relevant changes with the instruction alone.

Each seed text has one positive for every task (its answer, a paraphrase, a translation, …), and each of these is a
hard negative for all the other tasks. Every text of every seed stands in one index, encoded once and bare; queries
differ in their instruction alone.
"""

from embedkit.evaluation.task_switch.data import (
    HELD_OUT_TASKS,
    TASKS,
    Seed,
    load_seeds,
    read_distractors,
    read_seeds,
)
from embedkit.evaluation.task_switch.instructions import Instructions, load_instructions
from embedkit.evaluation.task_switch.report import Report
from embedkit.evaluation.task_switch.run import evaluate_task_switch

__all__ = [
    "HELD_OUT_TASKS",
    "TASKS",
    "Instructions",
    "Report",
    "Seed",
    "evaluate_task_switch",
    "load_instructions",
    "load_seeds",
    "read_distractors",
    "read_seeds",
]
