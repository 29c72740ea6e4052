"""Personalised passkey retrieval: find the one long note, among many, that holds a person's pass key.

The test of the E5-mistral paper (arXiv 2401.00368, section 5.2), in our own words. It proves that a position far
into the text reaches the vector, and no understanding: BM25 and word vectors score 100 at every length.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from embedkit.errors import InputError
from embedkit.evaluation.protocol import GroupScore, KindReport, ProtocolEncoder, mean_of

LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
CANDIDATES = 100
QUERIES = 50
CountTokens = Callable[[Sequence[str]], list[int]]

_GIVEN = (
    "Agnes Boris Carmen Dmitri Elena Farid Greta Hassan Ingrid Jonas Keiko Lucia Marek Nadia Oscar Priya Quentin "
    "Rosa Stefan Tamar Umberto Vera Walter Yusuf"
)
_FAMILY = (
    "Abbott Becker Castillo Duval Eriksen Fischer Gupta Hansen Ivanov Jensen Kowalski Larsen Moreau Novak Okafor "
    "Petrov Quinn Rossi Schneider Tanaka Underwood Vargas Weber Yamada"
)
# Says nothing of persons, keys or numbers.
_FILLER = (
    "The gravel path runs along the wall and ends at a wooden gate.",
    "Clouds drift over the valley, and the river keeps its slow pace.",
    "Somebody has left a cup of tea on the bench under the lime tree.",
    "In the afternoon the light falls through the leaves and moves over the stones.",
    "A cart rattles by, and after a while it is quiet again.",
    "The bakery at the corner opens early, long before the market does.",
    "When it rains, the water gathers in the hollow behind the barn.",
    "Two dogs lie in the shade and do not stir.",
)


@dataclass(frozen=True, slots=True)
class PasskeySet:
    """The notes of one length, and questions with the position of the note that answers each."""

    length: int
    documents: tuple[str, ...]
    tokens: tuple[int, ...]
    queries: tuple[str, ...]
    answers: tuple[int, ...]


def make_passkeys(
    count_tokens: CountTokens,
    length: int,
    *,
    candidates: int = CANDIDATES,
    queries: int = QUERIES,
    seed: int = 0,
) -> PasskeySet:
    """Make `candidates` notes of `length` tokens and `queries` questions, the same ones for the same seed.

    Every note is the same filler, with one person's pass key put in at a place drawn for the note. `count_tokens`
    counts each text's tokens as the embedder sees them, special tokens included; a note is at most one sentence of
    filler shorter than `length`. Raises InputError for a length that no key fits in.
    """
    most = len(_GIVEN.split()) * len(_FAMILY.split())
    if not 1 <= queries <= candidates <= most:
        raise InputError(
            f"{queries} queries among {candidates} candidates: give 1 to {most} candidates, and no more queries"
        )
    generator = random.Random(seed)
    names = [f"{given} {family}" for given in _GIVEN.split() for family in _FAMILY.split()]
    people = generator.sample(names, candidates)
    keys = generator.sample(range(10_000, 100_000), candidates)
    facts = [
        f"The pass key of {name} is {key}. Keep it in mind: {key} is the pass key of {name}."
        for name, key in zip(people, keys, strict=True)
    ]
    sizes = count_tokens(facts)
    if max(sizes) > length:
        raise InputError(
            f"length {length} is too short for a pass key, which takes {max(sizes)} tokens: give more"
        )
    places = [generator.random() for _ in facts]
    hold = _capacity(count_tokens)
    counts = [hold(length - size) for size in sizes]
    documents = _notes(facts, counts, places)
    tokens = count_tokens(documents)
    while any(t > length for t in tokens):
        # A sentence costs a token more or less beside another: take one away where the note came out too long.
        counts = [c - (t > length) for c, t in zip(counts, tokens, strict=True)]
        documents = _notes(facts, counts, places)
        tokens = count_tokens(documents)
    asked = generator.sample(range(candidates), queries)
    questions = tuple(f"What is the pass key of {people[i]}?" for i in asked)
    return PasskeySet(length, tuple(documents), tuple(tokens), questions, tuple(asked))


def evaluate_passkey(
    encoder: ProtocolEncoder,
    lengths: Sequence[int] = LENGTHS,
    *,
    candidates: int = CANDIDATES,
    queries: int = QUERIES,
    seed: int = 0,
) -> KindReport:
    """Measure top-1 accuracy for each length: the share of questions whose own note scores above every other.

    Lengths are counted by the embedder's own tokenizer; what exceeds its `max_length` is truncated, as anywhere.
    """
    import numpy as np

    template = encoder.embedder.info.template
    groups = []
    for length in lengths:
        made = make_passkeys(
            lambda texts: encoder.embedder.count_tokens([template.render_document(t) for t in texts]),
            length,
            candidates=candidates,
            queries=queries,
            seed=seed,
        )
        scores = encoder.queries(made.queries) @ encoder.documents(made.documents).T
        rows = np.arange(len(made.answers))
        own = scores[rows, list(made.answers)].copy()
        scores[rows, list(made.answers)] = -np.inf
        best = scores.max(axis=1) if candidates > 1 else np.full(len(rows), -np.inf)
        measures = {"top-1": float(np.mean(own > best)), "tokens": float(np.mean(made.tokens))}
        groups.append(GroupScore(str(length), len(made.queries), measures))
    overall = {"top-1": mean_of(g.measures["top-1"] for g in groups), "tokens": None}
    facts = {"candidates": candidates, "chance": 1 / candidates}
    return KindReport(GroupScore("overall", sum(g.count for g in groups), overall), tuple(groups), facts)


def _capacity(count_tokens: CountTokens) -> Callable[[int], int]:
    """Return a function from a budget of tokens to the sentences of filler that it holds, by what one round costs."""
    starts = [" ".join([*_FILLER, *_FILLER[:i]]) for i in range(len(_FILLER) + 1)]
    first, *ends = count_tokens(starts)
    costs = [end - first for end in ends]  # special tokens cancel out
    cycle = max(1, costs[-1])

    def hold(budget: int) -> int:
        rounds, rest = divmod(budget, cycle)
        return rounds * len(_FILLER) + sum(cost <= rest for cost in costs[:-1])

    return hold


def _notes(facts: Sequence[str], counts: Sequence[int], places: Sequence[float]) -> list[str]:
    notes = []
    for fact, count, place in zip(facts, counts, places, strict=True):
        sentences = [_FILLER[i % len(_FILLER)] for i in range(count)]
        sentences.insert(round(place * count), fact)
        notes.append(" ".join(sentences))
    return notes
