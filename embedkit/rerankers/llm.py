"""An LLM behind an OpenAI-compatible endpoint: it rates numbered passages 0 to 10, a window of them a request."""

from __future__ import annotations

import os
import random
import threading
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from embedkit.embedders.openai_client import PUBLIC_URL, Client, check_url
from embedkit.errors import InputError, UnknownNameError
from embedkit.rerankers.base import Reranker, RerankerInfo, RerankWarning, Scores
from embedkit.rerankers.llm_answers import UNSCORED, ask_text, read_ratings, read_reply

if TYPE_CHECKING:
    from openai import OpenAI


@dataclass(frozen=True, slots=True)
class ChatRemote:
    """Say how an LLM is asked. Nothing here is secret: the key lives in the client alone.

    `window` passages go into a request, each cut at about `passage_tokens` (four bytes of UTF-8 count as one token);
    their order is shuffled by `seed`, because models favour some places. `json_object` asks the server for JSON alone;
    `extra_body` joins every request.
    """

    model: str
    base_url: str = PUBLIC_URL
    window: int = 20
    passage_tokens: int = 512
    seed: int = 0
    concurrency: int = 4
    json_object: bool = True
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    timeout: float = 120.0
    max_retries: int = 4
    first_backoff: float = 0.5
    longest_wait: float = 120.0
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.model:
            raise InputError("the reranker llm needs a model: write llm:MODEL@http://host:8000/v1")
        for name in (
            *("window", "passage_tokens", "concurrency", "timeout"),
            *("requests_per_minute", "tokens_per_minute"),
        ):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and value > 0):
                raise InputError(f"{name} is {value!r}: give a number above 0")
        for name in ("max_retries", "seed", "window", "passage_tokens", "concurrency"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise InputError(f"{name} is {value!r}: give a whole number, 0 or more")
        if not isinstance(self.extra_body, Mapping):
            raise InputError(
                f"extra_body is {self.extra_body!r}: give fields by name, such as {{'top_k': 1}}"
            )
        check_url(self.base_url)

    @property
    def route(self) -> str:
        """What is asked of the server, for its errors."""
        return "/chat/completions"

    @property
    def advice(self) -> str:
        """What may help where the server refuses a request."""
        return (
            f"fewer passages (window={self.window}), shorter ones (passage_tokens={self.passage_tokens}) or "
            "json_object=false may help"
        )


class LLMReranker(Reranker):
    """Score by an LLM's ratings, 0 to 10; a passage that it does not rate has -1, and a warning says so.

    So those come last, in the order in which they were given. The key is in no representation, pickle or error.
    """

    def __init__(self, remote: ChatRemote, *, api_key: str | None = None) -> None:
        self.remote = remote
        self.info = RerankerInfo(f"llm:{remote.model}", remote.passage_tokens, "llm", True)
        self._client = Client(remote, api_key, "the reranker llm")

    @classmethod
    def open(
        cls, name_or_path: str, *, base_url: str | None = None, api_key: str | None = None, **remote: Any
    ) -> LLMReranker:
        """Open `MODEL@http://host/v1`, or the model at `base_url` ($OPENAI_BASE_URL, else OpenAI's own).

        The key comes from `api_key` or $OPENAI_API_KEY; a server at another address may need none. `remote` takes the
        fields of `ChatRemote`. Scoring raises EmbedderError where the server refuses, ServerError where all retries
        failed.
        """
        known = set(ChatRemote.__dataclass_fields__) - {"model", "base_url"}
        for option in remote:
            if option not in known:
                raise UnknownNameError("option of the reranker 'llm':", option, known)
        model, at, address = name_or_path.rpartition("@http")
        if at:
            if base_url is not None:
                raise InputError(f"base_url is given twice, {'http' + address} and {base_url}: give one")
            name_or_path, base_url = model, "http" + address
        url = base_url or os.environ.get("OPENAI_BASE_URL") or PUBLIC_URL
        return cls(ChatRemote(model=name_or_path, base_url=url, **remote), api_key=api_key)

    def _score(self, query: str, texts: Sequence[str], instruction: str | None) -> Scores:
        order = list(range(len(texts)))
        random.Random(self.remote.seed).shuffle(order)
        windows = [
            order[start : start + self.remote.window] for start in range(0, len(order), self.remote.window)
        ]
        stop = threading.Event()
        pool = ThreadPoolExecutor(min(self.remote.concurrency, len(windows)), "embedkit-rerank")
        asked = [
            pool.submit(self._rate, query, [self._cut(texts[i]) for i in window], instruction, stop)
            for window in windows
        ]
        try:
            wait(asked, return_when=FIRST_EXCEPTION)
            failed = [f for f in asked if f.done() and f.exception()]
            answers = [f.result() for f in failed[:1] or asked]
        finally:
            # Wakes those that wait for another try, so that an error or Ctrl-C is not held up.
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
        values = [UNSCORED] * len(texts)
        for window, (ratings, _) in zip(windows, answers, strict=True):
            for place, rating in ratings.items():
                values[window[place - 1]] = rating
        missing = values.count(UNSCORED)
        if missing:
            warnings.warn(
                f"{self.info.name} rated {len(texts) - missing} of {len(texts)} passages: the others come last, in "
                "their order before",
                RerankWarning,
                stacklevel=4,
            )
        return Scores(values, sum(tokens for _, tokens in answers))

    def _rate(
        self, query: str, passages: Sequence[str], instruction: str | None, stop: threading.Event
    ) -> tuple[dict[int, float], int]:
        """Return the ratings of a window by number from 1, and the tokens; asks once more where some lack."""
        best: dict[int, float] = {}
        spent = 0
        for _ in range(2):
            messages = ask_text(query, passages, instruction)
            estimate = sum(len(m["content"].encode()) for m in messages) // 4
            content = self._client.send(self._request(messages), estimate, stop)
            text, tokens = read_reply(content)
            spent += tokens or estimate
            found = read_ratings(text, len(passages))
            if len(found) > len(best):
                best = found
            if len(best) == len(passages):
                break
        return best, spent

    def _request(self, messages: list[dict[str, str]]) -> Any:
        extra: dict[str, Any] = dict(self.remote.extra_body)
        if self.remote.json_object:
            extra.setdefault("response_format", {"type": "json_object"})

        def request(client: OpenAI) -> Any:
            return client.chat.completions.with_raw_response.create(
                model=self.remote.model,
                messages=messages,  # type: ignore[arg-type]
                temperature=0.0,
                extra_body=extra or None,
            )

        return request

    def _cut(self, text: str) -> str:
        return text.encode()[: 4 * self.remote.passage_tokens].decode(errors="ignore")

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_client"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._client = Client(self.remote, None, "the reranker llm")
