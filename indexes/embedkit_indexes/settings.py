"""What decides an index but its documents, as it is asked for and as a manifest holds it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from embedkit.contract import Template
from embedkit.embedder import Embedder
from embedkit.errors import InputError
from embedkit.tasks import Task
from embedkit_indexes.corpus.chunking import ChunkConfig
from embedkit_indexes.manifest import Manifest
from embedkit_indexes.planner import EngineConfig

_SECRETS = ("key", "secret", "password", "token")
# Of the machine that built it, not of the index: a search elsewhere may have another device, or one in place of four.
_MACHINE = ("device", "token_budget")
DTYPES = ("float16", "float32")


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """Everything that decides an index but the documents.

    `fingerprint`, `described` (an EmbedderInfo's fields) and `dim` are the embedder's, `spec` and `options` open it
    again; `embedder` is None where nothing is to be embedded, or `opener` gives it once something is. `dtype` is that of the stored vectors.
    """

    fingerprint: str
    described: Mapping[str, Any]
    dim: int
    embedder: Embedder | None = None
    spec: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    chunking: ChunkConfig = field(default_factory=ChunkConfig)
    tasks: Mapping[str, Task] = field(default_factory=dict)
    engine: EngineConfig = field(default_factory=EngineConfig)
    dtype: str = "float16"
    sources: tuple[Mapping[str, Any], ...] = ()
    opener: Callable[[], Embedder] | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"dtype is {self.dtype!r}: store vectors as {' or '.join(DTYPES)}")
        if not isinstance(self.engine, EngineConfig):
            raise InputError(
                f"engine is {self.engine!r:.60}, {type(self.engine).__name__}: pass an EngineConfig, as in "
                'EngineConfig("hnsw")'
            )

    @property
    def opened(self) -> Embedder:
        """The embedder, which is there wherever something is embedded."""
        if self.embedder is not None:
            return self.embedder
        if self.opener is None:
            raise ValueError("nothing was to be embedded")
        return self.opener()

    def using(self, embedder: Embedder, spec: str, options: Mapping[str, Any]) -> IndexSettings:
        """Return the settings with this embedder, without what no index keeps: keys and what is the machine's."""
        if not isinstance(embedder, Embedder):
            raise InputError(
                f"embedder is {embedder!r:.60}, {type(embedder).__name__}: pass a name, or an Embedder (get_embedder(name))"
            )
        kept = {
            name: _plain(name, value)
            for name, value in options.items()
            if not name.lower().endswith(_SECRETS) and name not in _MACHINE
        }
        return replace(
            self,
            fingerprint=embedder.fingerprint,
            described=asdict(embedder.info),
            dim=embedder.info.dim,
            embedder=embedder,
            spec=spec,
            options=kept,
        )

    @staticmethod
    def of(manifest: Manifest, embedder: Embedder | None = None) -> IndexSettings:
        """Return the settings that an index was built with."""
        return IndexSettings(
            manifest.fingerprint,
            manifest.embedder,
            manifest.dim,
            embedder,
            manifest.spec,
            manifest.options,
            ChunkConfig(**{k: v for k, v in manifest.chunker.items() if k != "fingerprint"}),
            {t["name"]: Task(**t) for t in manifest.tasks},
            EngineConfig(**manifest.engine),
            manifest.dtype,
            manifest.sources,
        )


def _plain(name: str, value: Any) -> Any:
    """Return an option's value as JSON holds it, a password inside an address left out, an adapter's path absolute."""
    if name == "adapter" and Path(value).exists():
        return str(Path(value).resolve())
    if isinstance(value, str):
        return re.sub(r"(?<=://)[^/@\s]+@", "", value)
    plain = asdict(value) if isinstance(value, Template) else value
    try:
        json.dumps(plain)
    except (TypeError, ValueError) as e:
        raise InputError(
            f"the embedder's option {name} is {value!r}, which an index cannot store: give a plain value, or pass "
            "the opened embedder without embedder_options"
        ) from e
    return plain
