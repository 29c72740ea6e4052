"""Measure the acceptance table of the bundled embedder beside all-MiniLM-L6-v2 and BM25.

    EMBEDKIT_DATA=… python benchmarks/bundled.py [--embedder NAME]… [--only ROW]… [--queries N] [--json FILE]

nDCG@10 unless a row says accuracy@1. Each embedder is asked under the set's instruction (INSTRUCTIONS.json), which
decides, and bare, which stands beside it; all-MiniLM-L6-v2 is asked bare (in the row "fused" it is fused as well).
Documents are bare and whole, cut at the model's length. Fusion takes the best 100 of either ranking; its weight is
chosen on training sets (`choose_weight`), one for all sets, for each embedder and way of asking. int8 means documents
and queries rounded, one scale a vector: an index of embedkit stores float32. Needs the extra [dev] (bm25s).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from bundled_cases import TRAINING_SETS, Case, Source
from bundled_measures import (
    Ranking,
    accuracy,
    bm25_scores,
    choose_weight,
    fuse,
    int8_rounded,
    ndcg,
    ranked,
    shortened,
)
from bundled_rows import BITEXT, CROSS, ROWS, SWITCH, Column, Row, Verdict
from minilm import baseline

from embedkit import get_embedder
from embedkit.registry import full_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

WAYS = ("instructed", "bare")
DEPTH = 100
WEIGHTS = tuple(round(0.1 * i, 1) for i in range(1, 10))
_SLICE = 512


class Encoder:
    """An embedder that encodes each text once: cases share documents and questions."""

    def __init__(self, name: str) -> None:
        self.name = full_name(name)
        self.embedder = get_embedder(name)
        self._known: dict[str, NDArray[np.float32]] = {}

    def documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return float32 `[n, dim]` of documents."""
        return self._encode([self.embedder.info.template.render_document(t) for t in texts])

    def queries(self, texts: Sequence[str], instruction: str | None) -> NDArray[np.float32]:
        """Return float32 `[n, dim]` of queries; None asks the bare query, whatever the default task is."""
        return self._encode([self.embedder.info.template.render_query(t, instruction) for t in texts])

    def _encode(self, rendered: list[str]) -> NDArray[np.float32]:
        new = list(dict.fromkeys(t for t in rendered if t not in self._known))
        for start in range(0, len(new), _SLICE):
            part = new[start : start + _SLICE]
            self._known.update(zip(part, self.embedder.encode_rendered(part), strict=True))
        return np.stack([self._known[t] for t in rendered])


