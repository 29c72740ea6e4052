from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedkit.errors import CorpusError, InputError
from embedkit_indexes.corpus.identity import Seen
from embedkit_indexes.corpus.options import ReadOptions, ReadReport
from embedkit_indexes.corpus.readers import read_corpus
from tests.indexes.corpus.files import jsonl, pdf

GOOD = '{"_id": "good", "text": "fine"}\n'


def _read(*sources: str | Path, **options: Any) -> tuple[list[str], ReadReport]:
    report = ReadReport()
    options.setdefault("detect_language", False)
    return [d.id for d in read_corpus(sources, ReadOptions(**options), report)], report


def _reason(report: ReadReport) -> tuple[str, int | None]:
    assert len(report.skipped) == 1, report.summary()
    return report.skipped[0].reason, report.skipped[0].line


def test_missing_source(tmp_path: Path) -> None:
    """A source that does not exist is an error at once, before anything is read."""
    with pytest.raises(CorpusError, match=r"nowhere: no such file or folder"):
        read_corpus([tmp_path, tmp_path / "nowhere"])
    with pytest.raises(CorpusError, match=r"^http://example.invalid/x: addresses are not read"):
        list(read_corpus(["http://example.invalid/x"]))


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, while this test is nobody."""
    folder = Path(tempfile.mkdtemp(dir="/tmp" if os.name == "posix" else None))
    folder.chmod(0o755)
    (folder / "good.txt").write_text("fine")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_no_permission(open_folder: Path) -> None:
    """A named source without permission is an error; a file of a folder is skipped."""
    closed = open_folder / "closed.txt"
    closed.write_text("secret")
    (open_folder / "shut").mkdir()
    for path in (closed, open_folder / "shut"):
        path.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(CorpusError, match="no permission"):
            read_corpus([closed])
        ids, report = _read(open_folder)
    finally:
        if root:
            os.seteuid(0)
        (open_folder / "shut").chmod(0o755)
    assert ids == ["good.txt"]
    assert report.reasons == {"unreadable": 2}
    assert "no permission" in report.skipped[0].reason


@pytest.mark.parametrize(
    ("line", "kind", "reason"),
    [
        (b'{"text": "broken', "malformed", "malformed JSON"),
        (b"[1, 2]", "malformed", "a JSON object was expected, not list"),
        (b"[" * 100_000, "malformed", "nested too deeply"),
        (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "malformed", "malformed JSON"),
        (b'{"text": "caf\xe9"}', "not decodable", "not UTF-8"),
        (b'{"url": "u", "n": 1}', "no text field", "no text field; fields seen: 'url', 'n'"),
        (b'{"text": 5, "n": 1}', "text is no string", "field 'text' is int"),
        (b'{"text": " \\n ", "n": 1}', "empty", "the record has no text"),
        (b'{"text": null, "n": 1}', "empty", "the record has no text"),
        (b'{"_id": "good", "text": "again"}', "duplicate id", "duplicate id 'good' (first in x.jsonl)"),
    ],
)
def test_bad_lines(tmp_path: Path, line: bytes, kind: str, reason: str) -> None:
    """A bad line is skipped with file, line and reason, the next one read; `strict` makes it an error."""
    path = tmp_path / "x.jsonl"
    path.write_bytes(GOOD.encode() + b"\n" + line + b'\n{"_id": "last", "text": "fine too"}\n')
    ids, report = _read(path)
    assert ids == ["good", "last"]
    assert report.reasons == {kind: 1}
    found, number = _reason(report)
    assert reason in found
    assert (report.skipped[0].source, number) == (str(path), 3)
    assert "line 3" in report.summary()
    with pytest.raises(CorpusError, match="line 3") as caught:
        _read(path, strict=True)
    assert (caught.value.path, caught.value.line) == (str(path), 3)


def test_huge_line(tmp_path: Path) -> None:
    """A line of 200 MB is skipped with its size, in little memory, and the next line is read."""
    path = tmp_path / "x.jsonl"
    with path.open("wb") as out:
        out.write(b'{"_id": "first", "text": "a"}\n{"text": "')
        for _ in range(200):
            out.write(b"x" * 1_000_000)
        out.write(b'"}\n' + GOOD.encode())
    tracemalloc.start()
    ids, report = _read(path, max_document_bytes=2**20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ids == ["first", "good"]
    assert _reason(report) == ("200,000,013 bytes, over the limit of 1,048,576 (max_document_bytes)", 2)
    assert peak < 10_000_000


@pytest.mark.parametrize("name", ["x.txt", "x.md", "x.txt.gz", "x.html", "x.pdf"])
def test_huge_file(tmp_path: Path, name: str) -> None:
    """A file over the limit is skipped; it is not read to its end to be counted."""
    data = b"x" * 5_000_000
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    ids, report = _read(tmp_path, max_document_bytes=1_000_000)
    assert ids == []
    assert _reason(report)[0].startswith("more bytes than the limit of 1,000,000")


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("x.txt", b"", "no text in it"),
        ("x.txt", b" \n\t", "no text in it"),
        ("x.txt", b"abc\xff\xfe", "not utf-8: byte 0xff at offset 3; give its encoding"),
        ("x.txt", b"ab\x00cd", "binary: a NUL byte at offset 2"),
        ("x.py", b"\x7fELF\x00\x01", "binary: a NUL byte"),
        ("x.txt.gz", b"no gzip", "cannot be read to its end"),
        ("x.jsonl.gz", gzip.compress(GOOD.encode() * 1000)[:-30], "cannot be read to its end"),
        ("x.txt.xz", b"no xz", "cannot be read to its end"),
        ("x.txt.zst", b"no zstd", "cannot be read to its end"),
        ("x.pdf", b"%PDF-1.4 broken", "broken PDF"),
        ("x.pdf", pdf("A page.")[:300], "broken PDF"),
        ("x.pdf", pdf("", ""), "no text in 2 PDF pages: a scan needs OCR first"),
        ("x.docx", b"no zip", "broken DOCX"),
        ("x.parquet", b"PAR1 broken PAR1", "unreadable parquet file"),
        ("x.parquet", b"", "unreadable parquet file"),
        ("x.arrow", b"ARROW1 broken", "unreadable arrow file"),
        ("x.csv", b"id,url\na,u\n", "no text field; fields seen: 'id', 'url'; name one by text_field"),
        ("x.csv", b"id,text\na,one,extra\n", "3 fields where the header has 2"),
        ("x.csv", b"id,text\na,caf\xe9\n", "not UTF-8; give its encoding"),
        ("x.tsv", b"id\ttext\na\tcaf\xe9\n", "not UTF-8; give its encoding"),
        ("x.json", b'[{"text": "a"', "malformed JSON in record 1"),
        ("x.json", b"nonsense", "malformed JSON in record 1"),
        ("x.json", b"42", "a JSON object was expected, not int"),
        ("x.json", b'{"text": "\xff"}', "not utf-8"),
        ("x.png", b"\x89PNG", "no reader for '.png' files"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    """A file that cannot be read is skipped with the reason, and the next one is read."""
    (tmp_path / name).write_bytes(data)
    (tmp_path / "y.txt").write_text("fine")
    ids, report = _read(tmp_path)
    assert ids[-1] == "y.txt"
    kept = [s for s in report.skipped if "duplicate" not in s.reason]
    assert len(kept) == 1, report.summary()
    assert reason in kept[0].reason
    assert kept[0].source == str(tmp_path / name)


def test_encrypted_pdf(tmp_path: Path) -> None:
    """A PDF with a password is skipped and says so; one with an empty password is read."""
    pypdf = pytest.importorskip("pypdf")
    (tmp_path / "plain.pdf").write_bytes(pdf("A page."))
    for name, password in (("locked.pdf", "secret"), ("open.pdf", "")):
        writer = pypdf.PdfWriter(clone_from=tmp_path / "plain.pdf")
        writer.encrypt(password, "owner", algorithm="RC4-128")
        writer.write(tmp_path / name)
    ids, report = _read(tmp_path)
    assert ids == ["open.pdf", "plain.pdf"]
    assert report.reasons == {"encrypted": 1}
    assert "without a password" in _reason(report)[0]


def test_docx_bomb(tmp_path: Path) -> None:
    """A DOCX that unpacks to far more than it weighs is skipped before it is unpacked."""
    with zipfile.ZipFile(tmp_path / "x.docx", "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("word/document.xml", b"<x>" + b"a" * 300_000_000)
    ids, report = _read(tmp_path)
    assert (ids, report.reasons) == ([], {"too large": 1})


@pytest.mark.parametrize(("name", "package"), [("x.pdf", "pypdf"), ("x.docx", "docx"), ("x.html", "bs4")])
def test_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str) -> None:
    """Without the package for a format its files are skipped, and the reason names the pip command."""
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).write_bytes(b"data")
    (tmp_path / "y.txt").write_text("fine")
    ids, report = _read(tmp_path)
    assert ids == ["y.txt"]
    assert "pip install 'embedkit-retrieval[docs]'" in _reason(report)[0]


def test_encodings(tmp_path: Path) -> None:
    """UTF-8 and UTF-16 with a byte-order mark are known; others are named by `encoding`."""
    for name, encoding in (("a.txt", "utf-8-sig"), ("b.txt", "utf-16"), ("c.txt", "utf-32")):
        (tmp_path / name).write_bytes("Käse\r\n".encode(encoding))
    for name, encoding in (("d.jsonl", "utf-8-sig"), ("e.jsonl", "utf-16"), ("f.json", "utf-16")):
        (tmp_path / name).write_bytes('{"text": "Käse\\n"}\n'.encode(encoding))
    for name, encoding in (("g.csv", "utf-16"),):
        (tmp_path / name).write_bytes('text\n"Käse\n"\n'.encode(encoding))
    documents = list(read_corpus([tmp_path], ReadOptions(detect_language=False)))
    assert [d.text for d in documents] == ["Käse\n"] * 7
    (tmp_path / "latin").mkdir()
    (tmp_path / "latin/a.txt").write_bytes("Käse".encode("latin-1"))
    (tmp_path / "latin/b.jsonl").write_bytes('{"text": "Käse"}'.encode("latin-1"))
    options = ReadOptions(encoding="latin-1", detect_language=False)
    assert [d.text for d in read_corpus([tmp_path / "latin"], options)] == ["Käse"] * 2


def test_values_that_later_stages_choke_on(tmp_path: Path) -> None:
    """NUL and lone surrogates are replaced in every string, and NaN and infinity become null."""
    path = tmp_path / "x.jsonl"
    path.write_text(
        '{"_id": "i\\ud800", "text": "a\\u0000b\\ud800c\\ud83d\\ude00", "title": "t\\udfff", '
        '"m\\ud800": ["\\ud800", {"x\\u0000": NaN, "y": 1e999}]}\n'
    )
    document = next(iter(read_corpus([path], ReadOptions(detect_language=False))))
    assert (document.id, document.text, document.title) == ("i\ufffd", "a b\ufffdc😀", "t\ufffd")
    assert document.metadata == {"m\ufffd": ["\ufffd", {"x ": None, "y": None}]}
    pa.array([document.id, document.text, document.title, str(document.metadata)])


def test_duplicates_across_files(tmp_path: Path) -> None:
    """The second document of an id is skipped and names the first's file; `prefix_ids` keeps both."""
    for name in ("a.jsonl", "b.jsonl"):
        jsonl(tmp_path / name, [{"id": 1, "text": name}])
    ids, report = _read(tmp_path)
    assert ids == ["1"]
    assert _reason(report) == ("duplicate id '1' (first in a.jsonl)", 1)
    assert _read(tmp_path, prefix_ids=True)[0] == ["a.jsonl#1", "b.jsonl#1"]


