"""Documents to chunks that fit the embedder, by its own tokenizer and at the best semantic bounds."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import NamedTuple

from embedkit.contract import EmbedderInfo
from embedkit.embedder import Embedder
from embedkit.errors import InputError
from embedkit_indexes.corpus.records import Chunk, Document
from embedkit_indexes.corpus.splitting import Headings, blocks, even_pieces, pieces, trimmed

# Raise it whenever the same config and text would give other chunks: it is part of the fingerprint.
_REVISION = 1
_DEFAULT_TOKENS = 256
_WINDOW = 256
_WINDOW_CHARACTERS = 1_000_000
# No text yields fewer tokens than this without being one unknown word: beyond it, cut by length.
_CHARACTERS_A_TOKEN = 16.0
_FILL = 0.9
_CONTEXT_SHARE = 4
_LEAD = 1000


@dataclass(frozen=True, slots=True)
class ChunkConfig:
    """Say how documents are cut.

    `max_tokens` bounds a chunk, its context and special tokens included; None takes the smaller of 256 and
    the embedder's `max_length`. `overlap_tokens` is how much of a piece is repeated in the next one at most:
    tokens, or a share of `max_tokens` where it is below 1. `context` puts title and headings before each
    piece. `split=False` leaves documents whole: the embedder truncates the long ones, and the report says
    by how much.
    """

    max_tokens: int | None = None
    overlap_tokens: float = 0.125
    context: bool = True
    split: bool = True

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 8:
            raise InputError(f"max_tokens {self.max_tokens} is too small: give 8 or more")
        if not math.isfinite(self.overlap_tokens):
            raise InputError(f"overlap_tokens is {self.overlap_tokens}: give a number from 0 on")
        if self.overlap_tokens < 0:
            raise InputError(f"overlap_tokens {self.overlap_tokens} is negative: give 0 or more")
        if self.max_tokens is not None:
            self._check_overlap(self.max_tokens)

    def _check_overlap(self, budget: int) -> None:
        if self.overlap(budget) > budget // 2:
            raise InputError(
                f"overlap_tokens {self.overlap_tokens} is more than half of a chunk's {budget} tokens: every word "
                "would be embedded several times; lower it"
            )

    def budget(self, info: EmbedderInfo) -> int:
        """Return the tokens that a chunk may have under this embedder. Raises InputError beyond its `max_length`."""
        if self.max_tokens is None:
            budget = min(info.max_length, _DEFAULT_TOKENS)
            self._check_overlap(budget)
            return budget
        if self.max_tokens > info.max_length:
            raise InputError(
                f"max_tokens {self.max_tokens} is more than {info.name} sees of a text ({info.max_length}): lower it"
            )
        return self.max_tokens

    def overlap(self, budget: int) -> int:
        """Return the overlap in tokens."""
        return int(self.overlap_tokens * budget if self.overlap_tokens < 1 else self.overlap_tokens)

    def fingerprint(self) -> str:
        """Return `ck1:` and 16 hex digits over everything here that decides a chunk's text."""
        text = json.dumps({**asdict(self), "revision": _REVISION}, sort_keys=True)
        return "ck1:" + hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(slots=True)
class ChunkReport:
    """Count what chunking did; `chunk_documents` fills it in as it goes.

    `uncovered` counts the characters, white space apart, that lie in no chunk, and `gaps` counts them by the
    document's id where there are any; `truncated_tokens` counts those tokens that the embedder will not see.
    """

    documents: int = 0
    empty: int = 0
    chunks: int = 0
    tokens: int = 0
    truncated_chunks: int = 0
    truncated_tokens: int = 0
    characters: int = 0
    uncovered: int = 0
    gaps: dict[str, int] = field(default_factory=dict)

    @property
    def coverage(self) -> float:
        """Return the share of the characters that lie in a chunk, from 0 to 1."""
        return 1.0 - self.uncovered / self.characters if self.characters else 1.0

    def summary(self) -> str:
        """Return one sentence for people."""
        text = f"{self.documents:,} documents gave {self.chunks:,} chunks of {self.tokens:,} tokens"
        if self.truncated_chunks:
            text += f"; {self.truncated_tokens:,} tokens of {self.truncated_chunks:,} chunks are cut off"
        if self.uncovered:
            text += f"; {self.uncovered:,} characters lie in no chunk"
        return text + "."


