"""The token store: what it holds equals direct tokenising, and a damaged or half-made one is made again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from embedkit.contract import Template
from embedkit.errors import CorpusError, InputError
from embedkit_trainer.config.records import SourceConfig
from embedkit_trainer.data.rendering import TokenizerPair, id_key, render, text_key
from embedkit_trainer.data.rows import Row, read_rows, write_rows
from embedkit_trainer.data.store import TokenStore, cached_store
from embedkit_trainer.data.store_writer import BATCH_ROWS
from tests.embedkit.tiny_models import TEXTS
from tests.trainer.tiny_tokens import tiny_pair

INSTRUCTIONS = ("Find the answer.", "Find the same.", "Wer sagt das?")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a tiny tokenizer once."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_pair(folder)
    return folder


def _rows(n: int, seed: int = 0) -> list[Row]:
    """Return rows with 0 to 3 negatives, some with instruction, ids, scores and teacher scores."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        k = int(rng.integers(0, 4))
        texts = [f"{TEXTS[int(rng.integers(len(TEXTS)))]} {i} {j}" for j in range(k + 2)]
        rows.append(
            Row(
                query=texts[0],
                positive=texts[1],
                negatives=tuple(texts[2:]),
                instruction="Own one." if i % 5 == 0 else None,
                source="s",
                positive_id=f"d{i}" if i % 2 else None,
                negative_ids=tuple(None if j else f"n{i}" for j in range(k)) if i % 3 == 0 else (),
                teacher_scores=tuple(rng.random(k + 1, np.float32).tolist()) if i % 7 == 0 else None,
                score=float(i) if i % 4 == 0 else None,
                line=i + 1,
            )
        )
    return rows


def test_a_store_holds_what_direct_tokenising_gives(tmp_path: Path, tokenizer: Path) -> None:
    """Ids, keys, scores, lengths and counts of every row, across record batches, equal those made row by row."""
    pair, _, _ = tiny_pair(tokenizer)
    rows = _rows(BATCH_ROWS + 300)
    source = SourceConfig(name="cooking", instructions=INSTRUCTIONS, instruction_dropout=0.3, licence="CC0")
    store = TokenStore.build(iter(rows), pair, tmp_path / "store", source)
    assert (len(store), store.name, store.licence) == (len(rows), "cooking", "CC0")
    for i, row in enumerate(rows):
        strings = render(row, pair.template, INSTRUCTIONS, 0.3)
        found = store.row(i)
        assert found.query.tolist() == pair.query([strings.query])[0]
        assert [d.tolist() for d in found.documents] == pair.document(strings.documents)
        assert found.query_key == text_key(strings.query)
        assert found.text_keys == tuple(text_key(t) for t in (row.positive, *row.negatives))
        ids = (row.positive_id, *(row.negative_ids or (None,) * len(row.negatives)))
        assert found.id_keys == tuple(id_key(x, "cooking") for x in ids)
        assert found.teacher_scores == row.teacher_scores
        assert found.line == row.line
        assert np.isnan(found.score) if row.score is None else found.score == row.score
        assert store.query_lengths[i] == len(found.query)
        assert store.document_lengths[i] == max(map(len, found.documents))
        start, end = store.document_starts[i : i + 2]
        assert store.all_document_lengths[start:end].tolist() == [len(d) for d in found.documents]
        assert store.texts(i) == replace(row, instruction=strings.instruction)
        assert store.rendered(i) == strings
    assert [r for batch in store.text_batches() for r in batch] == [store.texts(i) for i in range(len(rows))]


def test_counts_say_what_was_cut(tmp_path: Path, tokenizer: Path) -> None:
    """Texts that fill the limit are counted as truncated, on each side by its own limit."""
    pair, _, _ = tiny_pair(tokenizer, query_length=6, document_length=9)
    long = "salt and pepper " * 5
    rows = [Row("salt", long, (long, "salt")), Row(long, "salt")]
    counts = TokenStore.build(rows, pair, tmp_path / "s", SourceConfig(instructions=("a",))).counts
    assert (counts.rows, counts.documents, counts.instructed) == (2, 4, 2)
    assert (counts.truncated_queries, counts.truncated_documents) == (2, 2)
    store = TokenStore.open(tmp_path / "s")
    assert counts.document_tokens == int(store.all_document_lengths.sum())
    assert counts.query_tokens == int(store.query_lengths.sum())