def test_many_ids() -> None:
    """Ids are told apart in 36 bytes each at most."""
    tracemalloc.start()
    seen = Seen()
    found = [seen.first(f"id {i}", "a file") for i in range(100_000)]
    size = tracemalloc.get_traced_memory()[0] - sys.getsizeof(found)
    tracemalloc.stop()
    assert set(found) == {None}
    assert size < 36 * 100_000
    assert all(seen.first(f"id {i}", "another") == "a file" for i in range(100_000))


def test_report_is_bounded(tmp_path: Path) -> None:
    """The report counts everything and lists only so many."""
    path = tmp_path / "x.jsonl"
    path.write_text("broken\n" * 5000)
    ids, report = _read(path)
    assert (ids, report.total_skipped, len(report.skipped)) == ([], 5000, 1000)
    assert report.summary().startswith("0 documents from 1 file; 5,000 skipped (5,000 malformed). First: ")


def test_named_fields_that_are_not_there(tmp_path: Path) -> None:
    """A field that was asked for and is not there is named with the fields seen."""
    pq.write_table(pa.table({"a": ["x"], "b": ["y"]}), tmp_path / "x.parquet")
    _, report = _read(tmp_path, text_field="c")
    assert _reason(report) == ("no field 'c' (text_field); fields seen: 'a', 'b'", None)


