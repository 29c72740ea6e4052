"""The command `embedkit`: find the subcommand, run it, turn every failure into one sentence and an exit code.

Exit codes: 0 done · 1 a bug in embedkit · 2 not done, one sentence says why (bad input, Ctrl-C, a problem that
`doctor` found). `embedkit --help` imports click and this file, nothing else of ours.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import click


class Entry(NamedTuple):
    """Where a subcommand lives, and its line in `embedkit --help`."""

    module: str
    attribute: str
    help: str


COMMANDS: dict[str, Entry] = {
    "index": Entry("indexing", "index", "Store a corpus as an index, or bring an index into step with it."),
    "search": Entry("searching", "search", "Search an index, or several as one, under one task or several."),
    "context": Entry("context", "context", "Print what a search finds as cited passages for a prompt."),
    "tasks": Entry("tasks", "tasks", "List the tasks a query can be asked under."),
    "embedders": Entry("embedders", "embedders", "List the installed embedders and model presets."),
    "info": Entry("inspecting", "info", "Show what an index holds and what built it."),
    "explain": Entry("inspecting", "explain", "Show what is really encoded for a query, and how it is searched."),
    "add": Entry("indexing", "add", "Add further sources to an index."),
    "delete": Entry("maintaining", "delete", "Delete documents by id, source or filter."),
    "compact": Entry("maintaining", "compact", "Write an index as one segment, without what is deleted."),
    "verify": Entry("maintaining", "verify", "Read every file of an index and compare its checksum."),
    "export": Entry("maintaining", "export", "Write an index's chunks and vectors to a Parquet file."),
    "import": Entry("maintaining", "import_", "Make an index of an exported Parquet file."),
    "migrate": Entry("maintaining", "migrate", "Embed an index again with another embedder."),
    "eval": Entry("evaluating", "evaluate", "Measure retrieval, similarity, clusters, classes … and mteb tasks."),
    "train": Entry("training", "train", "Train an embedding model: a paper's recipe, or your own config."),
    "mine": Entry("mining", "mine", "Find hard negatives for training rows."),
    "synth": Entry("synth", "synth", "Let an LLM write training data: tasks, then examples."),
    "serve": Entry("serving", "serve", "Serve indexes and embedders over HTTP, with a search page."),
    "doctor": Entry("doctor", "doctor", "Check this installation and print the repair of what is wrong."),
}  # fmt: skip


class Cli(click.Group):
    """A click group that imports a subcommand when it is run, and that never shows a traceback unasked."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module that holds the subcommand."""
        if cmd_name not in COMMANDS:
            return None
        import importlib

        entry = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(f"embedkit_cli.{entry.module}"), entry.attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{entry.module}.{entry.attribute} is no command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the subcommand; an unknown one is answered with the nearest names."""
        if args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            from embedkit.errors import UnknownNameError

            raise UnknownNameError("command", args[0], COMMANDS, "`embedkit --help` lists all.")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table, importing none of the subcommands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; a reader that has seen enough (`| head`) ends it quietly."""
        with warnings.catch_warnings():
            if not ctx.params.get("debug"):
                warnings.showwarning = _show_ours
            try:
                result = super().invoke(ctx)
                sys.stdout.flush()
            except BrokenPipeError:
                from embedkit_cli.output import discard_stdout

                discard_stdout()
                return None
        return result

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run and exit with a stable code."""
        arguments = list(sys.argv[1:] if args is None else args)
        _mend_streams()
        try:
            result = super().main(arguments, "embedkit", complete_var, standalone_mode=False, **extra)
            code = result if isinstance(result, int) else 0
        except (Exception, KeyboardInterrupt) as e:
            from embedkit_cli.failures import report

            code = report(e, debug=_debug_wanted(arguments))
        sys.exit(code)


def _mend_streams() -> None:
    """Let no text stop the output, and no file take the place of a standard stream that is closed."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # What the terminal's encoding lacks is shown as \u2026.
        sys.stdout.reconfigure(errors="backslashreplace")
    if None in (sys.stdin, sys.stdout, sys.stderr):
        # The next file opened would be number 0, 1 or 2, and a library's warning would be written into it.
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(number)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))


def _debug_wanted(arguments: Sequence[str]) -> bool:
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--debug" in options or bool(os.environ.get("EMBEDKIT_DEBUG"))


def _show_ours(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    # The commands say for themselves which instruction an embedder does not obey; libraries' warnings are
    # for developers (--debug shows them).
    if category.__module__.startswith("embedkit") and category.__name__ != "InstructionWarning":
        from embedkit_cli.output import note

        note(str(message))


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from importlib.metadata import version

    click.echo(f"embedkit {version('embedkit-retrieval')}")
    ctx.exit()


_version = click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version."
)  # fmt: skip


@click.group(cls=Cli, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--debug", is_flag=True, help="Show tracebacks and libraries' warnings (or set EMBEDKIT_DEBUG)."
)
@_version
def cli(debug: bool) -> None:
    """Index a corpus once, search it under any instruction.

    \b
    embedkit index docs/ -o docs.index
    embedkit search docs.index "how do I cancel?" --task qa
    """
    del debug


def main() -> None:
    """Run the command line."""
    run: Callable[[], Any] = cli
    run()


if __name__ == "__main__":  # `accelerate launch -m embedkit_cli.main train …`
    main()
