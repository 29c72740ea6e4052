"""One file, one document: plain text, Markdown, reStructuredText, HTML, PDF, DOCX and source code."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from embedkit.errors import MissingExtraError
from embedkit_indexes.corpus.fields import clean
from embedkit_indexes.corpus.options import Problem, ReadOptions
from embedkit_indexes.corpus.records import Form
from embedkit_indexes.corpus.streams import bytes_of, decoded, text_of

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_FRONT_TITLE = re.compile(r"""^title:[ \t]*(['"]?)(.+?)\1[ \t]*$""", re.MULTILINE)
_MD_HEADING = re.compile(
    r"^ {0,3}#{1,6}[ \t]+(.+?)[ \t]*#*[ \t]*$|^(\S.*)\n(?:={3,}|-{3,})[ \t]*$", re.MULTILINE
)
_RST_HEADING = re.compile(
    r"^(?:([=\-~^\"'#*+`])\1{2,}\n)?[ \t]*(\S.*)\n([=\-~^\"'#*+`])\3{2,}[ \t]*$", re.MULTILINE
)
_HEAD = 20_000
# A DOCX is a zip file: its text may be far larger than the file.
_ZIP_PARTS = 256 * 2**20


class Extract(NamedTuple):
    """The text of a file."""

    text: str
    title: str
    form: Form


def extract(path: Path | None, name: str, kind: str, options: ReadOptions) -> Extract:
    """Return a file's text; raise Problem where it has none or cannot be read."""
    if kind in ("pdf", "docx", "html"):
        readers: dict[str, Callable[[bytes, str, ReadOptions], Extract]] = {
            "pdf": _pdf,
            "docx": _docx,
            "html": _html,
        }
        found = readers[kind](bytes_of(path, name, options), name, options)
        if len(found.text) > options.max_document_bytes:
            raise Problem(
                "too large", name, f"its text has {len(found.text):,} characters (max_document_bytes)"
            )
        return found._replace(text=clean(found.text), title=" ".join(clean(found.title).split()))
    text = clean(text_of(path, name, options))
    if kind == "markdown":
        return _markdown(text)
    if kind == "rst":
        heading = _RST_HEADING.search(text, 0, _HEAD)
        return Extract(text, heading[2].strip() if heading else "", "text")
    return Extract(text, "", "code" if kind == "code" else "text")


def _markdown(text: str) -> Extract:
    title = ""
    if front := _FRONT_MATTER.match(text):
        if found := _FRONT_TITLE.search(front[1]):
            title = found[2]
        text = text[front.end() :]
    if not title and (heading := _MD_HEADING.search(text, 0, _HEAD)):
        title = heading[1] or heading[2]
    return Extract(text, title.strip(), "markdown")


def _html(data: bytes, name: str, options: ReadOptions) -> Extract:
    try:
        from bs4 import BeautifulSoup
        from markdownify import MarkdownConverter
    except ImportError:
        raise _missing("HTML", name) from None
    parser = "html.parser"
    if options.encoding is None and (declared := _declared(data)):
        options_text = data.decode(declared, "replace")
    else:
        options_text = decoded(data, name, options)
    try:
        soup = BeautifulSoup(options_text, parser)
        title = soup.title.get_text() if soup.title else ""
        for junk in soup(["script", "style", "noscript", "template", "head", "nav", "svg", "iframe"]):
            junk.decompose()
        text = MarkdownConverter(heading_style="ATX", strip=["img", "a"]).convert_soup(soup)
    except RecursionError:
        raise Problem("malformed", name, "HTML nested too deeply") from None
    text = re.sub(r"\n{3,}", "\n\n", text).strip()
    if not title and (heading := _MD_HEADING.search(text, 0, _HEAD)):
        title = heading[1] or heading[2]
    return Extract(text, title, "markdown")


def _declared(data: bytes) -> str | None:
    found = re.search(rb"""<meta[^>]+charset=["']?([\w-]+)""", data[:4096], re.IGNORECASE)
    if not found or data.startswith((b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")):
        return None
    encoding = found[1].decode("ascii").lower()
    try:
        "".encode(encoding)
    except LookupError:
        return None
    # The bytes of that very tag were read as ASCII, so it cannot be UTF-16; UTF-8 is tried strictly.
    return None if encoding.startswith("utf") else encoding


def _pdf(data: bytes, name: str, options: ReadOptions) -> Extract:
    try:
        from pypdf import PdfReader
    except ImportError:
        raise _missing("PDF", name) from None
    import logging

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # its warnings come back as reasons
    locked = False
    try:
        reader = PdfReader(io.BytesIO(data))
        locked = reader.is_encrypted
        if locked and not reader.decrypt(""):
            raise Problem("encrypted", name, "encrypted PDF: save it without a password")
        pages = [page.extract_text() for page in reader.pages]
        title = str(reader.metadata.title or "") if reader.metadata else ""
    except Problem:
        raise
    except MemoryError:
        raise Problem("malformed", name, "broken PDF: it asks for too much memory") from None
    except Exception as error:  # a broken file raises whatever it likes
        kind, what = ("encrypted", "encrypted") if locked else ("malformed", "broken")
        raise Problem(kind, name, f"{what} PDF: {type(error).__name__}: {error}") from None
    text = "\n\n".join(page.strip() for page in pages if page.strip())
    if not text:
        raise Problem("no text", name, f"no text in {len(pages)} PDF pages: a scan needs OCR first")
    return Extract(text, title, "text")


def _docx(data: bytes, name: str, options: ReadOptions) -> Extract:
    try:
        import docx
    except ImportError:
        raise _missing("DOCX", name) from None
    import zipfile

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as parts:
            size = sum(part.file_size for part in parts.infolist() if part.filename.endswith(".xml"))
        if size > max(_ZIP_PARTS, options.max_document_bytes):
            raise Problem("too large", name, f"its text unpacks to {size:,} bytes")
        document = docx.Document(io.BytesIO(data))
        parts_text = [_docx_block(block) for block in document.iter_inner_content()]
        title = document.core_properties.title or ""
    except Problem:
        raise
    except Exception as error:
        raise Problem("malformed", name, f"broken DOCX: {type(error).__name__}: {error}") from None
    text = "\n\n".join(part for part in parts_text if part.strip())
    if not title and (heading := _MD_HEADING.search(text, 0, _HEAD)):
        title = heading[1] or heading[2]
    return Extract(text, title, "markdown")


def _docx_block(block: Any) -> str:
    if hasattr(block, "rows"):
        cells = ([cell.text.replace("\n", " ").strip() for cell in row.cells] for row in block.rows)
        return "\n".join("| " + " | ".join(row) + " |" for row in cells)
    style = (block.style.name or "") if block.style is not None else ""
    if style == "Title":
        return f"# {block.text}"
    if style.startswith("Heading ") and style[8:].isdigit():
        return f"{'#' * min(6, int(style[8:]))} {block.text}"
    return f"- {block.text}" if style.startswith("List") else str(block.text)


def _missing(what: str, name: str) -> Problem:
    return Problem("missing package", name, str(MissingExtraError(f"reading {what}", "docs")))
