"""The light embedder: a BERT-like model as an OpenVINO graph with int8 weights; no torch needed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from embedkit.contract import EmbedderInfo
from embedkit.embedder import Embedder
from embedkit.embedders.batching import plan_batches, round_up, share_batches
from embedkit.embedders.bundle_card import FILE as CARD
from embedkit.embedders.bundle_card import read_card, too_long
from embedkit.embedders.compact_tokenizer import FILE as COMPACT
from embedkit.embedders.compact_tokenizer import CompactTokenizer
from embedkit.embedders.matryoshka import cut
from embedkit.embedders.openvino_core import shared_core
from embedkit.embedders.openvino_graph import arithmetic_of, positions_of, unpack_matrices
from embedkit.errors import EmbedderError, InputError, UnknownNameError
from embedkit.hashing import cache_dir, joint_hash
from embedkit.texts import without_surrogates
from embedkit.threads import thread_count

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

DEFAULT_MODEL = "embedkit-small-v1"
DESCRIPTION = CARD
_MODELS = Path(__file__).resolve().parent.parent / "models"
# Attention is fastest at lengths that are multiples of this: the padding costs less than it saves.
_ROUND = 16
# Padded tokens that one thread encodes before a second has begun.
_SMALL = 64
# So many texts' tokens are kept until the next texts come.
_KEPT = 1024
_FILES = (DESCRIPTION, "model.xml", "model.bin")
_TOKENIZERS = (COMPACT, "tokenizer.json")  # either will do; the first is used


def bundled_models() -> list[str]:
    """Return the names of the models that came with the package."""
    return sorted(p.parent.name for p in _MODELS.glob(f"*/{DESCRIPTION}"))


class OpenVINOEmbedder(Embedder):
    """Encode with a folder of the bundled format: `embedkit_model.json`, OpenVINO IR and the tokenizer.

    The tokenizer is `tokenizer.bin`, in older folders `tokenizer.json`. `token_budget` bounds the padded tokens of a
    batch (small ones stay in the cache and win). Arithmetic is bf16 where the CPU has it, else float32 with int8
    activations computed on the fly; `precision` ("bf16", "int8" or "f32") overrides that. The precision is not part of
    the fingerprint. `dim` cuts vectors to their first numbers.
    """

    window: ClassVar[int] = 2048

    @classmethod
    def open(
        cls,
        name_or_path: str = "",
        *,
        precision: str | None = None,
        token_budget: int = 1024,
        dim: int | None = None,
    ) -> OpenVINOEmbedder:
        """Open a bundled model by name (the default one for an empty name) or a folder by path."""
        name = name_or_path or DEFAULT_MODEL
        folder = _MODELS / name if name in bundled_models() else Path(name)
        if not folder.is_dir():
            raise UnknownNameError("bundled model", name, bundled_models())
        return cls(folder, precision=precision, token_budget=token_budget, dim=dim)

    def __init__(
        self,
        folder: str | Path,
        *,
        precision: str | None = None,
        token_budget: int = 1024,
        dim: int | None = None,
    ) -> None:
        if precision not in (None, "bf16", "int8", "f32"):
            raise InputError(f"precision {precision!r} is unknown: use bf16, int8 or f32")
        if not isinstance(token_budget, int) or token_budget < 1:
            raise InputError(f"token_budget is {token_budget!r}: use a whole number from 1 on")
        self._folder = Path(folder)
        self._precision = precision
        self._token_budget = token_budget
        self._process = os.getpid()
        self._latest_ids: dict[str, list[int]] = {}
        missing = [f for f in _FILES if not (self._folder / f).is_file()]
        words = [f for f in _TOKENIZERS if (self._folder / f).is_file()]
        missing += [] if words else [_TOKENIZERS[0]]
        if missing:
            raise EmbedderError(
                f"model folder {self._folder} lacks {', '.join(missing)}: reinstall or re-export it"
            )
        card = read_card(self._folder)
        self._pad_id = card.pad_id
        info = EmbedderInfo(
            name=card.name,
            dim=card.dim,
            max_length=card.max_length,
            pooling=card.pooling,
            dtype=card.dtype,
            weights=joint_hash(self._folder / f for f in ("model.xml", "model.bin")),
            tokenizer=joint_hash([self._folder / words[0]]),
            template=card.template,
            instruction_trained=card.instruction_trained,
            default_task=card.default_task,
            matryoshka_dims=card.matryoshka_dims,
        )
        self.info = cut(info, dim)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, without padding or truncation."""
        from tokenizers import Tokenizer

        if self._compact is not None:
            return self._compact.whole
        return Tokenizer.from_file(str(self._folder / "tokenizer.json"))

    @cached_property
    def _compact(self) -> CompactTokenizer | None:
        path = self._folder / COMPACT
        return CompactTokenizer(path) if path.is_file() else None

    @cached_property
    def _special_tokens(self) -> int:
        """How many ids a text has of which the tokenizer leaves nothing."""
        return len(self._token_ids([""])[0])

    def _token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        # Whoever wants vectors and counts, as a server does, asks twice for the same texts.
        latest = self._latest_ids
        if all(text in latest for text in texts):
            return [latest[text] for text in texts]
        if self._compact is not None:
            ids = self._compact.ids(texts)
        else:
            ids = [e.ids for e in self.tokenizer.encode_batch_fast(list(texts))]
        if len(texts) <= _KEPT:
            self._latest_ids = dict(zip(texts, ids, strict=True))
        return ids

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count each text's tokens, special tokens included and untruncated."""
        return [len(ids) for ids in self._token_ids([without_surrogates(t) for t in texts])]

    def _embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        import numpy as np

        self._notice_fork()
        limit = self.info.max_length
        ids = self._token_ids(texts)
        known = np.array([len(i) > self._special_tokens for i in ids])
        ids = [i if len(i) <= limit else [*i[: limit - 1], i[-1]] for i in ids]
        with self._computing(max(map(len, ids))):
            out = self._vectors(ids)
        out[~known] = 0  # special tokens alone would give all such texts one vector
        return out

    def _vectors(self, ids: list[list[int]]) -> NDArray[np.float32]:
        import numpy as np

        lengths = [len(i) for i in ids]
        batches = plan_batches(lengths, self._token_budget, _ROUND)
        out = np.empty((len(ids), self.info.full_dim or self.info.dim), dtype=np.float32)
        # The graph for batches is worth its loading only to a process that encodes on and on, as a server does; a text
        # that is alone is still soonest done by all threads.
        have_it = "_batch_graph" in self.__dict__
        small = sum(round_up(length, _ROUND) for length in lengths) <= _SMALL
        if len(batches) == 1 and (small or len(ids) == 1 or not have_it):
            graph = self._batch_graph if have_it and len(ids) > 1 else self._query_graph
            request = graph.create_infer_request()
            out[batches[0]] = request.infer(self._padded(ids, batches[0], _ROUND), share_inputs=True)[0]
            return out
        batches = share_batches(lengths, self._token_budget, _ROUND, thread_count())
        # A thread a stream, each with its own request: OpenVINO's own queue calls back into Python from its
        # threads, and its destructor then deadlocks on the interpreter lock.
        graph = self._batch_graph
        waiting = iter(batches)

        def work() -> None:
            request = graph.create_infer_request()
            for rows in iter(lambda: next(waiting, None), None):
                request.infer(self._padded(ids, rows, _ROUND), share_inputs=True)
                out[rows] = request.get_output_tensor(0).data

        with ThreadPoolExecutor(thread_count()) as pool:
            for done in [pool.submit(work) for _ in range(thread_count())]:
                done.result()
        return out

    def _notice_fork(self) -> None:
        """Compile anew in a forked process: the parent's graphs wait for threads that did not come along."""
        if self._process != os.getpid():
            self._process = os.getpid()
            # Kept, not freed: to free a graph is to wait for its threads.
            self._left_behind = [self.__dict__.pop(n, None) for n in ("_query_graph", "_batch_graph")]

    def _padded(self, ids: list[list[int]], rows: list[int], multiple: int = 1) -> dict[int, Any]:
        import numpy as np

        width = min(round_up(len(ids[rows[0]]), multiple), self.info.max_length)
        tokens = np.full((len(rows), width), self._pad_id, dtype=np.int32)
        mask = np.zeros(tokens.shape, dtype=np.float32)
        for row, i in enumerate(rows):
            tokens[row, : len(ids[i])] = ids[i]
            mask[row, : len(ids[i])] = 1
        return {0: tokens, 1: mask}

    @cached_property
    def _query_graph(self) -> Any:
        """The graph for a query or two: all threads on one batch, weights left packed, quick to load.

        A kept compilation halves the start of a process; it holds no weights, they stay in model.bin.
        """
        core = shared_core()
        config = {
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": thread_count(),
            **arithmetic_of(core, self._precision),
        }
        cached = {**config, "CACHE_DIR": str(cache_dir() / "openvino"), "CACHE_MODE": "OPTIMIZE_SIZE"}
        model = str(self._folder / "model.xml")
        with self._loading():
            try:
                return core.compile_model(model, "CPU", cached)
            except RuntimeError:  # a cache folder that cannot be written, or a broken entry in it
                return core.compile_model(model, "CPU", config)

    @cached_property
    def _batch_graph(self) -> Any:
        """The graph for many texts: a stream a thread, weights unpacked where the arithmetic is bf16."""
        core = shared_core()
        arithmetic = arithmetic_of(core, self._precision)
        config = {"NUM_STREAMS": thread_count(), "INFERENCE_NUM_THREADS": thread_count(), **arithmetic}
        with self._loading():
            model = core.read_model(str(self._folder / "model.xml"))
            if arithmetic["INFERENCE_PRECISION_HINT"] == "bf16":
                unpack_matrices(model)
            return core.compile_model(model, "CPU", config)

    @contextmanager
    def _loading(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as e:
            reason = str(e).strip().splitlines()[-1]
            raise EmbedderError(
                f"OpenVINO cannot load {self._folder / 'model.xml'}: {reason}; reinstall or re-export it"
            ) from e

    @contextmanager
    def _computing(self, longest: int) -> Iterator[None]:
        """Say what is wrong where a text of so many tokens failed because the card promises more than the graph has."""
        try:
            yield
        except RuntimeError as e:
            if isinstance(e, EmbedderError):
                raise
            positions = positions_of(shared_core().read_model(str(self._folder / "model.xml")))
            if positions is not None and longest > positions:
                raise too_long(self._folder, self.info.max_length, positions) from e
            raise
