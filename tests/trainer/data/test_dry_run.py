"""The survey of a run: rows, lengths, rendered examples, steps, and what is refused before weights are read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from embedkit.contract import Template
from embedkit.errors import InputError
from embedkit_trainer.config.records import (
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
)
from embedkit_trainer.config.tiny_model import make_tiny_model
from embedkit_trainer.data.dry_run import Survey, survey
from tests.embedkit.tiny_models import TEXTS

LONG = "salt and pepper " * 40


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mistral."""
    return make_tiny_model(tmp_path_factory.mktemp("base"), "mistral", TEXTS, seed=0)


def _config(base: Path, folder: Path, rows: list[dict[str, Any]], **stage: Any) -> RunConfig:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in rows))
    options: dict[str, Any] = {"batch_size": 4, "query_length": 32, "document_length": 24, **stage}
    source = SourceConfig(str(path), "mine", instructions=("Find the answer",))
    settings = StageConfig(sources=(source,), optimizer=OptimizerConfig(warmup_steps=3), **options)
    model = ModelConfig(str(base), pooling="last", template=Template())
    return RunConfig(model=model, stages=(settings,), output=str(folder / "out"))


def _rows(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"query": f"q {i}", "positive": f"p {i}", **more} for i in range(count)]


def _survey(*args: Any, **stage: Any) -> Survey:
    return survey(_config(*args, **stage), examples=1)


def test_examples_are_the_exact_strings_and_ids(base: Path, tmp_path: Path) -> None:
    """The example shows the rendered query, its ids between BOS and EOS, and the bare document."""
    found = _survey(base, tmp_path, _rows(8, negatives=["n"]))
    (example,) = found.stages[0].sources[0].examples
    assert [t.side for t in example.texts] == ["query", "positive", "negative"]
    query, positive, negative = example.texts
    assert query.text == "Instruct: Find the answer\nQuery: q 0"
    assert (positive.text, negative.text) == ("p 0", "n")
    for text in example.texts:
        assert (text.tokens[0], text.tokens[-1]) == ("<s>", "</s>")
        assert (text.ids[0], text.ids[-1]) == (1, 2)
        assert text.ends_with_special
    assert example.instruction == "Find the answer"


def test_lengths_and_cuts(base: Path, tmp_path: Path) -> None:
    """Lengths count special tokens; texts over the limit are counted as cut, and still end in EOS."""
    rows = [*_rows(3), {"query": "q", "positive": LONG}]
    source = _survey(base, tmp_path, rows).stages[0].sources[0]
    assert source.documents.longest == 24
    assert source.documents.median < 24
    assert source.documents.cut == 0.25
    assert source.queries.cut == 0
    assert (source.rows, source.instructed, source.negatives) == (4, 4, 0.0)


def test_steps_and_negatives(base: Path, tmp_path: Path) -> None:
    """Accumulation divides the updates and leaves the negatives per query as they are."""
    rows = _rows(40, negatives=["n"])
    plain = _survey(base, tmp_path, rows, epochs=2.0).stages[0]
    assert (plain.steps, plain.updates, plain.warmup, plain.negatives_per_query) == (20, 20, 3, 7)
    summed = _survey(base, tmp_path, rows, epochs=2.0, accumulation=5).stages[0]
    assert (summed.updates, summed.queries_per_update, summed.negatives_per_query) == (4, 20, 7)
    assert any("does not enlarge" in r for r in summed.remarks)
    assert not any("does not enlarge" in r for r in plain.remarks)


def test_agrees_with_the_run(base: Path, tmp_path: Path) -> None:
    """The survey's steps and warm-up are those of the stage that training opens, from the same cache."""
    from embedkit_trainer.optimization import warmup_steps
    from embedkit_trainer.stage import open_stages

    config = _config(base, tmp_path, _rows(40), max_steps=3, accumulation=2)
    surveyed = survey(config).stages[0]
    made = sorted(p.name for p in (tmp_path / "out.work" / "cache" / "tokens").iterdir())
    _, (stage,), _ = open_stages(config, lambda _: None)
    assert stage.steps == surveyed.updates == 3
    assert warmup_steps(stage.config.optimizer, stage.steps) == surveyed.warmup
    assert sorted(p.name for p in (tmp_path / "out.work" / "cache" / "tokens").iterdir()) == made


def test_several_processes(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch is the global one: processes divide it."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = _survey(base, tmp_path, _rows(8))
    assert (found.processes, found.stages[0].per_process, found.stages[0].batch_size) == (2, 2.0, 4)


def test_remarks(base: Path, tmp_path: Path) -> None:
    """Rows without hard negatives and sources below a batch are pointed out."""
    remarks = _survey(base, tmp_path, _rows(3)).stages[0].remarks
    assert any("without hard negatives in mine" in r for r in remarks)
    assert any("fewer rows than a batch in mine" in r for r in remarks)


def test_graded_losses_need_scores(base: Path, tmp_path: Path) -> None:
    """A row without a score is named with its line before anything is trained."""
    rows: list[dict[str, Any]] = [
        {"query": "a", "positive": "b", "score": 0.5},
        {"query": "a", "positive": "b"},
    ]
    config = _config(base, tmp_path, rows, loss=LossConfig("cosent"))
    with pytest.raises(InputError, match=r"source 'mine', line 2, has no score"):
        survey(config)
    config = _config(base, tmp_path, rows, loss=LossConfig("distil_kl"))
    with pytest.raises(InputError, match="no row of source 'mine' has teacher_scores"):
        survey(config)
    scored = [{**rows[1], "negatives": ["c"], "teacher_scores": [2.0, 1.0]}, rows[1]]
    survey(_config(base, tmp_path, scored, loss=LossConfig("distil_kl")))


def test_bad_data_is_refused(base: Path, tmp_path: Path) -> None:
    """A row without a positive and an empty source are one sentence with file, line or name."""
    with pytest.raises(InputError, match=r"rows\.jsonl, line 2: .*positive"):
        survey(_config(base, tmp_path, [*_rows(1), {"query": "lonely"}]))
    with pytest.raises(InputError, match="holds no rows"):
        survey(_config(base, tmp_path, []))
    config = _config(base, tmp_path, _rows(4))
    with pytest.raises(InputError, match="above the model's 512 positions"):
        survey(replace(config, stages=(replace(config.stages[0], query_length=4096),)))
