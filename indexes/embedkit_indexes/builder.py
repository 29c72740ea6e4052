"""Build an index: documents to chunks to vectors to files, a window of them at a time."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit.contract import Template
from embedkit.embedder import Embedder
from embedkit.errors import CorruptIndexError, InputError, NotAnIndexError, StoreError
from embedkit.syncing import sync_file, sync_folder
from embedkit.tasks import Task, dump_tasks
from embedkit_indexes import durable, faiss_engine
from embedkit_indexes import manifest as manifests
from embedkit_indexes.corpus.chunking import ChunkConfig, ChunkReport, chunk_documents
from embedkit_indexes.corpus.identity import Seen
from embedkit_indexes.corpus.language import detect_language
from embedkit_indexes.corpus.options import ReadReport
from embedkit_indexes.corpus.records import Document, Skipped
from embedkit_indexes.manifest import FileRecord, Manifest, Probe
from embedkit_indexes.segment import CHUNKS, VECTORS, SegmentWriter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PROBES = (
    "The moon pulls the ocean into tides twice a day.",
    "def area(radius): return 3.14159 * radius ** 2",
)
# Wide enough that sorting by length leaves little padding, small enough that progress moves.
_WINDOW = 2048
_SECRETS = ("key", "secret", "password", "token")
# Of the machine that built it, not of the index: a search elsewhere may have another device, or one in place of four.
_MACHINE = ("device", "token_budget")


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """How far a build has come; `phase` is "embedding" or "indexing"."""

    documents: int
    chunks: int
    tokens: int
    phase: str


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did.

    `coverage` is the share of the documents' characters, white space apart, that lie in some chunk;
    `truncated_tokens` counts those of `truncated_chunks` that the embedder did not see; `blank_vectors` the chunks
    of which it knows no token. `skipped` lists the first records left out, `skipped_count` counts all of them.
    """

    documents: int
    chunks: int
    tokens: int
    truncated_chunks: int
    truncated_tokens: int
    coverage: float
    blank_vectors: int
    seconds: float
    engine: str
    skipped: tuple[Skipped, ...]
    skipped_count: int
    languages: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """Everything that decides an index but the documents."""

    directory: Path
    embedder: Embedder
    spec: str
    options: Mapping[str, Any]
    chunking: ChunkConfig
    tasks: Mapping[str, Task]
    overwrite: bool
    exact_limit: int = faiss_engine.EXACT_LIMIT


def build(
    plan: BuildPlan,
    documents: Iterable[Document],
    progress: Callable[[BuildProgress], None] | None = None,
    read_report: ReadReport | None = None,
) -> BuildReport:
    """Write a segment beside what is there, then replace the manifest: the one step that makes it the index."""
    started = time.perf_counter()
    plan = replace(plan, options=_lasting(plan.options))
    directory = plan.directory
    with durable.store_errors(directory):
        check_target(directory, plan.overwrite)
        directory.mkdir(parents=True, exist_ok=True)
        with durable.writer_lock(directory):
            run = _Run(plan, durable.new_segment(directory), progress)
            try:
                manifest = run.manifest(documents, read_report)
                manifest.write(directory)
            except BaseException:
                # An interrupt may come between the manifest's renaming and here: then the new index is in force.
                if not _in_force(directory, run.folder):
                    _clear(directory, run.folder)
                raise
            durable.drop_leftovers(directory, keep=manifest.segment)
    return BuildReport(
        documents=manifest.documents,
        chunks=manifest.chunks,
        tokens=manifest.tokens,
        truncated_chunks=manifest.truncated_chunks,
        truncated_tokens=manifest.truncated_tokens,
        coverage=manifest.coverage,
        blank_vectors=run.blank,
        seconds=time.perf_counter() - started,
        engine=str(manifest.engine["type"]),
        skipped=tuple(read_report.skipped) if read_report else (),
        skipped_count=read_report.total_skipped if read_report else 0,
        languages=manifest.languages,
    )


def _in_force(directory: Path, folder: Path) -> bool:
    try:
        return Manifest.read(directory).segment == folder.name
    except StoreError:
        return False


def _clear(directory: Path, folder: Path) -> None:
    """Remove what a failed build has written, and the directory where it held nothing before."""
    shutil.rmtree(folder, ignore_errors=True)
    if {p.name for p in directory.iterdir()} == {durable.LOCK}:
        (directory / durable.LOCK).unlink()
        directory.rmdir()


def check_target(directory: Path, overwrite: bool) -> None:
    """Refuse a place where an index would harm what is there; cheap, so callers may ask before the work."""
    if directory.exists() and not directory.is_dir():
        raise NotAnIndexError(f"{directory} is a file: name a directory for the index")
    if (directory / manifests.NAME).exists():
        if not overwrite:
            raise InputError(f"{directory} holds an index already: --force (overwrite=True) replaces it")
        return
    if directory.exists():
        strangers = [
            p.name
            for p in directory.iterdir()
            if not p.name.startswith(durable.PREFIX) and p.name != durable.LOCK
        ]
        if strangers:
            raise NotAnIndexError(
                f"{directory} holds other things ({strangers[0]} …) and no index: name a new or empty directory"
            )


