"""Step 2: one example for each request, stored as it comes, then written as training rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedkit_trainer.synthesis.batch import run_plan
from embedkit_trainer.synthesis.budget import Forecast
from embedkit_trainer.synthesis.export import export_rows
from embedkit_trainer.synthesis.filters.placeholders import write_declared
from embedkit_trainer.synthesis.plan import RequestPlan
from embedkit_trainer.synthesis.pools import read_tasks
from embedkit_trainer.synthesis.running import Progress, RunReport
from embedkit_trainer.synthesis.settings import SynthesisConfig, at_batch_prices
from embedkit_trainer.synthesis.store import Store

_FOLDER = "store"


@dataclass(frozen=True, slots=True)
class GenerateReport:
    """Tell how the requests went, and how many rows of each type lie in `folder`."""

    run: RunReport
    rows: Mapping[str, int]
    folder: str


def store_folder(config: SynthesisConfig) -> Path:
    """Return the folder of a synthesis' answers."""
    return Path(config.output) / _FOLDER


def plan_requests(config: SynthesisConfig, stand_in: str = "") -> RequestPlan:
    """Return the plan of a synthesis with the pools that are there; `stand_in` is the task where one is empty."""
    pools = read_tasks(config.pools, (k.name for k in config.task_types.values() if k.pool and k.share > 0))
    return RequestPlan(config, {name: tasks or [stand_in] * bool(stand_in) for name, tasks in pools.items()})


def generate(
    config: SynthesisConfig,
    *,
    retry_failed: bool = False,
    announce: Callable[[Forecast], object] = lambda _: None,
    tell: Callable[[Progress], object] = lambda _: None,
    stop_wanted: Callable[[], bool] = lambda: False,
    batch: bool = False,
    say: Callable[[str], object] = lambda _: None,
) -> GenerateReport:
    """Send what is undone, then write the rows, also where a ceiling or a signal stopped it.

    With `batch` requests go to the Batch API; `say` gets a sentence for what happens there.
    """
    if batch:
        config = at_batch_prices(config)
    plan = plan_requests(config)
    folder = store_folder(config)
    with Store(folder, plan.digest, plan.parts) as store:
        told: dict[str, Any] = {"announce": announce, "tell": tell, "stop_wanted": stop_wanted}
        report = run_plan(
            plan, config.examples, store, batch=batch, say=say, retry_failed=retry_failed, **told
        )
        write_declared(Path(config.rows), plan.declared)
        rows = export_rows(folder, config.rows, config.task_types)
    return GenerateReport(report, rows, config.rows)