def chunk_documents(
    documents: Iterable[Document],
    embedder: Embedder,
    config: ChunkConfig = ChunkConfig(),
    report: ChunkReport | None = None,
) -> Iterator[Chunk]:
    """Yield the chunks of each document, in order.

    A document that fits costs one batched tokenisation; a longer one is cut by characters, at the measured
    ratio of characters to tokens, and what is still too long is cut again. Memory is that of one window and
    of its longest document.
    """
    chunker = _Chunker(embedder, config, ChunkReport() if report is None else report)
    window: list[_Block] = []
    size = 0
    for document in documents:
        for block in chunker.blocks(document):
            window.append(block)
            size += block.end - block.start
            if len(window) >= _WINDOW or size >= _WINDOW_CHARACTERS:
                yield from chunker.chunks(window)
                window, size = [], 0
    yield from chunker.chunks(window)


class _State:
    """What is known of a document while its chunks are made."""

    __slots__ = ("covered", "document", "headings", "position")

    def __init__(self, document: Document) -> None:
        self.document = document
        self.headings: Headings | None = None
        self.position = 0
        self.covered = 0

    def context(self, start: int, limit: int) -> str:
        """Return title and headings over `start`, innermost kept, in `limit` characters; "" for none."""
        if self.headings is None:
            self.headings = Headings(self.document.text, self.document.form)
        path = list(self.headings.path(start))
        title = " ".join(self.document.title.split())
        if title and title not in path and not self._begins_with(title, start):
            path.insert(0, title)
        text = " > ".join(path)
        return text if len(text) <= limit else text[:limit].rsplit(" ", 1)[0].rstrip(" >")

    def _begins_with(self, title: str, start: int) -> bool:
        return self.document.text[start : start + len(title) + 8].lstrip("# ").startswith(title)


class _Block(NamedTuple):
    state: _State
    start: int
    end: int
    unbroken: bool
    whole: bool


class _Piece(NamedTuple):
    start: int
    end: int
    text: str
    tokens: int = 0


class _Job(NamedTuple):
    at: int
    block: _Block
    start: int
    end: int
    ratio: float
    capacity: int


