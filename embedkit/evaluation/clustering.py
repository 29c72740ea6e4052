"""Clustering: do k-means clusters of the vectors agree with the labels?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from embedkit.errors import InputError, MissingExtraError
from embedkit.evaluation.protocol import GroupScore, KindReport, ProtocolEncoder, group_rows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedkit.evaluation.records import Labelled

_BATCH = 512
_MOST = 16_384  # texts of one experiment, as in MTEB


def evaluate_clustering(
    encoder: ProtocolEncoder, rows: Sequence[Labelled], *, experiments: int = 10, seed: int = 0
) -> KindReport:
    """Measure the V-measure of mini-batch k-means, the mean over seeded experiments, overall and by language.

    As many clusters are made as there are labels. A group with fewer than 2 labels has no measure. Raises
    InputError where all texts have one label, MissingExtraError without scikit-learn.
    """
    labels = [r.label for r in rows]
    if len(set(labels)) < 2:
        raise InputError(
            f"all {len(labels)} texts have the label {labels[0]!r}: clustering needs at least 2 labels"
        )
    vectors = encoder.items([r.text for r in rows])
    groups = tuple(
        _score(name, vectors[members], [labels[i] for i in members], experiments, seed)
        for name, members in group_rows([r.lang for r in rows]).items()
    )
    facts = {"experiments": experiments, "labels": len(set(labels))}
    return KindReport(_score("overall", vectors, labels, experiments, seed), groups, facts)


def _score(
    name: str, vectors: NDArray[np.float32], labels: Sequence[str], experiments: int, seed: int
) -> GroupScore:
    import numpy as np

    if len(set(labels)) < 2:
        return GroupScore(name, len(labels), {"v_measure": None, "std": None})
    found = [v_measure(vectors, labels, seed + i) for i in range(experiments)]
    return GroupScore(
        name, len(labels), {"v_measure": float(np.mean(found)), "std": float(np.std(found))}
    )  # fmt: skip


def v_measure(vectors: NDArray[np.float32], labels: Sequence[str], seed: int) -> float:
    """Cluster `[n, d]` vectors (at most 16,384, drawn by the seed) and return the V-measure against the labels."""
    import numpy as np

    try:
        from sklearn.cluster import MiniBatchKMeans
        from sklearn.metrics import v_measure_score
    except ImportError as e:
        raise MissingExtraError("clustering", "eval") from e
    truth = np.asarray(labels)
    if len(truth) > _MOST:
        drawn = np.random.default_rng(seed).choice(len(truth), _MOST, replace=False)
        vectors, truth = vectors[drawn], truth[drawn]
    model = MiniBatchKMeans(
        n_clusters=len(np.unique(truth)),
        batch_size=_BATCH,
        init="k-means++",
        n_init=1,
        random_state=seed,
    )
    return float(v_measure_score(truth, model.fit_predict(vectors)))