def test_oversize_rows(tmp_path: Path) -> None:
    """A row over the limit is skipped in CSV and Parquet too, and the next one is read."""
    (tmp_path / "a.csv").write_text("id,text\nbig," + "x" * 5000 + "\nok,fine\n")
    pq.write_table(pa.table({"id": ["big", "p"], "text": ["x" * 5000, "y"]}), tmp_path / "b.parquet")
    ids, report = _read(tmp_path, max_document_bytes=1000)
    assert ids == ["ok", "p"]
    assert report.reasons == {"too large": 2}


def test_links(tmp_path: Path) -> None:
    """A link to a folder is not followed, so that no circle is; a broken link is skipped."""
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "circle").symlink_to(tmp_path)
    (tmp_path / "broken.txt").symlink_to(tmp_path / "nowhere")
    ids, report = _read(tmp_path)
    assert ids == ["a.txt"]
    assert report.reasons == {"link to a folder": 1, "unreadable": 1}


def test_strict_names_the_file(tmp_path: Path) -> None:
    """With `strict` a bad file is an error, and one that is no text by its name is still skipped."""
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    assert _read(tmp_path, strict=True)[1].reasons == {"unknown format": 1}
    (tmp_path / "b.txt").write_bytes(b"\xff")
    with pytest.raises(CorpusError, match=r"b\.txt: not utf-8"):
        _read(tmp_path, strict=True)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX devices, pipes and links")
