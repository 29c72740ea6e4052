"""What servers of the Batch API do wrong, over real HTTP, and what a run makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from embedkit.errors import EmbedkitError, InputError, ServerError
from embedkit_trainer.synthesis.generate import generate, store_folder
from embedkit_trainer.synthesis.settings_file import load_synthesis
from embedkit_trainer.synthesis.store import read_records
from tests.trainer.synthesis.batches import (
    COUNT,
    batch_config,
    batch_server,
    failure_reasons,
    run_batches,
    sent_batches,
)
from tests.trainer.synthesis.scripted import scripted


@pytest.mark.parametrize("status", ["expired", "cancelled"])
def test_part_of_a_batch(status: str, tmp_path: Path) -> None:
    """What a batch had answered before it expired is stored; the rest is undone, and the next run sends that alone."""
    told: list[str] = []
    with batch_server(tmp_path, status={"0": status}, answered=5) as server:
        report = run_batches(tmp_path, server.url, say=told.append)
        assert (report.run.stored, report.run.left, report.run.spent.requests) == (5, 7, 5)
        assert f"batch batch_0 {status}: 5 requests answered, 7 not" in told
        report = run_batches(tmp_path, server.url)
        assert [len(batch) for batch in sent_batches(server)] == [COUNT, 7]
        assert report.rows == {"sts": COUNT}
    assert not failure_reasons(tmp_path)


@pytest.mark.parametrize(
    ("fault", "reason", "left"),
    [
        ({"status": 500, "code": "server_error"}, "server", 4),
        ({"status": 429, "code": "rate_limit"}, "server", 4),
        ({"status": 400, "code": "content_filter"}, "refusal", 0),
    ],
)
def test_the_file_of_errors(fault: dict[str, Any], reason: str, left: int, tmp_path: Path) -> None:
    """A request that failed has a reason of the same kind as request by request; it is sent again where that may help."""
    with batch_server(tmp_path, fault={"every": 3, **fault}) as server:
        report = run_batches(tmp_path, server.url)
        assert (report.run.stored, report.run.rejected, report.run.left) == (8, 4, left)
        assert failure_reasons(tmp_path) == {reason: 4}
        assert len(sent_batches(server)) == 1


def test_an_answer_that_cannot_be_used(tmp_path: Path) -> None:
    """A useless answer is kept with reason and raw text, and --retry-failed alone sends it again."""
    with batch_server(tmp_path, text="I would rather write prose.") as server:
        report = run_batches(tmp_path, server.url)
        assert report.run.reasons == {"no-json": COUNT}
        assert run_batches(tmp_path, server.url).run.rejected == 0
        assert len(sent_batches(server)) == 1
        assert run_batches(tmp_path, server.url, retry_failed=True).run.rejected == COUNT
        assert [len(batch) for batch in sent_batches(server)] == [COUNT, COUNT]


def test_lines_that_are_not_trusted(tmp_path: Path) -> None:
    """Garbage, unknown, hostile and repeated ids are counted and told; none of them is stored."""
    hostile = [
        {"custom_id": name, "response": {"status_code": 200, "body": {"choices": []}}}
        for name in (
            "request-99",
            "request-01",
            "request--1",
            "../../etc/passwd",
            "request-1\x00",
            "\u0661",
            7,
        )
    ]
    lines = ["no JSON", "[1]", "{", "\x1b[31m", "[" * 100_000, "FIRST", *map(json.dumps, hostile)]
    with batch_server(tmp_path, lines=lines) as server:
        report = run_batches(tmp_path, server.url)
    assert (report.run.stored, report.run.rejected) == (COUNT, 0)
    assert report.run.unread == {"no-json": 6, "unknown-id": 6, "repeated-id": 1}
    assert report.rows == {"sts": COUNT}


def test_an_endless_line(tmp_path: Path) -> None:
    """An answer of many megabytes is too large, as it is request by request, and those after it are read."""
    with batch_server(tmp_path, length=3_000_000) as server:
        report = run_batches(tmp_path, server.url, examples=3)
    assert report.run.reasons == {"too-large": 3}


def test_what_a_batch_says_nothing_of(tmp_path: Path) -> None:
    """A request that a completed batch has no line for may have been paid for: ceilings count it, the next run sends it."""
    with batch_server(tmp_path, drop=3, tokens=[10, 20]) as server:
        report = run_batches(tmp_path, server.url, model="max_tokens = 100")
        assert (report.run.stored, report.run.left) == (9, 3)
        assert failure_reasons(tmp_path) == {"server": 3}
        assert report.run.spent.lost_tokens > 300
        assert len(sent_batches(server)) == 1


def test_structured_output(tmp_path: Path) -> None:
    """auto asks again without the schema in the same run; on ends the run with what the server said."""
    with batch_server(tmp_path, unstructured=True) as server:
        with pytest.raises(
            InputError, match=r"refused the requests to tiny \(status 400, json_schema is not supported\)"
        ):
            run_batches(tmp_path, server.url, model='structured_output = "on"')
        report = run_batches(tmp_path, server.url)
        assert report.rows == {"sts": COUNT}
        kinds = ["response_format" in batch[0]["body"] for batch in sent_batches(server)]
        assert kinds == [True, True, False]
        run_batches(tmp_path, server.url, examples=COUNT + 1)
        assert "response_format" not in sent_batches(server)[-1][0]["body"]


@pytest.mark.parametrize(
    ("refuse", "kind", "expected"),
    [
        (
            {"files": [404, None, 0]},
            InputError,
            "has no Batch API .404, told to say 404.: run the same command without --batch",
        ),
        ({"batches": [404, None, 0]}, InputError, "has no Batch API"),
        (
            {"files": [401, None, 0]},
            InputError,
            "refused the key .401.*: set OPENAI_API_KEY to one that may make batches",
        ),
        ({"batches": [400, None, 0]}, InputError, "refused a batch of tiny .400, told to say 400"),
        ({"batches": [429, "insufficient_quota", 0]}, ServerError, "has no quota left for this key"),
        ({"batches": [429, None, 0]}, ServerError, "takes no batch of 12 requests for now .status 429"),
        ({"batches": [500, None, 0]}, ServerError, "failed 2 times, lastly with status 500"),
        ({"content": [404, None, 0]}, InputError, "has the file made-1 no more .404"),
    ],
)
def test_what_ends_a_run(
    refuse: dict[str, Any], kind: type[EmbedkitError], expected: str, tmp_path: Path
) -> None:
    """A server without the Batch API, a refused key, a full queue or a dead server end the run with one sentence."""
    with batch_server(tmp_path, refuse=refuse) as server:
        with pytest.raises(kind, match=expected):
            run_batches(tmp_path, server.url, "retries = 1")
        assert len(sent_batches(server)) == ("content" in refuse)


def test_a_refused_batch_keeps_nobody_from_sending(tmp_path: Path) -> None:
    """After a server without the Batch API the same requests go out one by one."""
    with batch_server(tmp_path, refuse={"batches": [404, None, 0]}) as server, pytest.raises(InputError):
        run_batches(tmp_path, server.url)
    with scripted(tmp_path) as one_by_one:
        report = generate(load_synthesis(batch_config(tmp_path, one_by_one.url)))
    assert report.rows == {"sts": COUNT}


@pytest.mark.parametrize("status", [429, 500])
def test_what_passes(status: int, tmp_path: Path) -> None:
    """A refusal that passes, of an upload or a batch or a file of answers, loses nothing and makes nothing twice."""
    refuse = {name: [status, None, 1] for name in ("files", "batches", "content")}
    with batch_server(tmp_path, refuse=refuse) as server:
        report = run_batches(tmp_path, server.url)
        assert report.rows == {"sts": COUNT}
        assert len(sent_batches(server)) == 1


def test_a_batch_that_was_made_though_nobody_said_so(tmp_path: Path) -> None:
    """Where the answer to a batch's making is lost it is found by its key, and not made again."""
    with batch_server(tmp_path, slow={"batches": 8}) as server:
        report = run_batches(tmp_path, server.url, "timeout = 3")
        assert report.rows == {"sts": COUNT}
        assert len(sent_batches(server)) == 1
        made = next(event for event in server.requests if event["event"] == "create")
        assert set(made["metadata"]) == {"embedkit", "plan"}


