"""Miniatures: tiny models of each architecture, slices of the data, samples where data is missing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from embedkit.contract import Pooling
from embedkit.embedders.transformer import TransformerEmbedder
from embedkit.errors import InputError
from embedkit_trainer.config.base_models import find_architecture
from embedkit_trainer.config.file import load_config
from embedkit_trainer.config.records import (
    DevConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    TeacherConfig,
)  # fmt: skip
from embedkit_trainer.config.tiny import BATCH, LENGTH, ROWS, STEPS, sample_path, shrink, stand_ins
from embedkit_trainer.config.tiny_model import WIDTH, make_tiny_model
from embedkit_trainer.data.formats.registry import FORMATS, load_rows
from tests.embedkit.tiny_models import TEXTS


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A file of a hundred rows."""
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"query": f"question {i}", "positive": f"answer number {i}"}) for i in range(100)]
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize(
    ("model_type", "pooling"),
    [
        ("mistral", "last"), ("llama", "mean"), ("qwen3", "last"), ("qwen2", "last"), ("gemma3_text", "mean"),
        ("bert", "cls"), ("xlm-roberta", "mean"),
    ],
)  # fmt: skip
def test_every_architecture_embeds(tmp_path: Path, model_type: str, pooling: Pooling) -> None:
    """Each tiny model opens as an embedder, tells texts apart, and is the same for the same seed alone."""
    folder = make_tiny_model(tmp_path, model_type, TEXTS, seed=3)
    assert json.loads((folder / "config.json").read_text())["model_type"] == model_type
    vectors = TransformerEmbedder.open(str(folder), pooling=pooling).encode_document(TEXTS[:3])
    assert vectors.shape == (3, WIDTH)
    assert (vectors @ vectors.T)[~np.eye(3, dtype=bool)].max() < 0.999
    assert make_tiny_model(tmp_path, model_type, TEXTS, seed=3) == folder
    again = make_tiny_model(tmp_path / "again", model_type, TEXTS, seed=3)
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert (again / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert make_tiny_model(tmp_path, model_type, TEXTS, seed=4) != folder


def test_making_a_model_leaves_random_numbers_alone(tmp_path: Path) -> None:
    """The run's own random numbers are the same whether the tiny model is made now or was there."""
    import torch

    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    make_tiny_model(tmp_path, "bert", TEXTS, seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("name", "model_type"),
    [
        ("mistralai/Mistral-7B-v0.1", "mistral"), ("meta-llama/Llama-2-7b-hf", "llama"), ("bert-base-uncased", "bert"),
        ("google-bert/bert-base-uncased", "bert"), ("thenlper/gte-base", "bert"), ("intfloat/e5-base", "bert"),
        ("FacebookAI/xlm-roberta-base", "xlm-roberta"), ("intfloat/multilingual-e5-small", "xlm-roberta"),
        ("Qwen/Qwen3-Embedding-0.6B", "qwen3"), ("google/embeddinggemma-300m", "gemma3_text"),
        ("nreimers/MiniLM-L6-H384-uncased", "bert"), ("intfloat/e5-mistral-7b-instruct", "mistral"),
    ],
)  # fmt: skip
def test_architecture_by_name(name: str, model_type: str) -> None:
    """A hub id's architecture is told from its name, so that nothing is fetched."""
    assert find_architecture(name).model_type == model_type


def test_architecture_of_a_folder(tmp_path: Path) -> None:
    """A folder's architecture is its config.json's, an adapter's its base's; a name that says nothing is refused."""
    folder = make_tiny_model(tmp_path, "xlm-roberta", TEXTS, seed=0)
    assert find_architecture(str(folder)).model_type == "xlm-roberta"
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(folder)})
    )
    assert find_architecture(str(tmp_path / "adapter")).model_type == "xlm-roberta"
    with pytest.raises(InputError, match="cannot be told from its name"):
        find_architecture("somebody/something")
    with pytest.raises(InputError, match="has no model of the architecture 't5'"):
        make_tiny_model(tmp_path, "t5", TEXTS, seed=0)


