"""The manifest: one small JSON file that says what an index holds and how to read it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from embedkit.errors import CorruptIndexError, NotAnIndexError
from embedkit_indexes.durable import checksum, replace_text, store_errors

NAME = "embedkit.json"
FORMAT = 2
_CHECKSUM = ',\n "checksum": "'
_DAMAGED = "the index is damaged, rebuild with `embedkit index`"
_TYPES: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "int": int,
    "float": (int, float),
    "Mapping": Mapping,
    "tuple": tuple,
}


@dataclass(frozen=True, slots=True)
class FileRecord:
    """The size in bytes and sha256 of one file."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Describe a file as it is now."""
        return cls(path.stat().st_size, checksum(path))


@dataclass(frozen=True, slots=True)
class Deletions:
    """A bitmap over a segment's documents, and what it takes away."""

    name: str
    file: FileRecord
    documents: int
    chunks: int


@dataclass(frozen=True, slots=True)
class SegmentRecord:
    """A segment's folder, files and engine; `documents` and `chunks` count the deleted ones too."""

    name: str
    documents: int
    chunks: int
    engine: Mapping[str, Any]
    files: Mapping[str, FileRecord]
    deletions: Deletions | None = None

    @property
    def live(self) -> int:
        """Return the number of chunks that are not deleted."""
        return self.chunks - (self.deletions.chunks if self.deletions else 0)

    def paths(self) -> Iterator[tuple[str, FileRecord]]:
        """Yield every file, by its path in the index's directory, and what it must be."""
        for name, record in self.files.items():
            yield f"{self.name}/{name}", record
        if self.deletions is not None:
            yield self.deletions.name, self.deletions.file

    def verify(self, directory: Path) -> None:
        """Read every file and compare its sha256. Raises CorruptIndexError naming all files that differ."""
        _verify(directory, self.paths())