def test_chosen_negatives_go_round_in_a_circle(tmp_path: Path, tokenizer: Path) -> None:
    """`row(i, first, count)` gives the positive and `count` negatives from `first` on, all lists in step."""
    pair, _, _ = tiny_pair(tokenizer)
    row = Row("q", "p", ("n0", "n1", "n2"), negative_ids=("0", "1", "2"), teacher_scores=(9.0, 0.0, 1.0, 2.0))
    store = TokenStore.build([row], pair, tmp_path / "s")
    for first, count, expected in (
        (0, 2, [0, 1, 2]),
        (2, 2, [0, 3, 1]),
        (7, 1, [0, 2]),
        (1, 0, [0]),
        (5, 3, [0, 1, 2, 3]),
    ):
        whole, found = store.row(0), store.row(0, first, count)
        assert [d.tolist() for d in found.documents] == [whole.documents[d].tolist() for d in expected]
        for chosen, given in ((found.text_keys, whole.text_keys), (found.id_keys, whole.id_keys)):
            assert chosen == tuple(given[d] for d in expected)
        assert found.teacher_scores == tuple((9.0, 0.0, 1.0, 2.0)[d] for d in expected)
        assert list(store.document_numbers(0, first, count)) == expected


def test_token_ids_are_views_of_the_mapped_file(tmp_path: Path, tokenizer: Path) -> None:
    """Rows are read-only views, neighbours in the same memory: reading copies nothing."""
    pair, _, _ = tiny_pair(tokenizer)
    store = TokenStore.build(_rows(20), pair, tmp_path / "s")
    first, second = store.row(3), store.row(4)
    assert first.query.base is not None and not first.query.flags.writeable
    assert first.query.ctypes.data + first.query.nbytes == second.query.ctypes.data
    assert isinstance(store.query_lengths, np.memmap)