class Bench:
    """Measure cases when a row asks for them, each figure once."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._cases: dict[str, Case] = {}
        self._lexical: dict[str, list[Ranking]] = {}
        self._dense: dict[tuple[str, str, str], list[Ranking]] = {}
        self._figures: dict[tuple[str, ...], float] = {}
        self.weights: dict[tuple[str, str], float] = {}

    def case(self, name: str) -> Case:
        """Return a case by its name in the table."""
        if name not in self._cases:
            print(f"… {name}", file=sys.stderr, flush=True)
            self._cases[name] = self._read(name)
        return self._cases[name]

    def bm25(self, name: str, measure: str = "ndcg") -> float:
        """Return BM25's figure on a case."""
        key = ("bm25", measure, name)
        if key not in self._figures:
            self._figures[key] = _figure(self.case(name), self.lexical(name), measure)
        return self._figures[key]

    def figure(self, encoder: Encoder, way: str, measure: str, name: str) -> float:
        """Return an embedder's figure on a case; "other" is nDCG@10 under the other task's instruction."""
        key = (encoder.name, way, measure, name)
        if key not in self._figures:
            case = self.case(name)
            if measure == "fused":
                weight = self.weight(encoder, way)
                dense = self.dense(encoder, way, name)
                both = zip(dense, self.lexical(name), strict=True)
                rankings = [fuse(a, b, weight) for a, b in both]
            elif measure in ("int8", "dim128", "other"):
                rankings = self._rank(encoder, way, case, measure)
            else:
                rankings = self.dense(encoder, way, name)
            self._figures[key] = _figure(case, rankings, "accuracy" if measure == "accuracy" else "ndcg")
        return self._figures[key]

    def weight(self, encoder: Encoder, way: str) -> float:
        """Return the dense weight of the fusion, chosen on the training sets alone."""
        key = (encoder.name, way)
        if key not in self.weights:
            names = [f"train/{name}" for name in TRAINING_SETS]
            fused: dict[float, list[float]] = {w: [] for w in WEIGHTS}
            for name in names:
                case, lexical, dense = self.case(name), self.lexical(name), self.dense(encoder, way, name)
                for weight, found in fused.items():
                    rankings = [fuse(a, b, weight) for a, b in zip(dense, lexical, strict=True)]
                    found.append(_figure(case, rankings, "ndcg"))
            self.weights[key] = choose_weight(fused, [self.bm25(name) for name in names], 0.98)
        return self.weights[key]

    def lexical(self, name: str) -> list[Ranking]:
        """Return BM25's rankings of a case."""
        if name not in self._lexical:
            case = self.case(name)
            self._lexical[name] = ranked(_hide(bm25_scores(case.documents, case.queries), case.itself), DEPTH)
        return self._lexical[name]

    def dense(self, encoder: Encoder, way: str, name: str) -> list[Ranking]:
        """Return an embedder's rankings of a case."""
        key = (encoder.name, way, name)
        if key not in self._dense:
            self._dense[key] = self._rank(encoder, way, self.case(name), "ndcg")
        return self._dense[key]

    def _rank(self, encoder: Encoder, way: str, case: Case, measure: str) -> list[Ranking]:
        asked = self.case(_other(case.name)).instruction if measure == "other" else case.instruction
        documents = encoder.documents(case.documents)
        queries = encoder.queries(case.queries, None if way == "bare" else asked)
        if measure == "int8":
            documents, queries = int8_rounded(documents), int8_rounded(queries)
        elif measure == "dim128":
            documents, queries = shortened(documents, 128), shortened(queries, 128)
        rankings: list[Ranking] = []
        for start in range(0, len(queries), _SLICE):
            rows = slice(start, start + _SLICE)
            rankings += ranked(_hide(queries[rows] @ documents.T, case.itself[rows]), DEPTH)
        return rankings

    def _read(self, name: str) -> Case:
        folder, _, rest = name.partition(" ")
        if name.startswith("train/"):
            return self._source.training_case(name.removeprefix("train/"))
        if name in SWITCH:
            return self._source.case(name, folder, qrels=f"qrels_{rest}")
        if name in BITEXT:
            return self._source.case(name, "ntrex_eval", rest.removesuffix(" -> en"), "en")
        if name in CROSS:
            return self._source.case(name, folder, rest.removesuffix(" -> en"), "en")
        if rest:
            return self._source.case(name, folder, rest, rest)
        return self._source.case(name, folder)


def _other(name: str) -> str:
    return next(other for other in SWITCH if other != name)


def _hide(scores: NDArray[np.float32], itself: Sequence[int | None]) -> NDArray[np.float32]:
    for row, place in zip(scores, itself, strict=True):
        if place is not None:
            row[place] = -np.inf
    return scores


def _figure(case: Case, rankings: Sequence[Ranking], measure: str) -> float:
    score = accuracy if measure == "accuracy" else ndcg
    return fmean(score(r, g) for r, g in zip(rankings, case.grades, strict=True))


def column(bench: Bench, row: Row, encoder: Encoder, way: str, minilm: Encoder) -> Column:
    """Measure what a row needs for one embedder and way of asking."""
    plain = "accuracy" if row.measure == "accuracy" else "ndcg"
    rival = "fused" if row.measure == "fused" else plain
    wanted = {row.measure, *(["ndcg"] if row.name in ("int8", "dim128") else [])}
    if row.name == "switch" and way == "instructed":
        wanted.add("other")
    lexical = row.name in ("english", "same-language", "fused", "cross-lingual", "bitext")
    beside = row.name not in ("int8", "dim128")
    return Column(
        {m: {c: bench.figure(encoder, way, m, c) for c in row.cases} for m in sorted(wanted)},
        {c: bench.figure(minilm, "bare", rival, c) for c in row.cases} if beside else {},
        {c: bench.bm25(c, plain) for c in row.cases} if lexical else {},
    )


