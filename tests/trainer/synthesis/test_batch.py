"""The Batch API over real HTTP: the same rows as request by request, and nothing is asked for twice, whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from embedkit.errors import EmbedkitError, InputError, ServerError
from embedkit_cli.synth import synth
from embedkit_trainer.synthesis.batch_ledger import Ledger
from embedkit_trainer.synthesis.brainstorm import brainstorm
from embedkit_trainer.synthesis.generate import GenerateReport, generate, plan_requests, store_folder
from embedkit_trainer.synthesis.settings_file import load_synthesis
from embedkit_trainer.synthesis.store import FAILURES, read_records
from tests.trainer.synthesis.scripted import Scripted, scripted, write_config

COUNT = 12
ROOT = Path(__file__).parents[3]
_COMMAND = (
    "import os, signal, sys; from embedkit_trainer.synthesis.generate import generate; "
    "from embedkit_trainer.synthesis.settings_file import load_synthesis; {before}"
    "generate(load_synthesis(sys.argv[1]), batch=True)"
)
#: Ends the process by SIGKILL once four answers are stored.
_KILLED_WHILE_STORING = (
    "from embedkit_trainer.synthesis.store import Store; append = Store.append; "
    "Store.append = lambda self, r: (append(self, r), self.spent.stored == 4 and os.kill(os.getpid(), signal.SIGKILL)); "
)


class Batches(Scripted):
    """A running server of batches; its log is read while it is written."""

    @property
    def requests(self) -> list[dict[str, Any]]:
        """What was done so far."""
        lines = self.log.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]


@contextmanager
def batch_server(folder: Path, **rules: Any) -> Iterator[Batches]:
    """Run a server of the Batch API with these rules as a process on loopback."""
    log = folder / "batches.log"
    log.touch()
    command = [sys.executable, "-m", "tests.trainer.synthesis.batch_server", str(log), json.dumps(rules)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        yield Batches(f"http://127.0.0.1:{int(process.stdout.readline())}/v1", log)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _config(folder: Path, url: str, more: str = "", **options: Any) -> Path:
    given: dict[str, Any] = {"examples": COUNT, "shares": "sts = 1"} | options
    model = given.pop("model", "") + "\n[batch]\npoll = 0.05\n" + given.pop("batch", "")
    return write_config(folder, url, more, model=model, **given)


def _generate(folder: Path, url: str, more: str = "", **options: Any) -> GenerateReport:
    asked = {key: options.pop(key) for key in ("retry_failed", "say") if key in options}
    return generate(load_synthesis(_config(folder, url, more, **options)), batch=True, **asked)


def _sent(server: Scripted) -> Counter[str]:
    """How often each request was put into a batch."""
    made = (event for event in server.requests if event["event"] == "create")
    return Counter(request["custom_id"] for event in made for request in event["requests"])


def _batches(server: Scripted) -> list[list[dict[str, Any]]]:
    return [event["requests"] for event in server.requests if event["event"] == "create"]


def _failures(folder: Path) -> Counter[str]:
    store = store_folder(load_synthesis(folder / "synthesis.toml"))
    return Counter(record["reason"] for record in read_records(store, FAILURES))


def _rows(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted((folder / "out/rows").rglob("*.jsonl"))
    }


def test_the_same_rows_as_request_by_request(tmp_path: Path) -> None:
    """Pools and rows of a run by batches are byte for byte those of a run that sends request by request."""
    found = []
    for name, batch in (("one", False), ("batches", True)):
        folder = tmp_path / name
        folder.mkdir()
        with batch_server(folder) if batch else scripted(folder) as server:
            config = load_synthesis(_config(folder, server.url, examples=40, batch="requests = 7", shares=""))
            brainstorm(config, batch=batch)
            report = generate(config, batch=batch)
            asked = server.requests
        assert report.run.stored == report.run.spent.requests == 40
        found.append(_rows(folder) | {p.name: p.read_bytes() for p in (folder / "out/pools").glob("*.jsonl")})
        if batch:
            sizes = [len(e["requests"]) for e in asked if e["event"] == "create"]
            assert sizes == [7, 1, 7, 7, 7, 7, 7, 5]
    assert found[0] == found[1]
    assert sum(name.endswith("rows.jsonl") for name in found[0]) >= 5


def test_the_body_of_a_request(tmp_path: Path) -> None:
    """A line is what the API documents, and its body what is posted request by request, schema and own keys included."""
    with batch_server(tmp_path) as server:
        _generate(tmp_path, server.url, model="max_tokens = 99\nextra_body = { seed = 3 }")
        line = _batches(server)[0][0]
    plan = plan_requests(load_synthesis(tmp_path / "synthesis.toml"))
    assert line["custom_id"] == "request-0"
    assert (line["method"], line["url"]) == ("POST", "/v1/chat/completions")
    assert line["body"] == {
        "model": "tiny",
        "messages": [{"role": "user", "content": plan.request(0).prompt}],
        "temperature": 1.0,
        "top_p": 1.0,
        "max_tokens": 99,
        "seed": 3,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": plan.request(0).schema},
        },
    }


def test_split_by_size_and_by_model(tmp_path: Path) -> None:
    """A batch holds one model's requests, and no more bytes than the limit; each request is in one."""
    second = '[[models]]\nname = "large"\nbase_url = "URL"\nprice_input = 0\nprice_output = 0\n'
    with batch_server(tmp_path) as server:
        _generate(
            tmp_path, server.url, examples=30, batch="megabytes = 0.004\n" + second.replace("URL", server.url)
        )
        batches, sent = _batches(server), _sent(server)
        sizes = [event["bytes"] for event in server.requests if event["event"] == "upload"]
    assert max(sizes) <= 4000
    assert len(batches) >= 6
    assert all(len({request["body"]["model"] for request in batch}) == 1 for batch in batches)
    assert set(sent.values()) == {1}
    assert len(sent) == 30


