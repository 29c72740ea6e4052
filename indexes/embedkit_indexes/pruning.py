"""What a synchronisation removes: documents that did not come, unless nobody can tell that they are gone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from embedkit.errors import InputError
from embedkit_indexes.corpus.options import ReadReport
from embedkit_indexes.corpus.sources import lies_in
from embedkit_indexes.segment import Segment

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def keep(
    missing: Sequence[NDArray[np.bool_]], segments: Sequence[Segment], report: ReadReport, directory: Path
) -> list[NDArray[np.bool_]]:
    """Return which of the missing documents stay, a mask over each segment's documents.

    They do where their source was not read to its end, and where no more of it are missing than records of it could not
    be read: each may be one of those. Raises InputError for a source of which nothing came, and from which there are documents.
    """
    import numpy as np

    kept = [np.zeros_like(mask) for mask in missing]
    if not (report.failed or report.broken or report.empty):
        return kept
    places = [np.flatnonzero(mask) for mask in missing]
    names = [
        s.documents("source").take(at).to_pylist() if len(at) else []
        for s, at in zip(segments, places, strict=True)
    ]
    counts = Counter(n for own in names for n in own)
    stay = {n for n in counts if counts[n] <= report.broken[n] or any(lies_in(n, f) for f in report.failed)}
    _check_empty(Counter({n: count for n, count in counts.items() if n not in stay}), report, directory)
    for mask, at, own in zip(kept, places, names, strict=True):
        mask[at] = [n in stay for n in own]
    return kept


def _check_empty(gone: Counter[str], report: ReadReport, directory: Path) -> None:
    """A folder without any document is a disk that is not mounted more often than it is an order to delete all."""
    for place in sorted(report.empty):
        own = {source: count for source, count in gone.items() if lies_in(source, place)}
        if own:
            raise InputError(
                f"{place} holds no document now, and {sum(own.values()):,} of {directory} came from it; nothing was "
                "removed: mount or mend it and run it again, or first delete them with "
                f"`embedkit delete {directory}{_named(place, place in own)}`"
            )


def _named(place: str, is_file: bool) -> str:
    if is_file:
        return f" --source {place}"
    return "" if place == os.curdir else f" --where 'source startswith \"{place.rstrip(os.sep)}{os.sep}\"'"


def nothing_to_index(report: ReadReport | None) -> str:
    """Return why there is nothing to index."""
    summary = f" ({report.summary()})" if report else ""
    return f"the corpus holds no text to index{summary}: check the source and its format"
