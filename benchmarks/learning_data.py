"""Make the rows that `learning.py` trains on: FAQ answers, intents, headings, and functions with their docstrings.

Every row says which instruction it is asked under, and the two intent sets hold each query twice, under two
instructions whose answers are each other's negatives: that is what teaches a model to obey.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import lzma
import random
import re
import sysconfig
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

FAQ = (
    "Given a medical question, retrieve the answer from a health FAQ.",
    "Given a question about a disease, retrieve the passage that answers it.",
    "Find the answer to this question.",
)
SIMILAR = (
    "Retrieve customer messages that express the same intent.",
    "Find other utterances with the same purpose as this one.",
    "Given a request, retrieve requests that want the same thing.",
)
LABEL = (
    "Classify the intent of this customer message.",
    "Retrieve the name of the intent behind this utterance.",
    "Given a request, retrieve the name of its category.",
)
SECTION = (
    "Given a documentation heading, retrieve the section under it.",
    "Given a page title and heading, retrieve the text of that section.",
)
CODE = (
    "Given a natural-language description, retrieve the function that implements it.",
    "Given a question about programming, retrieve the Python code that solves it.",
    "Find the Python function that does this.",
)
# Installed packages beside the standard library: written in Python, and under the BSD or the MIT licence.
PACKAGES = ("networkx", "sympy", "numpy", "scipy", "sklearn", "click", "rich", "pydantic")
PER_PACKAGE = 1200
SHORTEST, LONGEST = 4, 40  # words of a docstring's first sentence
_TESTS = ("site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "_pyrepl")


def read_pairs(folder: Path) -> Iterator[Row]:
    """Yield the pairs of a training set, from `pairs.jsonl` or `pairs.jsonl.xz`."""
    plain, packed = folder / "pairs.jsonl", folder / "pairs.jsonl.xz"
    with (
        plain.open(encoding="utf-8") if plain.is_file() else lzma.open(packed, "rt", encoding="utf-8") as file
    ):
        yield from map(json.loads, file)


def pick(choices: Sequence[str], *content: str) -> str:
    """Return one of `choices`, the same one for the same content."""
    return choices[_number(*content) % len(choices)]


def faq_rows(pairs: Iterable[Row], source: str) -> Iterator[Row]:
    """Turn question and answer into rows; the negative answers another question about the same disease."""
    for pair in pairs:
        yield _row(pair["query"], _documents(pair), pick(FAQ, pair["query"]), source)


def section_rows(pairs: Iterable[Row], source: str) -> Iterator[Row]:
    """Turn English headings and their sections into rows; the negative is another section of the page."""
    for pair in pairs:
        if pair["lang_q"] == "en" and len(pair["query"].split()) > 1:
            instruction = pick(SECTION, pair["query"], pair["positive"])
            yield _row(pair["query"], _documents(pair), instruction, source)


def intent_rows(pairs: Iterable[Row], source: str) -> Iterator[Row]:
    """Turn intents into rows of two tasks over the same queries: an utterance of the same intent, or its name.

    The identity of a document is its intent and its kind, so that a batch's other utterances of the same intent
    are masked, while the intent's name stays a negative of the utterance task, and the other way round.
    """
    pairs = list(pairs)
    names = {p["query"]: p["positive"] for p in pairs if p["task"] == "intent_label"}
    utterances: dict[str, list[str]] = defaultdict(list)
    for text, name in names.items():
        utterances[name].append(text)
    for pair in pairs:
        query, positive = pair["query"], pair["positive"]
        label = names.get(query)
        said, named = f"{source}/{label}/utterance", f"{source}/{label}/name"
        if label is not None and pair["task"] == "intent_label":
            other = pick([u for u in utterances[label] if u != query], query)
            yield _row(query, [label, other], pick(LABEL, query, label), source, [named, said])
        elif label is not None and names.get(positive) == label:
            yield _row(query, [positive, label], pick(SIMILAR, query, positive), source, [said, named])


def code_rows(functions: Iterable[tuple[str, str]], source: str = "docstrings") -> Iterator[Row]:
    """Turn docstrings and their functions into rows, each sentence and each function once."""
    sentences: set[str] = set()
    bodies: set[str] = set()
    for sentence, code in functions:
        if normal(sentence) not in sentences and normal(code) not in bodies:
            sentences.add(normal(sentence))
            bodies.add(normal(code))
            yield _row(sentence, [code], pick(CODE, sentence), source)


def python_files(packages: Sequence[str] = PACKAGES) -> Iterator[tuple[str, list[Path]]]:
    """Yield the standard library's and the installed packages' Python files, tests left out, with their name."""
    roots = {"stdlib": Path(sysconfig.get_paths()["stdlib"])}
    for name in packages:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            roots[name] = Path(spec.submodule_search_locations[0])
    for name, root in roots.items():
        files = (f for f in sorted(root.rglob("*.py")) if not set(f.relative_to(root).parts) & set(_TESTS))
        yield name, [f for f in files if not f.stem.startswith("test_")]


def functions_of(files: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """Yield (first sentence of the docstring, source without the docstring) of the files' functions."""
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
            tree = ast.parse(text)
        except (OSError, ValueError, SyntaxError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _described(node, text.splitlines())


def described_functions(per_package: int = PER_PACKAGE) -> Iterator[tuple[str, str]]:
    """Yield sentences and functions of all packages, at most `per_package` of each (five times it of the stdlib)."""
    for name, files in python_files():
        found = sorted(set(functions_of(files)), key=lambda f: _number(*f))
        yield from found[: 5 * per_package if name == "stdlib" else per_package]


def first_sentence(docstring: str) -> str:
    """Return the first sentence of a docstring on one line, without its markup and its full stop."""
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    sentence = re.split(r"(?<=[.!?])\s", paragraph)[0].rstrip(".")
    return re.sub(r":[a-z:]+:`~?([^`]*)`|`+", r"\1", sentence).strip()


def normal(text: str) -> str:
    """Return the letters and digits of a text in lower case, one space between words."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def key(text: str) -> str:
    """Return what two texts share that begin alike: the first 400 characters of the normal form."""
    return normal(text)[:400]


def write_rows(path: Path, rows: Iterable[Row], seen: set[str], seed: int = 0) -> tuple[int, int]:
    """Write rows shuffled, without those that hold a text whose `key` is in `seen`: (kept, left out)."""
    found = list(rows)
    kept = [r for r in found if not any(key(t) in seen for t in _texts(r))]
    random.Random(seed).shuffle(kept)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
    return len(kept), len(found) - len(kept)


def _documents(pair: Row) -> list[str]:
    return [pair["positive"], *pair.get("negative", [])]


def _texts(row: Row) -> list[str]:
    # An intent's name is the task itself; everything else must not be known from the evaluation.
    documents = [row["positive"], *row["negatives"]]
    identities = [row.get("positive_id", ""), *row.get("negative_ids", [""] * len(row["negatives"]))]
    return [row["query"], *(d for d, i in zip(documents, identities, strict=True) if not i.endswith("/name"))]


def _described(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> Iterator[tuple[str, str]]:
    docstring = ast.get_docstring(node)
    if not docstring or len(node.body) < 2:
        return
    sentence = first_sentence(docstring)
    start, end = node.body[0].lineno - 1, node.body[0].end_lineno or 0
    code = lines[node.lineno - 1 : start] + lines[end : node.end_lineno]
    indent = node.col_offset
    if (
        SHORTEST <= len(sentence.split()) <= LONGEST
        and sentence.isascii()
        and "deprecated" not in sentence.lower()
    ):
        yield sentence, "\n".join(line[indent:] for line in code if line.strip())


def _row(query: str, documents: Sequence[str], instruction: str, source: str, ids: Sequence[str] = ()) -> Row:
    """Return a row; the first of `documents` (and of `ids`) is the positive."""
    row: Row = {"query": query, "positive": documents[0], "negatives": list(documents[1:])}
    if ids:
        row |= {"positive_id": ids[0], "negative_ids": list(ids[1:])}
    return row | {"instruction": instruction, "source": source}


def _number(*content: str) -> int:
    return int.from_bytes(hashlib.sha256("\0".join(content).encode()).digest()[:8], "big")
