"""Read a run's TOML file, or a shipped recipe by name, into a RunConfig; every problem is reported at once."""

from __future__ import annotations

import copy
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from embedkit.errors import InputError, UnknownNameError
from embedkit_trainer.config.checks import check_config
from embedkit_trainer.config.overrides import drop_item, parse_override, set_value
from embedkit_trainer.config.records import (
    DevConfig,
    ModelConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    TeacherConfig,
)
from embedkit_trainer.config.schema import build, suggest
from embedkit_trainer.config.toml_text import dump

#: Tables of a file that are no part of the run: what the paper says, and named sets of overrides.
_ASIDE = ("paper", "ablations")
#: Keys of an ablation that are no key path.
_ABLATION_KEYS = ("note", "drop")
_RECIPES = "recipes"


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """Hold a parsed file: where it is, the run's tables, the paper's values and the ablations.

    `base` is the folder that relative paths count from: the file's own, the current one for a recipe.
    """

    path: Path
    base: Path
    recipe: str | None
    tables: Mapping[str, Any]
    paper: Mapping[str, Any]
    ablations: Mapping[str, Mapping[str, Any]]


def load_config(
    path_or_name: str | Path,
    overrides: Sequence[str] = (),
    ablation: str | None = None,
    tiny: bool = False,
    *,
    output: str | Path | None = None,
) -> RunConfig:
    """Return the run that a TOML file or a recipe describes, checked, paths resolved.

    `overrides` are `key.path=value` with TOML values, applied after the ablation. `tiny` swaps in a tiny model and
    slices of the data (`tiny.shrink`). `output` overrides the file's, relative to the current folder.
    Raises InputError that names every problem with its key path.
    """
    file = read_config_file(path_or_name)
    problems: list[str] = []
    config = build_config(file, overrides, ablation, problems, output=output, tiny=tiny)
    problems += check_config(config, need_data=not tiny)
    _refuse(file, problems)
    if tiny:
        from embedkit_trainer.config.tiny import shrink

        config = shrink(config, Path(config.work or "."))
    return config


def read_config_file(path_or_name: str | Path) -> ConfigFile:
    """Parse a file or recipe without building the run. Raises InputError, UnknownNameError for a recipe."""
    path, recipe = _find(path_or_name)
    try:
        # Notepad begins UTF-8 with a mark that TOML does not know.
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as e:
        raise InputError(f"config {path} cannot be read: {e.strerror or e}") from e
    except UnicodeDecodeError as e:
        raise InputError(f"config {path} is not UTF-8 text: {e.reason} at byte {e.start}") from e
    except tomllib.TOMLDecodeError as e:
        raise InputError(f"config {path} is no TOML: {e}") from e
    except RecursionError:
        raise InputError(f"config {path} is no config: it is nested too deeply") from None
    aside = {name: tables.pop(name, {}) for name in _ASIDE}
    ablations = aside["ablations"]
    wrong = [f"[{name}] must be a table" for name, value in aside.items() if not isinstance(value, dict)]
    if not wrong:
        wrong = [f"ablations.{n} must be a table" for n, v in ablations.items() if not isinstance(v, dict)]
    if wrong:
        raise InputError(f"config {path}: {'; '.join(wrong)}")
    _fill_names(tables)
    base = Path() if recipe else path.parent
    return ConfigFile(path, base, recipe, tables, aside["paper"], ablations)


def build_config(
    file: ConfigFile,
    overrides: Sequence[str],
    ablation: str | None,
    problems: list[str],
    *,
    output: str | Path | None = None,
    tiny: bool = False,
) -> RunConfig:
    """Return the run of a parsed file; `problems` gets a line for each thing that is wrong with its form."""
    tables = copy.deepcopy(dict(file.tables))
    if ablation is not None:
        _ablate(tables, file, ablation, problems)
    for text in overrides:
        parsed = parse_override(text, problems)
        if parsed is not None:
            set_value(tables, *parsed, problems, f"--set {text}")
    config = build(RunConfig, tables, problems)
    recipe = config.recipe or file.recipe
    if ablation is not None and file.recipe:
        recipe = f"{file.recipe}, ablation {ablation}"
    name = config.name if "name" in tables else file.recipe or file.path.stem
    suffix = (f"-{ablation}" if ablation else "") + ("-tiny" if tiny else "")
    target = str(output) if output is not None else config.output.strip()
    if output is None and target:
        target = _resolved(file.base, target + suffix)
    work = _resolved(file.base, config.work + suffix) if config.work else target.rstrip("/") + ".work"
    config = replace(config, recipe=recipe, name=name, output=target, work=work)
    return _with_licences(_resolve_inputs(config, file.base))


def list_recipes() -> dict[str, ConfigFile]:
    """Return the shipped recipes by name, sorted."""
    folder = Path(str(resources.files("embedkit_trainer") / _RECIPES))
    return {path.stem: read_config_file(path.stem) for path in sorted(folder.glob("*.toml"))}


def to_toml(config: RunConfig, relative_to: Path | None = None) -> str:
    """Return the effective run as TOML that `load_config` reads back to an equal one.

    With `relative_to`, the folder that the text will lie in, paths are written relative to it: then the file means
    the same from there, and tells nobody where on a machine it was.
    """
    return dump(config if relative_to is None else _map_paths(config, lambda p: _relative(p, relative_to)))