def test_shrink(tmp_path: Path, rows: Path) -> None:
    """What makes a run itself stays, what makes it long shrinks; all of it still passes for a config."""
    source = SourceConfig(
        str(rows), "rows", ratio=0.1, negatives=7, instructions=("Find",), instruction_dropout=0.5
    )
    stage = StageConfig(
        sources=(source,), batch_size=512, epochs=3.0, document_length=48, negatives=7, alpha=0.5, batches="mixed",
        loss=LossConfig("gte", 0.01, matryoshka=(64, 256)), optimizer=OptimizerConfig(2e-5, warmup_ratio=0.1),
        chunk_tokens=16384, accumulation=4, gradient_checkpointing=True,
    )  # fmt: skip
    model = ModelConfig("mistralai/Mistral-7B-v0.1", revision="abc", tuning="qlora", pooling="last")
    dev = DevConfig(("nowhere",), tasks=("qa",))
    before = RunConfig(model=model, stages=(stage,), precision="bfloat16", dev=dev, tracker="wandb")
    after = shrink(before, tmp_path / "work")
    small = after.stages[0]
    assert find_architecture(after.model.name).model_type == "mistral"
    assert Path(after.model.name).is_relative_to(tmp_path / "work")
    assert (after.model.tuning, after.model.pooling, after.model.revision) == ("lora", "last", None)
    assert (small.batch_size, small.max_steps, small.query_length, small.document_length) == (
        BATCH,
        STEPS,
        LENGTH,
        48,
    )
    assert (small.loss.name, small.loss.temperature, small.loss.matryoshka) == ("gte", 0.01, (32, 48))
    assert (small.alpha, small.batches, small.gradient_checkpointing) == (0.5, "mixed", True)
    assert (small.optimizer.lr, small.accumulation, small.negatives) == (2e-5, 2, 2)
    kept = replace(source, ratio=1.0, negatives=2, limit=ROWS)
    assert small.sources == (kept,)
    assert (after.device, after.precision, after.tracker, after.dev) == ("cpu", "float32", "none", None)
    assert stand_ins(before, after) == []
    assert shrink(before, tmp_path / "work") == after


def test_dev_sets_that_are_there_stay(tmp_path: Path, rows: Path) -> None:
    """Dev folders that exist are measured in miniature too, each with its own task."""
    (tmp_path / "dev").mkdir()
    stage = StageConfig(sources=(SourceConfig(str(rows), "rows"),))
    dev = DevConfig(("gone", str(tmp_path / "dev")), tasks=("qa", "duplicate"))
    after = shrink(RunConfig(model=ModelConfig("bert-base-uncased"), stages=(stage,), dev=dev), tmp_path)
    assert after.dev is not None
    assert (after.dev.folders, after.dev.tasks) == ((str(tmp_path / "dev"),), ("duplicate",))


def test_teacher_is_as_wide_as_the_student(tmp_path: Path, rows: Path) -> None:
    """A miniature distillation has a teacher of its own, not the student, and of its width."""
    loss, teacher = LossConfig("distil_mse"), TeacherConfig("thenlper/gte-small")
    stage = StageConfig(sources=(SourceConfig(str(rows), "rows"),), loss=loss, teacher=teacher)
    after = shrink(RunConfig(model=ModelConfig("bert-base-uncased"), stages=(stage,)), tmp_path)
    made = after.stages[0].teacher
    assert made is not None
    assert made.embedder != after.model.name
    assert TransformerEmbedder.open(made.embedder).info.dim == WIDTH


def test_samples_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a recipe's data is missing, the shipped sample of its format is taken, and the run says so."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "nli").mkdir()
    rows = sample_path("nli") / "snli_1.0_train.jsonl"
    (tmp_path / "data" / "nli" / rows.name).write_bytes(rows.read_bytes())
    config = load_config("e5-mistral-full", tiny=True)
    paths = {s.name: s.path for s in config.stages[0].sources}
    assert paths["nli"] == "data/nli"
    assert paths["squad"] == str(sample_path("squad"))
    with pytest.raises(InputError, match=r"'data/squad'.* do not exist"):
        load_config("e5-mistral-full")


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_every_format_has_a_sample(name: str) -> None:
    """Each format's sample is read by its own reader, and gives enough rows for a batch of two."""
    assert len(list(load_rows(name, sample_path(name)))) >= 2
