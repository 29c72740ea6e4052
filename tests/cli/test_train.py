"""`embedkit train`: every recipe in miniature, the table at the start, dry runs, resumption, bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedkit.embedders.transformer import TransformerEmbedder
from embedkit_trainer.config.file import list_recipes
from embedkit_trainer.config.tiny_model import make_tiny_model
from tests.cli.conftest import REPOSITORY, SAMPLE, Invoke, Run

RECIPES = [(name, a) for name, file in list_recipes().items() for a in (None, *file.ablations)]
ROWS = "\n".join(json.dumps({"query": f"question {i}", "positive": f"the answer {i}"}) for i in range(64))
CONFIG = """\
output = "out"
device = "cpu"
[model]
name = "mistralai/Mistral-7B-v0.1"
[[stages]]
batch_size = 4
[[stages.sources]]
path = "rows.jsonl"
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # One thread: on a busy machine, tiny models lose more by waiting for a second one than it brings.
    import torch

    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config of one's own beside its rows."""
    (tmp_path / "rows.jsonl").write_text(ROWS)
    path = tmp_path / "mine.toml"
    path.write_text(CONFIG)
    return path


def _record(invoke: Invoke, *arguments: Any) -> dict[str, Any]:
    result = invoke("train", *arguments, "--json")
    assert result.exit_code == 0, f"{result.stderr}\n{result.exception!r}"
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize(("name", "ablation"), RECIPES)
def test_every_recipe_runs_in_miniature(name: str, ablation: str | None, invoke: Invoke) -> None:
    """Each recipe and each ablation trains on a CPU without data, and its model embeds."""
    options = () if ablation is None else ("--ablation", ablation)
    record = _record(invoke, name, "--tiny", *options)
    expected = f"models/{name}{f'-{ablation}' if ablation else ''}-tiny"
    assert record["report"]["folder"] == record["config"]["output"] == expected
    assert not record["report"]["stopped"]
    assert record["report"]["steps"] == sum(s["updates"] for s in record["survey"]["stages"])
    figures = {r["setting"]: r for r in record["fidelity"]["rows"]}
    assert any(r["changed"] for r in figures.values())
    embedder = TransformerEmbedder.open(expected)
    vectors = embedder.encode_query(["one question", "another"])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert embedder.info.pooling == record["config"]["model"]["pooling"]


@pytest.mark.parametrize("name", ["e5-mistral-synthetic", "simcse-unsup"])
def test_the_model_serves_an_index(name: str, invoke: Invoke, tmp_path: Path) -> None:
    """`index --embedder MODEL` and `search` work on what `train` saved."""
    assert invoke("train", name, "--tiny", "-o", "model").exit_code == 0
    built = invoke("index", SAMPLE / "corpus.jsonl", "-o", "index", "--embedder", tmp_path / "model")
    assert built.exit_code == 0, built.stderr
    found = invoke("search", "index", "how do I cancel?", "--task", "qa", "--json")
    assert found.exit_code == 0, found.stderr
    assert json.loads(found.stdout)["hits"]


@pytest.mark.parametrize(
    "name", ["e5-mistral-synthetic", pytest.param("e5-mistral-synthetic-msmarco", marks=pytest.mark.soak)]
)
def test_the_seed_set_trains_the_tiny_recipes(name: str, invoke: Invoke) -> None:
    """`examples/synthetic` in the place of the recipe's own data, which is not there: no sample stands in for it."""
    path = f'stages.train.sources.synthetic.path="{REPOSITORY / "examples" / "synthetic"}"'
    result = invoke("train", name, "--tiny", "--set", path, "-o", "model", env={"COLUMNS": "200"})
    assert result.exit_code == 0, f"{result.stderr}\n{result.exception!r}"
    assert "synthetic: not there" not in result.stderr
    assert "source synthetic: " in result.stderr  # its long passages are cut, the samples are short
    assert TransformerEmbedder.open("model").encode_query(["a question"]).shape[0] == 1


def test_other_processes_are_silent(invoke: Invoke, config: Path) -> None:
    """Of several processes the first alone prints."""
    env = {"RANK": "1", "WORLD_SIZE": "2"}
    result = invoke("train", config, "--tiny", "--dry-run", env=env)
    assert (result.exit_code, result.stdout) == (0, "")
    env = {"RANK": "0", "WORLD_SIZE": "2", "COLUMNS": "200"}
    shown = invoke("train", config, "--tiny", "--dry-run", env=env).stdout
    assert "batch: 4 queries (2 processes x 2)" in shown


