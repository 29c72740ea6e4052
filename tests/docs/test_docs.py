"""The documentation does what it says: its blocks are run as a reader would run them, its links lead somewhere.

A fence that reads ```sh no-run: REASON is shown and not run. A section (`## …`) is run in a folder of its own,
its blocks in their order.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.embedkit.embedding_server import EmbeddingServer
from tests.trainer.synthesis.scripted import scripted

REPOSITORY = Path(__file__).resolve().parents[2]
SAMPLE = REPOSITORY / "examples" / "corpus"
PAGES = (
    "README.md",
    "docs/concepts.md",
    "docs/how-to.md",
    "docs/training.md",
    "docs/synthesis.md",
    "docs/llama-index.md",
)
LINKED = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(f"docs/{p.name}" for p in (REPOSITORY / "docs").glob("*.md")),
)
FEWEST_RUNNABLE = 22
SERVER = "http://localhost:8080/v1"
LANGUAGE_MODEL = "http://localhost:8000/v1"
# Left to `make soak`: it makes a transformer and imports torch twice.
SLOW = "Use a model folder"
# Sections that need more than the base installation, and what they import.
_NEEDS = {
    "Use a model folder": "transformers",
    "Use an OpenAI-compatible server": "openai",
    "Use it in LlamaIndex": "llama_index.core",
    "In LlamaIndex": "llama_index.core",
    "Search nodes under several tasks": "llama_index.core",
    "Ask an index that the command line built": "llama_index.core",
    "Passages for a prompt": "llama_index.core",
    "Keep an index in step in a pipeline": "llama_index.core",
    "Evaluate": "pytrec_eval",
    "Evaluate an embedder beyond retrieval": "sklearn",
    "Use": "pytrec_eval",
    "Train": "accelerate",
    "Try it in miniature": "accelerate",
    "Train on your own rows": "accelerate",
    "Recipes": "accelerate",
    "From Python": "accelerate",
    "Let a language model write the training set": "accelerate",
    "Write a training set": "datasketch",
    "Templates and types of your own": "openai",
    "Filter and count": "matplotlib",
}
_FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TEXTS = {
    "plans.md": "# Plans\n\nYou can cancel your plan at any time, in the settings.\n",
    "invoices.md": "# Invoices\n\nThe invoice comes by mail on the first day of the month.\n",
    "refunds.md": "# Refunds\n\nThe law gives you two weeks to return what you bought and get your money back.\n",
}


class Block(NamedTuple):
    """A fenced block; `reason` says why it is not run, None where it is."""

    page: str
    line: int
    section: str
    language: str
    code: str
    reason: str | None


def blocks(page: str) -> list[Block]:
    """Return a page's python and sh blocks; any other word after the language than `no-run:` is an error."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    found = []
    for fence in _FENCE.finditer(text):
        language, info, code = fence.groups()
        if language not in ("python", "sh"):
            continue
        headings = re.findall(r"^## (.+)$", _FENCE.sub("", text[: fence.start()]), re.MULTILINE)
        marker = re.fullmatch(r" no-run: (\S.*)", info)
        line = text.count("\n", 0, fence.start()) + 1
        assert marker or not info.strip(), f"{page}, line {line}: write `no-run: REASON`, not {info!r}"
        reason = marker[1] if marker else None
        found.append(Block(page, line, headings[-1] if headings else "", language, code, reason))
    return found


