"""What the commands share that send requests to an LLM: forecasts, prices, progress, what is told at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, TypeVar

import click

from embedkit_cli.output import counted, note, print_json, printable

if TYPE_CHECKING:
    from embedkit_cli.progress import Meter
    from embedkit_trainer.synthesis.budget import Forecast
    from embedkit_trainer.synthesis.plan import Plan
    from embedkit_trainer.synthesis.running import Progress, RunReport
    from embedkit_trainer.synthesis.settings import SynthesisConfig

_STOPPED = 2
T = TypeVar("T")


def begin(
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
        texts = [prompt_facts(planned, i) for i in range(min(prompts, total))]
        if as_json:
            print_json({"forecast": asdict(found), "prompts": texts})
        else:
            print_prompts(texts)
            click.echo(f"forecast: {forecast_text(found)}")
        return True
    if not no_budget:
        check_prices(config)
    elif config.max_cost is not None and any(m.share and m.price_input is None for m in config.models):
        raise InputError("max_cost cannot be kept without prices: set them, or take max_cost out")
    return False


def run_requests(work: Callable[..., T], phase: str, batch: bool = False) -> T:
    """Do the work with a progress bar, so that Ctrl-C waits for the requests under way, if they are in no batch."""
    from embedkit_cli.progress import Meter
    from embedkit_trainer.interrupt import StopRequest

    ending = "batches go on at the server" if batch else "waiting for the requests under way"
    with (
        Meter("answers") as meter,
        StopRequest(lambda: note(f"ending: {ending}")) as stop,
    ):
        return work(
            announce=lambda found: note(f"forecast: {forecast_text(found)}"),
            tell=lambda progress: _show(meter, phase, progress),
            stop_wanted=lambda: stop.wanted,
        )


def _show(meter: Meter, phase: str, progress: Progress) -> None:
    if not meter.shown:
        return
    if progress.done <= 1:
        meter.expect(progress.total)
    text = f"{phase} · {_money(progress.cost)} spent · {progress.tokens:,} tokens · {progress.rejected:,} rejected"
    if progress.batches:
        text += f" · at the server: batches {progress.batches:,}, answers {progress.answered:,}"
    meter.update(text, progress.done)


def end(report: RunReport, config: SynthesisConfig, as_json: bool) -> None:
    """Tell what came of it, and leave with exit code 2 where requests are left."""
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
    if report.unread:
        kinds = ", ".join(f"{name} {count:,}" for name, count in sorted(report.unread.items()))
        note(f"lines of the server's files that were not taken: {kinds}")
    if report.stopped == "signal" and report.under_way:
        note(
            f"stopped: {counted(report.left, 'request')} left, {report.under_way:,} of them in batches that go on at the server; "
            "the same command fetches them"
        )
    elif report.stopped == "signal":
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


def prompt_facts(planned: Plan, number: int) -> dict[str, str]:
    """Return what a dry run tells of one request."""
    request = planned.request(number)
    return {
        "type": request.type.name,
        "template": request.template.name,
        "model": request.model.name,
        "prompt": request.prompt,
    }


def print_prompts(texts: list[dict[str, str]]) -> None:
    """Print prompts as they will be sent."""
    for text in texts:
        click.echo(f"--- {text['type']}, {text['template']}, to {text['model']}")
        for line in text["prompt"].splitlines():
            click.echo(printable(line))


def forecast_text(found: Forecast) -> str:
    """Say a forecast in one line."""
    cost = "cost unknown (no price)" if found.cost is None else f"cost {_money(found.cost)}"
    return f"{counted(found.requests, 'request')}, about {found.tokens_in:,} tokens in, {found.tokens_out:,} out, {cost}"


def _money(cost: float) -> str:
    return f"{cost:,.2f}" if cost >= 10 or not cost else f"{cost:,.4f}"