def test_the_start_shows_the_table(invoke: Invoke) -> None:
    """A run begins with paper, config and effective values, differences marked, and ends with what to do next."""
    result = invoke("train", "simcse-unsup", "--tiny", env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert "arXiv 2104.08821" in result.stdout
    batch = next(line for line in lines if line.strip().startswith("batch_size"))
    assert batch.split() == ["batch_size", "64", "64", "8", "≠", "config"]
    rate = next(line for line in lines if line.strip().startswith("optimizer.lr"))
    assert rate.split() == ["optimizer.lr", "3e-05", "3e-05", "="]
    assert "--embedder models/simcse-unsup-tiny" in lines[-1]
    assert "data/sentences.txt: not there, so the shipped samples stand in" in result.stderr
    assert "loss" in result.stderr
    assert "negatives per query" in result.stderr


def test_dry_run_shows_and_trains_nothing(invoke: Invoke, config: Path) -> None:
    """A dry run prints the exact strings, ids, EOS and negatives per query, and leaves no model behind."""
    result = invoke(
        "train", config, "--tiny", "--dry-run", "--set", "stages.train.accumulation=2", env={"COLUMNS": "200"}
    )
    assert result.exit_code == 0, result.stderr
    for part in (
        "query: 'question 0'",
        "positive: 'the answer 0'",
        "the last is </s>",
        "ids: 1 ",
        "negatives per query: up to 3",
        "one update: 8 queries (2 batches, which share no negatives)",
        "does not enlarge the pool of negatives",
        "32 rows",
    ):
        assert part in result.stdout, part
    assert not Path("out-tiny").exists()


def test_dry_run_as_json(invoke: Invoke, config: Path) -> None:
    """--json holds the whole survey; a config without a paper has no table."""
    record = _record(invoke, config, "--tiny", "--dry-run", "--examples", "2", "-o", "elsewhere")
    assert (record["fidelity"], record["report"]) == (None, None)
    assert record["config"]["output"] == "elsewhere"
    (source,) = record["survey"]["stages"][0]["sources"]
    assert [e["line"] for e in source["examples"]] == [1, 2]


def test_list(invoke: Invoke) -> None:
    """--list names every recipe and ablation, as text and as JSON."""
    text = invoke("train", "--list").stdout
    records = json.loads(invoke("train", "--list", "--json").stdout)
    for name, ablation in RECIPES:
        assert name in text
        assert ablation is None or f"--ablation {ablation}" in text
    assert [(r["name"], a) for r in records for a in (None, *r["ablations"])] == RECIPES


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "no config is given"),
        (("gte-bas",), "unknown recipe 'gte-bas': did you mean gte-base?"),
        (("gone.toml",), "gone.toml does not exist"),
        (("gte-base",), "do not exist: check the path, or try the run with --tiny"),
        (("gte-base", "--tiny", "--ablation", "x"), "there is no ablation 'x'"),
        (("mine.toml", "--set", "sed=1"), "sed is unknown: did you mean seed?"),
        (("mine.toml", "--set", "stages.train.sources.rows.path=none.jsonl"), "none.jsonl' does not exist"),
        (("mine.toml", "--tiny", "--set", "model.name=who/knows"), "cannot be told from its name"),
    ],
)
def test_bad_input_is_one_sentence(run: Run, config: Path, arguments: tuple[str, ...], expected: str) -> None:
    """What is wrong with the call or the config ends with exit code 2 and one sentence."""
    done = run("train", *arguments)
    assert done.returncode == 2
    assert expected in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_bad_rows_are_named(run: Run, config: Path) -> None:
    """A row without a positive is named with file and line; nothing is trained."""
    Path("rows.jsonl").write_text(ROWS + '\n{"query": "lonely"}\n')
    done = run("train", config, "--tiny", "--set", "stages.train.sources.rows.limit=100")
    assert done.returncode == 2
    assert "rows.jsonl, line 65" in done.stderr
    assert "positive" in done.stderr
    assert not Path("out-tiny").exists()


#: Sixty steps take less than a second: after the first line of one, wait until the signal has been sent.
_HELD = """
import io, pathlib, sys, time

class Held(io.TextIOWrapper):
    def write(self, text):
        written = super().write(text)
        self.flush()
        while "step 1/" in text and not pathlib.Path("interrupted").exists():
            time.sleep(0.01)
        return written

sys.stderr = Held(sys.stderr.buffer, encoding="utf-8")
"""


def test_stopped_and_resumed(config: Path, invoke: Invoke, tmp_path: Path) -> None:
    """Ctrl-C saves a checkpoint and ends with exit code 2; the same command goes on, --fresh begins anew."""
    base = make_tiny_model(tmp_path, "bert", ["question answer the"], seed=0)
    settings = [
        f"model.name={base}",
        "stages.train.epochs=10",
        "stages.train.max_steps=60",
        "save_every=1000",
    ]
    settings += ["stages.train.query_length=16", "stages.train.document_length=16"]
    arguments = ["train", str(config), *(part for s in settings for part in ("--set", s))]
    command = [sys.executable, "-m", "embedkit_cli.main", *arguments]  # as launchers of several processes do
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "sitecustomize.py").write_text(_HELD)
    path = os.pathsep.join([str(tmp_path / "held"), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", "PYTHONPATH": path}
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, encoding="utf-8")
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if "step 1/" in line:
            process.send_signal(signal.SIGINT)
            Path("interrupted").touch()
    assert process.wait(timeout=60) == 2, "".join(seen)
    assert "the same command goes on from there" in "".join(seen)
    assert not Path("out").exists()
    resumed = invoke(*arguments, "--json")
    assert resumed.exit_code == 0, resumed.stderr
    assert "going on from" in resumed.stderr
    assert 0 < json.loads(resumed.stdout)["report"]["steps"] < 60
    fresh = invoke(*arguments, "--fresh", "--json")
    assert json.loads(fresh.stdout)["report"]["steps"] == 60
