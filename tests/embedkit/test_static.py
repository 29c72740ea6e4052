"""The static embedder: word means, and parity with model2vec and sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model2vec import StaticModel
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from embedkit import get_embedder
from embedkit.embedders.safetensors import read_safetensors
from embedkit.embedders.static import StaticEmbedder, split_words
from embedkit.errors import InputError

RNG = np.random.default_rng(0)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def wordpiece() -> Tokenizer:
    """Return a small WordPiece tokenizer with special tokens and, as many models ship it, with padding on."""
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *LETTERS[:20],
        *("##" + c for c in LETTERS[:20]),
        "the",
        "##ing",
    ]
    tokenizer = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    return tokenizer


def unigram() -> Tokenizer:
    """Return a small Unigram tokenizer, whose unknown token is known by number alone."""
    tokenizer = Tokenizer(
        models.Unigram([("<unk>", 0.0), *((c, -float(i)) for i, c in enumerate(LETTERS[:20]))], 0)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def texts(n: int = 60) -> list[str]:
    """Return texts from one word to far beyond 512 tokens, some of letters that the vocabularies lack."""
    lengths = RNG.integers(1, 400, n)
    return ["".join(RNG.choice([*LETTERS, " ", " "], size)).strip() + " a" for size in lengths] + [
        "ab " * 900,
        "b",
    ]


@pytest.mark.parametrize("make", [wordpiece, unigram])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("max_length", [512, 7, None])
def test_equals_model2vec(
    tmp_path: Path, make: Any, dtype: str, quantized: bool, max_length: int | None
) -> None:
    """A model2vec folder gives the vectors of model2vec's own encode, truncation and quantisation included."""
    tokenizer = make()
    n = tokenizer.get_vocab_size()
    rows = 9 if quantized else n
    table = (RNG.standard_normal((rows, 24)) * 40).astype(dtype)
    extra = {"token_mapping": RNG.integers(0, rows, n), "weights": RNG.random(n) + 0.5} if quantized else {}
    theirs = StaticModel(table, tokenizer, normalize=True, max_length=max_length, **extra)
    theirs.save_pretrained(tmp_path / "m")
    ours = get_embedder(str(tmp_path / "m"))
    sample = texts()
    # model2vec rounds the mean of half floats to a half float, and sums in float32.
    expected = theirs.encode(sample)
    tolerance = {"float16": 2e-3}.get(dtype, 2e-5)
    np.testing.assert_allclose(ours.encode_document(sample), expected, atol=tolerance)
    assert ours.info.dtype == dtype


def test_equals_sentence_transformers(tmp_path: Path) -> None:
    """A StaticEmbedding folder gives sentence-transformers' vectors: unknown tokens count, nothing is cut."""
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding

    theirs = SentenceTransformer(
        modules=[StaticEmbedding(wordpiece(), embedding_dim=12), Normalize()], device="cpu"
    )
    theirs.save_pretrained(str(tmp_path / "m"))
    ours = get_embedder(str(tmp_path / "m"))
    sample = texts()
    np.testing.assert_allclose(ours.encode_document(sample), theirs.encode(sample), atol=2e-5)


