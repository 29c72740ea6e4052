"""From a query and texts to the token ids of pairs: the text is cut, not the query."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from embedkit.errors import InputError
from embedkit.rerankers.base import RerankWarning

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Of the room in a pair; a text that nothing is read of cannot be scored.
_QUERY_SHARE = 0.75


class PairIds(list[int]):
    """The token ids of one pair, and beside them the segment of each, which some models read."""

    types: Sequence[int] = ()


class PairBuilder:
    """Tokenise pairs as the model's own tokenizer does, cut at `max_length`."""

    def __init__(self, loaded: Any, max_length: int, name: str) -> None:
        from tokenizers import Tokenizer

        own = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
        own.no_padding()
        own.no_truncation()
        self._plain: Tokenizer = Tokenizer.from_str(own.to_str())
        special = own.num_special_tokens_to_add(True)
        self._room = max_length - special
        if self._room < 2:
            raise InputError(
                f"max_length is {max_length}: it leaves no room beside {special} special tokens, raise it"
            )
        own.enable_truncation(max_length, strategy="only_second")
        self._own = own
        self._name = name

    def __call__(self, query: str, texts: Sequence[str]) -> list[PairIds]:
        """Return the ids of query and text, special tokens included, a row for each text."""
        query = fitting_query(self._plain, query, self._room, self._name)
        rows = []
        for encoding in self._own.encode_batch([(query, text) for text in texts]):
            row = PairIds(encoding.ids)
            row.types = encoding.type_ids
            rows.append(row)
        return rows


def fitting_query(tokenizer: Tokenizer, query: str, room: int, name: str) -> str:
    """Return the query, cut with a warning where it leaves a text less than a quarter of `room` tokens."""
    limit = max(1, int(room * _QUERY_SHARE))
    encoding = tokenizer.encode(query, add_special_tokens=False)
    if len(encoding.ids) <= limit:
        return query
    warnings.warn(
        f"the query has {len(encoding.ids):,} tokens, and {name} reads pairs of {room:,}: its first {limit:,} were "
        "scored; shorten it",
        RerankWarning,
        stacklevel=2,
    )
    return query[: encoding.offsets[limit - 1][1]]
