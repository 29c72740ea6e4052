"""`embedkit synth filter` and `embedkit synth stats`, end to end, and every way they can be asked wrongly."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from embedkit_trainer.data.rows import read_rows
from tests.cli.conftest import REPOSITORY, Invoke, Run
from tests.trainer.synthesis.made_rows import read, write
from tests.trainer.synthesis.scripted import scripted, write_config

SEED_SET = REPOSITORY / "examples" / "synthetic"
GERMAN = "Der letzte Bus nach Hause fährt heute wegen der Bauarbeiten schon um zehn Uhr."


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Six rows: one sound, and one for each filter of texts."""
    return write(
        tmp_path / "rows" / "all.jsonl",
        {"query": "query", "positive": "near97", "negatives": ["near50"], "lang": "en"},
        {"query": "query", "positive": "near97", "negatives": ["near50"], "lang": "en"},
        {"query": GERMAN, "positive": "near97", "lang": "en"},
        {"query": "query", "positive": "near90 near90", "metadata": {"num_words": 50}},
        {"query": "query", "positive": "which words of this sentence were in the set"},
        {"query": "query", "positive": "near50", "negatives": ["near97"]},
        {"query": "query", "positive": "near90", "negatives": ["near80", "near89"]},
    )


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    """Word vectors: the cosine of "query" and "near97" is 0.97, and so on."""
    lines = ["query 1 0"]
    for percent in (97, 90, 89, 80, 50):
        x = percent / 100
        lines.append(f"near{percent} {x:.6f} {np.sqrt(1 - x * x):.6f}")
    path = tmp_path / "words.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _ok(result: Result) -> Any:
    assert result.exit_code == 0, f"{result.stderr}\n{result.exception!r}"
    return json.loads(result.stdout)


def test_every_filter_says_what_it_dropped(invoke: Invoke, rows: Path, vectors: Path, tmp_path: Path) -> None:
    """One row falls to each; the report, the files beside and the rows that are left agree."""
    pytest.importorskip("datasketch")
    write(tmp_path / "eval" / "q.jsonl", {"text": "Which words of this sentence were in the set?"})
    report = _ok(
        invoke(
            "synth", "filter", rows, "-o", "kept.jsonl", "--evaluation", "eval", "--near-duplicates", "0.8",
            "--consistency", "--max-ratio", "0.95", "--embedder", vectors, "--json",
        )
    )  # fmt: skip
    assert (report["rows"], report["kept"]) == (7, 2)
    found = {f["name"]: f["dropped"] or f["changed"] for f in report["filters"]}
    assert found == {
        "duplicates": {"exact-duplicate": 1},
        "language": {"other-language": 1},
        "lengths": {"num-words": 1},
        "placeholders": {},
        "contamination": {"contaminated": 1},
        "near-duplicates": {},
        "consistency": {"inconsistent": 1},
        "negatives": {"near-positive-negative": 1},
    }
    assert [r.negatives for r in read_rows("kept.jsonl")] == [("near50",), ("near80",)]
    assert sorted(p.name for p in Path("kept.dropped").iterdir()) == [
        "changed-near-positive-negative.jsonl", "dropped-contaminated.jsonl", "dropped-exact-duplicate.jsonl",
        "dropped-inconsistent.jsonl", "dropped-num-words.jsonl", "dropped-other-language.jsonl", "report.json",
    ]  # fmt: skip


