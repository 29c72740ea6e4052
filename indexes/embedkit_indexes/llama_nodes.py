"""Nodes of LlamaIndex as documents of an index, and the hits of a search as nodes again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageDocument,
    ImageNode,
    IndexNode,
    MetadataMode,
    Node,
    NodeRelationship,
    ObjectType,
    RelatedNodeInfo,
    TextNode,
)

from embedkit.errors import InputError
from embedkit_indexes.corpus.fields import json_value
from embedkit_indexes.corpus.records import Document as StoredDocument
from embedkit_indexes.results import SearchHit
from embedkit_indexes.segment_format import HIDDEN, NODE_CONTENT, NODE_TEXT

NODE_TYPE = f"{HIDDEN}type"
SOURCE_ID = "ref_doc_id"
_RESERVED = (NODE_CONTENT, NODE_TEXT, NODE_TYPE, SOURCE_ID)
_CLASSES = {c.class_name(): c for c in (TextNode, ImageNode, IndexNode, Node, Document, ImageDocument)}
_LANGUAGE = re.compile(r"[a-z]{2,3}")
# For who looks a chunk up, and no word of them for a language model to read.
_PLACES = ("lang", "position", "start", "end")


def embedded_text(node: BaseNode, mode: MetadataMode = MetadataMode.EMBED) -> str:
    """Return the text that a node is embedded as, without what no file takes: the text of its chunk.

    Raises InputError where there is none.
    """
    text = re.sub("[\ud800-\udfff]", "\ufffd", node.get_content(metadata_mode=mode)).strip()
    if not text:
        raise InputError(
            f"node {node.node_id!r} has no text to embed: give it some, or leave it out (an index of texts finds no other)"
        )
    return text


def stored_document(node: BaseNode, text: str) -> StoredDocument:
    """Return a node as a document, one chunk of this text; all else of the node lies in its metadata.

    The node's own metadata can be filtered by as any document's. What of the node stands in the text, or in the metadata,
    is not stored twice.
    """
    try:
        record: dict[str, Any] = node.model_dump(mode="json")
    except ValueError as e:
        raise InputError(
            f"node {node.node_id!r:.60} cannot be written as JSON ({e}): mend its metadata"
        ) from e
    record["embedding"] = None
    own: dict[str, Any] = record["metadata"]
    try:
        metadata = {k: v for k, v in json_value(own).items() if k not in _RESERVED}
    except RecursionError as e:
        raise InputError(f"the metadata of node {node.node_id!r} is {e}: make it flatter") from None
    if json.dumps(metadata) == json.dumps(own):
        del record["metadata"]
    holder = _holder(record)
    content = holder.get("text")
    if isinstance(content, str) and content and (at := text.find(content)) >= 0:
        del holder["text"]
        metadata[NODE_TEXT] = [at, at + len(content)]
    if node.ref_doc_id is not None:
        metadata[SOURCE_ID] = node.ref_doc_id
    metadata[NODE_TYPE] = node.class_name()
    # Escaped, for half a surrogate pair has no other form.
    metadata[NODE_CONTENT] = json.dumps(record)
    return StoredDocument(
        node.node_id,
        text,
        title=_first(own, "title", "file_name"),
        lang=language if _LANGUAGE.fullmatch(language := _first(own, "lang", "language")) else None,
        source=_first(own, "file_path", "source", "url"),
        metadata=metadata,
    )


def _holder(record: dict[str, Any]) -> dict[str, Any]:
    """Return where a node's JSON holds its text."""
    resource = record.get("text_resource")
    return resource if isinstance(resource, dict) else record


def _first(metadata: Mapping[str, Any], *names: str) -> str:
    for name in names:
        value = metadata.get(name)
        if isinstance(value, str) and value:
            return re.sub("[\ud800-\udfff]", "\ufffd", value)
    return ""


def node_of(hit: SearchHit) -> BaseNode:
    """Return the node that a chunk was stored as, or a TextNode made of a document's chunk."""
    metadata = hit.metadata
    content = metadata.get(NODE_CONTENT)
    if not isinstance(content, str) or NODE_TYPE not in metadata:
        return _node_of_chunk(hit)
    record = json.loads(content)
    if "metadata" not in record:
        record["metadata"] = {k: v for k, v in metadata.items() if k not in _RESERVED}
    span = metadata.get(NODE_TEXT)
    if span is not None:
        _holder(record)["text"] = hit.text[span[0] : span[1]]
    return _CLASSES.get(metadata[NODE_TYPE], TextNode).from_dict(record)


def nodes_of(hits: Iterable[SearchHit]) -> list[BaseNode]:
    """Return the nodes of a search; LlamaIndex drops those of which it has seen the id."""
    nodes: list[BaseNode] = []
    indexes: dict[str, str] = {}
    for hit in hits:
        node = node_of(hit)
        if indexes.setdefault(node.node_id, hit.index) != hit.index:
            node.id_ = id_in(hit.index, node.node_id)
        nodes.append(node)
    return nodes


def _node_of_chunk(hit: SearchHit) -> TextNode:
    """Return a chunk of a document as a node: its place in the document, and the document as its source."""
    own = {"source": hit.source, "title": hit.title, "lang": hit.lang}
    places = {"position": hit.position, "start": hit.start, "end": hit.end}
    metadata = {**{k: v for k, v in own.items() if v}, **places, **hit.metadata}
    hidden = [name for name in _PLACES if name in metadata]
    # Of several indexes each may hold a document of this id.
    document = id_in(hit.index, hit.document_id)
    told = {"index": hit.index, "document_id": hit.document_id} if hit.index else {}
    # For `EmbedkitContext`: here, no language model and no embedder sees it.
    lead = {} if hit.lead is None else {"lead": hit.lead}
    source = RelatedNodeInfo(node_id=document, node_type=ObjectType.DOCUMENT, metadata=told | lead)
    return TextNode(
        id_=id_of(document, hit.position),
        text=hit.text,
        metadata=metadata,
        excluded_embed_metadata_keys=hidden,
        excluded_llm_metadata_keys=hidden,
        relationships={NodeRelationship.SOURCE: source},
        start_char_idx=hit.start,
        end_char_idx=hit.end,
    )


def id_in(index: str, id: str) -> str:
    """Return an id among those of several indexes; `index` is "" where there is one alone."""
    return f"{index}#{id}" if index else id


def id_of(document_id: str, position: int) -> str:
    """Return the node id of a document's chunk."""
    return f"{document_id}#{position}"


def parts_of_id(id: str) -> tuple[str, int] | None:
    """Return the document and the position that a chunk's node id names, None for another id."""
    document, mark, position = id.rpartition("#")
    return (document, int(position)) if mark and re.fullmatch(r"[0-9]{1,9}", position) else None
