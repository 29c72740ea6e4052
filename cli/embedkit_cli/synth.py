"""`embedkit synth`: an LLM writes training data, as a config says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

import click

from embedkit_cli.options import common, group
from embedkit_cli.output import counted, note, print_json, printable
from embedkit_cli.synth_index import from_index
from embedkit_cli.synth_rows import filter_, stats

if TYPE_CHECKING:
    from embedkit_cli.progress import Meter
    from embedkit_trainer.synthesis.budget import Forecast
    from embedkit_trainer.synthesis.plan import Plan
    from embedkit_trainer.synthesis.running import Progress, RunReport
    from embedkit_trainer.synthesis.settings import SynthesisConfig

_STOPPED = 2
_STAND_IN = "(a task of the pool, once `embedkit synth brainstorm` has run)"
T = TypeVar("T")

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
    shown = {name: [_prompt(p, i) for i in range(min(prompts, count))] for name, p, count in steps}
    if as_json:
        facts: dict[str, Any] = {"digest": example_plan.digest, "types": counts, "pools": pools}
        facts["forecast"] = {name: asdict(f) for name, f in forecasts.items()}
        print_json(facts | {"prompts": shown, "output": config.output})
        return
    for name, expected in counts.items():
        size = f", from {counted(pools[name], 'task')}" if name in pools else ""
        click.echo(f"{name:>12}: about {counted(expected, 'example')}{size}")
    for name, found in forecasts.items():
        click.echo(f"{name}: {_forecast_text(found)}")
    for texts in shown.values():
        _print_prompts(texts)


@synth.command()
@_config
@_running
@common
def brainstorm(
    *, source: str, overrides: tuple[str, ...], dry_run: bool, prompts: int, no_budget: bool, retry_failed: bool, as_json: bool
) -> None:  # fmt: skip
    """Grow the pools of tasks that examples are written for.

    A pool is a file of JSON lines that may be edited; tasks that are there already, or nearly, are left out.
    """
    from embedkit_trainer.synthesis.brainstorm import brainstorm as run_brainstorm
    from embedkit_trainer.synthesis.plan import BrainstormPlan
    from embedkit_trainer.synthesis.settings_file import load_synthesis

    config = load_synthesis(source, overrides)
    planned = BrainstormPlan(config)
    if _begin(
        config, planned, planned.total, dry_run=dry_run, prompts=prompts, no_budget=no_budget, as_json=as_json
    ):
        return
    report = _run(lambda **told: run_brainstorm(config, retry_failed=retry_failed, **told), "brainstorming")
    if as_json:
        print_json(asdict(report))
    else:
        for name, growth in report.growth.items():
            click.echo(
                f"{name:>12}: {counted(report.sizes[name], 'task')}, {growth.added:,} of them new; left out "
                f"{counted(growth.duplicates, 'duplicate')}, {counted(growth.near_duplicates, 'near-duplicate')}"
            )
        click.echo(f"pools: {config.pools}")
    _end(report.run, config, as_json)


@synth.command()
@_config
@_running
@common
def generate(
    *, source: str, overrides: tuple[str, ...], dry_run: bool, prompts: int, no_budget: bool, retry_failed: bool, as_json: bool
) -> None:  # fmt: skip
    """Write the examples, and the training rows of all that are there."""
    from embedkit_trainer.synthesis.generate import generate as run_generate
    from embedkit_trainer.synthesis.generate import plan_requests
    from embedkit_trainer.synthesis.settings_file import load_synthesis

    config = load_synthesis(source, overrides)
    planned = plan_requests(config)
    if _begin(
        config,
        planned,
        config.examples,
        dry_run=dry_run,
        prompts=prompts,
        no_budget=no_budget,
        as_json=as_json,
    ):
        return
    report = _run(lambda **told: run_generate(config, retry_failed=retry_failed, **told), "generating")
    if as_json:
        print_json(asdict(report))
    else:
        for name, count in report.rows.items():
            click.echo(f"{name:>12}: {counted(count, 'row')}")
        click.echo(f"rows: {report.folder}")
    _end(report.run, config, as_json)


def _begin(
    config: SynthesisConfig,
    planned: Plan,
    total: int,
    *,
    dry_run: bool,
    prompts: int,
    no_budget: bool,
    as_json: bool,
) -> bool:
    """Check prices, or show what a dry run shows; say whether that was all."""
    from embedkit.errors import InputError
    from embedkit_trainer.synthesis.budget import check_prices, forecast

    if dry_run:
        found = forecast(planned, range(total), total)
        texts = [_prompt(planned, i) for i in range(min(prompts, total))]
        if as_json:
            print_json({"forecast": asdict(found), "prompts": texts})
        else:
            _print_prompts(texts)
            click.echo(f"forecast: {_forecast_text(found)}")
        return True
    if not no_budget:
        check_prices(config)
    elif config.max_cost is not None and any(m.share and m.price_input is None for m in config.models):
        raise InputError("max_cost cannot be kept without prices: set them, or take max_cost out")
    return False


def _run(work: Callable[..., T], phase: str) -> T:
    from embedkit_cli.progress import Meter
    from embedkit_trainer.interrupt import StopRequest

    with (
        Meter("answers") as meter,
        StopRequest(lambda: note("ending: waiting for the requests under way")) as stop,
    ):
        return work(
            announce=lambda found: note(f"forecast: {_forecast_text(found)}"),
            tell=lambda progress: _show(meter, phase, progress),
            stop_wanted=lambda: stop.wanted,
        )


def _show(meter: Meter, phase: str, progress: Progress) -> None:
    if not meter.shown:
        return
    if progress.done <= 1:
        meter.expect(progress.total)
    text = f"{phase} · {_money(progress.cost)} spent · {progress.tokens:,} tokens · {progress.rejected:,} rejected"
    meter.update(text, progress.done)


def _end(report: RunReport, config: SynthesisConfig, as_json: bool) -> None:
    spent = report.spent
    if not as_json:
        reasons = ", ".join(f"{name} {count:,}" for name, count in sorted(report.reasons.items()))
        click.echo(
            f"{counted(report.stored, 'answer')} stored, {report.rejected:,} rejected{f' ({reasons})' if reasons else ''}; "
            f"all in all {counted(spent.requests, 'request')}, {spent.tokens_in:,} tokens in, {spent.tokens_out:,} out, {_money(spent.cost)} spent"
        )
    if spent.failed > spent.unanswered:
        note(
            f"{counted(spent.failed - spent.unanswered, 'request')} without a usable answer: --retry-failed sends them again"
        )
    if report.stopped == "signal":
        note(f"stopped: {counted(report.left, 'request')} left; the same command goes on")
    elif report.stopped:
        ceiling = getattr(config, report.stopped)
        note(
            f"stopped at the ceiling {report.stopped} = {ceiling:,}: {counted(report.left, 'request')} left; raise it to go on"
        )
    elif report.left:
        note(f"{counted(report.left, 'request')} got no answer: the same command sends them again")
    if report.left:
        click.get_current_context().exit(_STOPPED)


def _prompt(planned: Plan, number: int) -> dict[str, str]:
    request = planned.request(number)
    return {
        "type": request.type.name,
        "template": request.template.name,
        "model": request.model.name,
        "prompt": request.prompt,
    }


def _print_prompts(texts: list[dict[str, str]]) -> None:
    for text in texts:
        click.echo(f"--- {text['type']}, {text['template']}, to {text['model']}")
        for line in text["prompt"].splitlines():
            click.echo(printable(line))


def _forecast_text(found: Forecast) -> str:
    cost = "cost unknown (no price)" if found.cost is None else f"cost {_money(found.cost)}"
    return f"{counted(found.requests, 'request')}, about {found.tokens_in:,} tokens in, {found.tokens_out:,} out, {cost}"


def _money(cost: float) -> str:
    return f"{cost:,.2f}" if cost >= 10 or not cost else f"{cost:,.4f}"


for _command in (filter_, stats, from_index):
    synth.add_command(_command)