class _Run:
    """One build under way."""

    def __init__(
        self, plan: BuildPlan, folder: Path, progress: Callable[[BuildProgress], None] | None
    ) -> None:
        self.folder = folder
        self._plan = plan
        self._progress = progress
        self._chunks = ChunkReport()
        self._languages: Counter[str] = Counter()
        self.blank = 0

    def manifest(self, documents: Iterable[Document], read_report: ReadReport | None) -> Manifest:
        """Write the segment, make the search engine, check it, and describe everything in a manifest."""
        from importlib.metadata import version

        plan, info = self._plan, self._plan.embedder.info
        vectors = self._embed(documents, read_report)
        engine = faiss_engine.build(self.folder, vectors, plan.exact_limit)
        _find_themselves(self.folder, vectors, engine)
        probes = plan.embedder.encode_document(PROBES)
        names = [CHUNKS, VECTORS] + ([faiss_engine.FILE] if engine["type"] != "exact" else [])
        for name in names:
            sync_file(self.folder / name)
        sync_folder(self.folder)
        return Manifest(
            fingerprint=plan.embedder.fingerprint,
            embedder=asdict(info),
            spec=plan.spec,
            options=plan.options,
            chunker={"fingerprint": plan.chunking.fingerprint(), **asdict(plan.chunking)},
            engine=engine,
            segment=self.folder.name,
            files={
                n: FileRecord((self.folder / n).stat().st_size, durable.checksum(self.folder / n))
                for n in names
            },
            probes=tuple(
                Probe(t, tuple(round(float(x), 6) for x in v)) for t, v in zip(PROBES, probes, strict=True)
            ),
            dim=info.dim,
            documents=self._chunks.documents,
            chunks=self._chunks.chunks,
            tokens=self._chunks.tokens,
            truncated_chunks=self._chunks.truncated_chunks,
            truncated_tokens=self._chunks.truncated_tokens,
            coverage=self._chunks.coverage,
            languages=dict(sorted(self._languages.items(), key=lambda item: (-item[1], item[0]))),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            version=version("embedkit-retrieval"),
            tasks=tuple(dump_tasks(plan.tasks.values())),
            skipped=dict(read_report.reasons) if read_report else {},
        )

    def _embed(self, documents: Iterable[Document], read_report: ReadReport | None) -> NDArray[np.float32]:
        """Stream documents into the segment's files; return their vectors, float32 [chunks, dim], mapped."""
        embedder = self._plan.embedder
        pieces = chunk_documents(self._with_language(documents), embedder, self._plan.chunking, self._chunks)
        writer = SegmentWriter(self.folder, embedder.info.dim)
        try:
            while window := list(islice(pieces, _WINDOW)):
                vectors = embedder.encode_document([c.text for c in window])
                self.blank += int((~vectors.any(axis=1)).sum())
                writer.write(window, vectors)
                self._tell("embedding", writer.rows)
            if not writer.rows:
                raise InputError(_nothing(read_report))
            self._tell("indexing", writer.rows)
            return writer.finish()
        finally:
            writer.close()

    def _with_language(self, documents: Iterable[Document]) -> Iterator[Document]:
        seen = Seen()
        for number, given in enumerate(documents):
            _check_document(given, number)
            if seen.first(given.id, given.id) is not None:
                raise InputError(
                    f"document {number} has the id {given.id!r:.60} of an earlier one: make ids unique"
                )
            document = given if given.lang else replace(given, lang=detect_language(given.text, given.title))
            self._languages[document.lang or "und"] += 1
            yield document

    def _tell(self, phase: str, chunks: int) -> None:
        if self._progress:
            self._progress(BuildProgress(self._chunks.documents, chunks, self._chunks.tokens, phase))


def _check_document(document: Any, number: int) -> None:
    """Refuse what a program passed in place of a document before a model has worked for it."""
    if not isinstance(document, Document):
        raise InputError(f"document {number} is {type(document).__name__}: make it a Document(id=…, text=…)")
    for name in ("id", "text", "title", "source", "lang", "metadata"):
        value = getattr(document, name)
        wanted = Mapping if name == "metadata" else str
        if not isinstance(value, wanted) and not (name == "lang" and value is None):
            raise InputError(
                f"document {number} has {type(value).__name__} as its {name}, not {wanted.__name__}: {value!r:.60}"
            )


def _lasting(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that an index keeps: no keys and passwords, and nothing of the machine's."""
    return {
        name: _plain(name, value)
        for name, value in options.items()
        if not name.lower().endswith(_SECRETS) and name not in _MACHINE
    }


def _plain(name: str, value: Any) -> Any:
    """Return an option's value as JSON holds it, a password inside an address left out, an adapter's path absolute."""
    if name == "adapter" and Path(value).exists():
        return str(Path(value).resolve())
    if isinstance(value, str):
        return re.sub(r"(?<=://)[^/@\s]+@", "", value)
    plain = asdict(value) if isinstance(value, Template) else value
    try:
        json.dumps(plain)
    except (TypeError, ValueError) as e:
        raise InputError(
            f"the embedder's option {name} is {value!r}, which an index cannot store: give a plain value, or pass "
            "the opened embedder without embedder_options"
        ) from e
    return plain


def _find_themselves(folder: Path, vectors: NDArray[np.float32], engine: Mapping[str, Any]) -> None:
    """Search for a few of the vectors themselves: each must come back with a score of one."""
    import numpy as np

    rows = np.unique(np.linspace(0, len(vectors) - 1, 16).astype(np.int64))
    queries = np.ascontiguousarray(vectors[rows])
    queries = queries[queries.any(axis=1)]
    if not len(queries):
        return
    scores, _ = faiss_engine.open_engine(folder, vectors, engine).search(queries, 1)
    if float(scores.min()) < 0.999:
        raise CorruptIndexError(
            f"the new index does not find its own vectors (score {float(scores.min()):.3f} instead of 1): nothing was "
            "replaced; run `embedkit doctor`"
        )


def _nothing(report: ReadReport | None) -> str:
    summary = f" ({report.summary()})" if report else ""
    return f"the corpus holds no text to index{summary}: check the source and its format"
