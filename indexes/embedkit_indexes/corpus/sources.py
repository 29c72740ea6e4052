"""From the sources a user names to the files that are read."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from embedkit.errors import CorpusError, InputError
from embedkit_indexes.corpus.formats import format_of
from embedkit_indexes.corpus.options import Problem, ReadOptions
from embedkit_indexes.corpus.streams import STDIN, stdin_holds_objects

JUNK = frozenset(["node_modules", "bower_components", "__pycache__", "__MACOSX", "venv", "site-packages"])
_INDEX = "embedkit.json"
# All that an index holds until its first build is done: `embedkit index . -o here` walks over it.
_UNFINISHED = re.compile(r"(segment|embedding)-[0-9a-f]+|deleted-[0-9a-f]+\.bits|writer\.lock")
_BEIR_CORPUS = ("corpus.jsonl", "corpus.jsonl.gz")
_BEIR_BESIDE = ("queries.jsonl", "queries.jsonl.gz", "qrels", "qrels.tsv", "qrels.tsv.gz")


class File(NamedTuple):
    """A file to read; `name` is what ids are made of, `path` is None for standard input."""

    path: Path | None
    name: str
    format: str
    code: str | None = None


def checked(sources: Sequence[str | Path]) -> list[Path | None]:
    """Return the sources as paths, None for "-"; raise CorpusError for one that cannot be opened."""
    if isinstance(sources, str | Path):
        sources = [sources]
    if not sources:
        raise InputError("no source was given: name files, folders or '-' for standard input")
    paths: list[Path | None] = []
    for source in sources:
        if not str(source):
            raise InputError("a source has an empty name: give a file or a folder, '.' for the current one")
        path = None if str(source) == "-" else Path(source)
        if path is not None:
            _check(path)
        paths.append(path)
    if paths.count(None) > 1:
        raise InputError("standard input '-' was given twice: give it once")
    if None in paths and sys.stdin is None:
        raise InputError("standard input '-' is closed: pipe the documents in, or name files")
    return paths


def as_text(name: str) -> str:
    """Return a file's name as UTF-8 text; a byte that is none (old encodings on Linux) as `\\xe9`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def lies_in(source: str, place: str) -> bool:
    """Say whether a document's source is this file or folder, or lies in it, both written from the same folder."""
    if place == os.curdir:
        return not Path(source).is_absolute() and not source.startswith(os.pardir + os.sep)
    return source == place or source.startswith(place.rstrip(os.sep) + os.sep)


def _check(path: Path) -> None:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            next(os.scandir(path), None)
        elif stat.S_ISREG(mode):
            path.open("rb").close()
        elif not stat.S_ISFIFO(mode):  # a pipe is opened but once: its writer ends with its first reader
            raise CorpusError(
                str(path), "a device or socket: name a file or a folder, or '-' for standard input"
            )
    except FileNotFoundError:
        if address := re.fullmatch(r"([a-z]{2,}:/)([^/].*)", str(path)):
            raise CorpusError(
                "/".join(address.groups()), "addresses are not read: save it as a file"
            ) from None
        raise CorpusError(str(path), "no such file or folder") from None
    except PermissionError:
        raise CorpusError(str(path), "no permission to read it") from None
    except OSError as error:
        raise CorpusError(str(path), f"cannot be read: {error.strerror}") from None


def files(
    sources: Sequence[Path | None], options: ReadOptions, base: Path | None = None
) -> Iterator[File | Problem]:
    """Yield every file of the sources, folders in sorted order; a Problem for one that is left out.

    A file's name is its path in `base`, else in the one folder given, or in the folder that holds all sources.
    """
    base = base or base_of(sources)
    for source in sources:
        if source is None:
            yield File(None, STDIN, options.format or ("jsonl" if stdin_holds_objects() else "text"))
        elif source.is_dir():
            yield from _walk(source, base, options)
        else:
            try:
                yield _file(source, base, options, named=True)
            except Problem as problem:
                yield problem


def base_of(sources: Sequence[Path | None]) -> Path:
    """Return the one folder given, or the one that holds all sources."""
    folders = [Path(os.path.abspath(p)) for p in sources if p is not None]  # noqa: PTH100 - keeps links
    if not folders:
        return Path.cwd()
    if len(folders) == 1:
        return folders[0] if folders[0].is_dir() else folders[0].parent
    common = Path(os.path.commonpath(folders))
    return common if common.is_dir() else common.parent


def _walk(folder: Path, base: Path, options: ReadOptions) -> Iterator[File | Problem]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield Problem("unreadable", str(folder), f"cannot be read: {error.strerror}")
        return
    names = {entry.name for entry in entries}
    if _INDEX in names or (names and all(map(_UNFINISHED.fullmatch, names))):
        yield Problem("an index", str(folder), "an embedkit index, not a corpus")
        return
    corpus = next((name for name in _BEIR_CORPUS if name in names), None)
    beir = corpus is not None and (options.format == "beir" or bool(names.intersection(_BEIR_BESIDE)))
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith(".") or entry.name in JUNK:
            continue
        if _is_folder(entry):
            if beir and entry.name == "qrels":
                continue
            if entry.is_symlink():
                yield Problem(
                    "link to a folder", str(path), "a link to a folder: name its target as a source"
                )
            else:
                yield from _walk(path, base, options)
        elif beir and entry.name != corpus:
            if entry.name not in _BEIR_BESIDE:
                yield Problem("beside a corpus", str(path), f"beside {corpus}: no document")
        else:
            try:
                yield _file(path, base, options, named=False)
            except Problem as problem:
                yield problem


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle: `_file` reports them
        return False


def _file(path: Path, base: Path, options: ReadOptions, named: bool) -> File:
    name = as_text(Path(os.path.relpath(os.path.abspath(path), base)).as_posix())  # noqa: PTH100 - keeps links
    if not path.is_file() and not (named and path.exists()):
        raise Problem("unreadable", str(path), "no regular file, or a broken link")
    found, code = format_of(path.name)
    if options.format not in (None, "beir"):
        return File(path, name, str(options.format), code)
    if found is None and not named:
        raise Problem("unknown format", str(path), f"no reader for {path.suffix!r} files")
    return File(path, name, found or "text", code)
