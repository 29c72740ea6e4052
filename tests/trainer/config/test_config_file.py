"""Config files: strict reading, all problems at once, overrides, ablations, paths, and the way back to TOML."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from embedkit.contract import Template
from embedkit.errors import InputError, UnknownNameError
from embedkit_trainer.config.file import from_toml, load_config, read_config_file, to_toml
from embedkit_trainer.config.records import (
    DevConfig,
    LoraConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    TeacherConfig,
)

ROWS = '{"query": "a", "positive": "b"}\n'
SMALL = """\
[model]
name = "bert-base-uncased"

[[stages]]
batch_size = 4

[[stages.sources]]
path = "rows.jsonl"
"""
TWO_STAGES = """\
[model]
name = "bert-base-uncased"

[[stages]]
name = "pretrain"
[[stages.sources]]
name = "weak"
path = "rows.jsonl"

[[stages]]
name = "finetune"
[[stages.sources]]
name = "gold"
path = "rows.jsonl"
[[stages.sources]]
name = "silver"
path = "rows.jsonl"

[ablations.bare]
note = "no instruction"
"stages.finetune.sources.*.instruction_dropout" = 1.0
"model.default_task" = "none"

[ablations.one-source]
drop = ["stages.finetune.sources.gold", "stages.pretrain"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one file of rows."""
    (tmp_path / "rows.jsonl").write_text(ROWS)
    return tmp_path


def _write(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def _problem(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load_config(_write(folder, text), overrides)
    return str(caught.value)


def test_a_file_becomes_a_run(folder: Path) -> None:
    """What the file says is taken, what it leaves out is the dataclass's default, paths count from the file."""
    config = load_config(_write(folder, SMALL + "ratio = 1\n"))
    stage = config.stages[0]
    assert config.name == "run"
    assert stage.batch_size == 4
    assert stage.sources[0] == SourceConfig(path=str(folder / "rows.jsonl"), name="rows", ratio=1.0)
    assert isinstance(stage.sources[0].ratio, float)
    assert stage.loss == LossConfig()
    assert stage.optimizer == OptimizerConfig()
    assert config.output == str(folder / "model")
    assert config.work == str(folder / "model.work")


def test_all_errors_at_once(folder: Path) -> None:
    """Unknown keys, wrong types, bad names and numbers out of range are all in one message, with their key paths."""
    text = SMALL.replace(
        "batch_size = 4", 'batch_sise = 4\nepochs = "one"\nnegatives = true\nbatches = "one"'
    )
    text += "ratio = 2\nformat = 'msmarko'\n"
    text += "[stages.loss]\nname = 'info_nse'\ntemperature = 0\nmatryoshka = [64, 64]\n"
    text += "[stages.optimizer]\nbetas = [0.9]\nlr = nan\nwarmup_steps = -1\n"
    message = _problem(folder, text)
    for part in (
        "has 12 problems",
        "stages.train.batch_sise is unknown: did you mean batch_size or batches?",
        "stages.train.epochs = 'one' is text: give a number",
        "stages.train.negatives = true is true or false: give a whole number",
        "stages.train.batches = 'one' is text: give one of one-source, mixed",
        "stages.train.sources.rows.ratio = 2.0 is out of range: give a number above 0 to 1",
        "stages.train.sources.rows.format = 'msmarko' is unknown: did you mean msmarco",
        "stages.train.loss.name = 'info_nse' is text: give one of",
        "(did you mean info_nce?)",
        "stages.train.loss.temperature = 0.0 must be above 0",
        "stages.train.loss.matryoshka = [64, 64] must be widths",
        "stages.train.optimizer.betas = [0.9] is a list: give a list of 2 numbers",
        "stages.train.optimizer.lr = nan is no finite number",
        "stages.train.optimizer.warmup_steps = -1 is too small",
    ):
        assert part in message, part
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "stages: there is none: add [[stages]]"),
        ("model = 3\n", "model = 3 is a whole number: give a table [model]"),
        ("stages = 3\n", "stages = 3 is a whole number: give tables [[stages]]"),
        ("[model]\nname = 'x'\n[[stages]]\n", "stages.train.sources: there is none"),
        (SMALL.replace("rows.jsonl", "gone.jsonl"), "gone.jsonl' does not exist"),
        (SMALL.replace("rows.jsonl", "*.parquet"), "*.parquet' does not exist"),
        (SMALL.replace("bert-base-uncased", ""), "model.name is missing"),
        (SMALL.replace('"bert-base-uncased"', '"./bert"'), "bert' does not exist"),
        (SMALL.replace("batch_size = 4", "batch_size = 1\nnegatives = 0"), "has no negatives at all"),
        (SMALL.replace("batch_size = 4", "chunk_tokens = 100"), "cannot hold one text of 512 tokens"),
        (SMALL.replace("batch_size = 4", 'trainable = ["("]'), "is no regular expression"),
        (SMALL.replace("batch_size = 4", 'name = "a b"'), "the name must be one word"),
        (SMALL + "[stages.loss]\nname = 'distil_mse'\n", "needs a teacher"),
        (SMALL + "[stages.teacher]\nembedder = 'x'\n", "teacher is not used by the loss 'info_nce'"),
        (SMALL + "format = 'msmarco'\n[stages.loss]\nname = 'cosent'\n", "needs scored pairs"),
        (TWO_STAGES.replace('"finetune"', '"pretrain"'), "stages has 2 called 'pretrain'"),
        (
            SMALL.replace("batch_size = 4", "negatives = 0") + "[stages.loss]\nin_batch = false\n",
            "leaves no negatives",
        ),
        (SMALL + "[[stages.sources]]\npath = 'rows.jsonl'\n", "has 2 called 'rows'"),
        (SMALL + "[model.lora]\nr = 8\n", 'model.lora has values, but model.tuning is "full"'),
        (SMALL + "[model.template]\nquery = 'bare'\n", "model.template: template query 'bare' lacks {query}"),
        ("tracker = 'wandb'\n" + SMALL, "tracker = 'wandb' is not installed"),
        ("device = 'tpu'\n" + SMALL, "device = 'tpu' is not known"),
        ("device = 'cpu:5'\n" + SMALL, "device = 'cpu:5' is not known"),
        ("output = '  '\n" + SMALL, "output is empty"),
        (f"seed = {10**23}\n" + SMALL, "give one up to 4,611,"),
        (SMALL.replace("batch_size = 4", f"batch_size = {10**20}"), "is a whole number: give one up to"),
        (SMALL.replace("batch_size = 4", "epochs = 1e308"), "epochs = 1e+308 is out of range"),
        ("work = 'm'\noutput = 'm'\n" + SMALL, "is inside output"),
        ("work = 'm/x/../y'\noutput = './m'\n" + SMALL, "is inside output"),
        (
            SMALL.replace("[model]", "[model]\ntuning = 'lora'\nlora.target_modules = '(q'"),
            "model.lora.target_modules '(q' is no regular expression",
        ),
        (SMALL + "[dev]\nfolders = ['.']\n", "is no BEIR folder"),
        (SMALL + "[dev]\nfolders = ['.', 'x']\ntasks = ['qa', 'qa', 'qa']\n", "has 3 for 2 folders"),
        (SMALL + "[ablations]\nx = 1\n", "ablations.x must be a table"),
        ("[model\n", "is no TOML"),
    ],
)
def test_one_problem_is_one_sentence(folder: Path, text: str, expected: str) -> None:
    """Each kind of mistake is named with its key path and what to write instead."""
    assert expected in _problem(folder, text)


