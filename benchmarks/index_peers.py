"""Compare embedkit's engine with raw FAISS, autofaiss, usearch, hnswlib, LanceDB and milvus-lite on the same vectors.

    python benchmarks/index_peers.py --rows 1000000 [--tools embedkit faiss usearch] [--plot]

Writes the vectors (vectors.py), an environment for each peer, and every index, once, under .bench/peers/; what is there
is kept (--rebuild builds anew). Then, in processes held to one core: each index is swept over its own search
parameters, one query at a time, for the cheapest that reaches the recall; the best settings of each tool (most queries
a second, and most a second and GB) are opened afresh, asked 1,000 queries, and their memory taken; last, all of them
take turns, round by round, and the medians are the result. CPU seconds stand beside wall seconds everywhere: on a
shared machine trust those. Memory is what the process holds for itself plus the pages of its files that the page cache
holds, both after those 1,000 queries. What opening alone left in the page cache is dropped before them, so that a file
read into memory is not counted twice. embedkit stands there twice: at the cheapest effort found by the sweep on the
very queries it is judged by, as all others do, and at the effort its own tuning chose without them.

Results: .bench/index-peers-ROWS.json; with --plot also docs/index-recall.svg.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from peers.catalogue import Effort, Setting, Tool, tools
from peers.table import print_tables, summary
from vectors import FOLDER, TRUTH_QUERIES, prepare

WORKER = Path(__file__).with_name("peers") / "worker.py"
ROOT = Path(__file__).resolve().parent.parent
ONE_THREAD = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"),
    *("TOKIO_WORKER_THREADS", "LANCE_CPU_THREADS", "EMBEDKIT_THREADS"),
)
# Beyond this recall a sweep learns nothing that the comparison or the plot uses.
ENOUGH = 0.99
# Queries of a sweep's first pass; what looks good there is measured by all that have an answer.
FEW = 200


@dataclass
class Contender:
    """One setting of one tool, and all that was measured of it."""

    tool: Tool
    setting: Setting
    folder: Path
    built: dict[str, Any] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    served: dict[str, Any] = field(default_factory=dict)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    batches: list[dict[str, Any]] = field(default_factory=list)
    failure: str | None = None

    @property
    def name(self) -> str:
        """Tool and setting, in words."""
        return f"{self.tool.name} {self.setting.name}"


def python_of(tool: Tool) -> str:
    """Return the interpreter that has the tool, after making its environment where it is missing."""
    if not tool.requirements:
        return sys.executable
    folder = FOLDER / "venvs" / tool.module
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    done = folder / "requirements.json"
    wanted = json.dumps(tool.requirements)
    if not done.exists() or done.read_text() != wanted:
        say(f"{tool.name}: installing {' '.join(tool.requirements)} into {folder}")
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*install, *tool.requirements], check=True)
        done.write_text(wanted)
    return str(python)


def say(words: str) -> None:
    """Tell on stderr what happens, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)


