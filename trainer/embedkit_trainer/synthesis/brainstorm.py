"""Step 1: pools of task definitions, grown by many requests."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedkit.errors import StoreError
from embedkit_trainer.data.files import replaced
from embedkit_trainer.synthesis.batch import run_plan
from embedkit_trainer.synthesis.budget import Forecast
from embedkit_trainer.synthesis.plan import BrainstormPlan
from embedkit_trainer.synthesis.pools import Growth, grow, pool_path, read_pool, write_pool
from embedkit_trainer.synthesis.running import Progress, RunReport
from embedkit_trainer.synthesis.settings import SynthesisConfig, at_batch_prices
from embedkit_trainer.synthesis.store import Store, read_records

_FOLDER, _MERGED = "brainstorm", "merged.json"


@dataclass(frozen=True, slots=True)
class BrainstormReport:
    """Tell how the requests went, how each type's pool grew, and how large it is now."""

    run: RunReport
    growth: Mapping[str, Growth]
    sizes: Mapping[str, int]


def brainstorm(
    config: SynthesisConfig,
    *,
    retry_failed: bool = False,
    announce: Callable[[Forecast], object] = lambda _: None,
    tell: Callable[[Progress], object] = lambda _: None,
    stop_wanted: Callable[[], bool] = lambda: False,
    batch: bool = False,
    say: Callable[[str], object] = lambda _: None,
) -> BrainstormReport:
    """Send what is undone of the brainstorm, then add the answers to the pools, also where something stopped it.

    What a person has changed or taken out of a pool stays so: an answer is added once. `batch` and `say` are as in
    `generate`.
    """
    if batch:
        config = at_batch_prices(config)
    plan = BrainstormPlan(config)
    folder = Path(config.pools) / _FOLDER
    # What cannot be read is told before anything is paid for.
    for kind in plan.kinds:
        read_pool(pool_path(config.pools, kind.name))
    _read_merged(folder / _MERGED)
    with Store(folder, plan.digest, plan.parts) as store:
        told: dict[str, Any] = {"announce": announce, "tell": tell, "stop_wanted": stop_wanted}
        try:
            report = run_plan(
                plan, plan.total, store, batch=batch, say=say, retry_failed=retry_failed, **told
            )
        finally:
            growth = _merge(config, plan, folder)
    sizes = {kind.name: len(read_pool(pool_path(config.pools, kind.name))) for kind in plan.kinds}
    return BrainstormReport(report, growth, sizes)


def _merge(config: SynthesisConfig, plan: BrainstormPlan, folder: Path) -> dict[str, Growth]:
    """Add the answers that are not in the pools yet, in the order of the requests."""
    file = folder / _MERGED
    merged = _read_merged(file)
    fresh = sorted(
        (r for r in read_records(folder) if r["request"] not in merged), key=lambda r: int(r["request"])
    )
    growth = {}
    for kind in plan.kinds:
        new = [entry for record in fresh if record["type"] == kind.name for entry in _entries(record)]
        path = pool_path(config.pools, kind.name)
        entries, growth[kind.name] = grow(read_pool(path), new, config.brainstorm.similarity)
        if growth[kind.name].added:
            write_pool(path, entries)
    if fresh:
        numbers = sorted(merged | {r["request"] for r in fresh})
        with replaced(file) as beside:
            beside.write_text(json.dumps(numbers) + "\n", encoding="utf-8")
    return growth


def _read_merged(file: Path) -> set[int]:
    if not file.exists():
        return set()
    try:
        numbers = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(numbers, list) or not all(type(n) is int for n in numbers):
            raise ValueError
        return set(numbers)
    except (OSError, ValueError, RecursionError) as e:
        raise StoreError(
            f"{file} cannot be read: take it away, and all answers are added to the pools again"
        ) from e


def _entries(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    about = {key: record[key] for key in ("model", "template", "request")}
    return [{"task": task, **about} for task in record["answer"]["tasks"] if task.isprintable()]
