"""What is told once: the same words in another document, a copy beside a neighbour, a part of a longer passage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from embedkit_indexes import ChunkConfig, Context, ContextConfig, Document, Index, SearchHit, build_context
from tests.indexes.conftest import HashEmbedder
from tests.indexes.test_context import hits_of

RULE = (
    "Customers on the yearly plan may cancel at any time in the settings before the next invoice date, without giving "
    "any reason to our office."
)
COSTS = "The seller pays the costs of the return to the buyer if the goods were damaged on the way."


def whole_hits(documents: Sequence[Document], index: str = "") -> list[SearchHit]:
    """Return each document as the hit of one chunk."""
    found = hits_of([replace(d, text="x") for d in documents], index)
    return [replace(h, text=d.text, end=len(d.text)) for h, d in zip(found, documents, strict=True)]


def context_of(*texts: str, near: float | None = None) -> Context:
    """Return the context of texts, one document each, found in this order."""
    hits = whole_hits([Document(f"d{i}", t, source=f"d{i}.md") for i, t in enumerate(texts)])
    return build_context(hits, ContextConfig() if near is None else ContextConfig(near_duplicate=near))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (RULE, RULE.replace("may cancel", "may not cancel")),
        (RULE, RULE.replace("may cancel", "must cancel")),
        (RULE, RULE.replace("before", "after")),
        (COSTS, "The buyer pays the costs of the return to the seller if the goods were damaged on the way."),
        (RULE + " It costs five euros.", RULE + " It costs ten euros."),
        (RULE + " It costs €5.", RULE + " It costs $5."),
        (RULE + " It costs 1.50.", RULE + " It costs 1, 50."),
        (RULE + " It is -5 degrees.", RULE + " It is 5 degrees."),
        ("if (!done) return the list of all files that are open", "if (done) return the list of all files that are open"),
        ("您可以在下一个账单日之前随时取消年度订阅。", "您不可以在下一个账单日之前随时取消年度订阅。"),
        ("यह सेवा महीने के अंत तक चलेगी और फिर बंद होगी", "यह सेवा महीने के अंत तक चलेगा और फिर बंद होगा"),
    ],
)  # fmt: skip
def test_what_says_something_else_is_shown(one: str, other: str) -> None:
    """A word more, another word, another order, another sign: both passages are told."""
    context = context_of(one, other)
    assert [b.text for b in context.blocks] == [one, other]
    assert context.left_out.duplicates == 0


@pytest.mark.parametrize(
    "copy",
    [
        RULE.replace(" ", "\n", 7),
        RULE.upper(),
        RULE.replace(",", "").rstrip("."),
        f"“{RULE}”",
        f"Last updated: 2024-05-01\n{RULE}",
        f"{RULE}\nOf 3 May 2024",
        f"更新日期：2024年5月1日\n{RULE}",
    ],
)
def test_a_copy_is_told_once(copy: str) -> None:
    """White space, case, punctuation and a line with a date do not make another passage."""
    for texts in ((RULE, copy), (copy, RULE)):
        context = context_of(*texts)
        (block,) = context.blocks
        assert [p.document_id for p in block.also_in] == [{"d0": "d1", "d1": "d0"}[block.document_id]]
        assert context.left_out.duplicates == 1


def test_dates_of_two_copies_may_differ() -> None:
    """Two copies of a page with a date each are one; a date within a sentence counts."""
    pages = [f"Updated {date}\n{RULE}" for date in ("1.5.2024", "June 2, 2025")]
    (block,) = context_of(*pages).blocks
    assert block.text == pages[0] and [p.same for p in block.also_in] == [False]
    said = [f"{RULE} It ends on {date}." for date in ("2024-05-01", "2024-06-01")]
    assert len(context_of(*said).blocks) == 2


def test_a_share_below_one_is_of_words_in_their_order() -> None:
    """Who asks for likeness gets it: most word pairs the same, every number too; an exchange of two words differs."""
    changed = RULE.replace("office", "shop")
    assert len(context_of(RULE, changed).blocks) == 2
    (block,) = context_of(RULE, changed, near=0.8).blocks
    assert [p.same for p in block.also_in] == [False]
    assert len(context_of(RULE + " 5", changed + " 6", near=0.8).blocks) == 2
    assert len(context_of(COSTS, "The buyer" + COSTS[10:].replace("buyer", "seller"), near=0.9).blocks) == 2


@pytest.mark.parametrize("longer_first", [True, False])
def test_a_part_of_another_passage_is_named_there(longer_first: bool) -> None:
    """A sentence found alone and within a longer text stands once, in the longer one, where the better was found."""
    long = f"{RULE} {COSTS}"
    texts = (long, RULE) if longer_first else (RULE, long)
    context = context_of("Another thing that was found best.", *texts)
    assert [b.text for b in context.blocks] == ["Another thing that was found best.", long]
    block = context.blocks[1]
    assert [(p.source, p.start, p.end, p.same) for p in block.also_in] == [
        ("d2.md" if longer_first else "d1.md", 0, len(RULE), True)
    ]
    assert block.score == pytest.approx(1 - 1 / 1000), "of the better of the two"
    assert context.left_out.duplicates == 1


def test_a_small_part_is_told_where_it_was_found_first() -> None:
    """Of a much longer passage the budget might cut off just that part: what was found better stays beside it."""
    long = " ".join(f"{COSTS.replace('goods', f'goods{i}')}" for i in range(2)) + " " + RULE
    context = build_context(whole_hits([Document("a", RULE), Document("b", long)]))
    assert [b.document_id for b in context.blocks] == ["a", "b"]


def test_parts_of_parts_are_all_named() -> None:
    """A text within one that is itself within a third is named there too, and so is the copy of each."""
    middle = f"{RULE} {COSTS}"
    long = f"{middle} That is all there is to say of it."
    context = context_of(RULE, middle, RULE.upper(), long)
    shown = {b.document_id for b in context.blocks}
    named = {p.document_id for b in context.blocks for p in b.also_in}
    assert "d3" in shown and shown | named == {"d0", "d1", "d2", "d3"} and not shown & named
    assert context.left_out.duplicates == len(named)


@pytest.mark.parametrize("budget", [60, 150, 10_000])
def test_every_hit_is_counted_once(tmp_path: Path, budget: int) -> None:
    """A hit whose copy was taken in as a neighbour is a duplicate, and not beyond the budget as well."""
    words = [f"w{i}" for i in range(200)]
    parts = [" ".join(words[i : i + 25]) for i in range(0, 200, 25)]
    documents = [
        Document("long", "\n\n".join(parts)),
        *[Document(f"c{i}", p) for i, p in enumerate(parts[1:4])],
    ]
    embedder = HashEmbedder()
    Index.build(tmp_path / "i", documents, embedder, chunking=ChunkConfig(max_tokens=40, overlap_tokens=0))
    hits = Index.open(tmp_path / "i", embedder).search("w1", k=100).hits
    by_place = {(h.document_id, h.position): h for h in hits}
    assert len(by_place) == len(hits) >= 9
    found = [by_place["long", 2], *[h for h in hits if h.document_id != "long"]]
    context = build_context(found, ContextConfig(budget, expand=2))
    shown = {chunk for b in context.blocks for chunk in b.chunk_ids}
    assert context.left_out.duplicates == 3
    assert context.left_out.budget == (found[0].chunk_id not in shown)


def test_a_file_in_two_indexes_is_one_place() -> None:
    """The same characters of the same file, found in two indexes, are cited once."""
    one = whole_hits([Document("a.md", RULE, source="docs/a.md")], index="one.index")
    two = whole_hits([Document("a.md", RULE, source="docs/a.md")], index="two.index")
    context = build_context([*one, *two])
    (block,) = context.blocks
    assert block.also_in == () and context.left_out.duplicates == 1
