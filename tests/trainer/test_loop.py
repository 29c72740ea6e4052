"""The loop on a tiny model and real files: it learns, resumes bit for bit, stops on a signal, and loses nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from embedkit.contract import Template
from embedkit.embedders.transformer import TransformerEmbedder
from embedkit.errors import CheckpointError, CorpusError, InputError, TrainingError
from embedkit.tasks import get_task
from embedkit_trainer.config.records import (
    DevConfig,
    LossConfig,
    LossName,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    TeacherConfig,
)
from embedkit_trainer.data.teacher import TeacherVectors
from embedkit_trainer.events import DevEvent, Event, NoteEvent, StepEvent
from embedkit_trainer.loop import train
from embedkit_trainer.saving.checkpoint import Checkpoints
from embedkit_trainer.stage import open_stages
from tests.embedkit.tiny_models import BERT, LLAMA, save_model

WORDS = (
    "bicycle", "planet", "rain", "cook", "salt", "cloud", "city", "soup", "hour", "index", "pepper", "oil",
    "moon", "tyre", "air", "wait", "task", "text",
)  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of 48 rows: a query of two words, a longer text that holds them, one that does not."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rng = np.random.default_rng(1)
    with path.open("w", encoding="utf-8") as f:
        for n in range(48):
            a, b, c, d = rng.choice(len(WORDS), 4, replace=False)
            row = {
                "query": f"{WORDS[a]} {WORDS[b]}",
                "positive": f"The {WORDS[b]} and the {WORDS[a]} {n}."
                + " and so on" * int(rng.integers(0, 6)),
                "negatives": [f"The {WORDS[c]} of {WORDS[d]}"] if n % 3 else [],
            }
            f.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny BERT."""
    return save_model(tmp_path_factory.mktemp("bert"), "Bert", BERT)


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny Mistral."""
    return save_model(tmp_path_factory.mktemp("mistral"), "Mistral", LLAMA)


@pytest.fixture
def config(tmp_path: Path, rows: Path, bert: Path) -> RunConfig:
    """Return a run of nine steps on a tiny BERT, dropout on."""
    stage = StageConfig(
        sources=(SourceConfig(path=str(rows), name="rows", instructions=("Find the sentence",)),),
        batch_size=8,
        max_steps=9,
        epochs=9,
        query_length=32,
        document_length=48,
        chunk_tokens=128,
        loss=LossConfig(temperature=0.05),
        optimizer=OptimizerConfig(lr=2e-3, warmup_steps=2),
    )
    model = ModelConfig(name=str(bert), pooling="mean", template=Template())
    return RunConfig(output=str(tmp_path / "model"), model=model, stages=(stage,), save_every=4, device="cpu")


def _weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def _stage(config: RunConfig, **changes: object) -> RunConfig:
    return replace(config, stages=(replace(config.stages[0], **changes),))  # type: ignore[arg-type]


def _after(step: int, act: Callable[[], object]) -> Callable[[Event], None]:
    def listen(event: Event) -> None:
        if isinstance(event, StepEvent) and event.step == step:
            act()

    return listen


def test_the_loss_falls(config: RunConfig) -> None:
    """Nine steps on 48 rows lower the loss, and every step says what it did."""
    events: list[Event] = []
    report = train(config, events.append)
    steps = [e for e in events if isinstance(e, StepEvent)]
    assert [e.step for e in steps] == list(range(1, 10))
    assert np.mean([e.loss for e in steps[-3:]]) < 0.9 * np.mean([e.loss for e in steps[:3]])
    assert steps[1].lr == pytest.approx(2e-3)
    assert steps[-1].lr == pytest.approx(2e-3 / 8)
    assert all(e.tokens_per_second > 0 and 7 <= e.negatives_per_query <= 15 for e in steps)
    assert report.steps == 9
    assert not report.stopped
    assert (Path(report.folder) / "modules.json").is_file()


@pytest.mark.parametrize("step", [1, 4, 6])
def test_a_stopped_run_goes_on_bit_for_bit(config: RunConfig, tmp_path: Path, step: int) -> None:
    """SIGTERM after any step, then the same command: weights equal those of a run that was never stopped."""
    whole = replace(config, output=str(tmp_path / "whole"))
    train(whole)
    said: list[Event] = []
    stop = _after(step, lambda: os.kill(os.getpid(), signal.SIGTERM))

    def listen(event: Event) -> None:
        said.append(event)
        stop(event)

    stopped = train(config, listen)
    assert stopped.stopped
    assert sum(isinstance(e, NoteEvent) and e.text.startswith("stopping") for e in said) == 1
    assert not Path(config.output).exists()
    notes: list[Event] = []
    report = train(config, notes.append)
    assert any("going on" in e.text for e in notes if isinstance(e, NoteEvent))
    assert report.steps == 9 - step
    assert _equal(_weights(config.output), _weights(whole.output))


def test_a_killed_run_goes_on_from_its_last_checkpoint(config: RunConfig, tmp_path: Path) -> None:
    """A run that dies between checkpoints repeats the steps since, and ends at the same weights."""
    whole = replace(config, output=str(tmp_path / "whole"))
    train(whole)

    class Killed(Exception):
        pass

    def die() -> None:
        raise Killed

    with pytest.raises(Killed):
        train(config, _after(6, die))
    assert train(config).steps == 5
    assert _equal(_weights(config.output), _weights(whole.output))


def test_stages_follow_one_another(config: RunConfig, tmp_path: Path) -> None:
    """Two stages run with their own losses, and a stop in the second resumes there, bit for bit."""
    first = replace(config.stages[0], name="pre", max_steps=4)
    second = replace(
        config.stages[0], name="fine", max_steps=4, loss=LossConfig(name="gte", temperature=0.01)
    )
    config = replace(config, stages=(first, second))
    whole = replace(config, output=str(tmp_path / "whole"))
    seen: list[tuple[str, int]] = []

    def listen(event: Event) -> None:
        if isinstance(event, StepEvent):
            seen.append((event.stage, event.step))
            if event.stage == "fine" and event.step == 2:
                os.kill(os.getpid(), signal.SIGINT)

    train(whole)
    assert train(config, listen).stopped
    train(config, listen)
    assert seen == [("pre", n) for n in range(1, 5)] + [("fine", n) for n in range(1, 5)]
    assert _equal(_weights(config.output), _weights(whole.output))


def test_another_config_is_refused(config: RunConfig) -> None:
    """A checkpoint of another learning rate is not taken up, and stays; --fresh begins anew."""
    train(config, _after(5, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    other = _stage(config, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=2))
    with pytest.raises(CheckpointError, match="another config"):
        train(other)
    assert train(other, fresh=True).steps == 9


def test_a_broken_checkpoint_is_found(config: RunConfig) -> None:
    """A flipped byte in a checkpoint is refused by name."""
    train(config, _after(5, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    latest = Checkpoints(Path(f"{config.output}.work/checkpoints")).latest()
    assert latest is not None
    path = latest / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is missing or altered"):
        train(config)


def test_a_nan_loss_names_step_rows_and_checkpoint(config: RunConfig) -> None:
    """A loss that is no number stops the run with the step, its rows and the checkpoint before it."""

    class Poison:
        """Put a NaN into the model once step 5 is reported."""

        def __call__(self, event: Event) -> None:
            if isinstance(event, StepEvent) and event.step == 5:
                poisoned.append(True)

    poisoned: list[bool] = []
    forward = torch.nn.functional.layer_norm

    def broken(*args: object, **options: object) -> torch.Tensor:
        out = forward(*args, **options)  # type: ignore[arg-type]
        return out * float("nan") if poisoned else out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "layer_norm", broken)
        with pytest.raises(TrainingError) as caught:
            train(config, Poison())
    text = str(caught.value)
    assert "step 6" in text
    assert "nan" in text
    assert "rows (line " in text
    assert "stage00-step00000004" in text
    assert train(config).steps == 5


def test_lora_on_a_decoder(config: RunConfig, mistral: Path) -> None:
    """LoRA trains a decoder by its last token: the merged model differs from the base, the loss fell."""
    config = replace(
        config,
        model=ModelConfig(name=str(mistral), tuning="lora", template=Template()),
        stages=(replace(config.stages[0], gradient_checkpointing=True, packing=True),),
    )
    events: list[Event] = []
    train(config, events.append)
    losses = [e.loss for e in events if isinstance(e, StepEvent)]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    before, after = load_file(mistral / "model.safetensors"), _weights(config.output)
    assert before.keys() == after.keys()
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert moved
    assert all("proj" in k for k in moved)


@pytest.fixture
def beir(tmp_path: Path, rows: Path) -> Path:
    """Return a BEIR folder of the rows: each query finds its positive."""
    folder = tmp_path / "beir"
    folder.mkdir()
    read = [json.loads(line) for line in rows.read_text().splitlines()]
    (folder / "corpus.jsonl").write_text(
        "\n".join(json.dumps({"_id": f"d{i}", "text": r["positive"]}) for i, r in enumerate(read))
    )
    (folder / "queries.jsonl").write_text(
        "\n".join(json.dumps({"_id": f"q{i}", "text": r["query"]}) for i, r in enumerate(read))
    )
    (folder / "qrels.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "\n".join(f"q{i}\td{i}\t1" for i in range(len(read)))
    )
    return folder


def test_dev_sets_choose_the_best(config: RunConfig, beir: Path) -> None:
    """nDCG@10 is told before the first step and on the way, and the saved model is the best one, not the last."""
    dev = DevConfig(folders=(str(beir),), instructions=("Find the sentence",), every=3)
    # A rate that destroys what was learnt: the best weights are not the last.
    wild = _stage(
        config, optimizer=OptimizerConfig(lr=0.5, warmup_steps=0, schedule="constant", max_grad_norm=0)
    )
    events: list[Event] = []
    report = train(replace(wild, dev=dev), events.append)
    scores = [e for e in events if isinstance(e, DevEvent)]
    assert [e.step for e in scores] == [0, 3, 6, 9]
    best = max(scores, key=lambda e: e.mean)
    assert report.best == best.mean
    assert best.step == 0
    from embedkit import get_embedder

    embedder = get_embedder(f"transformer:{report.folder}", dtype="float32")
    base = get_embedder(f"transformer:{config.model.name}", dtype="float32", pooling="mean")
    texts = ["The salt and the rain."]
    assert np.allclose(embedder.encode_document(texts), base.encode_document(texts), atol=1e-5)


@pytest.mark.parametrize("task", [None, "qa"])
def test_dev_queries_are_asked_as_the_model_will_be(config: RunConfig, beir: Path, task: str | None) -> None:
    """Where [dev] names no instruction, its queries carry the one that the saved model gives a query of its own."""
    config = replace(
        config,
        model=replace(config.model, default_task=task),
        dev=DevConfig(folders=(str(beir),), queries=None),
    )
    _, (stage,), _ = open_stages(config, lambda text: None)
    report = train(_stage(config, max_steps=1))
    saved = TransformerEmbedder.open(str(report.folder))
    asked = [json.loads(line)["text"] for line in (beir / "queries.jsonl").read_text().splitlines()]
    instruction = get_task(saved.info.default_task or "").instruction
    assert instruction == get_task(task or "search").instruction
    rendered = [saved.info.template.render_query(q, instruction) for q in asked]
    assert stage.dev_sets[0].queries == [
        ids[:31] + ids[-1:] if len(ids) > 32 else ids for ids in saved.token_ids(rendered)
    ]


def test_a_best_mean_of_other_dev_sets_does_not_count(config: RunConfig, beir: Path) -> None:
    """A run that goes on under other dev sets measures them at once; the former best, of other queries, is forgotten."""
    dev = DevConfig(folders=(str(beir),), every=2, queries=1)
    first: list[Event] = []

    def listen(event: Event) -> None:
        first.append(event)
        if isinstance(event, StepEvent) and event.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    assert train(replace(config, dev=dev), listen).stopped
    second: list[Event] = []
    report = train(replace(config, dev=replace(dev, queries=None)), second.append)
    found = [e for e in second if isinstance(e, DevEvent)]
    assert [e.step for e in found] == [5, 6, 8, 9]
    assert found[0].best
    assert report.best == max(e.mean for e in found)
    assert {e.step for e in first if isinstance(e, DevEvent)} == {0, 2, 4}


def test_another_base_or_teacher_is_another_run(config: RunConfig, tmp_path: Path) -> None:
    """The run's fingerprint follows the weights of the base and of the teacher, not the names of their folders."""
    base, teacher = (save_model(tmp_path / name, "Bert", BERT) for name in ("base", "teacher"))
    distil = _stage(
        replace(config, model=replace(config.model, name=str(base))),
        loss=LossConfig(name="distil_mse"),
        teacher=TeacherConfig(str(teacher)),
    )
    seen = {open_stages(distil, lambda text: None)[2]}
    assert {open_stages(distil, lambda text: None)[2]} == seen
    for folder in (base, teacher):
        weights = load_file(folder / "model.safetensors")
        save_file({k: v + 0.5 for k, v in weights.items()}, folder / "model.safetensors", {"format": "pt"})
        seen.add(open_stages(distil, lambda text: None)[2])
    assert len(seen) == 3


