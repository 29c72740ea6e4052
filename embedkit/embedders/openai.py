"""Remote embedders: any server with OpenAI's `/v1/embeddings` (OpenAI, Azure, TEI, vLLM, Ollama and others)."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextvars import ContextVar
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from embedkit.contract import EmbedderInfo, Template
from embedkit.embedder import Embedder
from embedkit.embedders.matryoshka import check_dim
from embedkit.embedders.openai_client import PUBLIC_URL
from embedkit.embedders.openai_requests import Remote, Requests, Role
from embedkit.embedders.presets import get_preset, match_preset
from embedkit.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_role: ContextVar[Role] = ContextVar("_role", default="query")


class OpenAIEmbedder(Embedder):
    """Embed texts on a server; the dimension is asked with one request where it is not given.

    Without the model's tokenizer, tokens are estimated at four bytes each: texts are cut, batches filled and
    rates kept by that. The key is in no representation, pickle, fingerprint or error; an unpickled embedder
    takes it from $OPENAI_API_KEY.
    """

    window: ClassVar[int] = 1024
    parallel: ClassVar[int] = 16

    def __init__(
        self,
        remote: Remote,
        *,
        api_key: str | None = None,
        dim: int | None = None,
        template: Template | None = None,
        instruction_trained: bool = False,
        default_task: str | None = None,
    ) -> None:
        if dim is not None:
            check_dim(dim)
        if dim is not None and remote.dimensions not in (None, dim):
            raise InputError(f"dim is {dim} and dimensions {remote.dimensions}: give one of them")
        self.remote = remote
        self._expected = dim or remote.dimensions
        self._described: dict[str, Any] = {
            "template": template or Template(),
            "instruction_trained": instruction_trained,
            "default_task": default_task,
        }
        self._requests = Requests(remote, api_key)

    @classmethod
    def open(
        cls,
        name_or_path: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        dim: int | None = None,
        preset: str | None = None,
        template: Template | None = None,
        instruction_trained: bool | None = None,
        default_task: str | None = None,
        **remote: Any,
    ) -> OpenAIEmbedder:
        """Open the model `name_or_path` at `base_url` ($OPENAI_BASE_URL, else OpenAI's own).

        The key comes from `api_key` or $OPENAI_API_KEY; a server at another address may need none. `dim` is
        the dimension expected, checked on every answer and never sent (`dimensions` is). Servers of open
        models leave the model's prefixes and instructions to the client: what is not given of template,
        training, task and length comes from `preset`, else from the preset that the model's name matches.
        `remote` takes the fields of `Remote`. Raises MissingExtraError or InputError; encoding raises
        EmbedderError where the server refuses or answers wrongly and ServerError where all retries failed.
        """
        known = set(Remote.__dataclass_fields__) - {"model", "base_url"}
        for option in remote:
            if option not in known:
                raise UnknownNameError("option of the openai embedder:", option, known)
        known_model = get_preset(preset) if preset else match_preset(name_or_path)
        if known_model is not None:
            template = template or known_model.template
            default_task = default_task or known_model.default_task
            if instruction_trained is None:
                instruction_trained = known_model.instruction_trained
            if known_model.max_length is not None:
                remote.setdefault("max_length", known_model.max_length)
        url = base_url or os.environ.get("OPENAI_BASE_URL") or PUBLIC_URL
        return cls(
            Remote(model=name_or_path, base_url=url, **remote),
            api_key=api_key,
            dim=dim,
            template=template,
            instruction_trained=bool(instruction_trained),
            default_task=default_task,
        )

    @cached_property
    def info(self) -> EmbedderInfo:  # type: ignore[override]  # the base lets it be set; here it is asked
        """Describe the model; without a known dimension the first call embeds one short text."""
        dim = self._expected or self._requests.send(["dimension"], "document").shape[1]
        return EmbedderInfo(
            name=f"openai:{self.remote.model}",
            dim=dim,
            max_length=self.remote.max_length,
            pooling="none",
            weights=self.remote.identity,
            **self._described,
        )

    def encode_document(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode documents as the base class does; the server is told so where `send_input_type` is set."""
        token = _role.set("document")
        try:
            return super().encode_document(texts)
        finally:
            _role.reset(token)

    def _embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        import numpy as np

        role, dim, stop = _role.get(), self.info.dim, threading.Event()
        cut = [_cut(text, 4 * self.remote.max_length) for text in texts]
        batches = list(self._batches(cut))
        if len(batches) == 1:
            return self._requests.send(cut, role, dim)
        pool = ThreadPoolExecutor(min(self.remote.concurrency, len(batches)), "embedkit-openai")
        futures = [pool.submit(self._requests.send, batch, role, dim, stop) for batch in batches]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            failed = [f for f in futures if f.done() and f.exception()]
            return np.concatenate([f.result() for f in failed[:1] or futures])
        finally:
            # Wakes those that wait for another try, so that an error or Ctrl-C is not held up.
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _batches(self, texts: Sequence[str]) -> Iterator[list[str]]:
        batch: list[str] = []
        tokens = 0
        for text, count in zip(texts, self.count_tokens(texts), strict=True):
            if batch and (
                len(batch) == self.remote.batch_size or tokens + count > self.remote.tokens_per_request
            ):
                yield batch
                batch, tokens = [], 0
            batch.append(text)
            tokens += count
        if batch:
            yield batch

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_requests"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._requests = Requests(self.remote, None)

    def __deepcopy__(self, memo: dict[int, Any]) -> OpenAIEmbedder:
        # Nothing in it changes, and a copy would lose the key.
        return self


def _cut(text: str, size: int) -> str:
    if len(text) * 4 <= size:
        return text
    return text.encode()[:size].decode(errors="ignore")
