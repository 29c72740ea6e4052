"""Lay vectors out on a plane: a process of its own, of low priority, that reads vectors on stdin and writes points.

A process, because a layout takes seconds to minutes of a core that the server's searches have the first claim to.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PERPLEXITY = 30.0
# Fewer dimensions and steps than t-SNE's usual: docs/experiments.md has what that costs, and what it saves.
_DIM = 50
_STEPS = 300
# t-SNE wants neighbours: fewer points than this stand in a circle.
_FEWEST = 8


def project(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a point within -1 and 1 for each vector, float32 [n, 2]: near vectors near each other (t-SNE, seeded)."""
    import numpy as np

    count = len(vectors)
    if count < _FEWEST:
        angles = np.arange(count) * (2 * np.pi / max(count, 1))
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32) * 0.5
    from openTSNE import TSNE

    axes = _principal(vectors)
    spread = axes[:, :1].std()
    # Equal vectors have no principal axis to begin with.
    start = axes[:, :2] * (1e-4 / spread) if spread > 1e-6 else "random"
    # One thread: with several, the same vectors give another map each time.
    layout = np.asarray(
        TSNE(
            metric="euclidean", initialization=start, perplexity=min(_PERPLEXITY, (count - 1) / 3), n_iter=_STEPS,
            random_state=0, n_jobs=1,
        ).fit(axes)
    )  # fmt: skip
    layout = layout - (layout.min(axis=0) + layout.max(axis=0)) / 2
    points: NDArray[np.float32] = (layout / max(float(np.abs(layout).max()), 1e-9)).astype(np.float32)
    return points


def _principal(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the vectors along their principal axes, widest first, float64 [n, at most 50]."""
    import numpy as np

    centred = vectors - vectors.mean(axis=0, dtype=np.float64)
    _, axes = np.linalg.eigh(centred.T @ centred)
    along: NDArray[np.float64] = centred @ axes[:, ::-1][:, :_DIM]
    return along


def main() -> None:
    """Read vectors as .npy, float32 [n, dim], from stdin; write points as .npy to stdout."""
    import numpy as np

    if hasattr(os, "nice"):
        with suppress(OSError):
            os.nice(5)
    vectors = np.load(BytesIO(sys.stdin.buffer.read()), allow_pickle=False)
    out = BytesIO()
    np.save(out, project(vectors))
    sys.stdout.buffer.write(out.getvalue())


if __name__ == "__main__":
    main()
