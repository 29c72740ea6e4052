"""Sets of sentences: NLI, duplicate questions, graded similarity, plain pairs and plain texts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embedkit.errors import CorpusError
from embedkit_trainer.data.formats import files
from embedkit_trainer.data.rows import Row

_LABELS = {"0": "entailment", "1": "neutral", "2": "contradiction"}
_KINDS = ("entailment", "neutral", "contradiction")
_UNLABELLED = ("-", "-1", "")


def nli(path: Path) -> Iterator[Row]:
    """Read SNLI's and MultiNLI's JSON lines: a premise, what it entails, and what contradicts it as hard negatives.

    Keys `sentence1`, `sentence2`, `gold_label`, or the hub's `premise`, `hypothesis`, `label` (0 entailment,
    1 neutral, 2 contradiction). One row for each entailed hypothesis; the premise's contradictions are shared, and the
    premise is the `positive_id`, so that no batch holds one of its rows against another, whichever of the two
    instructions they got. Pairs on which the annotators did not agree ("-") and neutral ones are left out. All pairs are held in memory (1 GB for both sets):
    a premise's hypotheses need not stand together.
    """
    premises: dict[str, dict[str, dict[str, int]]] = {}
    for file in files.inputs(path, ".jsonl", ".parquet"):
        for line, record in files.records(file):
            label = str(record.get("gold_label", record.get("label", "")))
            kind = _LABELS.get(label, label)
            if kind in _UNLABELLED:
                continue
            if kind not in _KINDS:
                raise CorpusError(str(file), f"the label {label!r} is none of {', '.join(_KINDS)}", line)
            first, second = ("sentence1", "sentence2") if "sentence1" in record else ("premise", "hypothesis")
            premise = files.text_of(record, first, file, line).strip()
            hypothesis = files.text_of(record, second, file, line).strip()
            if kind != "neutral" and hypothesis != premise:
                premises.setdefault(premise, {}).setdefault(kind, {}).setdefault(hypothesis, line)
    for premise, kinds in premises.items():
        entailed = kinds.get("entailment", {})
        # A hypothesis labelled both ways is no negative.
        against = tuple(h for h in kinds.get("contradiction", {}) if h not in entailed)
        for hypothesis, line in entailed.items():
            yield Row(
                premise,
                hypothesis,
                against,
                positive_id=premise,
                negative_ids=(None,) * len(against),
                line=line,
            )


def quora(path: Path) -> Iterator[Row]:
    """Read the duplicate-question table: `question1`, `question2`, `is_duplicate`; CSV or TSV with a header.

    Questions joined by duplicates are one class, and the class is their `positive_id`, so that no batch holds one
    against another. A pair judged different is a hard negative, unless other pairs join the two.
    """
    classes: dict[str, str] = {}
    pairs: list[tuple[str, str, int]] = []
    different: dict[str, dict[str, None]] = {}
    for file in files.inputs(path, ".tsv", ".csv"):
        for line, record in files.headed_table(file):
            label = str(record.get("is_duplicate") or "").strip()
            if label not in ("0", "1"):
                problem = f"needs the columns question1, question2, is_duplicate (0 or 1), got {list(record)[:8]} and {label!r}"
                raise CorpusError(str(file), problem, line)
            first, second = (str(record.get(name) or "").strip() for name in ("question1", "question2"))
            if not first or not second or first == second:
                continue
            if label == "1":
                pairs.append((first, second, line))
                classes[_root(classes, second)] = _root(classes, first)
            else:
                different.setdefault(first, {})[second] = None
                different.setdefault(second, {})[first] = None
    for first, second, line in pairs:
        own = _root(classes, first)
        others = [q for q in different.get(first, {}) if _root(classes, q) != own]
        yield Row(
            first,
            second,
            tuple(others),
            positive_id=own,
            negative_ids=tuple(_root(classes, q) for q in others),
            line=line,
        )


def sts(path: Path) -> Iterator[Row]:
    """Read graded pairs: a table with `sentence1`, `sentence2`, `score`; without a header, three columns so ordered.

    STS benchmark's own files, whose columns are genre, file, year, id, score, sentence1, sentence2, are known by
    their seven columns. The score is kept as it is; higher is more alike.
    """
    for file in files.inputs(path, ".tsv", ".csv", ".jsonl"):
        for line, first, second, score in _graded(file):
            try:
                grade = float(score)
            except (TypeError, ValueError):
                raise CorpusError(str(file), f"the score {score!r} is no number", line) from None
            if not math.isfinite(grade):
                raise CorpusError(str(file), f"the score {score!r} is not finite", line)
            yield Row(first, second, score=grade, line=line)


def pairs(path: Path) -> Iterator[Row]:
    """Read two columns between tabs, a text and what belongs to it; no header, no quoting; further columns are ignored."""
    for file in files.inputs(path, ".tsv", ".txt"):
        for line, cells in files.table(file, 2):
            yield Row(cells[0], cells[1], line=line)


def texts(path: Path) -> Iterator[Row]:
    """Read one text a line: each is its own positive (SimCSE, or distillation of a teacher's vectors)."""
    for file in files.inputs(path, ".txt", ".tsv"):
        for line, text in files.lines(file):
            yield Row(text.strip(), text.strip(), line=line)


def _root(classes: dict[str, str], question: str) -> str:
    root = question
    while root in classes and classes[root] != root:
        root = classes[root]
    while question in classes and classes[question] != root:
        classes[question], question = root, classes[question]
    return root


def _graded(file: Path) -> Iterator[tuple[int, str, str, Any]]:
    names = ("sentence1", "sentence2", "score")
    if ".jsonl" in file.suffixes:
        for line, record in files.records(file):
            first, second = (files.text_of(record, n, file, line) for n in names[:2])
            yield line, first, second, record.get("score")
        return
    if _has_header(file, names):
        for line, record in files.headed_table(file, quoted=".csv" in file.suffixes):
            yield line, str(record["sentence1"] or ""), str(record["sentence2"] or ""), record["score"]
        return
    for line, cells in files.table(file, 3):
        order = (5, 6, 4) if len(cells) >= 7 else (0, 1, 2)
        first, second, score = (cells[i] for i in order)
        yield line, first, second, score


def _has_header(file: Path, names: tuple[str, ...]) -> bool:
    head = next((line for _, line in files.lines(file)), "")
    cells = {cell.strip(' "') for cell in head.replace(",", "\t").split("\t")}
    return cells.issuperset(names)
