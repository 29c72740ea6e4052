"""From text to token ids: BOS, truncated text, EOS, built here and never left to a tokenizer's flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit.errors import EmbedderError, InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class TokenBuilder:
    """Hold a tokenizer whose post-processor adds exactly `prefix` and `suffix`, and the longest sequence."""

    tokenizer: Tokenizer
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    max_length: int

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Return ids per text, at most `max_length` long; the text is cut, the special tokens stay."""
        room = self.max_length - len(self.suffix)
        rows = []
        for encoding in self.tokenizer.encode_batch_fast(list(texts)):
            ids = encoding.ids
            rows.append(ids if len(ids) <= self.max_length else [*ids[:room], *self.suffix])
        return rows


def load_tokenizer(folder: Path, trust_remote_code: bool) -> Any:
    """Return the transformers tokenizer of `folder`. Raises EmbedderError where there is no fast one."""
    from transformers import AutoTokenizer

    from embedkit.embedders.loading import broken_files

    with broken_files(f"the tokenizer of {folder} cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise EmbedderError(
            f"{folder} has only a slow tokenizer ({type(tokenizer).__name__}): save it with a tokenizer.json"
        )
    return tokenizer


def build_tokens(
    loaded: Any, *, bos: bool | None, eos: str | None, last: bool, max_length: int, lower_case: bool = False
) -> TokenBuilder:
    """Return the builder for a loaded transformers tokenizer.

    `bos` True or False adds or forbids the tokenizer's BOS, None keeps what its post-processor does. `eos`
    is a token's text or "eos" for the tokenizer's own; with None and `last`, the post-processor's last
    token counts, else the tokenizer's EOS. The caller's tokenizer is left untouched.
    """
    from tokenizers import Tokenizer

    own = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    own.no_truncation()
    own.no_padding()
    if lower_case:
        _lower(own)
    prefix, suffix = special_ids(own)
    if bos is not None:
        prefix = (_bos(loaded),) if bos else ()
    if eos is not None:
        suffix = (_eos(loaded, eos),)
    elif last and not suffix:
        suffix = (_eos(loaded, "eos"),)
    if (prefix, suffix) != special_ids(own):
        _set_specials(own, prefix, suffix)
    if max_length <= len(prefix) + len(suffix):
        raise InputError(
            f"max_length {max_length} leaves no room for text: it counts {len(prefix) + len(suffix)} special tokens"
        )
    return TokenBuilder(own, prefix, suffix, max_length)


def special_ids(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that the post-processor puts before and after a text."""
    mask = tokenizer.encode("a").special_tokens_mask
    ids = tokenizer.encode("a").ids
    body = len(tokenizer.encode("a", add_special_tokens=False).ids)
    before = next((i for i in range(len(ids)) if mask[i] == 0), 0) if body else len(ids)
    if len(ids) == body:
        before = 0
    return tuple(ids[:before]), tuple(ids[before + body :])


def _set_specials(tokenizer: Tokenizer, prefix: tuple[int, ...], suffix: tuple[int, ...]) -> None:
    from tokenizers.processors import TemplateProcessing

    ids = {*prefix, *suffix}
    names = {i: tokenizer.id_to_token(i) for i in ids}
    single = [*(names[i] for i in prefix), "$A", *(names[i] for i in suffix)]
    tokenizer.post_processor = TemplateProcessing(
        single=single, special_tokens=[(name, i) for i, name in names.items()]
    )


def _lower(tokenizer: Tokenizer) -> None:
    from tokenizers.normalizers import Lowercase
    from tokenizers.normalizers import Sequence as NormalizerSequence

    old = tokenizer.normalizer
    tokenizer.normalizer = Lowercase() if old is None else NormalizerSequence([Lowercase(), old])


def _bos(loaded: Any) -> int:
    if loaded.bos_token_id is None:
        raise EmbedderError(
            "the model family begins every text with BOS, but the tokenizer names no bos_token"
        )
    return int(loaded.bos_token_id)


def _eos(loaded: Any, token: str) -> int:
    if token == "eos":
        if loaded.eos_token_id is None:
            raise EmbedderError(
                "last-token pooling needs an EOS token, but the tokenizer names none: set eos_token in its files"
            )
        return int(loaded.eos_token_id)
    found = loaded.backend_tokenizer.token_to_id(token)
    if found is None:
        raise EmbedderError(
            f"the model family ends every text with {token!r}, which the tokenizer does not know"
        )
    return int(found)
