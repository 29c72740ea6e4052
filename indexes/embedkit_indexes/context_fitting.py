"""Cut a context to its budget: whole runs by rank, the last one shortened where it ends well."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from embedkit_indexes.context_blocks import Block
from embedkit_indexes.context_pieces import Run, joined
from embedkit_indexes.corpus.splitting import whole_character

# The end of a sentence, with the white space after it, in whatever script.
_SENTENCE = re.compile(r"[.!?…؟։]['\")\]»”]*(?=\s)|[。！？｡।။។።][」』”）]*")
# A beginning of a passage that has fewer tokens is not worth its citation; the second number is for the best passage.
_LEAST, _LEAST_OF_BEST = 24, 8

Fits = Callable[[Sequence[Block]], bool]


def fit(runs: Sequence[Run], fits: Fits, count: Callable[[str], int]) -> list[Block]:
    """Return the blocks of the first runs that fit together, best first.

    `fits` says whether blocks, best first, stay within the budget when they are written out.
    """
    blocks = [run.block() for run in runs]
    whole = _most(len(blocks), lambda n: fits(blocks[:n]))
    chosen = blocks[:whole]
    if whole < len(runs):
        short = _shortened(runs[whole], lambda block: fits([*chosen, block]))
        least = _LEAST if chosen else _LEAST_OF_BEST
        if short is not None and (not short.cut or count(short.text) >= least):
            return [*chosen, short]
    return chosen


def _most(limit: int, fits: Callable[[int], bool]) -> int:
    """Return a number up to `limit` that fits, 0 where 1 does not; the largest where every smaller one fits too."""
    low, step = 0, 1
    while low < limit and fits(min(limit, low + step)):
        low = min(limit, low + step)
        step *= 2
    high = min(limit + 1, low + step)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def _shortened(run: Run, fits: Callable[[Block], bool]) -> Block | None:
    """Return what fits of a run: the chunk that was found best with those beside it, or the beginning of that chunk."""
    pieces = run.pieces
    low = high = min(range(len(pieces)), key=lambda i: pieces[i].rank)
    (alone,) = joined([pieces[low]])
    if not fits(alone.block()):
        return _beginning(alone, fits)
    best, grown = alone, True
    while grown:
        grown = False
        for first, last in ((low, high + 1), (low - 1, high)):
            if first < 0 or last >= len(pieces):
                continue
            wider = joined(pieces[first : last + 1])
            if len(wider) == 1 and fits(wider[0].block()):
                best, low, high, grown = wider[0], first, last, True
                break
    return best.block()


def _beginning(run: Run, fits: Callable[[Block], bool]) -> Block | None:
    text = run.text
    at = _most(len(text) - 1, lambda n: fits(replace(run.block(length=n), cut=True)))
    while at > 0:
        at = _bound(text, at, run.block().is_code)
        block = run.block(length=at)
        # Fewer characters may make more tokens.
        if block.text and fits(block):
            return block
        at -= 1
    return None


def _bound(text: str, limit: int, code: bool) -> int:
    """Return where a text ends best, at `limit` characters or before: a line, a sentence, a word, a character."""
    low = limit // 2
    if code and (line := text.rfind("\n", low, limit + 1)) > 0:
        return line
    ends = [found.end() for found in _SENTENCE.finditer(text, low, limit + 1) if found.end() <= limit]
    if ends:
        return ends[-1]
    for at in range(limit, low, -1):
        if text[at].isspace():
            return at
    return whole_character(text, limit)
