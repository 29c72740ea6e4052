"""The file `embedkit.json` of a model that embedkit trained, and the golden vectors it is checked by.

A tokenizer that loses EOS, weights of another run, another pooling: each gives vectors that look like any
others and retrieve nothing. So a trained model brings a few texts with the ids and vectors they had in training.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from embedkit.contract import Pooling, Template
from embedkit.errors import EmbedderError, InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedkit.embedders.batching import Ids
    from embedkit.embedders.tokens import TokenBuilder

FILE = "embedkit.json"
FORMAT = 1
GOLDEN_COSINE = (
    0.999  # bfloat16 arithmetic stays above it; a lost EOS, another pooling or another run does not
)


@dataclass(frozen=True, slots=True)
class Golden:
    """Hold one text as it was in training: its side ("query" or "document"), token ids and unit vector.

    `vector` is the base64 of little-endian float32.
    """

    text: str
    side: str
    instruction: str | None
    ids: tuple[int, ...]
    vector: str

    @classmethod
    def of(
        cls, text: str, side: str, instruction: str | None, ids: Ids, vector: NDArray[np.float32]
    ) -> Golden:
        """Return the record of a text whose vector `[dim]`, of any length but zero, is given."""
        import numpy as np

        unit = vector.astype(np.float64) / np.linalg.norm(vector.astype(np.float64))
        packed = base64.b64encode(unit.astype("<f4").tobytes()).decode("ascii")
        return cls(text, side, instruction, tuple(int(i) for i in ids), packed)

    def unit(self) -> NDArray[np.float32]:
        """Return the unit vector, float32 `[dim]`."""
        import numpy as np

        return np.frombuffer(base64.b64decode(self.vector), dtype="<f4").astype(np.float32)

    def rendered(self, template: Template) -> str:
        """Return the exact string that was encoded."""
        if self.side == "query":
            return template.render_query(self.text, self.instruction)
        return template.render_document(self.text)


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """Name one source that a model was trained on, its licence and how many rows of it there were."""

    name: str
    rows: int
    licence: str = ""


@dataclass(frozen=True, slots=True)
class SavedModel:
    """Say what a trained model is: all that its weights and tokenizer do not say of themselves.

    `base_revision` is a hub commit or `sha256:` and the hash of the base's weights. Lengths count tokens,
    special ones included. `metrics` are named figures (`nDCG@10 nano`), `recipe` is the run's config as text.
    """

    base: str
    pooling: Pooling
    template: Template
    query_length: int
    document_length: int
    base_revision: str = ""
    default_task: str | None = None
    instruction_trained: bool = False
    golden: tuple[Golden, ...] = ()
    sources: tuple[SourceRecord, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    recipe: str = ""
    version: str = ""
    format: int = FORMAT

    @property
    def max_length(self) -> int:
        """The longer of the two lengths: what a text of either side is cut at once the model serves."""
        return max(self.query_length, self.document_length)

    @property
    def commit(self) -> str | None:
        """The hub commit of the base, None where the base is a folder."""
        return self.base_revision if re.fullmatch(r"[0-9a-f]{40}", self.base_revision) else None

    def write(self, folder: Path) -> None:
        """Write `embedkit.json` into `folder`."""
        text = json.dumps(asdict(self), ensure_ascii=False, indent=1)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")


def read_saved(folder: Path) -> SavedModel | None:
    """Return what `embedkit.json` of a folder says, None where there is none. Raises InputError where it is broken."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise InputError(f"{path} cannot be read ({e}): save or fetch the model again") from e
    if not isinstance(values, dict):
        raise InputError(
            f"{path} holds {type(values).__name__}, not an object: save or fetch the model again"
        )
    if values.get("format") != FORMAT:
        raise InputError(
            f"{path} has the format {values.get('format')!r}, this embedkit reads {FORMAT}: "
            "update embedkit, or save the model again"
        )
    known = SavedModel.__dataclass_fields__
    try:
        fields = {k: v for k, v in values.items() if k in known}
        fields["template"] = Template.of(fields["template"])
        fields["golden"] = tuple(Golden(**{**g, "ids": tuple(g["ids"])}) for g in fields["golden"])
        fields["sources"] = tuple(SourceRecord(**s) for s in fields.get("sources", ()))
        saved = SavedModel(**fields)
        _check(saved)
    except (KeyError, TypeError, ValueError, AttributeError) as e:  # InputError is a ValueError
        what = f"lacks {e}" if isinstance(e, KeyError) else str(e)
        raise InputError(f"{path} is broken ({what}): save or fetch the model again") from e
    return saved


def _check(saved: SavedModel) -> None:
    if saved.pooling not in get_args(Pooling):
        raise ValueError(f"pooling {saved.pooling!r}")
    for name in ("query_length", "document_length"):
        if not isinstance(getattr(saved, name), int) or getattr(saved, name) < 1:
            raise ValueError(f"{name} {getattr(saved, name)!r}")
    if saved.default_task is not None and not isinstance(saved.default_task, str):
        raise ValueError(f"default_task {saved.default_task!r}")
    if not saved.golden:
        raise ValueError("no golden texts")
    for golden in saved.golden:
        if golden.side not in ("query", "document") or not isinstance(golden.text, str):
            raise ValueError(f"golden text {golden.text!r} of the side {golden.side!r}")
    dims = {golden.unit().shape[0] for golden in saved.golden}
    if len(dims) != 1 or 0 in dims:
        raise ValueError(f"golden vectors of {sorted(dims)} dimensions")


def check_golden_ids(saved: SavedModel, tokens: TokenBuilder, where: Path) -> None:
    """Raise EmbedderError where a golden text has other token ids than in training."""
    tokens = replace(tokens, max_length=saved.max_length)
    rows = tokens([golden.rendered(saved.template) for golden in saved.golden])
    for golden, row in zip(saved.golden, rows, strict=True):
        if tuple(row) != golden.ids:
            at = next(
                (i for i, (a, b) in enumerate(zip(row, golden.ids, strict=False)) if a != b),
                min(len(row), len(golden.ids)),
            )
            raise EmbedderError(
                f"the tokenizer of {where} is not the one trained with: {golden.side} {golden.text!r} gives "
                f"{len(row)} ids, {_shown(row, at)} at position {at}, and gave {len(golden.ids)}, "
                f"{_shown(golden.ids, at)} there: restore the tokenizer files that were saved with the model"
            )


def check_golden_vectors(
    saved: SavedModel, vectors: NDArray[np.float32], where: Path, least: float = GOLDEN_COSINE
) -> float:
    """Return the least cosine of `vectors` `[n, dim]` with the golden ones; raise EmbedderError below `least`."""
    import numpy as np

    golden = np.stack([g.unit() for g in saved.golden])
    if vectors.shape != golden.shape:
        raise EmbedderError(
            f"the model in {where} gives vectors of dimension {vectors.shape[1]}, in training they had "
            f"{golden.shape[1]}: restore the weights that were saved with it"
        )
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    cosines = (vectors * golden).sum(1, dtype=np.float64) / np.where(norms > 0, norms, np.nan)
    worst = int(np.argmin(np.nan_to_num(cosines, nan=-2.0)))
    found = float(cosines[worst])
    if not found >= least:
        raise EmbedderError(
            f"the model in {where} is not the one trained: {saved.golden[worst].side} "
            f"{saved.golden[worst].text!r} has cosine {found:.4f} with its vector in training, at least {least} "
            "expected: weights, base model or pooling were changed; restore the files saved with it"
        )
    return found


def _shown(ids: Sequence[int], at: int) -> str:
    return str(ids[at]) if at < len(ids) else "none"
