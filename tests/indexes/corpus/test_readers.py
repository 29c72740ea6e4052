from __future__ import annotations

import bz2
import datetime
import gzip
import io
import json
import lzma
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from embedkit.errors import InputError, UnknownNameError
from embedkit_indexes.corpus.options import ReadOptions, ReadReport
from embedkit_indexes.corpus.readers import read_corpus
from embedkit_indexes.corpus.records import Document
from tests.indexes.corpus.files import jsonl, pdf

ROWS = [{"_id": "a", "text": "one", "title": "A"}, {"_id": "b", "text": "two", "title": ""}]
IDS = {"a": "one", "b": "two"}


def _read(*sources: str | Path, **options: Any) -> tuple[list[Document], ReadReport]:
    report = ReadReport()
    options.setdefault("detect_language", False)
    return list(read_corpus(sources, ReadOptions(**options), report)), report


def _texts(*sources: str | Path, **options: Any) -> dict[str, str]:
    documents, report = _read(*sources, **options)
    assert report.total_skipped == 0, report.summary()
    return {document.id: document.text for document in documents}


def test_folder(tmp_path: Path) -> None:
    """A folder is read in sorted order, hidden files and junk left out, ids being relative paths."""
    for name in ("b.txt", "a/z.md", "a/b/c.txt", ".hidden.txt", ".git/x.txt", "node_modules/y.txt", "README"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}")
    assert list(_texts(tmp_path)) == ["README", "a/b/c.txt", "a/z.md", "b.txt"]
    documents, report = _read(tmp_path)
    assert documents[0].source == str(tmp_path / "README")
    assert (report.files, report.documents) == (4, 4)
    assert report.summary() == "4 documents from 4 files; nothing skipped."


def test_several_sources(tmp_path: Path) -> None:
    """With several sources ids are paths in the folder that holds them all, so that none collide."""
    for name in ("x/readme.md", "y/readme.md", "y/only.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert list(_texts(tmp_path / "x", tmp_path / "y")) == ["x/readme.md", "y/only.txt", "y/readme.md"]
    assert list(_texts(tmp_path / "y" / "only.txt")) == ["only.txt"]
    assert list(_texts(str(tmp_path / "x" / "readme.md"), tmp_path / "y")) == [
        "x/readme.md",
        "y/only.txt",
        "y/readme.md",
    ]


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz"])
def test_beir_folder(tmp_path: Path, name: str) -> None:
    """A BEIR folder gives its corpus alone, with every field but text, title, id and language as metadata."""
    row = {**ROWS[0], "lang": "en", "url": "u", "year": 1999}
    data = jsonl(tmp_path / "plain", [row, ROWS[1]]).read_bytes()
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    jsonl(tmp_path / "set/queries.jsonl", [{"_id": "q", "text": "a query"}])
    jsonl(tmp_path / "set/qrels/test.jsonl", [{"_id": "r", "text": "no document"}])
    documents, _ = _read(tmp_path / "set")
    assert documents[0] == Document(
        "a", "one", "A", "en", str(tmp_path / "set" / name), "text", {"url": "u", "year": 1999}
    )
    assert [d.id for d in documents] == ["a", "b"]


def test_jsonl_compressed(tmp_path: Path) -> None:
    """JSON Lines are read plain and compressed by gzip, bzip2, xz and zstd."""
    data = jsonl(tmp_path / "x.jsonl", ROWS).read_bytes()
    (tmp_path / "x.ndjson.gz").write_bytes(gzip.compress(data))
    (tmp_path / "x.jsonl.bz2").write_bytes(bz2.compress(data))
    (tmp_path / "x.jsonl.xz").write_bytes(lzma.compress(data))
    with pa.CompressedOutputStream(str(tmp_path / "x.jsonl.zst"), "zstd") as out:
        out.write(data)
    for path in sorted(tmp_path.iterdir()):
        assert _texts(path) == IDS, path


@pytest.mark.parametrize("layout", ["array", "indented", "lines", "glued"])
def test_json(tmp_path: Path, layout: str) -> None:
    """A JSON file is an array of objects, or objects one after another, read one at a time."""
    rows = [{"id": str(i), "text": "long " * 40_000 if i == 1 else f"text {i}"} for i in range(2000)]
    whole = {"array": json.dumps(rows), "indented": json.dumps(rows, indent=1)}
    joint = "\n" if layout == "lines" else ""
    (tmp_path / "x.json").write_text(whole.get(layout) or joint.join(map(json.dumps, rows)))
    assert list(_texts(tmp_path / "x.json")) == [row["id"] for row in rows]


def test_csv(tmp_path: Path) -> None:
    """A CSV file has a header, any usual delimiter, quoted fields of several lines, and a BOM at will."""
    (tmp_path / "a.csv").write_text('id,body,year\na,"one, and\nmore",1\nb,two,2\n')
    assert _texts(tmp_path / "a.csv") == {"a": "one, and\nmore", "b": "two"}
    assert _read(tmp_path / "a.csv")[0][0].metadata == {"year": "1"}
    (tmp_path / "b.csv").write_bytes("\ufeffid;text\r\na;one\r\nb;two\r\n".encode())
    assert _texts(tmp_path / "b.csv") == IDS


def test_tsv(tmp_path: Path) -> None:
    """A TSV file keeps a stray quotation mark, and needs no header where the columns are named."""
    (tmp_path / "a.tsv").write_text('a\t"one" they said\nb\t"two\n')
    found = _texts(tmp_path / "a.tsv", columns=("id", "text"))
    assert found == {"a": '"one" they said', "b": '"two'}
    (tmp_path / "b.tsv").write_text('id\ttext\na\t"one ""1"""\n')
    assert _texts(tmp_path / "b.tsv") == {"a": 'one "1"'}


@pytest.mark.parametrize("kind", ["parquet", "feather", "arrow", "stream.arrow"])
def test_arrow_files(tmp_path: Path, kind: str) -> None:
    """Parquet, Feather and both Arrow IPC layouts are read by record batch, metadata as JSON values."""
    when = datetime.datetime(2024, 5, 1, 12)
    rows = [
        {"docid": str(i), "contents": f"text {i}", "when": when, "n": i / 3, "raw": b"\x01"}
        for i in range(999)
    ]
    table = pa.Table.from_pylist(rows)
    path = tmp_path / f"x.{kind}"
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=100)
    elif kind == "feather":
        pyarrow.feather.write_feather(table, str(path))
    else:
        new = pa.ipc.new_stream if "stream" in kind else pa.ipc.new_file
        with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=100)
    documents, report = _read(path)
    assert [d.text for d in documents] == [row["contents"] for row in rows]
    assert documents[3].metadata == {"when": "2024-05-01T12:00:00", "n": 1.0, "raw": "01"}
    assert documents[3].id == "3"
    assert report.total_skipped == 0