@dataclass(frozen=True, slots=True)
class Probe:
    """A text and its document vector at build time: encoded again, it must come out the same."""

    text: str
    vector: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything about an index but its rows and vectors.

    `embedder` names it, and holds the description that the fingerprint was made from; `spec` is what
    `get_embedder` opens it by ("" for an object that a program passed in). The counts are of what is not deleted;
    `languages` counts documents. `generation` grows by one with every change; `next_id` is the first chunk id that
    was never given. `sources` say what `embedkit index` and `embedkit add` were told to read.
    """

    fingerprint: str
    embedder: Mapping[str, Any]
    spec: str
    options: Mapping[str, Any]
    chunker: Mapping[str, Any]
    engine: Mapping[str, Any]
    segments: tuple[SegmentRecord, ...]
    probes: tuple[Probe, ...]
    dtype: str
    dim: int
    documents: int
    chunks: int
    tokens: int
    truncated_chunks: int
    truncated_tokens: int
    coverage: float
    languages: Mapping[str, int]
    created: str
    updated: str
    version: str
    generation: int
    next_id: int
    sources: tuple[Mapping[str, Any], ...] = ()
    tasks: tuple[Mapping[str, str], ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
    format: int = FORMAT

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, to be read and not changed."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["segments"] = [asdict(segment) for segment in self.segments]
        # Not by asdict, which copies each of their numbers.
        plain["probes"] = [{"text": probe.text, "vector": probe.vector} for probe in self.probes]
        return plain

    def same_content(self, other: Manifest) -> bool:
        """Say whether nothing that decides a version differs: all but its number, its time and its writer."""
        # Files are never written twice under one name.
        return self.names() == other.names() and self._content() == other._content()

    def _content(self) -> dict[str, Any]:
        passing = ("generation", "updated", "version", "skipped")
        plain: dict[str, Any] = json.loads(json.dumps(self.to_dict()))
        return {k: v for k, v in plain.items() if k not in passing}

    @property
    def bytes(self) -> int:
        """Return the size of all files, without the manifest."""
        return sum(record.bytes for _, record in self.files())

    def files(self) -> Iterator[tuple[str, FileRecord]]:
        """Yield every file, by its path in the directory, and what it must be."""
        for segment in self.segments:
            yield from segment.paths()

    def names(self) -> set[str]:
        """Return the names in the directory that this version needs."""
        return {path.partition("/")[0] for path, _ in self.files()}

    def write(self, directory: Path) -> None:
        """Replace the directory's manifest in one step: from here on the new version is the one."""
        replace_text(directory / NAME, text_of(self.to_dict()))

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Read the manifest and check that each file it names is there in full size.

        Raises NotAnIndexError for a directory that holds no index, CorruptIndexError for a damaged one.
        """
        while True:
            manifest = cls._parse(directory)
            try:
                manifest._check_sizes(directory)
            except CorruptIndexError:
                # A change that ended just now may have taken the old files away.
                if cls._parse(directory).generation == manifest.generation:
                    raise
            else:
                return manifest

    @classmethod
    def _parse(cls, directory: Path) -> Manifest:
        path = directory / NAME
        with store_errors(path):
            if not path.is_file():
                what = "does not exist" if not directory.exists() else "holds no embedkit index"
                raise NotAnIndexError(
                    f"{directory} {what}: build one with `embedkit index SOURCE -o {directory}`"
                )
            raw = path.read_bytes()
        try:
            text = raw.decode()
            data = json.loads(text)
            found = data.get("format") if isinstance(data, dict) else type(data).__name__
            if found != FORMAT:
                newer = isinstance(found, int) and found > FORMAT
                raise CorruptIndexError(
                    f"{path} has format {found!r}, this version reads {FORMAT}: "
                    + ("update embedkit" if newer else "rebuild it with `embedkit index --force`")
                )
            if text != _with_checksum(text.rpartition(_CHECKSUM)[0]):
                raise ValueError("its checksum is not that of its content")
            data["segments"] = tuple(_segment(s) for s in data["segments"])
            data["probes"] = tuple(Probe(p["text"], tuple(p["vector"])) for p in data["probes"])
            data["tasks"] = tuple(data["tasks"])
            data["sources"] = tuple(data["sources"])
            manifest = cls(**{f.name: data[f.name] for f in fields(cls)})
            manifest._check_types()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise CorruptIndexError(
                f"{path} cannot be read ({e!r}): rebuild with `embedkit index --force`"
            ) from e
        return manifest

    def _check_types(self) -> None:
        """Raise TypeError, KeyError or ValueError for what another hand wrote: later steps trust the types."""
        _check_fields(self)
        for segment in self.segments:
            _check_fields(segment)
            if segment.deletions is not None:
                _check_fields(segment.deletions)
        _ = self.embedder["name"], [(t["name"], t["instruction"]) for t in self.tasks]
        _ = [s.engine["type"] for s in self.segments]
        for path, record in self.files():
            _check_fields(record)
            if path.count("/") > 1 or ".." in path or "\\" in path:
                raise ValueError(f"a path where a name should be: {path}")
        if self.dtype not in ("float16", "float32"):
            raise ValueError(f"dtype {self.dtype!r} is unknown")
        if not self.probes or any(len(p.vector) != self.dim for p in self.probes):
            raise ValueError(f"its probes are no vectors of {self.dim} numbers")

    def _check_sizes(self, directory: Path) -> None:
        for name, record in self.files():
            path = directory / name
            size = path.stat().st_size if path.is_file() else None
            if size != record.bytes:
                state = "is missing" if size is None else f"has {size:,} bytes instead of {record.bytes:,}"
                raise CorruptIndexError(f"{path} {state}: {_DAMAGED}")

    def verify(self, directory: Path) -> None:
        """Read every file and compare its sha256. Raises CorruptIndexError naming all files that differ."""
        _verify(directory, self.files())


def _verify(directory: Path, files: Iterable[tuple[str, FileRecord]]) -> None:
    found = [f for name, record in files if (f := _difference(directory / name, record))]
    if found:
        raise CorruptIndexError(f"{'; '.join(found)}: {_DAMAGED}")


def _difference(path: Path, record: FileRecord) -> str:
    size = path.stat().st_size if path.is_file() else None
    if size is None:
        return f"{path} is missing"
    if size != record.bytes:
        return f"{path} has {size:,} bytes instead of {record.bytes:,}"
    return f"{path} was altered" if checksum(path) != record.sha256 else ""


def _segment(data: Mapping[str, Any]) -> SegmentRecord:
    deletions = data["deletions"]
    return SegmentRecord(
        **{
            **data,
            "files": {k: FileRecord(**v) for k, v in data["files"].items()},
            "deletions": deletions and Deletions(**{**deletions, "file": FileRecord(**deletions["file"])}),
        }
    )


def _check_fields(record: Any) -> None:
    for f in fields(record):
        value, wanted = getattr(record, f.name), _TYPES.get(str(f.type).partition("[")[0])
        if wanted is not None and not isinstance(value, wanted):
            raise TypeError(f"{f.name} is {type(value).__name__}, not {f.type}")


def text_of(data: Mapping[str, Any]) -> str:
    """Return a manifest's text, to the last byte: its values, and behind them a checksum over their text."""
    text = json.dumps(data, ensure_ascii=False, indent=1)
    return _with_checksum(text.removesuffix("\n}"))


def _with_checksum(values: str) -> str:
    digest = hashlib.sha256(values.encode()).hexdigest()
    return f'{values}{_CHECKSUM}{digest}"\n}}\n'
