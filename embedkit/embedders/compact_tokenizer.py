"""A WordPiece tokenizer in one small file, ready at once: for a query nobody waits until 100,000 tokens are hashed.

What comes before the vocabulary (normaliser, cut into words) is the Rust tokenizer's own, which loads in no time without
its tokens; words are then cut into tokens by binary search in the sorted file. So both ways agree by construction on
all of Unicode, and only the greedy longest match (Devlin et al. 2019, WordPiece) is written twice. Many texts go
through the whole Rust tokenizer.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit.errors import EmbedderError, InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE = "tokenizer.bin"
_MAGIC = b"ekwordpiece1\n"
# So many characters are cut here before the Rust tokenizer is loaded, which takes longer than these.
QUICK_CHARACTERS = 6000
_LONGEST_TOKEN = 255
_ID_BYTES = 3


@dataclass(frozen=True)
class _Vocabulary:
    """Hold the tokens sorted by their UTF-8 bytes: `starts[i]` to `starts[i + 1]` of `text`; ids of 3 bytes each."""

    starts: memoryview
    ids: bytes
    text: bytes

    def id(self, rank: int) -> int:
        """Return the id of the token of that rank."""
        return int.from_bytes(self.ids[_ID_BYTES * rank : _ID_BYTES * (rank + 1)], "little")

    def longest(self, piece: bytes, least: int) -> tuple[int, int] | None:
        """Return (bytes, id) of the longest token that `piece` begins with and that is longer than `least` bytes.

        The last token not after `piece` is the one, or shares with it all that the one can have.
        """
        starts, text = self.starts, self.text
        high = len(starts) - 1
        while len(piece) > least:
            low = 0
            while low < high:
                middle = (low + high) // 2
                if text[starts[middle] : starts[middle + 1]] <= piece:
                    low = middle + 1
                else:
                    high = middle
            if low == 0:
                return None
            token = text[starts[low - 1] : starts[low]]
            if piece.startswith(token):
                return (len(token), self.id(low - 1)) if len(token) > least else None
            piece = piece[: _common(token, piece)]
            high = low
        return None

    def tokens(self) -> dict[str, int]:
        """Return each token's id."""
        import numpy as np

        starts, text = self.starts.tolist(), self.text
        ids = np.frombuffer(self.ids, np.uint8).reshape(-1, _ID_BYTES) @ (1 << 8 * np.arange(_ID_BYTES))
        words = (text[start:end].decode("utf-8") for start, end in pairwise(starts))
        return dict(zip(words, ids.tolist(), strict=True))


class CompactTokenizer:
    """Turn texts into token ids by a file that `write_compact` wrote. Raises EmbedderError where it is damaged."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        self._path = path
        self._pipeline, self._prefix, self._suffix, self._vocabulary = _read(path)
        self._model: dict[str, Any] = self._pipeline["model"]
        self._unknown = int(self._model["vocab"][self._model["unk_token"]])
        self._head = str(self._model["continuing_subword_prefix"]).encode()
        self._added = tuple(t["content"] for t in self._pipeline["added_tokens"])
        try:
            front = Tokenizer.from_str(json.dumps(self._pipeline))
        except Exception as e:  # Rust's errors have no class of their own
            raise EmbedderError(
                f"{path} holds a tokenizer that this version of tokenizers cannot read ({e}): update tokenizers"
            ) from e
        self._normalizer, self._words = front.normalizer, front.pre_tokenizer
        self._left = QUICK_CHARACTERS

    @cached_property
    def whole(self) -> Tokenizer:
        """The Rust tokenizer with all its tokens, without padding or truncation."""
        from tokenizers import Tokenizer
        from tokenizers.models import WordPiece

        tokenizer: Any = Tokenizer.from_str(json.dumps(self._pipeline))
        tokenizer.model = WordPiece(
            self._vocabulary.tokens(),
            unk_token=self._model["unk_token"],
            max_input_chars_per_word=self._model["max_input_chars_per_word"],
            continuing_subword_prefix=self._model["continuing_subword_prefix"],
        )
        return tokenizer  # type: ignore[no-any-return]

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, special ones included, uncut."""
        size = sum(map(len, texts))
        quick = "whole" not in self.__dict__ and size <= self._left
        if not quick or any(token in text for token in self._added for text in texts):
            return [e.ids for e in self.whole.encode_batch_fast(list(texts))]
        self._left -= size
        return [self.quick_ids(text) for text in texts]

    def quick_ids(self, text: str) -> list[int]:
        """Return the ids of a text that holds no special token, without the Rust tokenizer's vocabulary."""
        if self._normalizer is not None:
            text = self._normalizer.normalize_str(text)
        ids = list(self._prefix)
        words = [word for word, _ in self._words.pre_tokenize_str(text)] if self._words else [text]
        for word in words:
            ids += self._cut(word)
        return [*ids, *self._suffix]

    def _cut(self, word: str) -> list[int]:
        if len(word) > self._model["max_input_chars_per_word"]:
            return [self._unknown]
        rest, ids, least = word.encode("utf-8"), [], 0
        while len(rest) > least:
            found = self._vocabulary.longest(rest, least)
            if found is None:
                return [self._unknown]
            ids.append(found[1])
            rest = self._head + rest[found[0] :]
            least = len(self._head)
        return ids