def test_markdown(tmp_path: Path) -> None:
    """A Markdown file's title is that of its front matter, else its first heading."""
    (tmp_path / "a.md").write_text("---\ntitle: 'The title'\ntags: x\n---\n# Heading\n\nBody.\n")
    (tmp_path / "b.md").write_text("Intro.\n\n## The heading ##\n\nBody.\n")
    (tmp_path / "c.md").write_text("Underlined\n==========\n\nBody.\n")
    documents, _ = _read(tmp_path)
    assert [d.title for d in documents] == ["The title", "The heading", "Underlined"]
    assert {d.form for d in documents} == {"markdown"}
    assert documents[0].text == "# Heading\n\nBody.\n"


def test_rst(tmp_path: Path) -> None:
    """A reStructuredText file's title is its first underlined line."""
    (tmp_path / "a.rst").write_text("=====\nTitle\n=====\n\nBody.\n")
    assert _read(tmp_path)[0][0].title == "Title"


def test_html(tmp_path: Path) -> None:
    """HTML becomes Markdown without scripts, its title from <title>, its encoding from <meta>."""
    page = (
        '<html><head><meta charset="iso-8859-1"><title> Caf\xe9 </title><script>junk()</script></head>'
        "<body><nav>menu</nav><h1>Head</h1><p>Some <b>bold</b> caf\xe9.</p><ul><li>x</li></ul></body></html>"
    )
    (tmp_path / "a.html").write_bytes(page.encode("latin-1"))
    document = _read(tmp_path)[0][0]
    assert (document.title, document.form) == ("Café", "markdown")
    assert document.text == "# Head\n\nSome **bold** café.\n\n* x"


def test_pdf(tmp_path: Path) -> None:
    """A PDF gives the text of its pages and its title."""
    (tmp_path / "a.pdf").write_bytes(pdf("First page.", "Second page.", title="Report"))
    document = _read(tmp_path)[0][0]
    assert (document.title, document.text) == ("Report", "First page.\n\nSecond page.")