def from_toml(text: str, base: Path = Path()) -> RunConfig:
    """Return the run of a text that `to_toml` wrote; paths count from `base`. Raises InputError."""
    problems: list[str] = []
    config = _resolve_inputs(build(RunConfig, tomllib.loads(text), problems), base)
    if problems:
        raise InputError(f"the config has {len(problems)} problems: {'; '.join(problems)}")
    work = _resolved(base, config.work) if config.work else None
    return replace(config, output=_resolved(base, config.output), work=work)


def _find(path_or_name: str | Path) -> tuple[Path, str | None]:
    text = str(path_or_name)
    path = Path(text).expanduser()
    if path.is_dir():
        raise InputError(f"config {path} is a folder: name the TOML file")
    if path.is_file():
        return path, None
    if path.suffix == ".toml" or path.name != text:
        raise InputError(f"config {path} does not exist: check the path, or name a recipe")
    folder = Path(str(resources.files("embedkit_trainer") / _RECIPES))
    recipe = folder / f"{text}.toml"
    if not recipe.is_file():
        names = [p.stem for p in folder.glob("*.toml")]
        raise UnknownNameError(
            "recipe", text, names, "A file's name ends in .toml; `embedkit train --list` lists recipes."
        )
    return recipe, text


def _fill_names(tables: dict[str, Any]) -> None:
    """Give stages and sources without a name one, so that overrides and messages can call them by it."""
    stages = tables.get("stages")
    stages = [s for s in stages if isinstance(s, dict)] if isinstance(stages, list) else []
    for i, stage in enumerate(stages):
        stage.setdefault("name", "train" if len(stages) == 1 else f"stage-{i + 1}")
        sources = stage.get("sources")
        for source in sources if isinstance(sources, list) else ():
            if isinstance(source, dict):
                _name_source(source)


def _name_source(source: dict[str, Any]) -> None:
    if not source.get("name") and isinstance(path := source.get("path"), str) and path:
        source["name"] = Path(path).name.split(".")[0] or str(source.get("format", "rows"))


def _ablate(tables: dict[str, Any], file: ConfigFile, ablation: str, problems: list[str]) -> None:
    if ablation not in file.ablations:
        problems.append(f"there is no ablation {ablation!r}: {suggest(ablation, file.ablations)}")
        return
    changes = file.ablations[ablation]
    origin = f"ablations.{ablation}"
    for path in changes.get("drop", ()):
        drop_item(tables, path, problems, origin)
    for path, value in changes.items():
        if path not in _ABLATION_KEYS:
            set_value(tables, path, copy.deepcopy(value), problems, origin)
    _fill_names(tables)


def _refuse(file: ConfigFile, problems: Sequence[str]) -> None:
    what = f"recipe {file.recipe}" if file.recipe else f"config {file.path}"
    if len(problems) == 1:
        raise InputError(f"{what}: {problems[0]}")
    if problems:
        listed = "; ".join(f"({i}) {problem}" for i, problem in enumerate(problems, 1))
        raise InputError(f"{what} has {len(problems)} problems: {listed}")


def _resolve_inputs(config: RunConfig, base: Path) -> RunConfig:
    def resolve(path: str) -> str:
        return _resolved(base, path)

    return _map_inputs(config, resolve, lambda name: _existing(base, name))


def _map_paths(config: RunConfig, change: Any) -> RunConfig:
    config = _map_inputs(config, change, lambda name: change(name) if Path(name).exists() else name)
    return replace(config, output=change(config.output), work=change(config.work) if config.work else None)


def _map_inputs(config: RunConfig, path: Any, name: Any) -> RunConfig:
    """Apply `path` to every path that is read, `name` to what is a folder or a hub id."""

    def source(s: SourceConfig) -> SourceConfig:
        return replace(s, path=path(s.path)) if s.path else s

    def teacher(t: TeacherConfig | None) -> TeacherConfig | None:
        return replace(t, embedder=name(t.embedder)) if t is not None and t.embedder else t

    def stage(s: StageConfig) -> StageConfig:
        return replace(s, sources=tuple(map(source, s.sources)), teacher=teacher(s.teacher))

    def dev(d: DevConfig | None) -> DevConfig | None:
        return replace(d, folders=tuple(map(path, d.folders))) if d is not None else None

    model: ModelConfig = config.model
    if model.name:
        model = replace(model, name=name(model.name))
    return replace(config, model=model, stages=tuple(map(stage, config.stages)), dev=dev(config.dev))


def _resolved(base: Path, path: str) -> str:
    return os.path.normpath(base / Path(path).expanduser())


def _with_licences(config: RunConfig) -> RunConfig:
    """Give each source that names no licence its publisher's, where that is known."""
    from embedkit_trainer.data.formats.registry import FORMATS

    def licensed(s: SourceConfig) -> SourceConfig:
        known = FORMATS[s.format].licence if s.format in FORMATS else ""
        return replace(s, licence=s.licence or known)

    stages = tuple(replace(t, sources=tuple(map(licensed, t.sources))) for t in config.stages)
    return replace(config, stages=stages)


def _existing(base: Path, name: str) -> str:
    """Return the path of a folder that exists, or that is written as one; a hub id or an embedder's name stays."""
    written = name.startswith((".", "/", "~")) or Path(name).is_absolute()
    return _resolved(base, name) if written or (base / name).exists() else name


def _relative(path: str, folder: Path) -> str:
    try:
        return os.path.relpath(path, folder)
    except ValueError:  # another drive on Windows
        return path