def test_a_device_is_refused_and_a_pipe_is_opened_once(tmp_path: Path) -> None:
    """/dev/zero, which never ends, is an error; a named pipe gives its text, whose writer meets one reader."""
    with pytest.raises(CorpusError, match="a device or socket"):
        read_corpus(["/dev/zero"])
    pipe = tmp_path / "pipe.txt"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("from the pipe",))
    writer.start()
    assert [d.text for d in read_corpus([pipe])] == ["from the pipe"]
    writer.join()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX links")
def test_links_in_a_circle_are_skipped(tmp_path: Path) -> None:
    """A link to itself is left out of a folder like a broken link; the other files are read."""
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    (tmp_path / "good.txt").write_text("fine")
    ids, report = _read(tmp_path)
    assert ids == ["good.txt"]
    assert _reason(report) == ("no regular file, or a broken link", None)


def test_an_index_in_the_making_is_no_corpus(tmp_path: Path) -> None:
    """A folder that holds only a segment and a lock is an unfinished index: left out, also under `strict`."""
    segment = tmp_path / "out" / "segment-47119f3a61c2"
    segment.mkdir(parents=True)
    (segment / "chunks.arrow").write_bytes(b"ARROW1\0\0")
    (tmp_path / "out" / "writer.lock").touch()
    (tmp_path / "good.txt").write_text("fine")
    ids, report = _read(tmp_path, strict=True)
    assert ids == ["good.txt"] and report.reasons == {"an index": 1}


def test_an_empty_name_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source of no characters, as an unset shell variable gives, is an error, and so is a closed stdin."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="empty name"):
        read_corpus([""])
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="'-' is closed"):
        read_corpus(["-"])


@pytest.mark.parametrize("levels", [65, 400])
def test_deep_metadata_costs_its_record_alone(tmp_path: Path, levels: int) -> None:
    """A record whose metadata is nested too deeply to be searched later is skipped with its line."""
    deep = '{"_id": "deep", "text": "x", "m": ' + '{"a":' * levels + "1" + "}" * levels + "}\n"
    (tmp_path / "c.jsonl").write_text(deep + GOOD)
    ids, report = _read(tmp_path / "c.jsonl")
    assert ids == ["good"]
    assert _reason(report) == ("malformed metadata: nested more than 64 levels deep", 1)


def test_a_lone_id_is_no_text(tmp_path: Path) -> None:
    """A record with nothing but an id has no text; any other lone field is taken for it."""
    (tmp_path / "c.jsonl").write_text(
        '{"_id": "7"}\n{"_id": "good", "text": "fine"}\n{"sentence2": "alone"}\n'
    )
    ids, report = _read(tmp_path / "c.jsonl")
    assert ids == ["good", "c.jsonl#3"] and _reason(report)[1] == 1


def test_whole_microseconds_read_alike_with_and_without_pandas(tmp_path: Path) -> None:
    """A table of nanoseconds, as pandas writes it, gives the same metadata whether pandas is installed or not."""
    times = pa.array([1_700_000_000_000_000_000], pa.timestamp("ns"))
    pq.write_table(pa.table({"id": ["a"], "text": ["x"], "at": times}), tmp_path / "t.parquet")
    code = (
        "import sys; sys.modules['pandas'] = None if sys.argv[2] == 'without' else __import__('pandas')\n"
        "from embedkit_indexes import read_corpus\n"
        "print(next(iter(read_corpus([sys.argv[1]]))).metadata['at'])"
    )
    pytest.importorskip("pandas", reason="comes with mteb")
    found = [
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "t.parquet"), how],
            capture_output=True, text=True, check=True,
        ).stdout
        for how in ("with", "without")
    ]  # fmt: skip
    assert found == ["2023-11-14T22:13:20\n"] * 2


def test_times_that_python_cannot_hold_become_text(tmp_path: Path) -> None:
    """Nanoseconds, and a year of six digits, do not cost a Parquet file its rows: they are kept as text."""
    times = pa.array([1, 2], pa.timestamp("ns"))
    far = pa.array([2**62, None], pa.timestamp("us"))
    pq.write_table(
        pa.table({"id": ["a", "b"], "text": ["x", "y"], "at": times, "far": far}), tmp_path / "t.parquet"
    )
    documents = list(read_corpus([tmp_path / "t.parquet"]))
    assert [d.id for d in documents] == ["a", "b"]
    assert documents[0].metadata["at"] == "1970-01-01 00:00:00.000000001"
    assert documents[1].metadata["far"] is None