def test_docx(tmp_path: Path) -> None:
    """A DOCX gives headings, paragraphs, lists and tables in order, as Markdown."""
    docx = pytest.importorskip("docx")
    made = docx.Document()
    made.add_heading("Head", level=1)
    made.add_paragraph("Some text.")
    table = made.add_table(rows=1, cols=2)
    table.cell(0, 0).text, table.cell(0, 1).text = "x", "y"
    made.add_paragraph("point", style="List Bullet")
    made.save(str(tmp_path / "a.docx"))
    document = _read(tmp_path)[0][0]
    assert document.text == "# Head\n\nSome text.\n\n| x | y |\n\n- point"
    assert (document.title, document.form) == ("Head", "markdown")


@pytest.mark.parametrize(
    ("name", "lang"),
    [
        ("a.py", "python"),
        ("a.ts", "typescript"),
        ("a.rs", "rust"),
        ("A.JAVA", "java"),
        ("Makefile", "makefile"),
    ],
)
def test_code(tmp_path: Path, name: str, lang: str) -> None:
    """A source file is code, and its language the programming language."""
    (tmp_path / name).write_text("x = 1\n")
    document = _read(tmp_path, detect_language=True)[0][0]
    assert (document.form, document.lang) == ("code", lang)


def test_code_records(tmp_path: Path) -> None:
    """A record whose language is a programming language is code."""
    path = jsonl(
        tmp_path / "x.jsonl", [{"text": "def f(): pass", "lang": "Python"}, {"text": "x", "lang": "eng_Latn"}]
    )
    assert [(d.form, d.lang) for d in _read(path)[0]] == [("code", "python"), ("text", "en")]


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Give bytes to standard input."""

    def give(data: bytes) -> None:
        buffer = io.BufferedReader(io.BytesIO(data))
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(buffer))

    return give


def test_stdin(stdin: Callable[[bytes], None]) -> None:
    """Standard input is JSON Lines where it begins with an object, else one text; `format` overrides."""
    stdin(b'{"_id": "a", "text": "one"}\n{"text": "two"}\n')
    assert _texts("-") == {"a": "one", "stdin#2": "two"}
    stdin(b"just text\nof two lines")
    assert _texts("-") == {"stdin": "just text\nof two lines"}
    stdin(b'{"not": "wanted"}')
    assert _texts("-", format="text") == {"stdin": '{"not": "wanted"}'}
    stdin(b"id,text\na,one\n")
    assert _texts("-", format="csv") == {"a": "one"}
    with pytest.raises(InputError, match="twice"):
        read_corpus(["-", "-"])


def test_fields(tmp_path: Path) -> None:
    """Usual field names are found in any case; named ones win; metadata can be chosen."""
    row = {"Passage": "auto", "answer": "named", "ID": 7, "Title": "T", "keep": [1, {"x": None}], "drop": 1}
    path = jsonl(tmp_path / "x.jsonl", [row])
    document = _read(path)[0][0]
    assert (document.id, document.text, document.title) == ("7", "auto", "T")
    document = _read(path, text_field="answer", metadata_fields=("keep",))[0][0]
    assert (document.text, document.metadata) == ("named", {"keep": [1, {"x": None}]})


def test_title_alone(tmp_path: Path) -> None:
    """A record with a title and no text is a document of its title."""
    document = _read(jsonl(tmp_path / "x.jsonl", [{"title": "Only", "text": ""}]))[0][0]
    assert (document.text, document.title) == ("Only", "")


def test_language(tmp_path: Path) -> None:
    """A document's language is the one given, else its record's, else the detected one, else None."""
    rows = [
        {"text": "Die Bibliothek bewahrt alte Karten des Hafens auf."},
        {"text": "irgendetwas", "lang": "fr-CA"},
    ]
    path = jsonl(tmp_path / "x.jsonl", rows)
    assert [d.lang for d in _read(path, detect_language=True)[0]] == ["de", "fr"]
    assert [d.lang for d in _read(path)[0]] == [None, "fr"]
    assert [d.lang for d in _read(path, lang="it")[0]] == ["it", "it"]


def test_reading_streams(tmp_path: Path) -> None:
    """The first document comes before the rest of the file is looked at."""
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "first"}\n' + "broken\n" * 1000)
    report = ReadReport()
    assert next(read_corpus([path], ReadOptions(detect_language=False), report)).text == "first"
    assert report.total_skipped == 0


def test_bad_options() -> None:
    """Options that cannot hold are refused at once."""
    with pytest.raises(UnknownNameError, match="did you mean jsonl"):
        ReadOptions(format="jsonll")
    with pytest.raises(InputError, match="klingon"):
        ReadOptions(encoding="klingon")
    with pytest.raises(InputError, match="no source"):
        read_corpus([])
