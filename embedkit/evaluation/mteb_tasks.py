"""Run tasks of the library mteb with an embedder standing before it as one of its encoders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit.errors import EmbedkitError, InputError
from embedkit.evaluation.mteb_names import import_mteb
from embedkit.evaluation.mteb_wording import mteb_instruction
from embedkit.evaluation.protocol import Advance, ProtocolEncoder, ProtocolName, mean_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedkit.embedder import Embedder

# The types whose documents stay bare in the E5-mistral paper too.
_RETRIEVAL = ("Retrieval", "InstructionRetrieval", "InstructionReranking")
_SEVERAL_LABELS = ("Classification", "MultilabelClassification")
_BATCH = 256


@dataclass(frozen=True, slots=True)
class MtebScore:
    """What one task found: its main score, and each split's and subset's; `instructed` says which side was told."""

    task: str
    kind: str
    metric: str
    score: float | None
    instruction: str | None
    instructed: str
    subsets: Mapping[str, Mapping[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "task": self.task,
            "type": self.kind,
            "metric": self.metric,
            "score": self.score,
            "instruction": self.instruction,
            "instructed": self.instructed,
            "subsets": {split: dict(scores) for split, scores in self.subsets.items()},
        }


class MtebEncoder:
    """Stand before mteb as one of its encoders (its `EncoderProtocol`), with an embedder behind.

    mteb says which side a text is on in retrieval alone; `prepare_task` makes it say so for sentence pairs. For
    bitext, whose columns are source and target at once, a text's row is its vector as a query followed by its
    vector as a document (`[n, 2 dim]`), and `similarity` takes the half that is due.
    """

    def __init__(
        self,
        embedder: Embedder,
        protocol: ProtocolName = "one-sided",
        instruction: str | None = None,
        advance: Advance = lambda count: None,
    ) -> None:
        self._embedder = embedder
        self._protocol: ProtocolName = protocol
        self._instruction = instruction
        self._advance = advance
        self.mteb_model_meta = _model_meta(embedder, protocol, instruction)

    def instruction_for(self, name: str, kind: str) -> str | None:
        """Return a task's instruction: the one given for all, else its own where the embedder was trained on any."""
        if self._instruction is not None or not self._embedder.info.instruction_trained:
            return self._instruction
        return mteb_instruction(name, kind)

    def instructed(self, name: str, kind: str) -> str:
        """Say in words which texts of a task carry the instruction."""
        encoder = self._encoder(name, kind)
        sides = 1 if kind in (*_SEVERAL_LABELS, "Clustering", "Summarization", "Regression") else 2
        return encoder.instructed(sides)

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> NDArray[np.float32]:
        """Encode a data loader's texts: float32 `[n, dim]`, or `[n, 2 dim]` for one-sided bitext."""
        import numpy as np

        del hf_split, hf_subset, kwargs
        name, kind = str(task_metadata.name), str(task_metadata.type)
        # Some data sets hold empty texts, which embedders refuse and mteb counts on.
        texts = [_sound(text) for batch in inputs for text in batch["text"]]
        encoder = self._encoder(name, kind)
        side = getattr(prompt_type, "value", prompt_type)
        if side == "query":
            return encoder.queries(texts)
        if side == "document":
            return encoder.documents(texts)
        if kind == "BitextMining" and encoder.protocol == "one-sided":
            return np.hstack([encoder.queries(texts), encoder.documents(texts)])
        return encoder.items(texts, normalize=not (self._protocol == "paper" and kind in _SEVERAL_LABELS))

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the cosines of every row of one with every row of the other, a float32 tensor `[n, m]`."""
        first, second = self._halves(embeddings1, embeddings2)
        return first @ second.T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the cosine of each row of one with the same row of the other, a float32 tensor `[n]`."""
        first, second = self._halves(embeddings1, embeddings2)
        return (first * second).sum(dim=-1)

    def _halves(self, embeddings1: Any, embeddings2: Any) -> tuple[Any, Any]:
        import torch
        from torch.nn.functional import normalize

        dim = self._embedder.info.dim
        first, second = (torch.as_tensor(e, dtype=torch.float32) for e in (embeddings1, embeddings2))
        if first.shape[-1] == 2 * dim:
            first, second = first[..., :dim], second[..., dim:]
        return normalize(first, dim=-1), normalize(second, dim=-1)

    def _encoder(self, name: str, kind: str) -> ProtocolEncoder:
        # In the paper too, the documents of retrieval are bare.
        protocol: ProtocolName = "one-sided" if kind in _RETRIEVAL else self._protocol
        return ProtocolEncoder(
            self._embedder, protocol, self.instruction_for(name, kind), advance=self._advance
        )


