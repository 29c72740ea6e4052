"""Placeholders: does a row's metadata hold what its template draws from?"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from embedkit.errors import InputError
from embedkit_trainer.data.files import replaced
from embedkit_trainer.synthesis.filters.example import Dropped, Example, Outcome
from embedkit_trainer.synthesis.templates import load_templates

#: Beside rows: what the templates that wrote them draw from, by template and placeholder.
DECLARED = "placeholders.json"
Declared = Mapping[str, Mapping[str, frozenset[str]]]
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


class PlaceholderFilter:
    """Drop rows with a placeholder that their template does not declare, or with a value that it cannot have drawn.

    The templates are those of `placeholders.json` in the rows' folder or the one above, as `synth generate` writes it,
    else the shipped ones. A row that names no template is compared with all of its type's: names that none of them
    declares are then passed over, and a bare number is known where a value holds it (50: `at least 50`). Rows of a
    template or a type that is not known pass.
    """

    name: ClassVar[str] = "placeholders"
    parallel: ClassVar[bool] = False

    def __init__(self) -> None:
        self._shipped, self._types = _shipped()
        self._folders: dict[Path, Declared] = {}

    def check(self, batch: Sequence[Example]) -> list[Outcome]:
        """Return one outcome for each example. Raises InputError for a `placeholders.json` that is none."""
        return [self._check(example) for example in batch]

    def _check(self, example: Example) -> Outcome:
        metadata = example.metadata
        template = metadata.get("template")
        if template is None:
            declared, strict, whose = self._types.get(example.type), False, f"a template of {example.type}"
        else:
            declared, whose = self._declared(example.file.parent).get(str(template)), str(template)
            strict = isinstance(metadata.get("placeholders"), Mapping)
        for name, value in example.placeholders.items() if declared is not None else ():
            if declared is None or value is None:  # Parquet has a null for every key that a row lacks
                continue
            known = declared.get(name)
            if known is None:
                if strict:
                    detail = f"{whose} declares no placeholder {name!r:.80}"
                    return Dropped(example, "unknown-placeholder", detail)
            elif (said := _said(value)) not in known and (
                template is not None or said not in _numbers(known)
            ):
                detail = f"{name} is {value!r:.80}, which {whose} cannot have drawn"
                return Dropped(example, "unknown-placeholder", detail)
        return example

    def _declared(self, folder: Path) -> Declared:
        if folder not in self._folders:
            found = find_declared(folder)
            self._folders[folder] = self._shipped if found is None else _read(found)
        return self._folders[folder]


def find_declared(folder: Path) -> Path | None:
    """Return the list that holds for the rows of a folder, None where there is none beside them."""
    files = (place / DECLARED for place in (folder, folder.parent))
    return next((file for file in files if file.is_file()), None)


def write_declared(folder: Path, declared: Mapping[str, Mapping[str, Iterable[str]]]) -> None:
    """Write what templates draw from beside the rows that they wrote."""
    record = {name: {key: list(values) for key, values in drawn.items()} for name, drawn in declared.items()}
    with replaced(folder / DECLARED) as beside:
        beside.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _read(file: Path) -> Declared:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {
            name: {key: frozenset(map(str, values)) for key, values in drawn.items()}
            for name, drawn in found.items()
        }
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as e:
        raise InputError(
            f"{file} is no list of placeholders: run `embedkit synth generate` again, which writes it, or use --no-placeholders"
        ) from e


@cache
def _shipped() -> tuple[Declared, Declared]:
    """Return what the shipped templates draw from, by template and by type."""
    by_template: dict[str, Mapping[str, frozenset[str]]] = {}
    by_type: dict[str, dict[str, frozenset[str]]] = {}
    for template in load_templates():
        if template.step == "generate":
            drawn = {name: frozenset(values) for name, values in template.drawn.items()}
            by_template[template.name] = drawn
            whole = by_type.setdefault(template.type, {})
            for name, values in drawn.items():
                whole[name] = whole.get(name, frozenset()) | values
    return by_template, by_type


@cache
def _numbers(values: frozenset[str]) -> frozenset[str]:
    return frozenset(number for value in values for number in _NUMBER.findall(value))


def _said(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else None