def test_half_the_price(tmp_path: Path) -> None:
    """Forecast, answers and what was spent are at the discount; another is read from the config."""
    told: list[Any] = []
    model = "batch_discount = 0.25\n"
    with batch_server(tmp_path, tokens=[100, 200]) as server:
        for more in ("", model):
            config = _config(tmp_path, server.url, model=more, examples=COUNT if not more else 2 * COUNT)
            config.write_text(
                config.read_text().replace("= 0\nprice_output = 0", "= 1000\nprice_output = 4000")
            )
            report = generate(load_synthesis(config), batch=True, announce=told.append)
            told.append(report.run.spent.cost)
    halves = told[1]
    assert halves == pytest.approx(COUNT * 0.5 * (0.1 + 0.8))
    assert told[3] - halves == pytest.approx(COUNT * 0.75 * (0.1 + 0.8))
    assert told[2].cost / told[0].cost == pytest.approx(1.5, rel=0.1)


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
@pytest.mark.parametrize(
    ("moment", "rules", "before"),
    [
        ("upload", {"slow": {"files": 30}}, ""),
        ("create", {"slow": {"batches": 30}}, ""),
        ("look", {"looks": 15}, ""),
        ("storing", {}, _KILLED_WHILE_STORING),
    ],
)
def test_killed(moment: str, rules: dict[str, Any], before: str, tmp_path: Path) -> None:
    """SIGKILL after the upload, after a batch was made, between looks and amid storing: no request is sent twice."""
    with batch_server(tmp_path, **rules) as server:
        config = _config(tmp_path, server.url, batch="requests = 8")
        process = subprocess.Popen([sys.executable, "-c", _COMMAND.format(before=before), str(config)])
        while process.poll() is None:
            if moment != "storing" and any(event["event"] == moment for event in server.requests):
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.01)
        assert process.wait() == -signal.SIGKILL
        killed_at = len(_batches(server))
        report = generate(load_synthesis(config), batch=True)
        assert set(_sent(server).values()) == {1}
        assert len(_batches(server)) == 2
    assert report.rows == {"sts": COUNT}
    assert report.run.spent.requests == COUNT
    assert report.run.stored == (COUNT - 4 if moment == "storing" else COUNT)
    assert killed_at == {"upload": 0, "create": 1, "look": 2, "storing": 2}[moment]


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGINT for a process")
def test_ctrl_c_leaves_batches_at_the_server(tmp_path: Path) -> None:
    """SIGINT ends the command with exit code 2 and says that the same command fetches what goes on; it then does."""
    with batch_server(tmp_path, looks=20) as server:
        config = _config(tmp_path, server.url)
        command = [sys.executable, "-m", "embedkit_cli.main", "synth", "generate", str(config)]
        process = subprocess.Popen([*command, "--batch"], stderr=subprocess.PIPE, text=True)
        while not any(event["event"] == "look" for event in server.requests):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
        assert process.returncode == 2
        assert "batches go on at the server" in told
        assert "12 requests left, 12 of them in batches" in told
        with pytest.raises(
            InputError, match="12 requests are in batches at .*: run the same command with --batch"
        ):
            generate(load_synthesis(config))
        assert generate(load_synthesis(config), batch=True).rows == {"sts": COUNT}
        assert len(_batches(server)) == 1