class _Chunker:
    def __init__(self, embedder: Embedder, config: ChunkConfig, report: ChunkReport) -> None:
        self.embedder = embedder
        self.config = config
        self.report = report
        self.budget = config.budget(embedder.info)
        self.special = embedder.count_tokens([embedder.info.template.render_document("")])[0]
        self.room = max(1, self.budget - self.special)
        self.overlap = config.overlap(self.budget)

    def blocks(self, document: Document) -> Iterator[_Block]:
        """Yield a document in blocks: one for a short one."""
        document = _encodable(document)
        self.report.documents += 1
        self.report.characters += len(document.text)
        start, end = trimmed(document.text, 0, len(document.text))
        if start == end:
            self.report.empty += 1
            return
        state = _State(document)
        state.covered = start
        if not self.config.split or end - start <= self.budget * _CHARACTERS_A_TOKEN:
            yield _Block(state, start, end, False, True)
            return
        for low, high, unbroken in blocks(document.text[:end], document.form):
            yield _Block(state, low, high, unbroken, False)

    def chunks(self, window: list[_Block]) -> Iterator[Chunk]:
        """Yield the chunks of a window of blocks."""
        whole = [i for i, block in enumerate(window) if block.whole]
        made = [self._piece(window[i].state, window[i].start, window[i].end, 400) for i in whole]
        counted = dict(zip(whole, self._counted(made), strict=True))
        long = [
            i for i in range(len(window)) if i not in counted or not self._fits(counted[i], window[i].state)
        ]
        ratios = self._ratios([window[i] for i in long], [counted.get(i) for i in long])
        cut = dict(zip(long, self._cut([window[i] for i in long], ratios), strict=True))
        for i, block in enumerate(window):
            for piece in cut[i] if i in cut else [counted[i]]:
                yield self._chunk(block.state, piece)
            self._cover(block.state, block.end, block.end)

    def _fits(self, piece: _Piece, state: _State) -> bool:
        return piece.tokens <= self.budget or not self.config.split or piece.end - piece.start <= 1

    def _ratios(self, long: Sequence[_Block], counted: Sequence[_Piece | None]) -> list[float]:
        """Return characters a token for each block: as counted, else from three samples."""
        samples = []
        for block, piece in zip(long, counted, strict=True):
            if piece is None:
                text, middle = block.state.document.text, (block.start + block.end) // 2
                samples += [
                    text[at : min(at + 300, block.end)] for at in (block.start, middle, block.end - 300)
                ]
        tokens = iter(self._count(samples))
        lengths = iter([len(sample) for sample in samples])
        ratios = []
        for piece in counted:
            if piece is None:
                size, count = sum(next(lengths) for _ in "123"), sum(next(tokens) for _ in "123")
                ratios.append(size / max(1, count - 3 * self.special))
            else:
                ratios.append(len(piece.text) / max(1, piece.tokens - self.special))
        return [min(_CHARACTERS_A_TOKEN, max(0.05, ratio)) for ratio in ratios]

    def _cut(self, long: Sequence[_Block], ratios: Sequence[float]) -> list[list[_Piece]]:
        """Cut blocks into pieces that fit, in rounds: cut by characters, count in one batch, cut again."""
        done: list[list[_Piece]] = [[] for _ in long]
        jobs = []
        for i, (block, ratio) in enumerate(zip(long, ratios, strict=True)):
            room = self.room
            if self.config.context:
                room -= int(len(block.state.context(block.start, self._limit(ratio))) / ratio * 1.1) + 1
            jobs.append(_Job(i, block, block.start, block.end, ratio, max(1, int(room * ratio * _FILL))))
        while jobs:
            made = [(i, ratio, piece) for job in jobs for i, ratio, piece in self._pieces(job)]
            jobs = []
            counts = self._counted([piece for _, _, piece in made])
            for (i, ratio, _), piece in zip(made, counts, strict=True):
                size = piece.end - piece.start
                if self._fits(piece, long[i].state):
                    done[i].append(piece)
                else:
                    shrink = self.room / max(1, piece.tokens - self.special)
                    capacity = min(max(1, int(size * shrink * _FILL)), (size + 1) // 2)
                    jobs.append(_Job(i, long[i], piece.start, piece.end, ratio * shrink, capacity))
        for found in done:
            found.sort(key=lambda piece: (piece.start, -piece.end))
        return done

    def _pieces(self, job: _Job) -> Iterator[tuple[int, float, _Piece]]:
        state, ratio = job.block.state, job.ratio
        text = state.document.text[job.start : job.end]
        overlap = min(int(self.overlap * ratio), job.capacity // 2)
        if job.block.unbroken:
            spans = even_pieces(text, job.capacity, overlap)
        else:
            spans = pieces(text, state.document.form, job.capacity, overlap)
        for low, high in (trimmed(text, *span) for span in spans):
            if high > low:
                piece = self._piece(state, job.start + low, job.start + high, self._limit(ratio))
                yield job.at, ratio, piece

    def _limit(self, ratio: float) -> int:
        return int(self.room / _CONTEXT_SHARE * ratio)

    def _piece(self, state: _State, start: int, end: int, limit: int) -> _Piece:
        text = state.document.text[start:end]
        context = state.context(start, limit) if self.config.context else ""
        return _Piece(start, end, f"{context}\n{text}" if context else text)

    def _counted(self, made: list[_Piece]) -> list[_Piece]:
        counts = self._count([piece.text for piece in made])
        return [piece._replace(tokens=count) for piece, count in zip(made, counts, strict=True)]

    def _count(self, texts: Sequence[str]) -> list[int]:
        render = self.embedder.info.template.render_document
        return self.embedder.count_tokens([render(text) for text in texts]) if texts else []

    def _chunk(self, state: _State, piece: _Piece) -> Chunk:
        report = self.report
        truncated = max(0, piece.tokens - self.embedder.info.max_length)
        report.chunks += 1
        report.tokens += piece.tokens
        report.truncated_tokens += truncated
        report.truncated_chunks += truncated > 0
        self._cover(state, piece.start, piece.end)
        state.position += 1
        before = state.document.text[max(0, piece.start - _LEAD) : piece.start]
        return Chunk(
            state.document, state.position - 1, piece.text, piece.start, piece.end, piece.tokens, truncated,
            before[len(before.rstrip()) :],
        )  # fmt: skip

    def _cover(self, state: _State, start: int, end: int) -> None:
        if start > state.covered:
            missed = len("".join(state.document.text[state.covered : start].split()))
            if missed:
                self.report.uncovered += missed
                gaps = self.report.gaps
                gaps[state.document.id] = gaps.get(state.document.id, 0) + missed
        state.covered = max(state.covered, end)


def _encodable(document: Document) -> Document:
    """Return the document without lone surrogates, which no tokenizer and no file takes."""
    try:
        (document.text + document.title).encode()
    except UnicodeEncodeError:
        text, title = (
            "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in value)
            for value in (document.text, document.title)
        )
        return replace(document, text=text, title=title)
    return document
