"""`embedkit synth`: plan, brainstorm and generate end to end against a real server process; bad input."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from embedkit_trainer.data.rows import read_rows
from tests.cli.conftest import Invoke
from tests.trainer.synthesis.scripted import Scripted, scripted, write_config

TRAINING = """\
output = "model"
device = "cpu"
[model]
name = "mistralai/Mistral-7B-v0.1"
[[stages]]
batch_size = 4
[[stages.sources]]
path = "out/rows"
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Scripted]:
    """A server that answers everything rightly."""
    with scripted(tmp_path) as running:
        yield running


def _record(invoke: Invoke, *arguments: Any) -> dict[str, Any]:
    result = invoke("synth", *arguments, "--json")
    assert result.exit_code == 0, f"{result.stderr}\n{result.exception!r}"
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_from_nothing_to_training_rows(invoke: Invoke, server: Scripted, tmp_path: Path) -> None:
    """plan, brainstorm and generate make rows of all six types, which `embedkit train` takes as they are."""
    config = write_config(tmp_path, server.url, examples=60)
    planned = _record(invoke, "plan", config)
    assert sum(planned["types"].values()) in range(57, 64)
    assert set(planned["pools"].values()) == {0}
    assert planned["forecast"]["generate"]["requests"] == 60
    assert not server.requests
    pools = _record(invoke, "brainstorm", config)
    assert pools["sizes"] == dict.fromkeys(("short-long", "long-short", "long-long", "short-short"), 10)
    report = _record(invoke, "generate", config)
    assert sum(report["rows"].values()) == report["run"]["stored"] == 60
    assert report["run"]["spent"]["requests"] == 60
    rows = list(read_rows("out/rows"))
    assert len(rows) == 60
    kinds = Counter(len(row.negatives) for row in rows)
    assert set(kinds) == {0, 1}
    assert all(row.instruction and row.source == "synthetic" for row in rows)
    (tmp_path / "train.toml").write_text(TRAINING)
    trained = invoke("train", "train.toml", "--tiny", "--json")
    assert trained.exit_code == 0, trained.stderr
    assert json.loads(trained.stdout)["report"]["steps"] > 0


def test_the_same_command_sends_nothing_again(invoke: Invoke, server: Scripted, tmp_path: Path) -> None:
    """A second run asks nothing and gives the same bytes; more examples ask for those alone."""
    config = write_config(tmp_path, server.url, examples=20)
    _record(invoke, "brainstorm", config)
    _record(invoke, "generate", config)
    before = {p: p.read_bytes() for p in Path("out/rows").rglob("*.jsonl")}
    asked = len(server.requests)
    assert _record(invoke, "brainstorm", config)["run"]["stored"] == 0
    assert _record(invoke, "generate", config)["run"]["stored"] == 0
    assert len(server.requests) == asked
    assert {p: p.read_bytes() for p in Path("out/rows").rglob("*.jsonl")} == before
    more = _record(invoke, "generate", config, "--set", "examples=30")
    assert (more["run"]["stored"], len(server.requests)) == (10, asked + 10)
    assert all(p.read_bytes().startswith(content) for p, content in before.items())


