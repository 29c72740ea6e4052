"""The error tree: every error a user can meet says what was wrong, the value seen, and what to do.

EmbedkitError
├── InputError            (ValueError)       a wrong argument, file, record or option
│   ├── UnknownNameError  (LookupError)      no task, embedder or option of that name; nearest names suggested
│   └── CorpusError                          a source that cannot be read: path, and line where there is one
├── MissingExtraError     (ImportError)      an optional package is missing; names the pip command
├── EmbedderError         (RuntimeError)     an embedder broke its promise: NaN, wrong shape, unreadable model
│   └── ServerError                          a remote server failed after all retries
├── RerankerError         (RuntimeError)     a reranker broke its promise: NaN, a wrong number of scores
├── TrainingError         (RuntimeError)     training went wrong: NaN loss, nothing moved, out of memory
└── StoreError            (OSError)          a directory that is written: disk full, no permission
    ├── NotAnIndexError                      the directory holds something else
    ├── CorruptIndexError                    a file of the index is missing, truncated or altered
    ├── FingerprintError                     the index was built with another embedder
    └── CheckpointError                      a training checkpoint that is broken or from another config
"""

from __future__ import annotations

from collections.abc import Iterable


class EmbedkitError(Exception):
    """Stand at the root of every error that embedkit raises on purpose."""


class InputError(EmbedkitError, ValueError):
    """Report a wrong argument, file, record or option."""


# Characters of an unknown name that are compared and shown: a longer one is no slip of the pen.
_LONGEST_NAME = 80


class UnknownNameError(InputError, LookupError):
    """Report a name that nothing answers to, with the nearest ones that exist.

    `hint` says what to do at the command line, and `message` all but that; `kind` is what the name should be of.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        import difflib

        names = sorted(set(known))
        lowered = {n.lower(): n for n in names}
        shown = name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
        asked = shown.lower()
        near = [lowered[n] for n in difflib.get_close_matches(asked, lowered, n=3, cutoff=0.6)]
        near += [n for low, n in lowered.items() if name and n not in near and asked in low]
        if near:
            advice = f"did you mean {', '.join(near[:3])}?"
        elif names:
            advice = f"known: {', '.join(names[:20])}."
        else:
            advice = "none is known."
        self.message = f"unknown {kind} {shown!r}: {advice}"
        super().__init__(f"{self.message} {hint}" if hint else self.message)
        self.kind = kind
        self.name = name
        self.suggestions = near[:3]


class CorpusError(InputError):
    """Report a source that cannot be read; `path` and, for line formats, `line` (from 1) say where."""

    def __init__(self, path: str, problem: str, line: int | None = None) -> None:
        where = path if line is None else f"{path}, line {line}"
        super().__init__(f"{where}: {problem}")
        self.path = path
        self.line = line
        self.problem = problem


class MissingExtraError(EmbedkitError, ImportError):
    """Report a missing optional package; the message holds the pip command that mends it."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs the extra [{extra}]: pip install 'embedkit-retrieval[{extra}]'")
        self.extra = extra


class EmbedderError(EmbedkitError, RuntimeError):
    """Report an embedder that broke its promise: NaN, wrong shape, unreadable model files."""


class ServerError(EmbedderError):
    """Report a remote server that failed after all retries."""


class RerankerError(EmbedkitError, RuntimeError):
    """Report a reranker that broke its promise: NaN, a wrong number of scores, a plug-in that does not open."""


class TrainingError(EmbedkitError, RuntimeError):
    """Report training that went wrong: a NaN loss, weights that did not move, memory that does not suffice."""


class StoreError(EmbedkitError, OSError):
    """Report trouble with a directory that is written: a full disk, a missing permission, a broken file."""


class NotAnIndexError(StoreError):
    """Report a directory that is no embedkit index."""


class CorruptIndexError(StoreError):
    """Report an index file that is missing, truncated or altered."""


class FingerprintError(StoreError):
    """Report an index that another embedder built."""


class CheckpointError(StoreError):
    """Report a training checkpoint that is broken or that another config wrote."""
