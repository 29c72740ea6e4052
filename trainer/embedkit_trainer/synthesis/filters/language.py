"""Texts in another language than the row says, as models write them now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from embedkit.errors import InputError
from embedkit_trainer.synthesis.filters.example import Dropped, Example, Outcome

#: A text to its likeliest language and the confidence, 0 to 1.
Identify = Callable[[str], tuple[str, float]]

# What no detector tells apart for sure; a row is not dropped for a language of its own group.
_GROUPS = (
    "id ms jv su ace", "hr sr bs sl", "no nb nn da", "cs sk", "gl pt", "ca oc", "zh yue wuu", "fa ur uzs ps sd sdh tg ku",
    "af nl fy", "hi mr ne sa", "bn as", "he yi hbo", "mk bg", "kk ky tt ba uz", "az tr crh tk", "el grc",
    "zu xh st nso sn", "ga gd", "rw lg sw ln", "tl bcl", "it vec lij la", "be uk", "lv ltg",
)  # fmt: skip
_GROUP = {code: group.split() for group in _GROUPS for code in group.split()}
_SHORTEST = 20  # letters; "res ipsa loquitur" and names are of any language
_SHORTEST_SCRIPT = 4  # where the script alone decides


@dataclass(frozen=True, slots=True)
class LanguageFilter:
    """Drop rows whose query, positive or a negative is surely in another language than `lang_q` and `lang_d` say.

    `identify` tells the language of a text, `known` which ones it can tell. Surely: with a confidence of `sure`, in a
    text long enough, and no close relative. Rows that name no language pass.
    """

    identify: Identify
    known: frozenset[str]
    sure: float = 0.8

    name: ClassVar[str] = "language"
    parallel: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.sure <= 1:
            raise InputError(f"the language's confidence is {self.sure}: give more than 0 and at most 1")

    def check(self, batch: Sequence[Example]) -> list[Outcome]:
        """Return one outcome for each example."""
        return [self._check(example) for example in batch]

    def _check(self, example: Example) -> Outcome:
        for key, text, said in _texts(example):
            expected = said.strip().replace("_", "-").split("-")[0].lower()
            found, confidence = self.identify(text)
            if found == expected or found not in self.known or found in _GROUP.get(expected, ()):
                continue
            letters = sum(map(str.isalpha, text[:200]))
            by_script = confidence >= 1.0
            if not by_script and (
                expected not in self.known or confidence < self.sure or letters < _SHORTEST
            ):
                continue
            if letters >= _SHORTEST_SCRIPT:
                detail = f"{key} is said to be {expected}, but is {found} ({confidence:.0%} sure)"
                return Dropped(example, "other-language", detail)
        return example


def _texts(example: Example) -> Iterator[tuple[str, str, str]]:
    row = example.row
    queries, documents = example.language("q"), example.language("d")
    if queries:
        yield "query", row.query, queries
    if documents:
        yield "positive", row.positive, documents
        for place, text in enumerate(row.negatives):
            yield f"negatives[{place}]", text, documents
