"""Compare a contrastive training step with peers' on a CPU: speed, memory, and the gradient itself.

    python benchmarks/training.py --batch 64 --batch 256 --batch 1024 --batch 4096
    python benchmarks/training.py --flag-python ENV/bin/python      # a second peer, from an environment of its own

A tiny Mistral (hidden 256, 4 layers, grouped queries), pairs of lognormal length (median 32, at most 256 tokens),
InfoNCE over the batch at temperature 0.02. Seeded weights, token ids and AdamW are the same for all; the timed step
is forward, backward and optimiser (see training_worker.py for what each contender gets).

First every contender runs each of its settings (float32 and bfloat16, chunks of 16, 32, 64 rows) on `--tune` pairs,
and keeps the fastest. Then, for each batch size, each contender gets a fresh process, and they take turns, step by
step. Columns: pairs/s is by the median step after the first (which pays for kernels and AdamW's state; a single step
where there is only one); CPU ratio is the same by CPU time. Peak memory is the high-water mark of the process from
the built model on; "over base" takes away what the process held before its first step (interpreter, imports,
weights). Memory a contender cannot get ends it, and is a row.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

WORKER = Path(__file__).with_name("training_worker.py")
CHUNKS = (16, 32, 64)
# What each contender may choose from besides precision and chunk; training_worker.py says what the names mean.
UNITS = {
    "embedkit": ("padded",),
    "sentence-transformers": ("rows", "tokens"),
    "FlagEmbedding": ("rows", "checkpointed"),
}
PRECISIONS = ("fp32", "bf16")


@dataclass
class Contender:
    """One process with one setting, and what it measured."""

    setting: dict[str, Any]
    python: str
    base: float = 0.0
    peak: float = 0.0
    out_of_memory: bool = False
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def __enter__(self) -> Contender:
        # Its own warnings would drown the table.
        self.process = subprocess.Popen(
            [self.python, str(WORKER), json.dumps(self.setting)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("EMBEDKIT_BENCH_VERBOSE") else subprocess.DEVNULL,
            text=True,
            bufsize=1,
            env={**os.environ, "OMP_NUM_THREADS": str(self.setting["threads"])},
        )
        self.base = self._read()["base"]
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def step(self, number: int) -> None:
        """Train on batch `number`, unless memory ran out before."""
        self._say(f"step {number}")

    def gradient(self, path: Path) -> dict[str, np.ndarray]:
        """Return the gradient of batch 0 at the present weights."""
        self._say(f"gradient {path}")
        return dict(np.load(path))

    def steady(self, values: list[float]) -> float:
        """Return the median of the steps after the first."""
        return statistics.median(values[1:] or values)

    def _say(self, command: str) -> None:
        if self.out_of_memory:
            return
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        answer = self._read()
        if answer.get("out_of_memory"):
            self.out_of_memory = True
            return
        self.seconds.append(answer["seconds"])
        self.cpu.append(answer["cpu"])
        self.losses.append(answer["loss"])
        self.peak = answer["peak"]

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.setting}: the process ended; EMBEDKIT_BENCH_VERBOSE=1 shows why")
        answer: dict[str, Any] = json.loads(line)
        return answer

    @property
    def name(self) -> str:
        """The contender and its setting, in words."""
        s = self.setting
        return f"{s['arm']}, {s['precision']}, {s['unit']}, chunk {s['chunk']}"


def tune(arm: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the setting of `arm` with the least CPU time a step, the second of two steps counting."""
    best: tuple[float, dict[str, Any]] | None = None
    for precision in PRECISIONS:
        for unit in UNITS[arm]:
            for chunk in options.chunk or CHUNKS:
                setting = {"arm": arm, "precision": precision, "unit": unit, "chunk": chunk}
                with contender(setting, options.tune, options) as c:
                    c.step(1)
                    c.step(2)
                    if c.out_of_memory:
                        print(f"| {c.name} | out of memory |", flush=True)
                        continue
                    over = c.peak - c.base
                    print(f"| {c.name} | {c.seconds[-1]:.2f} | {c.cpu[-1]:.2f} | {over:.0f} |", flush=True)
                    if best is None or c.cpu[-1] < best[0]:
                        best = (c.cpu[-1], setting)
    assert best is not None
    return best[1]


def contender(setting: dict[str, Any], batch: int, options: argparse.Namespace) -> Contender:
    """Return a contender that is not started yet."""
    python = options.flag_python if setting["arm"] == "FlagEmbedding" else sys.executable
    shared = {"batch": batch, "threads": options.threads, "memory_limit_mib": options.memory_limit}
    return Contender({**setting, **shared}, python)


