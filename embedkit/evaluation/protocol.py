"""Which side of an evaluation carries the instruction, and whether its vectors are of unit length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from embedkit.tasks import BUILT_IN_TASKS, Task, resolve_instruction

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedkit.embedder import Embedder

ProtocolName = Literal["one-sided", "paper"]
# What an instruction-trained embedder is told where nobody says it better.
DEFAULT_INSTRUCTIONS: Mapping[str, str] = {
    "sts": BUILT_IN_TASKS["paraphrase"].instruction,
    "bitext": BUILT_IN_TASKS["bitext"].instruction,
    "classification": "Identify the category that the given text belongs to",
    "clustering": "Identify the topic that the given text is about",
    "passkey": "Given a question about a person's pass key, retrieve the note that holds it",
}
_SLICE = 1024
Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class GroupScore:
    """The measures of one group of records (a language pair, a text length), or of all of them.

    A measure is None where the group is too small or too uniform to have one.
    """

    group: str
    count: int
    measures: Mapping[str, float | None]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"group": self.group, "count": self.count, **self.measures}


@dataclass(frozen=True, slots=True)
class KindReport:
    """What the evaluation of one kind found: all records, then each group; `facts` say how it was measured."""

    overall: GroupScore
    groups: tuple[GroupScore, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**self.facts, "overall": self.overall.to_dict(), "groups": [g.to_dict() for g in self.groups]}


class ProtocolEncoder:
    """Encode the two sides of an evaluation, or texts that have no side, by a protocol.

    "one-sided" is embedkit's own rule: a query carries the instruction, a document never does, and a text without a
    side (classification, clustering) is encoded bare, as an index holds it. "paper" is how the authors of E5-mistral
    evaluate all but retrieval: every text is rendered as a query, instruction included.
    """

    def __init__(
        self,
        embedder: Embedder,
        protocol: ProtocolName = "one-sided",
        instruction: str | None = None,
        advance: Advance = lambda count: None,
    ) -> None:
        self.embedder = embedder
        self.protocol: ProtocolName = protocol
        self.instruction = instruction
        self._advance = advance

    def queries(self, texts: Iterable[str]) -> NDArray[np.float32]:
        """Encode the query side: float32 `[n, dim]`, unit rows."""
        return self._encode(texts, as_query=True)

    def documents(self, texts: Iterable[str]) -> NDArray[np.float32]:
        """Encode the document side: float32 `[n, dim]`, unit rows."""
        return self._encode(texts, as_query=self.protocol == "paper")

    def items(self, texts: Iterable[str], *, normalize: bool = True) -> NDArray[np.float32]:
        """Encode texts that have no side: float32 `[n, dim]`, of the embedder's own length without `normalize`."""
        return self._encode(texts, as_query=self.protocol == "paper", normalize=normalize)

    def instructed(self, sides: int) -> str:
        """Say in words which side carries the instruction; `sides` is 1 where the texts have none."""
        if self.instruction is None:
            return "none"
        if self.protocol == "paper":
            return "every text" if sides == 1 else "both sides"
        return "none" if sides == 1 else "the query side"

    def _encode(self, texts: Iterable[str], *, as_query: bool, normalize: bool = True) -> NDArray[np.float32]:
        import numpy as np

        template = self.embedder.info.template
        rows = [
            template.render_query(t, self.instruction) if as_query else template.render_document(t)
            for t in texts
        ]
        # A text that is paired with many others is encoded once.
        place = {text: i for i, text in enumerate(dict.fromkeys(rows))}
        unique = list(place)
        vectors = np.empty((len(unique), self.embedder.info.dim), dtype=np.float32)
        for start in range(0, len(unique), _SLICE):
            part = unique[start : start + _SLICE]
            vectors[start : start + _SLICE] = self.embedder.encode_rendered(part, normalize=normalize)
            self._advance(len(part))
        return vectors[[place[text] for text in rows]]


def choose_instruction(
    embedder: Embedder, kind: str, task: Task | None = None, instruction: str | None = None
) -> str | None:
    """Return the instruction of an evaluation: the one given, else the kind's where the embedder was trained on any."""
    if task is None and instruction is None:
        return DEFAULT_INSTRUCTIONS[kind] if embedder.info.instruction_trained else None
    return resolve_instruction(task, instruction)


def group_rows(keys: Sequence[str]) -> dict[str, list[int]]:
    """Return the positions of every key, keys sorted."""
    rows: dict[str, list[int]] = {}
    for i, key in enumerate(keys):
        rows.setdefault(key, []).append(i)
    return dict(sorted(rows.items()))


def mean_of(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that there are; None where there is none."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
