"""Where `embedkit mine` takes its candidates from: an index, or the positives of the rows themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from embedkit_cli.progress import Meter
from embedkit_trainer.mining.negatives import Candidate, mine_from_vectors, mine_negatives

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedkit.embedder import Embedder
    from embedkit_indexes import Index
    from embedkit_trainer.data.rows import Row
    from embedkit_trainer.mining.negatives import Judge, MiningConfig, MiningReport

_BATCH = 1024


@dataclass(frozen=True, slots=True)
class Asking:
    """How rows are asked: under their own instruction, else under `explicit`, else the embedder's default task.

    An embedder that was not trained on instructions gets `explicit` alone: a row's own would only add noise.
    """

    embedder: Embedder
    explicit: str | None

    def groups(self, rows: Sequence[Row]) -> dict[str | None, list[int]]:
        """Return the rows' places by the instruction they are asked under."""
        trained = self.embedder.info.instruction_trained
        places: dict[str | None, list[int]] = {}
        for place, row in enumerate(rows):
            own = row.instruction if trained else None
            places.setdefault(self.explicit if own is None else own, []).append(place)
        return places

    def queries(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """Encode the rows' queries, `[len(rows), dim]`; the same query under one instruction but once."""
        vectors = np.empty((len(rows), self.embedder.info.dim), np.float32)
        for sentence, places in self.groups(rows).items():
            distinct = list(dict.fromkeys(rows[p].query for p in places))
            encoded = self.embedder.encode_query(distinct, instruction=sentence)
            vectors[places] = encoded[_numbers(distinct, [rows[p].query for p in places])]
        return vectors

    def positives(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """Encode the rows' positives, `[len(rows), dim]`."""
        texts = [row.positive for row in rows]
        distinct = list(dict.fromkeys(texts))
        return self.embedder.encode_document(distinct)[_numbers(distinct, texts)]

    def search(self, index: Index, rows: Sequence[Row], k: int) -> list[list[Candidate]]:
        """Return the `k` chunks of an index nearest to each row's query, by their documents' ids."""
        found: list[list[Candidate]] = [[] for _ in rows]
        for sentence, places in self.groups(rows).items():
            results = index.search_many([rows[p].query for p in places], instruction=sentence, k=k)
            for place, result in zip(places, results, strict=True):
                found[place] = [Candidate(h.document_id, h.text, h.score) for h in result.hits]
        return found

    def scores(self, rows: Sequence[Row]) -> list[float]:
        """Return the cosine of each row's query and positive."""
        values: list[float] = (self.queries(rows) * self.positives(rows)).sum(axis=1).tolist()
        return values


@dataclass(frozen=True, slots=True)
class Mining:
    """One run of mining: the rows, how they are asked, and by which rules."""

    rows: Sequence[Row]
    asking: Asking
    config: MiningConfig
    judge: Judge | None
    report: MiningReport

    def from_index(self, index: Index) -> list[Row]:
        """Mine among the chunks of an index."""

        asking = self.asking

        def search(batch: Sequence[Row], k: int) -> list[list[Candidate]]:
            return asking.search(index, batch, k)

        mined = mine_negatives(
            self.rows, search, asking.scores, self.config, judge=self.judge, report=self.report
        )  # fmt: skip
        return self._watched(mined)

    def from_rows(self) -> list[Row]:
        """Mine among the distinct positives of all rows; their vectors are held in memory."""
        identifiers: dict[str, str | None] = {}
        for row in self.rows:
            identifiers.setdefault(row.positive, row.positive_id)
        texts = list(identifiers)
        documents = self._encoded("documents", texts, self.asking.embedder.encode_document)
        mined = mine_from_vectors(
            self.rows,
            query_vectors=self.asking.queries(self.rows),
            positive_vectors=documents[_numbers(texts, [row.positive for row in self.rows])],
            documents=[(identifier, text) for text, identifier in identifiers.items()],
            document_vectors=documents,
            config=self.config,
            judge=self.judge,
            report=self.report,
        )
        return self._watched(mined)

    def _encoded(
        self, unit: str, texts: list[str], encode: Callable[[list[str]], NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        vectors = np.empty((len(texts), self.asking.embedder.info.dim), np.float32)
        with Meter(unit) as meter:
            meter.expect(len(texts))
            for start in range(0, len(texts), _BATCH):
                vectors[start : start + _BATCH] = encode(texts[start : start + _BATCH])
                meter.update("embedding", min(start + _BATCH, len(texts)))
        return vectors

    def _watched(self, rows: Iterator[Row]) -> list[Row]:
        mined: list[Row] = []
        with Meter("rows") as meter:
            meter.expect(len(self.rows))
            for row in rows:
                mined.append(row)
                meter.update("mining", len(mined))
        return mined


def _numbers(distinct: Sequence[str], texts: Sequence[str]) -> list[int]:
    number = {text: i for i, text in enumerate(distinct)}
    return [number[text] for text in texts]