def test_a_teacher_may_encode_queries_as_queries(config: RunConfig) -> None:
    """`as_query` of the config gives queries the teacher's vectors of them under their instruction, else of the bare text."""
    distil = _stage(config, loss=LossConfig(name="distil_mse"))
    vectors = []
    for as_query in (False, True):
        teacher = TeacherConfig(config.model.name, as_query=as_query)
        _, (stage,), _ = open_stages(_stage(distil, teacher=teacher), lambda text: None)
        assert stage.teachers is not None
        (found,) = stage.teachers
        assert isinstance(found, TeacherVectors)
        vectors.append(found.row(0))
    embedder = TransformerEmbedder.open(config.model.name)
    row = stage.stores[0].texts(0)
    assert np.allclose(vectors[0][0], embedder.encode_document([row.query])[0], atol=2e-3)
    assert np.allclose(
        vectors[1][0], embedder.encode_query([row.query], instruction=row.instruction)[0], atol=2e-3
    )
    assert not np.allclose(vectors[0][0], vectors[1][0], atol=1e-2)
    assert np.array_equal(vectors[0][1:], vectors[1][1:])


def test_accumulation_is_one_step(config: RunConfig) -> None:
    """Two batches a step halve the number of steps, and the negatives stay those of one batch."""
    events: list[Event] = []
    train(_stage(config, accumulation=2, max_steps=3), events.append)
    steps = [e for e in events if isinstance(e, StepEvent)]
    assert len(steps) == 3
    assert all(e.negatives_per_query <= 15 for e in steps)


