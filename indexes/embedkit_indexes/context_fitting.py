"""Cut a context to its budget: whole runs by rank, the last one shortened where it ends well."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from embedkit_indexes.context_blocks import Block
from embedkit_indexes.context_pieces import Run, joined
from embedkit_indexes.corpus.splitting import whole_character

# The end of a sentence, with the white space after it, in whatever script.
_SENTENCE = re.compile(r"[.!?…؟։]['\")\]»”]*(?=\s)|[。！？｡।။។።][」』”）]*")
# A beginning of a passage that has fewer tokens is not worth its citation; the second number is for the best passage.
_LEAST, _LEAST_OF_BEST = 24, 8

Fits = Callable[[Block], bool]


def fit(
    runs: Sequence[Run], tokens: Callable[[Sequence[Block]], int], count: Callable[[str], int], budget: int
) -> list[Block]:
    """Return the blocks of the first runs that fit together, best first; the last may be shortened.

    `tokens` counts blocks, best first, as they are written out together. They are counted one by one first, as tokenizers
    take long for long texts; the count that decides is that of all.
    """
    least = tokens(())
    blocks = [run.block() for run in runs]
    whole, sum_alone = 0, least
    for block in blocks:
        sum_alone += tokens([block]) - least
        if sum_alone > budget:
            break
        whole += 1
    while whole and tokens(blocks[:whole]) > budget:
        whole -= 1
    while whole < len(blocks) and tokens(blocks[: whole + 1]) <= budget:
        whole += 1
    chosen = blocks[:whole]
    if whole == len(runs):
        return chosen
    room = budget - tokens(chosen)
    short = _shortened(
        runs[whole],
        lambda block: tokens([block]) - least <= room,
        lambda block: tokens([*chosen, block]) <= budget,
    )
    least_text = _LEAST if chosen else _LEAST_OF_BEST
    if short is not None and (not short.cut or count(short.text) >= least_text):
        return [*chosen, short]
    return chosen


def _shortened(run: Run, may_fit: Fits, fits: Fits) -> Block | None:
    """Return what fits of a run: the chunk that was found best with those beside it, or the beginning of that chunk."""
    pieces = run.pieces
    low = high = min(range(len(pieces)), key=lambda i: pieces[i].rank)
    (alone,) = joined([pieces[low]])
    if not (may_fit(alone.block()) and fits(alone.block())):
        return _beginning(alone, may_fit, fits)

    def together(first: int, last: int) -> Block | None:
        # A part of a run may be none: what joins two chunks can be a third one around them.
        runs = joined(pieces[first : last + 1])
        return runs[0].block() if len(runs) == 1 else None

    def fit_together(first: int, last: int) -> bool:
        block = together(first, last)
        return block is not None and may_fit(block) and fits(block)

    grown = -1
    while grown != high - low:
        grown = high - low
        high = _farthest(high, range(high + 1, len(pieces)), partial(fit_together, low))
        low = _farthest(low, range(low - 1, -1, -1), partial(fit_together, last=high))
    return together(low, high)


def _farthest(here: int, places: range, fits: Callable[[int], bool]) -> int:
    """Return the last of the places up to which it fits, `here` where none does; what is far too much is not tried."""
    most, step = 0, 1
    while most < len(places) and fits(places[min(len(places), most + step) - 1]):
        most = min(len(places), most + step)
        step *= 2
    too_many = min(len(places) + 1, most + step)
    while too_many - most > 1:
        middle = (most + too_many) // 2
        if fits(places[middle - 1]):
            most = middle
        else:
            too_many = middle
    return places[most - 1] if most else here


def _beginning(run: Run, may_fit: Fits, fits: Fits) -> Block | None:
    text, code = run.text, run.block().is_code
    at, high = 0, len(text)
    while high - at > 1:
        middle = (at + high) // 2
        if may_fit(replace(run.block(length=middle), cut=True)):
            at = middle
        else:
            high = middle
    while at > 0:
        at = _bound(text, at, code)
        block = run.block(length=at)
        # Together with others it may be more than alone.
        if block.text and fits(block):
            return block
        at -= 1 + at // 32
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
