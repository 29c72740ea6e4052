"""What rerankers promise on CUDA; see docs/gpu-checklist.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embedkit import get_reranker
from tests.embedkit.tiny_models import TEXTS
from tests.embedkit.tiny_rerankers import QUERY, save_causal_reranker, save_cross_encoder

torch = pytest.importorskip("torch", reason="needs the extra [torch]")
pytest.importorskip("transformers", reason="needs the extra [torch]")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.mark.parametrize("kind", ["cross-encoder", "causal"])
def test_cuda_scores_equal_cpu_scores(kind: str, tmp_path: Path) -> None:
    """Float32 on CUDA gives the CPU's scores to 1e-4; the card's own arithmetic keeps their order but for near ties."""
    save = save_cross_encoder if kind == "cross-encoder" else save_causal_reranker
    folder = str(save(tmp_path / "model"))
    texts = TEXTS * 20
    expected = get_reranker(folder, dtype="float32", device="cpu").score(QUERY, texts)
    np.testing.assert_allclose(
        get_reranker(folder, dtype="float32", device="cuda").score(QUERY, texts), expected, atol=1e-4
    )
    rounded = get_reranker(folder, device="cuda").score(QUERY, texts)
    assert np.corrcoef(rounded, expected)[0, 1] > 0.999
