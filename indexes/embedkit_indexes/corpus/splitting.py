"""Where a long text may be cut: blocks, pieces and the headings a piece stands under."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator

from embedkit_indexes.corpus.records import Form

Span = tuple[int, int]

# The splitter's time grows faster than its input on odd text (100,000 characters of unbroken Chinese take
# 28 s), so it never sees more than a block.
BLOCK = 16_000
# MarkdownSplitter takes 35 s for 16,000 empty lines: long runs of white space never reach it.
_SPACE = re.compile(r"\s{100,}")
_SENTENCE = re.compile(r"[.!?…]['\")\]]?\s|[。！？｡।။។]")
_FENCE = re.compile(r"^ {0,3}(```+|~~~+)")
_HEADING = re.compile(r"^ {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*$")


def blocks(text: str, form: Form, size: int = BLOCK) -> Iterator[tuple[int, int, bool]]:
    """Yield (start, end, unbroken): spans of at most `size` characters that cover all but white space.

    They end at a heading, a paragraph, a line, a sentence or a space, whichever comes first in this order;
    `unbroken` marks a block that holds none of them (base64, a minified script).
    """
    begin = 0
    for run in _SPACE.finditer(text):
        yield from _blocks(text, begin, run.start(), form, size)
        begin = run.end()
    yield from _blocks(text, begin, len(text), form, size)


def _blocks(text: str, start: int, end: int, form: Form, size: int) -> Iterator[tuple[int, int, bool]]:
    while end - start > size:
        cut = _bound(text, start + size // 2, start + size, form)
        unbroken = cut is None
        cut = whole_character(text, start + size) if cut is None else cut
        yield start, cut, unbroken
        start = cut
    if end > start:
        yield start, end, False


def _bound(text: str, low: int, high: int, form: Form) -> int | None:
    for mark in ("\n#", "\n\n", "\n") if form == "markdown" else ("\n\n", "\n"):
        found = text.rfind(mark, low, high)
        if found >= 0:
            return found + 1
    sentence = None
    for sentence in _SENTENCE.finditer(text, low, high):  # noqa: B007 - the last one is wanted
        pass
    if sentence is not None:
        return sentence.end()
    found = max(text.rfind(" ", low, high), text.rfind("\t", low, high))
    return found + 1 if found >= 0 else None


def whole_character(text: str, cut: int) -> int:
    """Return `cut`, or a place a little before it that parts no accent or joined emoji from its base."""
    for back in range(min(16, cut - 1)):
        at = cut - back
        if at >= len(text) or not (
            unicodedata.combining(text[at]) or text[at] in "\u200d\ufe0f" or text[at - 1] == "\u200d"
        ):
            return at
    return cut


def pieces(text: str, form: Form, capacity: int, overlap: int) -> list[Span]:
    """Cut a block into spans of at most `capacity` characters at the best semantic bounds.

    Every character outside the spans is white space.
    """
    from semantic_text_splitter import MarkdownSplitter, TextSplitter

    capacity = max(1, capacity)
    kind = MarkdownSplitter if form == "markdown" else TextSplitter
    try:
        found = kind(capacity, overlap=min(overlap, capacity // 2)).chunk_indices(text)
    except BaseException as e:
        # It panics on blank lines with spaces in a fence longer than a chunk, but never without overlap. Of the panic's
        # class, which no program can import, the name is known.
        if type(e).__name__ != "PanicException":
            raise
        found = kind(capacity).chunk_indices(text)
    return _without_gaps(text, [(at, at + len(piece)) for at, piece in found if piece])


def even_pieces(text: str, capacity: int, overlap: int) -> list[Span]:
    """Cut text that has no bounds into spans of `capacity` characters."""
    spans = []
    start = 0
    while start < len(text):
        end = min(len(text), start + max(1, capacity))
        end = whole_character(text, end) if end - start > 16 else end
        spans.append((start, end))
        if end == len(text):
            break
        start = max(start + 1, end - min(overlap, capacity // 2))
    return spans


def trimmed(text: str, start: int, end: int) -> Span:
    """Return the span without the white space at both of its ends."""
    piece = text[start:end]
    stripped = piece.lstrip()
    start += len(piece) - len(stripped)
    return start, start + len(stripped.rstrip())


def _without_gaps(text: str, spans: list[Span]) -> list[Span]:
    whole: list[Span] = []
    done = 0
    for start, end in [*spans, (len(text), len(text))]:
        if start > done:
            gap = trimmed(text, done, start)
            if gap[1] > gap[0]:
                whole.append(gap)
        if end > start:
            whole.append((start, end))
        done = max(done, end)
    return whole


class Headings:
    """Find the path of Markdown headings (ATX, outside fenced code) over any place of a text."""

    def __init__(self, text: str, form: Form) -> None:
        self._offsets: list[int] = []
        self._paths: list[tuple[str, ...]] = []
        if form != "markdown" or "#" not in text:
            return
        fence = ""
        path: list[tuple[int, str]] = []
        offset = 0
        for line in text.splitlines(keepends=True):
            here, offset = offset, offset + len(line)
            if mark := _FENCE.match(line):
                if not fence:
                    fence = mark[1]
                elif mark[1].startswith(fence):
                    fence = ""
            elif not fence and (heading := _HEADING.match(line.rstrip("\r\n"))):
                level = len(heading[1])
                path = [(n, name) for n, name in path if n < level] + [(level, heading[2].strip())]
                self._offsets.append(here)
                self._paths.append(tuple(name for _, name in path if name))

    def path(self, start: int) -> tuple[str, ...]:
        """Return the headings above `start`, outermost first; one that begins there is left out."""
        index = bisect_right(self._offsets, start) - 1
        if index < 0:
            return ()
        path = self._paths[index]
        return path[:-1] if self._offsets[index] == start else path