@pytest.mark.parametrize(
    ("device", "there", "message"),
    [
        ("cuda", False, r"device = 'cuda', and torch sees none"),
        ("cuda:1", False, r"device = 'cuda:1', and torch sees none"),
        ("cuda:3", True, r"torch sees 2 of them"),
        ("mps", False, r"device = 'mps', and torch sees none"),
    ],
)
def test_a_device_that_is_not_there_is_refused(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, device: str, there: bool, message: str
) -> None:
    """A named device that torch does not see is an error, never a run elsewhere."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: there)
    with pytest.raises(InputError, match=message):
        train(replace(config, device=device))


def test_a_numbered_device_is_the_one_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """`cuda:1` becomes torch's current device, which accelerate takes."""
    from embedkit_trainer.backend import _choose_device

    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for device in ("auto", "cpu", "cuda", "cuda:1"):
        _choose_device(device)
    assert chosen == [1]


def test_only_named_weights_train(config: RunConfig) -> None:
    """`trainable` patterns leave all other weights as they were; one that matches nothing is refused."""
    train(_stage(config, trainable=(r"word_embeddings",)))
    before, after = load_file(Path(config.model.name) / "model.safetensors"), _weights(config.output)
    moved = {k for k in after if not torch.equal(before[k], after[k])}
    assert {k for k in moved if "word_embeddings" not in k} == set()
    assert moved
    with pytest.raises(InputError, match="matches no parameter"):
        train(_stage(replace(config, output=config.output + "2"), trainable=("nothing",)))


