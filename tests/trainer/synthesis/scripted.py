"""Start the scripted server, and write the config of a small synthesis that asks it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SERVER = Path(__file__).with_name("server.py")
SHARES = "short-long = 3, long-short = 2, sts = 2, bitext = 2, long-long = 1, short-short = 1"


@dataclass(frozen=True)
class Scripted:
    """A running server and its log."""

    url: str
    log: Path

    @property
    def requests(self) -> list[dict[str, Any]]:
        """What was asked so far: the log is read while it is written."""
        lines = self.log.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]


@contextmanager
def scripted(folder: Path, *rules: dict[str, Any]) -> Iterator[Scripted]:
    """Run a server with these rules as a process on loopback."""
    log = folder / "server.log"
    command = [sys.executable, str(_SERVER), str(log), json.dumps(rules)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Scripted(f"http://127.0.0.1:{int(process.stdout.readline())}/v1", log)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def write_config(
    folder: Path, url: str, more: str = "", model: str = "", examples: int = 40, shares: str = SHARES
) -> Path:
    """Write a config of one model without a price worth naming; `more` joins the top, `model` its model's table."""
    path = folder / "synthesis.toml"
    path.write_text(
        f'seed = 7\nexamples = {examples}\noutput = "out"\nshares = {{ {shares} }}\n{more}\n'
        "[brainstorm]\nrequests = 2\ntasks = 5\n"
        f'[[models]]\nname = "tiny"\nbase_url = "{url}"\nprice_input = 0\nprice_output = 0\n{model}\n',
        encoding="utf-8",
    )
    return path
