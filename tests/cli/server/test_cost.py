"""What one request may cost: bounds over all its tasks, and threads that end with the time of whom they work for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.server.conftest import Answer, Server, Start, launch, wait_for

# How the plug-in renders a document, and no query.
DOCUMENT = "passage: "


@pytest.fixture(scope="module")
def reranked(environment: dict[str, str], shop_index: Path) -> Iterator[Server]:
    """A server with a reranker."""
    running = launch(environment, shop_index, "--rerank", "strong=embedder:held")
    yield running
    assert running.stop()[0] == 0


def _begin(server: Server, body: dict[str, Any], count: int) -> tuple[list[Answer], list[threading.Thread]]:
    answers: list[Answer] = []
    threads = [
        threading.Thread(target=lambda: answers.append(server.post("/search", body))) for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    return answers, threads


def _join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join()


def test_searches_whose_time_is_up_let_go_of_their_threads(start: Start, shop_index: Path) -> None:
    """While the model holds the passages of a dozen searches that were answered 504, a search by words is answered."""
    server = start(shop_index, "--timeout", "8")
    hold = server.hold()
    calls = len(server.calls)
    body = {"query": "plan", "k": 4, "snippets": "meaning"}
    first, alone = _begin(server, body, 1)
    wait_for(lambda: len(server.calls) > calls)  # else two of the crowd may be encoded in one call
    answers, crowd = _begin(server, body, 11)
    wait_for(lambda: server.metric("embedkit_queue_texts") == 11)
    server.hold(DOCUMENT)
    _join(alone + crowd)
    assert {answer.status for answer in first + answers} == {504}
    plain = server.post("/search", {"query": "plan", "mode": "lexical"}).status
    hold.unlink()
    assert plain == 200
    assert server.post("/search", {"query": "plan", "snippets": "meaning"}).status == 200
    wait_for(lambda: server.metric("embedkit_queue_texts") == 0)


def test_a_slow_reranker_holds_up_its_own_searches_alone(start: Start, shop_index: Path) -> None:
    """While a dozen searches wait for one reranker, others go on: plain ones, and those of another reranker."""
    server = start(shop_index, "--rerank", "slow=embedder:held", "--rerank", "other=embedder:held")
    hold = server.hold(DOCUMENT)
    answers, crowd = _begin(server, {"query": "plan", "mode": "lexical", "rerank": "slow"}, 12)
    wait_for(lambda: server.metric("embedkit_searches_under_way") == 12)
    plain = server.post("/search", {"query": "plan"}).status
    # A search without a hit has nothing to score.
    other = server.post("/search", {"query": "plan", "where": "year > 9999", "rerank": "other"}).status
    hold.unlink()
    _join(crowd)
    assert (plain, other) == (200, 200)
    assert [answer.status for answer in answers] == [200] * 12


def test_a_reranker_has_a_queue_of_its_own(start: Start, shop_index: Path) -> None:
    """More searches than may wait for one reranker get 429, and leave room for plain ones."""
    server = start(shop_index, "--rerank", "slow=embedder:held")
    hold = server.hold(DOCUMENT)
    answers, crowd = _begin(server, {"query": "plan", "mode": "lexical", "rerank": "slow"}, 40)
    wait_for(lambda: server.metric("embedkit_rejected_total") >= 8)
    assert server.post("/search", {"query": "plan"}).status == 200
    hold.unlink()
    _join(crowd)
    refused = [answer for answer in answers if answer.status == 429]
    assert (len(refused), {answer.status for answer in answers}) == (8, {200, 429})
    assert "32 searches wait for the reranker 'slow'" in refused[0].message
    assert int(refused[0].headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    ("asked", "param", "message"),
    [
        ({"tasks": ["qa"] * 8, "k": 1000, "context": {"expand": 2}}, "context.expand", "8 tasks x 1,000 hits (k) x 5 chunks (context.expand) are 40,000"),
        ({"k": 1000, "context": {"expand": 100}}, "context.expand", "more than the 2,000"),
        ({"tasks": ["qa"] * 8, "rerank": "strong", "rerank_depth": 1000}, "rerank_depth", "8 tasks x 1,000 hits (rerank_depth, or k) are 8,000"),
        ({"tasks": ["qa"] * 2, "rerank": "strong", "k": 600}, "rerank_depth", "more than the 1,000"),
    ],
)  # fmt: skip
def test_fields_that_multiply_are_bounded(
    reranked: Server, asked: dict[str, Any], param: str, message: str
) -> None:
    """Tasks, hits, depth and neighbours are bounded by what they make together, in a sentence that names them."""
    answer = reranked.post("/search", {"query": "plan", **asked})
    assert (answer.status, answer.json["error"]["param"]) == (400, param)
    assert message in answer.message
    small = {"k": 4, "rerank_depth": 4} | (
        {"context": {**asked["context"], "expand": 1}} if "context" in asked else {}
    )
    assert reranked.post("/search", {"query": "plan", **asked, **small}).status == 200


def test_tokens_of_a_request_are_bounded(start: Start) -> None:
    """What the model would read beyond the limit is refused before it works; what is cut off does not count."""
    server = start("--embedder", "held", "--max-tokens", "130", "--max-texts", "5000")
    before = len(server.calls)
    refused = server.post("/v1/embeddings", {"input": ["word " * 62] * 3})
    assert (refused.status, refused.json["error"]["param"]) == (400, "input")
    assert "more than the 130 tokens that one request may hold" in refused.message
    assert server.post("/v1/embeddings", {"input": ["wörter " * 62] * 3}).status == 400
    assert len(server.calls) == before
    # A prefix, a special token and 1,000 words, of which 64 tokens are read.
    answer = server.post("/v1/embeddings", {"input": ["word " * 1000] * 2})
    assert answer.status == 200
    assert answer.json["usage"]["prompt_tokens"] == 128
    assert answer.headers["x-truncated-tokens"] == str(2 * (1002 - 64))
    queries = {"input": ["a b c"] * 10, "instruction": "find " * 10}
    assert server.post("/v1/embeddings", queries).status == 400
    assert server.post("/v1/embeddings", {**queries, "instruction": "find"}).status == 200
