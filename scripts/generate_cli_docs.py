"""Write docs/cli.md from the commands themselves: `python scripts/generate_cli_docs.py [--check]`."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import click

from embedkit_cli.main import COMMANDS, cli

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
HEAD = """\
# The command line

This page is generated from the commands (`python scripts/generate_cli_docs.py`): do not edit it.

Results go to stdout, remarks (`note: …`), errors (`error: …`) and progress to stderr; progress is shown on a
terminal alone, but for `train`, which writes a line now and then elsewhere. Every command that prints results prints them as JSON with `--json`.

| exit code | meaning |
| --- | --- |
| 0 | done |
| 1 | a bug in embedkit; run the same command with `--debug` and report it |
| 2 | not done, and one sentence says why: bad input, a full disk, Ctrl-C, a problem that `doctor` found; nothing that was stored is lost |

| variable | meaning |
| --- | --- |
| `EMBEDKIT_TASKS` | TOML file of your own tasks, where `--tasks` is not given |
| `EMBEDKIT_THREADS` | threads that FAISS, OpenVINO and torch may use; else every CPU the process may run on |
| `EMBEDKIT_CACHE` | folder in which embedkit makes its cache; else `$XDG_CACHE_HOME` or `~/.cache` |
| `EMBEDKIT_TRUST_REMOTE_CODE` | `1` lets `search` run a model's own code where an index was built with `trust_remote_code` |
| `EMBEDKIT_API_KEY` | a key that requests to `embedkit serve` must bear |
| `EMBEDKIT_DEBUG` | show tracebacks, as `--debug` does |
| `OPENAI_API_KEY`, `OPENAI_BASE_URL` | key and address for the `openai` embedder |

A task's name is looked up in the file first, then in the index, then among the built-in tasks.
"""


def render() -> str:
    """Return the page's text."""
    root = click.Context(cli, info_name="embedkit")
    parts = [HEAD]
    for name in COMMANDS:
        command = cli.get_command(root, name)
        if command is None:
            raise LookupError(name)
        parts.append(_section(command, click.Context(command, info_name=name, parent=root)))
    return "\n".join(parts)


def _section(command: click.Command, context: click.Context) -> str:
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [f"## {context.command_path}", "", f"```\n{context.command_path} {usage}\n```", ""]
    lines += [_prose(command.help or ""), "", "| option | meaning |", "| --- | --- |"]
    for parameter in command.params:
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record is not None:
            lines.append(f"| `{_cell(record[0])}` | {_cell(record[1])} |")
    if isinstance(command, click.Group):
        lines = lines[:-3]  # a group has no options of its own
        for name in command.commands:
            lines += [
                "",
                _section(
                    command.commands[name],
                    click.Context(command.commands[name], info_name=name, parent=context),
                ),
            ]
    return "\n".join(lines).rstrip("\n") + "\n"


def _prose(text: str) -> str:
    blocks = []
    for block in inspect.cleandoc(text).split("\n\n"):
        if block.startswith("\b"):
            blocks.append("```\n" + block.removeprefix("\b").strip("\n") + "\n```")
        else:
            blocks.append(" ".join(block.split()))
    return "\n\n".join(blocks)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").strip()


def main() -> None:
    """Write the page, or with --check say whether it is up to date."""
    text = render()
    if "--check" not in sys.argv[1:]:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        sys.exit("docs/cli.md is out of date: run python scripts/generate_cli_docs.py")


if __name__ == "__main__":
    main()