def test_what_is_printed(invoke: Invoke, rows: Path, vectors: Path) -> None:
    """A line for each reason; relabelling is a change, and filters are turned off one by one."""
    result = invoke(
        "synth",
        "filter",
        rows,
        "-o",
        "out",
        "--no-language",
        "--no-lengths",
        "--relabel",
        "--embedder",
        vectors,
    )
    assert result.exit_code == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0][:5] == ["out:", "6", "of", "7", "rows"]
    assert ["duplicates", "dropped", "exact-duplicate", "1", "14.3%"] in lines
    assert ["consistency", "changed", "relabelled", "1", "16.7%"] in lines
    assert "not trained on instructions" in result.stderr
    assert "takes a negative for the better answer in 17% of the rows" in result.stderr
    assert [r["positive"] for r in read(Path("out/all.jsonl"))].count("near97") == 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["missing", "-o", "out"], "does not exist"),
        (["rows", "-o", "rows/out"], "would lie among the rows that are read"),
        (["rows", "-o", "there.jsonl"], "is there already"),
        (["rows", "-o", "out", "--evaluation", "nowhere"], "nowhere does not exist"),
        (["rows", "-o", "out", "--near-duplicates", "80"], "likeness is 80"),
        (["rows", "-o", "out", "--factor", "0.5"], "factor of num_words is 0.5"),
        (
            ["rows", "-o", "out", "--no-duplicates", "--no-language", "--no-lengths", "--no-placeholders"],
            "leave one on",
        ),
        (["rows", "-o", "out", "--device", "cpu"], "an embedder judges for"),
        (["rows", "-o", "out", "--embedder", "x:y"], "an embedder judges for"),
        (["broken.jsonl", "-o", "out"], "broken.jsonl, line 1: positive is missing"),
    ],
)
def test_bad_input_is_one_sentence_and_loses_nothing(
    invoke: Invoke, rows: Path, arguments: list[str], sentence: str, tmp_path: Path
) -> None:
    """Exit code 2, nothing written, nothing replaced."""
    write(tmp_path / "there.jsonl", {"mine": True})
    write(tmp_path / "broken.jsonl", {"query": "x"})
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    result = invoke("synth", "filter", *arguments)
    assert result.exit_code == 2, result.stdout
    assert sentence in result.stderr and result.stderr.startswith("error: ")
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
def test_a_full_disk_loses_nothing(run: Run, tmp_path: Path) -> None:
    """One sentence; the output of before is there, and no scrap of the new one."""
    import resource

    write(tmp_path / "rows.jsonl", *({"query": f"q {n}", "positive": "p " * 50} for n in range(2000)))
    write(tmp_path / "kept.jsonl", {"query": "of before", "positive": "p"})
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    limits = (50_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    done = run(
        "synth", "filter", "rows.jsonl", "-o", "kept.jsonl", "--force", "--no-language", cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "the disk is full" in done.stderr
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_an_output_is_replaced_when_asked(invoke: Invoke, rows: Path) -> None:
    """--force, and only what this command wrote."""
    for _ in range(2):
        assert _ok(invoke("synth", "filter", rows, "-o", "out", "--force", "--json"))["kept"] == 4


def test_statistics_of_the_seed_set(invoke: Invoke, tmp_path: Path) -> None:
    """The counts as JSON, with the table beside the paper, the page and the plot."""
    pytest.importorskip("matplotlib")
    found = _ok(invoke("synth", "stats", SEED_SET, "--html", "a.html", "--png", "a.png", "--json"))
    rows = [row for path in SEED_SET.glob("*.jsonl") for row in read(path)]
    assert found["rows"] == len(rows) >= 650
    assert found["instructions"] == len({row["instruction"] for row in rows})
    assert found["languages"]["en"] == sum(row["lang_q"] == "en" for row in rows)
    languages = {row[key] for row in rows for key in ("lang_q", "lang_d")}
    assert found["near_duplicates"] == found["duplicates"] == 0
    assert {"name": "languages", "paper": "93", "here": str(len(languages))} in found["paper"]
    assert (tmp_path / "a.html").stat().st_size > 5000
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_statistics_are_printed(invoke: Invoke, rows: Path) -> None:
    """The table first, then a line for each count; near-duplicates are left out on request."""
    result = invoke("synth", "stats", rows, "--near-duplicates", "0")
    assert result.exit_code == 0, result.stderr
    assert "English" in result.stdout and "num_words: 50 1" in result.stdout
    assert "exact 1 (14.3%), near not looked for" in " ".join(result.stdout.split())


def test_a_generated_set_is_filtered_and_counted(invoke: Invoke, tmp_path: Path) -> None:
    """What `synth generate` writes goes through both as it is: types, models, templates, tokens, and what was refused."""
    pytest.importorskip("openai")
    with scripted(tmp_path) as server:
        config = write_config(tmp_path, server.url, examples=40)
        for step in ("brainstorm", "generate"):
            _ok(invoke("synth", step, config, "--json"))
    report = _ok(
        invoke("synth", "filter", "out/rows", "-o", "kept", "--no-language", "--no-lengths", "--json")
    )
    assert report["rows"] == 40
    assert report["kept"] + sum(n for f in report["filters"] for n in f["dropped"].values()) == 40
    assert len(list(read_rows("kept"))) == report["kept"]
    found = _ok(invoke("synth", "stats", "out/rows", "--run", "out", "--json"))
    assert found["rows"] == found["priced"] == 40
    assert "not said" not in {*found["models"], *found["templates"], *found["languages"]}
    assert sum(found["tokens"]) > 40 and found["placeholders"]["clarity"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["missing"], "does not exist"),
        (["rows", "--png", "plot.svg"], "name a file ending in .png"),
        (["rows", "--html", "page.txt"], "name a file ending in .html"),
        (["rows", "--run", "rows"], "is no output of a run"),
        (["rows", "--near-duplicates", "2"], "likeness is 2"),
    ],
)
def test_statistics_refuse_what_they_cannot_do(
    invoke: Invoke, rows: Path, arguments: list[str], sentence: str
) -> None:
    """Exit code 2 and one sentence."""
    result = invoke("synth", "stats", *arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr
