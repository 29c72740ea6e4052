"""A real server process on loopback, and an embedder plug-in that a test can hold, slow down and break."""

from __future__ import annotations

import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

_PLUG_IN = '''
import os, pathlib, time
import numpy as np
from embedkit import Embedder, EmbedderInfo
from embedkit.contract import Template

def held(path, texts):
    try:
        word = path.read_text()
    except FileNotFoundError:
        return False
    return any(word in text for text in texts)

class Held(Embedder):
    """Count letters; texts with the word in the file HOLD wait while it is there; note every call in the file CALLS."""

    window = 4096

    def __init__(self, seed, size):
        self.seed = seed
        self.info = EmbedderInfo(
            name=f"held-{seed}", dim=size, max_length=64, pooling="none", weights=f"held {seed} {size}", matryoshka_dims=(8,),
            instruction_trained=True, default_task="search", template=Template(document="passage: {text}"),
        )
        self._matrix = np.random.default_rng(seed).standard_normal((64, size))

    @classmethod
    def open(cls, name, seed=1, size=16):
        return cls(seed, size)

    def count_tokens(self, texts):
        return [1 + len(t.split()) for t in texts]

    def _embed(self, texts):
        folder = pathlib.Path(os.environ["HELD_FOLDER"])
        with (folder / "calls").open("a") as calls:
            calls.write(f"{len(texts)} {any('small' in t for t in texts)}\\n")
        while held(folder / "hold", texts):
            time.sleep(0.005)
        if any("poison" in t for t in texts):
            return np.full((len(texts), self.info.dim), np.nan)
        counts = np.array([np.bincount(np.frombuffer(t.lower().encode(), np.uint8) % 64, minlength=64) for t in texts])
        return np.sqrt(counts) @ self._matrix
'''


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)

    @property
    def message(self) -> str:
        """The one sentence of an error of OpenAI's shape."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str) and "Traceback" not in error["message"]
        return str(error["message"])


class Server:
    """`embedkit serve` as a process of its own; `folder` holds what the plug-in `held` looks at."""

    def __init__(self, process: subprocess.Popen[str], line: str, folder: Path) -> None:
        self.process = process
        self.line = line
        self.folder = folder
        found = re.search(r" at (http://\S+):(\d+) ", line)
        assert found, line
        self.port = int(found[2])
        self.url = f"http://127.0.0.1:{self.port}"

    def connect(self, seconds: float = 60) -> http.client.HTTPConnection:
        """Open a connection."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send one request; a body that is no bytes or text goes as JSON."""
        raw = body if body is None or isinstance(body, bytes | str) else json.dumps(body)
        connection = self.connect()
        try:
            connection.request(method, path, raw, dict(headers or {}))
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        """Send a GET."""
        return self.ask("GET", path, headers=headers)

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        """Send a POST."""
        return self.ask("POST", path, body, headers)

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        lines = self.get("/metrics").body.decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(rf"{name}[{{ ]", line))

    def hold(self, word: str = "") -> Path:
        """Let the plug-in's calls with a text that holds the word wait until the file that is returned is gone."""
        new = self.folder / "new"
        new.write_text(word)
        return new.replace(self.folder / "hold")

    @property
    def calls(self) -> list[int]:
        """How many texts each call of the plug-in had."""
        return [int(count) for count, _ in self._calls()]

    @property
    def small_calls(self) -> list[int]:
        """Which calls of the plug-in had a text with the word `small`."""
        return [number for number, (_, small) in enumerate(self._calls()) if small == "True"]

    def _calls(self) -> list[list[str]]:
        path = self.folder / "calls"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal; return the exit code and what was written on stderr."""
        (self.folder / "hold").unlink(missing_ok=True)
        if self.process.poll() is None:
            self.process.send_signal(number)
        _, stderr = self.process.communicate(timeout=120)
        return self.process.returncode, stderr


Start = Callable[..., Server]


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    """Wait until a condition holds, and return what it gave."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)
    return value


@contextmanager
def free_port() -> Iterator[int]:
    """Give a port that nothing listens on, and that is kept from all but a server which is told of it."""
    with socket.socket() as kept:
        # Bound and not listening: the system gives the port to nobody, and who asks for it by number may have it.
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", 0))
        yield int(kept.getsockname()[1])


