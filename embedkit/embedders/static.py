"""Static embedders: the mean of fixed word or token vectors, from word-vector files and model2vec folders."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from embedkit.contract import EmbedderInfo, Template
from embedkit.embedder import Embedder
from embedkit.embedders.safetensors import read_safetensors
from embedkit.embedders.word_vectors import BadWords, WordVectors, read_word_vectors
from embedkit.errors import InputError
from embedkit.hashing import file_hash

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

_UNLIMITED = 1 << 20


class StaticEmbedder(Embedder):
    """Embed a text as the mean of its words' or tokens' vectors; a text with none known is a zero row."""

    window: ClassVar[int] = 256

    def __init__(self, info: EmbedderInfo, vocabulary: _Vocabulary) -> None:
        self.info = info
        self._vocabulary = vocabulary

    @classmethod
    def open(
        cls,
        name_or_path: str,
        *,
        limit: int | None = None,
        max_length: int | None = None,
        bad_words: BadWords = "refuse",
        cache: bool = True,
        template: Template | None = None,
    ) -> StaticEmbedder:
        """Open a word-vector file, a model2vec folder or a sentence-transformers StaticEmbedding folder.

        Files are word2vec (text or binary) or GloVe, plain or gzipped; `limit`, `bad_words` and `cache` are
        theirs alone, see `read_word_vectors`. `max_length` (words, or tokens) is 512 for a file and the
        model's own for a folder. Raises InputError naming the file and what is wrong with it.
        """
        if not name_or_path:
            raise InputError("the static embedder needs a path: write static:glove.6B.300d.txt")
        path = Path(name_or_path).expanduser()
        if not path.exists():
            raise InputError(f"{path} does not exist: give a word-vector file or a model2vec folder")
        if max_length is not None and max_length < 1:
            raise InputError(f"max_length is {max_length}: give 1 or more")
        template = template or Template()
        if path.is_dir():
            if limit is not None:
                raise InputError(f"limit is for word-vector files, and {path} is a folder: leave it out")
            info, tokens = _open_folder(path, max_length, template)
            return cls(info, tokens)
        vectors = read_word_vectors(path, limit, bad_words, cache)
        info = EmbedderInfo(
            name=path.name,
            dim=vectors.table.shape[1],
            max_length=max_length or 512,
            pooling="mean",
            # What is left out of the file decides vectors as the file does.
            weights=file_hash(path)
            + (f"+limit={limit}" if limit else "")
            + (f"+{bad_words}" * (bad_words == "skip")),
            tokenizer="unicode-words-1",
            template=template,
        )
        return cls(info, _Words(vectors, info.max_length))

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The folder's tokenizer; None for a word-vector file, whose words `count_tokens` counts."""
        return self._vocabulary.tokenizer

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count each text's tokens, or its words where the vectors come from a word-vector file."""
        if self.tokenizer is not None:
            return super().count_tokens(texts)
        return [len(split_words(text)) for text in texts]

    def _embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        import numpy as np

        out = np.zeros((len(texts), self.info.dim))
        for row, ids in enumerate(self._vocabulary.ids(texts)):
            if ids:
                # One reduction a text: np.add.reduceat over the whole window is eight times slower. In
                # float64, so that a long text's mean is the same to the last digit on every machine.
                vectors = self._vocabulary.vectors(np.asarray(ids))
                np.add.reduce(vectors, axis=0, dtype=np.float64, out=out[row])
                out[row] /= len(ids)
        return out


class _Vocabulary(Protocol):
    """Find the ids in a text and the vectors of ids."""

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    def ids(self, texts: Sequence[str]) -> list[list[int]]: ...

    def vectors(self, ids: NDArray[np.intp]) -> NDArray[Any]: ...


class _Words:
    tokenizer: Tokenizer | None = None

    def __init__(self, vectors: WordVectors, max_length: int) -> None:
        self._rows = vectors.rows
        self._table = vectors.table
        self._max_length = max_length

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [
            [i for w in split_words(t)[: self._max_length] if (i := self._row(w)) is not None] for t in texts
        ]

    def _row(self, word: str) -> int | None:
        row = self._rows.get(word)
        return row if row is not None else self._rows.get(word.lower())

    def vectors(self, ids: NDArray[np.intp]) -> NDArray[Any]:
        return self._table.take(ids, axis=0)


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Hold a folder's model; `unknown` is dropped from a text, `cut` bounds its characters before tokenising."""

    tokenizer: Tokenizer
    table: NDArray[Any]
    max_length: int
    weights: NDArray[Any] | None = None
    mapping: NDArray[Any] | None = None
    unknown: int | None = None
    cut: int | None = None

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self.tokenizer.encode_batch_fast([t[: self.cut] for t in texts], add_special_tokens=False)
        return [[i for i in e.ids[: self.max_length] if i != self.unknown] for e in encodings]

    def vectors(self, ids: NDArray[np.intp]) -> NDArray[Any]:
        rows = self.table.take(ids if self.mapping is None else self.mapping[ids], axis=0)
        return rows if self.weights is None else rows * self.weights[ids][:, None]