def run_tasks(
    encoder: MtebEncoder,
    tasks: Sequence[Any],
    *,
    cache: str | Path | None = None,
    started: Callable[[str], None] = lambda name: None,
) -> list[MtebScore]:
    """Run tasks one after the other and return their scores.

    `cache` is a folder in which mteb keeps results: what it holds for the same embedder, protocol and instruction
    is not measured again. Raises InputError where a task's data cannot be had.
    """
    mteb = import_mteb()
    store = mteb.ResultCache(cache) if cache is not None else None
    scores = []
    for task in tasks:
        name, kind = str(task.metadata.name), str(task.metadata.type)
        started(name)
        prepare_task(task)
        try:
            result = mteb.evaluate(
                encoder, task, cache=store, co2_tracker=False, show_progress_bar=False,
                encode_kwargs={"batch_size": _BATCH, "show_progress_bar": False},
            )  # fmt: skip
        except (EmbedkitError, MemoryError):
            raise
        except Exception as e:
            reason = " ".join(str(e).split())[:300]
            raise InputError(
                f"the mteb task {name} failed ({type(e).__name__}: {reason}); its data comes from the Hugging Face "
                "hub: check the network, or fetch it before"
            ) from e
        scores += [_score(r, task, encoder, name, kind) for r in result.task_results]
    return scores


def prepare_task(task: Any) -> None:
    """Make a task of sentence pairs say which sentence is the query, where it leaves both sides alike."""
    from mteb.types import PromptType

    unset = (
        getattr(task, "input1_prompt_type", "") is None and getattr(task, "input2_prompt_type", "") is None
    )
    if unset and task.metadata.type in ("STS", "PairClassification"):
        task.input1_prompt_type, task.input2_prompt_type = PromptType.query, PromptType.document


def _score(result: Any, task: Any, encoder: MtebEncoder, name: str, kind: str) -> MtebScore:
    subsets = {
        split: {str(entry["hf_subset"]): float(entry["main_score"]) for entry in entries}
        for split, entries in result.scores.items()
    }
    main = mean_of(value for scores in subsets.values() for value in scores.values())
    instruction = encoder.instruction_for(name, kind)
    return MtebScore(
        name, kind, task.metadata.main_score, main, instruction, encoder.instructed(name, kind), subsets
    )


def _model_meta(embedder: Embedder, protocol: ProtocolName, instruction: str | None) -> Any:
    """Return mteb's record of the embedder; name and revision are the address of its results in the cache."""
    import hashlib

    import_mteb()
    from mteb.models.model_meta import ModelMeta

    told = hashlib.sha256((instruction or "").encode()).hexdigest()[:8] if instruction else "own"
    name = embedder.info.name.replace("/", "_").replace(":", "_")
    return ModelMeta.create_empty(
        {
            "name": f"embedkit/{name}",
            "revision": f"{embedder.fingerprint.rpartition(':')[2][:16]}-{protocol}-{told}",
            "embed_dim": embedder.info.dim,
            "max_tokens": embedder.info.max_length,
            "use_instructions": embedder.info.instruction_trained,
        }
    )


def _sound(text: object) -> str:
    sound = str(text).encode("utf-8", "replace").decode()
    return sound if sound.strip() else "."
