"""The acceptance table of the bundled embedder: which cases a row looks at, and when it is passed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean

ENGLISH = ("xquad en", "medquad_eval", "cosqa_dev", "banking77_similar", "clinc150_similar")
XQUAD = ("de", "es", "ru", "zh", "ar", "hi", "th", "tr", "vi", "el", "ro")
OTHERS = ("jaquad_dev", "jsquad", "arcd_test", "iapp_th_test", "norquad_test")
SAME = (*(f"xquad {lang}" for lang in XQUAD), *OTHERS)
CROSS = tuple(f"xquad {lang} -> en" for lang in XQUAD)
# The supported languages: all are shown, and the mean is over all of them.
NTREX = (
    *(
        "ar",
        "bg",
        "bn",
        "ca",
        "cs",
        "da",
        "de",
        "el",
        "es",
        "et",
        "fa",
        "fi",
        "fr",
        "he",
        "hi",
        "hr",
        "hu",
        "id",
    ),
    *(
        "it",
        "ja",
        "ko",
        "lt",
        "lv",
        "ms",
        "nb",
        "nl",
        "pl",
        "pt",
        "ro",
        "ru",
        "sk",
        "sl",
        "sr-Cyrl",
        "sv",
        "sw",
    ),
    *("ta", "th", "tr", "uk", "ur", "vi", "zh-CN", "zh-TW"),
)
BITEXT = tuple(f"ntrex {lang} -> en" for lang in NTREX)
SWITCH = ("sib200_switch translation", "sib200_switch topic")

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Column:
    """What one embedder reaches under one way of asking: by measure, then by case."""

    measures: Mapping[str, Figures]
    minilm: Figures
    bm25: Figures


@dataclass(frozen=True)
class Verdict:
    """Whether a row is passed, the figures that decided, and the sets that miss its bar."""

    passed: bool
    figures: Figures
    misses: list[str]


@dataclass(frozen=True)
class Row:
    """One line of the table; `measure` names the figure that is shown for each of `cases`."""

    name: str
    goal: str
    cases: tuple[str, ...]
    measure: str
    judge: Callable[[Column], Verdict]


def _english(column: Column) -> Verdict:
    ours = _of(column, "ndcg", ENGLISH)
    misses = [n for n in ENGLISH if ours[n] < 0.98 * column.minilm[n]]
    average, bar = fmean(ours.values()), _mean(column.minilm, ENGLISH)
    least = min(_share(ours[n], column.minilm[n]) for n in ENGLISH)
    return Verdict(
        not misses and average > bar, {"mean": average, "MiniLM": bar, "least share": least}, misses
    )


def _same_language(column: Column) -> Verdict:
    ours = _of(column, "ndcg", SAME)
    misses = [n for n in SAME if ours[n] <= column.minilm[n]]
    average, bar = fmean(ours.values()), _mean(column.minilm, SAME)
    passed = not misses and average >= 2 * bar
    return Verdict(passed, {"mean": average, "MiniLM": bar, "times": _share(average, bar)}, misses)


def _fused(column: Column) -> Verdict:
    ours = _of(column, "fused", SAME)
    misses = [n for n in SAME if ours[n] < 0.98 * column.bm25[n]]
    average, bar = fmean(ours.values()), _mean(column.bm25, SAME)
    least = min(_share(ours[n], column.bm25[n]) for n in SAME)
    return Verdict(not misses and average > bar, {"mean": average, "BM25": bar, "least share": least}, misses)


def _cross_lingual(column: Column) -> Verdict:
    ours = _of(column, "ndcg", CROSS)
    misses = [n for n in CROSS if ours[n] <= max(column.minilm[n], column.bm25[n])]
    average = fmean(ours.values())
    figures = {"mean": average, "MiniLM": _mean(column.minilm, CROSS), "BM25": _mean(column.bm25, CROSS)}
    return Verdict(not misses and average >= 0.55, figures, misses)


def _bitext(column: Column) -> Verdict:
    average = fmean(_of(column, "accuracy", BITEXT).values())
    return Verdict(average >= 0.60, {"mean": average, "share of the aim": average / 0.75}, [])


def _switch(column: Column) -> Verdict:
    right, other = _of(column, "ndcg", SWITCH), _of(column, "other", SWITCH)
    gaps = {n: right[n] - other[n] for n in SWITCH}
    average = fmean(right.values())
    figures = {"mean": average, **{f"{n.split()[1]}: right - other": gap for n, gap in gaps.items()}}
    misses = [n for n, gap in gaps.items() if gap < 0.10]
    return Verdict(not misses and average >= 0.35, figures, misses)


def _kept(measure: str, share: float) -> Callable[[Column], Verdict]:
    def judge(column: Column) -> Verdict:
        cases = (*ENGLISH, *SAME)
        small, whole = fmean(_of(column, measure, cases).values()), _mean(column.measures["ndcg"], cases)
        return Verdict(
            small >= share * whole, {"mean": small, "whole": whole, "kept": _share(small, whole)}, []
        )

    return judge


ROWS = {
    row.name: row
    for row in (
        Row("english", ">= 98% of MiniLM on each, above it on average", ENGLISH, "ndcg", _english),
        Row(
            "same-language",
            "dense above MiniLM on every one, mean >= 2 x MiniLM's",
            SAME,
            "ndcg",
            _same_language,
        ),
        Row("fused", ">= 0.98 x BM25 alone on every one, above it on average", SAME, "fused", _fused),
        Row(
            "cross-lingual",
            "above BM25 and MiniLM on every one, mean >= 0.55",
            CROSS,
            "ndcg",
            _cross_lingual,
        ),
        Row("bitext", "mean accuracy@1 >= 0.60, aim 0.75", BITEXT, "accuracy", _bitext),
        Row(
            "switch",
            "right instruction >= 0.10 above the other on both, mean >= 0.35",
            SWITCH,
            "ndcg",
            _switch,
        ),
        Row("int8", "int8 vectors keep >= 98% of the mean", (*ENGLISH, *SAME), "int8", _kept("int8", 0.98)),
        Row("dim128", "128 dimensions keep >= 94% of the mean", (*ENGLISH, *SAME), "dim128", _kept("dim128", 0.94)),
    )
}  # fmt: skip


def _of(column: Column, measure: str, cases: tuple[str, ...]) -> dict[str, float]:
    return {n: column.measures[measure][n] for n in cases}


def _mean(figures: Figures, cases: tuple[str, ...]) -> float:
    return fmean(figures[n] for n in cases)


def _share(value: float, bar: float) -> float:
    return value / bar if bar else float("inf")