@pytest.mark.parametrize("status", ["expired", "cancelled"])
def test_part_of_a_batch(status: str, tmp_path: Path) -> None:
    """What a batch had answered before it expired is stored; the rest is undone, and the next run sends that alone."""
    told: list[str] = []
    with batch_server(tmp_path, status={"0": status}, answered=5) as server:
        report = _generate(tmp_path, server.url, say=told.append)
        assert (report.run.stored, report.run.left, report.run.spent.requests) == (5, 7, 5)
        assert f"batch batch_0 {status}: 5 requests answered, 7 not" in told
        report = _generate(tmp_path, server.url)
        assert [len(batch) for batch in _batches(server)] == [COUNT, 7]
        assert report.rows == {"sts": COUNT}
    assert not _failures(tmp_path)


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
        report = _generate(tmp_path, server.url)
        assert (report.run.stored, report.run.rejected, report.run.left) == (8, 4, left)
        assert _failures(tmp_path) == {reason: 4}
        assert len(_batches(server)) == 1


def test_an_answer_that_cannot_be_used(tmp_path: Path) -> None:
    """A useless answer is kept with reason and raw text, and --retry-failed alone sends it again."""
    with batch_server(tmp_path, text="I would rather write prose.") as server:
        report = _generate(tmp_path, server.url)
        assert report.run.reasons == {"no-json": COUNT}
        assert _generate(tmp_path, server.url).run.rejected == 0
        assert len(_batches(server)) == 1
        assert _generate(tmp_path, server.url, retry_failed=True).run.rejected == COUNT
        assert [len(batch) for batch in _batches(server)] == [COUNT, COUNT]


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
        report = _generate(tmp_path, server.url)
    assert (report.run.stored, report.run.rejected) == (COUNT, 0)
    assert report.run.unread == {"no-json": 6, "unknown-id": 6, "repeated-id": 1}
    assert report.rows == {"sts": COUNT}


def test_an_endless_line(tmp_path: Path) -> None:
    """An answer of many megabytes is too large, as it is request by request, and those after it are read."""
    with batch_server(tmp_path, length=3_000_000) as server:
        report = _generate(tmp_path, server.url, examples=3)
    assert report.run.reasons == {"too-large": 3}


def test_what_a_batch_says_nothing_of(tmp_path: Path) -> None:
    """A request that a completed batch has no line for may have been paid for: ceilings count it, the next run sends it."""
    with batch_server(tmp_path, drop=3, tokens=[10, 20]) as server:
        report = _generate(tmp_path, server.url, model="max_tokens = 100")
        assert (report.run.stored, report.run.left) == (9, 3)
        assert _failures(tmp_path) == {"server": 3}
        assert report.run.spent.lost_tokens > 300
        assert len(_batches(server)) == 1


def test_structured_output(tmp_path: Path) -> None:
    """auto asks again without the schema in the same run; on ends the run with what the server said."""
    with batch_server(tmp_path, unstructured=True) as server:
        with pytest.raises(
            InputError, match=r"refused the requests to tiny \(status 400, json_schema is not supported\)"
        ):
            _generate(tmp_path, server.url, model='structured_output = "on"')
        report = _generate(tmp_path, server.url)
        assert report.rows == {"sts": COUNT}
        kinds = ["response_format" in batch[0]["body"] for batch in _batches(server)]
        assert kinds == [True, True, False]
        _generate(tmp_path, server.url, examples=COUNT + 1)
        assert "response_format" not in _batches(server)[-1][0]["body"]


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
            _generate(tmp_path, server.url, "retries = 1")
        assert len(_batches(server)) == ("content" in refuse)


def test_a_refused_batch_keeps_nobody_from_sending(tmp_path: Path) -> None:
    """After a server without the Batch API the same requests go out one by one."""
    with batch_server(tmp_path, refuse={"batches": [404, None, 0]}) as server, pytest.raises(InputError):
        _generate(tmp_path, server.url)
    with scripted(tmp_path) as one_by_one:
        report = generate(load_synthesis(_config(tmp_path, one_by_one.url)))
    assert report.rows == {"sts": COUNT}


@pytest.mark.parametrize("status", [429, 500])
def test_what_passes(status: int, tmp_path: Path) -> None:
    """A refusal that passes, of an upload or a batch or a file of answers, loses nothing and makes nothing twice."""
    refuse = {name: [status, None, 1] for name in ("files", "batches", "content")}
    with batch_server(tmp_path, refuse=refuse) as server:
        report = _generate(tmp_path, server.url)
        assert report.rows == {"sts": COUNT}
        assert len(_batches(server)) == 1


def test_a_batch_that_was_made_though_nobody_said_so(tmp_path: Path) -> None:
    """Where the answer to a batch's making is lost it is found by its key, and not made again."""
    with batch_server(tmp_path, slow={"batches": 2}) as server:
        report = _generate(tmp_path, server.url, "timeout = 0.5")
        assert report.rows == {"sts": COUNT}
        assert len(_batches(server)) == 1
        made = next(event for event in server.requests if event["event"] == "create")
        assert set(made["metadata"]) == {"embedkit", "plan"}


