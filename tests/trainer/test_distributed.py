"""Several processes: gradients, whole runs and saved models are those of one process on the same global batches."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from embedkit import get_embedder
from embedkit.contract import Template
from embedkit.errors import InputError
from embedkit_trainer.backend import DEEPSPEED_CONFIG, Backend
from embedkit_trainer.config.records import (
    DevConfig,
    LoraConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
)
from embedkit_trainer.distributed import World
from embedkit_trainer.events import TrainReport
from embedkit_trainer.gradcache import train_step
from embedkit_trainer.loop import train
from embedkit_trainer.losses.objective import build_objective
from tests.embedkit.tiny_models import BERT, LLAMA, TEXTS, save_model
from tests.trainer.distributed_worker import BATCHES, MODELS, PLANS, loss_config
from tests.trainer.tiny_backbones import distance, flat_gradient, tiny_model, token_batch

WORDS = [w for text in TEXTS for w in text.split()][:24]
ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("distributed_worker.py")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keep torch to one thread, as in the workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def launch(*command: str) -> subprocess.CompletedProcess[str]:
    """Run two processes by torchrun, one thread each."""
    folders = [ROOT, ROOT / "trainer", ROOT / "cli", ROOT / "indexes"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, *command], env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return done


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of 30 rows with no, one or two negatives."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    draw = np.random.default_rng(1)
    with path.open("w", encoding="utf-8") as f:
        for n in range(30):
            a, b, c, d = draw.choice(len(WORDS), 4, replace=False)
            long = f"The {WORDS[b]} and the {WORDS[a]} {n}." + " and so on" * int(draw.integers(0, 8))
            negatives = [f"The {WORDS[c]} of {WORDS[d]}", f"No {WORDS[c]}"][: n % 3]
            row = {"query": f"{WORDS[a]} {WORDS[b]}", "positive": long, "negatives": negatives}
            f.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory, rows: Path) -> DevConfig:
    """Return the rows' positives as a BEIR folder, asked for by their queries."""
    folder = tmp_path_factory.mktemp("beir")
    read = [json.loads(line) for line in rows.read_text().splitlines()]
    corpus = [json.dumps({"_id": f"d{i}", "text": r["positive"]}) for i, r in enumerate(read)]
    queries = [json.dumps({"_id": f"q{i}", "text": r["query"]}) for i, r in enumerate(read)]
    (folder / "corpus.jsonl").write_text("\n".join(corpus))
    (folder / "queries.jsonl").write_text("\n".join(queries))
    lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\td{i}\t1" for i in range(len(read)))]
    (folder / "qrels.tsv").write_text("\n".join(lines))
    return DevConfig(folders=(str(folder),), every=2)


def make_config(rows: Path, output: Path, model: ModelConfig, **stage: Any) -> RunConfig:
    """Return a run of five steps of seven rows, so that no share is even."""
    values: dict[str, Any] = {
        "sources": (SourceConfig(path=str(rows), name="rows", instructions=("Find the sentence",)),),
        "batch_size": 7,
        "negatives": 2,
        "max_steps": 5,
        "epochs": 9,
        "query_length": 32,
        "document_length": 48,
        "chunk_tokens": 96,
        "loss": LossConfig(temperature=0.05),
        "optimizer": OptimizerConfig(lr=2e-3, warmup_steps=0, eps=1e-6),
    }
    return RunConfig(
        output=str(output), model=model, stages=(StageConfig(**(values | stage)),), save_every=2, device="cpu"
    )


