"""Killed at any moment: nothing that was stored is sent again, and the data set is that of a run that nobody killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from embedkit.errors import StoreError
from embedkit_trainer.synthesis.generate import generate, plan_requests, store_folder
from embedkit_trainer.synthesis.running import Run
from embedkit_trainer.synthesis.settings_file import load_synthesis
from embedkit_trainer.synthesis.store import Store, read_records
from tests.trainer.synthesis.scripted import Scripted, scripted, write_config

#: Faults that pass, among them, so that kills meet retries as well.
RULES = (
    {"fault": "status", "value": [500], "every": 7},
    {"fault": "text", "value": "no JSON", "every": 11, "tries": 0},
    {"fault": "slow", "value": 0.02, "tries": 0},
)
SHARES = "sts = 1, bitext = 1"
#: No two requests of this type have the same prompt, so that the server's log tells them apart.
_DIGITS = str([str(i) for i in range(100)]).replace("'", '"')
_TEMPLATE = f"""+++
type = "sts"
step = "generate"
[placeholders]
a = {_DIGITS}
b = {_DIGITS}
c = {_DIGITS}
d = {_DIGITS}
+++
Write "S1", "S2" and "S3" about number {{a}}-{{b}}-{{c}}-{{d}}.
"""
_COMMAND = (
    "import sys; from embedkit_trainer.synthesis.generate import generate; "
    "from embedkit_trainer.synthesis.settings_file import load_synthesis; generate(load_synthesis(sys.argv[1]))"
)


def _rows(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted((folder / "out/rows").rglob("*.jsonl"))
    }


def _stored_prompts(config: Path) -> set[str]:
    """The prompts of what is stored, failures among them."""
    settings = load_synthesis(config)
    plan, folder = plan_requests(settings), store_folder(settings)
    records = [
        *read_records(folder),
        *(r for r in read_records(folder, "failures") if r["reason"] != "server"),
    ]
    return {plan.request(record["request"]).prompt for record in records}


def _config(folder: Path, url: str, requests: int) -> Path:
    (folder / "templates").mkdir(exist_ok=True)
    (folder / "templates" / "numbers.md").write_text(_TEMPLATE)
    more = 'templates = ["templates"]\nshipped_templates = false'
    return write_config(folder, url, more, examples=requests, shares="sts = 1")


def _kill_and_rerun(folder: Path, server: Scripted, requests: int, kills: int, seed: int) -> None:
    """Kill a run `kills` times at random moments, then run it to its end."""
    config = _config(folder, server.url, requests)
    source = random.Random(seed)
    store = store_folder(load_synthesis(config))
    sent_when_stored: dict[str, int] = {}
    for killed in range(1, kills + 1):
        # One that is done before it is killed waits for that.
        command = f"{_COMMAND}; import time; time.sleep(600)"
        process = subprocess.Popen([sys.executable, "-c", command, str(config)])
        goal = requests * killed // (kills + 2)
        while process.poll() is None and _lines(store) < goal:
            time.sleep(0.005)
        time.sleep(source.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        sent = Counter(r["prompt"] for r in server.requests)
        for prompt in _stored_prompts(config):
            sent_when_stored.setdefault(prompt, sent[prompt])
        assert len(sent_when_stored) >= goal
    generate(load_synthesis(config))
    sent = Counter(r["prompt"] for r in server.requests)
    again = {p: sent[p] - count for p, count in sent_when_stored.items() if sent[p] != count}
    assert not again
    assert len(sent) == requests


def _lines(store: Path) -> int:
    return sum(p.read_bytes().count(b"\n") for p in store.glob("*-0*.jsonl"))


def _soak(folder: Path, requests: int, kills: int) -> None:
    (folder / "whole").mkdir()
    (folder / "killed").mkdir()
    with scripted(folder / "whole", *RULES) as server:
        generate(load_synthesis(_config(folder / "whole", server.url, requests)))
    with scripted(folder / "killed", *RULES) as server:
        _kill_and_rerun(folder / "killed", server, requests, kills, seed=5)
    assert _rows(folder / "killed") == _rows(folder / "whole")


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_killed_ten_times(tmp_path: Path) -> None:
    """SIGKILL at ten moments of 200 requests."""
    _soak(tmp_path, requests=200, kills=10)


@pytest.mark.soak
def test_killed_fifty_times(tmp_path: Path) -> None:
    """SIGKILL at fifty moments of 2,000 requests."""
    _soak(tmp_path, requests=2000, kills=50)


def test_ctrl_c_waits_for_what_is_under_way(tmp_path: Path) -> None:
    """SIGINT ends the command with exit code 2 and one remark; every request that was sent is stored."""
    with scripted(tmp_path, {"fault": "slow", "value": 0.1, "tries": 0}) as server:
        # Half a minute's work, were it not stopped.
        config = write_config(tmp_path, server.url, examples=5000, shares=SHARES)
        command = [sys.executable, "-m", "embedkit_cli.main", "synth", "generate", str(config)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        store = store_folder(load_synthesis(config))
        while _lines(store) < 20:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=120)
        assert process.returncode == 2
        assert "the same command goes on" in told
        assert len(server.requests) == _lines(store) < 5000


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_ends_every_wait(tmp_path: Path, kind: signal.Signals) -> None:
    """What waits for its turn under requests_per_minute is not sent after a stop; the next run sends it."""
    with scripted(tmp_path) as server:
        config = write_config(tmp_path, server.url, more="requests_per_minute = 2", examples=8, shares=SHARES)
        command = [sys.executable, "-m", "embedkit_cli.main", "synth", "generate", str(config)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        store = store_folder(load_synthesis(config))
        while _lines(store) < 1:
            time.sleep(0.01)
        process.send_signal(kind)
        _, told = process.communicate(timeout=120)
        assert process.returncode == 2
        assert "the same command goes on" in told
        assert len(server.requests) == _lines(store) < 8


def test_a_stop_ends_a_wait_between_two_tries(tmp_path: Path) -> None:
    """A request that waits as a server asked is kept as unanswered at a stop, and the next run sends it again."""
    with scripted(tmp_path, {"fault": "status", "value": [429, 30], "every": 2}) as server:
        config = load_synthesis(write_config(tmp_path, server.url, examples=6, shares=SHARES))
        answered = lambda: _lines(store_folder(config)) > 1  # noqa: E731
        report = generate(config, stop_wanted=answered).run
        assert report.stopped == "signal"
        assert report.left
    with scripted(tmp_path) as server:
        config = load_synthesis(write_config(tmp_path, server.url, examples=6, shares=SHARES))
        assert not generate(config).run.left


def test_one_run_at_a_time(tmp_path: Path) -> None:
    """A second run into the same folder is refused at once: it would pay twice."""
    with scripted(tmp_path) as server:
        config = load_synthesis(write_config(tmp_path, server.url, shares=SHARES))
        plan = plan_requests(config)
        with (
            Store(store_folder(config), plan.digest, plan.parts),
            pytest.raises(StoreError, match=r"another run is writing in .*store: wait for its end"),
        ):
            generate(config)
        assert not server.requests


@pytest.mark.skipif(not hasattr(os, "fork") or os.name == "nt", reason="resource limits are POSIX")
def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """Where the disk is full the run ends with one sentence; what was stored is whole, and the rest follows later."""
    limited = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); {_COMMAND}"
    )
    with scripted(tmp_path) as server:
        config = write_config(tmp_path, server.url, examples=100, shares=SHARES)
        done = subprocess.run(
            [sys.executable, "-c", limited, str(config)], capture_output=True, text=True, check=False
        )
        assert "StoreError: cannot write" in done.stderr
        assert "the disk is full: free some space and run it again" in done.stderr
        kept = _stored_prompts(config)
        assert 5 < len(kept) < 100
        report = generate(load_synthesis(config))
        assert sum(report.rows.values()) == 100
        sent = Counter(r["prompt"] for r in server.requests)
        assert all(sent[prompt] == 1 for prompt in kept)


def test_memory_holds_no_examples(tmp_path: Path) -> None:
    """What a run remembers of a request is one byte."""
    with scripted(tmp_path) as server:
        config = load_synthesis(write_config(tmp_path, server.url, shares=SHARES))
        plan = plan_requests(config)
        with Store(store_folder(config), plan.digest, plan.parts) as store:
            run = Run(plan, config.examples, store)
            assert store.count_undone(500_000) == 500_000
            assert sum(1 for _ in store.undone(500_000)) == 500_000
            assert run is not None
