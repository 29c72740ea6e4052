"""Pools of tasks: grown, deduplicated, edited by hand; and templates of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from embedkit.errors import CorpusError, InputError, StoreError
from embedkit_trainer.synthesis.brainstorm import brainstorm
from embedkit_trainer.synthesis.generate import generate, plan_requests
from embedkit_trainer.synthesis.pools import Growth, grow, read_pool, write_pool
from embedkit_trainer.synthesis.settings_file import load_synthesis
from embedkit_trainer.synthesis.templates import load_templates, read_template
from embedkit_trainer.synthesis.types import BUILT_IN
from tests.trainer.synthesis.scripted import Scripted, scripted, write_config

TASK = "Given a question about tax law, retrieve the paragraph of a statute that answers it"


def test_duplicates_and_near_duplicates_are_left_out() -> None:
    """The same words in any case are a duplicate, nearly the same ones a near-duplicate, others are new."""
    new = [
        TASK.upper() + ".",
        "Given a question about tax law, retrieve the paragraph of a statute which answers it",
        "Match a recipe with the wine that goes with it",
        "Match a recipe with the wine that goes with it",
    ]
    entries = [{"task": TASK}]
    kept, growth = grow(entries, [{"task": t} for t in new], similarity=0.8)
    assert [entry["task"] for entry in kept] == [TASK, new[2]]
    assert growth == Growth(added=1, duplicates=2, near_duplicates=1)
    _, growth = grow(entries, [{"task": t} for t in new], similarity=1)
    assert growth == Growth(added=2, duplicates=2, near_duplicates=0)


def test_a_pool_may_be_edited(server: Scripted, tmp_path: Path) -> None:
    """What a person takes out stays out, what they add or change stays, while the pool grows further."""
    config = load_synthesis(write_config(tmp_path, server.url))
    report = brainstorm(config)
    assert set(report.sizes.values()) == {10}
    file = Path(config.pools) / "long-long.jsonl"
    entries = read_pool(file)
    assert set(entries[0]) == {"task", "model", "template", "request"}
    gone, changed = entries[0]["task"], entries[1]["task"]
    edited = [{"task": "A task by hand"}, {"task": changed + " (changed)"}, *entries[2:]]
    write_pool(file, edited)
    more = load_synthesis(tmp_path / "synthesis.toml", ["brainstorm.requests=3"])
    grown = brainstorm(more)
    assert grown.growth["long-long"] == Growth(5, 0, 0)
    tasks = [entry["task"] for entry in read_pool(file)]
    assert tasks[:2] == ["A task by hand", changed + " (changed)"]
    assert gone not in tasks
    assert len(tasks) == 15
    assert len(server.requests) == 12


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("nonsense", "no JSON"),
        ('["a task"]', "holds no task"),
        ('{"tsk": "a"}', "holds no task"),
        ('{"task": "  "}', "holds no task"),
        ('{"task": "two\\nlines"}', "must be one line"),
        (json.dumps({"task": "a" * 3000}), "must be one line of at most 2,000"),
    ],
)
def test_a_pool_edited_into_nonsense(line: str, expected: str, server: Scripted, tmp_path: Path) -> None:
    """The line is named before anything is paid for, by both steps, and the file stays as it is."""
    config = load_synthesis(write_config(tmp_path, server.url))
    brainstorm(config)
    asked = len(server.requests)
    file = Path(config.pools) / "short-long.jsonl"
    text = file.read_text() + line + "\n"
    file.write_text(text)
    for step in (brainstorm, generate):
        with pytest.raises(CorpusError, match=rf"short-long\.jsonl, line 11: .*{expected}"):
            step(load_synthesis(tmp_path / "synthesis.toml", ["brainstorm.requests=5"]))
    assert file.read_text() == text
    assert len(server.requests) == asked


@pytest.mark.parametrize("text", ['["a"]', '{"a": 1}', "[null]", "[true]", "[0", "[" * 5000])
def test_a_broken_list_of_merged_answers(text: str, server: Scripted, tmp_path: Path) -> None:
    """It is told before anything is asked; without it the answers are merged again."""
    config = write_config(tmp_path, server.url)
    sizes = brainstorm(load_synthesis(config)).sizes
    asked = len(server.requests)
    file = tmp_path / "out/pools/brainstorm/merged.json"
    file.write_text(text)
    more = load_synthesis(config, ["brainstorm.requests=3"])
    with pytest.raises(StoreError, match=r"merged\.json cannot be read: take it away"):
        brainstorm(more)
    assert len(server.requests) == asked
    file.unlink()
    assert all(count == 5 + sizes[kind] for kind, count in brainstorm(more).sizes.items())


def test_useless_answers_do_not_reach_a_pool(tmp_path: Path) -> None:
    """A brainstorm's failures are kept with their reason; the rest makes the pool."""
    with scripted(tmp_path, {"fault": "text", "value": '{"tasks": "one"}', "every": 2}) as server:
        config = load_synthesis(write_config(tmp_path, server.url))
        report = brainstorm(config)
        assert report.run.reasons == {"wrong-schema": 8 - report.run.stored}
        assert sum(report.sizes.values()) == 5 * report.run.stored
        again = brainstorm(config, retry_failed=True)
    assert set(again.sizes.values()) == {10}


