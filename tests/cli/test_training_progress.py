"""Training's progress: what a step's line says, how often lines come, and the bar of a terminal."""

from __future__ import annotations

import io
import sys

import pytest

from embedkit_cli.training_progress import TrainingMeter, duration, step_line
from embedkit_trainer.events import DevEvent, NoteEvent, StepEvent


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _step(step: int, stage: str = "train") -> StepEvent:
    return StepEvent(stage, step, 100, 1.23456, 2e-5, 5300.4, 4094.5, 0.7, 200.0)


def test_a_line_says_what_matters() -> None:
    """Loss, rate, tokens a second, negatives per query and the time left stand on one line."""
    assert step_line(_step(7)) == (
        "step 7/100 · loss 1.2346 · lr 2.00e-05 · 5,300 tokens/s · 4,094 negatives per query · 3 min 20 s left"
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (12.4, "12 s"), (200, "3 min 20 s"), (18_600, "5 h 10 min")]
)
def test_durations(seconds: float, text: str) -> None:
    """Time spans are said as people say them."""
    assert duration(seconds) == text


def test_plain_lines_come_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a terminal the first and last step of a stage are written, others every ten seconds."""
    now = [0.0]
    monkeypatch.setattr("embedkit_cli.training_progress.time.monotonic", lambda: now[0])
    with TrainingMeter() as meter:
        for step in range(1, 101):
            now[0] += 0.25
            meter.tell(_step(step))
        meter.tell(_step(1, "finetune"))
        meter.tell(DevEvent("finetune", 1, {"a": 0.25, "b": 0.75}, 0.5, True))
        meter.tell(NoteEvent("a remark"))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" · ")[0] for line in lines] == [
        "train: step 1/100",
        "train: step 41/100",
        "train: step 81/100",
        "train: step 100/100",
        "finetune: step 1/100",
        "finetune: step 1",
        "note: a remark",
    ]
    assert "nDCG@10 0.5000 (the best so far) · a 0.2500, b 0.7500" in lines[5]


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal the steps move a bar, and remarks are written above it."""
    screen = _Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "200")
    with TrainingMeter() as meter:
        meter.tell(_step(50))
        meter.tell(NoteEvent("a remark"))
    assert "step 50/100" in screen.getvalue()
    assert "note: a remark" in screen.getvalue()
