"""What the kinds of `embedkit eval` share: their options, the line above their tables, the count of what is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedkit_cli.output import console, printable

if TYPE_CHECKING:
    from embedkit.evaluation.protocol import Advance, ProtocolName


@dataclass(frozen=True, slots=True)
class KindOptions:
    """What the command line says of an evaluation beyond retrieval."""

    protocol: ProtocolName = "one-sided"
    task_name: str | None = None
    instruction: str | None = None
    langs: tuple[str, ...] = ()
    split: str | None = None
    sample_size: int | None = None
    seed: int = 0
    per_label: int = 8
    experiments: int = 10
    lengths: str | None = None
    cache: str | None = None
    tasks_path: str | None = None
    as_json: bool = False


def print_head(record: Mapping[str, Any]) -> None:
    """Print one line: what was measured, with what, under which protocol."""
    from rich.text import Text

    told = f"instruction on {record['instructed']}" if record["instructed"] != "none" else "no instruction"
    what = ", ".join([record["kind"], *record["sources"]])
    line = f"{what}: {record['embedder']}, {record['protocol']} ({told}), {record['seconds']:.1f} s"
    console().print(Text(printable(line)))


def counter(update: Callable[[str, int], None]) -> Advance:
    """Return a function that adds up what was encoded and shows it."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        update("encoding", done)

    return advance
