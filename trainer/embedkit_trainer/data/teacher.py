"""Teacher vectors: every text of a store encoded once by any embedder, kept as float16, resumed after a kill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from embedkit.errors import InputError
from embedkit_trainer.config.records import TeacherTarget
from embedkit_trainer.data.folders import make_once, write_manifest
from embedkit_trainer.data.store import TokenStore

if TYPE_CHECKING:
    from embedkit import Embedder
    from embedkit_trainer.data.rows import Row

FORMAT = 1
_JOURNAL = "shards.jsonl"
_REMEMBERED = 200_000  # vectors


class TeacherVectors:
    """Give one store's teacher vectors by row and by document; the files stay mapped, nothing is loaded whole.

    `dim` is the teacher's; vectors are of unit length, to float16's three digits.
    """

    def __init__(self, folder: Path, store: TokenStore, target: TeacherTarget) -> None:
        self.folder = folder
        self.target = target
        self._starts = store.document_starts
        self._documents: NDArray[np.float16] = np.load(folder / "documents.npy", mmap_mode="r")
        self._queries: NDArray[np.float16] | None = None
        if target == "own":
            self._queries = np.load(folder / "queries.npy", mmap_mode="r")
        self.dim = int(self._documents.shape[1])

    @classmethod
    def build(
        cls,
        embedder: Embedder,
        store: TokenStore,
        cache: Path,
        *,
        target: TeacherTarget = "own",
        as_query: bool = False,
        dim: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> TeacherVectors:
        """Encode what `cache` does not hold yet, and open the vectors.

        Both sides are encoded as documents, bare, so that the student regresses the teacher's vector of the text
        itself; `as_query` encodes queries as the teacher's queries, under each row's instruction. With `target`
        "positive" queries get the vector of their positive and are not encoded at all (arXiv 2004.09813). A killed
        run goes on after its last finished shard. `progress` is called with (rows done, all rows). Raises InputError
        where the teacher is not `dim` wide; EmbedderError where it fails.
        """
        if dim is not None and embedder.info.dim != dim:
            raise InputError(
                f"the teacher {embedder.info.name!r} gives {embedder.info.dim} dimensions, the student {dim}: "
                "choose a teacher as wide as the student, or a loss that compares similarities (distil_kl, margin_mse)"
            )
        folder = cache / "teacher" / _address(embedder, store, target, as_query)
        job = _Job(embedder, store, target, as_query, progress)
        make_once(folder, job.run, resume=True)
        return cls(folder, store, target)

    @property
    def name(self) -> str:
        """What stands for the vectors: the folder's name, an address of texts and teacher."""
        return self.folder.name

    def queries(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return float32 `[len(rows), dim]`: what the rows' queries regress."""
        if self._queries is None:
            return self.documents(self._starts[rows])
        return self._queries[rows].astype(np.float32)

    def documents(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return float32 `[len(numbers), dim]` for documents counted through the store (its `document_starts`)."""
        return self._documents[numbers].astype(np.float32)

    def row(self, i: int) -> NDArray[np.float32]:
        """Return float32 `[1 + documents, dim]` of one row: its query, its positive, its negatives."""
        numbers = np.arange(self._starts[i], self._starts[i + 1])
        return np.concatenate([self.queries(np.array([i])), self.documents(numbers)])


class NoTeacher:
    """Stand where a source has no teacher among sources that have one: all vectors are zeros `[n, dim]`."""

    name = ""

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def queries(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return zeros."""
        return np.zeros((len(rows), self.dim), np.float32)

    def documents(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return zeros."""
        return np.zeros((len(numbers), self.dim), np.float32)


def _address(embedder: Embedder, store: TokenStore, target: TeacherTarget, as_query: bool) -> str:
    """Return 32 hex digits over all that decides the vectors: the texts, not their tokens, so tokenizers may change."""
    record: list[Any] = [FORMAT, embedder.fingerprint, store.digest, target == "own"]
    if as_query and target == "own":
        template = embedder.info.template
        record += [store.instructed_digest, template.query, template.instruct, embedder.info.default_task]
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()[:32]


class _Job:
    """Encode a store shard by shard, a shard being one record batch; a journal says which are safely on disk."""

    def __init__(
        self,
        embedder: Embedder,
        store: TokenStore,
        target: TeacherTarget,
        as_query: bool,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.embedder = embedder
        self.store = store
        self.sides = {"documents": store.counts.documents}
        if target == "own":
            self.sides["queries"] = store.counts.rows
        self.as_query = as_query
        self.progress = progress
        # Parallel texts say the same English sentence in every language, and not side by side.
        self.known: dict[bool, dict[tuple[str, str | None], NDArray[np.float16]]] = {False: {}, True: {}}

    def run(self, folder: Path) -> None:
        """Fill the folder's files, leaving out the shards that it holds already."""
        files = {side: self._file(folder / f"{side}.npy", n) for side, n in self.sides.items()}
        known = _journal(folder / _JOURNAL)
        done = 0
        with (folder / _JOURNAL).open("a", encoding="utf-8") as journal:
            for shard, rows in enumerate(self.store.text_batches()):
                places = {"queries": slice(done, done + len(rows))}
                starts = self.store.document_starts
                places["documents"] = slice(int(starts[done]), int(starts[done + len(rows)]))
                parts = {side: (file, places[side]) for side, file in files.items()}
                if known.get(shard) != _checksum(parts):
                    for side, (file, place) in parts.items():
                        file[place] = self._encoded(side, rows)
                        file.flush()  # before the journal says so
                    journal.write(json.dumps([shard, _checksum(parts)]) + "\n")
                    journal.flush()
                done += len(rows)
                if self.progress:
                    self.progress(done, len(self.store))
        write_manifest(
            folder,
            {"format": FORMAT, "embedder": self.embedder.info.name, "fingerprint": self.embedder.fingerprint},
        )

    def _file(self, path: Path, n: int) -> np.memmap[Any, np.dtype[np.float16]]:
        shape = (n, self.embedder.info.dim)
        if path.exists():
            try:
                found = np.lib.format.open_memmap(path, mode="r+")
                if found.shape == shape and found.dtype == np.float16:
                    return found
            except (ValueError, OSError):
                pass  # cut short while it was created
            path.unlink()
        return np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)

    def _encoded(self, side: str, rows: list[Row]) -> NDArray[np.float16]:
        if side == "documents":
            return self._unique([(t, None) for r in rows for t in (r.positive, *r.negatives)], query=False)
        if self.as_query:
            return self._unique([(r.query, r.instruction) for r in rows], query=True)
        return self._unique([(r.query, None) for r in rows], query=False)

    def _unique(self, texts: list[tuple[str, str | None]], *, query: bool) -> NDArray[np.float16]:
        """Encode each pair of text and instruction once, however often the store repeats it."""
        known = self.known[query]
        if len(known) > _REMEMBERED:
            known.clear()
        unknown = [pair for pair in dict.fromkeys(texts) if pair not in known]
        for instruction in dict.fromkeys(i for _, i in unknown):
            batch = [text for text, i in unknown if i == instruction]
            found = (
                self.embedder.encode_query(batch, instruction=instruction)
                if query
                else self.embedder.encode_document(batch)
            )
            known.update(((t, instruction), v) for t, v in zip(batch, found.astype(np.float16), strict=True))
        return np.stack([known[pair] for pair in texts])


def _journal(path: Path) -> dict[int, int]:
    """Return the checksum of each finished shard; a line cut by a kill is a shard not done."""
    known: dict[int, int] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                shard, checksum = json.loads(line)
            except (ValueError, TypeError):
                continue
            known[shard] = checksum
    return known


def _checksum(parts: Mapping[str, tuple[NDArray[np.float16], slice]]) -> int:
    value = 0
    for side in sorted(parts):
        file, place = parts[side]
        value = crc32(np.ascontiguousarray(file[place]).data, value)
    return value
