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
# t-SNE wants neighbours: fewer points than this stand in a circle.
_FEWEST = 8


def project(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a point within -1 and 1 for each vector, float32 [n, 2]: near vectors near each other (t-SNE, seeded)."""
    import numpy as np

    count = len(vectors)
    if count < _FEWEST:
        angles = np.arange(count) * (2 * np.pi / max(count, 1))
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32) * 0.5
    from sklearn.manifold import TSNE

    # Equal vectors have no principal axis to begin with.
    start = "pca" if np.ptp(vectors, axis=0).max() > 1e-6 else "random"
    layout = TSNE(
        metric="cosine", init=start, perplexity=min(_PERPLEXITY, (count - 1) / 3), random_state=0
    ).fit_transform(vectors)
    layout = layout - (layout.min(axis=0) + layout.max(axis=0)) / 2
    points: NDArray[np.float32] = (layout / max(float(np.abs(layout).max()), 1e-9)).astype(np.float32)
    return points


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
