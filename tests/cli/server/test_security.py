"""Safe by default: who may ask, from where, and what an answer's headers let a browser do."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.cli.server.conftest import Server, Start

KEYS = "# keys\nfirst-key\n\n  second-key  \n"


@pytest.fixture
def guarded(start: Start, tmp_path: Path) -> Server:
    """A server with two keys from a file and one from the environment, which lets one site's pages ask."""
    (tmp_path / "keys").write_text(KEYS)
    return start(
        "--embedder", "held", "--api-key-file", tmp_path / "keys", "--cors", "https://SHOP.example:443",
        EMBEDKIT_API_KEY="third-key",
    )  # fmt: skip


def test_keys_are_asked_for(guarded: Server) -> None:
    """Each of several keys opens all; without one, or with a wrong one, the answer is 401 and tells nothing."""
    body = {"input": "a"}
    for key in ("first-key", "second-key", "third-key"):
        assert guarded.post("/v1/embeddings", body, Authorization=f"Bearer {key}").status == 200
    for wrong in (
        "",
        "Bearer",
        "Bearer first-ke",
        "Bearer first-key2",
        "Basic first-key",
        "first-key",
        "Bearer \xff",
    ):
        answer = guarded.post("/v1/embeddings", body, **({"Authorization": wrong} if wrong else {}))
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert answer.json["error"]["code"] == "invalid_api_key"
        assert "first-key" not in answer.message
    for path in (
        "/indexes",
        "/tasks",
        "/metrics",
        "/v1/models",
        "/openapi.json",
        "/nothing",
        "/map",
        "//",
        "/../health",
    ):
        assert guarded.get(path).status == 401, path
    for path in ("/health", "/ready", "/docs"):
        assert guarded.get(path).status == 200, path


def test_the_host_header_is_checked(server: Server, start: Start) -> None:
    """On loopback another host's name is refused, so that no page reaches the server by rebinding its own name."""
    own = (
        "localhost",
        f"localhost:{server.port}",
        "127.0.0.1:1",
        "[::1]:80",
        "LOCALHOST",
        "192.0.2.7:80",
        "[::2]",
    )
    for host in own:
        assert server.get("/health", Host=host).status == 200, host
    for host in (
        "evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8000", "", "[evil.example]", "@localhost",
        "2130706433",
    ):  # fmt: skip
        answer = server.get("/health", Host=host)
        assert (answer.status, answer.json["error"]["code"]) == (421, "host_not_allowed"), host
        assert "--" not in answer.message
    other = start("--embedder", "held", "--allow-host", "Box.example")
    assert other.get("/health", Host="box.example:1").status == 200
    for _ in range(2):
        assert other.get("/health", Host="evil.example").status == 421
    assert other.stop()[1].count("--allow-host") == 1


def test_without_a_key_the_host_header_is_checked_on_every_address(start: Start) -> None:
    """--insecure on all addresses answers to numbers, the machine's own name and --allow-host; a key makes all names good."""
    open_to_all = start(
        "--embedder", "held", "--host", "0.0.0.0", "--insecure", "--allow-host", "box.example"
    )
    for host in ("192.0.2.7:80", "localhost", "box.example", f"{socket.gethostname()}:{open_to_all.port}"):
        assert open_to_all.get("/v1/models", Host=host).status == 200, host
    rebound = {"Host": "evil.example", "Origin": "http://evil.example"}
    assert open_to_all.post("/v1/embeddings", {"input": "a"}, **rebound).status == 421
    with_key = start("--embedder", "held", "--host", "0.0.0.0", EMBEDKIT_API_KEY="key")
    assert with_key.get("/v1/models", Host="any.example", Authorization="Bearer key").status == 200


