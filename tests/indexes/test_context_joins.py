"""What a passage is joined from: chunks of one document in one version, and nothing that lies between them is lost."""

from __future__ import annotations

import ast
import hashlib
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedkit import get_embedder
from embedkit.errors import CorruptIndexError
from embedkit_indexes import ChunkConfig, ContextConfig, Document, Index, build_context
from embedkit_indexes.corpus.records import Form
from embedkit_indexes.exchange import _digest
from embedkit_indexes.manifest import text_of
from tests.indexes.conftest import HashEmbedder
from tests.indexes.test_context import CHUNKS, folded, numbered

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


MARKDOWN = """# Plans

Cancel a plan like this:

```python
def cancel(plan, money):
    if plan.open:

        plan.close(money)
    return plan
```

- refund
    - by card, which takes
      three days
    - by cheque

One line
and the next.   Two spaces before this.\u3000全角の空白。
"""


@pytest.mark.parametrize("tokens", [8, 12, 20])
@pytest.mark.parametrize("form", ["markdown", "text"])
def test_white_space_between_chunks_is_what_it_was(
    tmp_path: Path, embedder: HashEmbedder, tokens: int, form: Form
) -> None:
    """Fences keep their indentation, lines and lists theirs: before and after compaction, and through an export."""
    config = ChunkConfig(max_tokens=tokens, overlap_tokens=2, context=False)
    document = Document("plans.md", MARKDOWN, source="plans.md", lang="en", form=form)
    Index.build(tmp_path / "i", [document], embedder, chunking=config)
    index = Index.open(tmp_path / "i", embedder)

    def check(index: Index) -> None:
        found = index.search("cancel refund money", k=50).hits
        hits = [hit for hit in found if hit.document_id == document.id]
        assert len(hits) > 3
        (block,) = build_context(hits[:1], ALL).blocks
        assert (block.text, block.start) == (MARKDOWN.strip(), 0)
        for hit in hits:
            for block in build_context([hit], ContextConfig(expand=1)).blocks:
                assert MARKDOWN[block.start : block.end] == block.text

    check(index)
    kept = pickle.loads(pickle.dumps(index.search("cancel refund money", k=50).hits))
    assert [b.text for b in build_context(kept, ContextConfig(100_000)).blocks] == [MARKDOWN.strip()]
    index.add([Document("other", "Nothing of this.")])
    index.compact()
    check(index)
    index.export(tmp_path / "i.parquet")
    Index.restore(tmp_path / "again", tmp_path / "i.parquet")
    check(Index.open(tmp_path / "again", embedder))


def test_much_white_space_is_shortened(tmp_path: Path, embedder: HashEmbedder) -> None:
    """Of a hundred blank lines a paragraph's break is left, and the next line's indentation; places stay right."""
    text = " ".join(f"a{i}" for i in range(28)) + "\n" * 100 + "    " + " ".join(f"b{i}" for i in range(28))
    Index.build(tmp_path / "i", [Document("d", text)], embedder, chunking=CHUNKS)
    (block,) = build_context(Index.open(tmp_path / "i", embedder).search("a1 b1", k=9).hits, ALL).blocks
    assert block.text == text.replace("\n" * 100, "\n\n")
    assert (block.start, block.end) == (0, len(text))


@pytest.mark.parametrize(
    ("between", "joined", "alone"),
    [
        ("\n" + " " * 63, "\n" + " " * 63, " " * 63),
        ("\n" + " " * 64, "\n\n", ""),
        (" " * 65, "\n\n", ""),
        ("\n \u2028  ", "\n \u2028  ", "  "),
        ("\n\x0c", "\n\x0c", ""),
        (" ", " ", ""),
        ("\r\n\t", "\r\n\t", "\t"),
        ("\n" * 1000, "\n\n", ""),
        ("\n" * 1001, None, ""),
    ],
    ids=[
        "a line and 63",
        "a line and 64",
        "65 in a line",
        "Unicode's line",
        "a page's end",
        "one",
        "a tab",
        "1,000 lines",
        "more",
    ],
)
def test_lines_and_indentations_of_every_kind(
    tmp_path: Path, embedder: HashEmbedder, between: str, joined: str | None, alone: str
) -> None:
    """What separates two chunks stays up to 64 characters; a passage begins with what stands before it on its line."""
    first, second = (" ".join(f"{c}{i}" for i in range(28)) + "." for c in "ab")
    document = Document("d", f"{first}{between}{second}")
    Index.build(tmp_path / "i", [document], embedder, chunking=ChunkConfig(max_tokens=32, overlap_tokens=0))
    hits = Index.open(tmp_path / "i", embedder).search("a1 b1", k=9).hits
    assert len(hits) == 2
    texts = [b.text for b in build_context(hits, ContextConfig(100_000, order="source")).blocks]
    assert texts == ([first, alone + second] if joined is None else [first + joined + second])
    (block,) = build_context([h for h in hits if h.position], ContextConfig()).blocks
    assert (block.text, block.start) == (alone + second, len(first) + len(between) - len(alone))


