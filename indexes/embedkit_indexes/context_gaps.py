"""The white space between two chunks, which is stored in neither: its length is known, and in code what it likely was."""

from __future__ import annotations

import re

_INDENT = re.compile(r"^[ \t]*(?=\S)", re.M)
# What a line ends with after which the next one is indented more.
_OPENS = (":", "{", "(", "[")
# Characters that are taken for an indentation, and line breaks before one.
_DEEPEST, _MOST_BREAKS = 32, 4


def gap_between(before: str, after: str, length: int, code: bool) -> str:
    """Return what likely stood there: in prose one line break or two, in code `length` characters that indent `after`."""
    return (code and _indented(before, after, length)) or ("\n" if length == 1 else "\n\n")


def _indented(before: str, after: str, length: int) -> str:
    """Return line breaks and an indentation of that length, "" where none is likely."""
    if length == 1 and "\n" not in before and _unfinished(before):
        return " "
    # Of a chunk's first line the indentation is cut.
    above, below = _INDENT.findall(before)[1:], _INDENT.findall(after)[1:]
    deep = [indent for indent in (*above, *below) if indent]
    tabs = 2 * sum("\t" in indent for indent in deep) > len(deep)
    by_two = sum(len(indent) % 4 == 2 for indent in deep)
    unit = 1 if tabs else 2 if 5 * by_two > len(deep) else 4
    deepest = max([_DEEPEST // (4 if tabs else 1), *map(len, deep)])

    def likely(breaks: int) -> int:
        own, agreed = length - breaks, 0
        if above:
            agreed += (own > len(above[-1])) == before.rstrip().endswith(_OPENS)
            agreed += own == len(above[-1])
        if below:
            agreed += (len(below[0]) > own) == after.partition("\n")[0].rstrip().endswith(_OPENS)
            agreed += len(below[0]) == own
        return agreed

    possible = [
        breaks
        for breaks in range(1, min(length, _MOST_BREAKS) + 1)
        if (length - breaks) % unit == 0 and length - breaks <= deepest
    ]
    if not possible:
        return ""
    breaks = max(possible, key=likely)
    return "\n" * breaks + ("\t" if tabs else " ") * (length - breaks)


def _unfinished(line: str) -> bool:
    """Return whether a bracket or a quotation mark is open: of a line too long for a chunk, the rest follows."""
    if "#" in line or "//" in line:
        # Apostrophes of a comment; and code that is taken for the rest of one would be lost.
        return False
    opened, closed = (sum(map(line.count, marks)) for marks in ("([{", ")]}"))
    return opened > closed or any(line.count(mark) % 2 for mark in "\"'")