def test_missing_and_broken_files(folder: Path) -> None:
    """A missing file, a folder, an unknown recipe and a file that is no text are InputErrors that say so."""
    with pytest.raises(InputError, match=r"gone\.toml does not exist"):
        load_config(folder / "gone.toml")
    with pytest.raises(InputError, match="is a folder"):
        load_config(folder)
    with pytest.raises(UnknownNameError, match="did you mean e5-mistral-full"):
        load_config("e5-mistral-ful")
    (folder / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is not UTF-8"):
        load_config(folder / "bytes.toml")
    (folder / "deep.toml").write_text("x = " + "[" * 5000 + "]" * 5000)
    with pytest.raises(InputError, match="nested too deeply"):
        load_config(folder / "deep.toml")
    with pytest.raises(InputError, match="is no TOML value"):
        load_config(_write(folder, SMALL), ["seed=" + "[" * 5000 + "]" * 5000])


def test_a_byte_order_mark_is_no_mistake(folder: Path) -> None:
    """What Windows' editors write is read: UTF-8 with a byte order mark, lines that end in CRLF."""
    (folder / "windows.toml").write_bytes(b"\xef\xbb\xbf" + SMALL.replace("\n", "\r\n").encode())
    assert load_config(folder / "windows.toml").stages[0].batch_size == 4


def test_output_may_not_be_the_base(folder: Path) -> None:
    """A run that would write over the model it starts from is refused, however the folder is spelt."""
    (folder / "base").mkdir()
    text = "output = './x/../base'\n" + SMALL.replace("bert-base-uncased", "base")
    assert "is the folder of the base model" in _problem(folder, text)


def test_overrides(folder: Path) -> None:
    """Values are TOML, quotes may be left out, stages and sources go by number, name or star."""
    path = _write(folder, TWO_STAGES)
    config = load_config(
        path,
        [
            "stages.0.batch_size=16",
            "stages.finetune.optimizer.lr=2e-5",
            "stages.finetune.sources.silver.ratio=0.5",
            "stages.*.query_length = 64",
            "model.pooling=mean",
            'model.template.query="q: {query}"',
            "stages.pretrain.loss.matryoshka=[8, 16]",
        ],
    )
    first, second = config.stages
    assert (first.batch_size, first.loss.matryoshka, first.query_length) == (16, (8, 16), 64)
    assert (second.optimizer.lr, second.query_length) == (2e-5, 64)
    assert [s.ratio for s in second.sources] == [1.0, 0.5]
    assert config.model.pooling == "mean"
    assert config.model.template is not None
    assert config.model.template.query == "q: {query}"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("batch_size", "is no key.path=value"),
        ("stages.finetun.batch_size=3", "names no item 'finetun': did you mean finetune?"),
        ("stages.9.batch_size=3", "names no item '9'"),
        ("model.name.x=3", "goes on below a value that is no table"),
        ("stages.0.batch_size=[", "is no TOML value"),
        ("stages.0.batch_size=many", "stages.pretrain.batch_size = 'many' is text"),
        ("sed=3", "sed is unknown: did you mean seed?"),
        ("stages.².batch_size=3", "names no item '²'"),
        ("name=\udcff", "is not UTF-8"),
    ],
)
def test_wrong_overrides(folder: Path, override: str, expected: str) -> None:
    """An override that leads nowhere or holds nonsense is refused, not ignored."""
    assert expected in _problem(folder, TWO_STAGES, override)


