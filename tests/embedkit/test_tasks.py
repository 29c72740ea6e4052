"""Tasks: the built-in ones, a user's own, and how one is chosen."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedkit import BUILT_IN_TASKS, Task, get_task, load_tasks
from embedkit.errors import InputError, UnknownNameError
from embedkit.tasks import dump_tasks, resolve_instruction


def test_built_in_tasks() -> None:
    """Every built-in task has its own instruction and a description, under the name it is kept by."""
    assert len({t.instruction for t in BUILT_IN_TASKS.values()}) == len(BUILT_IN_TASKS) >= 20
    assert all(t.name == name and t.description for name, t in BUILT_IN_TASKS.items())


def test_nearest_names() -> None:
    """An unknown task suggests the nearest names, the user's own included."""
    with pytest.raises(UnknownNameError, match="unknown task 'bitxt': did you mean bitext") as caught:
        get_task("bitxt")
    assert caught.value.suggestions[0] == "bitext"
    with pytest.raises(UnknownNameError, match="find-recipe"):
        get_task("find-recipes", {"find-recipe": Task("find-recipe", "Find a recipe")})


def test_own_task_goes_first() -> None:
    """A user's task takes the place of a built-in one of the same name."""
    own = Task("qa", "Mine")
    assert get_task("qa", {"qa": own}) is own
    assert get_task("qa").instruction != "Mine"


def test_resolving() -> None:
    """A task's name, a Task or free text give the instruction; nothing gives None."""
    assert resolve_instruction("bitext", None) == BUILT_IN_TASKS["bitext"].instruction
    assert resolve_instruction(Task("mine", "Find it"), None) == "Find it"
    assert resolve_instruction(None, "Find {it}") == "Find {it}"
    assert resolve_instruction(None, None) is None


@pytest.mark.parametrize("task", ["qa", Task("qa", "x")])
def test_task_and_instruction(task: str | Task) -> None:
    """Both at once are refused with both values: neither silently wins."""
    with pytest.raises(InputError, match="task 'qa' and instruction 'find' are both given"):
        resolve_instruction(task, "find")


def test_empty_instruction() -> None:
    """A blank instruction is refused rather than encoded."""
    with pytest.raises(InputError, match="instruction is empty"):
        resolve_instruction(None, " \n")


@pytest.mark.parametrize(("name", "instruction"), [("", "x"), ("two words", "x"), (" qa", "x"), ("qa", " ")])
def test_bad_tasks(name: str, instruction: str) -> None:
    """A task's name is one word and its instruction is not blank."""
    with pytest.raises(InputError):
        Task(name, instruction)


def test_load_and_dump(tmp_path: Path) -> None:
    """Tasks come from TOML tables, and go out as plain records."""
    file = tmp_path / "tasks.toml"
    file.write_text(
        '[recipe]\ninstruction = "Finde ein Rezept für {x}"\n[law]\ninstruction = "b"\ndescription = "c"\n',
        "utf-8",
    )
    tasks = load_tasks(file)
    assert tasks == {"recipe": Task("recipe", "Finde ein Rezept für {x}"), "law": Task("law", "b", "c")}
    assert dump_tasks(tasks.values())[1] == {"name": "law", "instruction": "b", "description": "c"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[recipe\n", "line 1"),
        (b"[recipe]\n", r"\[recipe\]: needs instruction"),
        (b"recipe = 'Find one'\n", r"\[recipe\]: needs instruction"),
        (b"[recipe]\ninstruction = 3\n", r"\[recipe\]: needs instruction"),
        (b"[recipe]\ninstruction = 'x'\nprompt = 'y'\n", r"\[recipe\]: unknown key 'prompt'"),
        (b"[recipe]\ninstruction = 'x'\ndescription = 3\n", r"\[recipe\]: description"),
        (b"[recipe]\ninstruction = ' '\n", "'recipe' has an empty instruction"),
        (b"['two words']\ninstruction = 'x'\n", "'two words' must be one word"),
        (b"\xff\xfe", "utf-8"),
    ],
)
def test_bad_task_files(tmp_path: Path, content: bytes, message: str) -> None:
    """Each fault of a tasks file is an InputError with the file and the table, or the line."""
    file = tmp_path / "tasks.toml"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_tasks(file)
    assert "tasks.toml" in str(caught.value)


def test_absent_task_file(tmp_path: Path) -> None:
    """A file that is not there is an InputError with its path."""
    with pytest.raises(InputError, match=r"absent\.toml"):
        load_tasks(tmp_path / "absent.toml")
