"""The remote embedder against a real server on loopback, through the real `openai` client."""

from __future__ import annotations

import copy
import pickle
import random
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from embedkit import BUILT_IN_TASKS, Template, get_embedder
from embedkit.embedders.openai import OpenAIEmbedder
from embedkit.embedders.pacing import retry_after
from embedkit.errors import EmbedderError, InputError, ServerError, UnknownNameError
from tests.embedkit.embedding_server import DIM, EmbeddingServer, Reply, vector

KEY = "sk-secret-0123456789"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the machine's own settings out."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[EmbeddingServer]:
    """Run a server for one test."""
    with EmbeddingServer() as running:
        yield running


def connect(server: EmbeddingServer, **options: Any) -> OpenAIEmbedder:
    """Open the embedder with waits short enough for a test."""
    defaults: dict[str, Any] = {"base_url": server.url, "api_key": KEY, "dim": DIM, "first_backoff": 0.01}
    return OpenAIEmbedder.open("some-model", **(defaults | options))


def unit(texts: list[str], dim: int = DIM) -> NDArray[np.float32]:
    """Return the vectors expected, of unit length."""
    rows = np.stack([vector(t, dim) for t in texts])
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def test_order_and_batches(server: EmbeddingServer) -> None:
    """Answers that come back late and shuffled land at their texts; no request is above batch_size."""
    texts = [f"text {i} " + "x" * random.Random(i).randint(0, 90) for i in range(200)]

    def shuffled(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return random.sample(items, len(items))

    server.script.extend(Reply(delay=random.random() / 20, change=shuffled) for _ in range(20))
    found = connect(server, batch_size=16, concurrency=4).encode_document(texts)
    np.testing.assert_allclose(found, unit(texts), atol=1e-6)
    assert len(server.seen) == 13
    assert max(len(seen.body["input"]) for seen in server.seen) == 16


def test_token_budget(server: EmbeddingServer) -> None:
    """No request holds more estimated tokens than tokens_per_request, unless one text alone does."""
    texts = [f"{i:03}" + "y" * 397 for i in range(10)] + ["z" * 4000]
    ours = connect(server, tokens_per_request=310)
    np.testing.assert_allclose(ours.encode_document(texts), unit(texts), atol=1e-6)
    sizes = [(len(s.body["input"]), sum(ours.count_tokens(s.body["input"]))) for s in server.seen]
    assert all(tokens <= 310 or count == 1 for count, tokens in sizes)
    assert sorted(count for count, _ in sizes) == [1, 1, 3, 3, 3]


@pytest.mark.parametrize(("encoding", "knows"), [("base64", True), ("base64", False), ("float", True)])
def test_encodings(encoding: str, knows: bool) -> None:
    """Base64 and float answers give the same vectors, also from a server that ignores the wish for base64."""
    with EmbeddingServer(knows_base64=knows) as server:
        found = connect(server, encoding=encoding).encode_document(["a", "b"])
        assert server.seen[0].body["encoding_format"] == encoding
    np.testing.assert_allclose(found, unit(["a", "b"]), atol=1e-6)


def test_dimension_is_asked_once_and_late(server: EmbeddingServer) -> None:
    """Opening sends nothing; without `dim` the first use asks with one text, with it nothing is asked."""
    ours = connect(server, dim=None)
    assert server.seen == []
    assert ours.info.dim == DIM == ours.info.dim
    assert len(server.seen) == 1
    assert connect(server, dim=5).info.dim == 5
    assert len(server.seen) == 1


def test_what_is_sent(server: EmbeddingServer) -> None:
    """The key, shortened dimensions, input types by role and extra fields reach the server."""
    ours = connect(
        server, dim=None, dimensions=4, send_input_type=True, input_types=("query", "passage"),
        extra_body={"truncate": True}, instruction_trained=True,
    )  # fmt: skip
    np.testing.assert_allclose(ours.encode_document(["d"]), unit(["d"], 4), atol=1e-6)
    ours.encode_query(["q"], instruction="find")
    documents, queries = server.seen
    assert documents.body["input"] == ["d"]
    assert documents.body["dimensions"] == 4
    assert documents.body["truncate"] is True
    assert documents.headers["authorization"] == f"Bearer {KEY}"
    assert (documents.body["input_type"], queries.body["input_type"]) == ("passage", "query")
    assert queries.body["input"] == ["Instruct: find\nQuery: q"]


def test_open_models_get_their_prefixes(server: EmbeddingServer) -> None:
    """A model that a preset knows is asked with its template, task and length; what is given goes first."""
    e5 = OpenAIEmbedder.open("intfloat/multilingual-e5-small", base_url=server.url, dim=DIM)
    e5.encode_document(["d"])
    e5.encode_query(["q"])
    mistral = OpenAIEmbedder.open("intfloat/e5-mistral-7b-instruct", base_url=server.url, dim=DIM)
    mistral.encode_query(["q"])
    assert (e5.info.max_length, mistral.info.max_length) == (512, 4096)
    assert mistral.info.instruction_trained
    named = connect(server, preset="e5", template=Template(document="mine: {text}"), max_length=99)
    named.encode_document(["d"])
    assert named.info.max_length == 99
    assert [seen.body["input"][0] for seen in server.seen] == [
        "passage: d",
        "query: q",
        f"Instruct: {BUILT_IN_TASKS['search'].instruction}\nQuery: q",
        "mine: d",
    ]


def test_plain_request_is_plain(server: EmbeddingServer) -> None:
    """A server that knows OpenAI's four fields alone is sent nothing else."""
    connect(server).encode_query(["q"])
    assert server.seen[0].body == {"input": ["q"], "model": "some-model", "encoding_format": "base64"}


def test_long_texts_are_cut(server: EmbeddingServer) -> None:
    """Texts are cut at four bytes for every token of max_length, between characters."""
    connect(server, max_length=3).encode_document(["ab" * 20, "é" * 20, "a" + "é" * 20, "short"])
    assert set(server.seen[0].body["input"]) == {"ab" * 6, "é" * 6, "a" + "é" * 5, "short"}


@pytest.mark.parametrize(
    "fault",
    [
        Reply(500), Reply(503), Reply(408), Reply(502, body=b"<html>bad gateway</html>"), Reply(hang_up=True),
        Reply(delay=5),
    ],
    ids=["500", "503", "408", "502 html", "hang-up", "slow"],
)  # fmt: skip
def test_passing_faults_are_retried(server: EmbeddingServer, fault: Reply) -> None:
    """A fault that may pass is tried again until the answer comes."""
    server.script.extend([Reply(), fault, fault])
    ours = connect(server, timeout=2 if fault.delay else 60)
    ours.encode_document(["first"])
    np.testing.assert_allclose(ours.encode_document(["a"]), unit(["a"]), atol=1e-6)
    assert len(server.seen) == 4


def test_retry_after_is_kept(server: EmbeddingServer) -> None:
    """After 429 no request goes out before the seconds that Retry-After names have passed."""
    server.script.append(Reply(429, {"Retry-After": "0.4"}))
    connect(server, batch_size=1, concurrency=1).encode_document(["a", "b"])
    times = [seen.at for seen in server.seen]
    assert times[1] - times[0] >= 0.4
    assert len(times) == 3


def test_retry_after_too_long(server: EmbeddingServer) -> None:
    """A wait above longest_wait is refused at once with the seconds asked."""
    server.script.append(Reply(429, {"Retry-After": "3600"}))
    with pytest.raises(ServerError, match="asks to wait 3600 s"):
        connect(server).encode_document(["a"])


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": "in 600 s"}, 600),
        ({"retry-after": "60 s ago"}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({}, None),
    ],
)
def test_retry_after_forms(headers: dict[str, str], seconds: float | None) -> None:
    """Retry-After is read as seconds, milliseconds or a date; nonsense is no wait."""
    # A date is made here: one made when the tests were collected may be minutes old.
    now = time.time()
    dates = {"in 600 s": now + 600, "60 s ago": now - 60}
    headers = {k: formatdate(dates[v], usegmt=True) if v in dates else v for k, v in headers.items()}
    found = retry_after(headers)
    assert found == (None if seconds is None else pytest.approx(seconds, abs=60 if seconds >= 60 else 0.01))