def test_an_indented_beginning_is_no_code_in_markdown(tmp_path: Path, embedder: HashEmbedder) -> None:
    """A passage of a list's second level is quoted between fences: behind `> ` it would be shown as code."""
    first, second = (" ".join(f"{c}{i}" for i in range(28)) for c in "ab")
    document = Document("d", f"- {first}\n    - {second}", form="markdown", lang="en")
    Index.build(tmp_path / "i", [document], embedder, chunking=ChunkConfig(max_tokens=34, overlap_tokens=0))
    hits = Index.open(tmp_path / "i", embedder).search("b1", k=9).hits
    found = [h for h in hits if h.position and "b0" in h.text]
    shown = build_context(found, ContextConfig(form="markdown")).to_text()
    assert f"```\n    - {second}\n```" in shown


def _without_leads(folder: Path) -> None:
    """Make of an index one as it was written before the white space was stored."""
    (file,) = folder.glob("segment-*/chunks.arrow")
    with pa.OSFile(str(file)) as source:
        table = pa.ipc.open_file(source).read_all().drop_columns(["lead"])
    with pa.ipc.new_file(str(file), table.schema) as out:
        out.write_table(table)
    manifest = folder / "embedkit.json"
    data = json.loads(manifest.read_text())
    data.pop("checksum")
    told = data["segments"][0]["files"][file.name]
    told |= {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    manifest.write_text(text_of(data))


def _flipped(folder: Path, embedder: HashEmbedder) -> None:
    """Flip bits of the chunks' frame: what is altered is refused by its name, or not noticed by what is read."""
    (file,) = folder.glob("segment-*/chunks.arrow")
    whole = file.read_bytes()
    refused = 0
    for place in range(len(whole) - 1800, len(whole), 6):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        # A file of its own: the one before may still be mapped.
        file.unlink()
        file.write_bytes(damaged)
        try:
            hits = Index.open(folder, embedder).search("p1 q1 r1 s1", k=50).hits
            build_context(hits, ALL)
        except CorruptIndexError as e:
            refused += file.name in str(e)
    assert refused > 20
    file.unlink()
    file.write_bytes(whole)


def _export_without_leads(path: Path) -> Path:
    """Write an export anew as it was written before."""
    file = pq.ParquetFile(path)
    (batch,) = file.read_row_group(0).drop_columns(["lead"]).combine_chunks().to_batches()
    told = {b"embedkit": file.schema_arrow.metadata[b"embedkit"]}
    with pq.ParquetWriter(path, batch.schema.with_metadata(told)) as out:
        out.write_batch(batch)
        out.add_key_value_metadata({b"embedkit.sha256": json.dumps([_digest(batch)])})
    return path


def test_an_index_without_its_white_space_is_read_and_changed(tmp_path: Path, embedder: HashEmbedder) -> None:
    """One that was written before it was stored: chunks over a line break or two are joined, others stand apart."""
    old = Document("old", "\n\n".join(" ".join(f"{c}{i}" for i in range(28)) for c in "pq"), source="o")
    wide = Document("wide", "\n\n\n".join(" ".join(f"{c}{i}" for i in range(28)) for c in "rs"), source="w")
    Index.build(tmp_path / "i", [old, wide], embedder, chunking=CHUNKS)
    _without_leads(tmp_path / "i")
    index = Index.open(tmp_path / "i", embedder)
    index.verify()

    def texts() -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for block in build_context(index.search("p1 q1 r1 s1", k=50).hits, ALL).blocks:
            found.setdefault(block.document_id, []).append(block.text)
        return {name: sorted(texts) for name, texts in found.items()}

    expected = {"old": [old.text], "wide": wide.text.split("\n\n\n")}
    assert texts() == expected
    assert index.search("r1", k=1).hits[0].lead is None
    _flipped(tmp_path / "i", embedder)
    index.export(tmp_path / "i.parquet")
    new = Document("new", "\n\n\n".join(" ".join(f"{c}{i}" for i in range(28)) for c in "tu"), source="n")
    index.add([new])
    expected["new"] = [new.text]
    assert texts() == expected
    index.compact()
    assert texts() == expected
    index.verify()
    restored = Index.restore(tmp_path / "again", _export_without_leads(tmp_path / "i.parquet"))
    assert restored.documents == 2
    index = Index.open(tmp_path / "again", embedder)
    del expected["new"]
    assert texts() == expected


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
