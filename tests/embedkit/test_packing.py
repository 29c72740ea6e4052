"""The lean CPU forward equals transformers' own, and steps aside where it would not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedkit.embedders.packing import PackedBert
from embedkit.embedders.transformer import TransformerEmbedder
from embedkit.errors import EmbedderError
from tests.embedkit.tiny_models import BERT, TEXTS, XLMR, plain_model, save_model

torch = pytest.importorskip("torch", reason="needs the extra [torch]")
pytest.importorskip("transformers", reason="needs the extra [torch]")

ROWS = [[2, 5, 6, 7, 3], [2, 9, 3], [2, *range(10, 60), 3], [2, *[8] * 14, 3]]


def _states(model: Any, ids: list[int]) -> Any:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).last_hidden_state[0]


@pytest.mark.parametrize("rows", [ROWS, ROWS[2:3], ROWS[3:]], ids=["mixed", "one", "a whole step"])
@pytest.mark.parametrize(
    ("architecture", "specials"), [("Bert", BERT), ("XLMRoberta", XLMR)], ids=["bert", "xlm-roberta"]
)
def test_states_equal_transformers(
    tmp_path: Path, architecture: str, specials: Any, rows: list[list[int]]
) -> None:
    """Every token's state, in batches with and without padding, is transformers' to 1e-4."""
    model = plain_model(save_model(tmp_path, architecture, specials, num_hidden_layers=3))
    assert PackedBert.fits(model)
    with torch.inference_mode():
        packed = PackedBert(model)(rows)
    for ids, states in zip(rows, packed, strict=True):
        assert (states[: len(ids)] - _states(model, ids)).abs().max() < 1e-4


def test_longest_sequence_ends_with_the_positions(tmp_path: Path) -> None:
    """A text that uses every position (258, no multiple of 16) is encoded without running over the table."""
    model = plain_model(save_model(tmp_path, "Bert", BERT))
    ids = [2, *[7] * 256, 3]
    with torch.inference_mode():
        states = PackedBert(model)([ids, ids[:5]])
    assert (states[0] - _states(model, ids)).abs().max() < 1e-4


def test_plain_linear_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where oneDNN's packing is not to be had, plain products give the same states."""
    from embedkit.embedders import packing

    model = plain_model(save_model(tmp_path, "Bert", BERT))

    def unpacked(weight: Any, bias: Any) -> Any:
        return packing._Linear(weight, bias, False)

    with torch.inference_mode():
        fast = PackedBert(model)(ROWS)
        monkeypatch.setattr(packing._Linear, "of", unpacked)
        plain = PackedBert(model)(ROWS)
    for ids, a, b in zip(ROWS, fast, plain, strict=True):
        assert (a[: len(ids)] - b[: len(ids)]).abs().max() < 1e-4


@pytest.mark.parametrize(
    "changes", [{"hidden_act": "relu"}, {"hidden_act": "gelu_new"}, {"is_decoder": True}]
)
def test_other_forwards_are_left_to_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    """A BERT with another activation, or a decoder, is not run by this forward."""
    assert not PackedBert.fits(plain_model(save_model(tmp_path, "Bert", BERT, **changes)))


def test_threads_change_no_vector_and_no_setting(tmp_path: Path) -> None:
    """Batches on several threads give the vectors of one thread, and the caller's thread count stays."""
    folder = str(save_model(tmp_path, "Bert", BERT))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = TransformerEmbedder.open(folder, dtype="float32", token_budget=64).encode_document(TEXTS)
        torch.set_num_threads(3)
        shared = TransformerEmbedder.open(folder, dtype="float32", token_budget=64)
        assert np.abs(shared.encode_document(TEXTS) - alone).max() < 1e-6
        assert torch.get_num_threads() == 3
        encoder: Any = shared._backend
        encoder.run_batch.forward = lambda batch: 1 / 0
        with pytest.raises(EmbedderError, match="ZeroDivisionError"):
            shared.encode_document(TEXTS)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
