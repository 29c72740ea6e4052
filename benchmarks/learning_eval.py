"""Measure an embedder on the six evaluation sets of `learning.py`: right instructions, wrong ones and none."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embedkit.evaluation import Query, find_file, mean, measure, rank_documents, read_qrels, read_queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedkit import Embedder

HEADLINE = ("medquad_eval", "banking77_similar", "clinc150_similar", "cosqa_dev")
SETS = (*HEADLINE, "banking77_label", "clinc150_label")
# Sets that share a task: the instruction of one is no wrong instruction for the other.
_SAME = ({"banking77_similar", "clinc150_similar"}, {"banking77_label", "clinc150_label"})
DEPTH = 100


@dataclass(frozen=True)
class EvaluationSet:
    """One BEIR folder: documents by id, queries, judgements, and the instruction that is right for it."""

    name: str
    ids: list[str]
    documents: list[str]
    queries: list[Query]
    qrels: dict[str, dict[str, int]]
    instruction: str


@dataclass(frozen=True)
class Scores:
    """nDCG@10 of one set: bare queries, the right instruction, and each wrong one by the set it belongs to."""

    bare: float
    right: float
    wrong: dict[str, float]

    @property
    def wrong_mean(self) -> float:
        """The mean over the wrong instructions."""
        return float(np.mean(list(self.wrong.values())))

    @property
    def wrong_best(self) -> float:
        """The wrong instruction that does least harm."""
        return max(self.wrong.values())


def read_sets(data: Path, names: Sequence[str] = SETS) -> list[EvaluationSet]:
    """Read evaluation sets of the data folder with the instructions that INSTRUCTIONS.json gives them."""
    instructions = json.loads((data / "INSTRUCTIONS.json").read_text(encoding="utf-8"))["eval_sets"]
    return [_read_set(data / "eval" / name, instructions[name]) for name in names]


class Encoder:
    """Encode each text once: the sets share queries, and the instructions of all are asked of all."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._known: dict[str, NDArray[np.float32]] = {}

    def documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return float32 `[n, dim]` of documents."""
        return self._encode([self._embedder.info.template.render_document(t) for t in texts])

    def queries(self, texts: Sequence[str], instruction: str | None) -> NDArray[np.float32]:
        """Return float32 `[n, dim]` of queries; None asks the bare query, whatever the default task is."""
        template = self._embedder.info.template
        return self._encode([template.render_query(t, instruction) for t in texts])

    def _encode(self, rendered: list[str]) -> NDArray[np.float32]:
        new = list(dict.fromkeys(t for t in rendered if t not in self._known))
        # Rendered here and encoded as they are: encode_query would put the default task before a bare query.
        self._known.update(zip(new, self._embedder._encode(new), strict=True))
        return np.stack([self._known[t] for t in rendered])


def evaluate(encoder: Encoder, sets: Sequence[EvaluationSet]) -> dict[str, Scores]:
    """Return each set's scores; every other set's instruction is a wrong one, unless the task is the same."""
    scores = {}
    for one in sets:
        vectors = encoder.documents(one.documents)
        wrong = {
            other.name: ndcg(encoder, one, vectors, other.instruction)
            for other in sets
            if other is not one and not any({one.name, other.name} <= same for same in _SAME)
        }
        right = ndcg(encoder, one, vectors, one.instruction)
        scores[one.name] = Scores(ndcg(encoder, one, vectors, None), right, wrong)
    return scores


def switch(encoder: Encoder, similar: EvaluationSet, label: EvaluationSet) -> dict[str, float]:
    """Return what the instruction alone decides: one corpus of utterances and intent names, the same queries.

    nDCG@10 of each set's queries and judgements, by the set's name, and by "name, swapped" under the other's
    instruction.
    """
    ids = [f"utterance {i}" for i in similar.ids] + [f"name {i}" for i in label.ids]
    vectors = encoder.documents([*similar.documents, *label.documents])
    found = {}
    for kind, one, other in (("utterance", similar, label), ("name", label, similar)):
        qrels = {q: {f"{kind} {d}": g for d, g in grades.items()} for q, grades in one.qrels.items()}
        mixed = EvaluationSet(one.name, ids, [], one.queries, qrels, one.instruction)
        found[one.name] = ndcg(encoder, mixed, vectors, one.instruction)
        found[f"{one.name}, swapped"] = ndcg(encoder, mixed, vectors, other.instruction)
    return found


def ndcg(
    encoder: Encoder, one: EvaluationSet, vectors: NDArray[np.float32], instruction: str | None
) -> float:
    """Return the mean nDCG@10 of exact search among `vectors` `[documents, dim]`."""
    queries = encoder.queries([q.text for q in one.queries], instruction)
    rankings = {}
    for start in range(0, len(queries), 512):
        similarities = queries[start : start + 512] @ vectors.T
        best = np.argsort(-similarities, axis=1, kind="stable")[:, : DEPTH + 2]
        for query, row, order in zip(one.queries[start : start + 512], similarities, best, strict=True):
            chunks = ((one.ids[i], float(row[i])) for i in order)
            rankings[query.id] = [d for d, _ in rank_documents(chunks, query.id, one.qrels.get(query.id))]
    return mean(measure(one.qrels, rankings, DEPTH).values(), DEPTH).ndcg


def _read_set(folder: Path, instruction: str) -> EvaluationSet:
    queries, qrels = find_file(folder, "queries.jsonl"), find_file(folder, "qrels.tsv")
    if queries is None or qrels is None:
        raise FileNotFoundError(f"{folder} holds no queries.jsonl or no qrels.tsv")
    corpus = [json.loads(line) for line in _lines(folder)]
    texts = [f"{d['title']}\n\n{d['text']}" if d.get("title") else d["text"] for d in corpus]
    judged = read_qrels(qrels)
    asked = [q for q in read_queries(queries) if q.id in judged]
    return EvaluationSet(folder.name, [d["_id"] for d in corpus], texts, asked, judged, instruction)


def _lines(folder: Path) -> Iterator[str]:
    path = find_file(folder, "corpus.jsonl")
    if path is None:
        raise FileNotFoundError(f"{folder} holds no corpus.jsonl")
    with (
        gzip.open(path, "rt", encoding="utf-8")
        if path.suffix == ".gz"
        else path.open(encoding="utf-8") as file
    ):
        yield from file