def test_folder_tokenizer(tmp_path: Path) -> None:
    """A folder's tokenizer counts special tokens, without the padding and truncation stored with it."""
    table = RNG.standard_normal((46, 4)).astype(np.float32)
    StaticModel(table, wordpiece(), max_length=5).save_pretrained(tmp_path / "m")
    stored = wordpiece()
    stored.enable_truncation(3)
    stored.save(str(tmp_path / "m" / "tokenizer.json"))
    ours = get_embedder(str(tmp_path / "m"))
    assert ours.tokenizer is not None
    assert ours.count_tokens(["a b c d e f g h", "a"]) == [10, 3]
    expected = np.stack([table[4:9].mean(axis=0), table[4]])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(ours.encode_document(["a b c d e f g h", "a"]), expected, atol=1e-6)
    assert ours.info.max_length == 5
    assert get_embedder(str(tmp_path / "m"), max_length=3).info.max_length == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": np.ones((3, 4), np.float32)}, "embeddings has 3 rows for a tokenizer of 46 tokens"),
        ({"embeddings": np.ones(4, np.float32)}, "of two dimensions"),
        ({"mapping": np.full(46, 99)}, "mapping points outside the 46 rows"),
        ({"mapping": np.zeros(3, np.int64)}, "mapping has 3 rows"),
        ({"weights": np.ones(3)}, "weights has 3 rows"),
    ],
)
def test_folder_that_does_not_fit(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """Tensors that do not fit the tokenizer are refused when the folder is opened, not while encoding."""
    StaticModel(np.ones((46, 4), np.float32), wordpiece()).save_pretrained(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    save_file(load_file(file) | change, file)
    with pytest.raises(InputError, match=message):
        get_embedder(str(tmp_path / "m"))


@pytest.mark.parametrize("size", [0, 7, 60, 300])
def test_truncated_safetensors(tmp_path: Path, size: int) -> None:
    """A safetensors file cut anywhere is refused by name."""
    StaticModel(np.ones((46, 4), np.float32), wordpiece()).save_pretrained(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(InputError, match=r"model.safetensors is no readable safetensors file"):
        get_embedder(str(tmp_path / "m"))


def test_safetensors_types(tmp_path: Path) -> None:
    """Every dtype is read as the safetensors package reads it, bfloat16 widened to float32 without loss."""
    import torch
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    kinds = (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int8,
    )
    save_torch({str(k): (torch.randn(3, 5) * 9).to(k) for k in kinds}, str(tmp_path / "t.safetensors"))
    expected = load_torch(str(tmp_path / "t.safetensors"))
    found = read_safetensors(tmp_path / "t.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor.float().numpy() if "bf" in name else tensor.numpy())


def test_folder_with_other_modules(tmp_path: Path) -> None:
    """A pipeline with a Dense layer behind the vectors is refused, since leaving it out would be wrong."""
    StaticModel(np.ones((46, 4), np.float32), wordpiece()).save_pretrained(tmp_path / "m")
    modules = [
        {"type": "sentence_transformers.models.StaticEmbedding", "path": "."},
        {"type": "x.Dense", "path": "1"},
    ]
    (tmp_path / "m" / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match="asks for StaticEmbedding, Dense"):
        get_embedder(str(tmp_path / "m"))


@pytest.fixture
def glove(tmp_path: Path) -> Path:
    """Write a GloVe file whose vectors tell the words apart."""
    path = tmp_path / "glove.txt"
    path.write_text("the 1 0 0\nPolish 0 1 0\npolish 0 0 1\ncafé 1 1 0\nहिन्दी 0 1 1\n", encoding="utf-8")
    return path


def test_word_mean(glove: Path) -> None:
    """A text is the mean of its known words: exact case first, else lower case; punctuation parts words."""
    ours = StaticEmbedder.open(str(glove))
    rows = ours.encode_document(["Polish", "POLISH", "The, the; unknown polish!", "CAFÉ", "हिन्दी"])
    expected = np.array([[0, 1, 0], [0, 0, 1], [2, 0, 1], [1, 1, 0], [0, 1, 1]], np.float32)
    np.testing.assert_allclose(rows, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)


def test_unknown_words_give_a_zero_row(glove: Path) -> None:
    """A text without a known word is a zero row and leaves its neighbours alone."""
    rows = StaticEmbedder.open(str(glove)).encode_document(["zzz", "the", "?!"])
    np.testing.assert_array_equal(rows, [[0, 0, 0], [1, 0, 0], [0, 0, 0]])


def test_split_words() -> None:
    """Combining marks and joiners stay inside their word, in every script."""
    assert split_words("It's 3.5 naïve_x — हिन्दी में; می‌خواهم «שָׁלוֹם»") == [
        "It", "s", "3", "5", "naïve_x", "हिन्दी", "में", "می‌خواهم", "שָׁלוֹם"
    ]  # fmt: skip


def test_word_counts_and_truncation(glove: Path) -> None:
    """Words are counted exactly, known or not, and those beyond max_length have no say."""
    ours = StaticEmbedder.open(str(glove), max_length=2)
    assert ours.tokenizer is None
    assert ours.count_tokens(["the unknown, the polish", "!"]) == [4, 0]
    np.testing.assert_array_equal(ours.encode_document(["the the polish polish"]), [[1, 0, 0]])


def test_fingerprint_follows_the_content(glove: Path, tmp_path: Path) -> None:
    """A renamed file keeps the fingerprint; other content, limit, length or skipping changes it."""
    first = StaticEmbedder.open(str(glove)).fingerprint
    copy = tmp_path / "renamed.txt"
    copy.write_bytes(glove.read_bytes())
    assert StaticEmbedder.open(str(copy)).fingerprint == first
    copy.write_bytes(glove.read_bytes().replace(b"1 1 0", b"1 1 1"))
    others = [
        StaticEmbedder.open(str(copy)),
        StaticEmbedder.open(str(glove), limit=2),
        StaticEmbedder.open(str(glove), limit=3),
        StaticEmbedder.open(str(glove), max_length=9),
        StaticEmbedder.open(str(glove), bad_words="skip"),
    ]
    assert len({first, *(o.fingerprint for o in others)}) == 6


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("", {}, "needs a path"),
        ("absent.vec", {}, "does not exist"),
        ("glove.txt", {"max_length": 0}, "max_length is 0"),
        ("glove.txt", {"limit": 0}, "limit is 0"),
        ("glove.txt", {"bad_words": "keep"}, "bad_words is 'keep'"),
        (".", {"limit": 3}, "limit is for word-vector files"),
        (".", {}, "model.safetensors is no readable"),
    ],
)
def test_wrong_arguments(
    glove: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any], message: str
) -> None:
    """A wrong argument is refused with the value seen."""
    monkeypatch.chdir(glove.parent)
    with pytest.raises(InputError, match=message):
        StaticEmbedder.open(name, **options)
