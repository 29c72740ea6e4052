"""`embedkit synth`: an LLM writes training data, as a config says."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from embedkit_cli.options import common, group
from embedkit_cli.output import counted, note, print_json
from embedkit_cli.synth_index import from_index
from embedkit_cli.synth_rows import filter_, stats
from embedkit_cli.synth_running import begin, end, forecast_text, print_prompts, prompt_facts, run_requests

if TYPE_CHECKING:
    from embedkit_trainer.synthesis.plan import Plan

_STAND_IN = "(a task of the pool, once `embedkit synth brainstorm` has run)"

_config = group(
    click.argument("source", metavar="CONFIG"),
    click.option(
        "--set",
        "overrides",
        metavar="KEY=VALUE",
        multiple=True,
        help="Override a value: models.NAME.share=2.",
    ),
)
_running = group(
    click.option("--dry-run", is_flag=True, help="Show prompts and the forecast; ask nothing."),
    click.option(
        "--prompts", type=click.IntRange(min=0), metavar="N", default=3, show_default=True, help="Prompts that --dry-run shows."
    ),
    click.option("--no-budget", is_flag=True, help="Go without prices; ceilings on requests and tokens still hold."),
    click.option("--retry-failed", is_flag=True, help="Send those again whose answer could not be used."),
    click.option("--batch", is_flag=True, help="Send by the Batch API: half the price, answers within a day."),
)  # fmt: skip


@click.group()
def synth() -> None:
    """Let an LLM write training data: tasks first, then an example for each request.

    CONFIG is a TOML file that names a model and its server; all else has the values of E5-mistral's paper. The same
    command goes on where a run was stopped, and sends nothing again that was answered.

    \b
    embedkit synth plan synthesis.toml
    embedkit synth brainstorm synthesis.toml
    embedkit synth generate synthesis.toml --set examples=1000
    embedkit synth filter synthesis/rows -o synthesis/filtered
    embedkit synth stats synthesis/filtered --html report.html
    """  # fmt: skip


@synth.command()
@_config
@click.option(
    "--prompts", type=click.IntRange(min=0), metavar="N", default=0, help="Prompts to show of each step."
)
@common
def plan(*, source: str, overrides: tuple[str, ...], prompts: int, as_json: bool) -> None:
    """Show what CONFIG asks for and what it will probably cost; ask nothing."""
    from embedkit_trainer.synthesis.budget import forecast
    from embedkit_trainer.synthesis.generate import plan_requests
    from embedkit_trainer.synthesis.plan import BrainstormPlan
    from embedkit_trainer.synthesis.settings_file import load_synthesis

    config = load_synthesis(source, overrides)
    brainstorm_plan, example_plan = BrainstormPlan(config), plan_requests(config, _STAND_IN)
    total = brainstorm_plan.total
    steps: list[tuple[str, Plan, int]] = [("generate", example_plan, config.examples)]
    if total:
        steps.insert(0, ("brainstorm", brainstorm_plan, total))
    forecasts = {name: forecast(p, range(count), count) for name, p, count in steps}
    shares = {k.name: k.share for k in example_plan.kinds}
    counts = {name: round(config.examples * s / sum(shares.values())) for name, s in shares.items()}
    pools = {name: 0 if tasks[0] == _STAND_IN else len(tasks) for name, tasks in example_plan.pools.items()}
    shown = {name: [prompt_facts(p, i) for i in range(min(prompts, count))] for name, p, count in steps}
    if as_json:
        facts: dict[str, Any] = {"digest": example_plan.digest, "types": counts, "pools": pools}
        facts["forecast"] = {name: asdict(f) for name, f in forecasts.items()}
        print_json(facts | {"prompts": shown, "output": config.output})
        return
    for name, expected in counts.items():
        size = f", from {counted(pools[name], 'task')}" if name in pools else ""
        click.echo(f"{name:>12}: about {counted(expected, 'example')}{size}")
    for name, found in forecasts.items():
        click.echo(f"{name}: {forecast_text(found)}")
    for texts in shown.values():
        print_prompts(texts)


@synth.command()
@_config
@_running
@common
def brainstorm(
    *, source: str, overrides: tuple[str, ...], dry_run: bool, prompts: int, no_budget: bool, retry_failed: bool, batch: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Grow the pools of tasks that examples are written for.

    A pool is a file of JSON lines that may be edited; tasks that are there already, or nearly, are left out.
    """
    from embedkit_trainer.synthesis.brainstorm import brainstorm as run_brainstorm
    from embedkit_trainer.synthesis.plan import BrainstormPlan
    from embedkit_trainer.synthesis.settings import at_batch_prices
    from embedkit_trainer.synthesis.settings_file import load_synthesis

    config = load_synthesis(source, overrides)
    priced = at_batch_prices(config) if batch else config
    planned = BrainstormPlan(priced)
    if begin(
        priced, planned, planned.total, dry_run=dry_run, prompts=prompts, no_budget=no_budget, as_json=as_json
    ):
        return
    report = run_requests(
        lambda **told: run_brainstorm(config, retry_failed=retry_failed, batch=batch, say=note, **told),
        "brainstorming",
        batch,
    )
    if as_json:
        print_json(asdict(report))
    else:
        for name, growth in report.growth.items():
            click.echo(
                f"{name:>12}: {counted(report.sizes[name], 'task')}, {growth.added:,} of them new; left out "
                f"{counted(growth.duplicates, 'duplicate')}, {counted(growth.near_duplicates, 'near-duplicate')}"
            )
        click.echo(f"pools: {config.pools}")
    end(report.run, config, as_json)


@synth.command()
@_config
@_running
@common
def generate(
    *, source: str, overrides: tuple[str, ...], dry_run: bool, prompts: int, no_budget: bool, retry_failed: bool, batch: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Write the examples, and the training rows of all that are there."""
    from embedkit_trainer.synthesis.generate import generate as run_generate
    from embedkit_trainer.synthesis.generate import plan_requests
    from embedkit_trainer.synthesis.settings import at_batch_prices
    from embedkit_trainer.synthesis.settings_file import load_synthesis

    config = load_synthesis(source, overrides)
    priced = at_batch_prices(config) if batch else config
    planned = plan_requests(priced)
    if begin(
        priced,
        planned,
        config.examples,
        dry_run=dry_run,
        prompts=prompts,
        no_budget=no_budget,
        as_json=as_json,
    ):
        return
    report = run_requests(
        lambda **told: run_generate(config, retry_failed=retry_failed, batch=batch, say=note, **told),
        "generating",
        batch,
    )
    if as_json:
        print_json(asdict(report))
    else:
        for name, count in report.rows.items():
            click.echo(f"{name:>12}: {counted(count, 'row')}")
        click.echo(f"rows: {report.folder}")
    end(report.run, config, as_json)


for _command in (filter_, stats, from_index):
    synth.add_command(_command)
