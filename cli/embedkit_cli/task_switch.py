"""`embedkit eval task-switch`: one text under every task's instruction against one index; the options, the run, the picture."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit.errors import InputError, StoreError
from embedkit_cli.kind_options import counter
from embedkit_cli.output import note, print_json

if TYPE_CHECKING:
    from embedkit_cli.options import EmbedderChoice

KIND = "task-switch"


@dataclass(frozen=True, slots=True)
class TaskSwitchOptions:
    """What the command line says of a task switch."""

    seeds: int | None = None
    seed: int = 0
    distractors: str | None = None
    plot: str | None = None
    as_json: bool = False


def evaluate_task_switch(sources: Sequence[str], choice: EmbedderChoice, wanted: TaskSwitchOptions) -> None:
    """Measure, draw and print.

    Raises InputError for a SOURCE, or a picture that could not be written; StoreError, once the report is printed,
    where writing the picture failed all the same.
    """
    from embedkit.evaluation import sample
    from embedkit.evaluation import task_switch as package
    from embedkit.evaluation.task_switch.picture import draw_confusion
    from embedkit_cli.progress import Meter
    from embedkit_cli.task_switch_tables import print_report

    started = time.perf_counter()
    if sources:
        raise InputError(f"{KIND} takes no SOURCE, its texts come with embedkit; got {sources[0]!r}")
    picture = _picture_path(wanted.plot)
    distractors = package.read_distractors(wanted.distractors) if wanted.distractors is not None else ()
    seeds = sample(package.load_seeds(), wanted.seeds, wanted.seed)
    instructions = package.load_instructions()
    embedder = choice.open()
    remark = None
    if not embedder.info.instruction_trained:
        remark = (
            f"{embedder.info.name} was not trained on instructions: each is put before the query's text all the same, as "
            "Instruct: … Query: …"
        )
        note(remark)
    with Meter("texts") as meter:
        report = package.evaluate_task_switch(
            embedder,
            seeds,
            instructions,
            distractors=distractors,
            seed=wanted.seed,
            advance=counter(meter.update),
        )
    failure: OSError | None = None
    if picture is not None:
        drawn = draw_confusion(report)
        try:
            picture.write_text(drawn, encoding="utf-8")
        except OSError as e:
            failure = e
    record: dict[str, Any] = {
        "kind": KIND,
        **report.to_dict(),
        "plot": str(picture) if picture is not None and failure is None else None,
        "note": remark,
        "seconds": round(time.perf_counter() - started, 3),
    }
    if wanted.as_json:
        print_json(record)
    else:
        print_report(report, record["seconds"])
    if failure is not None:
        raise StoreError(
            f"--plot {picture} was not written ({_reason(failure)}); the report is whole: make room, or choose another file"
        ) from failure


def _picture_path(plot: str | None) -> Path | None:
    """Return the picture's path. Raises InputError, before anything is encoded, where it cannot be one."""
    if plot is None:
        return None
    path = Path(plot)
    if path.suffix.lower() != ".svg":
        raise InputError(f"--plot {plot} does not end in .svg, the one format that is written: name it so")
    try:
        if not path.parent.is_dir() or path.is_dir():
            raise InputError(f"--plot {plot} cannot be written: choose a file in a folder that exists")
        file = path.resolve()  # what a link points to, not the link, is tried and taken away again
        there = file.exists()
        if file.is_file() or not there:  # what is neither, a pipe say, may wait for a reader
            with file.open("ab"):
                pass
        if not there:
            file.unlink()
    except OSError as e:
        raise InputError(
            f"--plot {plot} cannot be written ({_reason(e)}): choose a place that you may write to"
        ) from e
    return path


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
