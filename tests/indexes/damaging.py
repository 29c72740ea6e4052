"""Damage an index's files in a process of its own, and tell what opening, verifying and searching make of it.

`python -m tests.indexes.damaging FOLDER FIRST COUNT` damages the index FOLDER/index `COUNT` times, with seeds from
FIRST on, and prints a line before and after each: whoever reads them knows which damage has ended the process.
"""

from __future__ import annotations

import gc
import json
import random
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from embedkit.errors import CorruptIndexError
from embedkit_indexes import EngineConfig, Index

from .changing import CHUNKING, documents, first_embedder
from .crashing import ROOT, environment

KINDS = ("flip", "flip", "flip", "zeros", "ones", "noise")


@dataclass(frozen=True)
class Outcome:
    """What a damage did: `found` by "open" or "verify" ("" for neither), and what was wrong with the answers."""

    seed: int
    file: str
    kind: str
    at: int
    found: str
    wrong: str


def make_index(folder: Path, engine: str) -> None:
    """Build an index with every kind of file: an engine's, words, metadata, deletions."""
    config = EngineConfig(type=engine, exact_limit=100)
    Index.build(folder / "index", documents(0, 300), first_embedder(), engine=config, chunking=CHUNKING)
    index = Index.open(folder / "index", first_embedder())
    index.add(documents(300, 320))
    index.delete([f"d{i}" for i in range(0, 320, 9)])


def files(place: Path) -> list[Path]:
    """Return the index's files, the lock apart."""
    return sorted(p for p in place.rglob("*") if p.is_file() and p.name != "writer.lock")


def damage_files(folder: Path, first: int, count: int) -> tuple[list[Outcome], list[str]]:
    """Damage an index `count` times; return the outcomes, and what ended the process, each with its damage."""
    outcomes, crashes = [], []
    seed = first
    while seed < first + count:
        done = subprocess.run(
            [sys.executable, "-m", "tests.indexes.damaging", folder, str(seed), str(first + count - seed)],
            cwd=ROOT, env=environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        outcomes += [Outcome(**line) for line in lines if "found" in line]
        if done.returncode == 0:
            break
        crashes.append(f"{lines[-1]} ended with {done.returncode}: {done.stderr[-2000:]}")
        seed = lines[-1]["seed"] + 1
    return outcomes, crashes


class _Judge:
    """Open and search, and compare with what there was before the damage."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._embedder = first_embedder()
        hits = Index.open(place, self._embedder).search("word1", k=10_000).hits
        self._rows = {h.document_id: (h.chunk_id, h.text) for h in hits}
        self._known = {f"d{i}" for i in range(320)}

    def found(self, path: Path) -> tuple[str, Index | None]:
        """Return what found the damage, and the index where it opened."""
        try:
            index = Index.open(self._place, self._embedder)
        except CorruptIndexError:
            return "open", None
        try:
            index.verify()
        except CorruptIndexError as e:
            return ("verify" if path.name in str(e) else f"{path.name} taken for another: {e}"), index
        return "", index

    def wrong(self, index: Index, path: Path) -> str:
        """Search in every way; return what neither answers nor says that the index is corrupt."""
        asked: list[dict[str, Any]] = [
            {"k": 5},
            {"k": 10_000},
            {"k": 200, "mode": "lexical"},
            {"k": 5, "mode": "hybrid"},
            {"k": 5, "where": "edition = 0 and number >= 40"},
            {"k": 300, "where": 'lang = "de" or source like "part%" or title = "x"', "mode": "hybrid"},
            {"k": 5, "where": 'text contains "word7" and id != "d4"'},
        ]
        for options in asked:
            try:
                hits = [h for r in index.search_many(["word1 word7", "word40 n8"], **options) for h in r.hits]
                for hit in hits:
                    asdict(hit)  # reads all of it
            except CorruptIndexError:
                continue
            except Exception as e:
                return f"{options}: {type(e).__name__}: {e}"
            if len(hits) > 2 * options["k"] or (path.name != "chunks.arrow" and not self._real(hits)):
                return f"{options}: rows that do not exist"
        try:
            index.document_languages()
            index.rank(["word1"], k=5)
        except CorruptIndexError:
            pass
        except Exception as e:
            return f"{type(e).__name__}: {e}"
        return ""

    def _real(self, hits: list[Any]) -> bool:
        return all(
            h.document_id in self._known
            and self._rows.get(h.document_id, (h.chunk_id, h.text)) == (h.chunk_id, h.text)
            for h in hits
        )


def _damaged(data: bytes, rng: random.Random, kind: str) -> tuple[bytes, int]:
    """Return other bytes of the same length, and where they differ."""
    # The beginning and the end hold what the rest is read by.
    edges = [*range(min(len(data), 300)), *range(max(0, len(data) - 2000), len(data))]
    at = rng.choice(edges) if rng.random() < 0.3 else rng.randrange(len(data))
    if kind == "flip":
        change = bytes([data[at] ^ rng.choice([*(1 << b for b in range(8)), rng.randrange(1, 256)])])
    else:
        width = min({"zeros": 40, "ones": 8, "noise": 24}[kind], len(data) - at)
        change = {"zeros": bytes(width), "ones": b"\xff" * width, "noise": rng.randbytes(width)}[kind]
    return data[:at] + change + data[at + len(change) :], at


def _main(folder: Path, first: int, count: int) -> None:
    place = folder / "damaged"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder / "index", place)
    judge = _Judge(place)
    judge.wrong(Index.open(place, first_embedder()), place)  # imports everything
    gc.collect()
    gc.freeze()
    paths = files(place)
    for seed in range(first, first + count):
        rng = random.Random(seed)
        path, kind = paths[seed % len(paths)], rng.choice(KINDS)
        whole = path.read_bytes()
        damaged, at = _damaged(whole, rng, kind)
        if damaged == whole:
            continue
        told: dict[str, Any] = {"seed": seed, "file": path.name, "kind": kind, "at": at}
        _say(told)
        _replace(path, damaged)
        found, index = judge.found(path)
        wrong = judge.wrong(index, path) if index is not None else ""
        _say(asdict(Outcome(**told, found=found, wrong=wrong)))
        _replace(path, whole)
        del index
        gc.collect()


def _replace(path: Path, data: bytes) -> None:
    # A file of its own: what is mapped still is not pulled away.
    beside = path.with_name("beside")
    beside.write_bytes(data)
    beside.replace(path)


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
