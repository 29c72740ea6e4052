"""Late re-scoring: another, stronger embedder encodes query and candidates, and their cosine is the score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from embedkit.embedder import Embedder
from embedkit.registry import get_embedder
from embedkit.rerankers.base import Reranker, RerankerInfo, Scores


class EmbedderReranker(Reranker):
    """Score by an embedder's cosine, -1..1; a text without a visible character has 0."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        info = embedder.info
        self.info = RerankerInfo(
            f"embedder:{info.name}", info.max_length, "embedder", info.instruction_trained
        )

    @classmethod
    def open(cls, name_or_path: str, **options: Any) -> EmbedderReranker:
        """Open the embedder of that name, none: the bundled one; `options` are the embedder's."""
        return cls(get_embedder(name_or_path, **options) if name_or_path else get_embedder(**options))

    def _score(self, query: str, texts: Sequence[str], instruction: str | None) -> Scores:
        asked = self.embedder.encode_query([query], instruction=instruction)[0]
        # A document of white space alone is an error to an embedder, one of zero-width characters is none.
        documents = [text if text.strip() else "\u200b" for text in texts]
        scores = self.embedder.encode_document(documents) @ asked
        return Scores(scores, self._tokens(query, texts, instruction))

    def _tokens(self, query: str, texts: Sequence[str], instruction: str | None) -> int:
        rendered = [self.embedder.render_query(query, instruction=instruction)]
        rendered += [self.embedder.info.template.render_document(text) for text in texts if text.strip()]
        limit = self.embedder.info.max_length
        return sum(min(count, limit) for count in self.embedder.count_tokens(rendered))
