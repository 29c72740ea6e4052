"""The reranker contract: a plug-in gives `info` and `_score`, the base class checks and counts."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from embedkit.errors import EmbedkitError, InputError, RerankerError
from embedkit.texts import is_visible, without_surrogates

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class RerankWarning(UserWarning):
    """Warn of what a reranker did not read or did not score."""


@dataclass(frozen=True, slots=True)
class RerankerInfo:
    """Describe a reranker: `kind` is what it is made of, such as "cross-encoder" or "llm".

    `max_length` counts the tokens that it reads of one pair, special ones included; what a document has beyond is cut.
    `instruction_trained` says whether it takes an instruction; others score the bare query.
    """

    name: str
    max_length: int
    kind: str
    instruction_trained: bool = False


class Scores(NamedTuple):
    """One score a text, float [n], higher is better; the tokens that were read for them, 0 where nobody counts."""

    values: Any
    tokens: int = 0


class Reranker(ABC):
    """Score how well each of some texts answers a query, reading both together.

    A plug-in author sets `info` and writes `_score`.
    """

    info: RerankerInfo

    @classmethod
    def open(cls, name_or_path: str, *args: Any, **options: Any) -> Reranker:
        """Return the reranker for `name_or_path`; the registry calls this. Override it to take a path.

        Name the options you take (`*, limit: int | None = None`): the registry refuses others by name.
        """
        del name_or_path
        return cls(*args, **options)

    @abstractmethod
    def _score(self, query: str, texts: Sequence[str], instruction: str | None) -> Scores:
        """Return one finite number a text, higher is better, in any float dtype.

        `instruction` is None where `info.instruction_trained` is false; a text may be empty, and is valid Unicode.
        """

    def score(
        self, query: str, texts: Sequence[str], *, instruction: str | None = None
    ) -> NDArray[np.float32]:
        """Return a score for each text, float32 `[n]`, higher is better; of use for the order under one query alone.

        Raises InputError for an empty query or a bare string of texts, RerankerError where the reranker returns NaN or
        a wrong number of scores. Warns where it takes no instruction and one is given.
        """
        values: NDArray[np.float32] = self.measured(query, texts, instruction=instruction).values
        return values

    def measured(self, query: str, texts: Sequence[str], *, instruction: str | None = None) -> Scores:
        """Score as `score` does, and return with it the tokens that were read."""
        import numpy as np

        checked = _checked(query, texts)
        if instruction is not None and not self.info.instruction_trained:
            self._warn_untrained()
            instruction = None
        if not checked:
            return Scores(np.zeros(0, dtype=np.float32))
        try:
            values, tokens = self._score(without_surrogates(query), checked, instruction)
            given = np.asarray(values)
            scores = given.astype(np.float32)
        except (EmbedkitError, OSError, MemoryError):
            raise
        except Exception as e:
            raise RerankerError(
                f"reranker {self.info.name!r} failed on {len(checked)} texts: {type(e).__name__}: {e}"
            ) from e
        if scores.shape != (len(checked),):
            raise RerankerError(
                f"reranker {self.info.name!r} returned scores of shape {scores.shape}, expected ({len(checked)},): "
                "mend its _score"
            )
        finite = np.isfinite(scores)
        if not finite.all():
            raise RerankerError(
                f"reranker {self.info.name!r} returned NaN or infinity for {int((~finite).sum())} of {len(checked)} "
                "texts: no order can be made of it; try dtype float32, or another model"
            )
        return Scores(scores, int(tokens))

    def _warn_untrained(self) -> None:
        if self.__dict__.get("_warned"):
            return
        self.__dict__["_warned"] = True
        warnings.warn(
            f"{self.info.name} takes no instruction: it scores the bare query",
            RerankWarning,
            stacklevel=4,
        )


def _checked(query: str, texts: Sequence[str]) -> list[str]:
    if not isinstance(query, str):
        raise InputError(f"query is {type(query).__name__}, not str")
    if not is_visible(query):
        raise InputError("the query is empty: give it some text")
    if isinstance(texts, str):
        raise InputError(f"score takes a list of texts, got one string: write [{texts[:30]!r}]")
    if not isinstance(texts, Iterable):
        raise InputError(f"texts is {texts!r:.60}, {type(texts).__name__}: give a list of texts")
    checked = list(texts)
    for i, text in enumerate(checked):
        if not isinstance(text, str):
            raise InputError(f"text {i} is {type(text).__name__}, not str")
    return [without_surrogates(text) for text in checked]