def test_retries_end(server: EmbeddingServer) -> None:
    """A server that keeps failing gives ServerError after max_retries more tries, with the last reason."""
    server.otherwise = Reply(503, body={"error": {"message": "overloaded"}})
    with pytest.raises(ServerError, match=r"failed 4 times, lastly with status 503, overloaded"):
        connect(server, max_retries=3).encode_document(["a"])
    assert len(server.seen) == 4


def test_absent_server_fails_fast(server: EmbeddingServer) -> None:
    """A server that never answered is tried twice, whatever max_retries says."""
    ours = connect(server, base_url="http://127.0.0.1:9/v1", max_retries=50)
    with pytest.raises(ServerError, match=r"http://127.0.0.1:9/v1 failed 2 times, lastly with no connection"):
        ours.encode_document(["a"])


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (
            Reply(401, body={"error": {"message": f"Incorrect API key provided: {KEY}"}}),
            r"refused the key \(401\)",
        ),
        (
            Reply(403, body={"error": {"message": f"{KEY} may not"}}),
            r"refused the request \(403, \*\*\* may not\)",
        ),
        (
            Reply(404, body={"error": {"message": "no such model"}}),
            r"no model 'some-model'.*404, no such model",
        ),
        (Reply(400, body={"error": {"message": "too long"}}), r"\(400, too long\).*max_length=8191"),
        (Reply(422, body={"detail": "bad field"}), r"\(422, bad field\)"),
        (
            Reply(429, body={"error": {"message": "pay", "code": "insufficient_quota"}}),
            r"no quota left.*\(429, pay\)",
        ),
    ],
    ids=["401", "403", "404", "400", "422", "quota"],
)
def test_refusals(server: EmbeddingServer, reply: Reply, message: str) -> None:
    """What no retry mends is asked once and told in one sentence, without the key even if the server echoes it."""
    server.otherwise = reply
    with pytest.raises(EmbedderError, match=message) as caught:
        connect(server).encode_document(["a"])
    assert len(server.seen) == 1
    assert "\n" not in str(caught.value)
    assert KEY not in "".join(traceback.format_exception(caught.value))


