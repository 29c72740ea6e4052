"""The plan of batches: pure, random access, fair to rows, true to the shares."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedkit.errors import InputError
from embedkit_trainer.data.plan import BatchPlan

SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=4)
MODES = st.sampled_from(["one-source", "mixed"])


def _all(plan: BatchPlan) -> list[list[tuple[int, int]]]:
    return [plan.rows(step) for step in range(plan.steps)]


@st.composite
def plans(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the arguments of a plan of one to a few dozen steps, with small sources and repeated passes among them."""
    sizes = draw(SIZES)
    n = len(sizes)
    return {
        "sizes": sizes,
        "batch_size": draw(st.integers(1, 24)),
        "seed": draw(st.integers(0, 1 << 40)),
        "mode": draw(MODES),
        "alpha": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "ratios": draw(st.lists(st.sampled_from([0.1, 0.5, 1.0, 2.5]), min_size=n, max_size=n)),
        "weights": draw(st.none() | st.lists(st.floats(0.1, 3), min_size=n, max_size=n)),
        "epochs": draw(st.sampled_from([0.5, 1.0, 3.0])),
    }


@settings(max_examples=150, deadline=None)
@given(plans(), st.randoms(use_true_random=False))
def test_any_step_at_any_time_is_the_same(options: dict[str, Any], random: Any) -> None:
    """Steps asked in any order, of a fresh plan or a used one, equal those asked one after another."""
    expected = _all(BatchPlan(**options))
    order = list(range(len(expected)))
    random.shuffle(order)
    plan = BatchPlan(**options)
    for step in order:
        assert plan.rows(step) == expected[step]
    last = len(expected) - 1
    assert BatchPlan(**options).rows(last) == expected[last]


@pytest.mark.parametrize("mode", ["one-source", "mixed"])
def test_a_source_little_larger_than_the_batch_is_found_again(mode: Any) -> None:
    """There each pass depends on the one before: a fresh plan still finds any step, far into the run too."""
    options: dict[str, Any] = {"sizes": [30, 29], "batch_size": 24, "seed": 4, "mode": mode, "epochs": 40}
    expected = _all(BatchPlan(**options))
    assert all(BatchPlan(**options).rows(step) == batch for step, batch in enumerate(expected))


@settings(max_examples=150, deadline=None)
@given(plans())
def test_rows_come_evenly_and_never_twice_in_a_batch(options: dict[str, Any]) -> None:
    """At every step no row of a source has been used more than once more than any other, and a batch repeats none."""
    used = [np.zeros(n, int) for n in options["sizes"]]
    for batch in _all(BatchPlan(**options)):
        assert len(set(batch)) == len(batch) > 0
        for source, row in batch:
            used[source][row] += 1
        for counts in used:
            assert counts.max() - counts.min() <= 1


@settings(max_examples=60, deadline=None)
@given(plans())
def test_batches_are_full_and_of_one_source_where_asked(options: dict[str, Any]) -> None:
    """A batch falls short only where a source is smaller than it; "one-source" batches have one source."""
    sizes, size = options["sizes"], options["batch_size"]
    for batch in _all(BatchPlan(**options)):
        sources = {s for s, _ in batch}
        if options["mode"] == "one-source":
            (source,) = sources
            assert len(batch) == min(size, sizes[source])
        elif min(sizes) >= size:
            assert len(batch) == size
        assert all(0 <= row < sizes[s] for s, row in batch)


def test_an_epoch_at_alpha_one_visits_every_row_once() -> None:
    """With whole batches and shares by size, one epoch is one pass over all."""
    plan = BatchPlan([64, 128, 32], batch_size=16, seed=3)
    assert plan.steps == 14
    seen = Counter(pair for batch in _all(plan) for pair in batch)
    assert seen == Counter((s, r) for s, n in enumerate((64, 128, 32)) for r in range(n))


@pytest.mark.parametrize("mode", ["one-source", "mixed"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_shares_follow_the_sizes_to_alpha(mode: Any, alpha: float) -> None:
    """Each source's rows are n^alpha of the whole, to within one batch an epoch; ratios count as size."""
    sizes, ratios = [8000, 2000, 500, 20000], [1.0, 1.0, 1.0, 0.1]
    plan = BatchPlan(sizes, batch_size=8, seed=5, mode=mode, alpha=alpha, ratios=ratios)
    assert plan.steps == 12500 // 8
    counts = np.zeros(4)
    for batch in _all(plan):
        for source, _ in batch:
            counts[source] += 1
    powers = np.array([8000, 2000, 500, 2000]) ** alpha
    expected = powers / powers.sum() * plan.steps * 8
    slack = 8 if mode == "one-source" else 0.1 * np.sqrt(expected * 8) + 8 * 4
    assert (np.abs(counts - expected) <= slack).all()


def test_a_source_is_drawn_as_often_at_the_start_as_at_the_end() -> None:
    """The order of sources is random: halves and neighbours of an epoch show no pattern (chi-square, 5 sigma)."""
    plan = BatchPlan([4000, 4000], batch_size=2, seed=11)
    first = np.array([plan.rows(step)[0][0] for step in range(plan.steps)])
    half = len(first) // 2
    expected = half / 2
    assert abs(first[:half].sum() - expected) < 5 * np.sqrt(half / 4)
    repeats = (first[1:] == first[:-1]).sum()
    assert abs(repeats - (len(first) - 1) / 2) < 5 * np.sqrt(len(first) / 4)


def test_orders_are_uniform() -> None:
    """Every row is as likely at every place of a pass (chi-square over 2,000 seeds)."""
    places = np.zeros((6, 6))
    for seed in range(2000):
        for place, (_, row) in enumerate(BatchPlan([6], batch_size=6, seed=seed).rows(0)):
            places[place, row] += 1
    expected = 2000 / 6
    assert ((places - expected) ** 2 / expected).sum() < 25 + 5 * np.sqrt(2 * 25)


def test_weights_are_shares_of_the_batches() -> None:
    """A weight is a share; the rest is divided by n^alpha; weights for all are scaled to 1."""
    plan = BatchPlan([100, 300, 50], batch_size=4, seed=0, weights=[None, None, 0.2])
    assert plan.shares.tolist() == pytest.approx([0.2, 0.6, 0.2])
    plan = BatchPlan([100, 300, 50], batch_size=4, seed=0, weights=[3, 1, 4])
    assert plan.shares.tolist() == pytest.approx([0.375, 0.125, 0.5])
    with pytest.raises(InputError, match=r"leave nothing to the 1 sources"):
        BatchPlan([100, 300], batch_size=4, seed=0, weights=[1.0, None])


def test_epochs_and_seeds_differ() -> None:
    """Another epoch, like another seed, brings other batches in another order; rows go on, they do not start again."""
    plan = BatchPlan([400, 100], batch_size=10, seed=1, epochs=2)
    batches = _all(plan)
    first, second = batches[: plan.steps_per_epoch], batches[plan.steps_per_epoch :]
    assert plan.epoch(plan.steps_per_epoch - 1) == 0
    assert plan.epoch(plan.steps_per_epoch) == 1
    assert first != second
    assert [b[0][0] for b in first] != [b[0][0] for b in second]
    assert not {frozenset(b) for b in first} & {frozenset(b) for b in second}
    assert batches != _all(BatchPlan([400, 100], batch_size=10, seed=2, epochs=2))


def test_a_ratio_takes_other_rows_each_epoch() -> None:
    """A tenth of a source an epoch: ten epochs see all of it, none twice."""
    plan = BatchPlan([200], batch_size=10, seed=1, ratios=[0.1], epochs=10)
    assert (plan.steps_per_epoch, plan.steps) == (2, 20)
    assert sorted(row for batch in _all(plan) for _, row in batch) == list(range(200))


def test_steps_come_from_epochs_and_max_steps() -> None:
    """Half an epoch is half the steps, at least one; `max_steps` cuts; a shorter plan begins as the longer one does."""
    whole = BatchPlan([100], batch_size=10, seed=1)
    assert [BatchPlan([100], batch_size=10, seed=1, epochs=e).steps for e in (0.5, 1, 2.5, 0.01)] == [
        5,
        10,
        25,
        1,
    ]
    cut = BatchPlan([100], batch_size=10, seed=1, epochs=9, max_steps=7)
    assert cut.steps == 7
    assert _all(cut) == _all(whole)[:7]
    assert BatchPlan([3], batch_size=10, seed=1).steps == 1
    for step in (-1, 10):
        with pytest.raises(InputError, match=f"step {step} is not in the plan of 10 steps"):
            whole.rows(step)


def test_another_process_makes_the_same_plan() -> None:
    """The order depends on nothing of the process, such as its hash seed, and is pinned: a resumed run relies on it."""
    options = {"sizes": [30, 50], "batch_size": 8, "seed": 123, "alpha": 0.5, "epochs": 4, "mode": "mixed"}
    program = (
        "import json, sys; from embedkit_trainer.data.plan import BatchPlan\n"
        "plan = BatchPlan(**json.loads(sys.argv[1]))\n"
        "print(json.dumps([plan.rows(s) for s in range(plan.steps)]))\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", program, json.dumps(options)], capture_output=True, text=True, check=True
    )
    theirs = [[tuple(pair) for pair in batch] for batch in json.loads(out.stdout)]
    assert theirs == _all(BatchPlan(**options))  # type: ignore[arg-type]
    assert [row for _, row in BatchPlan([10], batch_size=5, seed=7).rows(1)] == [4, 9, 2, 6, 7]


def test_the_worst_batch_is_the_longest() -> None:
    """No batch of the plan costs more than the worst one, which is one that could be."""
    rng = np.random.default_rng(0)
    sizes = [300, 40, 7]
    lengths = [rng.integers(1, 100, n).astype(np.int32) for n in sizes]
    lengths[2] += 150
    modes: list[Any] = ["one-source", "mixed"]
    for mode in modes:
        plan = BatchPlan(sizes, batch_size=16, seed=0, mode=mode, epochs=5)
        worst = plan.worst(lengths)
        cost = sum(int(lengths[s][r]) for s, r in worst)
        assert len(set(worst)) == len(worst) == 16
        assert max(sum(int(lengths[s][r]) for s, r in batch) for batch in _all(plan)) <= cost
        if mode == "one-source":
            assert len({s for s, _ in worst}) == 1
    with pytest.raises(InputError, match="lengths of"):
        plan.worst(lengths[:2])


def test_a_small_source_gives_a_smaller_batch() -> None:
    """Where a source has fewer rows than the batch, it gives each once, never one twice."""
    plan = BatchPlan([5, 100], batch_size=10, seed=0, weights=[0.5, 0.5])
    sizes = {len(b) for b in _all(plan) if b[0][0] == 0}
    assert sizes == {5}
    mixed = BatchPlan([2, 100], batch_size=10, seed=0, weights=[0.5, 0.5], mode="mixed")
    assert {Counter(s for s, _ in batch)[0] for batch in _all(mixed)} == {2}


def test_mixed_sources_are_spread_over_the_batch() -> None:
    """Each half of a mixed batch has its part of every source, as processes take contiguous slices."""
    plan = BatchPlan([1000, 1000], batch_size=100, seed=0, mode="mixed")
    halves = [sum(s for s, _ in batch[:50]) for batch in _all(plan)]
    assert min(halves) > 15
    assert max(halves) < 35


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sizes": []}, "no sources"),
        ({"sizes": [10, 0]}, "source 1 has 0 rows"),
        ({"ratios": [1.0]}, "2 sources, 2 weights and 1 ratios"),
        ({"ratios": [1.0, 0.0]}, "ratio of source 1 is 0.0"),
        ({"weights": [-1.0, None]}, "weight of source 0 is -1.0"),
        ({"weights": [float("nan"), None]}, "weight of source 0 is nan"),
        ({"alpha": -0.5}, "alpha is -0.5"),
        ({"epochs": 0.0}, "epochs is 0.0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"mode": "one source"}, "choose one of one-source, mixed"),
    ],
)
def test_numbers_that_make_no_plan_are_refused(change: dict[str, Any], words: str) -> None:
    """Each impossible number is named with its value."""
    options: dict[str, Any] = {"sizes": [10, 20], "batch_size": 4, "seed": 0}
    with pytest.raises(InputError, match=words):
        BatchPlan(**(options | change))
