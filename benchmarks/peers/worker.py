"""Build or serve one tool's index in its own process; what index_peers.py starts in each tool's environment.

    python worker.py '{"do": "build" or "serve", "tool": ..., "setting": {...}, "base": ..., "folder": ..., ...}'

`TOOL_tool.py` beside this file holds `build(base, folder, setting)` and `Searcher(base, folder, setting)` with
`search(queries, k, effort)` -> int64 [queries, k], `batches` (takes several queries at once) and `files` (what it
serves from, besides its folder). Only NumPy is needed here. Serving, it reads one JSON object a line and answers one.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import mmap
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

K = 10


def _status(pid: int | str = "self") -> dict[str, int]:
    """Return VmRSS, RssAnon, RssFile ... of a process, in bytes."""
    out: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.endswith(" kB"):
            name, value = line.split(":")
            out[name] = int(value[:-3]) * 1024
    return out


def _files(paths: list[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        found += [f for f in path.rglob("*") if f.is_file()] if path.is_dir() else [path]
    return [f for f in found if f.stat().st_size]


def evict(paths: list[Path]) -> None:
    """Ask the system to drop the cached pages of these files."""
    for file in _files(paths):
        with contextlib.suppress(OSError), file.open("rb") as f:
            os.fsync(f.fileno())
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached(paths: list[Path]) -> int:
    """Return how many bytes of these files the system's page cache holds, by mincore(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    pages = 0
    for file in _files(paths):
        with file.open("rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            view = np.frombuffer(mapped, dtype=np.uint8)
            flags = ctypes.create_string_buffer(-(-len(view) // mmap.PAGESIZE))
            if libc.mincore(view.ctypes.data, len(view), flags) == 0:
                pages += int((np.frombuffer(flags, dtype=np.uint8) & 1).sum())
            del view
    return pages * mmap.PAGESIZE


def _cpu() -> float:
    """Return the CPU seconds of this process, all its threads and ended children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _build(tool: Any, order: dict[str, Any]) -> None:
    base = np.load(order["base"], mmap_mode="r")[: order["rows"]]
    folder = Path(order["folder"])
    wall, cpu = time.perf_counter(), _cpu()
    # What an earlier build left for this one (shared k-means) is told as [wall, CPU] seconds, and counts.
    shared = tool.build(base, folder, order["setting"]) or [0.0, 0.0]
    answer = {
        "wall": time.perf_counter() - wall + shared[0],
        "cpu": _cpu() - cpu + shared[1],
        "peak_rss": _status()["VmHWM"],
    }
    print(json.dumps(answer), flush=True)


class _Server:
    def __init__(self, tool: Any, order: dict[str, Any]) -> None:
        self.queries = np.ascontiguousarray(np.load(order["queries"], mmap_mode="r")[: order["asked"]])
        self.truth = np.load(order["truth"])[: order["asked"], :K]
        self.folder = Path(order["folder"])
        self.paths = [self.folder]
        if order["cold"]:
            evict(self.paths)
        self.before = _status()
        wall = time.perf_counter()
        self.searcher = tool.Searcher(Path(order["base"]), self.folder, order["setting"])
        self.opened = time.perf_counter() - wall
        self.paths += [Path(p) for p in self.searcher.files]
        wall = time.perf_counter()
        self.searcher.search(self.queries[:1], K, order["effort"])
        self.first = time.perf_counter() - wall
        if order["cold"]:
            # A tool that has read its file into memory of its own no longer needs the pages it was read through:
            # left there, they would be counted twice. Mapped pages stay.
            evict(self.paths)

    def facts(self) -> dict[str, Any]:
        return {
            "open_seconds": self.opened,
            "first_query_seconds": self.first,
            "batches": self.searcher.batches,
        }

    def search(self, effort: dict[str, Any], count: int, batch: bool) -> dict[str, Any]:
        """Time `count` queries, one at a time or all at once, and compare with the exact answers."""
        queries = self.queries[:count]
        search = self.searcher.search
        found = np.full((count, K), -1, dtype=np.int64)
        wall, cpu = time.perf_counter(), _cpu()
        if batch:
            found = search(queries, K, effort)
        else:
            for i in range(count):
                found[i] = search(queries[i : i + 1], K, effort)[0]
        wall, cpu = time.perf_counter() - wall, _cpu() - cpu
        right = sum(len(np.intersect1d(a, b)) for a, b in zip(found, self.truth[:count], strict=True))
        return {"wall": wall / count, "cpu": cpu / count, "recall": right / (count * K)}

    def memory(self) -> dict[str, int]:
        """Return what the process holds, and what the page cache holds of the files it serves from."""
        now = _status()
        return {
            "rss": now["VmRSS"],
            "anonymous": now["RssAnon"],
            "mapped": now["RssFile"],
            "interpreter": self.before["VmRSS"],
            "interpreter_anonymous": self.before["RssAnon"],
            "cached": cached(self.paths),
        }


def _serve(tool: Any, order: dict[str, Any]) -> None:
    if order.get("core") is not None:
        # One core, so that no tool serves a query with two.
        os.sched_setaffinity(0, {order["core"]})
    server = _Server(tool, order)
    print(json.dumps(server.facts()), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["do"] == "memory":
            answer: dict[str, Any] = server.memory()
        else:
            answer = server.search(asked["effort"], asked["count"], asked["batch"])
        print(json.dumps(answer), flush=True)


def main() -> None:
    """Do what the one argument says."""
    order = json.loads(sys.argv[1])
    # Some tools print what they do; only answers may reach the reader.
    answers = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(answers, "w", buffering=1)
    tool = importlib.import_module(f"{order['tool']}_tool")
    (_build if order["do"] == "build" else _serve)(tool, order)


if __name__ == "__main__":
    main()