@dataclass(frozen=True)
class Runs:
    """The runs of two processes of one kind, `folder` with what they found, and their configs by name."""

    folder: Path
    configs: dict[str, RunConfig]

    def reports(self, name: str) -> tuple[TrainReport, TrainReport, list[str]]:
        """Return the main process's reports, of the run stopped at step 3 and of its end, and what it told."""
        found = [pickle.loads((self.folder / f"{name}.report{rank}").read_bytes()) for rank in (0, 1)]
        assert found[1][2] == []  # the second process says nothing
        assert [r.stopped for r in found[0][:2]] == [r.stopped for r in found[1][:2]] == [True, False]
        assert [r.steps for r in found[0][:2]] == [3, 2]
        first: tuple[TrainReport, TrainReport, list[str]] = found[0]
        return first


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, rows: Path, dev: DevConfig) -> dict[str, RunConfig]:
    """Train a small BERT, and an adapter on a small Mistral, in this process alone; return the configs."""
    folder = tmp_path_factory.mktemp("alone")
    bert = ModelConfig(
        name=str(save_model(folder / "bert", "Bert", BERT)), pooling="mean", template=Template()
    )
    mistral = ModelConfig(
        name=str(save_model(folder / "mistral", "Mistral", LLAMA)),
        tuning="lora",
        lora=LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0),
        template=Template(),
    )
    configs = {
        "full": replace(make_config(rows, folder / "full", replace(bert, dropout=0.0)), dev=dev),
        "lora": make_config(rows, folder / "lora", mistral, packing=True, gradient_checkpointing=True),
    }
    for config in configs.values():
        assert train(config).steps == 5
    return configs


def run_two(alone: dict[str, RunConfig], folder: Path, kind: Any) -> Runs:
    """Do the same in two processes, after comparing gradients."""
    configs = {n: replace(c, output=str(folder / n), backend=kind) for n, c in alone.items()}
    for name, config in configs.items():
        (folder / f"{name}.pickle").write_bytes(pickle.dumps(config))
    launch(str(WORKER), kind, str(folder))
    return Runs(folder, configs)


