"""/v1/embeddings is OpenAI's: its client, embedkit's own and LlamaIndex's get the vectors that the embedder itself gives."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from embedkit import get_embedder
from embedkit.embedder import Embedder
from tests.cli.server.conftest import Server, Start, wait_for

TEXTS = ["You can cancel your plan.", "кошка сидит на ковре", "a", "zero width \u200b"]


@pytest.fixture(scope="module")
def local(plug_ins: Any, environment: dict[str, str]) -> Iterator[Embedder]:
    """The plug-in of the server `shop`, in this process."""
    import sys

    from embedkit.registry import list_embedders

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(plug_ins), *sys.path])
        patch.setenv("HELD_FOLDER", environment["HELD_FOLDER"])
        list_embedders.cache_clear()
        yield get_embedder("held")
    list_embedders.cache_clear()


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    """The official client."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def _vectors(answer: Any) -> Any:
    assert [d.index for d in answer.data] == list(range(len(answer.data)))
    return np.array([d.embedding for d in answer.data], np.float32)


@pytest.mark.parametrize("encoding", [None, "float", "base64"])
def test_the_official_client_works_unchanged(client: openai.OpenAI, local: Embedder, encoding: Any) -> None:
    """A list of texts gives the documents' vectors in order, in every encoding, and the tokens that were read."""
    told = {} if encoding is None else {"encoding_format": encoding}
    answer = client.embeddings.create(input=TEXTS, model="held-1", **told)
    found = (
        _vectors(answer) if encoding != "base64" else np.stack([_decoded(d.embedding) for d in answer.data])
    )
    np.testing.assert_allclose(found, local.encode_document(TEXTS), atol=1e-6)
    count = sum(local.count_tokens([f"passage: {t}" for t in TEXTS]))
    assert (answer.object, answer.model) == ("list", "held-1")
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (count, count)


def _decoded(embedding: Any) -> Any:
    import base64

    return np.frombuffer(base64.b64decode(embedding), "<f4") if isinstance(embedding, str) else embedding


def test_a_single_text(client: openai.OpenAI, local: Embedder) -> None:
    """A string is a list of one; the model may be left to its spec, or be the first."""
    for model in ("held-1", "held"):
        found = _vectors(client.embeddings.create(input=TEXTS[0], model=model, user="somebody"))
        np.testing.assert_allclose(found, local.encode_document(TEXTS[:1]), atol=1e-6)
    assert [m.id for m in client.models.list()] == ["held-1", "words.txt"]


def test_queries_carry_their_task(client: openai.OpenAI, local: Embedder) -> None:
    """input_type, task and instruction encode as encode_query does; rendered leaves the text as it is."""
    query = ["how do I cancel?"]
    wanted = {
        "query": local.encode_query(query),
        "qa": local.encode_query(query, task="qa"),
        "own": local.encode_query(query, instruction="Find the law"),
        "rendered": local.encode_rendered(query),
        "document": local.encode_document(query),
    }
    told: dict[str, dict[str, str]] = {
        "query": {"input_type": "query"},
        "qa": {"task": "qa"},
        "own": {"instruction": "Find the law", "input_type": "query"},
        "rendered": {"input_type": "rendered"},
        "document": {"input_type": "document"},
    }
    for name, extra in told.items():
        found = _vectors(client.embeddings.create(input=query, model="held-1", extra_body=extra))
        np.testing.assert_allclose(found, wanted[name], atol=1e-6, err_msg=name)
    assert len({v.tobytes() for v in wanted.values()}) == 5


def test_dimensions_cut_where_the_model_was_trained_for_it(client: openai.OpenAI, local: Embedder) -> None:
    """A Matryoshka length gives the first numbers, normalised again; another one is refused by name."""
    found = _vectors(client.embeddings.create(input=TEXTS, model="held-1", dimensions=8))
    full = local.encode_document(TEXTS)[:, :8]
    np.testing.assert_allclose(found, full / np.linalg.norm(full, axis=1, keepdims=True), atol=1e-6)
    assert _vectors(client.embeddings.create(input="a", model="held-1", dimensions=16)).shape == (1, 16)
    with pytest.raises(openai.BadRequestError, match="dimensions is 7: held-1 gives 16 or 8"):
        client.embeddings.create(input="a", model="held-1", dimensions=7)
    with pytest.raises(openai.BadRequestError, match=r"dimensions is 8: words\.txt gives 32"):
        client.embeddings.create(input="a", model="words.txt", dimensions=8)


def test_embedkits_own_client_gets_the_same_vectors(server: Server, local: Embedder) -> None:
    """`openai:NAME` against this server gives the embedder's own vectors, queries under a task and documents."""
    rendered = {
        "send_input_type": True,
        "input_types": ("rendered", "rendered"),
        "template": local.info.template,
    }
    remote = get_embedder(
        "openai:held-1", base_url=f"{server.url}/v1", api_key="none", default_task="search",
        instruction_trained=True, **rendered,
    )  # fmt: skip
    np.testing.assert_allclose(remote.encode_document(TEXTS), local.encode_document(TEXTS), atol=1e-6)
    for asked in ({}, {"task": "bitext"}, {"instruction": "Find it"}):
        found = remote.encode_query(["the cat"], **asked)
        np.testing.assert_allclose(found, local.encode_query(["the cat"], **asked), atol=1e-6)