def _set(position: int, **fields: Any) -> Reply:
    def change(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [item | fields if i == position else item for i, item in enumerate(items)]

    return Reply(change=change)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (_set(1, embedding=[float("nan")] * DIM), "NaN or infinity for 1 of 3 texts"),
        (_set(1, embedding=[None] * DIM), "NaN or infinity"),
        (_set(1, embedding=[1.0] * (DIM - 1)), "vectors of 7, 8 dimensions"),
        (_set(1, embedding="AAAA!"), "no list of embeddings"),
        (_set(1, embedding="AAAA"), "no list of embeddings"),
        (_set(1, embedding=[[1.0] * DIM]), "no list of embeddings"),
        (_set(1, index=0), "numbered its 3 vectors wrongly"),
        (_set(1, index=3), "numbered its 3 vectors wrongly"),
        (Reply(change=lambda items: items[:2]), "2 vectors for 3 texts"),
        (Reply(change=lambda items: items * 2), "6 vectors for 3 texts"),
        (Reply(body=b"<html>login</html>"), "no list of embeddings.*<html>login"),
        (Reply(body={"error": "none"}), "no list of embeddings"),
        (Reply(body=[]), "no list of embeddings"),
    ],
)  # fmt: skip
def test_wrong_answers(server: EmbeddingServer, reply: Reply, message: str) -> None:
    """A wrong count, size, number, order or format is an EmbedderError, never a vector at the wrong text."""
    server.otherwise = reply
    with pytest.raises(EmbedderError, match=message):
        connect(server).encode_document(["a", "b", "c"])


def test_unnumbered_answers(server: EmbeddingServer) -> None:
    """A server that leaves `index` out is taken to answer in order."""
    server.otherwise = Reply(change=lambda items: [{"embedding": item["embedding"]} for item in items])
    np.testing.assert_allclose(connect(server).encode_document(["a", "b"]), unit(["a", "b"]), atol=1e-6)


def test_another_dimension(server: EmbeddingServer) -> None:
    """A model that answers with another dimension than expected is refused."""
    with pytest.raises(EmbedderError, match="vectors of 8 dimensions, expected 5"):
        connect(server, dim=5).encode_document(["a"])


def test_one_failure_stops_the_rest(server: EmbeddingServer) -> None:
    """When one of several requests is refused, the error is not held up and waiting threads end at once."""
    server.script.extend([Reply(429, {"Retry-After": "30"}, delay=0.4), Reply(400, delay=0.8)])
    started = time.monotonic()
    with pytest.raises(EmbedderError, match="400"):
        connect(server, batch_size=1, concurrency=2).encode_document([str(i) for i in range(50)])
    while any(thread.name.startswith("embedkit-openai") for thread in threading.enumerate()):
        assert time.monotonic() - started < 10
        time.sleep(0.01)
    assert len(server.seen) < 25


def test_rate_limit(server: EmbeddingServer) -> None:
    """Requests of all threads together keep to requests_per_minute and to tokens_per_minute."""
    for limit in ({"requests_per_minute": 1200}, {"tokens_per_minute": 12 * 1200, "tokens_per_request": 12}):
        ours = connect(server, batch_size=1, concurrency=4, **limit)
        ours.encode_document(["the first request opens the client"])
        server.seen.clear()
        # 50 ms apart as they are sent; the first of them may take its time until it arrives.
        began = time.monotonic()
        ours.encode_document(["ten tokens" + "." * 30] * 8)
        assert len(server.seen) == 8
        assert max(seen.at for seen in server.seen) - began >= 7 * 0.05


