"""Two runs in one work folder: the second is told, and what holds the lock of a dead one is nobody."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from embedkit.errors import StoreError
from embedkit_trainer.saving.lock import only_run

_HOLD = """
import sys, pathlib
from embedkit_trainer.saving.lock import only_run
with only_run(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    """While another process trains there the folder is refused; once it was killed, it is free."""
    work = tmp_path / "deep" / "work"
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(work)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(StoreError, match="another run is training in .*work"), only_run(work):
        pass
    holder.kill()
    holder.communicate()
    with only_run(work):
        pass


def test_the_other_processes_of_a_run_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process holds the lock for all of its run."""
    with only_run(tmp_path):
        monkeypatch.setenv("RANK", "1")
        with only_run(tmp_path):
            inside = True
    assert inside


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    """A file in the way is a StoreError with its path."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot write .*file"), only_run(tmp_path / "file"):
        pass