Section = tuple[str, str]
RUNNABLE = [b for page in PAGES for b in blocks(page) if b.reason is None]
SECTIONS: list[Section] = list(dict.fromkeys((b.page, b.section) for b in RUNNABLE))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The reader's shell: this installation's commands first, no network, no settings of ours."""
    settings = {k: v for k, v in os.environ.items() if not k.startswith(("EMBEDKIT_", "OPENAI_"))}
    return settings | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "EMBEDKIT_CACHE": str(tmp_path_factory.mktemp("cache")),
        "PYTHONUTF8": "1",
        "HF_HUB_OFFLINE": "1",
        "OPENAI_API_KEY": "of-the-test",
    }


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    """What a reader has: texts in docs/, notes, a BEIR folder cut from the sample corpus, and docs.index."""
    folder = tmp_path_factory.mktemp("start")
    (folder / "docs").mkdir()
    for name, text in _TEXTS.items():
        (folder / "docs" / name).write_text(text, encoding="utf-8")
    lines = (SAMPLE / "corpus.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:16]
    ids = {json.loads(line)["_id"] for line in lines}
    (folder / "notes.jsonl").write_text("".join(lines[:6]), encoding="utf-8")
    for name in ("beir-folder", "folder-in-beir-layout"):
        beir = folder / name
        (beir / "qrels").mkdir(parents=True)
        (beir / "corpus.jsonl").write_text("".join(lines), encoding="utf-8")
        shutil.copy(SAMPLE / "queries.jsonl", beir)
        for task in ("qa", "duplicate"):
            head, *rows = (SAMPLE / "qrels" / f"{task}.tsv").read_text().splitlines(keepends=True)
            kept = "".join(row for row in rows if row.split("\t")[1] in ids)
            (beir / "qrels" / f"{task}.tsv").write_text(head + kept)
    shell("embedkit index docs/ -o docs.index", folder, environment)
    return folder


@pytest.fixture
def desk(start: Path, tmp_path: Path) -> Path:
    """A copy of the reader's folder, to work in."""
    return shutil.copytree(start, tmp_path / "desk")


def shell(code: str, folder: Path, environment: dict[str, str]) -> str:
    """Run commands as `sh` does, stopping at the first that fails; return what they print."""
    return _run(["sh", "-eu", "-c", code], folder, environment)


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        command,
        cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _save_model(folder: Path) -> None:
    """Save a seeded BERT as a sentence-transformers folder."""
    from tests.embedkit.tiny_models import BERT, save_model

    save_model(folder, "Bert", BERT)
    kinds = (("Transformer", ""), ("Pooling", "1_Pooling"))
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for kind, path in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')


def _play(section: Section, desk: Path, environment: dict[str, str], servers: dict[str, str]) -> None:
    """Run a section's blocks in their order; raise AssertionError with the line of the one that fails."""
    mine = [b for b in RUNNABLE if (b.page, b.section) == section]
    if any("./my-model" in b.code for b in mine):
        _save_model(desk / "my-model")
    if any(re.search(r"index docs/ -o docs\.index$|build\(.docs\.index", b.code, re.MULTILINE) for b in mine):
        shutil.rmtree(desk / "docs.index")  # the recipe builds it itself
    for block in mine:
        code = block.code
        for shown, real in servers.items():
            code = code.replace(shown, real)
        command = ["sh", "-eu", "-c", code] if block.language == "sh" else [sys.executable, "-c", code]
        try:
            _run(command, desk, environment)
        except AssertionError as failed:
            raise AssertionError(f"{block.page}, line {block.line}: {failed}") from None


@pytest.fixture(scope="module")
def played(
    request: pytest.FixtureRequest,
    start: Path,
    tmp_path_factory: pytest.TempPathFactory,
    environment: dict[str, str],
) -> Iterator[dict[Section, Future[None]]]:
    """The sections chosen for this session, two at a time: a command mostly waits for its own start."""
    items = (i for i in request.session.items if isinstance(i, pytest.Function) and hasattr(i, "callspec"))
    params = [i.callspec.params for i in items]
    chosen = [s for s in SECTIONS if any(p.get("section") == s for p in params)]
    log = tmp_path_factory.mktemp("language-model")
    with EmbeddingServer() as server, scripted(log) as model, ThreadPoolExecutor(2) as pool:
        servers = {SERVER: server.url, LANGUAGE_MODEL: model.url}
        futures = {}
        for number, section in enumerate(chosen):
            desk = shutil.copytree(start, tmp_path_factory.mktemp(f"section{number}") / "desk")
            futures[section] = pool.submit(_play, section, desk, environment, servers)
        yield futures