@cache
def _word_pattern() -> re.Pattern[str]:
    # Python's \w lacks the combining marks that Indic scripts, Thai, Hebrew and Arabic spell words with,
    # and the joiners inside Persian words.
    marks = "".join(chr(c) for c in range(0x300, 0x1F000) if unicodedata.category(chr(c))[0] == "M")
    return re.compile(f"[\\w{marks}\u200c\u200d]+")


def split_words(text: str) -> list[str]:
    """Return the words of a text in order: runs of Unicode letters, marks, digits and underscores."""
    return _word_pattern().findall(text)


def _open_folder(path: Path, max_length: int | None, template: Template) -> tuple[EmbedderInfo, _Tokens]:
    import numpy as np

    place = _module_folder(path)
    file = place / "model.safetensors"
    tensors = read_safetensors(file)
    ours = "embeddings" in tensors
    table = tensors.get("embeddings", tensors.get("embedding.weight"))
    if table is None or table.ndim != 2 or not table.size:
        raise InputError(f"{file} holds neither 'embeddings' nor 'embedding.weight' of two dimensions")
    tokenizer = _read_tokenizer(place / "tokenizer.json")
    vocabulary = tokenizer.get_vocab()
    size = max(vocabulary.values(), default=-1) + 1
    mapping, weights = (tensors.get("mapping"), tensors.get("weights")) if ours else (None, None)
    for name, length in (
        ("mapping", None if mapping is None else len(mapping)),
        ("weights", None if weights is None else len(weights)),
        ("embeddings", len(table) if mapping is None else None),
    ):
        if length is not None and length < size:
            raise InputError(f"{file}: {name} has {length} rows for a tokenizer of {size} tokens")
    if mapping is not None and not (mapping.min() >= 0 and mapping.max() < len(table)):
        raise InputError(f"{file}: mapping points outside the {len(table)} rows of embeddings")
    own_limit, cut, unknown = None, None, None
    if ours:
        # As model2vec's StaticModel.encode does: truncate, then drop the unknown token.
        own_limit = _config(path / "config.json").get("max_length", 512)
        median = int(np.median([len(token) for token in vocabulary]))
        if max_length or own_limit:
            cut = (max_length or own_limit) * median
        unknown = _unknown_id(tokenizer)
    elif tokenizer.truncation is not None:
        own_limit = tokenizer.truncation["max_length"]
    tokenizer.no_padding()
    tokenizer.no_truncation()
    info = EmbedderInfo(
        name=path.resolve().name,
        dim=table.shape[1],
        max_length=max_length or own_limit or _UNLIMITED,
        pooling="mean",
        weights=file_hash(file),
        tokenizer=file_hash(place / "tokenizer.json"),
        dtype=table.dtype.name,
        template=template,
    )
    return info, _Tokens(tokenizer, table, info.max_length, weights, mapping, unknown, cut)


def _module_folder(path: Path) -> Path:
    """Return the folder that holds the vectors, where every module is one that unit vectors make good."""
    file = path / "modules.json"
    if not file.is_file():
        return path
    try:
        modules = [
            (m["type"].rsplit(".", 1)[-1], m["path"]) for m in json.loads(file.read_text(encoding="utf-8"))
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise InputError(f"{file} cannot be read: {e}") from e
    kinds = [kind for kind, _ in modules]
    strange = [kind for kind in kinds[1:] if kind != "Normalize"]
    if kinds[:1] != ["StaticEmbedding"] or strange:
        raise InputError(
            f"{file} asks for {', '.join(kinds)}: the static embedder knows StaticEmbedding and Normalize"
        )
    return path / str(modules[0][1])


def _config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise InputError(f"{file} cannot be read: {e}") from e
    if not isinstance(data, dict) or not isinstance(data.get("max_length", 512), int | None):
        raise InputError(f"{file} is no model2vec config: max_length must be a number or null")
    return data


def _read_tokenizer(file: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except Exception as e:  # The package raises bare Exception.
        raise InputError(f"{file} is no readable tokenizer: {e}") from e


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    token = getattr(tokenizer.model, "unk_token", None)
    if token is not None:
        return tokenizer.token_to_id(token)
    # Unigram models name the id instead.
    number = json.loads(tokenizer.to_str())["model"].get("unk_id")
    return number if isinstance(number, int) else None
