"""AdamW and its rates: the schedule at every step, which weights decay, which train."""

from __future__ import annotations

import math

import pytest
import torch

from embedkit.errors import InputError
from embedkit_trainer.config.records import OptimizerConfig
from embedkit_trainer.optimization import (
    build_optimizer,
    lr_factor,
    select_trainable,
    set_lr,
    trainable_names,
    warmup_steps,
)
from tests.trainer.tiny_backbones import tiny_backbone


def test_linear_warm_up_and_decay() -> None:
    """The rate climbs to its peak over the warm-up and falls in a line that ends one step after the last."""
    config = OptimizerConfig(warmup_steps=4)
    rates = [lr_factor(config, step, 10) for step in range(1, 11)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, *(1 - n / 7 for n in range(1, 7))])
    assert rates[-1] > 0


def test_cosine_and_constant() -> None:
    """Cosine passes one half halfway between warm-up and end; constant stays at the peak after the warm-up."""
    cosine = OptimizerConfig(warmup_steps=2, schedule="cosine")
    assert lr_factor(cosine, 2, 9) == 1
    assert lr_factor(cosine, 6, 9) == pytest.approx(0.5)
    assert lr_factor(cosine, 4, 9) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    constant = OptimizerConfig(warmup_steps=2, schedule="constant")
    assert [lr_factor(constant, s, 5) for s in range(1, 6)] == [0.5, 1, 1, 1, 1]


def test_no_warm_up_begins_at_the_first_decay() -> None:
    """Without warm-up the first step is already within the decay, and no rate is ever 0."""
    rates = [lr_factor(OptimizerConfig(warmup_steps=0), s, 3) for s in (1, 2, 3)]
    assert rates == pytest.approx([0.75, 0.5, 0.25])


@pytest.mark.parametrize(
    ("config", "steps", "expected"),
    [
        (OptimizerConfig(warmup_steps=100), 1000, 100),
        (OptimizerConfig(warmup_steps=100), 50, 5),  # a miniature is not all warm-up
        (OptimizerConfig(warmup_steps=100), 5, 0),
        (OptimizerConfig(warmup_ratio=0.1), 250, 25),
        (OptimizerConfig(warmup_ratio=0.0, warmup_steps=7), 250, 0),
    ],
)
def test_warm_up_steps(config: OptimizerConfig, steps: int, expected: int) -> None:
    """A ratio goes before a number, and a number too large for the run becomes a tenth of it."""
    assert warmup_steps(config, steps) == expected


def test_only_matrices_decay() -> None:
    """Biases and norms are in a group without decay; every trained weight is in exactly one group."""
    model = tiny_backbone("Bert")
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.1))
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(decay) == len(trained)
    for name, parameter in trained.items():
        plain = name.endswith("bias") or "LayerNorm" in name
        assert decay[id(parameter)] == (0.0 if plain else 0.1), name


def test_embeddings_have_a_rate_of_their_own() -> None:
    """`embedding_lr` is the peak of the embeddings alone, and both rates follow one schedule."""
    model = tiny_backbone("Bert")
    optimizer = build_optimizer(model, OptimizerConfig(lr=1e-3, embedding_lr=1e-2))
    assert (
        set_lr(optimizer, 0.5) == 5e-4
    )  # what is told is `lr`, although the embeddings come first in the model
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert rates[id(parameter)] == (5e-3 if "embeddings.weight" in name else 5e-4), name


def test_set_lr_returns_the_rate() -> None:
    """The rate told is the one in force, and setting it twice does not compound."""
    optimizer = build_optimizer(tiny_backbone("Mistral"), OptimizerConfig(lr=2e-4))
    set_lr(optimizer, 0.5)
    assert set_lr(optimizer, 0.25) == pytest.approx(5e-5)
    assert {g["lr"] for g in optimizer.param_groups} == {5e-5}


def test_patterns_choose_what_trains() -> None:
    """Names that match any pattern train; none means all; one that matches nothing is refused with examples."""
    model = tiny_backbone("Bert")
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trainable_names(names, ()) == names
    chosen = trainable_names(names, (r"word_embeddings", r"layer\.1\."))
    assert 1 < len(chosen) < len(names)
    assert all("word_embeddings" in n or "layer.1." in n for n in chosen)
    with pytest.raises(InputError, match=r"'wrod' matches no parameter; they are named like 'embeddings"):
        trainable_names(names, ("word", "wrod"))


def test_a_later_stage_may_train_more() -> None:
    """What one stage froze the next one trains again, but a pooler that never trained stays frozen."""
    model = tiny_backbone("Bert")
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    select_trainable(model, trainable_names(names, (r"word_embeddings",)))
    assert sum(p.requires_grad for p in model.parameters()) == 1
    select_trainable(model, trainable_names(names, ()))
    assert [n for n, p in model.named_parameters() if p.requires_grad] == names
    assert not any("pooler" in n for n in names)


def test_nothing_to_train_is_refused() -> None:
    """A model that is frozen altogether gets no optimiser."""
    model = torch.nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(InputError, match="nothing is trainable"):
        build_optimizer(model, OptimizerConfig())


def test_a_decay_that_ends_early_is_the_beginning_of_a_longer_one() -> None:
    """300 steps that end at 0.6782 of the peak have the rates of the first 300 of 850 that end at 0."""
    short, long = OptimizerConfig(warmup_steps=40, lr_end=550 / 811), OptimizerConfig(warmup_steps=40)
    for step in (1, 40, 41, 170, 300):
        assert lr_factor(short, step, 300) == pytest.approx(lr_factor(long, step, 850))
