"""The wordings of every task's instruction, and which of them a seed is asked under."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedkit.errors import CorpusError
from embedkit.evaluation.task_switch.data import HELD_OUT_TASKS, TASKS, Seed

INSTRUCTIONS_FILE = Path(__file__).with_name("instructions.json")
WORDINGS = 5  # of the right instruction, for Robustness@10
_PLACEHOLDER = "{language}"


@dataclass(frozen=True, slots=True)
class Wordings:
    """The wordings of one task: those that training may use, those that it must not, one for each other language."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    other_languages: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Instructions:
    """All wordings; every choice depends on the seed's id and the task alone, so that it is the same in every run.

    A wording is drawn by the hash of the seed, the task and the wording itself: one added later changes the choice
    of few seeds. `language_names` maps a language to its name in English (`en`) and in others.
    """

    tasks: Mapping[str, Wordings]
    nonsense: tuple[str, ...]
    language_names: Mapping[str, Mapping[str, str]]

    def right(self, seed: Seed, task: str) -> str:
        """Return a wording that training may use (for a held-out task, which has none, one of the others)."""
        return self.several(seed, task)[0]

    def held_out(self, seed: Seed, task: str) -> str:
        """Return a wording that training must not use."""
        return self.several(seed, task)[1]

    def several(self, seed: Seed, task: str) -> tuple[str, ...]:
        """Return up to 5 different wordings: the right one, the held-out one, then two seen and one held out."""
        wordings = self._of(task)
        train, test = (_drawn(seed, task, w) for w in (wordings.train, wordings.test))
        ordered = [train[0], test[0], *train[1:3], *test[1:], *train[3:]] if train else test
        return tuple(self._filled(seed, task, w, "en") for w in ordered[:WORDINGS])

    def in_other_language(self, seed: Seed, task: str) -> str | None:
        """Return the instruction in the seed's drawn language, never English; None where the task has none."""
        wordings = self._of(task).other_languages
        codes = _drawn(seed, "language", sorted(wordings))
        return self._filled(seed, task, wordings[codes[0]], codes[0]) if codes else None

    def meaningless(self, seed: Seed) -> str:
        """Return a sentence that says nothing of what to find."""
        return _drawn(seed, "nonsense", self.nonsense)[0]

    def _of(self, task: str) -> Wordings:
        return self.tasks[_table(task)]

    def _filled(self, seed: Seed, task: str, wording: str, lang: str) -> str:
        if _PLACEHOLDER not in wording:
            return wording
        code = seed.lang_1 if task == "translation_1" else seed.lang_2
        names = self.language_names.get(code)
        if names is None:
            raise CorpusError(
                f"seed {seed.id}", f"asks for a translation into {code!r}, which language_names does not name"
            )
        return wording.replace(_PLACEHOLDER, names.get(lang, names["en"]))


def load_instructions(path: str | Path = INSTRUCTIONS_FILE) -> Instructions:
    """Read the wordings, those that come with embedkit unless `path` says otherwise. Raises CorpusError."""
    try:
        data: Any = json.loads(Path(path).read_text(encoding="utf-8"))
        tasks = {
            name: Wordings(tuple(w["train"]), tuple(w["test"]), dict(w["other_languages"]))
            for name, w in data["tasks"].items()
        }
        instructions = Instructions(
            tasks,
            tuple(data["nonsense"]),
            {code: dict(names) for code, names in data["language_names"].items()},
        )
    except (OSError, ValueError, TypeError, AttributeError) as e:
        raise CorpusError(str(path), f"cannot be read as instructions: {e}") from e
    except KeyError as e:
        raise CorpusError(str(path), f"lacks {e}: it needs tasks, nonsense and language_names") from e
    _check(str(path), instructions)
    return instructions


def _check(path: str, instructions: Instructions) -> None:
    for task in dict.fromkeys(map(_table, TASKS)):
        wordings = instructions.tasks.get(task)
        if wordings is None:
            raise CorpusError(path, f"has no wordings for the task {task!r}")
        held_out = task in HELD_OUT_TASKS
        if held_out == bool(wordings.train) or len(wordings.test) < 1 + held_out:
            needed = "two test wordings and no train one" if held_out else "train and test wordings"
            raise CorpusError(path, f"the task {task!r} needs {needed}")
    if not instructions.nonsense:
        raise CorpusError(path, "has no nonsense sentence")


def _table(task: str) -> str:
    return task.rpartition("_")[0] or task  # both translations share their wordings


def _drawn(seed: Seed, what: str, choices: Sequence[str]) -> list[str]:
    def place(choice: str) -> str:
        return hashlib.sha256("\0".join((seed.id, what, choice)).encode()).hexdigest()

    return sorted(choices, key=place)
