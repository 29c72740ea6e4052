"""The Batch API over real HTTP: the same rows as request by request, and nothing is asked for twice, whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from embedkit.errors import EmbedkitError, InputError
from embedkit_cli.synth import synth
from embedkit_trainer.synthesis.batch_ledger import Ledger
from embedkit_trainer.synthesis.brainstorm import brainstorm
from embedkit_trainer.synthesis.generate import generate, plan_requests
from embedkit_trainer.synthesis.settings_file import load_synthesis
from tests.trainer.synthesis.batches import (
    COUNT,
    batch_config,
    batch_server,
    row_files,
    run_batches,
    sent_batches,
    sent_requests,
)
from tests.trainer.synthesis.scripted import scripted

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


def test_the_same_rows_as_request_by_request(tmp_path: Path) -> None:
    """Pools and rows of a run by batches are byte for byte those of a run that sends request by request."""
    found = []
    for name, batch in (("one", False), ("batches", True)):
        folder = tmp_path / name
        folder.mkdir()
        with batch_server(folder) if batch else scripted(folder) as server:
            config = load_synthesis(
                batch_config(folder, server.url, examples=40, batch="requests = 7", shares="")
            )
            brainstorm(config, batch=batch)
            report = generate(config, batch=batch)
            asked = server.requests
        assert report.run.stored == report.run.spent.requests == 40
        found.append(
            row_files(folder) | {p.name: p.read_bytes() for p in (folder / "out/pools").glob("*.jsonl")}
        )
        if batch:
            sizes = [len(e["requests"]) for e in asked if e["event"] == "create"]
            assert sizes == [7, 1, 7, 7, 7, 7, 7, 5]
    assert found[0] == found[1]
    assert sum(name.endswith("rows.jsonl") for name in found[0]) >= 5


def test_the_body_of_a_request(tmp_path: Path) -> None:
    """A line is what the API documents, and its body what is posted request by request, schema and own keys included."""
    with batch_server(tmp_path) as server:
        run_batches(tmp_path, server.url, model="max_tokens = 99\nextra_body = { seed = 3 }")
        line = sent_batches(server)[0][0]
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
        run_batches(
            tmp_path, server.url, examples=30, batch="megabytes = 0.004\n" + second.replace("URL", server.url)
        )
        batches, sent = sent_batches(server), sent_requests(server)
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
            config = batch_config(tmp_path, server.url, model=more, examples=COUNT if not more else 2 * COUNT)
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
        ("look", {"until": "killed"}, ""),
        ("storing", {}, _KILLED_WHILE_STORING),
    ],
)
def test_killed(moment: str, rules: dict[str, Any], before: str, tmp_path: Path) -> None:
    """SIGKILL after the upload, after a batch was made, between looks and amid storing: no request is sent twice."""
    if "until" in rules:
        rules = {**rules, "until": str(tmp_path / rules["until"])}
    with batch_server(tmp_path, **rules) as server:
        config = batch_config(tmp_path, server.url, batch="requests = 8")
        process = subprocess.Popen([sys.executable, "-c", _COMMAND.format(before=before), str(config)])
        while process.poll() is None:
            if moment != "storing" and any(event["event"] == moment for event in server.requests):
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.01)
        assert process.wait() == -signal.SIGKILL
        (tmp_path / "killed").touch()
        killed_at = len(sent_batches(server))
        report = generate(load_synthesis(config), batch=True)
        assert set(sent_requests(server).values()) == {1}
        assert len(sent_batches(server)) == 2
    assert report.rows == {"sts": COUNT}
    assert report.run.spent.requests == COUNT
    assert report.run.stored == (COUNT - 4 if moment == "storing" else COUNT)
    assert killed_at == {"upload": 0, "create": 1, "look": 2, "storing": 2}[moment]


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGINT for a process")
def test_ctrl_c_leaves_batches_at_the_server(tmp_path: Path) -> None:
    """SIGINT ends the command with exit code 2 and says that the same command fetches what goes on; it then does."""
    with batch_server(tmp_path, until=str(tmp_path / "stopped")) as server:
        config = batch_config(tmp_path, server.url)
        command = [sys.executable, "-m", "embedkit_cli.main", "synth", "generate", str(config)]
        process = subprocess.Popen([*command, "--batch"], stderr=subprocess.PIPE, text=True)
        while not any(event["event"] == "look" for event in server.requests):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=120)
        assert process.returncode == 2
        (tmp_path / "stopped").touch()
        assert "batches go on at the server" in told
        assert "12 requests left, 12 of them in batches" in told
        with pytest.raises(
            InputError, match="12 requests are in batches at .*: run the same command with --batch"
        ):
            generate(load_synthesis(config))
        assert generate(load_synthesis(config), batch=True).rows == {"sts": COUNT}
        assert len(sent_batches(server)) == 1


@pytest.mark.parametrize(
    "ceiling",
    ["max_requests = 5", "max_tokens = 1200", "max_cost = 0.5"],
)
def test_ceilings(ceiling: str, tmp_path: Path) -> None:
    """Batches hold as many requests as could get their longest answers; what these leave free goes into the next ones."""
    with batch_server(tmp_path, tokens=[10, 90]) as server:
        config = batch_config(tmp_path, server.url, ceiling, model="max_tokens = 300")
        config.write_text(config.read_text().replace("price_output = 0", "price_output = 1000", 1))
        report = generate(load_synthesis(config), batch=True)
        sizes = [len(batch) for batch in sent_batches(server)]
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


def test_a_dry_run_tells_the_price_of_batches(tmp_path: Path) -> None:
    """--dry-run with --batch forecasts half of what it forecasts without, and asks nothing."""
    costs = []
    with batch_server(tmp_path) as server:
        config = batch_config(tmp_path, server.url)
        config.write_text(config.read_text().replace("= 0\nprice_output = 0", "= 1000\nprice_output = 4000"))
        for more in ([], ["--batch"]):
            found = CliRunner().invoke(synth, ["generate", str(config), "--dry-run", "--json", *more])
            costs.append(json.loads(found.stdout)["forecast"]["cost"])
        assert not server.requests
    assert costs[1] == pytest.approx(costs[0] / 2)


def test_a_torn_ledger(tmp_path: Path) -> None:
    """A torn last line is cut off; damage before it is told, and nothing is sent."""
    with batch_server(tmp_path) as server:
        run_batches(tmp_path, server.url)
        path = tmp_path / "out/store/batches/ledger.jsonl"
        whole = path.read_bytes()
        assert [p.name for p in path.parent.iterdir()] == [path.name]
        path.write_bytes(whole + b'{"crc32": "00')
        with Ledger(path.parent) as ledger:
            assert not ledger.open
        assert path.read_bytes() == whole
        path.write_bytes(whole.replace(b'"uploaded"', b'"uplOaded"'))
        with pytest.raises(EmbedkitError, match="line 2 is damaged"):
            run_batches(tmp_path, server.url)
        assert len(sent_batches(server)) == 1
