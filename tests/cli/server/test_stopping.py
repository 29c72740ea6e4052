"""How `embedkit serve` ends: with 0 at any time, after what is under way, and kept by nothing."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.cli.server.conftest import Server, Start, answers, free_port, wait_for


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_it_is_imported(environment: dict[str, str], tmp_path: Path, number: int) -> None:
    """Ctrl-C and SIGTERM before the server's code is there end the command with 0, as they do later."""
    (tmp_path / "fastapi.py").write_text(
        f"import pathlib, time\npathlib.Path({str(tmp_path / 'begun')!r}).touch()\ntime.sleep(300)\n"
    )
    path = os.pathsep.join([str(tmp_path), environment["PYTHONPATH"]])
    command = [sys.executable, "-m", "embedkit_cli.main", "serve", "--embedder", "held"]
    process = subprocess.Popen(
        command,
        env={**environment, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for((tmp_path / "begun").exists)
    process.send_signal(number)
    assert (process.communicate(timeout=50), process.returncode) == (("", ""), 0)


def test_a_signal_while_it_opens(environment: dict[str, str], tmp_path: Path) -> None:
    """Ctrl-C while a real embedder is opened in its own thread ends with 0: compiled code does not crash over it."""
    for _ in range(3):
        with free_port() as port:
            command = [sys.executable, "-m", "embedkit_cli.main", "serve", "--embedder", "bundled", "--port", str(port)]  # fmt: skip
            process = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            server = Server(process, f"x at http://127.0.0.1:{port} ", tmp_path)
            wait_for(lambda server=server: answers(server, "/health"))  # type: ignore[misc]
            assert server.stop(signal.SIGINT) == (0, "")


def _refuses(server: Server) -> bool:
    """Say whether a server takes no connection any more: it has been told to stop, and does."""
    try:
        server.get("/health")
    except OSError:
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_answers_out(start: Start, number: int) -> None:
    """On SIGTERM and Ctrl-C what is under way is answered, new connections are refused, and the exit code is 0."""
    server = start("--embedder", "held")
    before = len(server.calls)
    hold = server.hold()
    seen: list[Any] = []
    threads = [
        threading.Thread(target=lambda: seen.append(server.post("/v1/embeddings", {"input": "a"})))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(server.calls) > before and server.metric("embedkit_requests_under_way") == 4)
    server.process.send_signal(number)
    wait_for(lambda: _refuses(server))
    assert server.process.poll() is None
    hold.unlink()
    for thread in threads:
        thread.join()
    assert [a.status for a in seen] == [200] * 3
    _, stderr = server.process.communicate(timeout=60)
    assert (server.process.returncode, stderr) == (0, "")


_GRACE = """
import sys
from pathlib import Path
from embedkit_cli.server.config import Limits, ServedPath, ServerConfig
from embedkit_cli.server.running import serve

served = (ServedPath("shop", Path(sys.argv[1])),)
serve(ServerConfig(indexes=served, rerankers={"second": "embedder:held"}, port=0, limits=Limits(grace=float(sys.argv[2]))))
"""


@pytest.mark.parametrize(
    "numbers", [[signal.SIGTERM], [signal.SIGINT, signal.SIGINT]], ids=["grace", "twice"]
)
def test_nothing_keeps_it_from_ending(
    environment: dict[str, str], shop_index: Path, tmp_path: Path, numbers: list[int]
) -> None:
    """After the time for it, or a second Ctrl-C, the process ends with 0 though searches and encodings are stuck."""
    process = subprocess.Popen(
        [sys.executable, "-c", _GRACE, str(shop_index), "1" if len(numbers) == 1 else "600"], env={**environment, "HELD_FOLDER": str(tmp_path)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    server = Server(process, process.stdout.readline(), tmp_path)
    before = len(server.calls)
    server.hold()
    seen: list[Any] = []

    def ask(path: str, body: dict[str, Any]) -> None:
        try:
            seen.append(server.post(path, body).status)
        except (OSError, http.client.HTTPException) as e:
            seen.append(e)

    search = {"query": "a plan", "mode": "lexical", "rerank": "second"}
    threads = [
        threading.Thread(target=ask, args=asked)
        for asked in (("/search", search), ("/v1/embeddings", {"input": "a"}))
    ]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(server.calls) >= before + 2)
    for number in numbers:
        process.send_signal(number)
        wait_for(lambda: _refuses(server))  # two signals of a kind at once are one
    try:
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    for thread in threads:
        thread.join()
    assert (process.returncode, "Traceback" in stderr) == (0, False), stderr
    if len(numbers) == 1:
        assert seen == [503, 503]
