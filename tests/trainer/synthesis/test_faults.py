"""What servers and models do wrong: each fault over real HTTP, and what a run makes of it."""

from __future__ import annotations

import json
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from embedkit.errors import EmbedkitError, InputError, ServerError
from embedkit_trainer.synthesis.generate import GenerateReport, generate, store_folder
from embedkit_trainer.synthesis.settings_file import load_synthesis
from embedkit_trainer.synthesis.store import FAILURES, read_records
from tests.trainer.synthesis.scripted import scripted, write_config

COUNT = 12
HOSTILE = '{"S1": "a", "S2": "b", "S3": "<script>\\u001b[31m $(rm -rf /) ../../x \\u0000"}'


def _generate(
    folder: Path, url: str, more: str = "", *, retry_failed: bool = False, **options: Any
) -> GenerateReport:
    options.setdefault("examples", COUNT)
    options.setdefault("shares", "sts = 1")
    return generate(load_synthesis(write_config(folder, url, more, **options)), retry_failed=retry_failed)


def _failures(folder: Path) -> list[dict[str, Any]]:
    config = load_synthesis(folder / "synthesis.toml")
    return list(read_records(store_folder(config), FAILURES))


@pytest.mark.parametrize(
    ("rule", "more"),
    [
        ({"fault": "status", "value": [429, 0.1]}, ""),
        ({"fault": "status", "value": [429]}, ""),
        ({"fault": "status", "value": [500], "tries": 2}, ""),
        ({"fault": "status", "value": [503, 0.05]}, ""),
        ({"fault": "cut"}, ""),
        ({"fault": "closed"}, ""),
        ({"fault": "raw", "value": "<html>busy</html>"}, ""),
        ({"fault": "timeout", "every": 4}, "timeout = 2"),
        ({"fault": "unstructured", "tries": 0}, ""),
        ({"fault": "text", "value": "```json\nANSWER\n```", "tries": 0}, ""),
        ({"fault": "text", "value": "With pleasure:\nANSWER\nIs that right?", "tries": 0}, ""),
    ],
)
def test_what_passes_loses_nothing(rule: dict[str, Any], more: str, tmp_path: Path) -> None:
    """Faults that pass, and wrappings around an answer, leave all examples there."""
    with scripted(tmp_path, rule) as server:
        report = _generate(tmp_path, server.url, more)
    assert (report.run.stored, report.run.rejected, report.rows) == (COUNT, 0, {"sts": COUNT})


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({"fault": "truncated"}, "truncated"),
        ({"fault": "text", "value": "I would rather write prose."}, "no-json"),
        ({"fault": "text", "value": '{"S1": "a", "S2": "b"}'}, "wrong-schema"),
        ({"fault": "text", "value": "I'm sorry, but I can't help with that."}, "refusal"),
        ({"fault": "refusal"}, "refusal"),
        ({"fault": "status", "value": [400, None, "content_filter"], "match": "phrase"}, "refusal"),
        ({"fault": "text", "value": "PROMPT"}, "no-json"),
        ({"fault": "field", "value": "PROMPT"}, "prompt-echo"),
        ({"fault": "field", "value": "  "}, "empty-field"),
        ({"fault": "text", "value": ""}, "empty"),
        ({"fault": "text", "value": HOSTILE}, "control-characters"),
        ({"fault": "text", "value": "__import__('os').abort()"}, "no-json"),
        ({"fault": "huge"}, "too-large"),
        ({"fault": "huge", "value": 100_000}, "too-large"),
    ],
)
def test_what_is_useless_is_kept_aside(rule: dict[str, Any], reason: str, tmp_path: Path) -> None:
    """A useless answer becomes a failure with reason and raw text; --retry-failed sends those alone again."""
    with scripted(tmp_path, {"every": 2, **rule}) as server:
        report = _generate(tmp_path, server.url)
        failed = [r["prompt"] for r in server.requests if r["fault"] != "none"]
        assert report.run.reasons == {reason: len(failed)}
        assert 0 < len(failed) < COUNT
        assert report.run.stored == COUNT - len(failed)
        failures = _failures(tmp_path)
        assert all(f["reason"] == reason and f["detail"] and len(f["raw"]) <= 65536 for f in failures)
        if rule["fault"] == "text" and "PROMPT" not in rule["value"]:
            assert {f["raw"] for f in failures} == {rule["value"]}
        assert _generate(tmp_path, server.url).run.spent.requests == COUNT
        again = _generate(tmp_path, server.url, retry_failed=True)
        assert (again.run.stored, again.run.rejected, again.run.spent.failed) == (len(failed), 0, 0)
        assert again.rows == {"sts": COUNT}
        assert Counter(r["prompt"] for r in server.requests if failed.count(r["prompt"])) == dict.fromkeys(
            failed, 2
        )


