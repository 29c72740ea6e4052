"""Recall against queries a second, as an SVG written by hand."""

from __future__ import annotations

import math
from html import escape
from typing import Any

_WIDTH, _HEIGHT = 900, 560
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 250, 74, 64
_LOW = 0.80
_TICKS = [step * 10**power for power in range(7) for step in (1, 2, 5)]
_COLOURS = {
    "embedkit": "#d9480f",
    "faiss": "#1864ab",
    "autofaiss": "#5f3dc4",
    "usearch": "#2b8a3e",
    "hnswlib": "#087f5b",
    "lancedb": "#862e9c",
    "milvus-lite": "#868e96",
}
_DASHES = ("", "7 4", "2 3", "9 3 2 3", "1 5")


def draw(report: dict[str, Any]) -> str:
    """Return an SVG: of every index, the efforts that no other of its own beats in both recall and speed."""
    lines = [(c, front(c["curve"])) for c in report["contenders"]]
    lines = [(c, f) for c, f in _shown(lines) if len(f) > 1]
    rates = [1 / p["cpu"] for _, f in lines for p in f]
    low = max(t for t in _TICKS if t <= min(rates))
    high = min(t for t in _TICKS if t >= max(rates))
    parts = [
        _text(16, 30, f"Recall against speed: {report['rows']:,} × 384 clustered vectors", 18, weight="bold"),
        _text(16, 52, "One thread, one query at a time; queries per CPU second, logarithmic. Up and right is better.", 13),
        *_axes(low, high, report["target"]),
    ]  # fmt: skip
    drawn: dict[str, int] = {}
    for i, (c, points) in enumerate(lines):
        dash = _DASHES[drawn.get(c["tool"], 0) % len(_DASHES)]
        drawn[c["tool"]] = drawn.get(c["tool"], 0) + 1
        colour = _COLOURS.get(c["tool"], "#222")
        wide = 3 if c["tool"] == "embedkit" else 1.6
        at = [(_x(p["recall"]), _y(1 / p["cpu"], low, high)) for p in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        look = f'stroke="{colour}" stroke-width="{wide}" stroke-dasharray="{dash}"'
        parts.append(f'<polyline points="{path}" fill="none" {look}/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{wide:.1f}" fill="{colour}"/>' for x, y in at]
        y = _TOP + 12 + i * 20
        x = _WIDTH - _RIGHT + 18
        parts.append(f'<line x1="{x}" y1="{y - 4}" x2="{x + 26}" y2="{y - 4}" {look}/>')
        parts.append(_text(x + 34, y, f"{c['tool']} {c['setting']}", 12))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="DejaVu Sans, Arial, sans-serif">'
    )
    return "\n".join([head, f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>', *parts, "</svg>", ""])


def front(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the points that none beats in both recall and speed, by rising recall, from the plot's edge on."""
    best = [
        p
        for p in curve
        if p["recall"] >= _LOW and not any(o["recall"] > p["recall"] and o["cpu"] < p["cpu"] for o in curve)
    ]
    return sorted(best, key=lambda p: float(p["recall"]))


def _shown(lines: list[tuple[dict[str, Any], Any]]) -> list[tuple[dict[str, Any], Any]]:
    """Return every tool's lines, of FAISS the five fastest at the recall: more cannot be told apart."""
    own = [x for x in lines if x[0]["tool"] == "faiss" and x[0]["best"]]
    fastest = sorted(own, key=lambda x: float(x[0]["best"]["cpu"]))[:5]
    return [x for x in lines if x[0]["tool"] != "faiss" or any(x is f for f in fastest)]


def _x(recall: float) -> float:
    return _LEFT + (recall - _LOW) / (1 - _LOW) * (_WIDTH - _LEFT - _RIGHT)


def _y(rate: float, low: float, high: float) -> float:
    share = (math.log10(rate) - math.log10(low)) / (math.log10(high) - math.log10(low))
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _axes(low: float, high: float, target: float) -> list[str]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    for i in range(5):
        recall = _LOW + i * 0.05
        x = _x(recall)
        parts.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#e5e5e5"/>')
        parts.append(_text(x, bottom + 20, f"{recall:.2f}", 12, anchor="middle"))
    for tick in _TICKS:
        if low <= tick <= high:
            y = _y(tick, low, high)
            parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#e5e5e5"/>')
            parts.append(_text(_LEFT - 8, y + 4, f"{tick:,}", 12, anchor="end"))
    x = _x(target)
    parts.append(
        f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#999" stroke-dasharray="4 3"/>'
    )
    parts.append(
        _text((_LEFT + right) / 2, _HEIGHT - 18, "recall@10 against exact search", 13, anchor="middle")
    )
    return parts


def _text(x: float, y: float, words: str, size: int, *, weight: str = "normal", anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="#222" font-weight="{weight}">'
        f"{escape(words)}</text>"
    )
