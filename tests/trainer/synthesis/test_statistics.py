"""The statistics of rows: every count by hand, the table beside the paper, the plot and the page."""

from __future__ import annotations

import json
import re
import struct
from html.parser import HTMLParser
from pathlib import Path

import pytest

from embedkit.errors import InputError
from embedkit_trainer.data.files import row_files
from embedkit_trainer.synthesis.comparison import compare, paper_language, paper_share
from embedkit_trainer.synthesis.filters.example import Example
from embedkit_trainer.synthesis.filters.pipeline import read_examples
from embedkit_trainer.synthesis.plots import write_png
from embedkit_trainer.synthesis.report import render_html, write_html
from embedkit_trainer.synthesis.statistics import Statistics, count_rejected, gather, read_failures
from embedkit_trainer.synthesis.store import FAILURES, encode
from tests.trainer.synthesis.made_rows import example

SEED_SET = Path(__file__).resolve().parents[3] / "examples" / "synthetic"


def _drawn(number: int, model: str = "gpt-4", **placeholders: str) -> Example:
    metadata = {
        "request": number, "type": "sts", "model": model, "template": "sts-1", "placeholders": placeholders,
        "tokens": [100, 50], "cost": 0.25,
    }  # fmt: skip
    return example(
        f"query {number} two three", f"positive {number}", negatives=["n m"] * (number % 2), task="sts",
        instruction=f"task {number // 2}", lang_q="en", lang_d="de" if number % 2 else "en", metadata=metadata,
    )  # fmt: skip


def test_everything_is_counted() -> None:
    """Types, languages, pairs, models, templates, placeholders, instructions, negatives, tokens, cost, lengths."""
    rows = [
        *(_drawn(n, clarity="clear", unit="phrase") for n in range(3)),
        _drawn(3, "gpt-3.5", clarity="ambiguous"),
        example("one", "two words", lang="fr", metadata={"num_words": "50"}),
    ]
    made = gather(rows, likeness=None)
    assert made.rows == 5
    assert made.types == {"sts": 4, "unknown": 1}
    assert made.languages == {"en": 4, "fr": 1}
    assert made.document_languages == {"en": 2, "de": 2, "fr": 1}
    assert made.pairs == {"en-de": 2}
    assert made.models == {"gpt-4": 3, "gpt-3.5": 1, "not said": 1}
    assert made.templates == {"sts-1": 4, "not said": 1}
    assert made.placeholders == {
        "clarity": {"clear": 3, "ambiguous": 1}, "unit": {"phrase": 3}, "num_words": {"50": 1}
    }  # fmt: skip
    assert (made.instructed, made.instructions) == (4, 2)
    assert made.negatives == {0: 3, 1: 2}
    assert (made.priced, made.tokens, made.cost) == (4, (400, 200), 1.0)
    assert made.near_duplicates is None
    query = made.lengths["query"]
    assert (query.count, query.longest, query.percentiles[50]) == (5, 4, 4)
    assert made.lengths_by_type["unknown"]["query"].mean == 1
    assert json.loads(json.dumps(made.to_dict()))["lengths"]["query"]["p50"] == 4


def test_duplicates_are_counted_exactly_and_nearly() -> None:
    """Of three rows alike two are duplicates; one reworded is near, as are the equal ones."""
    pytest.importorskip("datasketch")
    text = " ".join(f"word{n}" for n in range(60))
    rows = [example(text, text + " end"), *[example(text, text + " end")] * 2, example(text + " more", text)]
    made = gather(rows, likeness=0.8)
    assert (made.duplicates, made.near_duplicates) == (2, 3)
    assert made.to_dict()["near_duplicate_rate"] == 0.75


def test_a_placeholder_of_many_values_is_counted_alone() -> None:
    """The tasks of a pool are not listed one by one."""
    made = gather((_drawn(n, task=f"task {n}", clarity="clear") for n in range(300)), likeness=None)
    assert made.values == {"task": 300}
    assert set(made.placeholders) == {"clarity"}


