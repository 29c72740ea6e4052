"""`embedkit train`: run a recipe or a config file, or show what it would do."""

from __future__ import annotations

import os
from dataclasses import asdict
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

from embedkit_cli.options import common
from embedkit_cli.output import note, print_json

if TYPE_CHECKING:
    from embedkit_trainer.config.fidelity import Fidelity
    from embedkit_trainer.config.records import RunConfig
    from embedkit_trainer.data.dry_run import Survey
    from embedkit_trainer.events import TrainReport

_STOPPED = 2
_PACKAGES = ("torch", "transformers", "peft", "accelerate")


@click.command()
@click.argument("source", metavar="[CONFIG]", required=False)
@click.option("--list", "listing", is_flag=True, help="List the recipes and their ablations.")
@click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="Override a value: stages.train.batch_size=64.",
)
@click.option("--ablation", metavar="NAME", help="Apply one of the config's ablations.")
@click.option(
    "--tiny", is_flag=True, help="Run it in miniature on the CPU: a tiny model, a slice of the data."
)
@click.option("--dry-run", is_flag=True, help="Show data, examples, lengths and steps; train nothing.")
@click.option(
    "--examples",
    type=click.IntRange(min=0),
    metavar="N",
    default=1,
    show_default=True,
    help="Rows a source that --dry-run shows.",
)
@click.option("-o", "--output", metavar="DIR", help="Where the model goes; else the config's.")
@click.option(
    "--resume/--fresh",
    "resume",
    default=True,
    show_default=True,
    help="Go on from the last checkpoint, or begin anew.",
)
@common
def train(
    *,
    source: str | None,
    listing: bool,
    overrides: tuple[str, ...],
    ablation: str | None,
    tiny: bool,
    dry_run: bool,
    examples: int,
    output: str | None,
    resume: bool,
    as_json: bool,
) -> None:
    """Train an embedding model as a config says.

    CONFIG is a TOML file or a recipe's name (--list). At the start a table compares what the paper says, what the
    config says, and what the run does. The same command goes on where a run was stopped.

    \b
    embedkit train e5-mistral-synthetic-msmarco --tiny --dry-run
    embedkit train my.toml --set stages.train.optimizer.lr=2e-5 -o models/mine
    """  # fmt: skip
    from embedkit.errors import InputError, MissingExtraError

    if listing:
        _list(as_json)
        return
    if source is None:
        raise InputError(
            "no config is given: name a recipe or a TOML file; `embedkit train --list` lists recipes"
        )
    if any(find_spec(package) is None for package in _PACKAGES):
        raise MissingExtraError("training", "train")
    from embedkit_trainer.config import fidelity
    from embedkit_trainer.config import file as config_file

    file = config_file.read_config_file(source)
    config = config_file.load_config(source, overrides, ablation, tiny, output=output)
    # As it is written, before --tiny; its problems were raised above.
    written = config_file.build_config(file, overrides, ablation, [], output=output)
    main = os.environ.get("RANK", "0") == "0"
    if tiny and main:
        _tell_stand_ins(written, config)
    from embedkit_trainer.data.dry_run import outline, survey  # imports torch: what is wrong shows before

    found: Survey | None = None
    if dry_run or os.environ.get("WORLD_SIZE", "1") == "1":
        # Several processes tokenise together, when they run: one alone would keep the others waiting.
        with _waiting("reading and tokenising the data"):
            found = survey(config, examples if dry_run else 0)
    figures = outline(config) if found is None else found.figures()
    table = fidelity.compare(file.paper, written, config, figures)
    if main and not as_json:
        _print_start(config, table, found if dry_run else None, ablation, file.ablations)
    report = None if dry_run else _run(config, resume, main, as_json)
    if main and as_json:
        print_json(_record(config, table, found, report))
    if report is not None and main and not as_json:
        _print_end(report)
    if report is not None and report.stopped:
        click.get_current_context().exit(_STOPPED)


def _run(config: RunConfig, resume: bool, main: bool, as_json: bool) -> TrainReport:
    from transformers.utils import logging

    from embedkit_cli.training_progress import TrainingMeter
    from embedkit_trainer.loop import train as run_training

    quiet: Any = logging.disable_progress_bar
    quiet()  # this command draws its own
    if not main:
        return run_training(config, fresh=not resume)
    with TrainingMeter() as meter:
        return run_training(config, meter.tell, fresh=not resume)


def _list(as_json: bool) -> None:
    from embedkit_cli.training_output import print_recipes, recipe_records
    from embedkit_trainer.config.file import list_recipes

    records = recipe_records(list_recipes())
    if as_json:
        print_json(records)
    else:
        print_recipes(records)


def _tell_stand_ins(written: RunConfig, config: RunConfig) -> None:
    from embedkit_trainer.config.tiny import stand_ins

    missing = stand_ins(written, config)
    if missing:
        note(f"{', '.join(missing)}: not there, so the shipped samples stand in")


def _waiting(text: str) -> Any:
    import sys
    from contextlib import nullcontext

    from rich.console import Console

    if not sys.stderr.isatty():
        return nullcontext()
    return Console(stderr=True, emoji=False).status(text)


def _print_start(
    config: RunConfig, table: Fidelity | None, found: Survey | None, ablation: str | None, ablations: Any
) -> None:
    from embedkit_cli.training_output import print_fidelity, print_survey

    about = ablations[ablation].get("note", "") if ablation is not None else ""
    title = config.recipe or config.name
    click.echo(f"{title}{f' ({about})' if about else ''} -> {config.output}")
    if table is not None:
        print_fidelity(table)
    if found is not None:
        print_survey(found)


def _print_end(report: TrainReport) -> None:
    if report.stopped:
        return
    best = "" if report.best is None else f", nDCG@10 {report.best:.4f} on the dev sets"
    click.echo(f"{report.folder}: {report.steps:,} steps in {report.seconds:,.1f} s{best}")
    click.echo(f"use it: embedkit index CORPUS -o INDEX --embedder {report.folder}")


def _record(
    config: RunConfig, table: Fidelity | None, found: Survey | None, report: TrainReport | None
) -> dict[str, Any]:
    return {
        "config": asdict(config),
        "fidelity": None if table is None else asdict(table),
        "survey": None if found is None else asdict(found),
        "report": None if report is None else asdict(report),
    }