def test_other_sites_elements_may_not_ask(server: Server) -> None:
    """What another site's page loads without a word of its origin, such as an image, is refused; links to the page work."""
    for path in ("/map?index=shop", "/indexes", "/metrics"):
        answer = server.get(path, **{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"})
        assert (answer.status, answer.json["error"]["code"]) == (403, "origin_not_allowed"), path
    for site in ("same-origin", "none"):
        assert server.get("/indexes", **{"Sec-Fetch-Site": site}).status == 200
    for path in ("/", "/docs", "/static/main.js"):
        assert (
            server.get(path, **{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}).status == 200
        )


def test_other_sites_pages_may_not_ask(server: Server, guarded: Server) -> None:
    """A foreign Origin is refused and gets no CORS header; --cors lets one in, with its preflight."""
    own = server.get("/health", Origin=f"http://127.0.0.1:{server.port}")
    assert (own.status, "access-control-allow-origin" in own.headers) == (200, False)
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        answer = server.post("/search", {"query": "a"}, Origin=origin)
        assert (answer.status, "access-control-allow-origin" in answer.headers) == (403, False)
        assert "--" not in answer.message
    told = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}  # fmt: skip
    preflight = guarded.ask("OPTIONS", "/v1/embeddings", headers=told)
    assert (preflight.status, preflight.headers["access-control-allow-origin"]) == (
        200,
        "https://shop.example",
    )
    asked = {
        "Origin": "https://shop.example",
        "Sec-Fetch-Site": "cross-site",
        "Authorization": "Bearer first-key",
    }
    answer = guarded.ask("POST", "/v1/embeddings", {"input": "a " * 100}, asked)
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, "https://shop.example")
    shown = answer.headers["access-control-expose-headers"].lower()
    assert "x-truncated-tokens" in answer.headers and "x-truncated-tokens" in shown
    foreign = guarded.ask("OPTIONS", "/v1/embeddings", headers={**told, "Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in foreign.headers


@pytest.mark.parametrize("path", ["/health", "/nothing", "/docs", "/openapi.json", "/docs/start.js"])
def test_every_answer_has_strict_headers(server: Server, path: str) -> None:
    """No sniffing, no framing, no referrer, nothing from another host; an id to find the request in the log."""
    headers = server.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["content-security-policy"].startswith("default-src 'self';")
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert len(headers["x-request-id"]) == 16
    assert "server" not in headers


def test_docs_load_nothing_from_elsewhere(server: Server) -> None:
    """/docs names no other host, has no inline script, and every file that it names is there."""
    import re

    page = server.get("/docs").body.decode()
    assert "://" not in page
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|style=", page)
    for file in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert server.get(file).status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/static/../../../../etc/passwd", "/static/%2e%2e/%2e%2e/config.py", "/docs/..%2fapp.py", "/docs/../app.py",
        "/indexes/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/static//etc/passwd", "/docs/%00", "/..",
        "/tasks?index=../../etc", "/tasks?index=%2fetc%2fpasswd", "/tasks?index=%00", "/tasks?index=shop%2f..%2fshop",
    ],
)  # fmt: skip
def test_no_path_leads_out(server: Server, path: str) -> None:
    """Dots and slashes in paths and names, encoded or not, find nothing."""
    answer = server.get(path)
    assert answer.status == 404
    assert b"root:" not in answer.body and b"import" not in answer.body
    assert answer.message


def test_openapi_tells_the_truth_of_errors(server: Server) -> None:
    """The description has no 422, which is never answered, and names the bearer key."""
    schema = server.get("/openapi.json").json
    posts = {path: told["post"] for path, told in schema["paths"].items() if "post" in told}
    assert set(posts) >= {"/v1/embeddings", "/search"}
    for told in posts.values():
        assert "422" not in told["responses"] and "400" in told["responses"]
        assert "$ref" in told["requestBody"]["content"]["application/json"]["schema"]
    assert schema["components"]["securitySchemes"]["key"]["scheme"] == "bearer"


def test_a_slash_too_many_is_nothing(server: Server) -> None:
    """A path with a slash at its end gets 404, and no redirect to a place that a header names."""
    for path in ("/search/", "/indexes/", "/docs/"):
        assert server.get(path).status == 404, path
