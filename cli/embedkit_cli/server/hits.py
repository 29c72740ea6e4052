"""A hit as a client may see it: nothing of where the server keeps its files, no password of an address."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from embedkit_indexes.results import shown_metadata

if TYPE_CHECKING:
    from embedkit_indexes import SearchHit

# Addresses of files: file:…, and those of any scheme that name no host, such as sqlite:////srv/x.db.
_FILE = re.compile(r"(?i:file:|[a-z][a-z0-9+.-]+:///)(.*)", re.DOTALL)
_USER = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/?#\\]*@")
# Where LlamaIndex's readers note a document's file, which the text that is embedded begins with too.
_PATH = "file_path"


def shown_hit(hit: SearchHit) -> dict[str, Any]:
    """Return a hit's fields as plain values."""
    text, metadata = hit.text, public_metadata(hit.metadata)
    path = hit.metadata.get(_PATH)
    if isinstance(path, str) and metadata[_PATH] != path:
        text = text.replace(path, metadata[_PATH])
    return {
        "rank": hit.rank,
        "first_rank": hit.first_rank,
        "score": hit.score,
        "document_id": hit.document_id,
        "chunk_id": hit.chunk_id,
        "position": hit.position,
        "title": hit.title,
        "text": text,
        "lang": hit.lang,
        "source": shown_source(hit.source),
        "start": hit.start,
        "end": hit.end,
        "metadata": metadata,
        "cosine": hit.cosine,
        "bm25": hit.bm25,
        "rerank_score": hit.rerank_score,
    }


def public_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy without what a program stored for itself, and of a file's path the last part."""
    shown = shown_metadata(metadata)
    if isinstance(path := shown.get(_PATH), str):
        shown[_PATH] = shown_source(path)
    return shown


@lru_cache(4096)
def shown_source(source: str) -> str:
    """Return a source as a client may see it: of an absolute path, the last part; of an address, no password."""
    if found := _FILE.match(source):
        return PureWindowsPath(found[1]).name
    for kind in (PurePosixPath, PureWindowsPath):
        path = kind(source)
        if path.is_absolute() or ".." in path.parts:
            return path.name
    return _USER.sub(r"\1", source)