@pytest.fixture(scope="module")
def ddp(alone: dict[str, RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Run BERT in two processes under DDP."""
    return run_two({"full": alone["full"]}, tmp_path_factory.mktemp("ddp"), "ddp")


@pytest.fixture(scope="module")
def fsdp2(alone: dict[str, RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Run both in two processes under FSDP2."""
    return run_two(alone, tmp_path_factory.mktemp("fsdp2"), "fsdp2")


def weights(folder: str) -> dict[str, torch.Tensor]:
    """Return a finished model's weights."""
    return load_file(Path(folder) / "model.safetensors")


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Return the largest difference between equally named weights."""
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max()) for k in a)


def figures(config: RunConfig) -> list[dict[str, Any]]:
    """Return what a run noted of its steps and dev sets."""
    lines = Path(f"{config.output}.work/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def last_checkpoint(config: RunConfig) -> Path:
    """Return the folder of the checkpoint after the last step."""
    return Path(f"{config.output}.work/checkpoints/stage00-step00000005")


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_give_the_gradient_of_one(kind: str, request: pytest.FixtureRequest) -> None:
    """Uneven rows, uneven chunks, a process without any: the same loss and gradient as one process on the batch."""
    found = torch.load(request.getfixturevalue(kind).folder / "gradients.pt")
    for family, options in MODELS:
        for i, plan in enumerate(PLANS):
            for j, counts in enumerate(BATCHES):
                model = tiny_model(family, **options)
                packed = replace(plan, packed=options.get("packed", False))
                result = train_step(model, token_batch(counts), build_objective(loss_config()), plan=packed)
                loss, gradient = found[family, i, j]
                expected = flat_gradient(model)
                assert loss == pytest.approx(result.loss, rel=1e-5)
                assert expected.norm() > 1e-3
                apart, largest = distance(gradient, expected)
                assert apart < 1e-8
                assert largest < 1e-4


@pytest.mark.parametrize(("kind", "tolerance"), [("ddp", 1e-5), ("fsdp2", 1e-4)])
def test_a_run_of_two_processes_ends_where_one_does(
    kind: str, tolerance: float, alone: dict[str, RunConfig], request: pytest.FixtureRequest
) -> None:
    """Stopped by a signal to one process and gone on, two processes come to the weights, scores and model of one."""
    runs: Runs = request.getfixturevalue(kind)
    one, two = alone["full"], runs.configs["full"]
    _, report, notes = runs.reports("full")
    assert sum("going on from stage00-step00000003" in n for n in notes) == 1
    ends = [load_file(last_checkpoint(c) / "weights.safetensors") for c in (one, two)]
    assert largest_difference(*ends) < tolerance
    assert largest_difference(weights(two.output), weights(one.output)) < tolerance
    base = load_file(Path(one.model.name) / "model.safetensors")
    assert max(float((base[n.removeprefix("backbone.")] - w).abs().max()) for n, w in ends[1].items()) > 1e-3
    told = [[(f["step"], f.get("loss"), f.get("mean")) for f in figures(c)] for c in (one, two)]
    assert [(step, loss is None) for step, loss, _ in told[1]] == [(s, x is None) for s, x, _ in told[0]]
    for expected, got in zip(*told, strict=True):
        assert got[1:] == pytest.approx(expected[1:], abs=1e-3)
    assert report.best == pytest.approx(max(mean for _, _, mean in told[0] if mean is not None), abs=1e-3)
    first, second = (
        get_embedder(f"transformer:{c.output}", dtype="float32").encode_document(["Salt and rain."])
        for c in (one, two)
    )
    assert np.allclose(first, second, atol=1e-4)


def test_shards_are_saved_as_one_process_saves(alone: dict[str, RunConfig], fsdp2: Runs) -> None:
    """FSDP2 with LoRA: the merged model and the whole checkpoint, moments included, are those of one process."""
    one, two = alone["lora"], fsdp2.configs["lora"]
    fsdp2.reports("lora")
    assert largest_difference(weights(two.output), weights(one.output)) < 1e-4
    assert largest_difference(weights(two.output), weights(one.model.name)) > 1e-3
    ends = [load_file(last_checkpoint(c) / "weights.safetensors") for c in (one, two)]
    assert largest_difference(*ends) < 1e-4
    states = [torch.load(last_checkpoint(c) / "optimizer.pt", weights_only=True) for c in (one, two)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    assert states[0]["state"].keys() == states[1]["state"].keys()
    for number, entry in states[0]["state"].items():
        assert entry.keys() == states[1]["state"][number].keys()
        for name, moment in entry.items():
            assert torch.allclose(moment, states[1]["state"][number][name], rtol=1e-2, atol=1e-5)


def test_one_process_goes_on_where_two_stopped(
    alone: dict[str, RunConfig], fsdp2: Runs, tmp_path: Path
) -> None:
    """A checkpoint of shards is read by a single process without a backend, which ends at the same weights."""
    one, two = alone["lora"], fsdp2.configs["lora"]
    shutil.copytree(f"{two.output}.work/cache", tmp_path / "on.work" / "cache")
    step = "checkpoints/stage00-step00000004"
    shutil.copytree(f"{two.output}.work/{step}", tmp_path / "on.work" / step)
    assert train(replace(two, output=str(tmp_path / "on"), backend="auto")).steps == 1
    assert largest_difference(weights(str(tmp_path / "on")), weights(one.output)) < 1e-4


def test_slices_cover_the_batch() -> None:
    """Shares of rows are even, in order, and own their documents, for any number of processes."""
    batch = token_batch((2, 1, 3, 1, 2, 1, 4))
    for size in range(1, 9):
        world = World()
        world.size = size
        shares = world.slices(batch)
        for kind, total in (("queries", 7), ("documents", 14)):
            edges = [getattr(s, kind) for s in shares]
            assert [e[0] for e in edges] == [0, *(e[1] for e in edges[:-1])]
            assert edges[-1][1] == total
        counts = [s.queries[1] - s.queries[0] for s in shares]
        assert max(counts) - min(counts) <= 1
        assert all(s.documents == tuple(batch.offsets[list(s.queries)]) for s in shares)


def test_deepspeed_is_configured_and_missed_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped config is stage 3 with batches of ours; without the package, or with two stages, one sentence says so."""
    shipped = json.loads(DEEPSPEED_CONFIG.read_text())
    assert shipped["zero_optimization"]["stage"] == 3
    assert shipped["gradient_accumulation_steps"] == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    config = RunConfig(backend="deepspeed", device="cpu", stages=(StageConfig(),))
    with pytest.raises(InputError, match="pip install deepspeed"):
        Backend(config)
    with pytest.raises(InputError, match="one stage a run"):
        Backend(replace(config, stages=(StageConfig(), StageConfig())))
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(InputError, match="its checkpoints hold no optimiser"):
        Backend(replace(config, backend="auto")).load_optimizer_state(None, {})


def test_fsdp2_shards_what_trains_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages that train different weights are refused before anything is loaded."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    stages = (StageConfig(trainable=("word_embeddings",)), StageConfig())
    with pytest.raises(InputError, match="differ in `trainable`"):
        Backend(RunConfig(backend="fsdp2", device="cpu", stages=stages))