@pytest.mark.parametrize("looks", [1, {"0": 6, "1": 1, "2": 1}])
def test_a_full_queue(looks: Any, tmp_path: Path) -> None:
    """A batch that the server's queue has no room for waits for the others, and is sent again then."""
    told: list[str] = []
    rules = {"status": {"1": "failed"}, "problem": ["token_limit_exceeded", "Enqueued token limit reached"]}
    with batch_server(tmp_path, looks=looks, **rules) as server:
        config = batch_config(tmp_path, server.url, batch="requests = 6")
        report = generate(load_synthesis(config), batch=True, say=told.append)
        counts = [len(batch) for batch in sent_batches(server)]
    assert report.rows == {"sts": COUNT}
    assert counts == [6, 6, 6]
    assert "batch batch_1 failed: 0 requests answered, 6 not (Enqueued token limit reached)" in told


def test_a_batch_that_fails(tmp_path: Path) -> None:
    """A batch that the server does not start ends the run with what the server says; its requests are undone."""
    rules = {"status": {"0": "failed"}, "problem": ["invalid_json_line", "Line 3 is not JSON"]}
    with batch_server(tmp_path, **rules) as server:
        with pytest.raises(
            InputError, match="did not start the batch batch_0 .invalid_json_line: Line 3 is not JSON"
        ):
            run_batches(tmp_path, server.url)
        assert run_batches(tmp_path, server.url).rows == {"sts": COUNT}
        assert [len(batch) for batch in sent_batches(server)] == [COUNT, COUNT]


def test_batches_of_another_server(tmp_path: Path) -> None:
    """Batches that the server does not have are not sent again: the run says where they may be."""
    with batch_server(tmp_path, looks=1000) as server:
        calls = iter(range(8))
        config = load_synthesis(batch_config(tmp_path, server.url))
        generate(config, batch=True, stop_wanted=lambda: next(calls, None) is None)
    with batch_server(tmp_path) as other:
        before = len(sent_batches(other))
        with pytest.raises(InputError, match="has no batch batch_0 .404.*, in which 12 requests were sent"):
            run_batches(tmp_path, other.url)
        assert len(sent_batches(other)) == before


def test_an_expired_file_keeps_no_other_back(tmp_path: Path) -> None:
    """Where one batch's answers are gone the others' are stored, nothing is sent again, and the way out is told."""
    with batch_server(tmp_path, refuse={"content": [404, None, 1]}) as server:
        config = load_synthesis(batch_config(tmp_path, server.url, batch="requests = 6"))
        with pytest.raises(
            InputError, match="has the file .*delete .*ledger.jsonl once the others are fetched"
        ):
            generate(config, batch=True)
        assert sum(1 for _ in read_records(store_folder(config))) == 6
        assert generate(config, batch=True).rows == {"sts": COUNT}  # it was gone for a moment alone
        assert len(sent_batches(server)) == 2
