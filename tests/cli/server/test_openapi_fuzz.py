"""Fuzzed from its own description, the server answers as that says, and never with 500."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.cli.server.conftest import Server, launch

schemathesis = pytest.importorskip("schemathesis")


@pytest.fixture(scope="module")
def reranking(environment: dict[str, str], shop_index: Path) -> Iterator[Server]:
    """A server of an index and a reranker."""
    running = launch(environment, shop_index, "--rerank", "second=embedder:held")
    yield running
    code, stderr = running.stop()
    assert (code, "Traceback" in stderr) == (0, False), stderr


def _fuzz(server: Server, description: dict[str, Any], examples: int) -> Counter[str]:
    """Send what a description allows and what it forbids to every operation; count requests, and reranked searches."""
    from hypothesis import HealthCheck, given, settings
    from hypothesis.errors import Unsatisfiable
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = (
        not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_schema_conformance,
    )
    schema = schemathesis.openapi.from_dict(description)
    sent: Counter[str] = Counter()
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in schemathesis.GenerationMode:
            cases = operation.as_strategy(generation_mode=mode)

            @given(case=cases)
            @settings(
                max_examples=examples, database=None, deadline=None, derandomize=True,
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            def send(case: object) -> None:
                answer = case.call_and_validate(base_url=server.url, checks=checks)  # type: ignore[attr-defined]
                sent["all"] += 1
                if case.path == "/search" and answer.status_code == 200:  # type: ignore[attr-defined]
                    sent["reranked"] += case.body.get("rerank") is not None  # type: ignore[attr-defined]

            # An operation that takes nothing has no wrong input.
            with suppress(Unsatisfiable):
                send()
    return sent


def _of_known_names(description: dict[str, Any]) -> dict[str, Any]:
    """Return the description of searches alone, with names and filters that mean something: they get to the index."""
    out = copy.deepcopy(description)
    out["paths"] = {"/search": out["paths"]["/search"]}
    body = out["components"]["schemas"]["SearchBody"]
    body["required"] = ["query", "rerank"]
    body["properties"] |= {
        "rerank": {"enum": ["second"]},
        "index": {"enum": ["shop", None]},
        "lang": {"enum": ["en", "de", None]},
        "where": {"enum": ["year > 2020", {"test": "=", "name": "year", "value": 2020}, None]},
        "tasks": {"type": "array", "items": {"enum": ["qa", "recipe"]}, "minItems": 1, "maxItems": 8},
    }
    return out


def _check(server: Server, examples: int) -> None:
    description = server.get("/openapi.json").json
    assert _fuzz(server, description, examples)["all"] > 4 * examples
    assert _fuzz(server, _of_known_names(description), examples)["reranked"] > examples / 4
    assert server.metric('embedkit_requests_total{route="/search",status="500"}') == 0


def test_no_500_in_miniature(reranking: Server) -> None:
    """Some hundred requests made from the OpenAPI: every answer is described there, none is a 500; some are reranked."""
    _check(reranking, 25)


@pytest.mark.soak
def test_no_500(reranking: Server) -> None:
    """The same at length."""
    _check(reranking, int(os.environ.get("EMBEDKIT_FUZZ_EXAMPLES", "2000")))
