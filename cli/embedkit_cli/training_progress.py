"""Progress of training on stderr: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

import click

from embedkit_cli.output import note

if TYPE_CHECKING:
    from rich.progress import Progress

    from embedkit_trainer.events import DevEvent, Event, StepEvent

_SECONDS_BETWEEN_LINES = 10.0


class TrainingMeter:
    """Show the events of a run: loss, learning rate, tokens a second, negatives per query, time left."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._bar: Progress | None = None
        self._stage: str | None = None
        self._last_line = 0.0

    def __enter__(self) -> Self:
        if self._shown:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[figures]}"),
                console=Console(stderr=True, emoji=False, markup=False),
                transient=True,
            )
            self._task = self._bar.add_task("starting", total=None, figures="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def tell(self, event: Event) -> None:
        """Show one event."""
        from embedkit_trainer.events import DevEvent, StepEvent

        if isinstance(event, StepEvent):
            self._step(event)
        elif isinstance(event, DevEvent):
            self._line(_dev_line(event))
        else:
            note(event.text)

    def _step(self, event: StepEvent) -> None:
        figures = step_line(event)
        if self._bar is not None:
            self._bar.update(
                self._task, description=event.stage, total=event.steps, completed=event.step, figures=figures
            )
            return
        now = time.monotonic()
        new = event.stage != self._stage
        if new or event.step == event.steps or now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._stage, self._last_line = event.stage, now
            self._line(f"{event.stage}: {figures}")

    def _line(self, text: str) -> None:
        click.echo(text, err=True)


def step_line(event: StepEvent) -> str:
    """Return the figures of a step on one line."""
    return (
        f"step {event.step:,}/{event.steps:,} · loss {event.loss:.4f} · lr {event.lr:.2e} · "
        f"{event.tokens_per_second:,.0f} tokens/s · {event.negatives_per_query:,.0f} negatives per query · "
        f"{duration(event.seconds_left)} left"
    )


def duration(seconds: float) -> str:
    """Return a time span as a person says it: 12 s, 3 min 20 s, 5 h 10 min."""
    whole = max(0, round(seconds))
    minutes, hours = whole // 60, whole // 3600
    if hours:
        return f"{hours:,} h {minutes % 60} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def _dev_line(event: DevEvent) -> str:
    scores = ", ".join(f"{name} {score:.4f}" for name, score in event.scores.items())
    best = " (the best so far)" if event.best else ""
    return f"{event.stage}: step {event.step:,} · nDCG@10 {event.mean:.4f}{best} · {scores}"
