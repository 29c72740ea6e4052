"""How `embedkit serve` starts and stops: one line when it is ready, one sentence when it cannot, nobody cut off."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Invoke
from tests.cli.server.conftest import Server, Start, wait_for


def _fails(environment: Mapping[str, str], *arguments: object, **extra: str) -> str:
    """Run `embedkit serve`, which must end with 2 and one sentence; return that."""
    command = [sys.executable, "-m", "embedkit_cli.main", "serve", *map(str, arguments)]
    done = subprocess.run(
        command, env={**environment, **extra}, capture_output=True, text=True, timeout=90, check=False
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    (line,) = (line for line in done.stderr.splitlines() if not line.startswith("note: "))
    return line.removeprefix("error: ")


def test_one_line_says_that_it_serves(server: Server, start: Start) -> None:
    """The line has what is served, and an address that answers."""
    assert server.line == f"serving 2 indexes at {server.url} (Ctrl-C stops)\n"
    alone = start("--embedder", "held")
    assert alone.line == f"serving embeddings of held at {alone.url} (Ctrl-C stops)\n"
    assert alone.get("/indexes").json == {"indexes": [], "rerankers": []}
    assert alone.post("/search", {"query": "a"}).message == "this server serves no index, embeddings only"


def test_what_cannot_be_served(invoke: Invoke, shop_index: Path, tmp_path: Path) -> None:
    """A wrong index, name, option or key file is one sentence and exit code 2, before anything listens."""
    (tmp_path / "empty").write_text("# no key\n\n")
    other = tmp_path / "shop"
    other.symlink_to(shop_index)
    sentences = {
        (): "name an index to serve, or an embedder with --embedder",
        (tmp_path / "nothing",): "nothing",
        (tmp_path,): "holds no embedkit index",
        (shop_index, other): "two indexes are called 'shop': name one of them otherwise",
        (shop_index, f"shop={other}"): "two indexes are called 'shop'",
        (shop_index, "--dim", "8"): "options of the embedder are given without --embedder",
        (shop_index, "--api-key-file", tmp_path / "empty"): "holds no key: write one a line",
        (shop_index, "--api-key-file", tmp_path / "none"): "cannot be read: No such file or directory",
        (shop_index, "--api-key", "two words"): "an API key is empty, or holds spaces",
        (shop_index, "--cors", "https://x.example/"): "--cors 'https://x.example/' is no origin: write",
        (shop_index, "--cors", "x.example"): "is no origin",
        (shop_index, "--cors", "null"): "is no origin",
        (shop_index, "--allow-host", "box:8080"): "--allow-host 'box:8080' is no name of a host: write",
        (shop_index, "--allow-host", "http://box"): "is no name of a host",
        (shop_index, "--host", "0.0.0.0"): "--host 0.0.0.0 lets other machines ask: set a key",
        (shop_index, "--host", "256.0.0.1"): "--host 256.0.0.1 lets other machines ask",
        (shop_index, "--host", "256.0.0.1", "--insecure"): "--host 256.0.0.1 is no address of this machine",
    }
    for arguments, sentence in sentences.items():
        done = invoke("serve", *arguments)
        assert (done.exit_code, done.stdout) == (2, ""), arguments
        (line,) = (line for line in done.stderr.splitlines() if not line.startswith("note: "))
        assert sentence in line, arguments


def test_an_embedder_that_cannot_be_opened(environment: dict[str, str], shop_index: Path) -> None:
    """What fails only while it opens ends the server with the same sentence and code."""
    said = _fails(environment, shop_index, "--embedder", "nothing", "--port", "0")
    assert said.startswith("unknown embedder 'nothing'")


def test_a_port_in_use(environment: dict[str, str], shop_index: Path) -> None:
    """The sentence names the port and the way out."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = _fails(environment, shop_index, "--port", port)
    assert (
        said
        == f"port {port} is in use: stop what uses it, or choose another with --port (0 takes a free one)"
    )