def answers(server: Server, path: str) -> bool:
    """Say whether a server that is being started answers a GET with 200."""
    try:
        return server.get(path).status == 200
    except OSError:
        return False


@pytest.fixture(scope="session")
def plug_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with the installed embedder plug-in `held`."""
    folder = tmp_path_factory.mktemp("site")
    told = folder / "held-1.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: held\nVersion: 1.0\n")
    (told / "entry_points.txt").write_text("[embedkit.embedders]\nheld = held_plug_in:Held\n")
    (folder / "held_plug_in.py").write_text(_PLUG_IN)
    return folder


@pytest.fixture(scope="session")
def environment(plug_ins: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a server, and of commands beside it."""
    folder = tmp_path_factory.mktemp("held")
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("EMBEDKIT_", "OPENAI_"))}
    return mine | {
        "PYTHONPATH": str(plug_ins),
        "HELD_FOLDER": str(folder),
        "EMBEDKIT_CACHE": str(tmp_path_factory.getbasetemp() / "cache"),
        "OMP_NUM_THREADS": "1",
        "PYTHONUTF8": "1",
    }


def launch(environment: Mapping[str, str], *arguments: object, **extra: str) -> Server:
    """Start a server, and return it when it says that it serves."""
    command = [sys.executable, "-m", "embedkit_cli.main", "serve", *map(str, arguments), "--port", "0"]
    env = {**environment, **extra}
    process = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], 180)
    line = process.stdout.readline() if ready else ""
    if not line:
        process.kill()
        raise AssertionError(process.communicate()[1])
    return Server(process, line, Path(env["HELD_FOLDER"]))


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts a server of the test's own, with a folder of its own for the plug-in."""
    running: list[Server] = []

    def run(*arguments: object, **extra: str) -> Server:
        folder = tmp_path / f"held-{len(running)}"
        folder.mkdir()
        running.append(launch(environment, *arguments, **{"HELD_FOLDER": str(folder), **extra}))
        return running[-1]

    yield run
    for server in running:
        server.stop(signal.SIGKILL)


def embedkit(environment: Mapping[str, str], *arguments: object) -> str:
    """Run another command of embedkit."""
    command = [sys.executable, "-m", "embedkit_cli.main", *map(str, arguments)]
    done = subprocess.run(
        command,
        env=dict(environment),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def shop_index(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small index of the plug-in's with metadata, HTML in a text, and an absolute path for a source."""
    folder = tmp_path_factory.mktemp("shop")
    rows = [
        {"_id": "cancel", "title": "Plans", "text": "You can cancel your plan at any time. Go to the settings, and choose Cancel.", "year": 2020},
        {"_id": "refund", "title": "Refunds", "text": "The law gives you two weeks to return what you bought.", "year": 2021, "_node_file": "/srv/secret"},
        {"_id": "script", "title": "<b>bold</b>", "text": "<script>alert('found')</script> & \"quotes\" in a document", "year": 2022, "big": 10**30},
        {"_id": "deutsch", "title": "", "text": "Sie können Ihren Vertrag jederzeit in den Einstellungen kündigen.", "year": 2023},
    ]  # fmt: skip
    (folder / "shop.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "tasks.toml").write_text('[recipe]\ninstruction = "Find the recipe"\n')
    embedkit(
        environment, "index", folder / "shop.jsonl", "-o", folder / "shop", "--embedder", "held", "--tasks",
        folder / "tasks.toml",
    )  # fmt: skip
    return folder / "shop"


@pytest.fixture(scope="session")
def server(
    environment: dict[str, str],
    shop_index: Path,
    sample_index: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """A server of two indexes, `shop` and `sample`; no test stops or changes it."""
    folder = tmp_path_factory.mktemp("shared")
    running = launch(
        environment, shop_index, f"sample={sample_index}", "--client-timeout", "2", "--max-body", "1MB",
        HELD_FOLDER=str(folder),
    )  # fmt: skip
    yield running
    code, stderr = running.stop()
    assert code == 0, stderr
    assert "Traceback" not in stderr
