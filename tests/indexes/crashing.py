"""Changes of a small index that die: after a while, by SIGKILL, or at a file operation, each in a process of its own.

`python -m tests.indexes.crashing` is a process that has imported everything and forks a victim for each request.
"""

from __future__ import annotations

import gc
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .changing import CHANGES, make_base
from .conftest import HashEmbedder

ROOT = Path(__file__).resolve().parents[2]
_DIED = 77


def environment() -> dict[str, str]:
    """Return the variables of a process that imports the tests, and works on one thread so that it may fork."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "EMBEDKIT_THREADS": "1"}


@dataclass(frozen=True)
class Death:
    """How a victim ended: "done", "died" (at the file operation asked for) or "killed"; after how many, how long."""

    how: str
    operations: int
    seconds: float
    # Inodes of files forced to the disk, with their sizes, and entries of folders when those were.
    files: dict[int, int] = field(default_factory=dict)
    folders: dict[str, dict[str, int]] = field(default_factory=dict)


class Crasher:
    """Ask the forking process for victims."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.indexes.crashing"],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        change: str,
        place: Path,
        *,
        die_at: int | None = None,
        kill_after: float | None = None,
        texts: int | None = None,
        window: int = 48,
    ) -> Death:
        """Let a victim make a change, `window` chunks at a time, and end it where it is told to.

        Before its `die_at`th file operation, `kill_after` so many seconds, or where it has embedded `texts` texts.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        request = {
            "change": change,
            "place": str(place),
            "die_at": die_at,
            "kill_after": kill_after,
            "texts": texts,
            "window": window,
        }
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        told = json.loads(self._process.stdout.readline())
        files = {int(inode): size for inode, size in told.pop("files").items()}
        death = Death(**told, files=files)
        assert death.how in ("done", "died", "killed"), death.how
        return death

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


@contextmanager
def crasher() -> Iterator[Crasher]:
    """Start the forking process, and end it."""
    made = Crasher()
    try:
        yield made
    finally:
        made.close()


@dataclass(frozen=True)
class Disk:
    """What of a directory had reached the disk before a change: its entries' inodes, and the manifest."""

    entries: dict[str, dict[str, int]]
    manifest: bytes | None

    @staticmethod
    def of(place: Path) -> Disk:
        """Look at a directory."""
        folders = [place, *(p for p in place.glob("*") if p.is_dir())] if place.exists() else []
        manifest = place / "embedkit.json"
        return Disk(
            {str(f): {p.name: p.stat().st_ino for p in f.iterdir()} for f in folders},
            manifest.read_bytes() if manifest.exists() else None,
        )

    def cut_power(self, place: Path, death: Death, rng: random.Random) -> None:
        """Take from the directory some of what was not forced to the disk: entries of folders, contents of files."""
        if not place.exists():
            return
        kept = {**self.entries, **death.folders}
        old = {inode for entries in self.entries.values() for inode in entries.values()}
        for folder in sorted((p for p in place.rglob("*") if p.is_dir()), reverse=True):
            self._cut(folder, kept.get(str(folder), {}), old, death.files, rng)
        self._cut(place, kept.get(str(place), {}), old, death.files, rng)
        if str(place) not in self.entries and place.name not in death.folders.get(str(place.parent), {}):
            shutil.rmtree(place)

    def _cut(
        self, folder: Path, kept: dict[str, int], old: set[int], synced: dict[int, int], rng: random.Random
    ) -> None:
        for path in list(folder.iterdir()):
            inode, size = path.stat().st_ino, path.stat().st_size
            if kept.get(path.name) != inode and rng.random() < 0.5:
                if path.name == "embedkit.json" and self.manifest is not None:
                    path.write_bytes(self.manifest)
                elif path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            elif path.is_file() and inode not in old:
                whole = min(synced.get(inode, 0), size)
                os.truncate(path, whole if whole == size else rng.randint(whole, size))


class _Watch:
    """Count a victim's file operations below its place, note what reaches the disk, and end it at the one chosen."""

    def __init__(self, place: str, die_at: int | None, tell: int, *, sync: bool) -> None:
        self._place = place
        self._die_at = die_at
        self._tell = tell
        self._sync = os.fsync if sync else None
        self.operations = 0
        self._files: dict[int, int] = {}
        self._folders: dict[str, dict[str, int]] = {}
        self._busy = False
        os.fsync = self._fsync
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: Sequence[Any]) -> None:
        if event not in (
            "open",
            "os.rename",
            "os.remove",
            "os.mkdir",
            "os.rmdir",
            "os.truncate",
            "shutil.rmtree",
        ):
            return
        if self._busy or not str(args[0]).startswith(self._place):
            return
        # Files that are opened to be read change nothing.
        if event != "open" or args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            self._step()

    def _fsync(self, fd: Any) -> None:
        self._step()
        if self._sync is not None:
            self._sync(fd)
        self._busy = True
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if path.is_dir():
            self._folders[str(path)] = {p.name: p.stat().st_ino for p in path.iterdir()}
        else:
            found = os.fstat(fd)
            self._files[found.st_ino] = found.st_size
        self._busy = False

    def _step(self) -> None:
        if self.operations == self._die_at:
            self.tell("died")
            os._exit(_DIED)
        self.operations += 1

    def tell(self, how: str) -> None:
        """Write what was seen to the forking process."""
        self._busy = True
        told = {"how": how, "operations": self.operations, "files": self._files, "folders": self._folders}
        with os.fdopen(os.dup(self._tell), "w") as f:
            f.write(json.dumps(told))
        self._busy = False


def _die_embedding(texts: int) -> None:
    """Have the embedder kill its process where it is given more than so many texts."""
    embed, left = HashEmbedder._embed, texts

    def embed_or_die(self: HashEmbedder, given: Sequence[str]) -> Any:
        nonlocal left
        left -= len(given)
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return embed(self, given)

    HashEmbedder._embed = embed_or_die  # type: ignore[assignment, method-assign]


def _victim(request: dict[str, Any], tell: int) -> None:
    from embedkit_indexes import embedding

    embedding._WINDOW = request["window"]
    # What is forced to a disk takes its time, and decides nothing but after a power cut, which is made up.
    watch = _Watch(request["place"], request["die_at"], tell, sync=request["kill_after"] is not None)
    if request["texts"] is not None:
        _die_embedding(request["texts"])
    try:
        CHANGES[request["change"]](Path(request["place"]))
        watch.tell("done")
    except BaseException as e:
        watch.tell(f"{type(e).__name__}: {e}")
        os._exit(1)
    os._exit(0)


def _warm_up() -> None:
    """Make each change once: what is imported on the way need not be imported by every victim."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "i"
        make_base(place)
        for change in ("sync", "delete", "restore"):
            CHANGES[change](place)
    gc.collect()


def _serve() -> None:
    _warm_up()
    for line in sys.stdin:
        request = json.loads(line)
        read, write = os.pipe()
        started = time.perf_counter()
        victim = os.fork()
        if not victim:
            os.close(read)
            _victim(request, write)
        os.close(write)
        if request["kill_after"] is not None and not select.select([read], [], [], request["kill_after"])[0]:
            os.kill(victim, signal.SIGKILL)
        with os.fdopen(read) as f:
            told = f.read()
        _, status = os.waitpid(victim, 0)
        answer = (
            json.loads(told)
            if told
            else {"how": f"status {status}", "operations": -1, "files": {}, "folders": {}}
        )
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            answer = {"how": "killed", "operations": -1, "files": {}, "folders": {}}
        answer["seconds"] = time.perf_counter() - started
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
