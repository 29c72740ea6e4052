"""Mixed load on a server whose index changes all the time; every answer is checked against the version it tells of.

Ten minutes with `make soak`, some seconds of the same here.
"""

from __future__ import annotations

import base64
import http.client
import json
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from embedkit import Embedder, get_embedder
from embedkit_indexes import Document, Index, SearchHit
from tests.cli.server.conftest import Server, Start, embedkit, wait_for

CORPUS = Path(__file__).parents[3] / "examples" / "corpus"
# What the arithmetic of one batch may differ from that of another.
CLOSE = 0.004
TASKS: list[str | dict[str, str] | None] = [
    None, "qa", "duplicate", "topic", {"instruction": "Find the text that tells how to mend it"}
]  # fmt: skip


log = logging.getLogger(__name__)


def _lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (CORPUS / name).read_text(encoding="utf-8").splitlines()]


class Truth:
    """The index as whoever changes it sees it: every version that is or was, and what each answers."""

    def __init__(self, place: Path, size: int) -> None:
        self.place = place
        self.rows = _lines("corpus.jsonl")[:size]
        self.queries = [row["text"] for row in _lines("queries.jsonl")][:30]
        self.embedders = {384: get_embedder("bundled"), 128: get_embedder("bundled", dim=128)}
        self.versions: dict[int, Index] = {}
        self._known: dict[str, list[SearchHit]] = {}
        self._lock = threading.Lock()  # the embedders take one caller at a time
        Index.build(place, self.documents(0), "bundled")
        self.note()

    def documents(self, edition: int) -> Iterator[Document]:
        """Yield an edition's documents: a fifth of them is another in the next."""
        for number, row in enumerate(self.rows):
            changed = edition - (edition + number) % 5
            yield Document(
                id=row["_id"], text=f"{row['text']} ({changed})", title=row.get("title", ""),
                metadata={"group": number % 4, "edition": changed},
            )  # fmt: skip

    def open(self) -> Index:
        """Open the latest version with its embedder."""
        return Index.open(self.place, self.embedders[Index.open(self.place).manifest.embedder["dim"]])

    def note(self) -> None:
        """Keep the latest version open."""
        index = self.open()
        with self._lock:
            index.search("what there is", k=1)  # maps the files: the next change may remove them
        self.versions[index.manifest.generation] = index

    def change(self, number: int) -> None:
        """Change the index in one of several ways, and keep the version that comes of it."""
        index = self.open()
        with self._lock:
            if number % 4 == 0:
                index.sync(self.documents(number + 1))
            elif number % 4 == 1:
                texts = [f"a new document {number} about {query}" for query in self.queries[:3]]
                index.add(Document(id=f"new-{number}-{i}", text=text, metadata={"group": 9}) for i, text in enumerate(texts))  # fmt: skip
            elif number % 4 == 2:
                index.delete([row["_id"] for row in self.rows[number % 7 :: 11]])
            else:
                index.compact()
        self.note()

    def found(self, generation: int, asked: dict[str, Any], task: Any) -> list[SearchHit]:
        """Return what a version answers to a search, three times as many hits as were asked for."""
        key = json.dumps([generation, asked, task], sort_keys=True)
        if key not in self._known:
            how = {"instruction": task["instruction"]} if isinstance(task, dict) else {"task": task}
            told = {name: asked[name] for name in ("mode", "lang", "where") if name in asked}
            index = wait_for(lambda: self.versions.get(generation))
            with self._lock:
                self._known[key] = index.search(asked["query"], k=3 * asked["k"], **how, **told).hits
        return self._known[key]

    def vectors(self, texts: list[str], task: str | None) -> NDArray[np.float32]:
        """Return the vectors of documents, or of queries under a task."""
        embedder: Embedder = self.embedders[384]
        with self._lock:
            return embedder.encode_query(texts, task=task) if task else embedder.encode_document(texts)