def test_a_repair_request_mends(tmp_path: Path) -> None:
    """With `repair`, the model sees its own answer once and may mend it; its tokens are counted."""
    with scripted(tmp_path, {"fault": "text", "value": '{"S1": "a"}', "every": 2}) as server:
        report = _generate(tmp_path, server.url, "repair = true")
        turns = Counter(r["turns"] for r in server.requests)
    assert (report.run.stored, report.run.rejected) == (COUNT, 0)
    assert turns[3] == turns[1] - COUNT + turns[3] > 0
    assert report.run.spent.requests == COUNT + turns[3]


def test_a_server_that_does_not_answer_is_asked_again_by_the_next_run(tmp_path: Path) -> None:
    """Requests left after all retries are no rejections: the same command sends them, without --retry-failed."""
    with scripted(tmp_path, {"fault": "status", "value": [500], "tries": 2, "every": 3}) as server:
        first = _generate(tmp_path, server.url, "retries = 1")
        assert first.run.left == first.run.spent.unanswered == first.run.rejected > 0
        assert set(first.run.reasons) == {"server"}
        second = _generate(tmp_path, server.url, "retries = 1")
    assert (second.run.left, second.rows) == (0, {"sts": COUNT})


@pytest.mark.parametrize("fault", ["timeout", "closed", "cut", "garbage"])
def test_what_a_lost_answer_may_have_cost_is_counted(fault: str, tmp_path: Path) -> None:
    """A request that timed out or broke off counts with the most it can have cost, also for the ceilings of later runs."""
    priced = "max_tokens = 100\n[[models]]\nname = 'unused'\nshare = 0"
    with scripted(tmp_path, {"fault": fault, "tries": 1}) as server:
        timeout = 4 if fault == "timeout" else 30
        report = _generate(
            tmp_path, server.url, f"timeout = {timeout}\nconcurrency = 2", examples=2, model=priced
        )
        spent = report.run.spent
        assert (report.run.stored, spent.requests) == (2, 4)
        assert spent.lost_tokens > 200
        used = spent.tokens_in + spent.tokens_out + spent.lost_tokens
        ceiling = f"timeout = {timeout}\nmax_tokens = {used + 50}"
        more = _generate(tmp_path, server.url, ceiling, examples=4, model=priced)
    assert (more.run.stopped, more.run.stored) == ("max_tokens", 0)


def test_a_server_that_counts_no_tokens(tmp_path: Path) -> None:
    """Where an answer has no usage, tokens are estimated from the texts, so that ceilings hold there too."""
    content = json.dumps({"S1": "one text here", "S2": "a second text", "S3": "the third"})
    body = {"choices": [{"message": {"role": "assistant", "content": content}}]}
    with scripted(tmp_path, {"fault": "raw", "value": json.dumps(body), "tries": 0}) as server:
        report = _generate(tmp_path, server.url, examples=3)
        longest = max(len(r["prompt"]) for r in server.requests)
    assert report.run.stored == 3
    assert 0 < report.run.spent.tokens_in <= 3 * (longest // 4 + 20)
    assert len(content) // 4 * 3 < report.run.spent.tokens_out < len(content) * 3


def test_retry_after_is_honoured(tmp_path: Path) -> None:
    """No request comes before the time that the server asked for, and one that asks too long ends the run."""
    with scripted(tmp_path, {"fault": "status", "value": [429, 1]}) as server:
        began = time.monotonic()
        assert _generate(tmp_path, server.url, examples=2).run.stored == 2
        assert time.monotonic() - began >= 1
    (tmp_path / "other").mkdir()
    with (
        scripted(tmp_path / "other", {"fault": "status", "value": [429, 900]}) as server,
        pytest.raises(
            ServerError, match="asks to wait 900 s .* more than longest_wait = 120: run the same command"
        ),
    ):
        _generate(tmp_path / "other", server.url)


def test_rates_are_kept(tmp_path: Path) -> None:
    """requests_per_minute spaces the requests."""
    with scripted(tmp_path) as server:
        began = time.monotonic()
        _generate(tmp_path, server.url, "requests_per_minute = 600")
    assert time.monotonic() - began >= (COUNT - 1) * 0.1


@pytest.mark.parametrize(
    ("rule", "kind", "expected"),
    [
        ([401], InputError, r"refused the key of tiny \(401, told to say 401\): set OPENAI_API_KEY"),
        ([404], InputError, r"has no model 'tiny' or no /chat/completions \(404"),
        ([400, None, "model_not_found"], InputError, "has no model 'tiny'"),
        ([400], InputError, "refused the request to tiny .*: check the model's settings"),
        ([429, None, "insufficient_quota"], ServerError, "has no quota left for this key"),
        ([500], ServerError, r"left \d+ requests on end unanswered .*run the same command again later"),
    ],
)
def test_what_ends_a_run(rule: list[Any], kind: type[EmbedkitError], expected: str, tmp_path: Path) -> None:
    """A refused key, an unknown model, an empty account or a dead server end the run with one sentence."""
    with (
        scripted(tmp_path, {"fault": "status", "value": rule, "tries": 0}) as server,
        pytest.raises(kind, match=expected),
    ):
        _generate(tmp_path, server.url, "retries = 1\nconcurrency = 2")
    if rule != [500]:
        assert len(server.requests) <= 2 * 2  # structured and plain, two at a time
    assert _failures(tmp_path) == [] or rule == [500]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("timeout", r"no answer within timeout = 0\.2 s"),
        ("closed", r"a connection that broke off \(\w*Disconnected\w*\)"),
        ("cut", r"a connection that broke off \(\w+\)"),
        ("garbage", r"a connection that broke off \(\w+\)"),
    ],
)
def test_what_broke_is_told(fault: str, expected: str, tmp_path: Path) -> None:
    """A server that is silent, hangs up, or speaks no HTTP is told apart, and named in one sentence."""
    with (
        scripted(tmp_path, {"fault": fault, "tries": 0}) as server,
        pytest.raises(ServerError, match=f"failed 1 times before the first answer, lastly with {expected}"),
    ):
        timeout = 0.2 if fault == "timeout" else 30
        _generate(tmp_path, server.url, f"retries = 0\ntimeout = {timeout}")