def test_figures_go_to_the_tracker_and_a_file(config: RunConfig) -> None:
    """TensorBoard's event file and metrics.jsonl hold every step's loss, and the masked rate of each source."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events: list[Event] = []
    train(replace(config, tracker="tensorboard"), events.append)
    losses = [e.loss for e in events if isinstance(e, StepEvent)]
    work = Path(f"{config.output}.work")
    written = next(p.parent for p in (work / "logs").rglob("events.out.tfevents*"))
    accumulator = EventAccumulator(str(written))
    accumulator.Reload()
    assert [e.value for e in accumulator.Scalars("loss")] == pytest.approx(losses)
    assert "masked_rate/rows" in accumulator.Tags()["scalars"]
    lines = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == losses
    assert all("masked_rate/rows" in line["logs"] for line in lines)


def test_a_tracker_counts_on_through_the_stages(config: RunConfig) -> None:
    """The second stage's figures follow the first's, where its own count of steps would begin anew."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stages = tuple(replace(config.stages[0], name=name, max_steps=2) for name in ("pre", "fine"))
    train(replace(config, stages=stages, tracker="tensorboard"))
    written = next(Path(f"{config.output}.work", "logs").rglob("events.out.tfevents*"))
    accumulator = EventAccumulator(str(written.parent))
    accumulator.Reload()
    assert [e.step for e in accumulator.Scalars("loss")] == [1, 2, 3, 4]


