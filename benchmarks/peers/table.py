"""The results of index_peers.py: as plain values, and as tables."""

from __future__ import annotations

import platform
import statistics
from typing import Any

GB = 1e9


def _median(answers: list[dict[str, Any]], name: str) -> float | None:
    return statistics.median(float(a[name]) for a in answers) if answers else None


def summary(contenders: list[Any], rows: int, target: float) -> dict[str, Any]:
    """Return everything measured, as JSON takes it; rates are queries a second."""
    lines = []
    for c in contenders:
        line = {
            "tool": c.tool.name,
            "setting": c.setting.name,
            "options": c.setting.options,
            "failure": c.failure,
            "build": c.built,
            "curve": c.curve,
            "best": c.best,
        }
        if c.rounds:
            wall, cpu = _median(c.rounds, "wall"), _median(c.rounds, "cpu")
            batch, batch_cpu = _median(c.batches, "wall"), _median(c.batches, "cpu")
            memory = c.served["anonymous"] + c.served["cached"]
            line |= {
                "recall": _median(c.rounds, "recall"),
                "rate": 1 / wall,
                "cpu_rate": 1 / cpu,
                "batch_rate": 1 / batch if batch else None,
                "batch_cpu_rate": 1 / batch_cpu if batch_cpu else None,
                "memory": memory,
                "rate_per_gb": 1 / wall / (memory / GB),
                "cpu_rate_per_gb": 1 / cpu / (memory / GB),
                "served": c.served,
                "rounds": c.rounds,
            }
        lines.append(line)
    return {"rows": rows, "target": target, "machine": platform.machine(), "contenders": lines}


def print_tables(report: dict[str, Any]) -> None:
    """Print the competition as a Markdown table, then what each setting's sweep found."""
    done = sorted(
        (c for c in report["contenders"] if "rate" in c), key=lambda c: -float(c["cpu_rate_per_gb"])
    )
    own = next((c for c in done if c["tool"] == "embedkit"), None)
    print(
        f"\n{report['rows']:,} rows, recall@10 >= {report['target']}, one thread, medians of interleaved rounds\n"
    )
    print("| tool | effort | recall | q/s | q/CPU s | in batches, q/CPU s | memory MB | q/s per GB | embedkit's q/CPU s over it | embedkit's per GB over it |")  # fmt: skip
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for c in done:
        batch = f"{c['batch_cpu_rate']:.0f}" if c["batch_cpu_rate"] else "–"
        speed = f"{own['cpu_rate'] / c['cpu_rate']:.2f}" if own else "–"
        dense = f"{own['cpu_rate_per_gb'] / c['cpu_rate_per_gb']:.2f}" if own else "–"
        effort = ", ".join(f"{n} {v}" for n, v in c["best"]["effort"].items()) or "its own choice"
        print(
            f"| {c['tool']} {c['setting']} | {effort} | {c['recall']:.3f} | {c['rate']:.0f} | {c['cpu_rate']:.0f} | {batch} "
            f"| {c['memory'] / 1e6:.0f} | {c['rate_per_gb']:.0f} | {speed} | {dense} |"
        )
    print("\n| index | build CPU s | build s | peak own memory MB | disk MB | best at the recall | q/CPU s | opens in ms | first query ms |")  # fmt: skip
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for c in report["contenders"]:
        b = c["build"]
        built = (
            f"{b['cpu']:.0f} | {b['wall']:.0f} | {b['peak_anonymous'] / 1e6:.0f} | {b['bytes'] / 1e6:.0f}"
            if b
            else "– | – | – | –"
        )
        best = c["best"]
        found = (
            ", ".join(f"{n} {v}" for n, v in best["effort"].items()) or "its own choice"
            if best
            else c["failure"]
        )
        rate = f"{1 / best['cpu']:.0f}" if best else "–"
        s = c.get("served")
        opened = f"{1e3 * s['open_seconds']:.0f} | {1e3 * s['first_query_seconds']:.0f}" if s else "– | –"
        print(f"| {c['tool']} {c['setting']} | {built} | {found} | {rate} | {opened} |")
