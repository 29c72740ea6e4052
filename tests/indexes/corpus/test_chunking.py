from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedkit.errors import InputError
from embedkit_indexes.corpus.chunking import ChunkConfig, ChunkReport, chunk_documents
from embedkit_indexes.corpus.records import Chunk, Document, Form
from embedkit_indexes.corpus.splitting import pieces
from tests.indexes.corpus.toy import SENTENCES, ToyEmbedder

LONG = " ".join(SENTENCES * 8)
PIECES = st.sampled_from(
    [
        *SENTENCES,
        "ภาษาไทยไม่มีช่องว่างระหว่างคำ",
        "图书馆保存着港口的旧地图，任何人不得外借。",
        "図書館は港の古い地図を保管しています。",
        "المكتبة تحفظ خرائط الميناء القديمة.",
        "पुस्तकालय पुराने नक्शे रखता है।",
        "도서관은 오래된 항구 지도를 보관합니다.",
        "👩\u200d👩\u200d👧 e\u0301 🇩🇪",
        "aB3+/xk9Q2lmZ0" * 12,
        "```\nx = 1\n\n\ny = 2\n```\n",
        "# Title\n",
        "## Part\n\n",
        "- item\n  - under it\n",
        "> quoted\n",
        "| a | b |\n| - | - |\n",
        "***\n",
        "[a](b) <b>c</b> &amp; `d`",
        "\n",
        "\n\n",
        "\t",
        "\r\n",
        "\u2028",
        "\x1f",
        " " * 120,
        "\u00a0",
        "x",
    ]
)
TEXTS = st.lists(PIECES | st.text(max_size=20), max_size=30).map("".join)


def _chunks(text: str, *, form: Form = "text", title: str = "", **config: object) -> list[Chunk]:
    document = Document("d", text, title, form=form)
    return list(chunk_documents([document], ToyEmbedder(), ChunkConfig(**config)))  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXTS, form=st.sampled_from(["text", "markdown", "code"]), overlap=st.sampled_from([0, 8, 0.25]))
def test_coverage(text: str, form: Form, overlap: float) -> None:
    """Every character but white space lies in a chunk, offsets name the piece, and every chunk fits."""
    report = ChunkReport()
    document = Document("d", text, "A title", form=form)
    config = ChunkConfig(max_tokens=24, overlap_tokens=overlap)
    found = list(chunk_documents([document], ToyEmbedder(), config, report))
    text = found[0].document.text if found else text
    covered = [False] * len(text)
    for number, chunk in enumerate(found):
        assert chunk.position == number
        assert chunk.text.endswith(chunk.document.text[chunk.start : chunk.end])
        assert chunk.end > chunk.start
        assert chunk.tokens == ToyEmbedder().count_tokens([chunk.text])[0] <= 24
        covered[chunk.start : chunk.end] = [True] * (chunk.end - chunk.start)
    assert [c for c, seen in zip(text, covered, strict=True) if not seen and not c.isspace()] == []
    assert (report.uncovered, report.coverage) == (0, 1.0)
    assert report.chunks == len(found)


def test_short_documents_cost_one_batch() -> None:
    """A window of documents that fit is tokenised once, in one call."""
    embedder = ToyEmbedder()
    documents = [Document(str(i), SENTENCES[0]) for i in range(200)]
    found = list(chunk_documents(documents, embedder))
    assert [c.document.id for c in found] == [d.id for d in documents]
    assert [c.text for c in found] == [SENTENCES[0]] * 200
    assert (embedder.calls, embedder.texts_counted) == (2, 201)  # one more for the special tokens


def test_order_of_documents() -> None:
    """Chunks come in the order of the documents, long and short mixed, across windows."""
    documents = [Document(f"{i:04}", LONG if i % 7 == 0 else SENTENCES[1]) for i in range(600)]
    found = [(c.document.id, c.position) for c in chunk_documents(documents, ToyEmbedder())]
    assert found == sorted(found)
    assert len({id for id, _ in found}) == 600


def test_budget_of_the_embedder() -> None:
    """Without max_tokens a chunk has at most the embedder's max_length, and never more than 256."""
    assert ChunkConfig().budget(ToyEmbedder(max_length=64).info) == 64
    assert ChunkConfig().budget(ToyEmbedder(max_length=8192).info) == 256
    found = _chunks(LONG)
    assert max(c.tokens for c in found) <= 64
    assert sum(c.tokens for c in found) / len(found) > 32  # and well filled


def test_template_counts() -> None:
    """The document template's prefix is part of the budget."""
    embedder = ToyEmbedder(document="passage of the corpus: {text}")
    for chunk in chunk_documents([Document("d", LONG)], embedder):
        rendered = embedder.info.template.render_document(chunk.text)
        assert embedder.count_tokens([rendered])[0] == chunk.tokens <= 64


def test_without_tokenizer() -> None:
    """An embedder without a tokenizer gets chunks by the estimate, with all of the text in them."""
    report = ChunkReport()
    embedder = ToyEmbedder(tokens=False)
    found = list(chunk_documents([Document("d", LONG)], embedder, report=report))
    assert len(found) > 3
    assert max(c.tokens for c in found) <= 64
    assert report.uncovered == 0


def test_overlap() -> None:
    """Neighbours share text with an overlap, and none without."""
    without, with_it = _chunks(LONG, overlap_tokens=0), _chunks(LONG, overlap_tokens=0.4)
    assert all(a.end <= b.start for a, b in pairwise(without))
    assert sum(a.end > b.start for a, b in pairwise(with_it)) > len(with_it) // 2