class Client(threading.Thread):
    """Ask without a pause until told to stop; note the first answer that is wrong."""

    def __init__(self, server: Server, truth: Truth, seed: int, stop: threading.Event) -> None:
        super().__init__()
        self.server, self.truth, self.stop = server, truth, stop
        self.draw = random.Random(seed)
        self.seen: Counter[str] = Counter()
        self.generation = 0
        self.wrong: str | None = None

    def run(self) -> None:
        """Search and embed in turns, on one connection."""
        connection = self.server.connect()
        try:
            while not self.stop.is_set():
                (self.search if self.draw.random() < 0.6 else self.embed)(connection)
        except Exception as e:
            self.wrong = f"{type(e).__name__}: {e}"
            self.stop.set()

    def post(self, connection: http.client.HTTPConnection, path: str, body: Any) -> Any:
        """Return the answer to a request, None where the server was busy and said so."""
        connection.request("POST", path, json.dumps(body))
        answer = connection.getresponse()
        raw = answer.read()
        self.seen[f"{path} {answer.status}"] += 1
        if answer.status == 429:
            assert int(answer.headers["Retry-After"]) >= 1
            time.sleep(0.05)
            return None
        assert answer.status == 200, raw
        return json.loads(raw)

    def search(self, connection: http.client.HTTPConnection) -> None:
        """Search under some tasks, and compare with what that version of the index answers."""
        asked: dict[str, Any] = {
            "query": self.draw.choice(self.truth.queries),
            "k": self.draw.choice([3, 10]),
            "mode": self.draw.choice(["dense", "dense", "hybrid", "lexical"]),
            **self.draw.choice([{}, {}, {"lang": "en"}, {"where": "group = 1"}, {"where": "group >= 2"}]),
        }
        tasks = self.draw.sample(TASKS, self.draw.randint(1, 3))
        body = asked if tasks == [None] else asked | {"tasks": [t for t in tasks if t is not None]}
        found = self.post(connection, "/search", body | {"snippets": self.draw.choice([True, "meaning"])})
        if found is None:
            return
        assert found["generation"] >= self.generation, "an older version than before"
        self.generation = found["generation"]
        self.seen[f"version {self.generation}"] += 1
        assert len(found["results"]) == len(body.get("tasks", [None]))
        for task, result in zip(body.get("tasks", [None]), found["results"], strict=True):
            self.compare(result["hits"], self.truth.found(self.generation, asked, task), asked)

    def compare(self, hits: list[dict[str, Any]], true: list[SearchHit], asked: dict[str, Any]) -> None:
        """Check that hits are those of a version, in its order but for scores that are as good as equal."""
        assert len(hits) == min(asked["k"], len(true)), (len(hits), len(true), asked)
        known = {hit.chunk_id: hit for hit in true}
        for place, hit in enumerate(hits):
            same = known.get(hit["chunk_id"])
            assert same is not None, (asked, place, hit["chunk_id"], hit["score"], [h.score for h in true])
            assert (hit["text"], hit["metadata"], hit["lang"]) == (same.text, same.metadata, same.lang)
            assert hit["text"][hit["snippet"]["start"] : hit["snippet"]["end"]] == hit["snippet"]["text"]
            for name in ("cosine", "bm25"):
                value, expected = hit[name], getattr(same, name)
                assert (value is None) == (expected is None)
                assert value is None or abs(value - expected) < CLOSE, (asked, name, value, expected)
            if asked["mode"] != "hybrid":  # whose scores come of the ranks
                assert abs(hit["score"] - true[place].score) < CLOSE, (asked, place)

    def embed(self, connection: http.client.HTTPConnection) -> None:
        """Embed texts, and compare with a direct call."""
        texts = [row["text"][:600] for row in self.draw.sample(self.truth.rows, self.draw.randint(1, 12))]
        task = self.draw.choice([None, "qa", "topic"])
        body: dict[str, Any] = {"input": texts, "model": "embedkit-small-v1"} | (
            {"task": task} if task else {}
        )
        if packed := self.draw.random() < 0.5:
            body["encoding_format"] = "base64"
        found = self.post(connection, "/v1/embeddings", body)
        if found is None:
            return
        rows = [d["embedding"] for d in found["data"]]
        got = (
            np.stack([np.frombuffer(base64.b64decode(r), "<f4") for r in rows]) if packed else np.array(rows)
        )
        cosines = (got * self.truth.vectors(texts, task)).sum(axis=1)
        assert got.shape == (len(texts), 384) and cosines.min() > 1 - CLOSE / 2, cosines


def _soak(
    start: Start, environment: dict[str, str], place: Path, *, size: int, seconds: float
) -> list[tuple[float, float]]:
    """Ask and change until the time is over and all has happened; return the share of the time, and the bytes held."""
    truth = Truth(place, size)
    server = start(place, "--embedder", "bundled", "--refresh", "0.1", "--max-queue", "16")
    stop = threading.Event()
    clients = [Client(server, truth, seed, stop) for seed in range(6)]
    memory: list[tuple[float, float]] = []
    for client in clients:
        client.start()
    begin = time.monotonic()
    number, swaps = 0, [("--dim", "128"), ("--dim", "384")]
    try:
        while not stop.is_set() and (time.monotonic() - begin < seconds or number < 8 or swaps):
            over = (time.monotonic() - begin) / seconds
            # To another embedder early, and back: at the end the server holds what it held at first.
            if swaps and number > 1 and over > (0.1 if len(swaps) == 2 else 0.5):
                embedkit(environment, "migrate", place, "--embedder", "bundled", *swaps.pop(0))
                truth.note()
            else:
                truth.change(number)
                number += 1
            stop.wait(min(seconds / 100, 2))
            memory.append((over, server.metric("process_resident_memory_bytes")))
        # Each of them gets an answer of the last version.
        latest = max(truth.versions)
        wait_for(lambda: stop.is_set() or min(client.generation for client in clients) == latest, 60)
    finally:
        stop.set()
        for client in clients:
            client.join(60)
    assert [client.wrong for client in clients if client.wrong] == []
    seen = sum((client.seen for client in clients), Counter())
    versions = [name for name in seen if name.startswith("version")]
    told = {name: seen[name] for name in seen if name not in versions}
    log.warning("%d versions, %d of them in answers; %s", len(truth.versions), len(versions), told)
    assert len(versions) > 2
    code, stderr = server.stop()
    assert (code, "Traceback" in stderr) == (0, False), stderr
    return memory


def test_every_answer_is_right_while_the_index_changes(
    start: Start, environment: dict[str, str], tmp_path: Path
) -> None:
    """Searches and embeddings from six clients, eight changes and two migrations: every answer is that of a version."""
    _soak(start, environment, tmp_path / "corpus", size=40, seconds=3)


@pytest.mark.soak
def test_ten_minutes_of_mixed_load(start: Start, environment: dict[str, str], tmp_path: Path) -> None:
    """The same for ten minutes; after the second, the server's memory grows by no more than a tenth."""
    memory = _soak(start, environment, tmp_path / "corpus", size=300, seconds=600)
    log.warning("MB: %s", [round(held / 1e6) for _, held in memory[:: max(len(memory) // 30, 1)]])

    def about(share: float) -> float:
        return median(held for at, held in memory if abs(at - share) <= 0.05)

    assert about(1) <= 1.1 * about(0.2)
    # From the second swap on as well, at which the server lets an embedder go.
    assert about(1) <= 1.1 * about(0.6)
