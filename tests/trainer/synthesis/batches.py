"""Start the scripted server of the Batch API, write configs that use it, and tell what it was sent."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedkit_trainer.synthesis.generate import GenerateReport, generate, store_folder
from embedkit_trainer.synthesis.settings_file import load_synthesis
from embedkit_trainer.synthesis.store import FAILURES, read_records
from tests.trainer.synthesis.scripted import Scripted, write_config

COUNT = 12
ROOT = Path(__file__).parents[3]


@contextmanager
def batch_server(folder: Path, **rules: Any) -> Iterator[Scripted]:
    """Run a server of the Batch API with these rules as a process on loopback."""
    log = folder / "batches.log"
    log.touch()
    command = [sys.executable, "-m", "tests.trainer.synthesis.batch_server", str(log), json.dumps(rules)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        yield Scripted(f"http://127.0.0.1:{int(process.stdout.readline())}/v1", log)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def batch_config(folder: Path, url: str, more: str = "", **options: Any) -> Path:
    """Write the config of a few requests in batches; `batch` joins its table."""
    given: dict[str, Any] = {"examples": COUNT, "shares": "sts = 1"} | options
    model = given.pop("model", "") + "\n[batch]\npoll = 0.05\n" + given.pop("batch", "")
    return write_config(folder, url, more, model=model, **given)


def run_batches(folder: Path, url: str, more: str = "", **options: Any) -> GenerateReport:
    """Write a config and run it by batches."""
    asked = {key: options.pop(key) for key in ("retry_failed", "say") if key in options}
    return generate(load_synthesis(batch_config(folder, url, more, **options)), batch=True, **asked)


def sent_requests(server: Scripted) -> Counter[str]:
    """How often each request was put into a batch."""
    made = (event for event in server.requests if event["event"] == "create")
    return Counter(request["custom_id"] for event in made for request in event["requests"])


def sent_batches(server: Scripted) -> list[list[dict[str, Any]]]:
    """The requests of each batch that was made."""
    return [event["requests"] for event in server.requests if event["event"] == "create"]


def failure_reasons(folder: Path) -> Counter[str]:
    """How often each reason stands among the failures."""
    store = store_folder(load_synthesis(folder / "synthesis.toml"))
    return Counter(record["reason"] for record in read_records(store, FAILURES))


def row_files(folder: Path) -> dict[str, bytes]:
    """The rows as they lie on the disk."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted((folder / "out/rows").rglob("*.jsonl"))
    }
