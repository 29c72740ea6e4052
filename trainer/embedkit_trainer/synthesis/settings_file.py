"""Read a synthesis from its TOML file; every problem is reported at once."""

from __future__ import annotations

import copy
import os
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from embedkit.errors import InputError
from embedkit_trainer.config.overrides import parse_override, set_value
from embedkit_trainer.config.schema import build
from embedkit_trainer.synthesis.settings import SynthesisConfig, problems_of


def load_synthesis(path: str | Path, overrides: Sequence[str] = ()) -> SynthesisConfig:
    """Return the synthesis that a TOML file describes, checked, with paths resolved from the file's folder.

    `overrides` are `key.path=value` with TOML values; models and types are entered by name. Pools are in
    OUTPUT/pools and rows in OUTPUT/rows where the file does not say. Raises InputError that names every problem.
    """
    file = Path(path).expanduser()
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"config {file} does not exist: check the path") from None
    except OSError as e:
        raise InputError(f"config {file} cannot be read: {e.strerror or e}") from e
    except UnicodeDecodeError as e:
        raise InputError(f"config {file} is not UTF-8 text: {e.reason} at byte {e.start}") from e
    except (tomllib.TOMLDecodeError, RecursionError) as e:
        raise InputError(f"config {file} is no TOML: {e}") from e
    problems: list[str] = []
    tables = copy.deepcopy(tables)
    for text in overrides:
        parsed = parse_override(text, problems)
        if parsed is not None:
            set_value(tables, *parsed, problems, f"--set {text}")
    config = build(SynthesisConfig, tables, problems)
    if not problems:  # what has the wrong form was replaced by defaults
        problems += problems_of(config)
    if len(problems) == 1:
        raise InputError(f"config {file}: {problems[0]}")
    if problems:
        listed = "; ".join(f"({i}) {problem}" for i, problem in enumerate(problems, 1))
        raise InputError(f"config {file} has {len(problems)} problems: {listed}")
    return _resolved(config, file.parent)


def _resolved(config: SynthesisConfig, base: Path) -> SynthesisConfig:
    def at(path: str) -> str:
        return os.path.normpath(base / Path(path).expanduser())

    output = at(config.output)
    return replace(
        config,
        output=output,
        pools=at(config.pools) if config.pools else str(Path(output) / "pools"),
        rows=at(config.rows) if config.rows else str(Path(output) / "rows"),
        templates=tuple(map(at, config.templates)),
    )