def test_what_is_complete_needs_no_server(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of a complete data set are written again without a server or a key."""
    with scripted(tmp_path) as server:
        config = write_config(tmp_path, server.url, shares="sts = 1", examples=5)
        _record(invoke, "generate", config)
    file = Path("out/rows/sts/rows.jsonl")
    before = file.read_bytes()
    file.unlink()
    config.write_text(
        config.read_text().replace('name = "tiny"', 'name = "tiny"\napi_key_env = "NONE_OF_MINE"')
    )
    result = invoke("synth", "generate", config)
    assert result.exit_code == 0, result.stderr
    assert "forecast" not in result.stderr
    assert file.read_bytes() == before


def test_the_forecast_is_of_what_is_left(invoke: Invoke, server: Scripted, tmp_path: Path) -> None:
    """A run that goes on tells what the rest will probably take."""
    config = write_config(tmp_path, server.url, shares="sts = 1", examples=5)
    assert "forecast: 5 requests, about " in invoke("synth", "generate", config).stderr
    assert "forecast: 3 requests, about " in invoke("synth", "generate", config, "--set", "examples=8").stderr


def test_without_a_price(invoke: Invoke, server: Scripted, tmp_path: Path) -> None:
    """--no-budget goes without a price, but no ceiling on money can be kept then; a run asks for one or the other."""
    config = write_config(tmp_path, server.url, shares="sts = 1", examples=5)
    config.write_text(config.read_text().replace("price_input = 0\nprice_output = 0", ""))
    refused = invoke("synth", "generate", config)
    assert refused.exit_code == 2
    assert "set models.tiny.price_input and price_output" in refused.stderr
    refused = invoke("synth", "generate", config, "--no-budget", "--set", "max_cost=1.0")
    assert (refused.exit_code, len(server.requests)) == (2, 0)
    assert "max_cost cannot be kept without prices" in refused.stderr
    done = invoke("synth", "generate", config, "--no-budget")
    assert done.exit_code == 0, done.stderr
    assert "cost unknown (no price)" in done.stderr


def test_dry_runs_ask_nothing(invoke: Invoke, server: Scripted, tmp_path: Path) -> None:
    """--dry-run prints prompts and the forecast with its price, and writes nothing."""
    config = write_config(tmp_path, server.url)
    priced = ("--set", "models.tiny.price_input=10", "--set", "models.tiny.price_output=30")
    result = invoke("synth", "brainstorm", config, "--dry-run", "--prompts", "2", *priced)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("--- ") == 2
    assert "forecast: 8 requests, about " in result.stdout
    assert "cost 0.0" in result.stdout
    record = _record(invoke, "plan", config, *priced, "--prompts", "1")
    found = record["forecast"]["generate"]
    assert found["cost"] == pytest.approx(
        (found["tokens_in"] * 10 + found["tokens_out"] * 30) / 1e6, rel=0.01
    )
    assert [len(p) for p in record["prompts"].values()] == [1, 1]
    assert not Path("out").exists()
    assert not server.requests


def test_what_a_run_prints(invoke: Invoke, tmp_path: Path) -> None:
    """Rows by type, what was rejected and why, and what to do next; a ceiling ends with exit code 2."""
    with scripted(tmp_path, {"fault": "text", "value": "never", "every": 3, "tries": 0}) as server:
        config = write_config(tmp_path, server.url, shares="sts = 1", examples=30)
        result = invoke("synth", "generate", config)
        assert result.exit_code == 0, result.stderr
        assert "forecast" in result.stderr
        assert "rejected (no-json " in result.stdout
        assert "--retry-failed sends them again" in result.stderr
        stopped = invoke("synth", "generate", config, "--set", "examples=60", "--set", "max_requests=40")
        assert stopped.exit_code == 2
        assert (
            "stopped at the ceiling max_requests = 40: 20 requests left; raise it to go on" in stopped.stderr
        )


@pytest.mark.parametrize(
    ("change", "arguments", "expected"),
    [
        (("", ""), ("gone.toml",), "config gone.toml does not exist"),
        (("seed", "sede"), (), "sede is unknown: did you mean seed?"),
        (("examples = 40", "examples = 0"), (), "examples = 0 is too small"),
        (("price_input = 0", ""), (), "has one price of two"),
        (("price_input = 0\nprice_output = 0", ""), (), "no price is known for the model tiny"),
        (("http://", "ftp://"), (), "base_url is no web address"),
        ((" sts = 2", " stt = 2"), (), "shares.stt is unknown: did you mean sts"),
        (("[[models]]", 'templates = ["none"]\n[[models]]'), (), "templates is unknown"),
        (("seed = 7", 'templates = ["none"]'), (), "the folder of templates"),
        (
            ("http://127.0.0.1", "https://api.openai.com/v1#"),
            (),
            "no key for api.openai.com: set OPENAI_API_KEY",
        ),
        (("http://", "http://"), ("--set", "models.tiny.share=0"), "no share is above 0"),
    ],
)
def test_bad_input_is_one_sentence(
    change: tuple[str, str],
    arguments: tuple[str, ...],
    expected: str,
    invoke: Invoke,
    server: Scripted,
    tmp_path: Path,
) -> None:
    """What is wrong with the config ends with exit code 2 and one sentence, and nothing is asked."""
    config = write_config(tmp_path, server.url)
    config.write_text(config.read_text().replace(*change))
    given = arguments if arguments[:1] == ("gone.toml",) else (config, *arguments)
    result = invoke("synth", "brainstorm", *given)
    assert result.exit_code == 2, result.stdout
    assert expected in result.stderr
    assert result.stderr.count("error: ") == 1
    assert not server.requests
