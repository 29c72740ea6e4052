"""The paper-fidelity table: what the paper says, what the config says, and what the run really does.

A recipe's `[paper.values]` hold the paper's value for a key path, `[paper.figures]` its figures for what follows from
the run (trained parameters, steps, negatives per query). A value is plain, or "not published", or a table:
`value` what is compared (`low` and `high`: a range), `text` what the paper says in words, `note` a remark.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from embedkit_trainer.config.records import RunConfig

NOT_PUBLISHED = "not published"
#: same: as in the paper · differs: not as in the paper · ours: the paper is silent, or was not read so far ·
#: open: not known before the run
Verdict = Literal["same", "differs", "ours", "open"]
_ABSENT = object()
_KEYS = ("value", "low", "high", "text", "note")


@dataclass(frozen=True, slots=True)
class FidelityRow:
    """Hold one line of the table: `setting` is a key path or a figure's name; values as they are printed.

    `verdict` compares paper and config, for figures (which no config holds) paper and run. `changed` says that the
    run does something else than the config asks for, under `--tiny` for one.
    """

    setting: str
    paper: str
    config: str
    effective: str
    verdict: Verdict
    changed: bool
    note: str = ""


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Hold a run's table and the paper that it is compared with."""

    title: str
    citation: str
    result: str
    rows: tuple[FidelityRow, ...]

    @property
    def differences(self) -> list[FidelityRow]:
        """The rows where the config is not as in the paper, or the run not as in the config."""
        return [row for row in self.rows if row.verdict == "differs" or row.changed]


def compare(
    paper: Mapping[str, Any],
    config: RunConfig,
    effective: RunConfig,
    figures: Mapping[str, Any] | None = None,
) -> Fidelity | None:
    """Return the table of a run, None where its file names no paper.

    `config` is the run as written, overrides included, `effective` the one that is run (another under `--tiny`);
    `figures` adds what follows from the data and the model (`dry_run.Survey.figures`, or `dry_run.outline`).
    """
    if not paper:
        return None
    figures = figures or {}
    rows = [_setting(key, said, config, effective, figures) for key, said in paper.get("values", {}).items()]
    rows += [_figure(key, said, figures) for key, said in paper.get("figures", {}).items()]
    return Fidelity(
        str(paper.get("title", "")), str(paper.get("citation", "")), str(paper.get("result", "")), tuple(rows)
    )


def paper_problems(paper: Mapping[str, Any], config: RunConfig) -> Iterator[str]:
    """Yield what is wrong with a `[paper]` table: a key path that leads nowhere, a value of no known form."""
    for table in ("values", "figures"):
        for key, said in paper.get(table, {}).items():
            if isinstance(said, Mapping) and (unknown := set(said) - set(_KEYS)):
                yield f"paper.{table}.{key} has the unknown key {sorted(unknown)[0]!r}: known are {', '.join(_KEYS)}"
            if table == "values" and look_up(config, key) is _ABSENT:
                yield f"paper.values.{key} is no key path of the run"


def look_up(config: RunConfig, path: str) -> Any:
    """Return the value at a key path; stages and sources by name. A marker that equals nothing where there is none."""
    here: Any = config
    for key in path.split("."):
        if isinstance(here, tuple):
            here = next((item for item in here if getattr(item, "name", None) == key), _ABSENT)
        else:
            here = getattr(here, key, _ABSENT)
        if here is _ABSENT:
            return _ABSENT
    return here


def _setting(
    key: str, said: Any, config: RunConfig, effective: RunConfig, figures: Mapping[str, Any]
) -> FidelityRow:
    asked, done = look_up(config, key), look_up(effective, key)
    done = figures.get(key, done)
    verdict = _judge(said, asked)
    note = said.get("note", "") if isinstance(said, Mapping) else ""
    return FidelityRow(key, _said(said), _show(asked), _show(done), verdict, not _equal(asked, done), note)


def _figure(key: str, said: Any, figures: Mapping[str, Any]) -> FidelityRow:
    done = figures.get(key)
    verdict: Verdict = "open" if done is None else _judge(said, done)
    note = said.get("note", "") if isinstance(said, Mapping) else ""
    shown = "not known yet" if done is None else _show(done)
    return FidelityRow(key, _said(said), "", shown, verdict, False, note)


def _judge(said: Any, value: Any) -> Verdict:
    if said == NOT_PUBLISHED:
        return "ours"
    if not isinstance(said, Mapping):
        return "same" if _equal(said, value) else "differs"
    if "value" in said:
        return "same" if _equal(said["value"], value) else "differs"
    if "low" in said and "high" in said:
        inside = isinstance(value, int | float) and said["low"] <= value <= said["high"]
        return "same" if inside else "differs"
    return "ours" if said.get("note") == "our choice" else "differs"


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return list(a) == list(b)
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def _said(said: Any) -> str:
    if not isinstance(said, Mapping):
        return _show(said)
    return str(said["text"]) if "text" in said else _show(said.get("value"))


def _show(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_show, value))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"
    words = {None: "none", True: "true", False: "false", _ABSENT: "–"}
    return words.get(value, str(value).replace("\n", "\\n"))
