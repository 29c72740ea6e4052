"""Compare servers of embeddings on this machine's cores: texts a second, p50 and p99, arms in turn in short rounds.

    python benchmarks/serving.py --rounds 3 --seconds 4              (the weights of all-MiniLM-L6-v2, and the bundled embedder)
    python benchmarks/serving.py --arm infinity

Server and load generator (a process of its own, the same for all) share the cores. Two kinds of requests: one short query of
some 15 tokens, and eight passages of some 100. Passages are those of benchmarks/encode.py. infinity-emb needs an environment
of its own, see docs/experiments.md; where it is missing, its arms are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
from encode import passages
from minilm import baseline, original

HERE = Path(__file__).parent
CLIENTS = (1, 16, 64)
DOCUMENTS = 8


def arms(infinity: Path, device: str) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Return command lines, PORT standing for the port, and what they have in their environment."""
    weights = str(original())
    onnx = infinity.parent / "minilm-onnx"
    plain = [sys.executable, "-m", "uvicorn", "--app-dir", str(HERE), "--log-level", "warning", "serving_plain:app"]  # fmt: skip
    ours = [sys.executable, "-m", "embedkit_cli.main", "serve", "--embedder"]
    theirs = [
        *(str(infinity / "bin" / "infinity_emb"), "v2", "--model-id", weights, "--device", device),
        *("--url-prefix", "/v1", "--log-level", "error", "--engine", "torch"),
    ]
    optimum = ["." if part == weights else part.replace("torch", "optimum") for part in theirs]
    found = {
        "embedkit, bundled": ([*ours, "bundled"], {}),
        "embedkit, MiniLM in OpenVINO": ([*ours, baseline()], {}),
        "embedkit, MiniLM folder (torch)": ([*ours, weights, "--device", device], {}),
        "sentence-transformers": (plain, {"MODEL": weights, "DEVICE": device}),
        "sentence-transformers bf16": (plain, {"MODEL": weights, "DEVICE": device, "DTYPE": "bfloat16"}),
        "infinity": (theirs, {}),
        "infinity bf16": ([*theirs, "--dtype", "bfloat16"], {}),
        # It takes a folder of one's own only where it stands in it.
        "infinity onnx": (["env", "-C", str(onnx), *optimum], {}),
    }
    if not (infinity / "bin" / "infinity_emb").exists():
        found = {name: arm for name, arm in found.items() if not name.startswith("infinity")}
    if not onnx.exists():
        found.pop("infinity onnx", None)
    return {name: ([*command, "--port", "PORT"], env) for name, (command, env) in found.items()}


@contextmanager
def served(
    command: list[str], env: dict[str, str], port: int | None = None
) -> Iterator[tuple[int, psutil.Process]]:
    """Run a server until the block ends; it is there when it answers anything at all."""
    port = port or _free_port()
    filled = [part.replace("PORT", str(port)) for part in command]
    offline = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    with subprocess.Popen(filled, env={**os.environ, **offline, **env}, stdout=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + 180
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5)
                    break
                except urllib.error.HTTPError as e:
                    if e.code != 503:
                        break
                except OSError:
                    pass
                if process.poll() is not None or time.monotonic() > end:
                    sys.exit(f"{' '.join(filled)} does not answer")
                time.sleep(0.2)
            yield port, psutil.Process(process.pid)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


