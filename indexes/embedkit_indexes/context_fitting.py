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
    best, grown = alone, True
    while grown:
        grown = False
        for first, last in ((low, high + 1), (low - 1, high)):
            if first < 0 or last >= len(pieces):
                continue
            wider = joined(pieces[first : last + 1])
            if len(wider) == 1 and may_fit(wider[0].block()) and fits(wider[0].block()):
                best, low, high, grown = wider[0], first, last, True
                break
    return best.block()


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
