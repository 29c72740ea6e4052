"""Several stages in one run: each trains its own weights, and a checkpoint keeps what the earlier ones trained."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from embedkit.contract import Template
from embedkit_trainer.config.records import (
    LoraConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
)
from embedkit_trainer.events import Event, StepEvent
from embedkit_trainer.loop import train
from tests.embedkit.tiny_models import BERT, LLAMA, TEXTS, save_model


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """Return a run of two stages of two steps on a tiny BERT: word embeddings alone, then the second layer alone."""
    with (tmp_path / "rows.jsonl").open("w", encoding="utf-8") as f:
        for number, text in enumerate(TEXTS * 2):
            f.write(json.dumps({"query": text[:8], "positive": f"{text} {number}"}) + "\n")
    first = StageConfig(
        name="first",
        sources=(SourceConfig(path=str(tmp_path / "rows.jsonl"), name="rows"),),
        batch_size=6,
        epochs=9,
        max_steps=2,
        query_length=32,
        document_length=64,
        loss=LossConfig(temperature=0.05),
        optimizer=OptimizerConfig(lr=1e-3, warmup_steps=0),
        trainable=("word_embeddings",),
        gradient_checkpointing=True,
    )
    second = replace(first, name="second", trainable=(r"layer\.1\.",), gradient_checkpointing=False)
    base = save_model(tmp_path / "base", "Bert", BERT)
    model = ModelConfig(name=str(base), pooling="mean", template=Template())
    return RunConfig(
        output=str(tmp_path / "model"), model=model, stages=(first, second), device="cpu", seed=3
    )


def _moved(config: RunConfig) -> set[str]:
    before, after = (load_file(Path(f) / "model.safetensors") for f in (config.model.name, config.output))
    return {k for k in after if not torch.equal(before[k], after[k])}


def test_each_stage_trains_its_own(config: RunConfig) -> None:
    """Both stages' weights moved, and no others."""
    train(config)
    moved = _moved(config)
    assert "embeddings.word_embeddings.weight" in moved
    assert len(moved) > 10
    assert all("word_embeddings" in n or "layer.1." in n for n in moved)


def test_a_later_stage_without_patterns_trains_all(config: RunConfig) -> None:
    """What the first stage left out trains in a second one that names nothing."""
    train(replace(config, stages=(config.stages[0], replace(config.stages[1], trainable=()))))
    names = load_file(Path(config.output) / "model.safetensors").keys()
    assert {n for n in names if n not in _moved(config)} == {"pooler.dense.weight", "pooler.dense.bias"}


def test_a_stop_in_the_second_stage_keeps_the_first(config: RunConfig, tmp_path: Path) -> None:
    """A run stopped in its second stage goes on with what the first one trained, to the same weights, bit for bit."""
    whole = replace(config, output=str(tmp_path / "whole"))
    train(whole)

    def stop(event: Event) -> None:
        if isinstance(event, StepEvent) and event.stage == "second" and event.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    assert train(config, stop).stopped
    assert train(config).steps == 1
    one, two = (load_file(Path(c.output) / "model.safetensors") for c in (whole, config))
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_an_adapter_begins_where_the_seed_says(config: RunConfig, tmp_path: Path) -> None:
    """Two runs of one LoRA config end at the same weights, whatever random numbers were drawn before; seeds differ."""
    base = save_model(tmp_path / "mistral", "Mistral", LLAMA)
    lora = ModelConfig(name=str(base), tuning="lora", lora=LoraConfig(r=4), template=Template())
    stage = replace(config.stages[0], trainable=(), gradient_checkpointing=False)
    config = replace(config, model=lora, stages=(stage,))
    found = []
    for number, seed in enumerate((3, 3, 4)):
        torch.manual_seed(number)
        one = replace(config, output=str(tmp_path / f"out{number}"), seed=seed)
        train(one)
        found.append(load_file(Path(one.output) / "model.safetensors")["layers.0.mlp.up_proj.weight"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
