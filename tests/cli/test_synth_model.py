"""`embedkit synth` against llama.cpp's server with a tiny language model, by the words of the README."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from embedkit_trainer.data.rows import read_rows
from embedkit_trainer.synthesis.answers import Reason
from embedkit_trainer.synthesis.store import FAILURES, read_records
from embedkit_trainer.synthesis.types import BUILT_IN
from tests.cli.conftest import Invoke
from tests.docs.test_docs import LANGUAGE_MODEL, RUNNABLE
from tests.trainer.synthesis.model_server import LANGUAGES, NAME, model_server
from tests.trainer.synthesis.scripted import write_config

pytest.importorskip("accelerate", reason="embedkit train needs the extra [train]")

SECTION = "Let a language model write the training set"
EXAMPLES = 48
#: The paper's shares would leave out types in so few examples.
WEIGHTS = f"""\
examples = {EXAMPLES}
shares = {{ short-long = 1, long-short = 1, short-short = 1, long-long = 1, sts = 2, bitext = 2 }}
languages = {{ en = 1, de = 1 }}
timeout = 300                               # two cores may have other work
"""
REPLACED = "examples = 200                                # the paper: 500,000\n"
KINDS = {kind.name: kind for kind in BUILT_IN}
#: What a grammar prevents: it knows the form of an answer, though not how long or sensible it is.
PREVENTED = {Reason.NO_JSON, Reason.EMPTY, Reason.SERVER}


class Desk(NamedTuple):
    """A folder where the README's commands have been run, and what each printed."""

    folder: Path
    url: str
    printed: list[str]
    command: Callable[..., subprocess.CompletedProcess[str]]

    def json(self, *arguments: str) -> dict[str, Any]:
        """Return what a command prints with --json."""
        done = self.command(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the tiny model's server."""
    with model_server(tmp_path_factory.mktemp("model-server")) as address:
        yield address


@pytest.fixture(scope="module")
def desk(url: str, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """Run the README's section as it stands, but for the server's address, the number of examples and the weights."""
    folder = tmp_path_factory.mktemp("desk")
    settings = {k: v for k, v in os.environ.items() if not k.startswith(("EMBEDKIT_", "OPENAI_"))}
    environment = settings | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "EMBEDKIT_CACHE": str(tmp_path_factory.mktemp("cache")),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUTF8": "1",
        "COLUMNS": "120",
    }

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        options: dict[str, Any] = {"cwd": folder, "env": environment, "timeout": 500}
        return subprocess.run(
            arguments, capture_output=True, text=True, encoding="utf-8", check=False, **options
        )

    (block,) = (b for b in RUNNABLE if (b.page, b.section) == ("README.md", SECTION))
    assert REPLACED in block.code
    code = block.code.replace(LANGUAGE_MODEL, url).replace(REPLACED, WEIGHTS)
    config, commands = code.split("TOML\n")[:-1], code.rpartition("TOML\n")[2].splitlines()
    printed = []
    for line in ["TOML\n".join([*config, ""]), *commands]:
        done = command("sh", "-eu", "-c", line)
        assert done.returncode == 0, f"{line}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        printed.append(done.stdout)
    return Desk(folder, url, printed, command)


def test_every_type_is_written(desk: Desk) -> None:
    """Rows of all six types and both languages lie where the command says, each with the fields of its answer."""
    stored = list(read_records(str(desk.folder / "synthesis" / "store")))
    assert EXAMPLES * 0.7 < len(stored) <= EXAMPLES
    answers = {f"{a['type']}-{a['request']}": a for a in stored}
    files = sorted((desk.folder / "synthesis" / "rows").rglob("rows.jsonl"))
    assert {path.parent.name for path in files} == set(KINDS)
    rows = [json.loads(line) for path in files for line in path.open(encoding="utf-8")]
    assert {row["id"] for row in rows} == set(answers)
    assert {row["lang_q"] for row in rows} == {row["lang_d"] for row in rows} == set(LANGUAGES)
    for row in rows:
        kind, answer = KINDS[row["task"]], answers[row["id"]]["answer"]
        assert set(answer) == set(kind.fields)
        assert (row["query"], row["positive"]) == (answer[kind.query], answer[kind.positive])
        assert row["negatives"] == ([answer[kind.negative]] if kind.negative else [])
        assert (row["lang_q"] != row["lang_d"]) == (row["task"] == "bitext")
        assert row["instruction"]
        assert row["metadata"]["model"] == NAME
        assert all(count > 8 for count in row["metadata"]["tokens"])
    assert len(list(read_rows(str(desk.folder / "synthesis" / "rows")))) == len(rows)


def test_the_grammar_leaves_nonsense_alone_to_reject(desk: Desk) -> None:
    """No answer is other than an object of the right fields, unless it was cut off; what is not taken is nonsense in them."""
    store = str(desk.folder / "synthesis" / "store")
    failures = list(read_records(store, FAILURES))
    assert len(failures) + len(list(read_records(store))) == EXAMPLES
    failures += read_records(str(desk.folder / "synthesis" / "pools" / "brainstorm"), FAILURES)
    assert not {failure["reason"] for failure in failures} & PREVENTED
    for failure in failures:
        if failure["reason"] != "truncated":
            found = set(json.loads(failure["raw"]))
            assert found in (set(KINDS[failure["type"]].fields), {"tasks"})


def test_instructions_come_from_the_pools(desk: Desk) -> None:
    """Each asymmetric type has a pool of what the model brainstormed, and the instructions of its rows are those tasks."""
    pools = {p.stem: p for p in (desk.folder / "synthesis" / "pools").glob("*.jsonl")}
    assert set(pools) == {kind.name for kind in BUILT_IN if kind.pool}
    for name, path in pools.items():
        tasks = {json.loads(line)["task"] for line in path.open(encoding="utf-8")}
        file = desk.folder / "synthesis" / "rows" / name / "rows.jsonl"
        assert {json.loads(line)["instruction"] for line in file.open(encoding="utf-8")} <= tasks


def test_the_filter_keeps_what_its_defaults_let_pass(desk: Desk) -> None:
    """Kept and dropped rows together are those that were written, each dropped one with its reason."""
    written = Counter(row.id for row in _lines(desk.folder / "synthesis" / "rows"))
    kept = Counter(row.id for row in _lines(desk.folder / "data" / "synthetic"))
    dropped = list(_lines(desk.folder / "data" / "synthetic.dropped", "dropped-*.jsonl"))
    assert kept
    assert kept + Counter(row.id for row in dropped) == written
    # The model knows two languages and mixes them, so most of what it writes is not in the one that was asked for.
    assert {"other-language"} <= {row.reason for row in dropped}


def test_the_statistics_are_of_the_store(desk: Desk) -> None:
    """`stats` counts the kept rows, and with --run all that was rejected; tokens are those that the server counted."""
    rows = [row.value for row in _lines(desk.folder / "data" / "synthetic")]
    stats = desk.json("embedkit", "synth", "stats", "data/synthetic", "--run", "synthesis")
    assert stats["rows"] == len(rows)
    assert stats["types"] == Counter(row["task"] for row in rows)
    assert stats["languages"] == Counter(row["lang_q"] for row in rows)
    assert stats["models"] == {NAME: len(rows)}
    failures = list(read_records(str(desk.folder / "synthesis" / "store"), FAILURES))
    assert stats["rejected"] == Counter(failure["reason"] for failure in failures)
    assert f"{NAME} 100%" in desk.printed[5]


def test_nothing_is_asked_twice(desk: Desk) -> None:
    """The same command stores nothing new and leaves the rows as they are."""
    before = _files(desk.folder / "synthesis" / "rows")
    again = desk.json("embedkit", "synth", "generate", "synthesis.toml")
    assert again["run"]["stored"] == again["run"]["rejected"] == 0
    assert _files(desk.folder / "synthesis" / "rows") == before


def test_plan_and_dry_run_ask_nothing(desk: Desk) -> None:
    """`plan --json` forecasts both steps; `--dry-run` prints prompts in the languages asked for; both without a server."""
    config = desk.folder / "elsewhere.toml"
    config.write_text((desk.folder / "synthesis.toml").read_text().replace(desk.url, "http://127.0.0.1:9/v1"))
    plan = desk.json("embedkit", "synth", "plan", "elsewhere.toml")
    assert sum(plan["types"].values()) in range(EXAMPLES - 3, EXAMPLES + 4)
    assert plan["forecast"]["brainstorm"]["requests"] == 3 * len(plan["pools"])
    assert plan["forecast"]["generate"]["requests"] == EXAMPLES
    shown = desk.command("embedkit", "synth", "generate", "elsewhere.toml", "--dry-run", "--prompts", "9")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("--- ") == 9
    assert "German" in shown.stdout
    assert "English" in shown.stdout


def test_the_trained_model_searches(desk: Desk) -> None:
    """The recipe trained on the kept rows alone, not on the shipped samples, and its folder embeds queries and documents."""
    from embedkit import get_embedder

    assert "shipped samples" not in desk.printed[6]
    rows = len(_lines(desk.folder / "data" / "synthetic"))
    assert re.search(rf"^  examples +about 500k +{rows} ", desk.printed[6], re.MULTILINE)
    embedder = get_embedder(str(desk.folder / "my-second-model"))
    query = embedder.encode_query(["wo ist die Rechnung?"], task="qa")
    documents = embedder.encode_document(["Sie kommt mit der Post.", "The moon has no air."])
    assert query.shape[1] == documents.shape[1] == embedder.info.dim
    assert np.allclose(np.linalg.norm(documents, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "reasons"),
    [
        ('structured_output = "on"\nmax_tokens = 16', {"truncated"}),
        ('structured_output = "off"\nmax_tokens = 60', {"truncated", "no-json", "empty"}),
    ],
)
def test_half_an_answer_or_free_text_is_not_taken(
    model: str, reasons: set[str], url: str, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server stops at max_tokens and says so; without a grammar the model writes no JSON. Both are kept aside."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    config = write_config(tmp_path, url, "timeout = 300", model, examples=6, shares="sts = 1")
    config.write_text(config.read_text().replace('name = "tiny"', f'name = "{NAME}"'))
    result = invoke("synth", "generate", config, "--json")
    assert result.exit_code == 0, result.stderr
    run = json.loads(result.stdout)["run"]
    assert (run["stored"], run["rejected"]) == (0, 6)
    assert set(run["reasons"]) <= reasons


class _Line(NamedTuple):
    id: str
    reason: str
    value: dict[str, Any]


def _lines(folder: Path, pattern: str = "*.jsonl") -> list[_Line]:
    found = []
    for path in sorted(folder.rglob(pattern)):
        for line in path.open(encoding="utf-8"):
            value = json.loads(line)
            row = value.get("row", value)
            found.append(_Line(row["id"], path.stem.removeprefix("dropped-"), row))
    return found


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*.jsonl")}
