"""The batcher alone: who is cancelled, refused, failed, counted, and that its threads live on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from embedkit import Embedder, EmbedderInfo
from embedkit.errors import EmbedderError, ServerError
from embedkit_cli.server.batching import Batcher, Encoded
from embedkit_cli.server.errors import ApiError
from embedkit_cli.server.units import Unit
from embedkit_cli.server.workers import Workers
from tests.cli.server.conftest import wait_for


class Panic(BaseException):
    """What a tokenizer written in Rust raises: no Exception."""


class Scripted(Embedder):
    """Encode a text as its length; wait while held, and do what a text's first word says."""

    info = EmbedderInfo(name="scripted", dim=4, max_length=64, pooling="none", weights="scripted")

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.counted = 0
        self.going = threading.Event()
        self.going.set()

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count words, of miscounted texts not all."""
        self.counted += len(texts)
        return [len(t.split()) for t in texts if not t.startswith("miscounted")]

    def encode_rendered(self, texts: Sequence[str], *, normalize: bool = True) -> NDArray[np.float32]:
        """Return vectors; of a text that gets short measure, too few."""
        del normalize
        self.calls.append(list(texts))
        assert self.going.wait(120)
        errors = {
            "poison": EmbedderError,
            "down": ServerError,
            "unreachable": ConnectionError,
            "panic": Panic,
        }
        for text in texts:
            if text.split()[0] in errors:
                raise errors[text.split()[0]](text)
        lengths = [len(t) for t in texts if not t.startswith("missing")]
        return np.repeat(np.array(lengths, np.float32)[:, None], 4, axis=1)

    def _embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        raise NotImplementedError


def units(*texts: str) -> list[Unit]:
    """Return documents to encode."""
    return [Unit("document", None, text) for text in texts]


@pytest.fixture
def embedder() -> Iterator[Scripted]:
    """An embedder that is let go at the end."""
    scripted = Scripted()
    yield scripted
    scripted.going.set()


def together(
    embedder: Scripted, batcher: Batcher, *requests: tuple[str, ...], count: Sequence[bool] = ()
) -> list[Encoded | BaseException]:
    """Encode several requests in one batch: all wait behind one that is under way."""

    async def run() -> list[Encoded | BaseException]:
        embedder.going.clear()
        calls = len(embedder.calls)
        first = asyncio.create_task(batcher.encode(units("first")))
        while len(embedder.calls) == calls:
            await asyncio.sleep(0)
        rest = [
            asyncio.create_task(batcher.encode(units(*texts), count=bool(count) and count[i]))
            for i, texts in enumerate(requests)
        ]
        await asyncio.sleep(0)
        embedder.going.set()
        await first
        return list(await asyncio.gather(*rest, return_exceptions=True))

    return asyncio.run(run())


def test_a_text_that_fails_fails_its_own_request(embedder: Scripted) -> None:
    """Where a text may be to blame, the batch is asked again in parts, and one request alone fails."""
    batcher = Batcher(embedder, 100, 1000)
    one, bad, two = together(embedder, batcher, ("one",), ("good", "poison"), ("two", "three"))
    assert isinstance(one, Encoded) and isinstance(two, Encoded)
    assert isinstance(bad, EmbedderError) and str(bad) == "poison"
    assert one.vectors.tolist() == [[3.0] * 4]
    assert two.vectors[:, 0].tolist() == [3, 5]
    assert batcher.waiting == 0


@pytest.mark.parametrize(("word", "error"), [("down", ServerError), ("unreachable", ConnectionError)])
def test_a_server_that_is_down_is_asked_once(embedder: Scripted, word: str, error: type[Exception]) -> None:
    """Where no text is to blame, all requests of a batch fail at once, and the embedder is not asked again."""
    batcher = Batcher(embedder, 100, 1000)
    failed = together(embedder, batcher, (word,), ("one",), ("two",))
    assert [type(e) for e in failed] == [error] * 3
    assert embedder.calls[1:] == [[word, "one", "two"]]


@pytest.mark.parametrize("word", ["miscounted", "missing", "panic"])
def test_a_thread_outlives_what_an_embedder_gets_wrong(embedder: Scripted, word: str) -> None:
    """Too few counts or vectors, or a panic: that request gets an error, the next ones their vectors."""
    batcher = Batcher(embedder, 100, 1000)
    bad, good = together(embedder, batcher, (word, "more"), ("good",), count=(True, False))
    assert isinstance(bad, EmbedderError)
    assert isinstance(good, Encoded) and good.vectors[0, 0] == 4
    assert batcher.encode_waiting(units("later")).vectors[0, 0] == 5


def test_tokens_are_counted_where_they_are_asked_for(embedder: Scripted) -> None:
    """The texts of requests that want no counts are not counted, whatever else is in their batch."""
    told: list[int] = []
    batcher = Batcher(embedder, 100, 1000, lambda texts, seconds: told.append(texts))
    _, counted = together(embedder, batcher, ("a b c d",), ("e f", "g"), count=(False, True))
    assert isinstance(counted, Encoded) and counted.tokens == [2, 1]
    assert told == [1, 3]
    assert embedder.counted == 2


def test_a_request_given_up_is_not_encoded(embedder: Scripted) -> None:
    """Who is cancelled while waiting, coroutine or thread, leaves the queue; the texts never reach the embedder."""
    batcher = Batcher(embedder, 5, 1000)
    workers = Workers(1, "test", 1, "tests wait")

    async def run() -> None:
        embedder.going.clear()
        first = asyncio.create_task(batcher.encode(units("first")))
        while not embedder.calls:
            await asyncio.sleep(0)
        gone = asyncio.create_task(batcher.encode(units("gone", "gone")))
        gone_too = asyncio.create_task(workers.run(batcher.encode_waiting, units("gone", "too")))
        stays = asyncio.create_task(batcher.encode(units("stays")))
        while batcher.waiting < 5:
            await asyncio.sleep(0)
        gone.cancel()
        gone_too.cancel()
        await asyncio.wait([gone, gone_too])
        while batcher.waiting > 1:  # the thread is told as soon as it waits
            await asyncio.sleep(0)
        # Their places are free at once, though the model is still at work.
        comes = asyncio.create_task(batcher.encode(units(*["comes"] * 4)))
        await asyncio.sleep(0)
        assert batcher.waiting == 5
        embedder.going.set()
        await asyncio.gather(first, stays, comes)

    asyncio.run(run())
    workers.close()
    assert embedder.calls == [["first"], ["stays", *["comes"] * 4]]
    assert batcher.waiting == 0


def test_a_loop_that_is_gone_costs_the_others_nothing(embedder: Scripted) -> None:
    """What was asked by an event loop that has ended since is dropped; the thread goes on."""
    batcher = Batcher(embedder, 100, 1000)
    embedder.going.clear()

    async def leave() -> None:
        task = asyncio.create_task(batcher.encode(units("first")))
        while not embedder.calls:
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(leave())
    embedder.going.set()
    assert batcher.encode_waiting(units("second")).vectors[0, 0] == 6


def filled(embedder: Scripted, batcher: Batcher, pool: ThreadPoolExecutor, texts: Sequence[str]) -> list[Any]:
    """Hold the embedder with one text under way and others waiting; return what will be their answers."""
    embedder.going.clear()
    calls = len(embedder.calls)
    first = pool.submit(batcher.encode_waiting, units("first"))
    wait_for(lambda: len(embedder.calls) > calls)
    rest = pool.submit(batcher.encode_waiting, units(*texts))
    wait_for(lambda: batcher.waiting == len(texts))
    return [first, rest]


@pytest.mark.parametrize(
    ("most", "waits", "fits", "too_much"),
    [
        ((3, 1000), ["a", "b"], ["c"], ["c", "d"]),
        ((100, 50), ["x" * 30], ["y" * 20], ["y" * 21]),
    ],
    ids=["texts", "characters"],
)
def test_a_full_queue_refuses(
    embedder: Scripted, most: tuple[int, int], waits: list[str], fits: list[str], too_much: list[str]
) -> None:
    """The queue is bounded by texts and by characters; what the server itself needs encoded is not refused."""
    batcher = Batcher(embedder, *most)
    with ThreadPoolExecutor(8) as pool:
        answers = filled(embedder, batcher, pool, waits)
        with pytest.raises(ApiError, match="texts? waits? to be encoded") as refused:
            batcher.encode_waiting(units(*too_much))
        assert refused.value.status == 429 and int(refused.value.headers["Retry-After"]) >= 1
        answers.append(pool.submit(batcher.encode_waiting, units(*fits)))
        wait_for(lambda: batcher.waiting == len(waits) + len(fits))
        answers.append(pool.submit(batcher.encode_waiting, units(*too_much), bounded=False))
        wait_for(lambda: batcher.waiting == len(waits) + len(fits) + len(too_much))
        embedder.going.set()
        assert [len(a.result(30).vectors) for a in answers[1:]] == [len(waits), len(fits), len(too_much)]
        # All that waited is gone from both sums: as much fits in again.
        again = filled(embedder, batcher, pool, [*waits, *fits])
        embedder.going.set()
        assert len(again[1].result(30).vectors) == len(waits) + len(fits)


def test_an_empty_queue_takes_a_request_of_any_size(embedder: Scripted) -> None:
    """A request that is larger than the queue is encoded when nothing else waits, and not refused for ever."""
    batcher = Batcher(embedder, 2, 10)
    assert len(batcher.encode_waiting(units(*["some text"] * 9)).vectors) == 9


def test_a_closed_batcher_ends_what_waits_and_refuses_what_comes(embedder: Scripted) -> None:
    """After `close` waiting requests are answered, new ones get 503, and the threads end."""
    before = set(threading.enumerate())
    batcher = Batcher(embedder, 100, 1000)
    (thread,) = set(threading.enumerate()) - before
    with ThreadPoolExecutor(8) as pool:
        answers = filled(embedder, batcher, pool, ["one", "two"])
        batcher.close()
        with pytest.raises(ApiError, match="stopping") as refused:
            batcher.encode_waiting(units("late"))
        assert refused.value.status == 503
        embedder.going.set()
        assert [len(a.result(30).vectors) for a in answers] == [1, 2]
    thread.join(30)
    assert not thread.is_alive()
