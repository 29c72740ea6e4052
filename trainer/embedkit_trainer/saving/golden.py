"""The texts whose ids and vectors a saved model brings, so that what has changed shows when it is opened."""

from __future__ import annotations

_INSTRUCTION = "Given a question, retrieve passages that answer the question"
_QUERIES = (
    "how many moons does Saturn have?",
    "Wie kündige ich meinen Vertrag zum Monatsende?",
    "猫はなぜ箱が好きなのですか",
)
_DOCUMENTS = (
    "Saturn has more known moons than any other planet; most of them were found after the year 2000.",
    "Le contrat se résilie par écrit, au plus tard trente jours avant la fin du mois.",
    "يحب القط الصناديق لأنها ضيقة ودافئة.",
    "def mean(values):\n    return sum(values) / len(values)",
    "No. 7",
)


def golden_texts(default_instruction: str | None) -> list[tuple[str, str, str | None]]:
    """Return (text, side, instruction): several scripts, code, both sides, with and without an instruction."""
    instructions = (default_instruction, None, _INSTRUCTION)
    queries = [(text, "query", told) for text, told in zip(_QUERIES, instructions, strict=True)]
    return [*queries, *((text, "document", None) for text in _DOCUMENTS)]
