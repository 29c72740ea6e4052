"""`embedkit synth filter --judge`: a real server process that prefers the text with the most words of the query."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Invoke
from tests.trainer.synthesis.made_rows import read, write
from tests.trainer.synthesis.scripted import Scripted, scripted, write_config

pytest.importorskip("openai")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Scripted]:
    """A server that ranks rightly."""
    with scripted(tmp_path) as running:
        yield running


def _sound(number: int) -> dict[str, Any]:
    return {
        "id": number,
        "instruction": f"Find what is said about topic {number}",
        "query": f"alpha beta gamma{number}",
        "positive": f"alpha beta gamma{number} are all here",
        "negatives": [f"alpha beta {number}", f"nothing of it {number}"],
    }


def _unsound(number: int) -> dict[str, Any]:
    sound = _sound(number)
    negatives = [f"nothing of it {number}", sound["positive"]]
    return sound | {"positive": f"alpha {number}", "negatives": negatives, "negative_ids": ["n", "p"]}


@pytest.fixture
def rows() -> Path:
    """Six sound rows, two unsound ones, one that has no negatives and one that has its positive among them."""
    same = _sound(9) | {"negatives": [_sound(9)["positive"] + "!", _sound(9)["positive"]]}
    alone = {"query": "alpha", "positive": "something else"}
    return write(Path("rows.jsonl"), *map(_sound, range(6)), _unsound(6), _unsound(7), alone, same)


def _judge(invoke: Invoke, url: str, *arguments: Any, more: str = "", model: str = "") -> dict[str, Any]:
    config = write_config(Path.cwd(), url, more, model)
    result = invoke(
        "synth", "filter", "rows.jsonl", "-o", "kept.jsonl", "--judge", config, "--no-duplicates", "--force", "--json", *arguments
    )  # fmt: skip
    assert result.exit_code == 0, f"{result.stderr}\n{result.exception!r}"
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def _told(report: dict[str, Any]) -> dict[str, int]:
    (count,) = [f for f in report["filters"] if f["name"] == "consistency"]
    return {**count["dropped"], **count["changed"]}


def test_rows_whose_negative_is_ranked_first_are_dropped(
    invoke: Invoke, rows: Path, server: Scripted
) -> None:
    """Rows without negatives pass unasked; a positive that is a negative too needs no judge."""
    report = _judge(invoke, server.url, "--consistency")
    assert _told(report) == {"inconsistent": 3}
    assert [row.get("id") for row in read(Path("kept.jsonl"))] == [0, 1, 2, 3, 4, 5, None]
    dropped = read(Path("kept.dropped/dropped-inconsistent.jsonl"))
    assert [row["dropped"]["detail"] for row in dropped] == [
        "tiny ranks negatives[1] first, the positive 2 of 3",
        "tiny ranks negatives[1] first, the positive 2 of 3",
        "the positive is among the negatives",
    ]
    assert len(server.requests) == report["judging"]["stored"] == 8
    assert all(request["structured"] for request in server.requests)
    for request in server.requests:
        assert "Find what is said about topic" in request["prompt"]


def test_relabelling_lets_them_change_places(invoke: Invoke, rows: Path, server: Scripted) -> None:
    """With their ids; a row with a grade is dropped even so."""
    write(rows, _unsound(1), _unsound(2) | {"score": 3.0})
    assert _told(_judge(invoke, server.url, "--relabel")) == {"inconsistent": 1, "relabelled": 1}
    (row,) = read(Path("kept.jsonl"))
    assert (row["positive"], row["positive_id"]) == (_sound(1)["positive"], "p")
    assert (row["negatives"], row["negative_ids"]) == (["nothing of it 1", "alpha 1"], ["n", None])


def test_the_order_says_nothing_and_follows_the_seed(invoke: Invoke, server: Scripted) -> None:
    """The positive stands in every place, by the seed and the row alone; another seed is another order."""
    write(Path("rows.jsonl"), *map(_sound, range(40)))

    def asked(seed: int, output: str) -> list[str]:
        before = len(server.requests)
        _judge(invoke, server.url, "--consistency", "-o", output, "--set", f"seed={seed}")
        return sorted(r["prompt"] for r in server.requests[before:])

    first = asked(1, "a.jsonl")
    places = [prompt.split("are all here")[0].count("\n[") + prompt.startswith("[") for prompt in first]
    assert {places.count(p) > 5 for p in (1, 2, 3)} == {True}
    assert set(places) == {1, 2, 3}
    lines = Path("rows.jsonl").read_text().splitlines(keepends=True)
    Path("rows.jsonl").write_text("".join(reversed(lines)))
    assert asked(1, "b.jsonl") == first
    assert asked(2, "c.jsonl") != first


def test_no_verdict_is_paid_for_twice(invoke: Invoke, rows: Path, server: Scripted) -> None:
    """The same rows in another order, fewer filters, more rows: only what is new is asked about."""
    _judge(invoke, server.url, "--consistency")
    before = Path("kept.jsonl").read_bytes()
    _judge(invoke, server.url, "--consistency")
    assert (len(server.requests), Path("kept.jsonl").read_bytes()) == (8, before)
    write(rows, _unsound(20), *map(_sound, range(5, -1, -1)), _sound(21))
    assert _told(_judge(invoke, server.url, "--relabel", "--no-language")) == {"relabelled": 1}
    assert len(server.requests) == 10


@pytest.mark.parametrize("text", ["no", '{"ranking": [1]}', '{"ranking": [1, 1, 2]}', '{"ranking": [3, 2, true]}',
                                  '{"ranking": "1, 2, 3"}', '{"ranking": [1, 2, 3], "x": 1}', '{"ranking": [0, 1, 2]}'])  # fmt: skip
def test_garbage_is_counted_and_its_row_is_unjudged(
    invoke: Invoke, rows: Path, tmp_path: Path, text: str
) -> None:
    """It lies beside with that reason, and goes through once --retry-failed got a verdict."""
    garbage = {"fault": "text", "value": text, "match": "topic 3", "tries": 1}
    with scripted(tmp_path, garbage) as server:
        report = _judge(invoke, server.url, "--consistency")
        assert _told(report) == {"inconsistent": 3, "unjudged": 1}
        assert (report["judging"]["stored"], report["judging"]["rejected"]) == (7, 1)
        assert [row["id"] for row in read(Path("kept.dropped/dropped-unjudged.jsonl"))] == [3]
        assert _told(_judge(invoke, server.url, "--consistency")) == _told(report)
        assert len(server.requests) == 8
        assert _told(_judge(invoke, server.url, "--consistency", "--retry-failed")) == {"inconsistent": 3}
        assert len(server.requests) == 9


def test_a_ceiling_writes_nothing_and_keeps_the_verdicts(
    invoke: Invoke, rows: Path, server: Scripted
) -> None:
    """Exit code 2, one sentence; with a higher one only the rest is asked about."""
    config = write_config(Path.cwd(), server.url, "max_requests = 5")
    arguments = (
        "synth", "filter", rows, "-o", "kept.jsonl", "--no-duplicates", "--consistency", "--judge", config
    )  # fmt: skip
    stopped = invoke(*arguments)
    assert (stopped.exit_code, len(server.requests)) == (2, 5), stopped.stderr
    assert (
        "error: stopped at the ceiling max_requests = 5: rows still to be judged: 3; none was written"
        in stopped.stderr
    )
    assert sorted(p.name for p in Path().iterdir()) == [
        "kept.judge", "rows.jsonl", "server.log", "synthesis.toml"
    ]  # fmt: skip
    done = invoke(*arguments, "--set", "max_requests=8")
    assert done.exit_code == 0, done.stderr
    assert len(server.requests) == 8
    assert "forecast: 3 requests" in done.stderr
    assert "3 answers stored, 0 rejected" in done.stdout


def test_requests_without_an_answer_are_sent_again_by_the_next_run(
    invoke: Invoke, rows: Path, tmp_path: Path
) -> None:
    """Nothing is written while a row waits for its verdict."""
    broken = {"fault": "status", "value": [500], "match": "topic 3", "tries": 1}
    with scripted(tmp_path, broken) as server:
        config = write_config(Path.cwd(), server.url, "retries = 0\nconcurrency = 1")
        arguments = (
            "synth", "filter", rows, "-o", "kept.jsonl", "--no-duplicates", "--consistency", "--judge", config
        )  # fmt: skip
        first = invoke(*arguments)
        assert first.exit_code == 2
        assert "the judge's server left requests unanswered: rows still to be judged: 1; none" in first.stderr
        assert not Path("kept.jsonl").exists()
        assert invoke(*arguments).exit_code == 0
        assert len(server.requests) == 9


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_run_pays_for_nothing_twice(invoke: Invoke, tmp_path: Path) -> None:
    """What was answered before SIGKILL is not asked again, and the rows are those of a run that nobody killed."""
    write(Path("rows.jsonl"), *map(_sound, range(60)), *map(_unsound, range(60, 70)))
    with scripted(tmp_path, {"fault": "slow", "value": 0.1, "tries": 0}) as server:
        config = write_config(Path.cwd(), server.url, "concurrency = 2")
        command = [
            "synth",
            "filter",
            "rows.jsonl",
            "-o",
            "kept.jsonl",
            "--consistency",
            "--judge",
            str(config),
        ]
        code = "import sys\nfrom embedkit_cli.main import cli\ncli(sys.argv[1:])"
        run = subprocess.Popen([sys.executable, "-c", code, *command])
        store = Path("kept.judge/examples-00000.jsonl")
        deadline = time.monotonic() + 200
        while not (store.exists() and store.read_bytes().count(b"\n") >= 10) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        stored = {json.loads(line)["record"]["case"] for line in store.read_text().splitlines()}
        assert 10 <= len(stored) < 70
        assert not Path("kept.jsonl").exists()
        done = invoke(*command)
        assert done.exit_code == 0, done.stderr
        assert 70 <= len(server.requests) <= 70 + 2  # two were under way
    Path("second").mkdir()
    with scripted(tmp_path / "second") as server:
        _judge(invoke, server.url, "--consistency", "-o", "whole.jsonl")
    assert Path("kept.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert not [p for p in Path().iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--judge", "synthesis.toml"], "--judge says who judges: give --consistency or --relabel with it"),
        (["--retry-failed"], "are for --judge"),
        (["--consistency", "--judge", "missing.toml"], "config missing.toml does not exist"),
        (["--consistency", "--judge", "priceless.toml"], "no price is known for the model tiny"),
        (["--consistency", "--judge", "synthesis.toml", "--device", "cpu"], "and not where --judge does"),
        (["--consistency", "--judge", "synthesis.toml", "--set", "templates=['none']"], "does not exist"),
    ],
)
def test_wrong_input_is_one_sentence(invoke: Invoke, rows: Path, arguments: list[str], sentence: str) -> None:
    """Exit code 2, nothing written."""
    config = write_config(Path.cwd(), "http://127.0.0.1:9/v1")
    text = config.read_text().replace("price_input = 0\nprice_output = 0", "")
    Path("priceless.toml").write_text(text)
    before = sorted(Path().iterdir())
    result = invoke("synth", "filter", rows, "-o", "kept.jsonl", *arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.stderr
    assert sentence in result.stderr and result.stderr.count("error: ") == 1
    assert sorted(Path().iterdir()) == before


def test_without_prices_on_request(invoke: Invoke, rows: Path, server: Scripted) -> None:
    """--no-budget goes without; verdicts of another seed are not mixed with these."""
    _judge(invoke, server.url, "--consistency", "--no-budget")
    config = write_config(Path.cwd(), server.url)
    other = invoke(
        "synth",
        "filter",
        rows,
        "-o",
        "kept.jsonl",
        "--force",
        "--consistency",
        "--judge",
        config,
        "--set",
        "seed=8",
    )
    assert other.exit_code == 2
    assert "another plan (what differs: seed)" in other.stderr
    assert len(server.requests) == 8
