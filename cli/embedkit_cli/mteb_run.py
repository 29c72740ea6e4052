"""`embedkit eval --kind mteb`: run tasks of the library mteb, and print their main scores."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from embedkit_cli.kind_options import counter, print_head
from embedkit_cli.output import console, note, print_json, untrained_note

if TYPE_CHECKING:
    from embedkit.evaluation.mteb_tasks import MtebScore
    from embedkit_cli.kind_options import KindOptions
    from embedkit_cli.options import EmbedderChoice


def evaluate_mteb(
    sources: Sequence[str],
    choice: EmbedderChoice,
    wanted: KindOptions,
    instruction: str | None,
    started: float,
) -> None:
    """Measure and print; a benchmark's score is the mean over its tasks, which stands beside the mean over types."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # read when mteb imports tqdm
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    from embedkit.evaluation.mteb_names import find_tasks
    from embedkit.evaluation.mteb_tasks import MtebEncoder, run_tasks
    from embedkit.evaluation.protocol import mean_of
    from embedkit_cli.progress import Meter

    tasks = find_tasks(sources, langs=wanted.langs, split=wanted.split)
    embedder = choice.open()
    remark = None
    if instruction is not None and not embedder.info.instruction_trained:
        remark = untrained_note(embedder.info.name)
        note(remark)
    with Meter("texts") as meter:
        encoder = MtebEncoder(embedder, wanted.protocol, instruction, advance=counter(meter.update))
        scores = run_tasks(encoder, tasks, cache=wanted.cache)
    kinds = sorted({s.kind for s in scores})
    by_type = {kind: mean_of(s.score for s in scores if s.kind == kind) for kind in kinds}
    record: dict[str, Any] = {
        "kind": "mteb",
        "sources": list(sources),
        "embedder": embedder.info.name,
        "protocol": wanted.protocol,
        "tasks": [s.to_dict() for s in scores],
        "mean": mean_of(s.score for s in scores),
        "mean_of_types": mean_of(by_type.values()),
        "types": by_type,
        "note": remark,
        "seconds": round(time.perf_counter() - started, 3),
    }
    if wanted.as_json:
        print_json(record)
        return
    sides = sorted({s.instructed for s in scores})
    print_head({**record, "instructed": " or ".join(sides)})
    _print(record, scores)


def _print(record: dict[str, Any], scores: Sequence[MtebScore]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("task", "type", "measure", "instruction"):
        table.add_column(column)
    table.add_column("score", justify="right")
    for s in scores:
        table.add_row(s.task, s.kind, s.metric, s.instructed, _cell(s.score))
    if len(scores) > 1:
        table.add_row(Text("mean over tasks", style="bold"), "", "", "", _cell(record["mean"]))
        table.add_row(Text("mean over types", style="bold"), "", "", "", _cell(record["mean_of_types"]))
    console().print(table)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
