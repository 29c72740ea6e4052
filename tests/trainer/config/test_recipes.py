"""The shipped recipes hold the papers' numbers, and their ablations change what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedkit_trainer.config.checks import check_config
from embedkit_trainer.config.fidelity import look_up, paper_problems
from embedkit_trainer.config.file import (
    ConfigFile,
    build_config,
    from_toml,
    list_recipes,
    read_config_file,
    to_toml,
)
from embedkit_trainer.config.records import RunConfig
from embedkit_trainer.data.formats.registry import get_format

NAMES = [
    "bundled-embedder", "distil-small", "e5-mistral-full", "e5-mistral-synthetic", "e5-mistral-synthetic-msmarco", "e5-two-stage",
    "gte-base", "sbert-nli", "simcse-unsup",
]  # fmt: skip
EACH = [(name, a) for name in NAMES for a in (None, *read_config_file(name).ablations)]


def _built(name: str, ablation: str | None = None) -> tuple[ConfigFile, RunConfig]:
    file = read_config_file(name)
    problems: list[str] = []
    config = build_config(file, (), ablation, problems)
    assert problems == []
    return file, config


def test_names() -> None:
    """These recipes are shipped, each with its paper."""
    recipes = list_recipes()
    assert sorted(recipes) == NAMES
    assert all(file.paper["citation"].startswith("arXiv ") for file in recipes.values())


@pytest.mark.parametrize(("name", "ablation"), EACH)
def test_every_recipe_is_sound(name: str, ablation: str | None) -> None:
    """But for the data, which is the user's, no recipe or ablation has a problem; its TOML comes back equal."""
    file, config = _built(name, ablation)
    assert check_config(config, need_data=False) == []
    assert from_toml(to_toml(config)) == config
    if ablation is None:
        assert list(paper_problems(file.paper, config)) == []
        assert config.recipe == config.name == name


@pytest.mark.parametrize("name", NAMES)
def test_every_source_is_below_data(name: str) -> None:
    """A recipe's data lies below data/ in the current folder, and its model below models/."""
    _, config = _built(name)
    assert all(s.path.startswith("data/") for stage in config.stages for s in stage.sources)
    assert config.output == f"models/{name}"


@pytest.mark.parametrize("name", ["e5-mistral-full", "e5-mistral-synthetic", "e5-mistral-synthetic-msmarco"])
def test_e5_mistral(name: str) -> None:
    """E5-mistral's recipes hold arXiv 2401.00368's hyper-parameters."""
    _, config = _built(name)
    (stage,) = config.stages
    model, optimizer = config.model, stage.optimizer
    assert (model.name, model.tuning, model.pooling) == ("mistralai/Mistral-7B-v0.1", "lora", "last")
    assert (model.lora.r, model.lora.lora_alpha, model.lora.lora_dropout) == (16, 32, 0.1)
    assert len(model.lora.target_modules) == 7
    assert model.template is not None
    assert model.template.render_query("q", "task") == "Instruct: task\nQuery: q"
    assert model.template.render_document("d") == "d"
    assert (stage.batch_size, stage.epochs, stage.negatives) == (2048, 1.0, 1)
    assert (stage.query_length, stage.document_length) == (512, 512)
    assert (stage.loss.name, stage.loss.temperature) == ("info_nce", 0.02)
    assert (optimizer.lr, optimizer.warmup_steps, optimizer.weight_decay) == (1e-4, 100, 0.1)
    assert (optimizer.schedule, stage.gradient_checkpointing) == ("linear", True)


def test_sampling_ratios() -> None:
    """The full recipe takes the paper's share of each labelled set; NLI and Quora have two instructions."""
    _, config = _built("e5-mistral-full")
    sources = {s.name: s for s in config.stages[0].sources}
    assert {n: s.ratio for n, s in sources.items() if s.ratio != 1.0} == {
        "eli5": 0.1, "msmarco": 0.5, "msmarco-document": 0.2, "quora": 0.1, "t2ranking": 0.5,
    }  # fmt: skip
    assert sorted(n for n, s in sources.items() if s.ratio == 1.0) == [
        "dureader", "fever", "hotpotqa", "miracl", "mrtydi", "nli", "nq", "squad", "synthetic", "triviaqa",
    ]  # fmt: skip
    assert [n for n, s in sources.items() if len(s.instructions or ()) == 2] == ["nli", "quora"]
    assert [n for n, s in sources.items() if not s.instructions] == ["synthetic"]  # its rows bring their own