def test_opening_a_large_store_loads_little(tmp_path: Path) -> None:
    """Opening a store and reading one row of it takes a small part of its size in memory."""
    pair = TokenizerPair(_constant, lambda texts: [[7] for _ in texts], Template(), "constant")
    store = TokenStore.build((Row(f"q{i}", "p") for i in range(25 * BATCH_ROWS)), pair, tmp_path / "s")
    small = TokenStore.build((Row(f"q{i}", "p") for i in range(10)), pair, tmp_path / "small")
    size = (store.folder / "tokens.arrow").stat().st_size
    assert size > 20_000_000
    program = (
        "import re, sys; from pathlib import Path; from embedkit_trainer.data.store import TokenStore\n"
        "import pyarrow as pa, pyarrow.ipc\n"
        # `ru_maxrss` knows the most of the process that started it, too.
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1])\n"
        "from embedkit_trainer.data.folders import read_manifest\n"
        # What is imported on the way counts for nothing.
        "TokenStore(Path(sys.argv[2]), read_manifest(Path(sys.argv[2]))).row(5)\n"
        "before = peak()\n"
        "store = TokenStore(Path(sys.argv[1]), read_manifest(Path(sys.argv[1])))\n"
        "row = store.row(20_000)\n"
        "print(len(row.query), peak() - before)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", program, str(store.folder), str(small.folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    length, grown = map(int, out.stdout.split())
    assert length == 200
    assert grown * 1024 < size / 4


def _constant(texts: Sequence[str]) -> list[list[int]]:
    return [[7] * 200 for _ in texts]


def _source(tmp_path: Path, n: int = 50) -> tuple[SourceConfig, Path]:
    path = tmp_path / "rows.jsonl"
    write_rows(path, _rows(n))
    return SourceConfig(path=str(path), name="s"), path


def test_a_second_run_tokenises_nothing(tmp_path: Path, tokenizer: Path) -> None:
    """The same content, tokens and options find the finished store; a touched licence or file time changes nothing."""
    source, path = _source(tmp_path)
    pair, queries, documents = tiny_pair(tokenizer)
    first = cached_store(source, pair, tmp_path / "cache", [path], lambda: read_rows(path))
    assert len(queries.seen) == 50
    assert len(documents.seen) == first.counts.documents
    queries.seen.clear()
    documents.seen.clear()
    os.utime(path, (1, 1))
    again = cached_store(
        replace(source, licence="MIT"), pair, tmp_path / "cache", [path], lambda: read_rows(path)
    )
    assert again.folder == first.folder
    assert again.licence == "MIT"
    assert not queries.seen and not documents.seen


def test_whatever_decides_the_tokens_makes_another_store(tmp_path: Path, tokenizer: Path) -> None:
    """Content, tokenizer, template, lengths and source options each lead to a store of their own."""
    source, path = _source(tmp_path)
    pair, _, _ = tiny_pair(tokenizer)
    folders = set()
    pairs = [
        pair,
        replace(pair, key="other"),
        replace(pair, template=Template(document="passage: {text}")),
        tiny_pair(tokenizer, query_length=10)[0],
        tiny_pair(tokenizer, document_length=10)[0],
    ]
    sources = [
        replace(source, limit=40),
        replace(source, instructions=("a",)),
        replace(source, instruction_dropout=0.5),
        replace(source, name="t"),
    ]
    for config, tokens in [*((source, p) for p in pairs), *((s, pair) for s in sources)]:
        store = cached_store(config, tokens, tmp_path / "cache", [path], lambda: read_rows(path))
        folders.add(store.folder)
    write_rows(path, _rows(50, seed=1))
    folders.add(cached_store(source, pair, tmp_path / "cache", [path], lambda: read_rows(path)).folder)
    assert len(folders) == len(pairs) + len(sources) + 1


@pytest.mark.parametrize(
    "name", ["tokens.arrow", "texts.arrow", "query_lengths.bin", "document_starts.bin", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_store_is_made_again(tmp_path: Path, tokenizer: Path, name: str, damage: str) -> None:
    """A flipped byte, a cut file or a missing one never serves: the store is built anew, equal to the first."""
    source, path = _source(tmp_path, 20)
    pair, queries, _ = tiny_pair(tokenizer)
    first = cached_store(source, pair, tmp_path / "cache", [path], lambda: read_rows(path))
    expected = [first.texts(i) for i in range(20)], [first.row(i).query.tolist() for i in range(20)]
    file = first.folder / name
    data = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(data[: len(data) // 2])
    else:
        at = data.index(b'"files"') if name == "manifest.json" else len(data) // 2
        data[at] ^= 1
        file.write_bytes(data)
    with pytest.raises(InputError, match="no intact token store"):
        TokenStore.open(first.folder)
    queries.seen.clear()
    again = cached_store(source, pair, tmp_path / "cache", [path], lambda: read_rows(path))
    assert len(queries.seen) == 20
    assert ([again.texts(i) for i in range(20)], [again.row(i).query.tolist() for i in range(20)]) == expected


def test_a_failed_build_leaves_nothing(tmp_path: Path, tokenizer: Path) -> None:
    """An error in row 1,500 names its line, and neither a store nor its parts stay behind."""
    _, path = _source(tmp_path, 1500)
    with path.open("a") as f:
        f.write('{"query": "q"}\n')
    pair, _, _ = tiny_pair(tokenizer)
    with pytest.raises(CorpusError, match="line 1501: positive is missing"):
        TokenStore.build(read_rows(path), pair, tmp_path / "cache" / "s")
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["s.lock"]


_BUILD = """
import sys, time
from pathlib import Path
from embedkit.contract import Template
from embedkit_trainer.data.rendering import TokenizerPair
from embedkit_trainer.data.rows import Row
from embedkit_trainer.data.store import TokenStore
seen = []
def tokens(texts):
    seen.extend(texts)
    print("tokenising", flush=True)
    time.sleep(float(sys.argv[2]))
    return [[len(t)] for t in texts]
pair = TokenizerPair(tokens, tokens, Template(), "k")
store = TokenStore.build((Row(f"q{i}", "p") for i in range(3000)), pair, Path(sys.argv[1]))
print(len(store), len(seen))
"""


def _builder(folder: Path, pause: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _BUILD, str(folder), str(pause)], stdout=subprocess.PIPE, text=True
    )


def test_a_killed_build_leaves_no_store(tmp_path: Path) -> None:
    """After a kill in the middle there is no folder of that name, and the next build makes it whole."""
    folder = tmp_path / "s"
    process = _builder(folder, 60)
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.communicate()
    assert not folder.exists()
    out, _ = _builder(folder, 0).communicate(timeout=120)
    assert out.split()[-2:] == ["3000", "6000"]
    assert len(TokenStore.open(folder)) == 3000
    assert not (tmp_path / "s.partial").exists()


def test_two_processes_tokenise_once(tmp_path: Path) -> None:
    """Of two processes that want the same store, one tokenises and the other waits for it."""
    processes = [_builder(tmp_path / "s", 0.3) for _ in range(2)]
    counts = sorted(p.communicate(timeout=120)[0].split()[-1] for p in processes)
    assert counts == ["0", "6000"]


def test_a_source_without_rows_and_a_limit(tmp_path: Path, tokenizer: Path) -> None:
    """No rows are an error that names the source; a limit takes the first rows."""
    pair, _, _ = tiny_pair(tokenizer)
    with pytest.raises(InputError, match="'cooking' holds no rows"):
        TokenStore.build([], pair, tmp_path / "a", SourceConfig(name="cooking"))
    store = TokenStore.build(_rows(30), pair, tmp_path / "b", SourceConfig(limit=7))
    assert [store.texts(i).line for i in range(len(store))] == [1, 2, 3, 4, 5, 6, 7]
    with pytest.raises(IndexError, match="row 7 of a store of 7"):
        store.row(7)


def test_a_text_without_tokens_is_named(tmp_path: Path) -> None:
    """A text that the tokenizer drops whole would pool nothing: its line is named."""
    pair = TokenizerPair(
        lambda texts: [[1] for _ in texts],
        lambda texts: [[1] * (t != "void") for t in texts],
        Template(),
        "k",
    )
    rows = [Row("a", "b", line=1), Row("c", "d", ("e", "void"), line=2)]
    with pytest.raises(CorpusError, match="rows.jsonl, line 2: .* no token in a document of the row 'c'"):
        TokenStore.build(rows, pair, tmp_path / "s", SourceConfig(path="rows.jsonl"))


def test_costs_bound_what_a_row_can_take(tmp_path: Path, tokenizer: Path) -> None:
    """No choice of negatives makes a row longer than its cost."""
    pair, _, _ = tiny_pair(tokenizer)
    store = TokenStore.build(_rows(100), pair, tmp_path / "s")
    for negatives in (0, 1, 5):
        costs = store.costs(negatives)
        for i in range(100):
            found = max(
                len(row.query) + sum(map(len, row.documents))
                for row in (store.row(i, first, negatives) for first in range(3))
            )
            bound = store.query_lengths[i] + (1 + negatives) * store.document_lengths[i]
            assert found <= costs[i] <= bound


def test_the_instruction_is_a_pure_function_of_the_row() -> None:
    """Each instruction gets its share, dropout takes its share from own and drawn ones alike, and nothing changes."""
    rows = [Row(f"query {i}", f"positive {i}", instruction="Own." if i % 2 else None) for i in range(4000)]
    given = [render(r, Template(), INSTRUCTIONS, 0.25).instruction for r in rows]
    assert given == [render(r, Template(), INSTRUCTIONS, 0.25).instruction for r in reversed(rows)][::-1]
    drawn, own = given[0::2], given[1::2]
    for found in (drawn, own):
        assert abs(found.count(None) / 2000 - 0.25) < 0.04
    for sentence in INSTRUCTIONS:
        assert abs(drawn.count(sentence) / 2000 - 0.25) < 0.04
    assert set(own) == {"Own.", None}
    moved = [
        render(replace(r, line=99, negatives=("n",)), Template(), INSTRUCTIONS, 0.25).instruction
        for r in rows
    ]
    assert moved == given


def test_rendering_keeps_instructions_off_documents() -> None:
    """The template's instruct form is for the query alone; without an instruction the query form is used."""
    template = Template(query="Q: {query}", document="D: {text}")
    with_one = render(Row("q", "p", ("n",), instruction="Find."), template)
    assert with_one.query == "Instruct: Find.\nQuery: q"
    assert with_one.documents == ("D: p", "D: n")
    assert render(Row("q", "p"), template).query == "Q: q"


def test_keys_see_through_form_and_space_alone() -> None:
    """Unicode form and white space do not tell texts apart; letters, case and the source of an id do."""
    assert text_key("caf\u00e9  au\nlait ") == text_key("cafe\u0301 au lait")
    assert len({text_key(t) for t in ("a", "A", "b", "ab", "a b")}) == 5
    assert id_key("1", "s") == id_key("1", "s") != id_key("1", "t")
    assert id_key(None, "s") == 0
    assert all(0 < text_key(str(i)) < 1 << 63 for i in range(1000))
    assert text_key("salt") == 1665686843785091986  # stored on disk: never to change
