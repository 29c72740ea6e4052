"""An index changes while it is served: new versions are taken up, and no request is lost over it."""

from __future__ import annotations

import json
import select
import shutil
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cli.server.conftest import Server, Start, embedkit, wait_for


@pytest.fixture(scope="module")
def built(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small index that every test copies."""
    folder = tmp_path_factory.mktemp("built")
    rows = [{"_id": f"d{i}", "text": f"document number {i} tells of plans"} for i in range(20)]
    (folder / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    embedkit(environment, "index", folder / "c.jsonl", "-o", folder / "changing", "--embedder", "held")
    return folder / "changing"


@pytest.fixture
def changing(built: Path, tmp_path: Path) -> Path:
    """A small index of the test's own."""
    return Path(shutil.copytree(built, tmp_path / "changing"))


@contextmanager
def _asked_all_the_time(server: Server, index: str) -> Iterator[list[Any]]:
    """Search from three clients until the block ends, and give every answer's status and generation."""
    seen: list[Any] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answer = server.post("/search", {"query": "plans", "index": index, "tasks": ["qa", "topic"]})
            found = answer.json.get("generation"), [len(r["hits"]) for r in answer.json.get("results", [])]
            seen.append((answer.status, *found))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _index(server: Server, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(
        (i for i in server.get("/indexes").json["indexes"] if i["name"] == name), {}
    )
    return found


def test_a_change_is_taken_up_without_a_lost_request(
    start: Start, environment: dict[str, str], changing: Path, tmp_path: Path
) -> None:
    """While three clients search, documents are added and others deleted: every answer is right for its version."""
    server = start(changing, "--refresh", "0.05")
    (tmp_path / "more.jsonl").write_text(json.dumps({"_id": "new", "text": "a zebra crosses the street"}))
    with _asked_all_the_time(server, "changing") as seen:
        wait_for(lambda: len(seen) > 5)
        embedkit(environment, "add", tmp_path / "more.jsonl", "-o", changing)
        wait_for(lambda: _index(server, "changing")["generation"] == 2)
        embedkit(environment, "delete", changing, *[f"d{i}" for i in range(15)])
        wait_for(lambda: _index(server, "changing")["generation"] == 3)
        count = len(seen)
        wait_for(lambda: len(seen) > count + 5)
    assert {s for s, _, _ in seen} == {200}
    assert {g for _, g, _ in seen} >= {1, 3}
    assert all(hits == ([6, 6] if generation == 3 else [10, 10]) for _, generation, hits in seen)
    found = server.post("/search", {"query": "zebra", "mode": "lexical"}).json["results"][0]["hits"]
    assert [h["document_id"] for h in found] == ["new"]
    assert server.metric("embedkit_index_versions_total") == 2


def test_a_migrated_index_is_opened_with_its_new_embedder(
    start: Start, environment: dict[str, str], changing: Path
) -> None:
    """While clients search, the index is migrated to another embedder; answers go on, and the models follow."""
    server = start(changing, "--refresh", "0.05")
    assert [m["id"] for m in server.get("/v1/models").json["data"]] == ["held-1"]
    with _asked_all_the_time(server, "changing") as seen:
        wait_for(lambda: len(seen) > 5)
        embedkit(environment, "migrate", changing, "--embedder", "held", "--embedder-option", "seed=2")
        wait_for(lambda: _index(server, "changing")["embedder"]["name"] == "held-2")
        count = len(seen)
        wait_for(lambda: len(seen) > count + 5)
    assert {(status, tuple(hits)) for status, _, hits in seen} == {(200, (10, 10))}
    assert {g for _, g, _ in seen} == {1, 2}
    # The old one goes with the last request that used it.
    wait_for(lambda: [m["id"] for m in server.get("/v1/models").json["data"]] == ["held-2"])
    assert server.post("/v1/embeddings", {"input": "a", "model": "held-2"}).status == 200
    assert server.post("/v1/embeddings", {"input": "a", "model": "held-1"}).status == 404


def test_a_name_that_two_models_share_is_no_one_s(
    start: Start, environment: dict[str, str], changing: Path, tmp_path: Path
) -> None:
    """While indexes differ in the dimension of one model, it is called by name and fingerprint, and by no name alone."""
    first = Path(shutil.copytree(changing, tmp_path / "first"))
    server = start(first, changing, "--refresh", "0.05")

    def models() -> list[str]:
        return [m["id"] for m in server.get("/v1/models").json["data"]]

    def dim(model: str | None) -> int:
        answer = server.post("/v1/embeddings", {"input": "a"} | ({} if model is None else {"model": model}))
        return len(answer.json["data"][0]["embedding"]) if answer.status == 200 else answer.status

    assert models() == ["held-1"] and dim(None) == dim("held-1") == dim("held") == 16
    embedkit(environment, "migrate", first, "--embedder", "held", "--embedder-option", "size=12")
    wait_for(lambda: len(models()) == 2)
    short, long = models()
    assert short.startswith("held-1@") and long.startswith("held-1@")
    assert [dim(m) for m in (None, short, long, "held-1", "held")] == [12, 12, 16, 404, 404]
    embedkit(environment, "migrate", changing, "--embedder", "held", "--embedder-option", "size=12")
    wait_for(lambda: models() == ["held-1"])
    assert [dim(m) for m in (None, "held-1", short, long)] == [12, 12, 12, 404]


def test_the_servers_own_model_keeps_its_name(
    start: Start, environment: dict[str, str], changing: Path
) -> None:
    """What --embedder opened is the default, and goes on to be called as before when an index brings another of its name."""
    server = start(changing, "--refresh", "0.05", "--embedder", "held")
    embedkit(environment, "migrate", changing, "--embedder", "held", "--embedder-option", "size=12")
    wait_for(lambda: len(server.get("/v1/models").json["data"]) == 2)
    for model in (None, "held-1", "held"):
        body = {"input": "a"} | ({} if model is None else {"model": model})
        assert len(server.post("/v1/embeddings", body).json["data"][0]["embedding"]) == 16
    other = server.get("/v1/models").json["data"][1]
    assert other["id"] == f"held-1@{other['fingerprint']}" and other["dimensions"] == 12


def test_an_index_deleted_while_it_is_served(
    start: Start, changing: Path, shop_index: Path, tmp_path: Path
) -> None:
    """Its searches get 503 and one sentence, the others go on; when it is there again it is served again."""
    server = start(changing, shop_index, "--refresh", "0.05")
    shutil.copytree(changing, tmp_path / "copy")
    shutil.rmtree(changing)
    wait_for(lambda: server.post("/search", {"query": "a"}).status == 503)
    answer = server.post("/search", {"query": "a", "index": "changing"})
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    assert answer.message == "the index 'changing' is not there at present: try again later"
    assert server.post("/search", {"query": "a", "index": "shop"}).status == 200
    assert [i["name"] for i in server.get("/indexes").json["indexes"]] == ["shop"]
    assert (server.get("/ready").status, server.get("/health").status) == (200, 200)
    (tmp_path / "copy").rename(changing)
    wait_for(lambda: server.post("/search", {"query": "a", "index": "changing"}).status == 200)
    assert server.get("/ready").status == 200
    code, stderr = server.stop()
    assert code == 0
    assert len(stderr.splitlines()) == 2 and "is gone from" in stderr and "is served in version 1" in stderr


def _switch(link: Path, target: Path) -> None:
    """Let a link lead to another place in one step."""
    new = link.with_name("new link")
    new.symlink_to(target)
    new.replace(link)


@pytest.fixture
def other(environment: dict[str, str], changing: Path, tmp_path: Path) -> Path:
    """The index `changing` with six documents, another embedder and another generation."""
    folder = Path(shutil.copytree(changing, tmp_path / "v2"))
    embedkit(environment, "migrate", folder, "--embedder", "held", "--embedder-option", "seed=2")
    embedkit(environment, "delete", folder, *[f"d{i}" for i in range(14)])
    return folder


def test_a_switched_link_is_a_new_version(start: Start, changing: Path, other: Path, tmp_path: Path) -> None:
    """A link gives its own name to the index; while clients search it is switched to and fro, and no request is lost."""
    current = tmp_path / "current"
    current.symlink_to(changing)
    server = start(current, f"twice={current}", "--refresh", "0.05")
    assert [i["name"] for i in server.get("/indexes").json["indexes"]] == ["current", "twice"]
    with _asked_all_the_time(server, "current") as seen:
        wait_for(lambda: len(seen) > 5)
        for target, generation in ((other, 3), (changing, 1), (other, 3)):
            _switch(current, target)
            wait_for(lambda wanted=generation: _index(server, "current")["generation"] == wanted)  # type: ignore[misc]
    assert {(status, generation, tuple(hits)) for status, generation, hits in seen} == {
        (200, 1, (10, 10)),
        (200, 3, (6, 6)),
    }
    wait_for(lambda: _index(server, "twice")["generation"] == 3)
    assert server.stop()[0] == 0


def test_a_version_keeps_to_its_own_files(start: Start, changing: Path, other: Path, tmp_path: Path) -> None:
    """Until the next look a switched link changes nothing, not even for what is read for the first time."""
    current = tmp_path / "current"
    current.symlink_to(changing)
    server = start(current, "--refresh", "3600")
    _switch(current, other)
    for mode in ("lexical", "dense", "hybrid"):
        answer = server.post("/search", {"query": "document number 3", "mode": mode})
        assert (answer.status, answer.json["generation"]) == (200, 1)
        assert len(answer.json["results"][0]["hits"]) == 10


def test_a_version_that_cannot_be_opened_leaves_the_old_one(start: Start, changing: Path) -> None:
    """A manifest that is damaged is logged; searches are answered from the version before until it is sound again."""
    server = start(changing, "--refresh", "0.05")
    manifest = changing / "embedkit.json"
    sound = manifest.read_text()

    def write(text: str) -> None:
        # In one step: a look at half of it would say something else.
        (changing / "beside").write_text(text)
        (changing / "beside").replace(manifest)

    write(sound[:200])
    assert "has a new version that cannot be served" in _next_line(server)
    assert server.post("/search", {"query": "a"}).json["generation"] == 1
    write(sound)
    assert "is served in version 1" in _next_line(server)
    assert server.post("/search", {"query": "a"}).status == 200


def _next_line(server: Server) -> str:
    stderr = server.process.stderr
    assert stderr is not None and select.select([stderr], [], [], 30)[0], "nothing is said"
    return str(stderr.readline())


def test_a_busy_server_takes_up_a_new_version(
    start: Start, environment: dict[str, str], changing: Path, tmp_path: Path
) -> None:
    """While the queue is full and clients get 429, what the server itself has to encode for a new version waits in it."""
    server = start(changing, "--refresh", "0.05", "--max-queue", "2")
    (tmp_path / "more.jsonl").write_text(json.dumps({"_id": "new", "text": "a zebra crosses the street"}))
    calls = len(server.calls)
    hold = server.hold()
    with ThreadPoolExecutor(2) as clients:
        answers = [clients.submit(server.post, "/v1/embeddings", {"input": "first"})]
        wait_for(lambda: len(server.calls) > calls)
        answers.append(clients.submit(server.post, "/v1/embeddings", {"input": ["one", "two"]}))
        wait_for(lambda: server.metric("embedkit_queue_texts") == 2)
        embedkit(environment, "add", tmp_path / "more.jsonl", "-o", changing)
        wait_for(lambda: server.metric("embedkit_queue_texts") > 2)
        assert server.post("/v1/embeddings", {"input": "refused"}).status == 429
        hold.unlink()
        assert [a.result().status for a in answers] == [200, 200]
    wait_for(lambda: _index(server, "changing")["generation"] == 2)
    assert "cannot be served" not in server.stop()[1]
