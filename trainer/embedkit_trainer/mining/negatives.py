"""Mine hard negatives: from what a search finds for a query, take what is near and yet no answer.

Ranks are those of the search, from 1. The paper (arXiv 2401.00368, appendix C) samples from the top 100 of a smaller
embedder; NV-Retriever (arXiv 2407.15831) drops what scores above 95% of the positive, for most of it is unlabelled
answers. Scores are cosines of the embedder that mines.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from embedkit.errors import InputError
from embedkit_trainer.data.rows import Row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Sampling = Literal["top", "random"]
REASONS = (
    "below the window of ranks",
    "the positive itself",
    "another positive of the query",
    "a negative the row has",
    "repeated text",
    "too near the positive (margin)",
    "too near the positive (ratio)",
    "score above the highest",
    "score below the lowest",
    "refused by the judge",
    "not needed",
)
_RANK, _SELF, _KNOWN, _OWN, _REPEATED, _MARGIN, _RATIO, _HIGH, _LOW, _JUDGE, _SURPLUS = REASONS
_BATCH = 256
_LONG = 50  # characters from which one text within another tells that they are the same document


class Candidate(NamedTuple):
    """A document that a search found: its id (None: it has none), its text and its score."""

    id: str | None
    text: str
    score: float


Search = Callable[[Sequence[Row], int], Sequence[Sequence[Candidate]]]
Scorer = Callable[[Sequence[Row]], Sequence[float]]
Judge = Callable[[str, str, Sequence[str]], Sequence[bool]]


@dataclass(frozen=True, slots=True)
class MiningConfig:
    """Say which candidates become negatives.

    `negatives` is how many a row gets at most, out of the ranks `min_rank` to `max_rank`. A candidate must score at
    least `margin` less than the positive, at most `max_ratio` times as much, and within `min_score` and `max_score`;
    None turns a rule off. `sampling` "random" draws among what is left, "top" takes the nearest; the draw depends on
    `seed` and the row's own texts alone, not on its place in the file. `replace` drops the negatives that a row has.
    `scores` keeps the scores as `teacher_scores`; else a row's own go, for they do not cover the new negatives.
    """

    negatives: int = 1
    min_rank: int = 1
    max_rank: int = 100
    margin: float | None = None
    max_ratio: float | None = 0.95
    min_score: float | None = None
    max_score: float | None = None
    sampling: Sampling = "random"
    seed: int = 42
    replace: bool = False
    scores: bool = False

    def __post_init__(self) -> None:
        if self.negatives < 1:
            raise InputError(f"negatives is {self.negatives}: ask for 1 or more")
        if not 1 <= self.min_rank <= self.max_rank:
            window = f"ranks {self.min_rank} to {self.max_rank}"
            raise InputError(f"{window} are no window: give 1 <= first <= last, such as 10:100")
        if self.margin is not None and not self.margin >= 0:
            raise InputError(f"margin is {self.margin}: give 0 or more, in the embedder's scores")
        if self.max_ratio is not None and not 0 < self.max_ratio <= 1:
            raise InputError(f"max_ratio is {self.max_ratio}: give more than 0 and at most 1, or None")
        if self.sampling not in ("top", "random"):
            raise InputError(f"sampling is {self.sampling!r}: choose top or random")

    def refusal(self, score: float, positive: float) -> str | None:
        """Return why a candidate's score rules it out, None where it does not.

        A ratio of a positive that scores 0 or less says nothing; then the positive's own score is the limit.
        """
        if self.margin is not None and score > positive - self.margin:
            return _MARGIN
        if self.max_ratio is not None and score > (self.max_ratio * positive if positive > 0 else positive):
            return _RATIO
        if self.max_score is not None and score > self.max_score:
            return _HIGH
        if self.min_score is not None and score < self.min_score:
            return _LOW
        return None


@dataclass(slots=True)
class MiningReport:
    """Count what became of every candidate; `mine_negatives` fills it in as it goes.

    `short` counts rows that got some negatives but fewer than asked for, `without` those that got none.
    `candidates` = `kept` + the sum of `dropped`, by reason.
    """

    rows: int = 0
    short: int = 0
    without: int = 0
    candidates: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def mine_negatives(
    rows: Sequence[Row],
    search: Search,
    positive_scores: Scorer,
    config: MiningConfig | None = None,
    *,
    judge: Judge | None = None,
    report: MiningReport | None = None,
) -> Iterator[Row]:
    """Yield the rows with mined negatives behind their own.

    `search(rows, k)` returns for each row its k best documents, best first (it has the query and the instruction);
    `positive_scores(rows)` scores each row's positive in the same way. Never mined are a row's positive and all other
    positives of the same query among `rows`: by id, by text, or as a chunk of it. `judge(query, positive, texts)` says of each text
    whether it may be a negative (an LLM or a cross-encoder); it is asked no more than is needed. Rows for which
    nothing is left come back as they were.

    Raises InputError where `config.scores` is asked of rows that keep unscored negatives of their own.
    """
    config, report = config or MiningConfig(), MiningReport() if report is None else report
    miner = _Miner(rows, config, judge, report)
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        found = search(batch, config.max_rank)
        for row, candidates, score in zip(batch, found, positive_scores(batch), strict=True):
            yield miner.mine(row, candidates, float(score))


def mine_from_vectors(
    rows: Sequence[Row],
    *,
    query_vectors: NDArray[np.float32],
    positive_vectors: NDArray[np.float32],
    documents: Sequence[tuple[str | None, str]],
    document_vectors: NDArray[np.float32],
    config: MiningConfig | None = None,
    judge: Judge | None = None,
    report: MiningReport | None = None,
) -> Iterator[Row]:
    """Mine as `mine_negatives` does, among `documents` (id, text) whose vectors are given.

    `query_vectors` and `positive_vectors` are `[len(rows), dim]`, `document_vectors` `[len(documents), dim]`, all of
    unit length; they may be memory-mapped. Memory beyond them is one block of scores, 16 MB.
    Raises InputError where the shapes do not fit.
    """
    from embedkit_trainer.mining.nearest import nearest

    shapes = (query_vectors.shape, positive_vectors.shape, document_vectors.shape)
    dim = query_vectors.shape[-1]
    if shapes != ((len(rows), dim), (len(rows), dim), (len(documents), dim)):
        raise InputError(
            f"vectors of shapes {', '.join(map(str, shapes))} do not fit {len(rows)} rows and {len(documents)} documents"
        )
    config, report = config or MiningConfig(), MiningReport() if report is None else report
    miner = _Miner(rows, config, judge, report)
    for start in range(0, len(rows), _BATCH):
        queries = query_vectors[start : start + _BATCH]
        positives = (queries * positive_vectors[start : start + _BATCH]).sum(axis=1)
        found = nearest(queries, document_vectors, config.max_rank)
        for row, (numbers, scores), positive in zip(
            rows[start : start + _BATCH], found, positives, strict=True
        ):
            candidates = [
                Candidate(documents[n][0], documents[n][1], s)
                for n, s in zip(numbers.tolist(), scores.tolist(), strict=True)
            ]
            yield miner.mine(row, candidates, float(positive))


class _Miner:
    """What mining one row needs to know of all of them."""

    def __init__(
        self, rows: Sequence[Row], config: MiningConfig, judge: Judge | None, report: MiningReport
    ) -> None:
        self._config, self._judge, self._report = config, judge, report
        self._texts: dict[str, set[str]] = {}
        self._ids: dict[str, set[str]] = {}
        for row in rows:
            self._texts.setdefault(row.query, set()).add(row.positive)
            if row.positive_id is not None:
                self._ids.setdefault(row.query, set()).add(row.positive_id)

    def mine(self, row: Row, candidates: Sequence[Candidate], positive: float) -> Row:
        config, report = self._config, self._report
        base = replace(row, negatives=(), negative_ids=(), teacher_scores=None) if config.replace else row
        if config.scores and base.negatives:
            what = (
                f"the row {row.query[:60]!r} (line {row.line}) has negatives without this embedder's scores"
            )
            raise InputError(f"{what}: drop them (replace), or mine without scores")
        left = self._eligible(base, candidates, positive)
        if config.sampling == "random":
            _shuffle(left, config.seed, row)
        chosen = self._judged(row, left)
        report.rows += 1
        report.candidates += len(candidates)
        report.kept += len(chosen)
        report.short += 0 < len(chosen) < config.negatives
        report.without += not chosen
        if not chosen and not config.scores:
            return base
        own_ids = base.negative_ids or (None,) * len(base.negatives)
        return replace(
            base,
            negatives=(*base.negatives, *(c.text for c in chosen)),
            negative_ids=(*own_ids, *(c.id for c in chosen)),
            # The row's own teacher does not know the new negatives.
            teacher_scores=(positive, *(c.score for c in chosen)) if config.scores else None,
        )

    def _eligible(self, row: Row, candidates: Sequence[Candidate], positive: float) -> list[Candidate]:
        texts, ids = self._texts[row.query], self._ids.get(row.query, set())
        own, own_ids = {t.strip() for t in row.negatives}, {i for i in row.negative_ids if i is not None}
        positives = {_spaced(t) for t in texts}
        seen: set[str] = set()
        left: list[Candidate] = []
        for rank, candidate in enumerate(candidates, 1):
            text = candidate.text.strip()
            if _same(text, [_spaced(row.positive)]) or (
                candidate.id is not None and candidate.id == row.positive_id
            ):
                reason: str | None = _SELF
            elif _same(text, positives) or candidate.id in ids:
                reason = _KNOWN
            elif rank < self._config.min_rank or rank > self._config.max_rank:
                reason = _RANK
            elif text in own or candidate.id in own_ids:
                reason = _OWN
            elif text in seen or not text:
                reason = _REPEATED
            else:
                reason = self._config.refusal(candidate.score, positive)
            if reason is None:
                seen.add(text)
                left.append(candidate)
            else:
                self._report.dropped[reason] += 1
        return left

    def _judged(self, row: Row, left: list[Candidate]) -> list[Candidate]:
        wanted, dropped = self._config.negatives, self._report.dropped
        if self._judge is None:
            dropped[_SURPLUS] += max(0, len(left) - wanted)
            return left[:wanted]
        chosen: list[Candidate] = []
        at = 0
        while len(chosen) < wanted and at < len(left):
            asked = left[at : at + 2 * (wanted - len(chosen))]
            at += len(asked)
            verdicts = self._judge(row.query, row.positive, [c.text for c in asked])
            kept = [c for c, verdict in zip(asked, verdicts, strict=True) if verdict]
            dropped[_JUDGE] += len(asked) - len(kept)
            chosen += kept
        dropped[_SURPLUS] += len(left) - at + max(0, len(chosen) - wanted)
        return chosen[:wanted]


def _same(text: str, positives: Iterable[str]) -> bool:
    """Tell whether a text is one of the positives, or a chunk of one (with or without its title), or holds one."""
    whole, piece = _spaced(text), _spaced(text.partition("\n")[2])
    return any(
        whole == positive
        or (min(len(whole), len(positive)) >= _LONG and (whole in positive or positive in whole))
        or (len(piece) >= _LONG and piece in positive)
        for positive in positives
    )


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _shuffle(candidates: list[Candidate], seed: int, row: Row) -> None:
    key = f"{seed}\0{row.query}\0{row.positive}\0{row.instruction or ''}"
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    random.Random(int.from_bytes(digest[:8], "big")).shuffle(candidates)