def test_ablations(folder: Path) -> None:
    """An ablation changes what it names, drops sources and stages, and shows in the output folder."""
    path = _write(folder, TWO_STAGES)
    bare = load_config(path, ablation="bare")
    assert [s.instruction_dropout for s in bare.stages[1].sources] == [1.0, 1.0]
    assert bare.stages[0].sources[0].instruction_dropout == 0.0
    assert bare.model.default_task is None
    assert bare.output.endswith("model-bare")
    dropped = load_config(path, ablation="one-source")
    assert [[s.name for s in stage.sources] for stage in dropped.stages] == [["silver"]]
    with pytest.raises(InputError, match="no ablation 'bear': did you mean bare"):
        load_config(path, ablation="bear")


def test_toml_round_trip(folder: Path) -> None:
    """A run with every kind of value set comes back equal from its own TOML, odd characters and None included."""
    config = RunConfig(
        name='quote " and \\ and \n and \x7f and ünïcode',
        output=str(folder / "out"),
        work=str(folder / "work"),
        model=ModelConfig(
            name="mistralai/Mistral-7B-v0.1",
            tuning="lora",
            lora=LoraConfig(target_modules=("q_proj", "v_proj")),
            template=Template("q: {query}", "{instruction}\n{query}", "d: {text}"),
            dropout=0.0,
        ),
        stages=(
            StageConfig(
                name="a",
                sources=(
                    SourceConfig(path=str(folder / "rows.jsonl"), name="x", instructions=("One", 'Two "2"')),
                    SourceConfig(path=str(folder / "rows.jsonl"), name="y", weight=0.25, limit=7),
                ),
                loss=LossConfig(name="distil_mse", matryoshka=(8, 16), mask_similarity=0.95),
                teacher=TeacherConfig("thenlper/gte-small", "positive"),
                optimizer=OptimizerConfig(lr=1e-4, warmup_ratio=0.1),
                chunk_tokens=1024,
            ),
            StageConfig(name="b", sources=(SourceConfig(path=str(folder / "rows.jsonl"), name="z"),)),
        ),
        dev=DevConfig(folders=(str(folder),), queries=None),
        precision="bfloat16",
    )
    assert from_toml(to_toml(config)) == config
    plain = replace(config, dev=None, model=replace(config.model, lora=LoraConfig(), template=None))
    assert from_toml(to_toml(plain)) == plain


def test_toml_relative_to_a_folder(folder: Path) -> None:
    """Text written for a folder names no absolute path and means the same run from there."""
    config = load_config(_write(folder, SMALL))
    (folder / "model").mkdir()
    text = to_toml(config, folder / "model")
    assert str(folder) not in text
    (folder / "model" / "run.toml").write_text(text)
    assert load_config(folder / "model" / "run.toml") == config


def test_names_are_filled_in(folder: Path) -> None:
    """Stages and sources without a name get one, by which messages and overrides call them."""
    text = SMALL + "[[stages]]\n[[stages.sources]]\npath = 'rows.jsonl'\n"
    file = read_config_file(_write(folder, text))
    assert [s["name"] for s in file.tables["stages"]] == ["stage-1", "stage-2"]
    assert file.tables["stages"][0]["sources"][0]["name"] == "rows"