def test_rejected_answers_are_read_from_the_run(tmp_path: Path) -> None:
    """Reasons, tokens and cost of what did not become a row; a folder of something else is refused."""
    lines = [
        {"request": n, "reason": "refusal" if n else "empty", "raw": "", "tokens": [10, 5], "cost": 0.5}
        for n in range(3)
    ]
    store = tmp_path / "answers"
    store.mkdir()
    (store / f"{FAILURES}-00000.jsonl").write_bytes(b"".join(map(encode, lines)))
    with pytest.raises(InputError, match="is no output of a run"):
        read_failures(tmp_path)
    (store / "plan.json").write_text("{}", encoding="utf-8")
    made = gather([_drawn(1)], likeness=None)
    count_rejected(made, read_failures(tmp_path))
    assert made.rejected == {"refusal": 2, "empty": 1}
    assert (made.rejected_tokens, made.rejected_cost) == ((30, 15), 1.5)


def test_the_papers_figures_are_the_papers() -> None:
    """Shares of the 507 thousand by type, and of the languages that its figure names."""
    assert [round(paper_share(kind) or 0, 3) for kind in ("short-long", "bitext")] == [0.329, 0.176]
    assert (paper_share("mine"), paper_language("en"), paper_language("sw")) == (None, 0.431, None)
    rows = list(read_examples(row_files(SEED_SET)))
    table = {line.name: (line.paper, line.here) for line in compare(gather(rows, likeness=None))}
    of_type = sum(e.type == "short-long" for e in rows) / len(rows)
    english = sum(e.language("q") == "en" for e in rows) / len(rows)
    tasks, languages = {e.row.instruction for e in rows}, {e.language(side) for e in rows for side in "qd"}
    assert table["short-long"] == ("32.9%", f"{of_type:.1%}")
    assert table["English"] == ("43.1%", f"{english:.1%}")
    assert table["unique instructions"] == ("150,000 (30%)", f"{len(tasks):,} ({len(tasks) / len(rows):.0%})")
    assert table["languages"] == ("93", str(len(languages)))
    hard = sum(bool(e.row.negatives) for e in rows) / len(rows)
    assert table["with hard negatives"] == ("94.1%", f"{hard:.1%}")


def test_no_rows_are_no_statistics() -> None:
    """An empty set is a mistake, not a page of zeros."""
    with pytest.raises(InputError, match="no rows to count"):
        gather([], likeness=None)


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def _hostile() -> Statistics:
    name = '"><script src=//x.test></script>$\\frac{'
    rows = [
        example(
            task=name, lang_q=name, metadata={"model": name, "template": name, name: name, "unit": "a\x00b"}
        )
    ]
    return gather([*rows, example(task="语言", lang_q="中文" * 30)], likeness=None)


def test_the_page_asks_no_other_host_and_escapes_what_rows_say() -> None:
    """No script, no address, nothing to load; a policy forbids it besides; light and dark."""
    page = render_html(_hostile(), "<b>rows</b>")
    parser = _Tags()
    parser.feed(page)
    assert not parser.tags & {"script", "img", "link", "iframe", "b" if "<b>rows" in page else "object"}
    assert not parser.attributes & {"src", "href", "onload"}
    assert "default-src 'none'" in page and "prefers-color-scheme: dark" in page
    assert not re.search(r"url\(|@import", page)
    assert "&lt;b&gt;rows&lt;/b&gt;" in page


def test_plot_and_page_are_written_whole(tmp_path: Path) -> None:
    """A PNG of sensible size, for the seed set and for names that no font and no formula likes."""
    pytest.importorskip("matplotlib")
    for number, made in enumerate((gather(read_examples(row_files(SEED_SET)), likeness=None), _hostile())):
        png, html = tmp_path / f"{number}.png", tmp_path / f"{number}.html"
        write_png(png, made)
        write_html(html, made, "rows")
        head = png.read_bytes()[:24]
        assert head.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", head[16:24])
        assert width == 1430 and 500 < height < 1200
        assert html.read_text(encoding="utf-8").endswith("</html>\n")
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("name", ["plot.pdf", "folder.png"])
def test_a_plot_is_a_png(tmp_path: Path, name: str) -> None:
    """Another ending and a folder are refused."""
    pytest.importorskip("matplotlib")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match="name a file ending in .png"):
        write_png(tmp_path / name, gather([example()], likeness=None))
    with pytest.raises(InputError, match="name a file ending in .html"):
        write_html(tmp_path / name, gather([example()], likeness=None), "x")
