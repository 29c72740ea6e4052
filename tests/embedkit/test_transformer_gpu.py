"""What the transformer embedder promises on CUDA; see docs/gpu-checklist.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedkit.embedders.transformer import TransformerEmbedder
from tests.embedkit.tiny_models import BERT, LLAMA, TEXTS, cosines, save_model

torch = pytest.importorskip("torch", reason="needs the extra [torch]")
pytest.importorskip("transformers", reason="needs the extra [torch]")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.mark.parametrize(("architecture", "specials"), [("Bert", BERT), ("Mistral", LLAMA)])
def test_cuda_vectors_equal_cpu_vectors(tmp_path: Path, architecture: str, specials: Any) -> None:
    """Float32 on CUDA is the CPU's to 1e-4; bfloat16 and float16 stay within cosine 0.999."""
    folder = str(save_model(tmp_path, architecture, specials))
    expected = TransformerEmbedder.open(folder, dtype="float32", device="cpu").encode_document(TEXTS)
    exact = TransformerEmbedder.open(folder, dtype="float32", device="cuda").encode_document(TEXTS)
    assert np.abs(exact - expected).max() < 1e-4
    for dtype in ("bfloat16", "float16"):
        rounded = TransformerEmbedder.open(folder, dtype=dtype, device="cuda").encode_document(TEXTS)
        assert cosines(rounded, expected).min() >= 0.999


def test_full_memory_halves_the_budget(tmp_path: Path) -> None:
    """With most of the card taken, a budget far too large is halved until the texts fit; vectors are the same."""
    folder = str(save_model(tmp_path, "Bert", BERT))
    texts = TEXTS * 300
    expected = TransformerEmbedder.open(folder, dtype="float32", device="cuda").encode_document(texts)
    embedder = TransformerEmbedder.open(folder, dtype="float32", device="cuda", token_budget=10**9)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(200e6 / total, 1.0))
    try:
        torch.cuda.empty_cache()
        vectors = embedder.encode_document(texts)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    backend: Any = embedder._backend
    assert backend.run_batch.budget < 10**9, "memory never ran out: the test shows nothing on this card"
    assert np.abs(vectors - expected).max() < 1e-4


def test_every_gpu_gives_the_vectors_of_one(tmp_path: Path) -> None:
    """device="cuda:all" equals device="cuda"."""
    folder = str(save_model(tmp_path, "Mistral", LLAMA))
    single = TransformerEmbedder.open(folder, dtype="float32", device="cuda")
    every = TransformerEmbedder.open(folder, dtype="float32", device=["cuda:0", "cuda:0"])
    assert np.abs(every.encode_document(TEXTS * 9) - single.encode_document(TEXTS * 9)).max() < 1e-5
    every = TransformerEmbedder.open(folder, dtype="float32", device="cuda:all")
    assert np.abs(every.encode_document(TEXTS * 9) - single.encode_document(TEXTS * 9)).max() < 1e-5