@pytest.mark.parametrize(
    ("ablation", "path", "value"),
    [
        ("llama-2", "model.name", "meta-llama/Llama-2-7b-hf"),
        ("mean-pooling", "model.pooling", "mean"),
        ("weighted-mean-pooling", "model.pooling", "weightedmean"),
        ("lora-r8", "model.lora.r", 8),
        ("lora-r32", "model.lora.r", 32),
        ("no-instruction", "stages.train.sources.synthetic.instruction_dropout", 1.0),
        ("no-instruction", "stages.train.sources.msmarco.instruction_dropout", 1.0),
        ("no-instruction", "model.default_task", None),
    ],
)
def test_ablations_of_e5_mistral(ablation: str, path: str, value: object) -> None:
    """Each of the paper's ablations changes its one thing."""
    _, before = _built("e5-mistral-synthetic-msmarco")
    _, after = _built("e5-mistral-synthetic-msmarco", ablation)
    assert look_up(before, path) != value
    assert look_up(after, path) == value
    assert after.output == f"models/e5-mistral-synthetic-msmarco-{ablation}"


def test_dropping_a_source() -> None:
    """ "no-synthetic" and "msmarco-only" leave the synthetic rows out and nothing else."""
    for name, ablation in (
        ("e5-mistral-full", "no-synthetic"),
        ("e5-mistral-synthetic-msmarco", "msmarco-only"),
    ):
        _, before = _built(name)
        _, after = _built(name, ablation)
        kept = [s for s in before.stages[0].sources if s.name != "synthetic"]
        assert list(after.stages[0].sources) == kept != list(before.stages[0].sources)


def test_licences() -> None:
    """A source without a licence of its own carries its publisher's, for the model card."""
    _, config = _built("e5-mistral-full")
    licences = {s.name: s.licence for s in config.stages[0].sources}
    assert "Microsoft" in licences["msmarco"]
    assert licences["synthetic"] == ""


def test_gte() -> None:
    """GTE's two stages hold arXiv 2308.03281's numbers."""
    _, config = _built("gte-base")
    first, second = config.stages
    assert config.model.pooling == "mean"
    assert (first.alpha, first.batches, first.query_length, first.document_length) == (
        0.5,
        "one-source",
        128,
        128,
    )
    assert (second.batch_size, second.negatives, second.query_length, second.document_length) == (
        128,
        15,
        512,
        512,
    )
    assert {(s.loss.name, s.loss.temperature) for s in config.stages} == {("gte", 0.01)}
    assert len(first.sources) == 9


@pytest.mark.parametrize("name", ["gte-base", "sbert-nli", "simcse-unsup", "distil-small"])
def test_papers_without_instructions(name: str) -> None:
    """No query of these recipes carries an instruction, also where the format knows one: their papers have none."""
    _, config = _built(name)
    sources = [s for stage in config.stages for s in stage.sources]
    assert not any(
        get_format(s.format).instructions if s.instructions is None else s.instructions for s in sources
    )


def test_simcse() -> None:
    """SimCSE's recipe holds arXiv 2104.08821's numbers."""
    _, config = _built("simcse-unsup")
    (stage,) = config.stages
    assert (config.model.pooling, config.model.dropout) == ("cls", 0.1)
    assert (stage.batch_size, stage.epochs, stage.query_length, stage.loss.temperature) == (64, 1.0, 32, 0.05)
    assert (stage.optimizer.lr, stage.loss.name) == (3e-5, "simcse")


def test_e5() -> None:
    """E5's two stages hold arXiv 2212.03533's numbers and both prefixes."""
    _, config = _built("e5-two-stage")
    first, second = config.stages
    assert config.model.template is not None
    assert config.model.template.render_query("q", None) == "query: q"
    assert config.model.template.render_document("d") == "passage: d"
    assert (first.batch_size, first.max_steps, first.loss.temperature) == (32768, 20000, 0.01)
    assert (second.batch_size, second.negatives, second.loss.name) == (256, 7, "distil_kl")


def test_recipes_explain_themselves() -> None:
    """Every recipe begins with a comment that names its paper, and every value stands in a commented file."""
    for file in list_recipes().values():
        head = file.path.read_text(encoding="utf-8").split("\n\n")[0]
        assert all(line.startswith("#") for line in head.splitlines())
        assert file.paper["citation"] in head
        assert Path("data").name in head
