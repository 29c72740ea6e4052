"""Compliance: are the texts as long as the prompt asked for, and is no placeholder left in them?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from embedkit.errors import InputError
from embedkit_trainer.synthesis.filters.example import Dropped, Example, Outcome
from embedkit_trainer.synthesis.filters.words import count_words, is_spaced

# Estimates of words where there are no spaces are allowed this much more.
_UNSPACED_SLACK = 1.6
_WORDS = re.compile(
    r"(?:less|fewer) than (?P<below>\d+)|(?:at most|up to) (?P<most>\d+)|(?:at least|more than) (?P<least>\d+)"
    r"|(?P<first>\d+)\s*(?:to|-|–)\s*(?P<last>\d+)|(?P<about>\d+)"
)
#: The text that `num_words` speaks of, by type; where the table is silent, the positive.
_LONG_TEXT = {"long-short": ("query",), "long-long": ("query", "positive")}
#: Fewest and most words of what `unit` asks for.
_UNITS = {"phrase": (1, 15), "sentence": (2, 60), "passage": (15, None)}
_SLOT = re.compile(r"\{\s*([a-z][a-z0-9_]*)\s*\}")
# Names that no text of the world has in braces by chance.
_KNOWN_SLOTS = frozenset(
    ("query_length", "query_type", "num_words", "high_score", "low_score", "user_query", "positive_document",
     "hard_negative_document", "input_text", "misleading_label", "task_definition")
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LengthFilter:
    """Drop rows that do not keep to what was drawn for them, and rows with an unfilled `{placeholder}`.

    `num_words` of the long text may be missed by `factor` either way, the limits of `query_length` (`less than 5
    words`, `5 to 15 words`, `at least 10 words`) and those of `unit` (a phrase has at most 15 words, a sentence 60, a
    passage at least 15) by `slack`: models count badly, and a limit met nearly is met. What a row does not say is not
    checked. Words of scripts without spaces are estimated, and judged more mildly.
    """

    factor: float = 2.0
    slack: float = 1.25

    name: ClassVar[str] = "lengths"
    parallel: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name, value in (("factor of num_words", self.factor), ("slack of query_length", self.slack)):
            if not value >= 1:
                raise InputError(f"the {name} is {value}: give 1 or more")

    def check(self, batch: Sequence[Example]) -> list[Outcome]:
        """Return one outcome for each example."""
        return [self._check(example) for example in batch]

    def _check(self, example: Example) -> Outcome:
        drawn = example.placeholders
        texts = {"query": example.row.query, "positive": example.row.positive}
        if slot := _unfilled(example, drawn):
            return Dropped(example, "unfilled-placeholder", f"a text still holds {{{slot}}}")
        limits = word_limits(drawn.get("query_length"))
        if limits and (seen := _outside(texts["query"], *limits, self.slack)) is not None:
            detail = f"the query has {seen:.0f} words, asked for {drawn['query_length']}"
            return Dropped(example, "query-length", detail)
        limits = word_limits(drawn.get("num_words"))
        for key in _LONG_TEXT.get(example.type, ("positive",)) if limits else ():
            if limits and (seen := _outside(texts[key], *limits, self.factor)) is not None:
                detail = f"{key} has {seen:.0f} words, asked for {drawn['num_words']}"
                return Dropped(example, "num-words", detail)
        unit = drawn.get("unit")
        for key, text in texts.items() if isinstance(unit, str) and unit in _UNITS else ():
            if (seen := _outside(text, *_UNITS[str(unit)], self.slack)) is not None:
                return Dropped(example, "unit", f"{key} has {seen:.0f} words, asked for a {unit}")
        return example


def word_limits(said: Any) -> tuple[int, int | None] | None:
    """Return the fewest and the most words that a placeholder asks for: `50`, `5 to 15 words`; None for neither."""
    if isinstance(said, bool) or not isinstance(said, int | str):
        return None
    found = _WORDS.search(str(said).lower())
    if found is None:
        return None
    n = {name: int(digits) for name, digits in found.groupdict().items() if digits}
    if "below" in n:
        return 0, max(0, n["below"] - 1)
    about = n.get("about")
    return n.get("least", n.get("first", about or 0)), n.get("most", n.get("last", about))


def _outside(text: str, fewest: int, most: int | None, slack: float) -> float | None:
    """Return the count of words where it lies outside the limits, None where it keeps to them."""
    words = count_words(text)
    if not is_spaced(text):
        slack *= _UNSPACED_SLACK
    low = fewest / slack
    high = float("inf") if most is None else most * slack
    return None if low <= words <= high else words


def _unfilled(example: Example, drawn: Mapping[str, Any]) -> str | None:
    row = example.row
    for text in (row.query, row.positive, *row.negatives):
        if "{" in text:
            for name in _SLOT.findall(text):
                if name in drawn or name in _KNOWN_SLOTS:
                    return str(name)
    return None