def compactable(tokenizer: Tokenizer) -> str:
    """Return why a tokenizer cannot be written as a compact file; an empty string where it can."""
    described = json.loads(tokenizer.to_str())
    model, added = described["model"], described["added_tokens"]
    if model["type"] != "WordPiece":
        return f"it is {model['type']}, not WordPiece"
    vocabulary: Mapping[str, int] = model["vocab"]
    longest = max(len(token.encode()) for token in vocabulary)
    for broken, reason in (
        (
            model["unk_token"] not in vocabulary,
            f"its unknown token {model['unk_token']!r} is in no vocabulary",
        ),
        (any(t["normalized"] for t in added), "it looks for added tokens in normalised text"),
        (
            any(vocabulary.get(t["content"]) != t["id"] for t in added),
            "it has tokens added to its vocabulary",
        ),
        ("" in vocabulary, "it has an empty token"),
        (longest > _LONGEST_TOKEN, f"it has a token of {longest} bytes, more than {_LONGEST_TOKEN}"),
        (max(vocabulary.values()) >= 1 << 8 * _ID_BYTES, f"it has ids of more than {_ID_BYTES} bytes"),
    ):
        if broken:
            return reason
    return ""


def write_compact(tokenizer: Tokenizer, path: Path) -> None:
    """Write a WordPiece tokenizer, padding and truncation left out. Raises InputError where it is another kind.

    The file: a magic line, CRC-32 of the rest, the length of a JSON header (both 4 bytes, little-endian), the header
    (token count, special ids, tokenizer.json with the special tokens alone), each token's length in UTF-8 (1 byte), its
    id (3 bytes), the tokens; sorted by their bytes.
    """
    from embedkit.embedders.tokens import special_ids

    reason = compactable(tokenizer)
    if reason:
        raise InputError(f"the tokenizer cannot be stored in {path.name}: {reason}; store tokenizer.json")
    pipeline = json.loads(tokenizer.to_str())
    vocabulary: Mapping[str, int] = pipeline["model"]["vocab"]
    kept = {pipeline["model"]["unk_token"], *(t["content"] for t in pipeline["added_tokens"])}
    pipeline["model"]["vocab"] = {token: vocabulary[token] for token in sorted(kept)}
    pipeline |= {"padding": None, "truncation": None}
    prefix, suffix = special_ids(tokenizer)
    header = {"tokens": len(vocabulary), "prefix": prefix, "suffix": suffix, "tokenizer": pipeline}
    head = json.dumps(header, sort_keys=True, ensure_ascii=False).encode()
    tokens = sorted((token.encode("utf-8"), i) for token, i in vocabulary.items())
    body = b"".join(
        [
            len(head).to_bytes(4, "little"),
            head,
            bytes(len(token) for token, _ in tokens),
            *(i.to_bytes(_ID_BYTES, "little") for _, i in tokens),
            *(token for token, _ in tokens),
        ]
    )
    path.write_bytes(_MAGIC + zlib.crc32(body).to_bytes(4, "little") + body)


def _read(path: Path) -> tuple[dict[str, Any], list[int], list[int], _Vocabulary]:
    import numpy as np

    try:
        raw = path.read_bytes()
        start = len(_MAGIC) + 4
        if raw[: len(_MAGIC)] != _MAGIC:
            raise ValueError("it begins otherwise than such a file")
        if zlib.crc32(memoryview(raw)[start:]) != int.from_bytes(raw[len(_MAGIC) : start], "little"):
            raise ValueError("its checksum is another")
        lengths = start + 4 + int.from_bytes(raw[start : start + 4], "little")
        header = json.loads(raw[start + 4 : lengths])
        count = int(header["tokens"])
        ids, text = lengths + count, lengths + count * (1 + _ID_BYTES)
        starts = np.zeros(count + 1, np.uint32)
        np.cumsum(np.frombuffer(raw, np.uint8, count, lengths), out=starts[1:])
        vocabulary = _Vocabulary(starts.data, raw[ids:text], raw[text:])
        return header["tokenizer"], header["prefix"], header["suffix"], vocabulary
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise EmbedderError(f"{path} is damaged ({e}): reinstall or re-export the model") from e


def _common(a: bytes, b: bytes) -> int:
    """Return how many bytes two strings begin with alike."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
