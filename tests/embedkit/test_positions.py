"""RoPE base and sliding window by option, against models whose config.json says the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from embedkit.embedders.transformer import TransformerEmbedder
from embedkit.errors import InputError
from tests.embedkit.tiny_models import BERT, GEMMA, LLAMA, QWEN3, save_model

TEXT = (
    "The cook adds salt, pepper and two spoons of oil to the soup, then waits for an hour while it simmers. "
)
TEXTS = ["salt and pepper", TEXT * 3]


def _changed(folder: Path, to: Path, **changes: Any) -> Path:
    """Copy a model folder, with other values in its config.json."""
    shutil.copytree(folder, to)
    config = json.loads((folder / "config.json").read_text())
    theta = changes.pop("rope_theta", None)
    if theta is not None and "rope_parameters" in config:
        config["rope_parameters"]["rope_theta"] = theta
    elif theta is not None:
        config["rope_theta"] = theta
    (to / "config.json").write_text(json.dumps(config | changes))
    return to


def _vectors(folder: Path, **options: Any) -> Any:
    embedder = TransformerEmbedder.open(str(folder), dtype="float32", **options)
    return embedder.encode_document(TEXTS)


@pytest.mark.parametrize(
    ("architecture", "options", "stored"),
    [
        ("Mistral", {"rope_theta": 100.0}, {"rope_theta": 100.0}),
        ("Mistral", {"sliding_window": 6}, {"sliding_window": 6}),
        ("Mistral", {"rope_theta": 500, "sliding_window": 9}, {"rope_theta": 500.0, "sliding_window": 9}),
        ("Llama", {"rope_theta": 100.0}, {"rope_theta": 100.0}),
        (
            "Qwen3",
            {"sliding_window": 6},
            {"sliding_window": 6, "use_sliding_window": True, "layer_types": ["sliding_attention"] * 2},
        ),
    ],
)
def test_an_option_is_worth_what_the_config_says(
    tmp_path: Path, architecture: str, options: dict[str, Any], stored: dict[str, Any]
) -> None:
    """The option gives the vectors of a model stored with that value, and other ones than the model's own."""
    folder = save_model(tmp_path / "own", architecture, QWEN3 if architecture == "Qwen3" else LLAMA)
    expected = _vectors(_changed(folder, tmp_path / "stored", **stored))
    found = _vectors(folder, **options)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (found * _vectors(folder)).sum(axis=1)[1] < 0.9999


def test_a_window_changes_long_texts_alone(tmp_path: Path) -> None:
    """A text shorter than the window keeps its vector."""
    folder = save_model(tmp_path, "Mistral", LLAMA)
    own, narrow = _vectors(folder), _vectors(folder, sliding_window=20)
    np.testing.assert_allclose(own[0], narrow[0], atol=1e-6)
    assert not np.allclose(own[1], narrow[1], atol=1e-4)


def test_gemmas_full_layers_get_the_base(tmp_path: Path) -> None:
    """Where layers of full and of sliding attention have a base each, the vectors change with the full layers'."""
    folder = save_model(tmp_path, "Gemma3Text", GEMMA, layer_types=["sliding_attention", "full_attention"])
    assert not np.allclose(_vectors(folder)[1], _vectors(folder, rope_theta=50.0)[1], atol=1e-4)


def test_other_positions_are_another_fingerprint(tmp_path: Path) -> None:
    """An index built with overridden positions is not searched with the model's own."""
    folder = str(save_model(tmp_path, "Mistral", LLAMA))
    options: list[dict[str, Any]] = [{}, {"rope_theta": 100.0}, {"sliding_window": 9}, {"sliding_window": 10}]
    prints = {TransformerEmbedder.open(folder, **o).fingerprint for o in options}
    assert len(prints) == len(options)


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("Bert", {"rope_theta": 100.0}, "bert has no rotary positions"),
        ("Bert", {"sliding_window": 5}, "bert has no sliding window"),
        ("Llama", {"sliding_window": 5}, "llama has no sliding window"),
        ("Llama", {"rope_theta": 0.5}, "rope_theta 0.5 must be at least 1"),
    ],
)
def test_a_model_without_them_is_refused(
    tmp_path: Path, architecture: str, options: dict[str, Any], message: str
) -> None:
    """A model that knows no rotary positions, or no window, says so rather than ignore the option."""
    folder = save_model(tmp_path, architecture, BERT if architecture == "Bert" else LLAMA)
    with pytest.raises(InputError, match=message):
        TransformerEmbedder.open(str(folder), **options)
