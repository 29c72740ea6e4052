"""How `embedkit serve` starts: one line when it is ready, one sentence when it cannot."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Invoke
from tests.cli.server.conftest import Server, Start, answers, free_port, wait_for
from tests.cli.server.sockets import raw, status


def _fails(environment: Mapping[str, str], *arguments: object, **extra: str) -> str:
    """Run `embedkit serve`, which must end with 2 and one sentence; return that."""
    command = [sys.executable, "-m", "embedkit_cli.main", "serve", *map(str, arguments)]
    done = subprocess.run(
        command, env={**environment, **extra}, capture_output=True, text=True, timeout=180, check=False
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
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    long = "a" * 64
    sentences = {
        (): "name an index to serve, or an embedder with --embedder",
        (tmp_path / "nothing",): "nothing",
        (tmp_path,): "holds no embedkit index",
        (tmp_path / "one",): "one does not exist: build one",
        (shop_index, "--timeout", "nan"): "'nan' is no finite number",
        (shop_index, "--client-timeout", "nan"): "'nan' is no finite number",
        (shop_index, "--refresh", "nan"): "'nan' is no finite number",
        (shop_index, "--refresh", "inf"): "inf is not in the range 0.01<=x<=86400",
        (shop_index, "--timeout", "1e300"): "1e+300 is not in the range 0.1<=x<=86400",
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
        (shop_index, "--host", "ex..ample", "--insecure"): "--host ex..ample is no address of this machine",
        (shop_index, "--host", long, "--insecure"): f"--host {long} is no address of this machine",
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


def test_a_key_file_with_a_byte_order_mark(start: Start, tmp_path: Path) -> None:
    """The mark that editors on Windows write before the first key is no part of it."""
    (tmp_path / "keys").write_text("secret-one\n", encoding="utf-8-sig")
    server = start("--embedder", "held", "--api-key-file", tmp_path / "keys")
    assert server.get("/v1/models", Authorization="Bearer secret-one").status == 200


def test_what_is_no_http_is_not_logged(start: Start) -> None:
    """A client that sends other bytes gets 400 and fills no log, a websocket neither."""
    server = start("--embedder", "held")
    assert status(raw(server, b"\x16\x03\x01 no http\r\n\r\n")) == 400
    upgrade = (
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n"
    )
    raw(server, upgrade)
    assert server.stop() == (0, "")


@pytest.mark.parametrize("stdout", ["closed pipe", "/dev/full"])
def test_nobody_reads_that_it_serves(
    environment: dict[str, str], shop_index: Path, tmp_path: Path, stdout: str
) -> None:
    """Where stdout takes nothing (`| true`, a full disk) the server serves on, and says nothing of it."""
    if stdout == "closed pipe":
        ours, written = os.pipe()
        os.close(ours)
    else:
        written = os.open(stdout, os.O_WRONLY)
    with free_port() as port:
        command = [sys.executable, "-m", "embedkit_cli.main", "serve", str(shop_index), "--port", str(port)]
        process = subprocess.Popen(
            command, env=environment, stdout=written, stderr=subprocess.PIPE, text=True, encoding="utf-8"
        )
        os.close(written)
        try:
            server = Server(process, f"x at http://127.0.0.1:{port} ", tmp_path)
            wait_for(lambda: answers(server, "/ready"))
            assert server.post("/search", {"query": "a plan"}).status == 200
        finally:
            ended = server.stop()
    assert ended == (0, "")


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


def test_it_answers_while_it_opens(environment: dict[str, str], tmp_path: Path) -> None:
    """Before the embedder is open /health says that the process lives, /ready and the rest 503; then all is well."""
    folder = tmp_path / "held"
    folder.mkdir()
    (folder / "hold").touch()
    with free_port() as port:
        command = [
            sys.executable,
            "-m",
            "embedkit_cli.main",
            "serve",
            "--embedder",
            "held",
            "--port",
            str(port),
        ]
        process = subprocess.Popen(
            command,
            env={**environment, "HELD_FOLDER": str(folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            server = Server(process, f"x at http://127.0.0.1:{port} ", folder)
            wait_for(lambda: answers(server, "/health"))
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
