"""What is wrong with a request is said in one short sentence that names the field, in words of the API."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from embedkit.errors import (
    CorruptIndexError,
    EmbedderError,
    MissingExtraError,
    RerankerError,
    ServerError,
    UnknownNameError,
)
from embedkit_cli.server.errors import as_api_error
from tests.cli.server.conftest import Server, Start, wait_for

LONG = "x" * 700_000


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/embeddings", {"input": "a", "task": LONG}, "task"),
        ("/v1/embeddings", {"input": "a", "model": LONG}, "model"),
        ("/v1/embeddings", {"input": "a", "user": LONG}, "user"),
        ("/search", {"query": "a", "tasks": ["qa", LONG]}, "tasks.1"),
        ("/search", {"query": "a", "lang": LONG}, "lang"),
        ("/search", {"query": "a", "index": LONG}, "index"),
        ("/search", {"query": "a", "rerank": LONG}, "rerank"),
        ("/search", {"query": "a", "where": {"test": "=", "name": LONG, "value": 1}}, "where"),
        ("/search", {"query": "a", "where": {"test": "=", "name": "year", "value": LONG}}, "where"),
        ("/search", {"query": "a", "mode": LONG}, "mode"),
    ],
)
def test_a_name_of_any_length_is_a_short_error(
    server: Server, path: str, body: dict[str, Any], param: str
) -> None:
    """No name is compared or sent back whole: a long one is refused by its field."""
    answer = server.post(path, body)
    assert (answer.status, answer.json["error"]["param"]) == (400, param)
    assert len(answer.message) <= 500


@pytest.mark.parametrize(
    ("asked", "param", "message"),
    [
        ({"tasks": [{"task": "qa"}]}, "tasks.0", 'tasks.0: give a task\'s name (200 characters at most) or {"instruction": "…"}'),
        ({"tasks": ["qa", 5]}, "tasks.1", 'tasks.1: give a task\'s name (200 characters at most) or {"instruction": "…"}'),
        ({"tasks": [{"instruction": 5}]}, "tasks.0", 'tasks.0: give a task\'s name (200 characters at most) or {"instruction": "…"}'),
        ({"tasks": ["x" * 201]}, "tasks.0", "200 characters at most"),
        ({"tasks": "qa"}, "tasks", "tasks: input should be a valid list"),
        ({"where": 5}, "where", "where: give a filter as text or as an object"),
        ({"where": ["a"]}, "where", "where: give a filter as text or as an object"),
        ({"snippets": "meanings"}, "snippets", 'snippets: give true, false, "words" or "meaning"'),
        ({"snippets": 1}, "snippets", 'snippets: give true, false, "words" or "meaning"'),
        ({"context": 5}, "context", "context: give an object"),
        ({"context": {"budget": "5"}}, "context.budget", "context.budget: input should be a valid integer"),
        ({"weights": ["a", 1]}, "weights.0", "weights.0: input should be a valid number"),
        ({"where": "year = 1", "mode": "hybrid", "weights": [0, 0]}, "weights", "weights: [0.0, 0.0] cannot weigh"),
        ({"where": "year > 1", "context": {"budget": 1, "format": "messages"}}, "context", "budget 1 is too small"),
        ({"where": "year > 1", "lang": "xx"}, "lang", "unknown language 'xx'"),
        ({"where": "yaer > 1"}, "where", "unknown field 'yaer': did you mean year?"),
        ({"where": "year >"}, "where", "year >"),
        ({"where": {"test": "?"}}, "where", "a filter is an object"),
        ({"where": 'year = "a"', "lang": "de"}, "where", "year holds integers"),
    ],
)  # fmt: skip
def test_an_error_names_its_field(server: Server, asked: dict[str, Any], param: str, message: str) -> None:
    """A field that may be of several kinds has one sentence; the filter is blamed for what it did alone."""
    answer = server.post("/search", {"query": "plan", **asked})
    assert (answer.status, answer.json["error"]["param"]) == (400, param), answer.message
    assert message in answer.message


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": "a", "task": "nothing"}),
        ("/search", {"query": "a", "tasks": ["nothing"]}),
        ("/search", {"query": "a", "lang": "xx"}),
    ],
)
def test_errors_know_no_command_line(server: Server, path: str, body: dict[str, Any]) -> None:
    """Whoever asks over HTTP is told of no command and no option of one."""
    message = server.post(path, body).message
    assert message.startswith("unknown ")
    assert "embedkit" not in message and "--" not in message


def test_ready_names_no_index(start: Start, shop_index: Path, tmp_path: Path) -> None:
    """Whoever has no key learns that no index is there, and not which; one that is there is enough to be ready."""
    one, other = (Path(shutil.copytree(shop_index, tmp_path / name)) for name in ("secret-1", "secret-2"))
    server = start(one, other, "--refresh", "0.05", EMBEDKIT_API_KEY="key")
    key = {"Authorization": "Bearer key"}
    shutil.rmtree(one)
    wait_for(lambda: len(server.get("/indexes", **key).json["indexes"]) == 1)
    assert server.get("/ready").status == 200
    shutil.rmtree(other)
    answer = wait_for(lambda: (a := server.get("/ready")).status == 503 and a)
    assert answer.message == "no index is there at present"


def test_the_command_line_keeps_its_hint() -> None:
    """The hint follows the sentence; a name too long to be a slip of the pen is cut, and compared with nothing."""
    error = UnknownNameError("task", "serach", ["search"], "`embedkit tasks` lists all.")
    assert error.message == "unknown task 'serach': did you mean search?"
    assert str(error) == f"{error.message} `embedkit tasks` lists all."
    long = UnknownNameError("task", "search" * 100_000, ["search", "qa"])
    assert long.suggestions == [] and len(str(long)) < 200


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (CorruptIndexError("/srv/x is damaged"), 503, "the index cannot be read"),
        (OSError(5, "Input/output error", "/srv/x"), 503, "a file or a connection of this server failed"),
        (TimeoutError("timed out"), 503, "a file or a connection of this server failed"),
        (ServerError("http://secret:1 failed"), 503, "a model's server behind this one failed"),
        (RerankerError("NaN"), 500, "the reranker failed"),
        (EmbedderError("NaN"), 500, "the embedder failed"),
        (MissingExtraError("reranking", "train"), 500, "this server lacks a package"),
        (RuntimeError("/srv/secret"), 500, "internal error"),
    ],
)
def test_what_failed_is_told_apart(error: Exception, status: int, said: str) -> None:
    """A damaged index, a connection, an embedder, a reranker and a missing package each have their sentence."""
    told = as_api_error(error, "1234")
    assert told.status == status
    assert told.message.startswith(said) and told.message.endswith("the server's log has more under 1234")
