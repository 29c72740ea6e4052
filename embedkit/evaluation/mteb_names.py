"""Find tasks of the library mteb: by task name, by benchmark, or in a Python file of your own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embedkit.errors import InputError, MissingExtraError, UnknownNameError


def find_tasks(
    names: Sequence[str], *, langs: Sequence[str] = (), split: str | None = None
) -> list[Any]:  # fmt: skip
    """Return mteb's tasks for names of tasks, of benchmarks, or of Python files that define tasks.

    `langs` are ISO 639-3 codes (`deu`, `eng`), `split` a split's name; both narrow every task. Raises
    UnknownNameError, InputError for a task that needs more than text or has none of the languages.
    """
    mteb = import_mteb()
    found: list[Any] = []
    for name in names:
        if name.endswith(".py"):
            found += _own_tasks(Path(name))
            continue
        try:
            found.append(mteb.get_task(name))
        except KeyError:
            found += _benchmark(mteb, name)
    kept = []
    for task in found:
        if "text" not in task.metadata.modalities or len(task.metadata.modalities) > 1:
            raise InputError(
                f"the task {task.metadata.name} needs {', '.join(task.metadata.modalities)}: only text is encoded"
            )
        if not _speaks(task, langs):
            continue
        if langs:
            task.filter_languages(list(langs))
        if split is not None and split not in task.metadata.eval_splits:
            raise InputError(
                f"the task {task.metadata.name} has no split {split!r}: it is evaluated on "
                f"{', '.join(task.metadata.eval_splits)}"
            )
        if split is not None:
            task.filter_eval_splits([split])
        kept.append(task)
    if not kept:
        raise InputError(f"none of {', '.join(names)} has the languages {', '.join(langs)}: check --lang")
    return kept


def import_mteb() -> Any:
    """Return the library mteb, imported when it is needed: that takes seconds. Raises MissingExtraError."""
    try:
        import mteb
    except ImportError as e:
        raise MissingExtraError("mteb tasks", "mteb") from e
    return mteb


def _benchmark(mteb: Any, name: str) -> list[Any]:
    try:
        return list(mteb.get_benchmark(name).tasks)
    except KeyError:
        pass
    known = [str(b.name) for b in mteb.get_benchmarks()] + [str(t.metadata.name) for t in mteb.get_tasks()]
    raise UnknownNameError("mteb task or benchmark", name, known)


def _own_tasks(path: Path) -> list[Any]:
    import importlib.util

    from mteb.abstasks.abstask import AbsTask

    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise InputError(f"{path} is no Python file: give a file that defines mteb tasks")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as e:
        raise InputError(f"{path} cannot be imported: {type(e).__name__}: {e}") from e
    classes = [
        c
        for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, AbsTask) and c.__module__ == path.stem
    ]
    if not classes:
        raise InputError(
            f"{path} defines no mteb task: write a class derived from AbsTaskRetrieval, AbsTaskSTS, …"
        )
    return [c() for c in classes]


def _speaks(task: Any, langs: Sequence[str]) -> bool:
    scripts = [code for codes in task.metadata.hf_subsets_to_langscripts.values() for code in codes]
    return not langs or any(code.split("-")[0] in langs for code in scripts)