def test_a_fresh_run_begins_its_figures_anew(config: RunConfig) -> None:
    """metrics.jsonl holds no step of the run that --fresh threw away."""
    train(config)
    train(_stage(config, max_steps=3), fresh=True)
    lines = (Path(f"{config.output}.work") / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


def test_a_full_disk_at_a_checkpoint_keeps_the_last_one(config: RunConfig) -> None:
    """A checkpoint that finds no room is one sentence; the one before it is whole, and the run goes on from it."""
    import errno

    import safetensors.torch

    save = safetensors.torch.save_file
    calls: list[int] = []

    def full(*args: object, **options: object) -> None:
        calls.append(1)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*args, **options)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", full)
        with pytest.raises(CheckpointError, match=r"the disk is full.*goes on from stage00-step00000004"):
            train(config)
    kept = sorted(p.name for p in Path(f"{config.output}.work/checkpoints").iterdir())
    assert kept == ["stage00-step00000004"]
    assert train(config).steps == 5


@pytest.mark.parametrize(
    ("loss", "rows", "message"),
    [
        ("info_nce", [{"query": "salt", "positive": "the salt"}] * 24, "all are masked as the same text"),
        ("info_nce", [{"query": "salt", "positive": "the salt"}], "each is alone in its batch"),
        (
            "cosent",
            [{"query": f"salt {n}", "positive": "the salt", "score": 0.5} for n in range(24)],
            "are all scores equal",
        ),
    ],
)
def test_a_run_that_learns_nothing_is_stopped(
    config: RunConfig, tmp_path: Path, loss: LossName, rows: list[dict[str, object]], message: str
) -> None:
    """Where no step has a gradient the run ends with the reason, and saves no model that only decayed."""
    path = tmp_path / "same.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    idle = _stage(config, sources=(SourceConfig(path=str(path), name="same"),), loss=LossConfig(name=loss))
    with pytest.raises(TrainingError, match=rf"the gradient is zero at every step.*{message}"):
        train(idle)
    assert not Path(config.output).exists()


