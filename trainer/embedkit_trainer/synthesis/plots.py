"""The distribution of types and languages as a PNG, the paper's beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from embedkit.errors import InputError, MissingExtraError
from embedkit_trainer.data.files import replaced
from embedkit_trainer.synthesis.comparison import PAPER_TYPES, paper_language, paper_share
from embedkit_trainer.synthesis.filters.words import is_spaced
from embedkit_trainer.synthesis.statistics import Statistics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LANGUAGES = 30
_BAR, _PAPER, _INK, _QUIET, _GRID, _GROUND = "#2a78d6", "#0b0b0b", "#0b0b0b", "#52514e", "#e1e0d9", "#fcfcfb"
_LONGEST_NAME = 24
_Line = tuple[str, float, float | None]  # name, share, the paper's share


def check_png(path: Path) -> None:
    """Refuse what no plot can be written to, before work begins.

    Raises InputError for another ending than .png and for a folder, MissingExtraError where matplotlib is not installed.
    """
    if path.suffix.lower() != ".png" or path.is_dir():
        raise InputError(f"cannot write the plot to {path}: name a file ending in .png")
    try:
        import matplotlib  # noqa: F401
    except ImportError as e:
        raise MissingExtraError("the plot", "synth") from e


def write_png(path: Path, made: Statistics) -> None:
    """Write the plot, whole or not at all. Raises as `check_png` does, and StoreError where the disk is full."""
    check_png(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = [*PAPER_TYPES, *(kind for kind, _ in made.types.most_common() if kind not in PAPER_TYPES)]
    types = [(kind, made.types[kind] / made.rows, paper_share(kind)) for kind in kinds]
    languages = [
        (code, n / made.rows, paper_language(code)) for code, n in made.languages.most_common(_LANGUAGES)
    ]
    rest = made.languages.most_common()[_LANGUAGES:]
    shown: list[_Line] = list(languages)
    if rest:
        shown.append((f"others\n({len(rest)})", sum(n for _, n in rest) / made.rows, None))
    head = 0.9 + 0.28 * len(types)  # inches
    height = head + 3.25
    figure = Figure(figsize=(11, height), dpi=130, facecolor=_GROUND)
    FigureCanvasAgg(figure)
    above = figure.add_axes((0.17, 1 - (head - 0.45) / height, 0.5, (head - 0.9) / height))
    _lying(above, types, f"Types of {made.rows:,} rows (%)")
    below = figure.add_axes((0.05, 0.5 / height, 0.93, 2.4 / height))
    _standing(below, shown, f"Languages of the queries: {len(made.languages)} (%)")
    note = "bars: this set\nlines: E5-mistral's synthetic set\n(arXiv 2401.00368)"
    figure.text(0.74, 1 - 0.5 / height, note, color=_QUIET, fontsize=9, va="top", linespacing=1.6)
    with replaced(path) as beside:
        figure.savefig(beside, format="png", facecolor=_GROUND)


def _lying(axes: Axes, lines: list[_Line], title: str) -> None:
    places = range(len(lines))
    axes.barh(places, [100 * share for _, share, _ in lines], color=_BAR, height=0.62)
    for place, (_, share, paper) in enumerate(lines):
        text = _percent(share)
        if paper is not None:
            axes.plot([100 * paper] * 2, [place - 0.42, place + 0.42], color=_PAPER, linewidth=1.8)
            text += f"  (paper {_percent(paper)})"
        axes.annotate(
            text, (100 * max(share, paper or 0), place), (6, 0), textcoords="offset points", va="center",
            fontsize=8, color=_QUIET,
        )  # fmt: skip
    axes.set_yticks(list(places), [_name(name) for name, _, _ in lines], fontsize=9)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.set_xlim(0, 1.25 * max(1.0, *(100 * max(share, paper or 0) for _, share, paper in lines)))
    _bare(axes, title, "left")


def _standing(axes: Axes, lines: list[_Line], title: str) -> None:
    places = range(len(lines))
    axes.bar(places, [100 * share for _, share, _ in lines], color=_BAR, width=0.62)
    for place, (_, share, paper) in enumerate(lines):
        if paper is not None:
            axes.plot([place - 0.42, place + 0.42], [100 * paper] * 2, color=_PAPER, linewidth=1.8)
        axes.annotate(
            _percent(share), (place, 100 * max(share, paper or 0)), (0, 4), textcoords="offset points", ha="center",
            fontsize=7, color=_QUIET,
        )  # fmt: skip
    axes.set_xticks(list(places), [_name(name) for name, _, _ in lines], fontsize=8)
    axes.set_xlim(-0.6, max(len(lines), 12) - 0.4)
    _bare(axes, title, "bottom")


def _bare(axes: Axes, title: str, kept: str) -> None:
    """Leave an axis without its numbers: every bar says its own."""
    (axes.set_xticks if kept == "left" else axes.set_yticks)([])
    axes.set_title(title, loc="left", fontsize=11, color=_INK, pad=10)
    axes.tick_params(length=0, labelcolor=_INK)
    axes.set_facecolor(_GROUND)
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(side == kept)
        axes.spines[side].set_color(_GRID)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}" if share >= 0.0005 or not share else "<0.1"


def _name(name: str) -> str:
    """Return a name that the plot's font has, with nothing in it that matplotlib reads as mathematics."""
    shown = name if is_spaced(name) else ascii(name)[1:-1]
    shown = shown if len(shown) <= _LONGEST_NAME else f"{shown[: _LONGEST_NAME - 1]}…"
    return shown.replace("$", r"\$")