class Worker:
    """A process that answers a line of JSON with a line of JSON."""

    def __init__(self, *command: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE
        )

    def __call__(self, **asked: Any) -> Any:
        """Send one object and return the answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def bodies(seed: int) -> dict[str, list[str]]:
    """Return the requests of both kinds."""
    draw = random.Random(seed)
    texts = passages(2000, seed)
    short = []
    for text in texts:
        words = text.split()
        size = min(draw.randint(8, 14), len(words))
        start = draw.randrange(len(words) - size + 1)
        short.append(" ".join(words[start : start + size]))
    groups = [texts[i : i + DOCUMENTS] for i in range(0, len(texts) - DOCUMENTS + 1, DOCUMENTS)]
    return {"one query": list(map(_body, short)), "8 passages": list(map(_body, groups))}


def _body(texts: str | list[str]) -> str:
    return json.dumps({"input": texts, "model": "MODEL"}, ensure_ascii=False)


def _free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


def _cpu(process: psutil.Process) -> float:
    return sum(sum(p.cpu_times()[:2]) for p in [process, *process.children(recursive=True)])


def percentile(times: list[float], share: float) -> float:
    """Return the time that a share of the requests stayed within."""
    return sorted(times)[min(int(len(times) * share), len(times) - 1)]


def model_of(port: int) -> str:
    """Return the name that the server calls its model."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5) as answer:
            return str(json.load(answer)["data"][0]["id"])
    except OSError:
        return "any"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--arm", action="append", help="part of an arm's name; repeat; default: all")
    parser.add_argument("--infinity", type=Path, default=HERE.parent / ".bench" / "serving" / "venv")
    parser.add_argument("--device", default="cpu", help="of every torch arm")
    parser.add_argument("--clients", type=int, action="append", help=f"default: {CLIENTS}")
    parser.add_argument("--kind", action="append", help="part of a kind's name; default: both")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    asked = {k: v for k, v in bodies(args.seed).items() if not args.kind or any(part in k for part in args.kind)}  # fmt: skip
    chosen = {
        n: a
        for n, a in arms(args.infinity, args.device).items()
        if not args.arm or any(p in n for p in args.arm)
    }
    load = Worker("serving_load.py")
    rows: dict[tuple[str, int, str], list[dict[str, float]]] = defaultdict(list)
    with ExitStack() as stack:
        running = {name: stack.enter_context(served(*arm)) for name, arm in chosen.items()}
        named = {name: model_of(port) for name, (port, _) in running.items()}
        for turn in range(-1, args.rounds):  # the first warms up and is not counted
            for kind, texts in asked.items():
                for clients in args.clients or CLIENTS:
                    for name, (port, process) in running.items():
                        busy = _cpu(process)
                        told = load(
                            port=port, path="/v1/embeddings", clients=clients, seconds=_seconds(args.seconds, kind, clients) if turn >= 0 else 1,
                            bodies=[t.replace("MODEL", named[name]) for t in texts],
                        )  # fmt: skip
                        if told["others"] or not told["ms"]:
                            print(f"{name}, {clients} clients, {kind}: {told['requests']} answers, others {told['others']}")  # fmt: skip
                        if turn >= 0 and told["ms"]:
                            rows[kind, clients, name].append(_row(told, kind, _cpu(process) - busy))
    print(f"load {os.getloadavg()[0]:.1f}, {len(os.sched_getaffinity(0))} cores, {args.rounds} rounds of {args.seconds:g} s")  # fmt: skip
    _print(rows)
    if args.json:
        args.json.write_text(json.dumps([[*key, found] for key, found in rows.items()]))


def _seconds(seconds: float, kind: str, clients: int) -> float:
    """Return how long a cell is measured: where an answer takes seconds, long enough for several."""
    return (
        seconds * (3 if clients >= 64 else 1.5 if clients >= 16 else 1) if kind == "8 passages" else seconds
    )


def _row(told: dict[str, Any], kind: str, busy: float) -> dict[str, float]:
    texts = DOCUMENTS if kind.startswith(str(DOCUMENTS)) else 1
    return {
        "rate": texts * told["requests"] / told["seconds"],
        "p50": percentile(told["ms"], 0.5),
        "p99": percentile(told["ms"], 0.99),
        "cpu": 1000
        * busy
        / (texts * told["answers"]),  # of all that was answered, the warm-up and the rest too
        "generator": told["cpu"] / told["seconds"],
    }


def _print(rows: dict[tuple[str, int, str], list[dict[str, float]]]) -> None:
    print("| requests | clients | server | texts/s (rounds) | p50 ms | p99 ms | CPU ms a text | generator |")
    print("| --- | ---: | --- | --- | ---: | ---: | ---: | ---: |")
    for (kind, clients, name), found in rows.items():
        middle = {key: statistics.median(row[key] for row in found) for key in found[0]}
        rounds = ", ".join(f"{row['rate']:.0f}" for row in found)
        print(
            f"| {kind} | {clients} | {name} | {middle['rate']:.0f} ({rounds}) | {middle['p50']:.1f} | {middle['p99']:.1f} | "
            f"{middle['cpu']:.2f} | {middle['generator']:.0%} |"
        )


if __name__ == "__main__":
    main()