def test_llama_indexs_client_works(server: Server, local: Embedder) -> None:
    """LlamaIndex's OpenAI-like embedding gets the documents' vectors."""
    like = pytest.importorskip("llama_index.embeddings.openai_like")
    embedding = like.OpenAILikeEmbedding(model_name="held-1", api_base=f"{server.url}/v1", api_key="none")
    found = embedding.get_text_embedding_batch(TEXTS)
    np.testing.assert_allclose(found, local.encode_document(TEXTS), atol=1e-6)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"input": [1, 2, 3]}, 400, "input: token arrays are not taken"),
        ({"input": [[1, 2], [3]]}, 400, "input: token arrays are not taken"),
        ({"input": []}, 400, "input: the list is empty"),
        ({"input": ""}, 400, "the text is empty"),
        ({"input": ["a", " "]}, 400, "text 1 is empty"),
        ({"input": ["a", None]}, 400, "input: item 1 is no text"),
        ({"input": {"a": 1}}, 400, "input: give a text or a list of texts"),
        ({"input": None}, 400, "input: give a text or a list of texts"),
        ({}, 400, "input: field required"),
        ({"input": "a", "model": "gpt-4"}, 404, "there is no model 'gpt-4': this server has held-1, words.txt"),
        ({"input": "a", "model": "../../etc/passwd"}, 404, "there is no model '../../etc/passwd'"),
        ({"input": "a", "encoding_format": "int8"}, 400, "encoding_format: input should be 'float' or 'base64'"),
        ({"input": "a", "dimensions": -1}, 400, "dimensions: input should be greater than or equal to 1"),
        ({"input": "a", "task": "nothing"}, 400, "unknown task 'nothing'"),
        ({"input": "a", "task": "qa", "instruction": "b"}, 400, "are both given: choose one"),
        ({"input": "a", "task": "qa", "input_type": "document"}, 400, "a task and an instruction are for queries"),
        ({"input": "a", "instruction": " "}, 400, "the instruction is empty"),
        ({"input": "a", "input_type": "question"}, 400, "input_type: input should be 'query', 'document' or 'rendered'"),
        ({"input": "a", "instructoin": "b"}, 400, "there is no field 'instructoin': did you mean 'instruction'?"),
        ({"input": ["a"] * 2049}, 400, "2,049 texts are more than the 2,048 that one request may hold"),
        ({"input": ["a" * 100_001]}, 400, "the text has 100,001 characters, more than the 100,000"),
        ([], 400, "the body is no JSON object"),
    ],
)  # fmt: skip
def test_what_cannot_be_embedded_is_said(server: Server, body: Any, status: int, message: str) -> None:
    """Token arrays, empty texts, unknown names and too much of anything are refused in one sentence."""
    answer = server.post("/v1/embeddings", body)
    assert answer.status == status
    assert message in answer.message


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"task": "nothing"}, "task"),
        ({"instruction": " "}, "instruction"),
        ({"task": "qa", "instruction": "b"}, "instruction"),
        ({"dimensions": 5}, "dimensions"),
    ],
)
def test_the_field_that_is_wrong_is_named(server: Server, body: Any, param: str) -> None:
    """`param` is the field, as in OpenAI's errors."""
    answer = server.post("/v1/embeddings", {"input": "a", **body})
    assert (answer.status, answer.json["error"]["param"]) == (400, param)


def test_a_model_is_described(client: openai.OpenAI, server: Server) -> None:
    """`models.retrieve` gives what the list gives; another name gets 404; what OpenAI lets be null may be null."""
    listed = client.models.list().data[0]
    assert client.models.retrieve(listed.id) == listed
    with pytest.raises(openai.NotFoundError, match="there is no model 'org/other'"):
        client.models.retrieve("org/other")
    nulls = dict.fromkeys(("encoding_format", "dimensions", "user", "model"))
    found = server.post("/v1/embeddings", {"input": "a", **nulls}).json["data"][0]["embedding"]
    assert found == server.post("/v1/embeddings", {"input": "a"}).json["data"][0]["embedding"]


def test_truncated_tokens_are_told(server: Server) -> None:
    """What lies beyond the embedder's length is not counted as read, and a header tells how much was left out."""
    answer = server.post("/v1/embeddings", {"input": ["word " * 100, "short"]})
    assert answer.json["usage"]["prompt_tokens"] == 64 + 3
    assert answer.headers["x-truncated-tokens"] == str(1 + 1 + 100 - 64)
    assert "x-truncated-tokens" not in server.post("/v1/embeddings", {"input": "short"}).headers


