"""Fuzzed from its own description, the server answers as that says, and never with 500."""

from __future__ import annotations

import os
from contextlib import suppress

import pytest

from tests.cli.server.conftest import Server

schemathesis = pytest.importorskip("schemathesis")


def _fuzz(server: Server, examples: int) -> int:
    """Send what the OpenAPI allows and what it forbids to every operation; return how many requests there were."""
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
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    sent = 0
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
                nonlocal sent
                sent += 1
                case.call_and_validate(checks=checks)  # type: ignore[attr-defined]

            # An operation that takes nothing has no wrong input.
            with suppress(Unsatisfiable):
                send()
    return sent


def test_no_500_in_miniature(server: Server) -> None:
    """Some hundred requests made from the OpenAPI: every answer is described there, none is a 500."""
    assert _fuzz(server, 25) > 100
    assert server.metric('embedkit_requests_total{route="/search",status="500"}') == 0


@pytest.mark.soak
def test_no_500(server: Server) -> None:
    """The same at length."""
    assert _fuzz(server, int(os.environ.get("EMBEDKIT_FUZZ_EXAMPLES", "2000"))) > 10_000
