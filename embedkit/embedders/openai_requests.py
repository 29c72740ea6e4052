"""Send embedding requests to a server, and check what it answers."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from embedkit.embedders.openai_client import PUBLIC_URL, Client, check_url, place_of
from embedkit.errors import EmbedderError, InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from openai import OpenAI

Role = Literal["query", "document"]


@dataclass(frozen=True, slots=True)
class Remote:
    """Say how requests go out. Nothing here is secret: the key lives in the client alone.

    `batch_size` texts or about `tokens_per_request` tokens make a request (OpenAI's ceiling is 300,000, and
    the estimate runs low outside English); `concurrency` of them are under way at a time. `dimensions` is
    sent, to get shorter vectors. `extra_body` joins every request (`{"truncate": True}` for TEI);
    `input_types` are the values of `input_type` for queries and documents where `send_input_type` is set.
    `longest_wait` bounds the seconds that a `Retry-After` may ask for.
    """

    model: str
    base_url: str = PUBLIC_URL
    dimensions: int | None = None
    max_length: int = 8191
    batch_size: int = 128
    tokens_per_request: int = 100_000
    concurrency: int = 4
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    timeout: float = 60.0
    max_retries: int = 6
    first_backoff: float = 0.5
    longest_wait: float = 120.0
    encoding: Literal["base64", "float"] = "base64"
    send_input_type: bool = False
    input_types: tuple[str, str] = ("query", "document")
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.model:
            raise InputError("the openai embedder needs a model: write openai:text-embedding-3-small")
        for name in (
            *("dimensions", "max_length", "batch_size", "tokens_per_request", "concurrency"),
            *("requests_per_minute", "tokens_per_minute", "timeout"),
        ):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and value > 0):
                raise InputError(f"{name} is {value!r}: give a number above 0")
        if not isinstance(self.max_retries, int) or self.max_retries < 0:
            raise InputError(f"max_retries is {self.max_retries!r}: give 0 or more")
        if not isinstance(self.extra_body, Mapping):
            raise InputError(
                f"extra_body is {self.extra_body!r}: give fields by name, such as {{'truncate': true}}"
            )
        if len(self.input_types) != 2 or isinstance(self.input_types, str):
            raise InputError(f"input_types is {self.input_types!r}: give two, such as ['query', 'passage']")
        if self.encoding not in ("base64", "float"):
            raise InputError(f"encoding is {self.encoding!r}: give 'base64' or 'float'")
        check_url(self.base_url)

    @property
    def identity(self) -> str:
        """What stands for the weights in the fingerprint: the model's name and what alters its documents.

        The host is left out, so that a server may move; an index's probe vectors are checked besides.
        """
        document_type = self.input_types[1] if self.send_input_type else None
        if document_type is None and not self.extra_body:
            return f"remote:{self.model}"
        altering = json.dumps([document_type, dict(self.extra_body)], sort_keys=True)
        return f"remote:{self.model}+{hashlib.sha256(altering.encode()).hexdigest()[:12]}"

    @property
    def place(self) -> str:
        """The server's address as an error may show it: no user, password or query string."""
        return place_of(self.base_url)

    @property
    def route(self) -> str:
        """What is asked of the server, for its errors."""
        return "/embeddings"

    @property
    def advice(self) -> str:
        """What may help where the server refuses a request."""
        return (
            f"shorter texts (max_length={self.max_length}) or fewer of them (batch_size={self.batch_size}) "
            "may help"
        )


class Requests:
    """Send texts to one server; threads share it."""

    def __init__(self, remote: Remote, api_key: str | None) -> None:
        self._remote = remote
        self._client = Client(remote, api_key, "the openai embedder")

    def send(
        self, texts: Sequence[str], role: Role, dim: int | None = None, stop: threading.Event | None = None
    ) -> NDArray[np.float32]:
        """Return the vectors of one batch in order, retrying what may pass; `stop` ends the waiting.

        Raises EmbedderError for a refusal or a wrong answer, ServerError when no try is left.
        """
        import openai

        remote = self._remote
        body = dict(remote.extra_body)
        if remote.send_input_type:
            body["input_type"] = remote.input_types[role == "document"]

        def request(client: OpenAI) -> Any:
            return client.embeddings.with_raw_response.create(
                input=list(texts),
                model=remote.model,
                encoding_format=remote.encoding,
                dimensions=remote.dimensions or openai.NOT_GIVEN,  # type: ignore[arg-type]
                extra_body=body or None,
            )

        tokens = sum(2 + len(text.encode()) // 4 for text in texts)
        return self._vectors(self._client.send(request, tokens, stop), len(texts), dim)

    def _vectors(self, content: bytes, count: int, dim: int | None) -> NDArray[np.float32]:
        import numpy as np

        place = self._remote.place
        try:
            items = json.loads(content)["data"]
            order = [item.get("index") for item in items]
            rows = [_floats(item["embedding"]) for item in items]
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            start = self._client.clean(content[:80].decode(errors="replace"))
            raise EmbedderError(
                f"{place} answered with no list of embeddings ({type(e).__name__} in {start!r}): check base_url"
            ) from None
        if len(rows) != count:
            raise EmbedderError(f"{place} returned {len(rows)} vectors for {count} texts: nothing was stored")
        if order == [None] * count:
            order = list(range(count))
        if sorted(order, key=str) != sorted(range(count), key=str):
            raise EmbedderError(
                f"{place} numbered its {count} vectors wrongly ({order[:8]}): nothing was stored"
            )
        sizes = {len(row) for row in rows}
        if len(sizes) > 1 or (dim is not None and sizes != {dim}):
            raise EmbedderError(
                f"{place} returned vectors of {', '.join(map(str, sorted(sizes)))} dimensions, expected "
                f"{dim or 'one size'}: another model may answer to {self._remote.model!r}, or dim is wrong "
                "(`dimensions` asks for shorter vectors)"
            )
        out = np.empty((count, sizes.pop()), np.float32)
        out[order] = rows
        return out


def _floats(embedding: Any) -> NDArray[np.float32]:
    """Return one vector; a server that knows no base64 answers with a list, whatever it was asked for."""
    import numpy as np

    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4")
    vector = np.asarray(embedding, np.float32)
    if vector.ndim != 1:
        raise ValueError(vector.shape)
    return vector
