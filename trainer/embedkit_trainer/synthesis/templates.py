"""Prompt templates: files with a TOML head that declares every placeholder of the body.

+++
type = "short-long"
step = "generate"              # or "brainstorm"
[placeholders]
task = "task"                  # filled from the plan: task, language, language_q, language_d, count
clarity = ["clear", "ambiguous"]   # drawn anew for each request; {"clear" = 3, "ambiguous" = 1}: with weights
+++
Body with {task} and {clarity}. Other braces, as in JSON, stay as they are.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from embedkit.errors import InputError

STEPS = ("brainstorm", "generate")
#: What a placeholder can be filled from besides a list of its own.
FILLED = ("task", "language", "language_q", "language_d", "count", "passage", "query", "passages")
_SLOT = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_HEAD = re.compile(r"\A\+\+\+\s*\n(.*?)\n\+\+\+\s*\n(.*)\Z", re.DOTALL)
_LARGEST = 100_000


@dataclass(frozen=True, slots=True)
class Template:
    """Hold one template: `filled` says what the plan fills a placeholder with, `drawn` the values with weights."""

    name: str
    type: str
    step: str
    body: str
    filled: Mapping[str, str] = field(default_factory=dict)
    drawn: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def render(self, values: Mapping[str, str]) -> str:
        """Return the prompt. Raises InputError for a placeholder without a value, or a value without one."""
        names = set(_SLOT.findall(self.body))
        if missing := sorted(names - set(values)):
            raise InputError(f"template {self.name}: no value for the placeholder {missing[0]!r}")
        if unknown := sorted(set(values) - names):
            raise InputError(f"template {self.name}: there is no placeholder {unknown[0]!r} in it")
        return _SLOT.sub(lambda slot: values[slot[1]], self.body)


def load_templates(folders: Iterable[str | Path] = (), shipped: bool = True) -> list[Template]:
    """Return the shipped templates (unless they are not wanted) and those of `folders`, by name.

    A file in a folder replaces one of its name from before it.

    Raises InputError that names the file for each that cannot be used.
    """
    found: dict[str, Template] = {}
    own = Path(str(resources.files("embedkit_trainer.synthesis") / "templates"))
    for folder in (*([own] if shipped else []), *map(Path, folders)):
        if not folder.is_dir():
            raise InputError(
                f"the folder of templates {folder} does not exist: check `templates` in the config"
            )
        files = sorted(folder.glob("*.md"))
        if not files:
            raise InputError(f"the folder {folder} holds no templates: expected files named .md")
        for file in files:
            if _begins_with_head(file):  # a README may lie beside them
                found[file.stem] = read_template(file)
    return [found[name] for name in sorted(found)]


def read_template(path: Path) -> Template:
    """Read one file. Raises InputError that names the file and what is wrong in it."""
    try:
        text = path.read_text(encoding="utf-8-sig").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"template {path} cannot be read: {e}") from e
    parts = _HEAD.match(text)
    if parts is None:
        raise InputError(f"template {path} has no head: begin it with TOML between two lines of +++")
    if len(text) > _LARGEST:
        raise InputError(f"template {path} holds {len(text):,} characters: {_LARGEST:,} are the most")
    try:
        head = tomllib.loads(parts[1])
    except (tomllib.TOMLDecodeError, RecursionError) as e:
        raise InputError(f"template {path}: its head is no TOML: {e}") from e
    return _checked(path, head, parts[2].strip() + "\n")


def weights_of(values: Any) -> dict[str, float] | None:
    """Return value -> weight of a list of values or a table of weights; None where it is neither."""
    if isinstance(values, str) or not isinstance(values, list | tuple | Mapping) or not values:
        return None
    table = values if isinstance(values, Mapping) else dict.fromkeys(map(str, values), 1.0)
    if not all(
        isinstance(w, int | float) and not isinstance(w, bool) and 0 <= w < 1e9 for w in table.values()
    ):
        return None
    kept = {str(value): float(weight) for value, weight in table.items() if weight}
    return kept or None


def _begins_with_head(file: Path) -> bool:
    if file.stem.lower() != "readme":
        return True
    return file.read_bytes()[:3] == b"+++"


def _checked(path: Path, head: Mapping[str, Any], body: str) -> Template:
    unknown = sorted(set(head) - {"type", "step", "placeholders"})
    kind, step, placeholders = head.get("type"), head.get("step"), head.get("placeholders", {})
    if unknown:
        raise InputError(
            f"template {path}: unknown key {unknown[0]!r}: known are type, step and placeholders"
        )
    if not isinstance(kind, str) or not kind:
        raise InputError(f"template {path}: type is missing: name the task type it is for")
    if step not in STEPS:
        raise InputError(f"template {path}: step is {step!r}: write one of {', '.join(STEPS)}")
    if not isinstance(placeholders, dict):
        raise InputError(f"template {path}: [placeholders] must be a table")
    filled: dict[str, str] = {}
    drawn: dict[str, Mapping[str, float]] = {}
    for name, said in placeholders.items():
        weights = weights_of(said)
        if isinstance(said, str) and said in FILLED:
            filled[name] = said
        elif weights is not None:
            drawn[name] = weights
        else:
            raise InputError(
                f"template {path}: placeholder {name!r} is {said!r}: give a list of values, or one of {', '.join(FILLED)}"
            )
    slots = set(_SLOT.findall(body))
    if missing := sorted(slots - set(placeholders)):
        raise InputError(f"template {path}: {{{missing[0]}}} is not declared: add it to [placeholders]")
    if unused := sorted(set(placeholders) - slots):
        raise InputError(f"template {path}: the placeholder {unused[0]!r} is declared but not in the body")
    return Template(path.stem, kind, step, body, filled, drawn)
