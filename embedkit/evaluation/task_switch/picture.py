"""The confusion matrix as a picture: an SVG written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from embedkit.evaluation.task_switch.data import HELD_OUT_TASKS, TASKS
from embedkit.evaluation.task_switch.report import Report

_CELL = 46
_LEFT, _TOP = 132, 176
_GAP = 40
_SIDE = _CELL * len(TASKS)
_WIDTH = _LEFT + 2 * _SIDE + _GAP + 96
_HEIGHT = _TOP + _SIDE + 62
_WHITE, _BLUE = (255, 255, 255), (8, 48, 107)
_TITLES = {"right": "Training wordings", "held-out": "Held-out wordings"}
Counts = Mapping[str, Mapping[str, int]]


def draw_confusion(report: Report) -> str:
    """Return an SVG: for each asked task, the share of seeds whose first member belongs to each task, in percent."""
    panels = [
        _panel(report.confusion[name], _LEFT + i * (_SIDE + _GAP), _TITLES[name], labels=i == 0)
        for i, name in enumerate(_TITLES)
    ]
    row = report.trained
    accuracy = " · ".join(
        f"{what} {estimate.value:.1%}"
        for what, estimate in (("training wordings", row.switch_right), ("held-out", row.switch_held_out))
        if estimate.value is not None
    )
    parts = [
        _text(16, 30, f"Task switch: {report.facts['embedder']}", size=19, weight="bold"),
        _text(
            16, 52,
            "Which of a seed's own texts ranks first? Rows: the task asked for. Columns: the task found. Percent of the "
            "row's seeds.",
        ),
        _text(16, 71, f"Trained tasks found right: {accuracy} (chance {row.chance:.1%}). {report.facts['seeds']} seeds."),
        *panels,
        _scale(_LEFT + 2 * _SIDE + _GAP + 24),
        _text(16, _HEIGHT - 18, "The diagonal, outlined, is the right answer. * held out of training: no wording of it is a training one. – : no seed.", fill="#555"),
    ]  # fmt: skip
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="DejaVu Sans, Arial, sans-serif">'
    )
    return "\n".join([head, f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>', *parts, "</svg>", ""])


def _panel(counts: Counts, left: int, title: str, *, labels: bool) -> str:
    parts = [_text(left + _SIDE / 2, 98, title, size=15, weight="bold", anchor="middle")]
    for i, task in enumerate(TASKS):
        x = left + i * _CELL + _CELL / 2 + 5
        parts.append(_text(x, _TOP - 8, _label(task), rotate=-40))
        if labels:
            parts.append(_text(left - 8, _TOP + i * _CELL + _CELL / 2 + 5, _label(task), anchor="end"))
    for i, asked in enumerate(TASKS):
        total = sum(counts[asked].values())
        for j, found in enumerate(TASKS):
            share = counts[asked].get(found, 0) / total if total else None
            parts.append(_square(left + j * _CELL, _TOP + i * _CELL, share))
    for i in range(len(TASKS)):
        x, y = left + i * _CELL, _TOP + i * _CELL
        parts.append(
            f'<rect x="{x}" y="{y}" width="{_CELL}" height="{_CELL}" fill="none" stroke="#d9480f" stroke-width="2"/>'
        )
    return "\n".join(parts)


def _square(x: float, y: float, share: float | None) -> str:
    square = f'<rect x="{x}" y="{y}" width="{_CELL}" height="{_CELL}" fill="{_colour(share or 0.0)}" stroke="#ddd"/>'
    words = "–" if share is None else f"{100 * share:.0f}"
    fill = "#fff" if share is not None and share > 0.45 else "#999" if not share else "#222"
    return square + _text(x + _CELL / 2, y + _CELL / 2 + 5, words, anchor="middle", fill=fill, size=14)


def _scale(x: float) -> str:
    steps = 50
    height = _SIDE / steps
    parts = [
        f'<rect x="{x}" y="{_TOP + _SIDE - (i + 1) * height:.1f}" width="16" height="{height + 0.5:.1f}" '
        f'fill="{_colour((i + 0.5) / steps)}"/>'
        for i in range(steps)
    ]
    parts.append(f'<rect x="{x}" y="{_TOP}" width="16" height="{_SIDE}" fill="none" stroke="#999"/>')
    parts += [
        _text(x + 22, _TOP + _SIDE * (1 - share / 100) + 5, f"{share}%") for share in (0, 25, 50, 75, 100)
    ]
    return "\n".join(parts)


def _colour(share: float) -> str:
    mixed = (round(a + (b - a) * share) for a, b in zip(_WHITE, _BLUE, strict=True))
    return "#" + "".join(f"{c:02x}" for c in mixed)


def _label(task: str) -> str:
    return task.replace("_", " ") + (" *" if task in HELD_OUT_TASKS else "")


def _text(
    x: float,
    y: float,
    words: str,
    *,
    size: int = 13,
    anchor: str = "start",
    fill: str = "#222",
    weight: str = "normal",
    rotate: int = 0,
) -> str:
    turned = f' transform="rotate({rotate} {x} {y})"' if rotate else ""
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="{fill}" font-weight="{weight}"'
        f"{turned}>{escape(words)}</text>"
    )
