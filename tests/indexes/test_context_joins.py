"""What a passage is joined from: chunks of one document in one version, and nothing that lies between them is lost."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from embedkit import get_embedder
from embedkit_indexes import ChunkConfig, ContextConfig, Document, Index, build_context
from embedkit_indexes.context_gaps import gap_between
from tests.indexes.conftest import HashEmbedder
from tests.indexes.test_context import CHUNKS, folded, hits_of, numbered

# The splitter cuts it into chunks of which the second lies within the first, and the third begins after both.
NESTED = "``` e.g. law [2][3] ## moon e.g. ``` river cancel\tplan refund follows\n```\n"
ALL = ContextConfig(100_000, expand=100)
CODE = '''import os


class Plan:
    """What a client pays for."""

    def cancel(self, money):
        if money > 3:
            for card in self.cards:
                card.refund(money, reason="cancel")
            return True
        return False

    def renew(self):
        while not self.paid():
            self.ask()

        return self


def main():
    plan = Plan()
    if plan.cancel(4):
        print("done")
    return plan


if __name__ == "__main__":
    main()
'''


@pytest.mark.parametrize("expand", [0, 1, 2, 100])
def test_no_text_is_lost_between_a_chunk_and_the_next_one(tmp_path: Path, expand: int) -> None:
    """A chunk that lies within the one before it is not joined to the next one over what only that one holds."""
    bundled = get_embedder("bundled")
    config = ChunkConfig(max_tokens=8, overlap_tokens=2)
    Index.build(tmp_path / "i", [Document("g", NESTED, lang="python")], bundled, chunking=config)
    index = Index.open(tmp_path / "i", bundled)
    every = sorted(index.search("cancel", k=99).hits, key=lambda hit: hit.position)
    assert any(b.end < a.end < c.start for a, b, c in zip(every, every[1:], every[2:], strict=False))
    for hit in every:
        for budget in (60, 90, 1000):
            for block in build_context([hit], ContextConfig(budget, expand=expand)).blocks:
                assert folded(NESTED[block.start : block.end]) == folded(block.text)
    if expand == 100:
        (block,) = build_context(every, ALL).blocks
        assert folded(block.text) == folded(NESTED)


def test_hits_of_two_indexes_stay_apart(tmp_path: Path, embedder: HashEmbedder) -> None:
    """Hits of two searches in two indexes are told apart, whatever their documents are called, and so is what is left out."""
    found = {}
    for name in ("one", "two"):
        Index.build(tmp_path / name, [replace(numbered(name, 60), id="same")], embedder, chunking=CHUNKS)
        found[name] = Index.open(tmp_path / name, embedder).search(f"{name}3", k=50).hits
    both = [*found["one"], *found["two"]]
    context = build_context(both, ALL)
    assert {b.index: b.text for b in context.blocks} == {
        str(tmp_path / name): numbered(name, 60).text for name in found
    }
    context = build_context(both, ContextConfig(120))
    assert sum(len(b.chunk_ids) for b in context.blocks) + context.left_out.budget == len(both)
    (alone,) = build_context(found["one"]).blocks
    assert alone.index == ""


def test_two_versions_of_a_document_are_never_joined(tmp_path: Path, embedder: HashEmbedder) -> None:
    """What was found before a change is not continued by what was found after it."""
    chunking = ChunkConfig(max_tokens=40, overlap_tokens=0)
    Index.build(tmp_path / "i", [numbered("aa", 90)], embedder, chunking=chunking)
    index = Index.open(tmp_path / "i", embedder)
    old = [h for h in index.search("aa1", k=50).hits if h.position == 0]
    index.upsert([replace(numbered("bb", 90), id="aa")])
    new = [h for h in index.search("bb1", k=50).hits if h.position > 0]
    context = build_context([*old, *new], ContextConfig(100_000))
    assert [("aa" in b.text, "bb" in b.text) for b in context.blocks] == [(True, False), (False, True)]


def test_a_chunk_is_one_before_and_after_compaction(tmp_path: Path, embedder: HashEmbedder) -> None:
    """The same chunk found in two segments is told once, and is no copy of itself."""
    Index.build(tmp_path / "i", [numbered("aa", 20)], embedder, chunking=CHUNKS)
    index = Index.open(tmp_path / "i", embedder)
    index.upsert([numbered("bb", 20)])
    before = index.search("aa1", k=1).hits
    index.compact()
    after = index.search("aa1", k=1).hits
    context = build_context([*before, *after])
    (block,) = context.blocks
    assert (block.also_in, context.left_out.duplicates) == ((), 0)


def test_what_is_left_out_is_a_part_of_what_was_found(tmp_path: Path, embedder: HashEmbedder) -> None:
    """A neighbour that stands for its copy is not counted as found: the copy is counted already."""
    copied = "cc1 cc2 cc3 cc4 cc5 cc6 cc7 cc8 cc9 cc10 cc11 cc12 cc13 cc14 cc15 cc16."
    before, after = (" ".join(f"{name}{i}" for i in range(28)) for name in ("pp", "qq"))
    documents = [
        Document("long", f"{before}\n\n\n{copied}\n\n\n{after}", source="long.md"),
        Document("copy", copied, source="copy.md"),
    ]
    Index.build(tmp_path / "i", documents, embedder, chunking=CHUNKS)
    hits = Index.open(tmp_path / "i", embedder).search("pp1 cc1", k=50).hits
    first = next(h for h in hits if h.document_id == "long" and h.position == 0)
    copy = next(h for h in hits if h.document_id == "copy")
    for budget in (4, 60, 100, 10_000):
        context = build_context([first, copy], ContextConfig(budget, expand=1))
        shown = {chunk for b in context.blocks for chunk in b.chunk_ids} & {first.chunk_id, copy.chunk_id}
        assert len(shown) + context.left_out.duplicates + context.left_out.budget == 2


@pytest.mark.parametrize("tokens", [10, 16, 24, 40])
@pytest.mark.parametrize("overlap", [0, 4])
def test_code_keeps_its_indentation(
    tmp_path: Path, embedder: HashEmbedder, tokens: int, overlap: int
) -> None:
    """A document of code that is put together from its chunks is the same program, blank lines and all."""
    config = ChunkConfig(max_tokens=tokens, overlap_tokens=overlap)
    document = Document("plan.py", CODE, source="plan.py", lang="python", form="code")
    Index.build(tmp_path / "i", [document], embedder, chunking=config)
    index = Index.open(tmp_path / "i", embedder)
    hits = index.search("cancel refund money", k=50).hits
    assert len(hits) > 3
    (block,) = build_context(hits[:1], ALL).blocks
    assert block.text == CODE.strip()
    ast.parse(block.text)
    for hit in hits:
        for expand in (0, 1):
            (block,) = build_context([hit], ContextConfig(expand=expand)).blocks
            assert CODE[block.start : block.end] == block.text


@pytest.mark.parametrize(
    ("before", "after", "gap"),
    [
        ("def f():\n    return 1", "def g():\n    return 2", "\n\n\n"),
        ("def f():", "return 1", "\n    "),
        ("x = 1", "y = 2", "\n"),
        ("raise ValueError('what was", "wrong')", " "),
        ("# what's said (of x", "x = 1", "\n"),
        ("call(one, two,", "three)\nreturn 1", " "),
        ("class A:\n  def f(self):\n    return 1", "def g(self):\n    return 2", "\n\n  "),
        ("class A:\n  def f(self):\n    return 1", "x = 2\nif x:\n  f()", "\n\n\n"),
        ("func f() {\n\tif a {\n\t\tb()", "c()\n\t}\n}", "\n\t\t"),
        ("def f():\n    return 1", "x = 3", "\n" * 40),
    ],
)
def test_the_likeliest_white_space_in_code(before: str, after: str, gap: str) -> None:
    """Of as many characters as lie between two chunks, breaks and indentation are told apart by the lines around."""
    assert gap_between(before, after, len(gap), True) == (gap if len(gap) < 40 else "\n\n")
    assert gap_between(before, after, len(gap), False) == "\n\n"[: len(gap)]


def test_copies_of_hits_are_joined_where_nothing_can_lie_between(embedder: HashEmbedder) -> None:
    """Hits without an index are joined over more than two characters only with all chunks before them."""
    paragraphs = [" ".join(f"{c}{i}" for i in range(28)) for c in "pqrs"]
    hits = hits_of([Document("d", "\n\n\n".join(paragraphs), source="s")])
    assert [len(b.chunk_ids) for b in build_context(hits, ContextConfig(10_000)).blocks] == [4]
    assert [len(b.chunk_ids) for b in build_context(hits[1:], ContextConfig(10_000)).blocks] == [1, 1, 1]


def counted(calls: list[str]) -> Callable[[str], int]:
    """Return a counter of words that keeps what it was asked."""

    def count(text: str) -> int:
        calls.append(text)
        return len(text.split())

    return count


def test_a_long_run_is_cut_with_few_counts(tmp_path: Path, embedder: HashEmbedder) -> None:
    """Of a run of many chunks as many as fit are taken, without a count of the whole for each of them."""
    Index.build(tmp_path / "i", [numbered("aa", 3000)], embedder, chunking=CHUNKS)
    (hit,) = Index.open(tmp_path / "i", embedder).search("aa1500 aa1501 aa1502.", k=1).hits
    calls: list[str] = []
    context = build_context([hit], ContextConfig(1500, expand=1000), count_tokens=counted(calls))
    (block,) = context.blocks
    assert len(block.chunk_ids) > 30 and hit.chunk_id in block.chunk_ids
    wider = build_context([hit], ContextConfig(1500 + 40, expand=1000), count_tokens=counted([]))
    assert 1500 - 40 < context.tokens <= 1500 < wider.tokens
    assert len(calls) < 60


def test_nodes_are_not_joined_over_text_that_is_not_theirs() -> None:
    """A node that lies within another one is joined to the next one only with the one that it lies in."""
    pytest.importorskip("llama_index.core")
    from llama_index.core.schema import NodeRelationship, NodeWithScore, RelatedNodeInfo, TextNode

    from embedkit_indexes.llama_index import EmbedkitContext

    text = "You can cancel your plan at any time. The refund comes by mail. It takes ten days."
    nodes = []
    for name, (start, end) in {"0": (0, 63), "1": (8, 37), "2": (64, 82)}.items():
        node = TextNode(id_=name, text=text[start:end], start_char_idx=start, end_char_idx=end)
        node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id="d")
        if name != "2":
            node.relationships[NodeRelationship.NEXT] = RelatedNodeInfo(node_id=str(int(name) + 1))
        nodes.append(NodeWithScore(node=node, score=1.0))

    def texts(found: list[NodeWithScore]) -> list[str]:
        return [n.node.get_content() for n in EmbedkitContext().postprocess_nodes(found)]

    assert texts(nodes[1:]) == [text[8:37], text[64:]]
    assert [folded(t) for t in texts(nodes)] == [folded(text)]
