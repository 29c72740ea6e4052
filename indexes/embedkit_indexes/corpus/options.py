"""What a reader is told, and what it reports."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from embedkit.errors import CorpusError, InputError, UnknownNameError
from embedkit_indexes.corpus.records import Skipped

FORMATS = (
    "text",
    "markdown",
    "rst",
    "html",
    "pdf",
    "docx",
    "code",
    "jsonl",
    "json",
    "csv",
    "tsv",
    "parquet",
    "arrow",
    "beir",
)

# Kinds of problems that leave nobody in doubt about what stands there.
SEEN = ("duplicate id", "empty")


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Say how sources become documents.

    `format` overrides what a file's name says. `text_field`, `title_field`, `id_field` and `lang_field` name
    the fields of a record (JSON, CSV, Parquet…); None finds them by their usual names. `columns` names the
    columns of a CSV or TSV file that has no header. `metadata_fields` are the fields kept as metadata, None
    keeps all the rest. `lang` holds for every document; `detect_language=False` leaves `Document.lang` None
    where nobody gives it. `prefix_ids` puts a file's path before its records' ids, for files that each count
    from 1. Files and records of more than `max_document_bytes` are left out. `strict` raises CorpusError
    where a file or record would be skipped.
    """

    format: str | None = None
    text_field: str | None = None
    title_field: str | None = None
    id_field: str | None = None
    lang_field: str | None = None
    columns: tuple[str, ...] | None = None
    metadata_fields: tuple[str, ...] | None = None
    lang: str | None = None
    detect_language: bool = True
    prefix_ids: bool = False
    encoding: str | None = None
    max_document_bytes: int = 64 * 2**20
    strict: bool = False

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in FORMATS:
            raise UnknownNameError("format", self.format, FORMATS)
        if self.max_document_bytes < 1:
            raise InputError(f"max_document_bytes is {self.max_document_bytes}: give 1 or more")
        if self.encoding is not None:
            try:
                "".encode(self.encoding)
            except LookupError:
                raise InputError(f"unknown encoding {self.encoding!r}: write one like 'latin-1'") from None


@dataclass(slots=True)
class ReadReport:
    """Count what was read and what was left out; `read_corpus` fills it in as it goes.

    `reasons` counts the files and records left out by kind of reason; `skipped` lists the first `limit` of
    them. What is missing need not be gone: `failed` holds the files and folders that were not read to their end,
    `broken` counts the records that were left out of a file that was. `empty` holds the sources, as they were named, that gave no document at all.
    """

    documents: int = 0
    files: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    skipped: list[Skipped] = field(default_factory=list)
    failed: set[str] = field(default_factory=set)
    broken: Counter[str] = field(default_factory=Counter)
    empty: set[str] = field(default_factory=set)
    limit: int = 1000

    @property
    def total_skipped(self) -> int:
        """Return how many files and records were left out."""
        return self.reasons.total()

    def summary(self, examples: int = 3) -> str:
        """Return what was read and skipped, with the first few reasons in full."""
        text = f"{self.documents:,} {_plural(self.documents, 'document')} from {self.files:,} {_plural(self.files, 'file')}"
        if not self.reasons:
            return text + "; nothing skipped."
        counts = ", ".join(f"{count:,} {kind}" for kind, count in self.reasons.most_common())
        first = "; ".join(str(CorpusError(s.source, s.reason, s.line)) for s in self.skipped[:examples])
        return f"{text}; {self.total_skipped:,} skipped ({counts}). First: {first}."

    def skip(self, problem: Problem, *, record: bool = False) -> None:
        """Count a file, or one record of it, that is left out, and list it where there is room."""
        self.reasons[problem.kind] += 1
        if problem.kind not in SEEN:
            if record:
                self.broken[problem.path] += 1
            else:
                self.failed.add(problem.path)
        if len(self.skipped) < self.limit:
            self.skipped.append(Skipped(problem.path, problem.problem, problem.line))


class Problem(CorpusError):
    """Say why one file or record yields no document; `kind` groups the like of it in the report.

    Readers raise it (the rest of the file is lost) or yield it (they go on with the next record).
    """

    def __init__(self, kind: str, path: str, problem: str, line: int | None = None) -> None:
        super().__init__(path, problem, line)
        self.kind = kind


def _plural(count: int, word: str) -> str:
    return word if count == 1 else word + "s"