@pytest.mark.parametrize("looks", [1, {"0": 6, "1": 1, "2": 1}])
def test_a_full_queue(looks: Any, tmp_path: Path) -> None:
    """A batch that the server's queue has no room for waits for the others, and is sent again then."""
    told: list[str] = []
    rules = {"status": {"1": "failed"}, "problem": ["token_limit_exceeded", "Enqueued token limit reached"]}
    with batch_server(tmp_path, looks=looks, **rules) as server:
        config = _config(tmp_path, server.url, batch="requests = 6")
        report = generate(load_synthesis(config), batch=True, say=told.append)
        counts = [len(batch) for batch in _batches(server)]
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
            _generate(tmp_path, server.url)
        assert _generate(tmp_path, server.url).rows == {"sts": COUNT}
        assert [len(batch) for batch in _batches(server)] == [COUNT, COUNT]


@pytest.mark.parametrize(
    "ceiling",
    ["max_requests = 5", "max_tokens = 1200", "max_cost = 0.5"],
)
def test_ceilings(ceiling: str, tmp_path: Path) -> None:
    """Batches hold as many requests as could get their longest answers; what these leave free goes into the next ones."""
    with batch_server(tmp_path, tokens=[10, 90]) as server:
        config = _config(tmp_path, server.url, ceiling, model="max_tokens = 300")
        config.write_text(config.read_text().replace("price_output = 0", "price_output = 1000", 1))
        report = generate(load_synthesis(config), batch=True)
        sizes = [len(batch) for batch in _batches(server)]
    assert report.run.stopped == ceiling.partition(" ")[0]
    assert sum(sizes) == report.run.stored == report.run.spent.requests
    spent = report.run.spent
    if "requests" in ceiling:
        assert spent.requests == 5
    elif "tokens" in ceiling:
        assert 500 < spent.tokens_in + spent.tokens_out <= 1200
        assert len(sizes) > 1
    else:
        assert 0.3 < spent.cost <= 0.5
        assert len(sizes) > 1


def test_batches_of_another_server(tmp_path: Path) -> None:
    """Batches that the server does not have are not sent again: the run says where they may be."""
    with batch_server(tmp_path, looks=1000) as server:
        calls = iter(range(8))
        config = load_synthesis(_config(tmp_path, server.url))
        generate(config, batch=True, stop_wanted=lambda: next(calls, None) is None)
    with batch_server(tmp_path) as other:
        before = len(_batches(other))
        with pytest.raises(InputError, match="has no batch batch_0 .404.*, in which 12 requests were sent"):
            _generate(tmp_path, other.url)
        assert len(_batches(other)) == before


def test_an_expired_file_keeps_no_other_back(tmp_path: Path) -> None:
    """Where one batch's answers are gone the others' are stored, nothing is sent again, and the way out is told."""
    with batch_server(tmp_path, refuse={"content": [404, None, 1]}) as server:
        config = load_synthesis(_config(tmp_path, server.url, batch="requests = 6"))
        with pytest.raises(
            InputError, match="has the file .*delete .*ledger.jsonl once the others are fetched"
        ):
            generate(config, batch=True)
        assert sum(1 for _ in read_records(store_folder(config))) == 6
        assert generate(config, batch=True).rows == {"sts": COUNT}  # it was gone for a moment alone
        assert len(_batches(server)) == 2


def test_a_dry_run_tells_the_price_of_batches(tmp_path: Path) -> None:
    """--dry-run with --batch forecasts half of what it forecasts without, and asks nothing."""
    costs = []
    with batch_server(tmp_path) as server:
        config = _config(tmp_path, server.url)
        config.write_text(config.read_text().replace("= 0\nprice_output = 0", "= 1000\nprice_output = 4000"))
        for more in ([], ["--batch"]):
            found = CliRunner().invoke(synth, ["generate", str(config), "--dry-run", "--json", *more])
            costs.append(json.loads(found.stdout)["forecast"]["cost"])
        assert not server.requests
    assert costs[1] == pytest.approx(costs[0] / 2)


def test_a_torn_ledger(tmp_path: Path) -> None:
    """A torn last line is cut off; damage before it is told, and nothing is sent."""
    with batch_server(tmp_path) as server:
        _generate(tmp_path, server.url)
        path = tmp_path / "out/store/batches/ledger.jsonl"
        whole = path.read_bytes()
        assert [p.name for p in path.parent.iterdir()] == [path.name]
        path.write_bytes(whole + b'{"crc32": "00')
        with Ledger(path.parent) as ledger:
            assert not ledger.open
        assert path.read_bytes() == whole
        path.write_bytes(whole.replace(b'"uploaded"', b'"uplOaded"'))
        with pytest.raises(EmbedkitError, match="line 2 is damaged"):
            _generate(tmp_path, server.url)
        assert len(_batches(server)) == 1