def show(row: Row, columns: dict[str, Column], verdicts: dict[str, Verdict]) -> None:
    """Print one row of the table: the figures of its cases, then the verdict of each column."""
    print(f"\n{row.name}: {row.goal}")
    tables = {}
    for title, one in columns.items():
        tables[title] = one.measures[row.measure]
        if "other" in one.measures:
            tables[f"{title}, other"] = one.measures["other"]
        if row.name in ("int8", "dim128"):
            tables[f"{title}, whole"] = one.measures["ndcg"]
    first = next(iter(columns.values()))
    tables |= {name: found for name, found in (("MiniLM", first.minilm), ("BM25", first.bm25)) if found}
    width = max(len(c) for c in row.cases) + 2
    print(" " * width + "".join(f"{title:>{_wide(title)}}" for title in tables))
    for case in row.cases:
        cells = (f"{found[case]:>{_wide(title)}.3f}" for title, found in tables.items())
        print(f"{case:<{width}}" + "".join(cells))
    print(
        f"{'mean':<{width}}"
        + "".join(f"{fmean(f.values()):>{_wide(title)}.3f}" for title, f in tables.items())
    )
    for title, verdict in verdicts.items():
        figures = ", ".join(f"{name} {value:.3f}" for name, value in verdict.figures.items())
        missed = f"; missed: {', '.join(verdict.misses)}" if verdict.misses else ""
        print(f"  {'PASS' if verdict.passed else 'FAIL'}  {title}: {figures}{missed}")


def _wide(title: str) -> int:
    return max(9, len(title) + 2)


def _titles(names: Sequence[str]) -> list[str]:
    short = [Path(name.partition(":")[2] or name).name or name for name in names]
    return short if len(set(short)) == len(short) else list(names)


def run(bench: Bench, rows: Sequence[Row], names: Sequence[str]) -> dict[str, Any]:
    """Measure and print the rows; return plain JSON values."""
    minilm = Encoder(baseline())
    encoders = [minilm if full_name(n) == minilm.name else Encoder(n) for n in names]
    for name, encoder in zip(names, encoders, strict=True):
        info = encoder.embedder.info
        print(f"{name}: {info.name}, {info.dim} dimensions, texts cut at {info.max_length} tokens")
    print(
        f"MiniLM: all-MiniLM-L6-v2 in int8, asked bare, texts cut at {minilm.embedder.info.max_length} tokens"
    )
    found: dict[str, Any] = {}
    summary: list[str] = []
    for row in rows:
        columns, verdicts = {}, {}
        for title, encoder in zip(_titles(names), encoders, strict=True):
            for way in WAYS:
                head = title if way == "instructed" else f"{title}, bare"
                columns[head] = column(bench, row, encoder, way, minilm)
                # Without an instruction there is nothing to switch by.
                if row.name != "switch" or way == "instructed":
                    verdicts[head] = row.judge(columns[head])
        show(row, columns, verdicts)
        found[row.name] = {
            "goal": row.goal,
            "cases": {c: len(bench.case(c).queries) for c in row.cases},
            "columns": {
                head: {**asdict(one), "verdict": asdict(verdicts[head]) if head in verdicts else None}
                for head, one in columns.items()
            },
        }
        passes = (f"{head} {'PASS' if v.passed else 'FAIL'}" for head, v in verdicts.items())
        summary.append(f"{row.name:<14} {'  '.join(passes)}")
    print("\n" + "\n".join(summary))
    for (name, way), weight in bench.weights.items():
        print(f"fusion, {name}, {way}: dense {weight}, BM25 {1 - weight:.1f}")
    weights = [{"embedder": n, "way": w, "dense": weight} for (n, w), weight in bench.weights.items()]
    lengths = {e.name: e.embedder.info.max_length for e in [minilm, *encoders]}
    return {"rows": found, "weights": weights, "max_length": lengths}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--embedder", action="append", help="a name or folder; repeatable (default: bundled)")
    parser.add_argument(
        "--only", action="append", choices=list(ROWS), help="a row; repeatable (default: all)"
    )
    parser.add_argument("--queries", type=int, help="sample so many queries a case (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    if "EMBEDKIT_DATA" not in os.environ:
        print(
            "bundled.py: skipped, set EMBEDKIT_DATA to the folder that holds eval/, train/, INSTRUCTIONS.json"
        )
        return
    source = Source(Path(os.environ["EMBEDKIT_DATA"]), arguments.queries, arguments.seed)
    rows = [ROWS[name] for name in arguments.only or ROWS]
    found = run(Bench(source), rows, arguments.embedder or ["bundled"])
    if arguments.queries is not None:
        print(f"a quick look: {arguments.queries} queries a case, seed {arguments.seed}")
    if arguments.json:
        found |= {"queries": arguments.queries, "seed": arguments.seed}
        arguments.json.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
