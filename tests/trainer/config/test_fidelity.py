"""The paper-fidelity table: what is marked as a difference, and figures that follow from the run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from embedkit_trainer.config.base_models import count_parameters
from embedkit_trainer.config.fidelity import Fidelity, compare, paper_problems
from embedkit_trainer.config.file import build_config, read_config_file
from embedkit_trainer.config.records import LoraConfig, LossConfig, ModelConfig, RunConfig
from embedkit_trainer.data.dry_run import StageSurvey, Survey, negatives_per_query, outline
from tests.embedkit.tiny_models import LLAMA, save_model

MISTRAL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SURVEY = StageSurvey("train", (), 500_000, 244, 244, 244, 100, 2048, 2048.0, 1, 2048, 4095, ())


def _table(paper: dict[str, object], config: RunConfig, run: RunConfig | None = None) -> Fidelity:
    found = compare(
        {"title": "T", "citation": "C", **paper}, config, run or config, Survey((SURVEY,), 1, None).figures()
    )
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("said", "verdict", "shown"),
    [
        (42, "same", "42"),
        (43, "differs", "43"),
        ("not published", "ours", "not published"),
        ({"value": 42, "note": "as we read it"}, "same", "42"),
        ({"value": 7}, "differs", "7"),
        ({"text": "some", "low": 40, "high": 45}, "same", "some"),
        ({"text": "some", "low": 1, "high": 5}, "differs", "some"),
        ({"text": "ten of them", "note": "as we read it"}, "differs", "ten of them"),
        ({"text": "not read", "note": "our choice"}, "ours", "not read"),
    ],
)
def test_verdicts(said: object, verdict: str, shown: str) -> None:
    """Values, ranges and words are compared for what they are; the paper's silence is no agreement."""
    row = _table({"values": {"seed": said}}, RunConfig(seed=42)).rows[0]
    assert (row.setting, row.verdict, row.paper, row.config) == ("seed", verdict, shown, "42")
    assert not row.changed


def test_a_run_that_does_something_else_is_marked() -> None:
    """Where the run departs from the config, as under --tiny, the row says so beside the paper's verdict."""
    run = replace(RunConfig(seed=1), precision="float32")
    table = _table({"values": {"precision": "bfloat16", "seed": 1}}, replace(run, precision="bfloat16"), run)
    first, second = table.rows
    assert (first.verdict, first.changed, first.config, first.effective) == (
        "same",
        True,
        "bfloat16",
        "float32",
    )
    assert not second.changed
    assert table.differences == [first]


def test_true_is_not_one() -> None:
    """A flag equals no number, and a list equals the tuple of the same items."""
    lora = ModelConfig(lora=LoraConfig(target_modules=("q", "v")))
    table = _table({"values": {"merge": 1, "model.lora.target_modules": ["q", "v"]}}, RunConfig(model=lora))
    assert [r.verdict for r in table.rows] == ["differs", "same"]


def test_figures() -> None:
    """Figures are compared with the run; one that is not known stays open."""
    figures = {
        "stages.train.steps": 245,
        "stages.train.negatives_per_query": 4095,
        "trainable_parameters": 41943040,
    }
    steps, negatives, parameters = _table({"figures": figures}, RunConfig()).rows
    assert (steps.verdict, steps.effective) == ("differs", "244")
    assert negatives.verdict == "same"
    assert (parameters.verdict, parameters.effective) == ("open", "not known yet")


def test_no_paper_no_table() -> None:
    """A config of one's own has no table."""
    assert compare({}, RunConfig(), RunConfig()) is None


def test_paper_tables_are_checked() -> None:
    """A key path that leads nowhere and a key of no meaning are found."""
    paper = {"values": {"modle.name": 1, "seed": {"valeu": 1}}}
    assert list(paper_problems(paper, RunConfig())) == [
        "paper.values.modle.name is no key path of the run",
        "paper.values.seed has the unknown key 'valeu': known are value, low, high, text, note",
    ]


def test_e5_mistral_differs_where_it_should() -> None:
    """Of the full recipe's settings only those depart from the paper that the hardware asks for."""
    file = read_config_file("e5-mistral-full")
    config = build_config(file, (), None, [])
    table = compare(file.paper, config, config)
    assert table is not None
    assert [r.setting for r in table.differences] == ["precision", "backend", "stages.train.chunk_tokens"]
    assert sum(r.verdict == "same" for r in table.rows) >= 25


def test_what_is_known_before_the_data() -> None:
    """Trained parameters and negatives per query are in the table before a row is read; steps stay open."""
    file = read_config_file("e5-mistral-full")
    config = build_config(file, (), None, [])
    table = compare(file.paper, config, config, outline(config))
    assert table is not None
    verdicts = {r.setting: r.verdict for r in table.rows}
    assert verdicts["trainable_parameters"] == verdicts["stages.train.negatives_per_query"] == "same"
    assert verdicts["stages.train.steps"] == "open"


def test_trainable_parameters_of_mistral() -> None:
    """LoRA of rank 16 on the seven linear layers of Mistral-7B has 41,943,040 parameters, and half at rank 8."""
    model = ModelConfig(
        "mistralai/Mistral-7B-v0.1", tuning="lora", lora=LoraConfig(target_modules=MISTRAL_LINEAR)
    )
    found = count_parameters(model)
    assert found is not None
    assert found.trained == 41_943_040
    assert found.total == 7_110_660_096 + 41_943_040  # without the head over the vocabulary
    half = count_parameters(replace(model, lora=replace(model.lora, r=8)))
    assert half is not None
    assert half.trained == 41_943_040 // 2


def test_counts_equal_a_real_adapter(tmp_path: Path) -> None:
    """The computed count is the number that PEFT's own model trains, and that a full model has."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model
    from transformers import AutoModel

    folder = save_model(tmp_path / "m", "Mistral", LLAMA)
    real = AutoModel.from_pretrained(str(folder))
    full = count_parameters(ModelConfig(str(folder)))
    assert full is not None
    assert full.trained == full.total == sum(p.numel() for p in real.parameters())
    for targets in ("all-linear", ("q_proj", "down_proj"), r".*\.1\..*_proj"):
        peft = get_peft_model(
            AutoModel.from_pretrained(str(folder)),
            PeftConfig(r=4, target_modules=targets if isinstance(targets, str) else list(targets)),
        )
        counted = count_parameters(
            ModelConfig(str(folder), tuning="lora", lora=LoraConfig(r=4, target_modules=targets))
        )
        assert counted is not None
        assert (counted.trained, counted.total) == peft.get_nb_trainable_parameters()


def test_unknown_models_are_not_counted() -> None:
    """A hub id whose configuration is not at hand gets no number rather than a guess."""
    assert count_parameters(ModelConfig("somebody/mistral-like-13b")) is None


@pytest.mark.parametrize(
    ("loss", "batch", "negatives", "expected"),
    [
        (LossConfig(), 2048, 1, 4095),
        (LossConfig(), 64, 0, 63),
        (LossConfig(in_batch=False), 64, 3, 3),
        (LossConfig(name="gte"), 128, 15, 2047),
        (LossConfig(name="margin_mse"), 64, 5, 5),
        (LossConfig(name="distil_mse"), 64, 0, 0),
    ],
)
def test_negatives_per_query(loss: LossConfig, batch: int, negatives: int, expected: int) -> None:
    """All documents of the batch but the positive, for losses that compare within the batch."""
    assert negatives_per_query(loss, batch, negatives) == expected
