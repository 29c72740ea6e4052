"""Do a tokenizer and a model belong together? An id without an embedding is an abort on a GPU, and says nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from embedkit.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from embedkit_trainer.stage import Stage


def check_vocabulary(stages: Sequence[Stage], tokenizer: Tokenizer, embeddings: int) -> None:
    """Raise InputError where a text of the data or of the dev sets has an id beyond the model's `embeddings`.

    Some tokenizers know tokens beyond the model's that no text holds: those do no harm. The data is read for
    such tokenizers alone.
    """
    if max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0) < embeddings:
        return
    for stage in stages:
        largest = {f"source {store.name!r}": store.largest_id() for store in stage.stores}
        for dev in stage.dev_sets:
            largest[f"dev folder {dev.name!r}"] = max(
                max(ids) for ids in (*dev.queries, *dev.documents) if ids
            )
        for where, found in largest.items():
            if found >= embeddings:
                raise InputError(
                    f"{where} holds the token {tokenizer.id_to_token(found)!r} with id {found}, but the model has "
                    f"{embeddings} embeddings: the tokenizer is not this model's; fetch both again"
                )
