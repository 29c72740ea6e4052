"""Classification: how well does a small logistic regression on the vectors tell labels apart?"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from embedkit.errors import InputError, MissingExtraError
from embedkit.evaluation.protocol import GroupScore, KindReport, ProtocolEncoder, group_rows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedkit.evaluation.records import Labelled

_ITERATIONS = 100


def evaluate_classification(
    encoder: ProtocolEncoder,
    train: Sequence[Labelled],
    test: Sequence[Labelled],
    *,
    per_label: int = 8,
    experiments: int = 10,
    seed: int = 0,
) -> KindReport:
    """Measure accuracy and macro F1 on `test`, the mean over seeded experiments (MTEB's protocol).

    Each experiment fits a logistic regression (100 iterations) on `per_label` examples drawn for each label of
    `train`, all there are where a label has fewer. Under the protocol "paper" vectors are not normalised, as the
    authors of E5-mistral found slightly better; `facts` say which lengths the embedder gave. Raises InputError for
    fewer than 2 labels or a label that `train` lacks, MissingExtraError without scikit-learn.
    """
    labels = sorted({r.label for r in train})
    unseen = sorted({r.label for r in test} - set(labels))
    if len(labels) < 2:
        raise InputError(f"the training texts have {len(labels)} label ({labels[0]!r}): give at least 2")
    if unseen:
        raise InputError(
            f"{len(unseen)} labels of the test texts, such as {unseen[0]!r}, are none of the training texts'"
        )
    chosen = [draw(train, per_label, seed + i) for i in range(experiments)]
    used = sorted({i for rows in chosen for i in rows})
    normalize = encoder.protocol != "paper"
    known = encoder.items([train[i].text for i in used], normalize=normalize)
    asked = encoder.items([r.text for r in test], normalize=normalize)
    place = {row: i for i, row in enumerate(used)}
    groups = group_rows([r.lang for r in test])
    per_group: dict[str, list[tuple[float, float]]] = {"": [], **{name: [] for name in groups}}
    truth = [r.label for r in test]
    for rows in chosen:
        answers = fit_predict(known[[place[i] for i in rows]], [train[i].label for i in rows], asked, seed)
        per_group[""].append(_scores(truth, answers))
        for name, members in groups.items():
            per_group[name].append(_scores([truth[i] for i in members], [answers[i] for i in members]))
    facts = {"per_label": per_label, "experiments": experiments, "labels": len(labels), **lengths(asked)}
    overall, *rest = (
        _summary(name or "overall", len(groups.get(name, test)), scores) for name, scores in per_group.items()
    )
    return KindReport(overall, tuple(rest), facts)


def draw(rows: Sequence[Labelled], per_label: int, seed: int) -> list[int]:
    """Return the positions of `per_label` rows of every label, in their order, the same ones for the same seed."""
    taken: dict[str, int] = {}
    chosen: list[int] = []
    for i in random.Random(seed).sample(range(len(rows)), len(rows)):
        label = rows[i].label
        if taken.get(label, 0) < per_label:
            taken[label] = taken.get(label, 0) + 1
            chosen.append(i)
    return sorted(chosen)


def fit_predict(
    known: NDArray[np.float32], labels: Sequence[str], asked: NDArray[np.float32], seed: int
) -> list[str]:
    """Fit a logistic regression on `known` `[n, d]` and return the labels it gives `asked` `[m, d]`."""
    import warnings

    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
    except ImportError as e:
        raise MissingExtraError("classification", "eval") from e
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 100 iterations are the protocol
        model = LogisticRegression(max_iter=_ITERATIONS, random_state=seed).fit(known, list(labels))
    return [str(answer) for answer in model.predict(asked)]


def lengths(vectors: NDArray[np.float32]) -> dict[str, bool | float]:
    """Return whether all rows `[n, d]` are of unit length, and the shortest and longest length."""
    import numpy as np

    norms = np.linalg.norm(vectors, axis=1)
    return {
        "normalized": bool(np.allclose(norms, 1, atol=1e-3)),
        "shortest": float(norms.min()),
        "longest": float(norms.max()),
    }


def _scores(truth: Sequence[str], answers: Sequence[str]) -> tuple[float, float]:
    from sklearn.metrics import f1_score

    accuracy = sum(a == b for a, b in zip(truth, answers, strict=True)) / len(truth)
    return accuracy, float(f1_score(truth, answers, average="macro", zero_division=0))


def _summary(name: str, count: int, scores: Sequence[tuple[float, float]]) -> GroupScore:
    import numpy as np

    accuracy, f1 = np.mean(scores, axis=0)
    spread = np.std([a for a, _ in scores])
    return GroupScore(name, count, {"accuracy": float(accuracy), "f1": float(f1), "std": float(spread)})
