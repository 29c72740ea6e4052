"""Measure `embedkit synth filter` and `embedkit synth stats`: time and memory over many rows.

    python benchmarks/synthesis_rows.py [--rows 500000] [--folder DIR] [--json]

The rows are made from a seed: the paper's types, the languages of `examples/synthetic`, texts of 5 to 60 words put together from the sentences of
`examples/synthetic`, one hard negative, metadata as `synth generate` writes it; 2% exact duplicates, 3% near ones, 1% in
another language. Measured in a process of its own each: filters of texts (duplicates, language, lengths, placeholders,
contamination against 20,000 texts, near-duplicates), and the statistics with near-duplicates, page and plot. Without an embedder: its own
speed (benchmarks/encode.py) is all that counts there. On a busy machine read the CPU seconds: process and worker run side
by side, so that two free cores take about the larger of the two.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SEEDS = Path(__file__).resolve().parent.parent / "examples" / "synthetic"
TYPES = {"short-long": 167, "long-short": 122, "sts": 99, "bitext": 89, "long-long": 17, "short-short": 13}
LENGTHS = {
    "short-long": (8, 60), "long-short": (60, 3), "sts": (14, 14), "bitext": (14, 14), "long-long": (55, 55), "short-short": (4, 4)
}  # fmt: skip

CLARITY = ("clear", "understandable with some effort", "ambiguous")
DRAWN = {
    "short-long": {"clarity": CLARITY, "num_words": ("50",)},
    "long-short": {"clarity": CLARITY, "num_words": ("at least 50",)},
    "sts": {"unit": ("sentence",), "low_score": ("2.5", "3", "3.5")},
    "bitext": {"unit": ("sentence",), "low_score": ("1.5", "2", "2.5")},
}


def words_by_language() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in sorted(SEEDS.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            found.setdefault(row["lang_q"], []).extend(row["query"].split())
            for text in (row["positive"], *row["negatives"]):
                found.setdefault(row["lang_d"], []).extend(text.split())
    # A script without spaces gives few pieces, each a sentence: they are cut.
    return {
        code: [piece for word in words for piece in re.findall(r".{1,12}", word)]
        for code, words in found.items()
        if len(words) > 60
    }


def made_rows(count: int, seed: int) -> Iterator[dict[str, Any]]:
    draw = random.Random(seed)
    words = words_by_language()
    codes = [code for code in words if code != "en"]
    earlier: list[dict[str, Any]] = []
    for number in range(count):
        luck = draw.random()
        if luck < 0.05 and earlier:
            row = dict(draw.choice(earlier))
            if luck >= 0.02 and " " in row["positive"]:
                row["positive"] += " " + draw.choice(words[row["lang_d"]])
            yield {**row, "id": number}
            continue
        kind = draw.choices(list(TYPES), list(TYPES.values()))[0]
        code = "en" if draw.random() < 0.431 else draw.choice(codes)
        other = draw.choice(codes) if kind == "bitext" else code
        spoken = draw.choice(codes) if luck > 0.99 else other
        lengths = LENGTHS[kind]
        row = {
            "id": number,
            "task": kind,
            "instruction": f"Task number {draw.randrange(max(1, count * 3 // 10))}: find the text",
            "query": " ".join(draw.choices(words[code], k=lengths[0])),
            "positive": " ".join(draw.choices(words[spoken], k=lengths[1])),
            "negatives": [" ".join(draw.choices(words[other], k=lengths[1]))],
            "lang_q": code,
            "lang_d": other,
            "metadata": {
                "request": number,
                "type": kind,
                "model": draw.choice(("gpt-4", "gpt-4", "gpt-4", "gpt-3.5-turbo")),
                "template": f"{kind}-{draw.randrange(1, 3)}",
                "placeholders": {name: draw.choice(values) for name, values in DRAWN.get(kind, {}).items()},
                "tokens": [200, 160],
                "cost": 0.003,
            },
        }
        if len(earlier) < 5000:
            earlier.append(row)
        elif draw.random() < 0.01:
            earlier[draw.randrange(5000)] = row
        yield row


def write_evaluation(path: Path) -> None:
    draw = random.Random(1)
    words = words_by_language()["en"]
    with path.open("w", encoding="utf-8") as f:
        for number in range(20_000):
            f.write(json.dumps({"_id": str(number), "text": " ".join(draw.choices(words, k=120))}) + "\n")


def measured(arguments: list[str]) -> dict[str, Any]:
    """Run embedkit in a process of its own; return its record, seconds, and the peak memory of it and its workers."""
    probe = (
        "import json,resource,sys\nfrom embedkit_cli.main import cli\n"
        "try: cli(sys.argv[1:], standalone_mode=False)\n"
        "except SystemExit as e:\n  if e.code: raise\n"
        "used=[resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]\n"
        "print(json.dumps([[u.ru_maxrss/2**10, u.ru_utime+u.ru_stime] for u in used]),file=sys.stderr)"
    )
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", probe, *arguments], check=True, capture_output=True, text=True
    )
    seconds = time.perf_counter() - started
    (mib, cpu), (worker_mib, worker_cpu) = json.loads(done.stderr.splitlines()[-1])
    return {
        "record": json.loads(done.stdout),
        "seconds": seconds,
        "cpu_seconds": cpu,
        "worker_cpu_seconds": worker_cpu,
        "mib": mib,
        "worker_mib": worker_mib,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--workers", default="1")
    parser.add_argument("--folder", help="where the rows are written (2 GB), and removed afterwards")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        folder = Path(place)
        with (folder / "rows.jsonl").open("w", encoding="utf-8") as f:
            for row in made_rows(arguments.rows, arguments.seed):
                f.write(json.dumps(row, ensure_ascii=False) + "\n")
        write_evaluation(folder / "evaluation.jsonl")
        size = (folder / "rows.jsonl").stat().st_size
        filtered = measured(
            ["synth", "filter", f"{folder}/rows.jsonl", "-o", f"{folder}/kept.jsonl", "--near-duplicates", "0.8",
             "--evaluation", f"{folder}/evaluation.jsonl", "--workers", arguments.workers, "--json"]
        )  # fmt: skip
        counted = measured(
            [
                "synth",
                "stats",
                f"{folder}/rows.jsonl",
                "--html",
                f"{folder}/a.html",
                "--png",
                f"{folder}/a.png",
                "--json",
            ]
        )
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    if arguments.json:
        print(
            json.dumps(
                {"rows": arguments.rows, "bytes": size, "load": load, "filter": filtered, "stats": counted}
            )
        )
        return
    print(f"{arguments.rows:,} rows, {size / 1e6:,.0f} MB; load average at the end: {load}")
    print("| command | s | its CPU s | worker's CPU s | CPU µs a row | peak MiB | worker MiB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, found in (("filter", filtered), ("stats", counted)):
        cpu, worker = found["cpu_seconds"], found["worker_cpu_seconds"]
        print(
            f"| {name} | {found['seconds']:.1f} | {cpu:.1f} | {worker:.1f} | {(cpu + worker) / arguments.rows * 1e6:.0f} "
            f"| {found['mib']:.0f} | {found['worker_mib']:.0f} |"
        )
    sums = [
        sum(run[key] for run in (filtered, counted))
        for key in ("seconds", "cpu_seconds", "worker_cpu_seconds")
    ]
    peak = max(run["mib"] + run["worker_mib"] for run in (filtered, counted))
    print(f"| both | {sums[0]:.1f} | {sums[1]:.1f} | {sums[2]:.1f} | | {peak:.0f} in sum | |")
    for count in filtered["record"]["filters"]:
        print(f"{count['name']}: {count['seconds']} s, {count['dropped'] | count['changed']}")


if __name__ == "__main__":
    main()
