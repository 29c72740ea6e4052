"""Measure what `embedkit synth generate` adds to the language model: requests a second, CPU time, memory, beside distilabel.

    python benchmarks/synthesis.py [--requests 10000] [--more 100000] [--concurrency 64] [--rounds 2] [--json]

The server is a process of its own on loopback that answers at once (synthesis_server.py). Each run is a process of its own
too. First the paper's six types in its shares, `--requests` and `--more` of them: memory must not grow with the examples.
Then the same work by embedkit and by distilabel's task for the same paper (GenerateTextRetrievalData, OpenAILLM; the type
short-long alone, the same pool of tasks) in turns, `--rounds` times each; distilabel gets an environment under
.bench/distilabel. The server counts from the first request to the last: what starts and ends a run is left out of
"requests/s", and stands in "seconds". On a busy machine read the CPU time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

HERE = Path(__file__).resolve().parent
PEER = HERE.parent / ".bench" / "distilabel"
PEER_VERSION = "1.5.3"
POOLED = ("short-long", "long-short", "short-short", "long-long")
CONFIG = """\
examples = {requests}
output = "out"
pools = "pools"
concurrency = {concurrency}
{shares}
[[models]]
name = "instant"
base_url = "{url}"
price_input = 0
price_output = 0
"""
Found = dict[str, Any]


def write_pools(folder: Path) -> None:
    """Write 1,000 tasks for each type."""
    folder.mkdir()
    things = (
        "bees",
        "ferries",
        "roses",
        "stamps",
        "bridges",
        "whales",
        "cellos",
        "glaciers",
        "mosses",
        "kites",
    )
    for kind in POOLED:
        with (folder / f"{kind}.jsonl").open("w", encoding="utf-8") as f:
            for i in range(1000):
                task = f"Given a {kind} question about {things[i % 10]} in volume {i}, find the passage that settles it."
                f.write(json.dumps({"task": task}) + "\n")


def run(config: Path) -> None:
    """Generate in this process, and print what it took."""
    from embedkit_trainer.synthesis.generate import generate
    from embedkit_trainer.synthesis.settings_file import load_synthesis

    settings = load_synthesis(config)
    began = time.perf_counter()
    report = generate(settings)
    seconds = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
    assert sum(report.rows.values()) == report.run.stored, report
    print(json.dumps({"stored": report.run.stored, "seconds": seconds, "cpu": cpu, "peak_mib": peak}))


def process(command: list[str], url: str, requests: int) -> Found:
    """Run a command that prints what it took; the server's count joins it."""
    look_at(url)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or done.stdout.strip())[-2000:])
    found: Found = json.loads(done.stdout.splitlines()[-1])
    seen = look_at(url)
    found |= {
        "sent": seen["requests"],
        "rate": (seen["requests"] - 1) / seen["seconds"],
        "load": os.getloadavg()[0],
    }
    assert found["stored"] == requests, found
    return found


def look_at(url: str) -> Found:
    """Return what the server saw since it was last asked."""
    with urlopen(url.replace("/v1", "/seen")) as response:
        return dict(json.load(response))


def embedkit(url: str, requests: int, concurrency: int, shares: str = "") -> Found:
    """Measure one run of embedkit."""
    with tempfile.TemporaryDirectory() as folder:
        write_pools(Path(folder) / "pools")
        config = Path(folder) / "synthesis.toml"
        text = CONFIG.format(requests=requests, concurrency=concurrency, url=url, shares=shares)
        config.write_text(text, encoding="utf-8")
        return process([sys.executable, __file__, "--run", str(config)], url, requests)


def distilabel(url: str, requests: int, concurrency: int) -> Found:
    """Measure one run of distilabel."""
    with tempfile.TemporaryDirectory() as folder:
        write_pools(Path(folder) / "pools")
        pool = f"{folder}/pools/{POOLED[0]}.jsonl"
        script = str(HERE / "synthesis_distilabel.py")
        command = [str(PEER / "bin" / "python"), script, url, pool, str(requests), str(concurrency), folder]
        return process(command, url, requests)


def install_distilabel() -> None:
    """Make the peer's environment, once."""
    if not (PEER / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(PEER)], check=True)
        pip = [str(PEER / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        # It imports `requests` without asking for it.
        subprocess.run([*pip, f"distilabel[openai]=={PEER_VERSION}", "requests"], check=True)
        (PEER / "ready").touch()


def in_turns(url: str, requests: int, concurrency: int, rounds: int) -> dict[str, list[Found]]:
    """Let both do the same work by turns."""
    install_distilabel()
    found: dict[str, list[Found]] = {"embedkit": [], "distilabel": []}
    for _ in range(rounds):
        found["embedkit"].append(embedkit(url, requests, concurrency, "shares = { short-long = 1 }"))
        found["distilabel"].append(distilabel(url, requests, concurrency))
    return found


def show(growth: dict[int, Found], turns: dict[str, list[Found]], concurrency: int) -> None:
    """Print tables."""
    print("| run | requests | requests/s | seconds in all | CPU ms a request | peak MiB | load |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    named = [("embedkit, six types", f) for f in growth.values()]
    named += [(f"{name}, short-long", f) for pair in zip(*turns.values(), strict=True) for name, f in zip(turns, pair, strict=True)]  # fmt: skip
    for name, f in named:
        print(
            f"| {name} | {f['sent']:,} | {f['rate']:,.0f} | {f['seconds']:.1f} | {f['cpu'] / f['stored'] * 1000:.2f} "
            f"| {f['peak_mib']:,.0f} | {f['load']:.1f} |"
        )
    print(f"concurrency {concurrency}")
    if len(growth) > 1:
        (few, least), (many, most) = growth.items()
        print(f"memory, {many:,} over {few:,} examples: {most['peak_mib'] / least['peak_mib']:.2f}x")
    if turns:
        for key, what in (("rate", "requests/s"), ("seconds", "seconds in all"), ("cpu", "CPU")):
            ours, theirs = (statistics.median(f[key] for f in turns[name]) for name in turns)
            ratio = ours / theirs if key == "rate" else theirs / ours
            print(f"embedkit over distilabel, {what}, medians: {ratio:.1f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--more", type=int, default=100_000, help="0: not at all")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2, help="turns with distilabel; 0: without it")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.run:
        run(told.run)
        return
    command = [sys.executable, str(HERE / "synthesis_server.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
            counts = [count for count in (told.requests, told.more) if count]
            growth = {count: embedkit(url, count, told.concurrency) for count in counts}
            turns, problem = {}, ""
            try:
                turns = in_turns(url, told.requests, told.concurrency, told.rounds) if told.rounds else {}
            except (RuntimeError, subprocess.CalledProcessError) as e:
                problem = f"no comparison, distilabel does not install or run here: {e}"
        finally:
            server.kill()
    if told.json:
        print(json.dumps({"growth": growth, "turns": turns, "problem": problem}))
        return
    show(growth, turns, told.concurrency)
    if problem:
        print(problem)


if __name__ == "__main__":
    main()