def test_the_missing_extra_is_named(environment: dict[str, str], shop_index: Path, tmp_path: Path) -> None:
    """Without FastAPI the pip command is printed."""
    (tmp_path / "fastapi.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'fastapi'\", name='fastapi')\n"
    )
    path = os.pathsep.join([str(tmp_path), environment["PYTHONPATH"]])
    said = _fails(environment, shop_index, PYTHONPATH=path)
    assert said == "embedkit serve needs the extra [serve]: pip install 'embedkit-retrieval[serve]'"


def test_a_key_on_the_command_line_is_remarked(start: Start) -> None:
    """--api-key works, and a note says who sees it."""
    server = start("--embedder", "held", "--api-key", "secret-one")
    assert server.get("/v1/models").status == 401
    assert server.get("/v1/models", Authorization="Bearer secret-one").status == 200
    code, stderr = server.stop()
    assert code == 0
    assert stderr == (
        "note: a key on the command line is seen by all users of this machine: EMBEDKIT_API_KEY or --api-key-file hides it\n"
    )


def test_an_index_of_a_programs_own_embedder(environment: dict[str, str], tmp_path: Path) -> None:
    """An index whose embedder nobody can open by name is refused with the option that helps."""
    import numpy as np

    from embedkit import Embedder, EmbedderInfo
    from embedkit_indexes import Index
    from embedkit_indexes.corpus.records import Document

    class Own(Embedder):
        """Hash letters."""

        info = EmbedderInfo(name="own", dim=4, max_length=8, pooling="none", weights="own")

        def _embed(self, texts: Any) -> Any:
            return np.array([[len(t), *t.encode()[:3].ljust(3)] for t in texts], float)

    Index.build(tmp_path / "own", [Document("a", "some text")], Own())
    assert "was built by a program's own embedder 'own'" in _fails(
        environment, tmp_path / "own", "--port", "0"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_answers_out(start: Start, number: int) -> None:
    """On SIGTERM and Ctrl-C what is under way is answered, new connections are refused, and the exit code is 0."""
    server = start("--embedder", "held")
    before = len(server.calls)
    hold = server.hold()
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda: answers.append(server.post("/v1/embeddings", {"input": "a"})))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(server.calls) > before and server.metric("embedkit_requests_under_way") == 4)
    server.process.send_signal(number)

    def refused() -> bool:
        try:
            server.get("/health")
        except OSError:
            return True
        return False

    wait_for(refused)
    assert server.process.poll() is None
    hold.unlink()
    for thread in threads:
        thread.join()
    assert [a.status for a in answers] == [200] * 3
    _, stderr = server.process.communicate(timeout=30)
    assert (server.process.returncode, stderr) == (0, "")


def test_it_answers_while_it_opens(environment: dict[str, str], tmp_path: Path) -> None:
    """Before the embedder is open /health says that the process lives, /ready and the rest 503; then all is well."""
    folder = tmp_path / "held"
    folder.mkdir()
    (folder / "hold").touch()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "embedkit_cli.main", "serve", "--embedder", "held", "--port", str(port)]
    process = subprocess.Popen(
        command,
        env={**environment, "HELD_FOLDER": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        server = Server(process, f"x at http://127.0.0.1:{port} ", folder)

        def up() -> bool:
            try:
                return server.get("/health").status == 200
            except OSError:
                return False

        wait_for(up)
        for answer in (
            server.get("/ready"),
            server.post("/v1/embeddings", {"input": "a"}),
            server.get("/indexes"),
        ):
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert answer.message == "the server is starting: try again in a moment"
        (folder / "hold").unlink()
        wait_for(lambda: server.get("/ready").status == 200)
        assert server.post("/v1/embeddings", {"input": "a"}).status == 200
    finally:
        assert server.stop()[0] == 0


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
    answers: list[Any] = []

    def ask(path: str, body: dict[str, Any]) -> None:
        try:
            answers.append(server.post(path, body).status)
        except (OSError, http.client.HTTPException) as e:
            answers.append(e)

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
        time.sleep(0.5)  # two signals of a kind at once are one
    try:
        _, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
    for thread in threads:
        thread.join()
    assert (process.returncode, "Traceback" in stderr) == (0, False), stderr
    if len(numbers) == 1:
        assert answers == [503, 503]
