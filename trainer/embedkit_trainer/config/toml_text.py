"""From dataclasses to TOML text that `config_file` reads back to the same values; the standard library only reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from embedkit_trainer.config.schema import NONE


def dump(record: Any) -> str:
    """Return a dataclass as TOML: plain values first, then a table for each dataclass inside it.

    A tuple of dataclasses becomes an array of tables. A None that is the field's default is left out; another
    None is written as "none".
    """
    lines: list[str] = []
    _table(record, "", lines)
    return "\n".join(lines).strip() + "\n"


def literal(value: Any) -> str:
    """Return one plain value, or a list or table of plain values, as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{k} = {literal(v)}' for k, v in value.items())} }}" if value else "{}"
    return str(value)


def _table(record: Any, path: str, lines: list[str]) -> None:
    inner: list[tuple[str, Any]] = []
    for f in fields(record):
        value = getattr(record, f.name)
        if is_dataclass(value) or _is_tables(value):
            inner.append((f.name, value))
        elif value is None:
            if _default(f) is not None:
                lines.append(f'{f.name} = "{NONE}"')
        else:
            lines.append(f"{f.name} = {literal(value)}")
    for name, value in inner:
        where = f"{path}.{name}" if path else name
        for item in value if isinstance(value, tuple) else (value,):
            lines.extend(["", f"[[{where}]]" if isinstance(value, tuple) else f"[{where}]"])
            _table(item, where, lines)


def _is_tables(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and is_dataclass(value[0])


def _default(f: Field[Any]) -> Any:
    return f.default_factory() if f.default_factory is not MISSING else f.default
