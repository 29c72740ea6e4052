"""`EmbedkitContext`: what a retriever found as numbered passages within a budget, a node postprocessor of LlamaIndex's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import (
    BaseNode,
    MetadataMode,
    NodeRelationship,
    NodeWithScore,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.utils import get_tokenizer

from embedkit.errors import InputError
from embedkit_indexes.context import ContextConfig, ordered
from embedkit_indexes.context_blocks import Block
from embedkit_indexes.context_duplicates import without_duplicates
from embedkit_indexes.context_fitting import fit
from embedkit_indexes.context_forms import CUT, cited
from embedkit_indexes.context_pieces import Piece, unique
from embedkit_indexes.llama_nodes import id_in, id_of
from embedkit_indexes.segment_format import HIDDEN


class EmbedkitContext(BaseNodePostprocessor):
    """Merge neighbouring nodes, leave out what is said twice, number what stays, and cut it to a budget of tokens.

        RetrieverQueryEngine.from_args(EmbedkitRetriever("docs.index"), node_postprocessors=[EmbedkitContext(budget=1500)])

    It takes the nodes of any retriever; after a reranker, put it last. `budget` covers what a response synthesizer
    shows of the nodes, their metadata too. A node that comes out has `embedkit_citation` ("[1]") in its metadata, which
    the language model sees, and, which it does not, `embedkit_cited` (title, source and characters), `embedkit_document_id`,
    `embedkit_node_ids` and `embedkit_also_in`.
    `count_tokens` counts a text; without it LlamaIndex's own tokenizer does (`Settings.tokenizer`). Nodes without text
    are left out. `order` and `near_duplicate` are `ContextConfig`'s. Raises InputError as that does.
    """

    budget: int = Field(default=2000, description="Most tokens of all nodes together.")
    order: Literal["score", "source"] = "score"
    near_duplicate: float = 1.0
    _count: Callable[[str], int] | None = PrivateAttr(default=None)

    def __init__(self, *, count_tokens: Callable[[str], int] | None = None, **fields: Any) -> None:
        super().__init__(**fields)
        if count_tokens is not None and not callable(count_tokens):
            raise InputError(f"count_tokens is {count_tokens!r:.60}: give a function that takes a text")
        self._config()
        self._count = count_tokens

    @classmethod
    def class_name(cls) -> str:
        """Return the name that a serialised postprocessor is known by."""
        return "EmbedkitContext"

    def _config(self) -> ContextConfig:
        return ContextConfig(self.budget, order=self.order, near_duplicate=self.near_duplicate)

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        config = self._config()
        found = [n for n in nodes if n.node.get_content(MetadataMode.NONE).strip()]
        pieces = unique([_piece(n, rank) for rank, n in enumerate(found)])
        by_id = {n.node.node_id: n for n in reversed(found)}
        tokenize = get_tokenizer()
        count = self._count or (lambda text: len(tokenize(text)))
        runs, _ = without_duplicates(pieces, config.near_duplicate)

        def written(blocks: Sequence[Block]) -> list[NodeWithScore]:
            return [self._node(block, by_id) for block in ordered(blocks, config.order)]

        def tokens(blocks: Sequence[Block]) -> int:
            return count("\n\n".join(n.node.get_content(MetadataMode.LLM) for n in written(blocks)))

        return written(fit(runs, tokens, count, config.budget))

    def _node(self, block: Block, by_id: dict[str, NodeWithScore]) -> NodeWithScore:
        # The first of them in the retriever's order gives the passage its metadata.
        ids = set(map(str, block.chunk_ids))
        best = next(n for id, n in reversed(by_id.items()) if id in ids)
        node = best.node
        text = block.text + (f"\n{CUT}" if block.cut else "")
        hidden = {
            "embedkit_cited": cited(block),
            "embedkit_document_id": block.document_id,
            "embedkit_node_ids": [str(id) for id in block.chunk_ids],
            "embedkit_also_in": [place.document_id for place in block.also_in],
        }
        # Of a chunk of embedkit's own, its place: that of the passage is another one.
        places = _places(node)
        own = {k: v for k, v in node.metadata.items() if k not in places or places[k] != v}
        source = node.relationships.get(NodeRelationship.SOURCE)
        passage = TextNode(
            id_=node.node_id,
            text=f"{block.heading}\n{text}" if block.heading else text,
            metadata=own | {_CITATION: f"[{block.number}]"} | hidden,
            excluded_embed_metadata_keys=[*node.excluded_embed_metadata_keys, *hidden, _CITATION],
            excluded_llm_metadata_keys=[*node.excluded_llm_metadata_keys, *hidden],
            relationships={NodeRelationship.SOURCE: source} if source is not None else {},
            start_char_idx=block.start,
            end_char_idx=block.end,
        )
        return NodeWithScore(node=passage, score=best.score)


def _piece(found: NodeWithScore, rank: int) -> Piece:
    node = found.node
    text, heading = node.get_content(MetadataMode.NONE), ""
    start, end = getattr(node, "start_char_idx", None), getattr(node, "end_char_idx", None)
    known = False
    if isinstance(start, int) and isinstance(end, int) and 0 < end - start <= len(text):
        before = text[: len(text) - (end - start)]
        # A chunk of a document has title and headings on a line before its text.
        known = not before or ("position" in node.metadata and bool(re.fullmatch(r"[^\n]*\n", before)))
        if known:
            text, heading = text[len(before) :], before[:-1]
    name, after = _names(node)
    title, source, lang = (_string(node.metadata, *keys) for keys in _KEYS)
    return Piece(
        _document(node), name, after, text, start if known else None, end if known else None, rank,
        0.0 if found.score is None else found.score, title, heading, source, lang, node.node_id,
        {k: v for k, v in node.metadata.items() if not k.startswith(HIDDEN)}, lead=_lead(node) if known else None,
    )  # fmt: skip


_CITATION = "embedkit_citation"
_KEYS = (("title", "file_name"), ("source", "file_path", "url"), ("lang", "language"))


def _names(node: BaseNode) -> tuple[int | str, int | str | None]:
    if (position := _places(node).get("position")) is not None:
        return position, position + 1
    after = node.relationships.get(NodeRelationship.NEXT)
    return node.node_id, getattr(after, "node_id", None)


def _places(node: BaseNode) -> dict[str, int]:
    """Return what embedkit put into the metadata of a chunk of its own, nothing of another node."""
    position = node.metadata.get("position")
    if not isinstance(position, int) or node.node_id != id_of(str(node.ref_doc_id), position):
        return {}
    ends = {"start": getattr(node, "start_char_idx", None), "end": getattr(node, "end_char_idx", None)}
    return {"position": position} | {k: v for k, v in ends.items() if v is not None}


def _lead(node: BaseNode) -> str | None:
    """Return the white space before a chunk of embedkit's own, None where that is not known."""
    source = node.relationships.get(NodeRelationship.SOURCE)
    lead = source.metadata.get("lead") if isinstance(source, RelatedNodeInfo) else None
    return lead if isinstance(lead, str) and not lead.strip() else None


def _document(node: BaseNode) -> tuple[str, str]:
    """Return the index, "" where there is one alone, and the id of the document that a node is of."""
    source = node.relationships.get(NodeRelationship.SOURCE)
    told = source.metadata if isinstance(source, RelatedNodeInfo) else {}
    index, document = str(told.get("index")), str(told.get("document_id"))
    if node.ref_doc_id == id_in(index, document):
        return index, document
    return "", node.ref_doc_id or node.node_id


def _string(metadata: Mapping[str, Any], *names: str) -> str:
    return next((v for name in names if isinstance(v := metadata.get(name), str) and v), "")