def _embed_all(server: Server, texts: list[str]) -> tuple[list[threading.Thread], dict[str, Any]]:
    answers: dict[str, Any] = {}

    def ask(text: str) -> None:
        answers[text] = server.post("/v1/embeddings", {"input": text})

    threads = [threading.Thread(target=ask, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    return threads, answers


def test_what_arrives_meanwhile_joins_the_next_batch(start: Start, local: Embedder) -> None:
    """While the model works on one text, ten requests wait; then they are one call, and each gets its own vector."""
    server = start("--embedder", "held")
    before = len(server.calls)
    hold = server.hold()
    first, _ = _embed_all(server, ["the first"])
    wait_for(lambda: len(server.calls) == before + 1)
    texts = [f"text number {i}" for i in range(10)]
    rest, answers = _embed_all(server, texts)
    wait_for(lambda: server.metric("embedkit_queue_texts") == 10)
    hold.unlink()
    for thread in first + rest:
        thread.join()
    assert server.calls[before:] == [1, 10]
    found = np.array([answers[t].json["data"][0]["embedding"] for t in texts])
    np.testing.assert_allclose(found, local.encode_document(texts), atol=1e-6)


def test_one_poisoned_text_fails_its_own_request_alone(start: Start) -> None:
    """The embedder gives NaN for one text of a batch: that request gets 500, the others in the batch their vectors."""
    server = start("--embedder", "held")
    before = len(server.calls)
    hold = server.hold()
    first, _ = _embed_all(server, ["the first"])
    wait_for(lambda: len(server.calls) == before + 1)
    rest, answers = _embed_all(server, ["one", "poison", "two"])
    wait_for(lambda: server.metric("embedkit_queue_texts") == 3)
    hold.unlink()
    for thread in first + rest:
        thread.join()
    assert {t: a.status for t, a in answers.items()} == {"one": 200, "poison": 500, "two": 200}
    assert answers["poison"].message.startswith("the embedder failed; the server's log has more under ")
    assert "NaN" in server.stop()[1]


def test_a_full_queue_is_an_honest_429(start: Start) -> None:
    """With the queue full a request gets 429 and Retry-After at once; those that waited are answered later."""
    server = start("--embedder", "held", "--max-queue", "3")
    before = len(server.calls)
    hold = server.hold()
    first, _ = _embed_all(server, ["the first"])
    wait_for(lambda: len(server.calls) == before + 1)
    rest, answers = _embed_all(server, ["one", "two", "three"])
    wait_for(lambda: server.metric("embedkit_queue_texts") == 3)
    refused = server.post("/v1/embeddings", {"input": "four"})
    assert (refused.status, refused.json["error"]["type"]) == (429, "rate_limit_error")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert "3 texts wait" in refused.message
    assert server.metric("embedkit_rejected_total") == 1
    hold.unlink()
    for thread in first + rest:
        thread.join()
    assert [a.status for a in answers.values()] == [200] * 3


def test_time_runs_out(start: Start) -> None:
    """Where the model takes longer than --timeout the answer is 504; what waited is dropped, the server goes on."""
    server = start("--embedder", "held", "--timeout", "3")
    before = len(server.calls)
    hold = server.hold()
    threads, answers = _embed_all(server, ["one", "two"])
    for thread in threads:
        thread.join()
    assert {a.status for a in answers.values()} == {504}
    assert "no answer within 3 s" in answers["one"].message
    hold.unlink()
    assert server.post("/v1/embeddings", {"input": "three"}).status == 200
    assert sum(server.calls[before:]) <= 3


def test_a_large_request_does_not_hold_up_a_small_one(start: Start) -> None:
    """A text that arrives behind 2,000 long ones joins the very next batch."""
    server = start("--embedder", "held")
    before = len(server.calls)
    hold = server.hold()
    large = threading.Thread(
        target=lambda: server.post(
            "/v1/embeddings", {"input": ["many words " * 20] * 2000, "encoding_format": "base64"}
        )
    )
    large.start()
    wait_for(lambda: len(server.calls) == before + 1)
    waiting = server.metric("embedkit_queue_texts")
    assert waiting > 1000
    small, answers = _embed_all(server, ["small"])
    wait_for(lambda: server.metric("embedkit_queue_texts") == waiting + 1)
    hold.unlink()
    for thread in [large, *small]:
        thread.join()
    assert answers["small"].status == 200
    assert server.small_calls == [before + 1]
    assert len(server.calls) > before + 2
    assert sum(server.calls[before:]) == 2001


def test_tokens_in_the_metrics_are_those_of_this_endpoint(start: Start, shop_index: Path) -> None:
    """What a client is told in `usage` is what is added up, however it was counted; a search adds nothing."""
    server = start(shop_index, "--max-tokens", "100")
    told = 0
    for count in (
        1,
        10,
    ):  # the second is counted before it is encoded: it may have more tokens than are allowed
        answer = server.post("/v1/embeddings", {"input": ["two words"] * count})
        told += answer.json["usage"]["total_tokens"]
    assert server.post("/search", {"query": "plan", "snippets": "meaning"}).status == 200
    assert server.metric("embedkit_tokens_total") == told == 44