def start(contender: Contender, order: dict[str, Any], core: bool) -> subprocess.Popen[str]:
    """Start the worker of a contender with one thread for everything that takes a number of threads."""
    one = dict.fromkeys(ONE_THREAD, "1")
    order = {
        "tool": contender.tool.module,
        "setting": contender.setting.options,
        "base": str(FOLDER / "base.npy"),
        "folder": str(contender.folder),
        **order,
    }
    if core and hasattr(os, "sched_getaffinity"):
        order["core"] = max(os.sched_getaffinity(0))
    # Their own warnings would drown the table.
    quiet = None if os.environ.get("EMBEDKIT_BENCH_VERBOSE") else subprocess.DEVNULL
    return subprocess.Popen(
        [python_of(contender.tool), str(WORKER), json.dumps(order)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=quiet, text=True, bufsize=1, env={**os.environ, **one},
    )  # fmt: skip


def build(contender: Contender, rows: int, limit: float) -> None:
    """Build the index unless it is there, with one thread, noting time, memory and bytes."""
    note = contender.folder / "built.json"
    if note.exists():
        contender.built = json.loads(note.read_text())
        return
    shutil.rmtree(contender.folder, ignore_errors=True)
    contender.folder.mkdir(parents=True)
    say(f"{contender.name}: building {rows:,} rows")
    process = start(contender, {"do": "build", "rows": rows}, core=False)
    peak = [0, 0.0]
    watch = threading.Thread(target=_watch, args=(process, peak, limit), daemon=True)
    watch.start()
    answer, _ = process.communicate()
    if process.returncode or not answer:
        late = peak[1] > limit
        contender.failure = (
            f"its build was ended after {limit:.0f} CPU s"
            if late
            else f"its build failed ({process.returncode}); EMBEDKIT_BENCH_VERBOSE=1 shows why"
        )
        say(f"{contender.name}: {contender.failure}")
        return
    contender.built = json.loads(answer)
    contender.built["peak_anonymous"] = peak[0]
    files = [f for f in contender.folder.rglob("*") if f.is_file()]
    if contender.setting.options.get("store"):
        files += [contender.folder.parent / f"store-{contender.setting.options['store']}" / "faiss.index"]
    contender.built["bytes"] = sum(f.stat().st_size for f in files)
    note.write_text(json.dumps(contender.built))
    say(f"{contender.name}: built in {contender.built['cpu']:.0f} CPU s, {contender.built['wall']:.0f} s")


def _watch(process: subprocess.Popen[str], peak: list[float], limit: float) -> None:
    """Keep the peak of the process's own memory, mapped files apart, and its CPU seconds; end it past the limit."""
    tick = os.sysconf("SC_CLK_TCK")
    while process.poll() is None:
        with contextlib.suppress(OSError, IndexError):
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    peak[0] = max(peak[0], int(line.split()[1]) * 1024)
            times = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
            peak[1] = (int(times[11]) + int(times[12])) / tick
        if peak[1] > limit:
            process.kill()
        time.sleep(0.1)


@contextlib.contextmanager
def serving(contender: Contender, rows: int, effort: Effort, cold: bool) -> Iterator[Any]:
    """Yield a function that asks the contender's serving process; `.facts` is what opening took."""
    order = {
        "do": "serve", "rows": rows, "queries": str(FOLDER / "queries.npy"), "asked": TRUTH_QUERIES,
        "truth": str(FOLDER / f"truth-{rows}.npy"), "effort": effort, "cold": cold,
    }  # fmt: skip
    process = start(contender, order, core=True)
    assert process.stdin is not None
    assert process.stdout is not None
    reader, writer = process.stdout, process.stdin

    def ask(**question: Any) -> dict[str, Any]:
        if question:
            writer.write(json.dumps(question) + "\n")
        line = reader.readline()
        if not line:
            raise RuntimeError("its serving process ended; EMBEDKIT_BENCH_VERBOSE=1 shows why")
        answer: dict[str, Any] = json.loads(line)
        return answer

    try:
        yield ask
    finally:
        with contextlib.suppress(OSError):
            writer.close()
        process.wait()


def sweep(contender: Contender, rows: int, target: float) -> None:
    """Find the cheapest effort that reaches the recall: all by few queries, then the promising ones by all."""
    note = contender.folder / "curve.json"
    # Peers do not change between runs; embedkit does.
    if note.exists() and contender.tool.name != "embedkit":
        contender.curve = json.loads(note.read_text())
    else:
        say(f"{contender.name}: sweeping {len(contender.setting.efforts)} efforts")
        with serving(contender, rows, contender.setting.efforts[0], cold=False) as ask:
            ask()
            ask(do="search", effort=contender.setting.efforts[-1], count=FEW // 2, batch=False)
            rough: list[dict[str, Any]] = []
            for effort in contender.setting.efforts:
                if not any(_needless(effort, done) for done in rough):
                    rough.append(
                        {"effort": effort, **ask(do="search", effort=effort, count=FEW, batch=False)}
                    )
            for effort in _promising(rough, target):
                answer = ask(do="search", effort=effort, count=TRUTH_QUERIES, batch=False)
                contender.curve.append({"effort": effort, **answer})
        note.write_text(json.dumps(contender.curve))
    reached = [c for c in contender.curve if c["recall"] >= target]
    contender.best = min(reached, key=lambda c: float(c["cpu"]), default=None)
    if contender.best is None:
        best = max((c["recall"] for c in contender.curve), default=0.0)
        contender.failure = f"no effort tried reached recall {target}: {best:.3f} at most"
        say(f"{contender.name}: {contender.failure}")
    else:
        b = contender.best
        say(
            f"{contender.name}: {b['effort']}: recall {b['recall']:.3f}, {1 / b['wall']:.0f} q/s, {1 / b['cpu']:.0f} a CPU s"
        )


def _promising(rough: list[dict[str, Any]], target: float) -> list[Effort]:
    """Return the efforts that none beats in both recall and time, and the four cheapest near the target."""
    front = [r for r in rough if not any(o["recall"] > r["recall"] and o["cpu"] < r["cpu"] for o in rough)]
    # A plot needs no more than some of them.
    front = [f for f in sorted(front, key=lambda f: float(f["recall"])) if f["recall"] >= target - 0.2]
    front = front[:: max(1, len(front) // 8)]
    near = sorted((r for r in rough if r["recall"] >= target - 0.004), key=lambda r: float(r["cpu"]))[:4]
    own = [r for r in rough if not r["effort"]]
    chosen: list[Effort] = []
    for r in [*own, *near, *front, max(rough, key=lambda r: float(r["recall"]))]:
        if r["effort"] not in chosen:
            chosen.append(r["effort"])
    return chosen


def _needless(effort: Effort, done: dict[str, Any]) -> bool:
    """Say whether an effort no greater in any respect reached more recall than is looked at."""
    easier = done["effort"]
    return (
        done["recall"] >= ENOUGH
        and easier.keys() == effort.keys()
        and all(not isinstance(v, str) and easier[n] <= v for n, v in effort.items())
    )


def finalists(contenders: list[Contender]) -> list[Contender]:
    """Return of each tool the settings with most queries a CPU second, and most for their bytes on disk."""
    chosen: list[Contender] = []
    for name in dict.fromkeys(c.tool.name for c in contenders):
        able = [c for c in contenders if c.tool.name == name and c.best]
        if able:
            fast = min(able, key=lambda c: float((c.best or {})["cpu"]))
            small = min(able, key=lambda c: float((c.best or {})["cpu"]) * c.built["bytes"])
            chosen += [fast] if fast is small else [fast, small]
    return chosen


def untouched(contender: Contender) -> list[Contender]:
    """Return the contender at the effort that it chooses itself, if it does so and the sweep found a cheaper one."""
    own = next((c for c in contender.curve if not c["effort"]), None)
    if own is None or own is contender.best or not contender.built:
        return []
    setting = replace(contender.setting, name=f"{contender.setting.name}, own choice")
    return [replace(contender, setting=setting, best=own, failure=None, served={}, rounds=[], batches=[])]


def compete(chosen: list[Contender], rows: int, rounds: int) -> None:
    """Open all, take each one's memory after a cold start, then let them take turns."""
    with contextlib.ExitStack() as stack:
        asks = []
        for contender in chosen:
            effort = (contender.best or {})["effort"]
            say(f"{contender.name}: opening")
            ask = stack.enter_context(serving(contender, rows, effort, cold=True))
            contender.served = ask()
            cold = ask(do="search", effort=effort, count=TRUTH_QUERIES, batch=False)
            contender.served["cold_wall"] = cold["wall"]
            contender.served.update(ask(do="memory"))
            asks.append(ask)
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for contender, ask in zip(chosen, asks, strict=True):
                effort = (contender.best or {})["effort"]
                contender.rounds.append(ask(do="search", effort=effort, count=TRUTH_QUERIES, batch=False))
                if contender.served["batches"]:
                    contender.batches.append(ask(do="search", effort=effort, count=TRUTH_QUERIES, batch=True))


def main() -> None:
    """Prepare, build, sweep, compete, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--tools", nargs="+", help="tools, or tool:setting; all by default")
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--build-limit", type=float, default=2400, help="CPU seconds after which a build is ended"
    )
    parser.add_argument("--rebuild", action="store_true", help="build and sweep the named tools anew")
    parser.add_argument("--build-only", action="store_true")
    parser.add_argument("--plot", action="store_true", help="draw docs/index-recall.svg")
    args = parser.parse_args()
    prepare(args.rows)
    contenders = [
        Contender(tool, setting, FOLDER / str(args.rows) / f"{tool.name}-{setting.name}")
        for tool in tools(args.rows)
        for setting in tool.settings
        if not args.tools or tool.name in args.tools or f"{tool.name}:{setting.name}" in args.tools
    ]
    if not contenders:
        names = ", ".join(f"{t.name}:{s.name}" for t in tools(args.rows) for s in t.settings)
        raise SystemExit(f"--tools {' '.join(args.tools)} names nothing here: choose from {names}")
    for contender in contenders:
        if args.rebuild:
            shutil.rmtree(contender.folder, ignore_errors=True)
        try:
            build(contender, args.rows, args.build_limit)
            if contender.built and not args.build_only:
                sweep(contender, args.rows, args.recall)
        except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
            contender.failure = str(error)
            say(f"{contender.name}: {error}")
    if args.build_only:
        return
    own = [c for contender in contenders if contender.tool.name == "embedkit" for c in untouched(contender)]
    compete([*finalists(contenders), *own], args.rows, args.rounds)
    contenders += own
    report = summary(contenders, args.rows, args.recall)
    path = ROOT / ".bench" / f"index-peers-{args.rows}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print_tables(report)
    print(f"written: {path}")
    if args.plot:
        from peers.picture import draw

        (ROOT / "docs" / "index-recall.svg").write_text(draw(report), encoding="utf-8")
        print("drawn: docs/index-recall.svg")


if __name__ == "__main__":
    main()