def test_a_tokenizer_of_another_model_is_refused(config: RunConfig, bert: Path, tmp_path: Path) -> None:
    """A text with an id beyond the embeddings is named with its source; ids that no text holds do no harm."""
    folder = tmp_path / "odd"
    shutil.copytree(bert, folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"]["zzz"] = 9000
    path.write_text(json.dumps(tokenizer))
    odd = replace(_stage(config, max_steps=1), model=replace(config.model, name=str(folder)))
    train(odd)
    tokenizer["model"]["vocab"]["salt"] = 9001
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match=r"source 'rows' holds the token 'salt' with id 9001.*embeddings"):
        train(odd, fresh=True)


def test_a_dev_document_that_is_no_text_is_named(config: RunConfig, beir: Path) -> None:
    """Half a surrogate pair in a dev corpus is one sentence with file and line."""
    with (beir / "corpus.jsonl").open("a") as f:
        f.write('\n{"_id": "odd", "text": "half \\ud800"}\n')
    with pytest.raises(CorpusError, match=r"corpus\.jsonl, line \d+: the text holds half a surrogate"):
        train(replace(config, dev=DevConfig(folders=(str(beir),))))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("[enforce fail] can't allocate memory")]
)  # fmt: skip
def test_memory_that_fails_outside_the_batches_is_one_sentence(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Weights or optimiser states that do not fit are told with what to change; another RuntimeError stays a bug."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("embedkit_trainer.model.load_model", fail)
    with pytest.raises(TrainingError, match="memory does not suffice for the weights"):
        train(config)
    error = RuntimeError("shapes differ")
    with pytest.raises(RuntimeError, match="shapes differ"):
        train(config)


def test_a_run_goes_on_with_less_memory(config: RunConfig, tmp_path: Path) -> None:
    """Smaller chunks and checkpointed activations resume the same run: without dropout, at the same weights."""
    config = replace(config, model=replace(config.model, dropout=0.0))
    whole = replace(config, output=str(tmp_path / "whole"))
    train(whole)
    train(config, _after(5, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    smaller = _stage(config, chunk_tokens=64, gradient_checkpointing=True)
    assert train(smaller).steps == 4
    a, b = _weights(config.output), _weights(whole.output)
    assert all(torch.allclose(a[k], b[k], atol=1e-4) for k in a)


def test_missing_scores_are_told_before_the_first_step(config: RunConfig) -> None:
    """A loss over teacher scores refuses rows that have none, whoever calls, before any weight is read."""
    wanted = _stage(config, loss=LossConfig(name="distil_kl"))
    with pytest.raises(InputError, match="no row of source 'rows' has teacher_scores"):
        train(wanted)


def test_old_token_vectors_stay(config: RunConfig) -> None:
    """`train_tokens_from` leaves the vectors below that id bit for bit, and trains those above."""
    optimizer = OptimizerConfig(lr=2e-3, warmup_steps=2, weight_decay=0.0)
    report = train(_stage(config, train_tokens_from=12, optimizer=optimizer))
    name = "embeddings.word_embeddings.weight"
    before, after = _weights(config.model.name), _weights(report.folder)
    key = next(k for k in before if k.endswith(name))
    old, new = before[key], after[next(k for k in after if k.endswith(name))]
    assert torch.equal(old[:12], new[:12])
    assert not torch.equal(old[12:], new[12:])


def test_the_query_side_learns_alone(config: RunConfig) -> None:
    """With `frozen_documents` a teacher gives the documents' vectors, and the loss falls by queries alone."""
    events: list[Event] = []
    teacher = TeacherConfig(config.model.name)
    train(_stage(config, frozen_documents=True, teacher=teacher), events.append)
    losses = [e.loss for e in events if isinstance(e, StepEvent)]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
