"""Tasks: a name for the one sentence that tells the embedder what a query is looking for."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from embedkit.errors import InputError, UnknownNameError
from embedkit.texts import half_surrogate, is_visible


def _check_whole(text: str, what: str) -> None:
    place = half_surrogate(text)
    if place is not None:
        raise InputError(
            f"{what} holds half a surrogate pair at character {place}, which no encoding has: "
            "decode its source as UTF-8 with errors='replace'"
        )


@dataclass(frozen=True, slots=True)
class Task:
    """Name an instruction; `description` tells a person when to use it."""

    name: str
    instruction: str
    description: str = ""

    def __post_init__(self) -> None:
        if not self.name or self.name != self.name.strip() or any(c.isspace() for c in self.name):
            raise InputError(f"task name {self.name!r} must be one word, such as 'find-recipe'")
        if not is_visible(self.instruction):
            raise InputError(f"task {self.name!r} has an empty instruction: write what a query should find")
        _check_whole(self.instruction, f"the instruction of task {self.name!r}")


_BUILT_IN = (
    Task("search", "Given a web search query, retrieve relevant passages that answer the query", "web-style search; the default of instruction-trained embedders"),
    Task("qa", "Given a question, retrieve passages that answer the question", "question answering over documents"),
    Task("fact-check", "Given a claim, retrieve documents that support or refute the claim", "evidence for or against a statement"),
    Task("duplicate", "Given a question, retrieve questions that ask the same thing", "duplicate questions in a forum or help desk"),
    Task("paraphrase", "Retrieve semantically similar text", "sentences that mean the same (STS)"),
    Task("entailment", "Given a premise, retrieve a hypothesis that is entailed by the premise", "what follows from a statement (NLI)"),
    Task("contradiction", "Given a premise, retrieve a hypothesis that contradicts the premise", "what a statement rules out (NLI)"),
    Task("bitext", "Retrieve translations of the given text in another language", "the same sentence in other languages"),
    Task("topic", "Retrieve texts about the same topic as the given text", "more on the same subject, answer or not"),
    Task("intent", "Given a user's request, retrieve requests with the same intent", "routing of messages and commands"),
    Task("sentiment", "Retrieve texts that express the same sentiment as the given text", "reviews of the same mood"),
    Task("code", "Given a question or description, retrieve code that does it", "functions, scripts, queries and commands"),
    Task("code-to-text", "Given a piece of code, retrieve a description of what it does", "documentation of a function"),
    Task("citation", "Given the title of a scientific paper, retrieve papers that it would cite", "related work"),
    Task("argument", "Given a claim, retrieve arguments that support it", "reasons for a position"),
    Task("counter-argument", "Given an argument, retrieve arguments that refute it", "reasons against a position"),
    Task("summary", "Given a text, retrieve its summary", "abstracts and headlines of long texts"),
    Task("title", "Given a title, retrieve the article it belongs to", "headline to article"),
    Task("entity", "Given an entity name, retrieve its description", "encyclopaedia entries"),
    Task("medical", "Given a medical question, retrieve passages that answer it for a patient", "consumer health questions"),
)  # fmt: skip
BUILT_IN_TASKS: Mapping[str, Task] = {task.name: task for task in _BUILT_IN}


def get_task(name: str, extra: Mapping[str, Task] | None = None) -> Task:
    """Return the task called `name`: from `extra` (a user's, an index's) first, then the built-in ones.

    Raises UnknownNameError with the nearest names.
    """
    if extra and name in extra:
        return extra[name]
    if name in BUILT_IN_TASKS:
        return BUILT_IN_TASKS[name]
    raise UnknownNameError(
        "task",
        name,
        [*BUILT_IN_TASKS, *(extra or ())],
        "`embedkit tasks` lists all; --instruction takes free text.",
    )


def resolve_instruction(task: str | Task | None, instruction: str | None) -> str | None:
    """Return the instruction that `task` or `instruction` stands for; None where both are None.

    Raises InputError where both are given, or the instruction is empty or holds half a surrogate pair.
    """
    if task is not None and instruction is not None:
        name = task if isinstance(task, str) else task.name
        raise InputError(f"task {name!r} and instruction {instruction!r} are both given: choose one")
    if task is not None and not isinstance(task, str | Task):
        raise InputError(f"task {task!r} is {type(task).__name__}: give a task's name or a Task")
    if instruction is not None:
        if not isinstance(instruction, str):
            raise InputError(f"instruction {instruction!r} is {type(instruction).__name__}, not str")
        if not is_visible(instruction):
            raise InputError("the instruction is empty: write what the query should find, or leave it out")
        _check_whole(instruction, "the instruction")
        return instruction
    if task is None:
        return None
    return (get_task(task) if isinstance(task, str) else task).instruction


def load_tasks(path: str | Path) -> dict[str, Task]:
    """Read tasks from a TOML file of tables `[name]` with `instruction` and, if wanted, `description`.

    Raises InputError naming the file and the table that is wrong.
    """
    file = Path(path)
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise InputError(f"tasks file {file}: {e}") from e
    tasks: dict[str, Task] = {}
    for name, table in data.items():
        if not isinstance(table, dict) or not isinstance(table.get("instruction"), str):
            raise InputError(f'tasks file {file}, [{name}]: needs instruction = "…"')
        unknown = set(table) - {"instruction", "description"}
        if unknown:
            raise InputError(f"tasks file {file}, [{name}]: unknown key {sorted(unknown)[0]!r}")
        if not isinstance(table.get("description", ""), str):
            raise InputError(f'tasks file {file}, [{name}]: description must be text: description = "…"')
        try:
            tasks[name] = Task(name, table["instruction"], table.get("description", ""))
        except InputError as e:
            raise InputError(f"tasks file {file}: {e}") from e
    return tasks


def dump_tasks(tasks: Iterable[Task]) -> list[dict[str, str]]:
    """Return tasks as plain records, for a manifest or JSON output."""
    return [{"name": t.name, "instruction": t.instruction, "description": t.description} for t in tasks]