def test_the_shipped_templates() -> None:
    """Several for each type and step, which show every value that they draw and name every field of an answer."""
    templates = load_templates()
    for kind in BUILT_IN:
        for step in ("generate", "brainstorm") if kind.pool else ("generate",):
            found = [t for t in templates if (t.type, t.step) == (kind.name, step)]
            assert len(found) >= 2, (kind.name, step)
            for template in found:
                fields = kind.fields if step == "generate" else ("tasks",)
                assert all(f'"{name}"' in template.body for name in fields), template.name
                values = {name: f"<{name}>" for name in (*template.filled, *template.drawn)}
                assert all(value in template.render(values) for value in values.values())


def test_rendering_is_strict() -> None:
    """A value too few or too many is told with the template and the placeholder; other braces stay."""
    template = next(t for t in load_templates() if t.name == "sts-1")
    values = dict.fromkeys((*template.filled, *template.drawn), "x")
    with pytest.raises(InputError, match="template sts-1: no value for the placeholder 'unit'"):
        template.render({k: v for k, v in values.items() if k != "unit"})
    with pytest.raises(InputError, match="template sts-1: there is no placeholder 'extra' in it"):
        template.render(values | {"extra": "x"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no head", "has no head"),
        ("+++\ntype = \n+++\nx", "its head is no TOML"),
        (f"+++\ntype = {'[' * 5000}\n+++\nx", "its head is no TOML"),
        ('+++\nstep = "generate"\n+++\nx', "type is missing"),
        ('+++\ntype = "sts"\nstep = "dance"\n+++\nx', "step is 'dance'"),
        ('+++\ntype = "sts"\nstep = "generate"\nplaceholder = 1\n+++\nx', "unknown key 'placeholder'"),
        ('+++\ntype = "sts"\nstep = "generate"\n+++\n{unit}', "{unit} is not declared"),
        (
            '+++\ntype = "sts"\nstep = "generate"\n[placeholders]\nunit = ["a"]\n+++\nx',
            "'unit' is declared but not",
        ),
        (
            '+++\ntype = "sts"\nstep = "generate"\n[placeholders]\nunit = []\n+++\n{unit}',
            "give a list of values",
        ),
        (
            '+++\ntype = "sts"\nstep = "generate"\n[placeholders]\nunit = "task2"\n+++\n{unit}',
            "give a list of values",
        ),
    ],
)
def test_a_template_that_cannot_be_used(text: str, expected: str, tmp_path: Path) -> None:
    """Its file and what is wrong are named."""
    file = tmp_path / "mine.md"
    file.write_text(text)
    with pytest.raises(InputError) as told:
        read_template(file)
    assert str(file) in str(told.value)
    assert expected in str(told.value)


def test_templates_and_types_of_ones_own(server: Scripted, tmp_path: Path) -> None:
    """A folder adds templates, a file named like a shipped one takes its place, and a new type needs no code."""
    folder = tmp_path / "templates"
    folder.mkdir()
    head = '+++\ntype = "{}"\nstep = "generate"\n[placeholders]\nlanguage = "language"\n+++\n'
    (folder / "sts-1.md").write_text(head.format("sts") + 'Another wording, {language}: "S1" "S2" "S3"')
    (folder / "code-1.md").write_text(head.format("code") + 'In {language}: "question" and "snippet"')
    (folder / "README.md").write_text("no template")
    path = write_config(
        tmp_path, server.url, 'templates = ["templates"]', shares="code = 1, sts = 1", examples=20
    )
    own = '[[types]]\nname = "code"\nquery = "question"\npositive = "snippet"\npool = false\ninstruction = "Find code"\n'
    path.write_text(path.read_text() + own)
    config = load_synthesis(path)
    prompts = [plan_requests(config).request(i).prompt for i in range(40)]
    assert any(p.startswith("Another wording") for p in prompts)
    assert any("On a scale" not in p and "We measure" in p for p in prompts)
    assert set(generate(config).rows) == {"code", "sts"}
    row = json.loads((tmp_path / "out/rows/code/rows.jsonl").read_text().splitlines()[0])
    assert (row["instruction"], row["task"], row["negatives"]) == ("Find code", "code", [])


def test_a_template_of_an_unknown_type(server: Scripted, tmp_path: Path) -> None:
    """A template for a type that nothing declares is named."""
    folder = tmp_path / "templates"
    folder.mkdir()
    (folder / "x.md").write_text('+++\ntype = "poems"\nstep = "generate"\n+++\nWrite.')
    config = load_synthesis(write_config(tmp_path, server.url, 'templates = ["templates"]'))
    with pytest.raises(
        InputError, match=r"template x is for the type 'poems', which nothing declares: add \[\[types\]\]"
    ):
        plan_requests(config, "stand-in")
