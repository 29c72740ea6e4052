"""Task types: which fields an answer holds, their JSON schema, and how an answer becomes a training row."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Where generated rows say that they come from.
SOURCE = "synthetic"
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class TaskType:
    """Describe one type of task: the fields of its answers by what they are in a training row.

    `pool`: its tasks are brainstormed, and one of them is each example's instruction; else `instruction` is, with
    {language_q} and {language_d} filled in. `pair`: query and documents are in two languages. `share` is its part of
    the examples, relative to the others'. `words` says how long each field is expected to be: a number, or the name
    of the placeholder that says it.
    """

    name: str
    query: str
    positive: str
    negative: str | None = None
    pool: bool = True
    instruction: str = ""
    pair: bool = False
    share: float = 0.0
    words: Mapping[str, int | str] | None = None

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of an answer's fields, in order."""
        names = (self.query, self.positive)
        return names if self.negative is None else (*names, self.negative)

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of one answer."""
        return _object({name: {"type": "string"} for name in self.fields})

    def expected_words(self, placeholders: Mapping[str, str]) -> int:
        """Return how many words an answer probably holds under these placeholders."""
        total = 0
        for name in self.fields:
            said = (self.words or {}).get(name, 60)
            if isinstance(said, str):
                number = _NUMBER.search(placeholders.get(said, ""))
                said = int(number[0]) if number else 100
            total += said
        return total

    def row(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """Return the training row of a stored example."""
        answer, number = example["answer"], example["request"]
        query_language, document_language = example["languages"]
        kept = ("request", "type", "model", "template", "placeholders", "tokens", "cost")
        return {
            "id": f"{self.name}-{number}",
            "task": self.name,
            "instruction": example["instruction"],
            "query": answer[self.query],
            "positive": answer[self.positive],
            "negatives": [answer[self.negative]] if self.negative is not None else [],
            "lang_q": query_language,
            "lang_d": document_language,
            "source": SOURCE,
            "metadata": {key: example[key] for key in kept},
        }


#: The six types of E5-mistral (arXiv 2401.00368, appendix C), with the paper's numbers of examples in thousands.
BUILT_IN: tuple[TaskType, ...] = (
    TaskType(
        "short-long",
        query="user_query",
        positive="positive_document",
        negative="hard_negative_document",
        share=167,
        words={"user_query": 12, "positive_document": "num_words", "hard_negative_document": "num_words"},
    ),
    TaskType(
        "long-short",
        query="input_text",
        positive="label",
        negative="misleading_label",
        share=122,
        words={"input_text": "num_words", "label": 4, "misleading_label": 4},
    ),
    TaskType(
        "sts",
        query="S1",
        positive="S2",
        negative="S3",
        pool=False,
        instruction="Retrieve semantically similar text.",
        share=99,
        words={"S1": 25, "S2": 25, "S3": 25},
    ),
    TaskType(
        "bitext",
        query="S1",
        positive="S2",
        negative="S3",
        pool=False,
        instruction="Retrieve the {language_d} translation of this {language_q} text.",
        pair=True,
        share=89,
        words={"S1": 25, "S2": 25, "S3": 25},
    ),
    TaskType(
        "long-long",
        query="input",
        positive="positive_document",
        share=17,
        words={"input": 250, "positive_document": 250},
    ),
    TaskType(
        "short-short",
        query="input",
        positive="positive_document",
        share=13,
        words={"input": 12, "positive_document": 12},
    ),
)


def pool_schema() -> dict[str, Any]:
    """Return the JSON schema of a brainstorm's answer."""
    return _object({"tasks": {"type": "array", "items": {"type": "string"}}})


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }
