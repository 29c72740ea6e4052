"""What is stored, what a damaged or foreign folder says, ceilings, and the export."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from embedkit.errors import InputError, StoreError
from embedkit_trainer.data.rows import read_rows
from embedkit_trainer.synthesis.budget import Budget, Exhausted, check_prices
from embedkit_trainer.synthesis.export import export_rows
from embedkit_trainer.synthesis.generate import generate
from embedkit_trainer.synthesis.settings import ModelConfig, SynthesisConfig
from embedkit_trainer.synthesis.settings_file import load_synthesis
from embedkit_trainer.synthesis.store import EXAMPLES, FAILURES, Spent, Store, decode, encode, read_records
from embedkit_trainer.synthesis.types import BUILT_IN
from tests.trainer.synthesis.scripted import Scripted, write_config

PARTS = {"seed": "1"}


def _example(number: int, kind: str = "sts", **changes: Any) -> dict[str, Any]:
    answer = {"S1": f"first {number}", "S2": f"second {number}", "S3": "third\n\u2028 ünï \u0085"}
    about = {"request": number, "type": kind, "model": "m", "template": "t", "instruction": "Find it."}
    rest = {"languages": ["en", "en"], "placeholders": {}, "tokens": [10, 5], "cost": 0.5, "attempts": 1}
    return about | rest | {"answer": answer} | changes


def _failure(number: int, reason: str) -> dict[str, Any]:
    return _example(number) | {"reason": reason, "detail": "why", "raw": "text"}


def _store(folder: Path, digest: str = "a") -> Store:
    return Store(folder, digest, PARTS | {"pool of long-long": digest})


def test_one_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one is refused, whatever number a launcher of several processes gave it."""
    monkeypatch.setenv("RANK", "1")
    with _store(tmp_path), pytest.raises(StoreError, match="another run is writing in"), _store(tmp_path):
        pass


def test_what_was_stored_is_there_again(tmp_path: Path) -> None:
    """Examples, failures, what was spent and what is undone survive; a later success replaces a failure."""
    with _store(tmp_path) as store:
        for number in (4, 0, 2):
            store.append(_example(number))
        store.fail(_failure(1, "no-json"))
        store.fail(_failure(3, "server"))
        assert list(store.undone(6)) == [3, 5]
    with _store(tmp_path) as store:
        assert store.spent == Spent(3, 2, 1, requests=5, tokens_in=50, tokens_out=25, cost=2.5)
        assert (list(store.undone(6)), store.count_undone(6)) == ([3, 5], 2)
        assert (list(store.undone(6, retry_failed=True)), store.count_undone(6, True)) == ([1, 3, 5], 3)
        store.append(_example(1))
        store.append(_example(3))
        assert list(store.undone(6, retry_failed=True)) == [5]
        assert (store.spent.stored, store.spent.failed, store.spent.unanswered) == (5, 0, 0)
    assert [r["request"] for r in read_records(tmp_path)] == [4, 0, 2, 1, 3]
    assert next(iter(read_records(tmp_path)))["answer"]["S3"] == "third\n\u2028 ünï \u0085"
    assert [r["reason"] for r in read_records(tmp_path, FAILURES)] == ["no-json", "server"]


@pytest.mark.parametrize("cut", [1, 2, 40, 200])
def test_a_torn_last_line_is_cut_off(cut: int, tmp_path: Path) -> None:
    """What a power cut left half is sent again, and what comes after it is whole."""
    with _store(tmp_path) as store:
        for number in range(3):
            store.append(_example(number))
    file = tmp_path / f"{EXAMPLES}-00000.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    with _store(tmp_path) as store:
        assert list(store.undone(3)) == [2]
        store.append(_example(2))
    with _store(tmp_path) as store:
        assert list(store.undone(3)) == []
    assert [decode(line) for line in file.read_bytes().splitlines(keepends=True)] == [
        _example(n) for n in range(3)
    ]


def test_damage_elsewhere_is_told(tmp_path: Path) -> None:
    """A changed line in the middle is named with its file and number; without it the rest can be used."""
    with _store(tmp_path) as store:
        for number in range(3):
            store.append(_example(number))
    file = tmp_path / f"{EXAMPLES}-00000.jsonl"
    file.write_bytes(file.read_bytes().replace(b"second 1", b"secund 1"))
    with (
        pytest.raises(StoreError, match=r"examples-00000\.jsonl, line 2 is damaged: delete that line"),
        _store(tmp_path),
    ):
        pass
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + lines[2])
    with _store(tmp_path) as store:
        assert list(store.undone(3)) == [1]


def test_shards_grow_by_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that is full is followed by another, also over runs; the export takes them in the requests' order."""
    monkeypatch.setattr("embedkit_trainer.synthesis.store._SHARD_BYTES", 1000)
    for start in (10, 0):
        with _store(tmp_path) as store:
            for number in range(start, start + 10):
                store.append(_example(number))
    assert len(list(tmp_path.glob("examples-*.jsonl"))) > 5
    types = {kind.name: kind for kind in BUILT_IN}
    assert export_rows(tmp_path, tmp_path / "rows", types) == {"sts": 20}
    assert [row.query for row in read_rows(tmp_path / "rows")] == [f"first {n}" for n in range(20)]


def test_rows_of_every_type(tmp_path: Path) -> None:
    """Each type's fields become query, positive and negatives; bitext has two languages; metadata say where from."""
    types = {kind.name: kind for kind in BUILT_IN}
    with _store(tmp_path) as store:
        for number, kind in enumerate(BUILT_IN):
            answer = {name: f"the {name}" for name in kind.fields}
            store.append(
                _example(number, kind.name, answer=answer, languages=["en", "de" if kind.pair else "en"])
            )
    assert export_rows(tmp_path, tmp_path / "rows", types) == dict.fromkeys(sorted(types), 1)
    rows = {p.parent.name: json.loads(p.read_text()) for p in (tmp_path / "rows").rglob("*.jsonl")}
    long_short = rows["long-short"]
    assert (long_short["query"], long_short["positive"]) == ("the input_text", "the label")
    assert long_short["negatives"] == ["the misleading_label"]
    assert rows["long-long"]["negatives"] == []
    assert (rows["bitext"]["lang_q"], rows["bitext"]["lang_d"]) == ("en", "de")
    assert rows["sts"]["id"] == "sts-2"
    assert set(rows["sts"]["metadata"]) == {
        "request",
        "type",
        "model",
        "template",
        "placeholders",
        "tokens",
        "cost",
    }
    assert len(list(read_rows(tmp_path / "rows"))) == 6


def test_the_folder_of_another_plan_is_refused(server: Scripted, tmp_path: Path) -> None:
    """What differs is named, nothing is asked or changed; taken back, the run goes on."""
    config = load_synthesis(write_config(tmp_path, server.url, shares="sts = 1", examples=5))
    generate(config)
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    with pytest.raises(
        InputError, match=r"holds examples of another plan \(what differs: seed\): take that back"
    ):
        generate(replace(config, seed=8))
    with pytest.raises(InputError, match=r"what differs: languages"):
        generate(replace(config, languages={"de": 1}))
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == before
    assert len(server.requests) == 5
    assert generate(replace(config, examples=7)).rows == {"sts": 7}


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", "[" * 5000, '{"digest": 3}', '{"format": 9, "digest": "a", "parts": {}}']
)
def test_a_broken_plan_file(text: str, tmp_path: Path) -> None:
    """A plan.json that is none, or of another format, is one sentence."""
    (tmp_path / "plan.json").write_text(text)
    with (
        pytest.raises(StoreError, match=r"plan\.json (cannot be read as a plan|is of another format)"),
        _store(tmp_path),
    ):
        pass


def test_lines_carry_their_checksum() -> None:
    """A line is JSON, and any change of it is seen."""
    line = encode(_example(1))
    assert json.loads(line)["record"] == decode(line) == _example(1)
    for at in range(0, len(line), 7):
        assert decode(line[:at] + bytes([line[at] ^ 1]) + line[at + 1 :]) is None or at in (
            *range(11),
            *range(19, 32),
        )


@pytest.mark.parametrize(
    ("ceiling", "value"), [("max_requests", 7), ("max_tokens", 20_000), ("max_cost", 0.4)]
)
def test_ceilings_hold(ceiling: str, value: float, server: Scripted, tmp_path: Path) -> None:
    """A run ends before the request that could break a ceiling, and so does the next; a higher one lets it go on."""
    prices = "price_input = 10\nprice_output = 30\nmax_tokens = 1000"
    path = write_config(tmp_path, server.url, shares="sts = 1", examples=200, model="max_tokens = 1000")
    path.write_text(path.read_text().replace("price_input = 0\nprice_output = 0\nmax_tokens = 1000", prices))
    config = load_synthesis(path, [f"{ceiling}={value}"])
    report = generate(config)
    spent = report.run.spent
    assert report.run.stopped == ceiling
    used = {
        "max_requests": spent.requests,
        "max_tokens": spent.tokens_in + spent.tokens_out,
        "max_cost": spent.cost,
    }
    assert 0.75 * value - 1000 * (ceiling == "max_tokens") <= used[ceiling] <= value
    assert report.run.left == 200 - report.run.stored > 0
    again = generate(config)
    assert again.run.stopped == ceiling
    more = generate(load_synthesis(path, [f"{ceiling}={2 * value}"]))
    assert more.run.spent.stored > again.run.spent.stored


async def test_a_budget_counts_what_is_under_way() -> None:
    """Two requests that fit one by one do not fit together; the second waits until the first is settled."""
    model = ModelConfig("m", price_input=1e6, price_output=1e6, max_tokens=50)
    budget = Budget(SynthesisConfig(models=(model,), max_tokens=100), Spent())
    first = await budget.reserve(model, 10)
    budget.settle(first, (10, 20))
    second = await budget.reserve(model, 10)
    budget.settle(second, (10, 50))
    with pytest.raises(Exhausted, match="max_tokens"):
        await budget.reserve(model, 10)
    assert (budget.tokens, budget.cost, budget.requests) == (90, 90, 2)


def test_prices_are_asked_for() -> None:
    """A model in use without a price is named, with both ways out; one that is never asked needs none."""
    known = ModelConfig("a", price_input=0.0, price_output=0.0)
    with pytest.raises(
        InputError, match=r"no price is known for the model b: set models\.b\.price_input .*--no-budget"
    ):
        check_prices(SynthesisConfig(models=(known, ModelConfig("b"))))
    check_prices(SynthesisConfig(models=(known, ModelConfig("b", share=0))))