def test_fingerprint(server: EmbeddingServer) -> None:
    """Host, key, speed and the query side leave the fingerprint; model, dimension and document options change it."""
    first = connect(server).fingerprint
    for same in (
        {"base_url": "http://elsewhere:1/v1"},
        {"api_key": "other"},
        {"batch_size": 3, "encoding": "float", "concurrency": 9},
        {"input_types": ("a", "b")},
        {"instruction_trained": True, "default_task": "qa"},
    ):
        assert connect(server, **same).fingerprint == first
    changed = [
        connect(server, dim=9),
        connect(server, max_length=100),
        connect(server, extra_body={"truncate": True}),
        connect(server, send_input_type=True),
        connect(server, send_input_type=True, input_types=("query", "passage")),
        OpenAIEmbedder.open("other-model", base_url=server.url, dim=DIM),
    ]
    assert len({first, *(c.fingerprint for c in changed)}) == 7


def test_key_stays_inside(server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is in no representation, description or pickle; a copy still has it, an unpickled one asks anew."""
    ours = connect(server)
    shown = [repr(ours), str(ours), repr(ours.remote), repr(ours.info), repr(vars(ours)), ours.fingerprint]
    assert not any(KEY in text for text in shown)
    assert KEY.encode() not in pickle.dumps(ours)
    copy.deepcopy(ours).encode_document(["a"])
    monkeypatch.setenv("OPENAI_API_KEY", "from-the-environment")
    pickle.loads(pickle.dumps(ours)).encode_document(["b"])
    sent = [seen.headers["authorization"] for seen in server.seen]
    assert sent == [f"Bearer {KEY}", "Bearer from-the-environment"]


def test_key_that_no_header_carries(server: EmbeddingServer) -> None:
    """A key with a newline at its end works; one with a blank inside is refused and not shown."""
    connect(server, api_key=KEY + "\n").encode_document(["a"])
    with pytest.raises(InputError, match="the API key of 20 characters") as caught:
        connect(server, api_key=KEY[:9] + " " + KEY[10:])
    assert KEY[:9] not in str(caught.value)


def test_address_without_its_secrets(server: EmbeddingServer) -> None:
    """User, password and query string of base_url are in no error."""
    url = server.url.replace("http://", "http://user:hidden@") + "?token=hidden"
    server.otherwise = Reply(400)
    with pytest.raises(EmbedderError) as caught:
        connect(server, base_url=url).encode_document(["a"])
    assert "hidden" not in "".join(traceback.format_exception(caught.value))


def test_environment(server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Key and address come from OPENAI_API_KEY and OPENAI_BASE_URL through the registry's name."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    ours = get_embedder("openai:some-model")
    np.testing.assert_allclose(ours.encode_document(["a"]), unit(["a"]), atol=1e-6)
    assert ours.info.name == "openai:some-model"
    assert server.seen[-1].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"requests_per_minute": -1}, "requests_per_minute is -1"),
        ({"max_retries": -1}, "max_retries is -1"),
        ({"batch_size": "many"}, "batch_size is 'many'"),
        ({"extra_body": "truncate"}, "extra_body is 'truncate'"),
        ({"input_types": "query"}, "input_types is 'query'"),
        ({"encoding": "int8"}, "encoding is 'int8'"),
        ({"base_url": "localhost:8080"}, "base_url is no web address"),
        ({"dim": 3, "dimensions": 4}, "dim is 3 and dimensions 4"),
        ({"base_url": "https://api.openai.com/v1", "api_key": None}, "set OPENAI_API_KEY"),
    ],
)
def test_wrong_options(server: EmbeddingServer, options: dict[str, Any], message: str) -> None:
    """A wrong option is refused before any request."""
    with pytest.raises(InputError, match=message):
        connect(server, **options)
    assert server.seen == []


def test_unknown_option_and_no_model() -> None:
    """An unknown option suggests the nearest; a missing model shows how to write one."""
    with pytest.raises(UnknownNameError, match="batch_size"):
        get_embedder("openai:m", batchsize=3)
    with pytest.raises(InputError, match="openai:text-embedding-3-small"):
        get_embedder("openai", base_url="http://localhost/v1")


def test_missing_extra() -> None:
    """Without the openai package the error names the pip command."""
    code = (
        "import sys; sys.modules['openai'] = None\n"
        "import embedkit\n"
        "try: embedkit.get_embedder('openai:m', api_key='k')\n"
        "except ImportError as e: print(type(e).__name__, e)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == (
        "MissingExtraError the openai embedder needs the extra [openai]: pip install 'embedkit-retrieval[openai]'"
    )
