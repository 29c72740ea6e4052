"""Read a corpus: files, folders, standard input and BEIR sets become a stream of documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from embedkit.compression import UNREADABLE
from embedkit.errors import CorpusError
from embedkit_indexes.corpus.fields import Fields, find_fields, record
from embedkit_indexes.corpus.formats import CODE_LANGUAGES
from embedkit_indexes.corpus.identity import Seen
from embedkit_indexes.corpus.language import detect_language, iso_code
from embedkit_indexes.corpus.options import SEEN, Problem, ReadOptions, ReadReport
from embedkit_indexes.corpus.records import Document
from embedkit_indexes.corpus.sources import File, as_text, base_of, checked, files
from embedkit_indexes.corpus.streams import STDIN
from embedkit_indexes.corpus.tables import rows
from embedkit_indexes.corpus.texts import extract

# Left out of a folder on purpose: nothing is wrong with the corpus.
_HARMLESS = ("an index", "unknown format", "beside a corpus", "link to a folder")
_TABLES = ("jsonl", "json", "csv", "tsv", "parquet", "arrow")


def read_corpus(
    sources: Sequence[str | Path],
    options: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
    report: ReadReport | None = None,
    base: Path | None = None,
) -> Iterator[Document]:
    """Yield the documents of files, folders, BEIR folders and "-" (standard input), one at a time.

    A document's id is its record's, else its file's path, else path#line; `base` is the folder that paths in ids
    start from, in place of the one given or the one that holds all sources. Files and records that give no
    document are counted in `report` with the reason. Raises CorpusError at once for a source that does not
    exist or may not be read, and at the first bad file or record where `options.strict` is set.
    """
    paths = checked(sources)
    return _read(paths, options, ReadReport() if report is None else report, base)


def _read(
    paths: list[Path | None], options: ReadOptions, report: ReadReport, base: Path | None
) -> Iterator[Document]:
    seen = Seen()
    base = base or base_of(paths)
    for path in paths:
        found = 0
        for file in files([path], options, base):
            if isinstance(file, Problem):
                _skip(file, options, report)
                continue
            report.files += 1
            for document, line in _readable(file, options, report):
                found += 1
                first = seen.first(document.id, file.name)
                if first is None:
                    report.documents += 1
                    yield document
                else:
                    why = f"duplicate id {document.id!r} (first in {first})"
                    _skip(Problem("duplicate id", document.source, why, line), options, report)
        if not found:
            report.empty.add(STDIN if path is None else as_text(str(path)))


def _readable(file: File, options: ReadOptions, report: ReadReport) -> Iterator[tuple[Document, int | None]]:
    last: Problem | None = None
    for found in _documents(file, options):
        last = found if isinstance(found, Problem) else None
        if isinstance(found, Problem):
            _skip(found, options, report, record=True)
        else:
            yield found
    # Nothing came behind it: there the reader gave up, or the file was cut short, and more may have been in it.
    if last is not None and last.kind not in SEEN:
        report.failed.add(last.path)


def _skip(problem: Problem, options: ReadOptions, report: ReadReport, *, record: bool = False) -> None:
    if options.strict and problem.kind not in _HARMLESS:
        raise CorpusError(problem.path, problem.problem, problem.line)
    report.skip(problem, record=record)


def _documents(file: File, options: ReadOptions) -> Iterator[tuple[Document, int | None] | Problem]:
    where = file.name if file.path is None else as_text(str(file.path))
    try:
        if file.format in _TABLES:
            yield from _records(file, where, options)
        else:
            yield _document(file, where, options), None
    except Problem as problem:
        yield problem
    except PermissionError:
        yield Problem("unreadable", where, "no permission to read it")
    except UNREADABLE as error:
        yield Problem("unreadable", where, f"cannot be read to its end: {' '.join(str(error).split())}")


def _document(file: File, where: str, options: ReadOptions) -> Document:
    text, title, form = extract(file.path, where, file.format, options)
    if not text.strip():
        raise Problem("empty", where, "no text in it")
    if file.code and form == "code":
        lang: str | None = file.code
    else:
        lang = _language(options.lang, text, title, options)
    return Document(file.name, text, title, lang, where, form)


def _records(file: File, where: str, options: ReadOptions) -> Iterator[tuple[Document, int | None] | Problem]:
    fields: Fields | None = None
    names: tuple[str, ...] = ()
    for line, row in rows(file.path, where, file.format, options):
        if isinstance(row, Problem):
            yield row
            continue
        if fields is None or tuple(row) != names:
            names = tuple(row)
            fields = find_fields(names, options)
        try:
            found = record(row, fields, options, where, line)
            text, title = (found.text, found.title) if found.text.strip() else (found.title, "")
            if not text:
                raise Problem("empty", where, "the record has no text", line)
            if len(text) > options.max_document_bytes:
                raise Problem("too large", where, f"{len(text):,} characters (max_document_bytes)", line)
        except Problem as problem:
            yield problem
            continue
        name = f"{file.name}#{line}" if found.id is None else found.id
        if found.id is not None and options.prefix_ids:
            name = f"{file.name}#{found.id}"
        said = options.lang or found.lang
        code = said is not None and said.lower() in CODE_LANGUAGES
        lang = said.lower() if said and code else _language(said, text, title, options)
        yield Document(name, text, title, lang, where, "code" if code else "text", found.metadata), line


def _language(said: str | None, text: str, title: str, options: ReadOptions) -> str | None:
    if said:
        return iso_code(said)
    return detect_language(text, title) if options.detect_language else None