def test_a_socks_proxy_is_asked_for_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SOCKS proxy in the environment is used, or its missing package is named; it is not passed over."""
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    known = find_spec("socksio")
    with pytest.raises(ServerError if known else InputError, match="no connection" if known else "SOCKS"):
        _generate(tmp_path, "http://127.0.0.1:9/v1", "retries = 0")


def test_no_server_at_all(tmp_path: Path) -> None:
    """A server that is not there is told after few tries, and nothing is stored."""
    with pytest.raises(
        ServerError, match="before the first answer, lastly with no connection .*: check that it runs"
    ):
        _generate(tmp_path, "http://127.0.0.1:9/v1", "retries = 9")


def test_what_was_answered_before_an_end_is_kept(tmp_path: Path) -> None:
    """A key that is refused in the middle loses none of the answers that were there or under way."""
    with scripted(tmp_path, {"fault": "status", "value": [401], "every": 6, "tries": 1}) as server:
        with pytest.raises(InputError):
            _generate(tmp_path, server.url, "concurrency = 3", examples=30)
        good = [r["prompt"] for r in server.requests if r["fault"] == "none"]
        for _ in range(30):
            try:
                report = _generate(tmp_path, server.url, "concurrency = 3", examples=30)
                break
            except InputError:
                continue
        assert report.rows == {"sts": 30}
        counts = Counter(r["prompt"] for r in server.requests if r["fault"] == "none")
    assert all(counts[prompt] == 1 for prompt in good)


def test_structured_output(tmp_path: Path) -> None:
    """auto sends the schema until a server does not know it; off never does; on ends the run there."""
    with scripted(tmp_path, {"fault": "unstructured", "tries": 0}) as server:
        _generate(tmp_path, server.url, "concurrency = 1")
        assert [r["structured"] for r in server.requests] == [True] + [False] * COUNT
        with pytest.raises(InputError, match="response_format json_schema is not supported"):
            _generate(tmp_path, server.url, examples=2 * COUNT, model='structured_output = "on"')
        before = len(server.requests)
        _generate(tmp_path, server.url, examples=2 * COUNT, model='structured_output = "off"')
        assert not any(r["structured"] for r in server.requests[before:])


def test_the_key_is_sent_and_told_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key comes from the variable that the config names; neither files nor errors hold it."""
    monkeypatch.setenv("MY_KEY", "sk-secret-of-the-test")
    with scripted(tmp_path, {"fault": "status", "value": [401], "match": "passage"}) as server:
        with pytest.raises(InputError) as told:
            _generate(tmp_path, server.url, model='api_key_env = "MY_KEY"')
        assert {k for r in server.requests for k in r["key"]} == {"Bearer sk-secret-of-the-test"}
    assert "set MY_KEY" in str(told.value)
    kept = b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert b"secret" not in kept + str(told.value).encode()
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(InputError, match=r"no key for 127\.0\.0\.1: set MY_KEY"):
        _generate(tmp_path, server.url, model='api_key_env = "MY_KEY"')


def test_several_models_by_share(tmp_path: Path) -> None:
    """Each request goes to the model that was drawn for it; the row says which."""
    second = (
        '[[models]]\nname = "large"\nbase_url = "URL"\nprice_input = 1000\nprice_output = 2000\nshare = 3'
    )
    with scripted(tmp_path) as server:
        report = _generate(tmp_path, server.url, model=second.replace("URL", server.url), examples=60)
        asked = Counter(r["model"] for r in server.requests)
    rows = [json.loads(line) for line in (tmp_path / "out/rows/sts/rows.jsonl").read_text().splitlines()]
    assert Counter(row["metadata"]["model"] for row in rows) == asked
    assert 5 <= asked["tiny"] <= 25
    costs = [row["metadata"]["cost"] for row in rows if row["metadata"]["model"] == "large"]
    assert min(costs) > 0
    assert report.run.spent.cost == pytest.approx(sum(costs))
    tokens = [row["metadata"]["tokens"] for row in rows if row["metadata"]["model"] == "large"]
    assert sum(costs) == pytest.approx(sum(a * 1e-3 + b * 2e-3 for a, b in tokens))