def test_title_stands_before_every_piece() -> None:
    """Each piece carries the title once; a text that begins with it does not repeat it."""
    found = _chunks(LONG, title="Maps of the harbour")
    assert len(found) > 3
    assert all(c.text.startswith("Maps of the harbour\n") for c in found)
    again = _chunks(f"Maps of the harbour\n\n{LONG}", title="Maps of the harbour")
    assert [c.text.count("Maps of the harbour") for c in again] == [1] * len(again)
    assert _chunks(LONG, title="Maps", context=False)[0].text.startswith(SENTENCES[0])


def test_heading_path() -> None:
    """A piece of a Markdown text carries the headings over it, not those in code or of closed parts."""
    text = f"# Guide\n\nIntro.\n\n## First\n\n{LONG}\n\n```\n# no heading\n```\n\n## Second\n\n### Deep\n\n{LONG}\n"
    found = _chunks(text, form="markdown", title="Guide")
    heads = {c.text.split("\n")[0] for c in found if not c.text.startswith("#")}
    assert {"Guide > First", "Guide > Second > Deep"} <= heads
    assert not any("no heading" in head or "First > Second" in head for head in heads)


def test_blank_lines_that_the_splitter_panics_on() -> None:
    """Markdown whose fence holds more blanks than a chunk takes is cut without overlap: the splitter's own bug ends no build."""
    text = "```\nx\n" + " \n" * 20 + "y\n```"
    spans = pieces(text, "markdown", 10, 1)
    assert "".join("".join(text[low:high].split()) for low, high in spans) == "```xy```"


def test_huge_title() -> None:
    """A title longer than the budget is cut, and leaves most of the budget to the text."""
    found = _chunks(LONG, title=LONG, overlap_tokens=0)
    assert max(c.tokens for c in found) <= 64
    contexts = [c.text[: len(c.text) - (c.end - c.start)] for c in found]
    assert max(ToyEmbedder().count_tokens(contexts)) <= 64 // 4 + 2
    assert len(found) <= 3 * len(_chunks(LONG, overlap_tokens=0))


def test_whole_documents_report_truncation() -> None:
    """With split=False a document stays whole, and its tokens over max_length are counted."""
    report = ChunkReport()
    documents = [Document("long", LONG), Document("short", SENTENCES[0])]
    found = list(chunk_documents(documents, ToyEmbedder(), ChunkConfig(split=False), report))
    assert [c.text for c in found] == [LONG, SENTENCES[0]]
    assert found[0].truncated == found[0].tokens - 64 > 0
    assert (report.truncated_chunks, report.truncated_tokens) == (1, found[0].truncated)
    assert "cut off" in report.summary()


def test_max_tokens_over_max_length_are_refused() -> None:
    """Chunks larger than the embedder takes are refused before anything is cut off."""
    with pytest.raises(InputError, match=r"max_tokens 128 is more than toy sees .*\(64\)"):
        list(chunk_documents([Document("d", LONG)], ToyEmbedder(), ChunkConfig(max_tokens=128)))


def test_empty_documents() -> None:
    """A document of white space gives no chunk and is counted."""
    report = ChunkReport()
    documents = [Document("a", ""), Document("b", " \n\t "), Document("c", "x")]
    found = list(chunk_documents(documents, ToyEmbedder(), report=report))
    assert [c.document.id for c in found] == ["c"]
    assert (report.documents, report.empty, report.chunks) == (3, 2, 1)


def test_lone_surrogates() -> None:
    """A document that no tokenizer takes is mended character for character."""
    found = _chunks("a\ud800b", title="t\udfff")
    assert (found[0].text, found[0].document.text) == ("t\ufffd\na\ufffdb", "a\ufffdb")


@pytest.mark.parametrize(
    "unit", ["ก", "中文", "aB3+/", "a ", "\n", "x\n\n", "# h\n\n", "> ", "- ", "<b>", "e\u0301"]
)
@pytest.mark.parametrize("form", ["text", "markdown"])
def test_large_documents_in_linear_time(unit: str, form: Form) -> None:
    """A tenfold text takes about ten times as long, whatever it is made of, and never blows up."""
    times = []
    for size in (20_000, 200_000):
        text = (unit * size)[:size] + "end"
        report = ChunkReport()
        begin = time.process_time()
        for _ in chunk_documents([Document("d", text, form=form)], ToyEmbedder(256), report=report):
            pass
        times.append(time.process_time() - begin)
        assert report.uncovered == 0
    assert times[1] < 30 * times[0] + 0.5


def test_chunks_stream() -> None:
    """The first chunks come before the last documents are read."""
    read = 0

    def documents() -> list[Document]:
        nonlocal read
        read += 1
        return [Document(str(read), SENTENCES[0])]

    stream = chunk_documents((d for _ in range(10_000) for d in documents()), ToyEmbedder())
    next(stream)
    assert read <= 256


@pytest.mark.parametrize(
    "config",
    [
        {"max_tokens": 4},
        {"overlap_tokens": -1},
        {"overlap_tokens": float("nan")},
        {"overlap_tokens": float("inf")},
        {"max_tokens": 40, "overlap_tokens": 30},
    ],
)
def test_bad_config(config: dict[str, int]) -> None:
    """A config that cannot work is refused with the value seen."""
    with pytest.raises(InputError, match=str(next(reversed(config.values())))):
        ChunkConfig(**config)  # type: ignore[arg-type]


def test_fingerprint() -> None:
    """The fingerprint changes with every setting and with nothing else."""
    configs = [
        ChunkConfig(),
        ChunkConfig(max_tokens=128),
        ChunkConfig(overlap_tokens=0),
        ChunkConfig(context=False),
        ChunkConfig(split=False),
    ]
    assert len({config.fingerprint() for config in configs}) == len(configs)
    assert ChunkConfig().fingerprint() == ChunkConfig(overlap_tokens=0.125).fingerprint()
