"""The plan of batches: which rows make up a step, a pure function of (seed, step), found without reading the past.

Sources. A stage takes `ratio` of each source's rows an epoch; with the sizes m = n * ratio, a source has the share
m^alpha / sum(m^alpha) of the batches (GTE, arXiv 2308.03281, section 3.2, takes alpha 0.5; 1 visits all rows equally
often). Fixed weights are shares themselves: the sources without one divide what is left by m^alpha, and where all
have one they are scaled to 1. Draws are systematic, one uniform number for a whole epoch: each source gets its
expected number of batches rounded up or down, in random order, where independent draws would scatter by its root.

Rows. A source's rows come in passes over it, each in a new random order that runs on through epochs, so that no row is used
a second time before all others were, nor twice in a batch: where a batch spans two passes, the second one is
rearranged to begin with rows that the first did not end on. A source with blocks has its blocks in random order, the
rows of each in the file's. A source smaller than the batch gives all its rows
once, so that its batch is smaller.

All random numbers are raw Philox words, whose stream NumPy never changes; its shuffles come without that promise.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from embedkit.errors import InputError
from embedkit_trainer.config.records import Batches, StageConfig

_EPOCH, _ORDER, _PLACE = 1, 2, 3  # what a stream of random numbers is for
_KEPT_PASSES = 2


class BatchPlan:
    """Say which rows make up each batch.

    `sizes` are the sources' numbers of rows. `mode` "one-source" draws a source a batch, "mixed" one a row.
    `shares` `[sources]` are the sources' shares. `epochs` may be a fraction; `max_steps` cuts it short. Raises
    InputError for numbers that make no plan.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        batch_size: int,
        seed: int,
        mode: Batches = "one-source",
        alpha: float = 1.0,
        weights: Sequence[float | None] | None = None,
        ratios: Sequence[float] | None = None,
        epochs: float = 1.0,
        max_steps: int | None = None,
        blocks: Sequence[int] | None = None,
    ) -> None:
        ratios = ratios or [1.0] * len(sizes)
        weights = weights or [None] * len(sizes)
        _check_sources(sizes, weights, ratios)
        _check_numbers(
            mode, alpha=alpha, epochs=epochs, batch_size=batch_size, max_steps=max_steps, seed=seed
        )
        self.blocks = tuple(blocks or [1] * len(sizes))
        _check_blocks(sizes, self.blocks, batch_size, mode)
        self.sizes = tuple(sizes)
        self.batch_size = batch_size
        self.seed = seed
        self.mode = mode
        taken = np.array([max(1.0, n * r) for n, r in zip(sizes, ratios, strict=True)])
        self.shares = _shares(taken**alpha, weights)
        self.steps_per_epoch = max(1, int(taken.sum() + 1e-6) // batch_size)
        self.steps = max(1, round(epochs * self.steps_per_epoch))
        if max_steps is not None:
            self.steps = min(self.steps, max_steps)
        # Row k: how many rows of each source all steps before k have used. It grows by whole epochs.
        self._used = np.zeros((1, len(sizes)), np.int64)
        self._passes: list[OrderedDict[int, NDArray[np.int32]]] = [OrderedDict() for _ in sizes]

    @classmethod
    def of(cls, stage: StageConfig, sizes: Sequence[int], *, seed: int) -> BatchPlan:
        """Return the plan of a stage whose sources have these numbers of rows; `max_steps` counts optimiser steps."""
        return cls(
            sizes,
            batch_size=stage.batch_size,
            seed=seed,
            mode=stage.batches,
            alpha=stage.alpha,
            weights=[s.weight for s in stage.sources],
            ratios=[s.ratio for s in stage.sources],
            epochs=stage.epochs,
            max_steps=None if stage.max_steps is None else stage.max_steps * stage.accumulation,
            blocks=[s.block for s in stage.sources],
        )

    def rows(self, step: int) -> list[tuple[int, int]]:
        """Return the (source, row) pairs of the global batch of `step`, from 0; no pair twice.

        Any step may be asked for at any time, in any order. In "mixed" mode sources are shuffled within the batch,
        so that each process gets its share of every one.
        """
        if not 0 <= step < self.steps:
            raise InputError(f"step {step} is not in the plan of {self.steps} steps")
        self._reach(step // self.steps_per_epoch)
        start, end = self._used[step], self._used[step + 1]
        pairs = [
            (source, row)
            for source in np.flatnonzero(end > start).tolist()
            for row in self._stream(source, int(start[source]), int(end[source])).tolist()
        ]
        if self.mode == "mixed":
            pairs = [pairs[i] for i in _shuffled(self._words(_PLACE, step, size=len(pairs))).tolist()]
        return pairs

    def epoch(self, step: int) -> int:
        """Return the epoch of a step, both from 0."""
        return step // self.steps_per_epoch

    def worst(self, lengths: Sequence[NDArray[np.integer]]) -> list[tuple[int, int]]:
        """Return the rows of the most expensive batch there can be, the longest first.

        `lengths` hold one cost a row for each source, such as `TokenStore.costs`. In "one-source" mode these are the
        longest rows of the source where they sum to most; in "mixed" mode the longest of all, no source giving
        more than a batch ever takes of it.
        """
        if [len(x) for x in lengths] != list(self.sizes):
            raise InputError(f"lengths of {[len(x) for x in lengths]} rows for sources of {list(self.sizes)}")
        candidates = []
        for source, costs in enumerate(lengths):
            most = self.batch_size
            if self.mode == "mixed":
                most = math.ceil(self.batch_size * self.shares[source])
            best = np.argsort(-np.asarray(costs, np.int64), kind="stable")[:most]
            candidates.append([(int(costs[i]), source, int(i)) for i in best])
        if self.mode == "mixed":
            merged = sorted((c for rows in candidates for c in rows), key=lambda c: (-c[0], c[1], c[2]))
            chosen = merged[: self.batch_size]
        else:
            chosen = max(candidates, key=lambda rows: sum(c[0] for c in rows))
        return [(source, row) for _, source, row in chosen]

    def _reach(self, epoch: int) -> None:
        """Extend the table of used rows to the end of `epoch`."""
        done = (len(self._used) - 1) // self.steps_per_epoch
        tables = [self._used]
        for e in range(done, epoch + 1):
            tables.append(tables[-1][-1] + np.cumsum(self._draws(e), axis=0))
        if len(tables) > 1:
            self._used = np.concatenate(tables)

    def _draws(self, epoch: int) -> NDArray[np.int64]:
        """Return `[steps_per_epoch, sources]`: how many rows of each source each batch of the epoch takes."""
        steps, upto = self.steps_per_epoch, np.cumsum(self.shares)
        upto[-1] = 1.0
        words = self._words(_EPOCH, epoch, size=steps + 1)
        uniform = (words >> np.uint64(11)) * 2.0**-53
        if self.mode == "one-source":
            # Points (k + u) / steps: the batches whose point falls into a source's stretch are its own.
            owner = np.searchsorted(upto, (np.arange(steps) + uniform[0]) / steps, side="right")
            owner = owner[_shuffled(words[1:])]
            counts = np.zeros((steps, len(upto)), np.int64)
            counts[np.arange(steps), owner] = self.batch_size
        else:
            # Likewise within each batch: as many points (k + u) / batch_size as lie below each border.
            below = np.ceil(self.batch_size * upto[None, :] - uniform[1:, None]).astype(np.int64)
            counts = np.diff(np.maximum(below, 0), axis=1, prepend=0)
        capped: NDArray[np.int64] = np.minimum(counts, np.array(self.sizes))
        return capped

    def _stream(self, source: int, start: int, end: int) -> NDArray[np.int32]:
        """Return the rows at [start, end) of the source's endless row of passes; end - start <= its size."""
        size = self.sizes[source]
        first, last = start // size, (end - 1) // size
        head = self._pass(source, first)[start - first * size : end - first * size]
        if last == first:
            return head
        return np.concatenate([head, self._pass(source, last)[: end - last * size]])

    def _pass(self, source: int, number: int) -> NDArray[np.int32]:
        """Return the order of a source's pass, rearranged so that a batch across its beginning repeats no row."""
        kept = self._passes[source]
        # A small source's pass depends on the one before: go back to one that is known, then forward.
        at = number
        while at > 0 and at not in kept and self.sizes[source] < 2 * self.batch_size:
            at -= 1
        for n in range(at, number + 1):
            if n not in kept:
                kept[n] = self._arranged(source, n)
            kept.move_to_end(n)
            while len(kept) > _KEPT_PASSES:
                kept.popitem(last=False)
        return kept[number]

    def _arranged(self, source: int, number: int) -> NDArray[np.int32]:
        order = self._order(source, number)
        size = len(order)
        # The batch across the boundary takes `before` rows of the pass before, and `after` rows of this one.
        step = int(np.searchsorted(self._used[:, source], number * size, side="right")) - 1
        before = number * size - int(self._used[step, source])
        if number == 0 or before == 0:
            return order
        after = int(self._used[step + 1, source]) - number * size
        # In a source of two batches or more, what moves to the front of a pass never comes from its last batch: so
        # the raw order of the pass before ends as the rearranged one does. A smaller source's is always kept.
        previous = self._passes[source].get(number - 1)
        if previous is None:
            previous = self._order(source, number - 1)
        fresh = np.ones(size, bool)
        fresh[previous[size - before :]] = False
        front = np.flatnonzero(fresh[order])[:after]
        rest = np.ones(size, bool)
        rest[front] = False
        return np.concatenate([order[front], order[rest]])

    def _order(self, source: int, number: int) -> NDArray[np.int32]:
        block = self.blocks[source]
        order = _shuffled(self._words(_ORDER, source, number, size=self.sizes[source] // block))
        if block == 1:
            return order
        rows: NDArray[np.int32] = np.add.outer(
            order * np.int32(block), np.arange(block, dtype=np.int32)
        ).ravel()
        return rows

    def _words(self, *purpose: int, size: int) -> NDArray[np.uint64]:
        philox = np.random.Philox(np.random.SeedSequence([self.seed, *purpose]))
        words: NDArray[np.uint64] = philox.random_raw(size)
        return words


def _shuffled(words: NDArray[np.uint64]) -> NDArray[np.int32]:
    """Return 0 ... n - 1 in the order of the n random words.

    The numbers take the words' low bits, and the words are sorted: five times faster than argsort, and without ties.
    """
    bits = np.uint64(max(1, (len(words) - 1).bit_length()))
    keys = (words >> bits << bits) | np.arange(len(words), dtype=np.uint64)
    keys.sort()
    return (keys & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int32)


def _shares(sizes: NDArray[np.float64], weights: Sequence[float | None]) -> NDArray[np.float64]:
    fixed = np.array([np.nan if w is None else w for w in weights])
    free = np.isnan(fixed)
    if not free.any():
        shares: NDArray[np.float64] = fixed / fixed.sum()
        return shares
    left = 1.0 - fixed[~free].sum()
    if left <= 0:
        raise InputError(
            f"the weights {[w for w in weights if w is not None]} leave nothing to the {int(free.sum())} sources "
            "without one: they are shares, so let them sum to less than 1, or give every source a weight"
        )
    return np.where(free, left * sizes / sizes[free].sum(), fixed)


def _check_sources(sizes: Sequence[int], weights: Sequence[float | None], ratios: Sequence[float]) -> None:
    if not sizes:
        raise InputError("there are no sources: give at least one")
    if not len(sizes) == len(weights) == len(ratios):
        raise InputError(
            f"{len(sizes)} sources, {len(weights)} weights and {len(ratios)} ratios: give one each"
        )
    for source, (n, weight, ratio) in enumerate(zip(sizes, weights, ratios, strict=True)):
        if not 1 <= n < 1 << 31:
            raise InputError(f"source {source} has {n} rows: it takes 1 to {(1 << 31) - 1}")
        for name, value in (("weight", 1.0 if weight is None else weight), ("ratio", ratio)):
            if not 0 < value < math.inf:
                raise InputError(f"the {name} of source {source} is {value}: give a number above 0")


def _check_blocks(sizes: Sequence[int], blocks: Sequence[int], batch_size: int, mode: str) -> None:
    for source, (size, block) in enumerate(zip(sizes, blocks, strict=True)):
        if block < 1:
            raise InputError(f"the block of source {source} is {block}: give 1 or more")
        if block == 1:
            continue
        if size % block or batch_size % block:
            raise InputError(
                f"source {source} has {size:,} rows in blocks of {block}, and batches hold {batch_size}: both must be "
                "multiples of the block, or a batch would cut one in two"
            )
        if mode != "one-source":
            raise InputError(
                f'source {source} has blocks of {block} rows, which batches = "mixed" would cut: write "one-source"'
            )


def _check_numbers(
    mode: str, *, alpha: float, epochs: float, batch_size: int, max_steps: int | None, seed: int
) -> None:
    if mode not in get_args(Batches):
        raise InputError(f"batches are {mode!r}: choose one of {', '.join(get_args(Batches))}")
    if not 0 <= alpha < math.inf:
        raise InputError(f"alpha is {alpha}: give a number of 0 or more")
    if not 0 < epochs < math.inf:
        raise InputError(f"epochs is {epochs}: give a number above 0")
    for name, number, least in (
        ("batch_size", batch_size, 1),
        ("max_steps", max_steps, 1),
        ("seed", seed, 0),
    ):
        if number is not None and number < least:
            raise InputError(f"{name} is {number}: give {least} or more")
