"""What an index was made of: its sources as they were named, from where, and how they are read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit.errors import CorruptIndexError, InputError

if TYPE_CHECKING:
    from embedkit_indexes import Document, ReadReport
    from embedkit_indexes.manifest import Manifest

STDIN = "-"


@dataclass(frozen=True, slots=True)
class Origin:
    """Sources that are read together: `paths` as they were named in `folder`, ids counted from `base`.

    `options` are those of ReadOptions that were given. Both folders are absolute here, and relative to the index in a
    manifest: an index and its sources may move together.
    """

    paths: tuple[str, ...]
    folder: str
    base: str
    options: Mapping[str, Any]

    @classmethod
    def here(cls, paths: Sequence[str], options: Mapping[str, Any], base: str | None = None) -> Origin:
        """Describe sources that are named now. Raises CorpusError for one that cannot be opened."""
        from embedkit_indexes.corpus.sources import base_of, checked

        base = base or str(base_of(checked(paths)))
        # As the readers write them into a document's source.
        plain = tuple(p if p == STDIN else str(Path(p)) for p in paths)
        return cls(plain, str(Path.cwd()), base, dict(options))

    @classmethod
    def of(cls, manifest: Manifest, directory: Path) -> list[Origin]:
        """Return what an index was made of, [] where a program built it. Raises CorruptIndexError."""
        from embedkit_indexes import ReadOptions

        root = os.path.realpath(directory)
        try:
            if unknown := {n for s in manifest.sources for n in s["options"]} - set(
                ReadOptions.__dataclass_fields__
            ):
                raise ValueError(f"unknown options {sorted(unknown)}")
            return [
                cls(
                    tuple(map(str, s["paths"])),
                    os.path.normpath(os.path.join(root, str(s["from"]))),  # noqa: PTH118 - keeps links
                    os.path.normpath(os.path.join(root, str(s["base"]))),  # noqa: PTH118
                    dict(s["options"]),
                )
                for s in manifest.sources
            ]
        except (KeyError, TypeError, ValueError) as e:
            raise CorruptIndexError(
                f"{directory} names its sources in a form that is unknown here ({e!r}): rebuild it with --force"
            ) from e

    def to_dict(self, directory: Path) -> dict[str, Any]:
        """Return plain JSON values for the manifest of an index in `directory`."""
        root = os.path.realpath(directory)
        return {
            "paths": list(self.paths),
            "from": _relative(self.folder, root),
            "base": _relative(self.base, root),
            "options": dict(self.options),
        }

    @property
    def places(self) -> tuple[str, ...]:
        """The sources' paths from anywhere."""
        return tuple(p if p == STDIN else os.path.normpath(Path(self.folder, p)) for p in self.paths)

    @property
    def shown(self) -> str:
        """The sources as one names them from here."""
        near = (_near(p, place) for p, place in zip(self.paths, self.places, strict=True))
        return ", ".join("standard input" if p == STDIN else p for p in near)

    def read(self, report: ReadReport, strict: bool = False) -> Iterator[Document]:
        """Yield the documents, each with the source that it would have, had it been read from where it was first.

        Raises CorpusError at once for a source that cannot be opened.
        """
        from embedkit_indexes import ReadOptions, read_corpus

        # The writer finds the language of what is new: what did not change costs nothing.
        options = ReadOptions(**{**self.options, "strict": strict, "detect_language": False})
        here = [_near(p, place) for p, place in zip(self.paths, self.places, strict=True)]
        documents = read_corpus(here, options, report, Path(self.base))
        moved = [(h, p) for h, p in zip(here, self.paths, strict=True) if h != p]
        return _renamed(documents, moved, report) if moved else documents


def read_all(origins: Sequence[Origin], report: ReadReport, strict: bool = False) -> Iterator[Document]:
    """Yield the documents of all origins; where two have the same id, that of the later origin."""
    streams = [origin.read(report, strict) for origin in origins]
    return streams[0] if len(streams) == 1 else _latest(streams)


def check_same(directory: str, recorded: Sequence[Origin], given: Sequence[str]) -> None:
    """Refuse to synchronise with other sources than the index was made of: what they lack would be deleted.

    Raises InputError.
    """
    if not recorded:
        raise InputError(
            f"{directory} does not say what it was made of (a program built it): `embedkit add` adds to it, --force "
            "rebuilds it from these sources alone"
        )
    known = {_real(p) for origin in recorded for p in origin.places}
    asked = {_real(p if p == STDIN else str(Path.cwd() / p)) for p in given}
    if known != asked:
        raise InputError(
            f"{directory} was made of {', '.join(o.shown for o in recorded)}, and these sources are others: name all "
            "of them again to synchronise, use `embedkit add` to add more, or --force to rebuild it from these alone"
        )


def merged(recorded: Sequence[Origin], new: Origin) -> list[Origin]:
    """Return the origins with a new one at the end, or with its options where its sources are already known."""
    places = set(map(_real, new.places))
    rest = [o for o in recorded if set(map(_real, o.places)) != places]
    same = [o for o in recorded if set(map(_real, o.places)) == places]
    return [*rest, replace(same[0], options={**same[0].options, **new.options})] if same else [*rest, new]


def _latest(streams: Sequence[Iterator[Document]]) -> Iterator[Document]:
    from embedkit_indexes.corpus.identity import Seen

    seen = Seen()
    for stream in reversed(streams):
        for document in stream:
            if seen.first(document.id, document.id) is None:
                yield document


def _renamed(
    documents: Iterator[Document], moved: Sequence[tuple[str, str]], report: ReadReport
) -> Iterator[Document]:
    def name(source: str) -> str:
        for here, recorded in moved:
            if source == here or source.startswith(here + os.sep):
                return recorded + source[len(here) :]
        return source

    for document in documents:
        yield replace(document, source=name(document.source))
    report.failed.update([name(f) for f in report.failed])
    report.broken.update({name(b): count for b, count in report.broken.items() if name(b) != b})
    report.empty.update([name(e) for e in report.empty])


def _near(path: str, place: str) -> str:
    """Return the path as it was written where it leads to the same place from here, else the place."""
    return path if path == STDIN or os.path.abspath(path) == place else place  # noqa: PTH100 - keeps links


def _real(place: str) -> str:
    return place if place == STDIN else os.path.realpath(place)


def _relative(folder: str, root: str) -> str:
    try:
        return Path(os.path.relpath(folder, root)).as_posix()
    except ValueError:  # another drive of Windows
        return folder