@pytest.mark.parametrize(
    "section",
    [pytest.param(s, id=": ".join(s), marks=pytest.mark.soak if s[1] == SLOW else ()) for s in SECTIONS],
)
def test_the_blocks_of_a_section_run(section: Section, played: dict[Section, Future[None]]) -> None:
    """Every block without `no-run` ends with exit code 0, run in a folder that holds docs/ and docs.index."""
    if section[1] in _NEEDS:
        pytest.importorskip(_NEEDS[section[1]])
    played[section].result()


def test_enough_blocks_are_run() -> None:
    """Most blocks are run; those that are not say why."""
    every = [b for page in PAGES for b in blocks(page)]
    assert sum(b.section != SLOW for b in RUNNABLE) >= FEWEST_RUNNABLE
    assert len(RUNNABLE) > 2 * (len(every) - len(RUNNABLE))
    assert all(b.reason is None or re.search(r"[a-z]{4}", b.reason) for b in every)


def test_the_plug_in_is_found_by_the_entry_point_shown(desk: Path, environment: dict[str, str]) -> None:
    """The recipe's pyproject.toml names an entry point by which the command line opens the embedder."""
    recipe = next(b for b in RUNNABLE if b.section == "Write your own embedder")
    shell(recipe.code.split("cd letters")[0], desk, environment)
    project = tomllib.loads((desk / "letters" / "pyproject.toml").read_text())["project"]
    info = desk / "letters" / "embedkit_letters-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 1.0\n")
    rows = [f"{name} = {value}\n" for name, value in project["entry-points"]["embedkit.embedders"].items()]
    (info / "entry_points.txt").write_text("".join(["[embedkit.embedders]\n", *rows]))
    installed = environment | {"PYTHONPATH": str(desk / "letters")}
    shell("embedkit index docs/ -o letters.index --embedder letters", desk, installed)
    assert "plans.md" in shell("embedkit search letters.index 'cancel' --json", desk, installed)


def test_the_errors_shown_are_the_ones_that_come(desk: Path, environment: dict[str, str]) -> None:
    """The how-to's failing search ends with exit code 2 and one sentence, and the Python one suggests the name."""
    shown = [b for b in RUNNABLE if b.section == "Read an error"]
    assert shell(shown[0].code, desk, environment) == "exit code 2\n"
    assert _run([sys.executable, "-c", shown[1].code], desk, environment) == "duplicate\n"


def _slugs(page: Path) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    plain = (h.lower().replace("`", "") for h in re.findall(r"^#+ (.+?)[ \t]*$", text, re.MULTILINE))
    return {re.sub(r"[^\w\- ]", "", h).replace(" ", "-") for h in plain}


@pytest.mark.parametrize("page", LINKED)
def test_links_lead_somewhere(page: str) -> None:
    """Every relative link names a file of the repository and, after `#`, a heading of it."""
    text = _FENCE.sub("", (REPOSITORY / page).read_text(encoding="utf-8"))
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)", text, re.MULTILINE)
    for link in (k for k in links if not re.match(r"[a-z]+:", k)):
        name, _, anchor = link.partition("#")
        target = (REPOSITORY / page).parent / name if name else REPOSITORY / page
        assert target.exists(), f"{page} links to {link}: no such file"
        assert not anchor or anchor in _slugs(target), f"{page} links to {link}: no such heading"


def test_every_recipe_is_in_the_list_at_the_top() -> None:
    """The how-to's list of links names every section."""
    page = REPOSITORY / "docs" / "how-to.md"
    text = page.read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(#([\w-]+)\)", text.partition("\n## ")[0]))
    assert linked == _slugs(page) - {"how-to"}
