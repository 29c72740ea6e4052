"""The manifest: one small JSON file that says what an index holds and how to read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from embedkit.embedder import Embedder
from embedkit.errors import CorruptIndexError, EmbedderError, NotAnIndexError
from embedkit_indexes.durable import checksum, replace_text

NAME = "embedkit.json"
FORMAT = 1
_TYPES: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "int": int,
    "float": (int, float),
    "Mapping": Mapping,
    "tuple": tuple,
}


@dataclass(frozen=True, slots=True)
class FileRecord:
    """The size in bytes and sha256 of one file of the segment."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Probe:
    """A text and its document vector at build time: encoded again, it must come out the same."""

    text: str
    vector: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything about an index but its rows and vectors.

    `embedder` names it, and holds the description that the fingerprint was made from; `spec` is what
    `get_embedder` opens it by ("" for an object that a program passed in). `languages` counts documents.
    """

    fingerprint: str
    embedder: Mapping[str, Any]
    spec: str
    options: Mapping[str, Any]
    chunker: Mapping[str, Any]
    engine: Mapping[str, Any]
    segment: str
    files: Mapping[str, FileRecord]
    probes: tuple[Probe, ...]
    dim: int
    documents: int
    chunks: int
    tokens: int
    truncated_chunks: int
    truncated_tokens: int
    coverage: float
    languages: Mapping[str, int]
    created: str
    version: str
    tasks: tuple[Mapping[str, str], ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
    format: int = FORMAT

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    def write(self, directory: Path) -> None:
        """Replace the directory's manifest in one step: from here on the new index is the one."""
        replace_text(directory / NAME, json.dumps(self.to_dict(), ensure_ascii=False, indent=1) + "\n")

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
                # A rebuild that ended just now has taken the old files away.
                if cls._parse(directory).segment == manifest.segment:
                    raise
            else:
                return manifest

    @classmethod
    def _parse(cls, directory: Path) -> Manifest:
        path = directory / NAME
        if not path.is_file():
            what = "does not exist" if not directory.exists() else "holds no embedkit index"
            raise NotAnIndexError(
                f"{directory} {what}: build one with `embedkit index SOURCE -o {directory}`"
            )
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(data, dict) or data.get("format") != FORMAT:
                found = data.get("format") if isinstance(data, dict) else type(data).__name__
                raise CorruptIndexError(
                    f"{path} has format {found!r}, this version reads {FORMAT}: rebuild the index or use "
                    "the embedkit that wrote it"
                )
            names = [data["segment"], *data["files"]]
            if any(Path(n).name != n for n in names):
                raise ValueError(f"a path where a name should be: {names}")
            data["files"] = {k: FileRecord(**v) for k, v in data["files"].items()}
            data["probes"] = tuple(Probe(p["text"], tuple(p["vector"])) for p in data["probes"])
            data["tasks"] = tuple(data["tasks"])
            manifest = cls(**{f.name: data[f.name] for f in fields(cls)})
            manifest._check_types()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise CorruptIndexError(f"{path} cannot be read ({e!r}): rebuild with `embedkit index`") from e
        return manifest

    def _check_types(self) -> None:
        """Raise TypeError or KeyError for what another hand wrote: later steps trust the types."""
        for f in fields(self):
            value = getattr(self, f.name)
            if not isinstance(value, _TYPES[str(f.type).partition("[")[0]]):
                raise TypeError(f"{f.name} is {type(value).__name__}, not {f.type}")
        _ = self.embedder["name"], self.engine["type"], [(t["name"], t["instruction"]) for t in self.tasks]
        if not all(isinstance(r.bytes, int) for r in self.files.values()):
            raise TypeError("a file's size is no number")
        if not self.probes or any(len(p.vector) != self.dim for p in self.probes):
            raise ValueError(f"its probes are no vectors of {self.dim} numbers")

    def _check_sizes(self, directory: Path) -> None:
        for name, record in self.files.items():
            path = directory / self.segment / name
            size = path.stat().st_size if path.is_file() else None
            if size != record.bytes:
                state = "is missing" if size is None else f"has {size:,} bytes instead of {record.bytes:,}"
                raise CorruptIndexError(
                    f"{path} {state}: the index is damaged, rebuild with `embedkit index`"
                )

    def verify(self, directory: Path) -> None:
        """Read every file and compare its sha256. Raises CorruptIndexError naming the file that differs."""
        self._check_sizes(directory)
        for name, record in self.files.items():
            path = directory / self.segment / name
            if checksum(path) != record.sha256:
                raise CorruptIndexError(
                    f"{path} was altered: the index is damaged, rebuild with `embedkit index`"
                )


def check_probes(manifest: Manifest, embedder: Embedder) -> None:
    """Encode the probe texts again: the same weights may still be run wrongly. Raises EmbedderError.

    0.98 leaves room for bf16, float32 and int8 arithmetic over the same weights (0.994 was the lowest
    seen), and none for another model, pooling or tokenizer.
    """
    import numpy as np

    vectors = embedder.encode_document([p.text for p in manifest.probes])
    stored = np.array([p.vector for p in manifest.probes], dtype=np.float32)
    cosine = (vectors * stored).sum(axis=1)
    blank = ~stored.any(axis=1) & ~vectors.any(axis=1)
    if not bool(((cosine >= 0.98) | blank).all()):
        raise EmbedderError(
            f"embedder {embedder.info.name!r} has the fingerprint of the index ({manifest.fingerprint}) but encodes "
            f"its probe texts otherwise (cosine {float(cosine.min()):.3f}): check its installation, or rebuild the index"
        )