def compare(batch: int, settings: list[dict[str, Any]], rounds: int, options: argparse.Namespace) -> None:
    """Let the contenders take turns on the same batches; print a row for each."""
    contenders = [contender(s, batch, options) for s in settings]
    for c in contenders:
        c.__enter__()
    try:
        for number in range(1, rounds + 2 if rounds > 1 else 2):
            for c in contenders:
                c.step(number)
    finally:
        for c in contenders:
            c.__exit__()
    ours = contenders[0]
    for c in contenders:
        if c.out_of_memory:
            print(
                f"| {batch} | {c.name} | out of memory at {options.memory_limit} MiB | | | | | | | |",
                flush=True,
            )
            continue
        pace, cpu = c.steady(c.seconds), c.steady(c.cpu)
        over, ours_over = c.peak - c.base, ours.peak - ours.base
        print(
            f"| {batch} | {c.name} | {batch / pace:.1f} | {pace / ours.steady(ours.seconds):.2f} | "
            f"{cpu / ours.steady(ours.cpu):.2f} | {c.peak:.0f} | {ours.peak / c.peak:.2f} | {over:.0f} | "
            f"{ours_over / over:.2f} | {' '.join(f'{t:.2f}' for t in c.seconds)} |",
            flush=True,
        )


def gradients(options: argparse.Namespace, arms: list[str]) -> None:
    """Print the cosine of each float32 gradient of one batch with embedkit's plain one."""
    cases: list[tuple[str, dict[str, Any]]] = [
        ("embedkit, GradCache, padded", {"arm": "embedkit", "unit": "padded", "chunk": 16}),
        ("embedkit, GradCache, packed", {"arm": "embedkit", "unit": "packed", "chunk": 16}),
    ]
    cases += [
        (f"{arm}, chunks", {"arm": arm, "unit": "rows", "chunk": 16}) for arm in arms if arm != "embedkit"
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "gradient.npz")

        def of(setting: dict[str, Any]) -> tuple[np.ndarray, float]:
            with contender({**setting, "precision": "fp32"}, 64, options) as c:
                parts = c.gradient(path)
                whole = np.concatenate([parts[k].ravel() for k in sorted(parts)])
                return whole.astype(np.float64), c.losses[0]

        plain, loss = of({"arm": "embedkit", "unit": "padded", "chunk": 0})
        print("\n| float32 gradient of 64 pairs | cosine with embedkit's plain one | norm ratio | loss |")
        print(f"| --- | --- | --- | --- |\n| embedkit, plain: one chunk | 1 | 1 | {loss:.6f} |")
        for name, setting in cases:
            other, loss = of(setting)
            norms = float(np.linalg.norm(other)), float(np.linalg.norm(plain))
            cosine = float(other @ plain) / norms[0] / norms[1]
            print(f"| {name} | {cosine:.8f} | {norms[0] / norms[1]:.7f} | {loss:.6f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--batch", type=int, action="append", help="pairs a step; repeat (default: 64 and 256)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="timed steps each, after one to warm up")
    parser.add_argument(
        "--large-rounds", type=int, default=1, help="the same from 4096 pairs on; 1: no warm-up"
    )
    parser.add_argument(
        "--tune", type=int, default=128, help="pairs of the search for each one's best setting"
    )
    parser.add_argument(
        "--chunk", type=int, action="append", help="rows a pass in the search; repeat (16, 32, 64)"
    )
    parser.add_argument("--settings", help="a JSON list of settings instead of the search")
    parser.add_argument("--flag-python", help="the interpreter of an environment with FlagEmbedding")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--memory-limit", type=int, default=12000, help="MiB that a contender may allocate")
    options = parser.parse_args()
    arms = ["embedkit", "sentence-transformers", *(["FlagEmbedding"] if options.flag_python else [])]
    print(f"{options.threads} threads, load {os.getloadavg()[0]:.1f}")
    gradients(options, arms)
    if options.settings:
        settings = json.loads(options.settings)
    else:
        print(f"\n| setting ({options.tune} pairs) | s | CPU s | MiB over base |\n| --- | --- | --- | --- |")
        settings = [tune(arm, options) for arm in arms]
    print(
        "\n| batch | contender | pairs/s | embedkit's speed over it | by CPU time | peak MiB | embedkit's peak over it "
        "| MiB over base | embedkit's over it | seconds |\n" + "| --- " * 10 + "|"
    )
    for batch in options.batch or [64, 256]:
        compare(batch, settings, options.rounds if batch < 4096 else options.large_rounds, options)
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
