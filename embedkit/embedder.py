"""The embedder contract: a plug-in gives `info` and `_embed`, the base class gives everything else."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from embedkit.contract import EmbedderInfo
from embedkit.errors import EmbedderError, EmbedkitError, InputError
from embedkit.tasks import Task, resolve_instruction
from embedkit.texts import half_surrogate, is_visible, without_surrogates

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer


class InstructionWarning(UserWarning):
    """Warn that an instruction goes to an embedder that was not trained on instructions."""


class LengthWarning(UserWarning):
    """Warn that an instruction is so long that the embedder reads nothing of the query after it."""


class Embedder(ABC):
    """Turn texts into unit vectors; queries may carry an instruction, documents never do.

    A plug-in author sets `info` and writes `_embed`. Optional: `tokenizer` (exact token counts and
    chunking by tokens), `window` (how many texts one `_embed` call takes; the texts of a call are
    close in length, because the base class sorts them) and `parallel` (how many threads may call at a time).
    """

    info: EmbedderInfo
    window: ClassVar[int] = 64
    parallel: ClassVar[int] = 1

    @classmethod
    def open(cls, name_or_path: str, *args: Any, **options: Any) -> Embedder:
        """Return the embedder for `name_or_path`; the registry calls this. Override it to take a path.

        Name the options you take (`*, limit: int | None = None`): the registry refuses others by name.
        """
        del name_or_path
        return cls(*args, **options)

    @abstractmethod
    def _embed(self, texts: Sequence[str]) -> NDArray[np.floating[Any]]:
        """Return one row per text, shape `[len(texts), dim]` (`full_dim` where set), any float dtype, any length.

        The texts are rendered already (template, instruction); truncate them at `info.max_length` tokens.
        """

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's own fast tokenizer, or None where there is none to be had (a remote model)."""
        return None

    @property
    def fingerprint(self) -> str:
        """The hash of everything that decides a document's vector; see `EmbedderInfo.fingerprint`."""
        return self.info.fingerprint()

    def encode_query(
        self,
        texts: Sequence[str],
        task: str | Task | None = None,
        instruction: str | None = None,
    ) -> NDArray[np.float32]:
        """Encode queries under a task or a free instruction.

        Returns float32 `[n, dim]`, rows of unit length (all zeros where the embedder knows no token of
        the text). Raises InputError for a bare string, a text without a visible character or both `task` and
        `instruction`; UnknownNameError for an unknown task; EmbedderError where the embedder returns NaN or a wrong
        shape.
        """
        sentence = self.instruction_for(task, instruction)
        if sentence is not None:
            self._warn_untrained()
        checked = _checked(texts, "query")
        if sentence is not None and checked:
            self._warn_crowded(sentence)
        return self._encode([self.info.template.render_query(t, sentence) for t in checked])

    def encode_document(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode documents, bare: float32 `[n, dim]`, rows of unit length. Raises as `encode_query` does.

        A document of zero-width and control characters alone is no error: its row is all zeros, no query finds it.
        """
        checked = _checked(texts, "document")
        return self._encode([self.info.template.render_document(t) if is_visible(t) else "" for t in checked])

    def encode_rendered(self, texts: Sequence[str], *, normalize: bool = True) -> NDArray[np.float32]:
        """Encode texts exactly as they are, no template added: float32 `[n, dim]`. Raises as `encode_query` does.

        For protocols that render a text in their own way (`embedkit.evaluation.protocol`). With `normalize=False` the
        rows keep the length that the embedder gave them, which some embedders have made 1 already.
        """
        return self._encode([t if is_visible(t) else "" for t in _checked(texts, "rendered")], normalize)

    def instruction_for(self, task: str | Task | None, instruction: str | None) -> str | None:
        """Return the instruction that `encode_query` uses for these arguments, None for a bare query."""
        if task is None and instruction is None:
            task = self.info.default_task
        return resolve_instruction(task, instruction)

    def render_query(self, text: str, task: str | Task | None = None, instruction: str | None = None) -> str:
        """Return the exact string that `encode_query` encodes for `text`."""
        return self.info.template.render_query(text, self.instruction_for(task, instruction))

    def room_for_query(self, instruction: str | None = None) -> int:
        """Return how many tokens of a query are read beside an instruction; below 1: none."""
        return self.info.max_length - self.count_tokens([self.info.template.render_query("", instruction)])[0]

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count each text's tokens, special tokens included and untruncated.

        Without a tokenizer this is an estimate: one token for every four bytes of UTF-8. Half a surrogate pair, which
        cannot be encoded, counts as a question mark.
        """
        tokenizer = self.tokenizer
        if tokenizer is None:
            return [2 + len(t.encode("utf-8", "replace")) // 4 for t in texts]
        return [len(e.ids) for e in tokenizer.encode_batch_fast([without_surrogates(t) for t in texts])]

    def _encode(self, texts: list[str], normalize: bool = True) -> NDArray[np.float32]:
        """Return the rows of rendered texts; that of an empty one is all zeros, and the model never sees it."""
        import numpy as np

        out = np.zeros((len(texts), self.info.dim), dtype=np.float32)
        order = sorted((i for i, text in enumerate(texts) if text), key=lambda i: -len(texts[i]))
        for start in range(0, len(order), self.window):
            rows = order[start : start + self.window]
            sorted_texts = [texts[i] for i in rows]
            vectors = self._check(self._embedded(sorted_texts), sorted_texts)
            out[rows] = _unit(vectors) if normalize else vectors
        return out

    def _embedded(self, texts: list[str]) -> Any:
        try:
            return self._embed(texts)
        except (EmbedkitError, OSError, MemoryError):
            raise
        except Exception as e:
            raise EmbedderError(
                f"embedder {self.info.name!r} failed on {len(texts)} texts, the first being {_short(texts[0])!r}: "
                f"{type(e).__name__}: {e}"
            ) from e

    def _check(self, returned: Any, texts: list[str]) -> NDArray[np.float64]:
        import numpy as np

        try:
            vectors = np.asarray(returned).astype(np.float64)
        except (TypeError, ValueError, RuntimeError) as e:
            raise EmbedderError(
                f"embedder {self.info.name!r} returned {type(returned).__name__}, which is no array of floats "
                f"({e}): mend its _embed"
            ) from e
        expected = (len(texts), self.info.full_dim or self.info.dim)
        if vectors.shape != expected:
            raise EmbedderError(
                f"embedder {self.info.name!r} returned vectors of shape {vectors.shape}, expected {expected}: "
                "mend its _embed or its info.dim"
            )
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            text = texts[int(np.argmin(finite))]
            raise EmbedderError(
                f"embedder {self.info.name!r} returned NaN or infinity for {int((~finite).sum())} of "
                f"{len(texts)} texts, the first being {_short(text)!r}: nothing was stored; mend the embedder"
            )
        return vectors[:, : self.info.dim]

    def _warn_untrained(self) -> None:
        if self.info.instruction_trained or self.__dict__.get("_warned"):
            return
        self.__dict__["_warned"] = True
        warnings.warn(
            f"{self.info.name} was not trained on instructions: it encodes the instruction as part of the "
            "query's text, and rankings may change little or for the worse",
            InstructionWarning,
            stacklevel=3,
        )

    def _warn_crowded(self, sentence: str) -> None:
        # A token of fewer than two bytes is rare: what is far from the limit is not counted.
        if 2 * len(sentence.encode()) < self.info.max_length or self.__dict__.get("_crowded"):
            return
        if self.room_for_query(sentence) < 1:
            self.__dict__["_crowded"] = True
            warnings.warn(
                f"the instruction fills the {self.info.max_length:,} tokens that {self.info.name} reads: nothing of the "
                "query is encoded; shorten the instruction",
                LengthWarning,
                stacklevel=3,
            )


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale rows to unit length and leave zero rows; by the peak first, so that no square over- or underflows."""
    import numpy as np

    peak = np.abs(vectors).max(axis=1, keepdims=True)
    scaled = np.divide(vectors, peak, out=np.zeros_like(vectors), where=peak > 0)
    norm = np.linalg.norm(scaled, axis=1, keepdims=True)
    unit: NDArray[np.float64] = np.divide(scaled, norm, out=scaled, where=norm > 0)
    return unit


def _short(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _checked(texts: Sequence[str], what: str) -> list[str]:
    if isinstance(texts, str):
        raise InputError(
            f"encode_{what} takes a list of texts, got one string: write [{_short(texts, 30)!r}]"
        )
    checked = list(texts)
    for i, text in enumerate(checked):
        if not isinstance(text, str):
            raise InputError(f"{what} {i} is {type(text).__name__}, not str")
        if not text.strip():
            raise InputError(f"{what} {i} is empty: give it some text")
        if what == "query" and not is_visible(text):
            raise InputError(f"{what} {i} holds no visible character: give it some text")
        if (place := half_surrogate(text)) is not None:
            raise InputError(
                f"{what} {i} holds half a surrogate pair at character {place}, which no encoding has: "
                "decode its source as UTF-8 with errors='replace'"
            )
    return checked
