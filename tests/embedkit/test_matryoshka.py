"""Vectors cut to their first numbers: what they are, which lengths are taken, what is remembered."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedkit import get_embedder
from embedkit.embedders.matryoshka import DimWarning, listed_dims
from embedkit.errors import InputError
from embedkit.registry import reopen_embedder
from tests.embedkit.tiny_models import BERT, TEXTS, save_model


def _whole() -> Any:
    return get_embedder("bundled", precision="f32")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model with a card that lists lengths, as an exported Matryoshka model has it."""
    folder = tmp_path_factory.mktemp("models") / "trained"
    shutil.copytree(_whole()._folder, folder)
    card = json.loads((folder / "embedkit_model.json").read_text())
    (folder / "embedkit_model.json").write_text(json.dumps({**card, "matryoshka_dims": [256, 128]}))
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT of 64 dimensions that lists no lengths."""
    pytest.importorskip("torch", reason="needs the extra [torch]")
    return save_model(tmp_path_factory.mktemp("tiny"), "Bert", BERT)


def _check_prefixes(whole: Any, cut: Any, dim: int) -> None:
    assert (cut.info.dim, cut.info.full_dim) == (dim, whole.info.dim)
    assert cut.info.matryoshka_dims == whole.info.matryoshka_dims
    assert cut.fingerprint != whole.fingerprint
    for role in ("encode_query", "encode_document"):
        expected = getattr(whole, role)(TEXTS)[:, :dim]
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        vectors = getattr(cut, role)(TEXTS)
        assert vectors.shape == (len(TEXTS), dim) and vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_vectors_of_the_light_embedder_are_the_first_numbers_at_unit_length(trained: Path) -> None:
    """dim keeps the first numbers of one text's vector and of many, normalised again, without a warning."""
    whole = get_embedder(str(trained), precision="f32")
    assert whole.info.matryoshka_dims == (256, 128) and whole.fingerprint == _whole().fingerprint
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cut = get_embedder(str(trained), precision="f32", dim=128)
    _check_prefixes(whole, cut, 128)
    alone = cut.encode_query(TEXTS[:1])
    np.testing.assert_allclose(alone, cut.encode_query(TEXTS)[:1], atol=1e-4)
    assert cut.fingerprint != get_embedder(str(trained), dim=256).fingerprint


def test_vectors_of_a_transformer_are_the_first_numbers_at_unit_length(tiny: Path) -> None:
    """A transformer folder that lists no lengths is cut too, and whoever asks for it is told so."""
    whole = get_embedder(str(tiny), dtype="float32")
    with pytest.warns(DimWarning, match="does not say .* first 24 of 64 numbers"):
        cut = get_embedder(str(tiny), dtype="float32", dim=24)
    _check_prefixes(whole, cut, 24)


def test_the_whole_length_is_the_embedder_without_the_option(trained: Path) -> None:
    """All the numbers, or None, leave description and fingerprint as they are, and warn of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dim in (None, 384):
            assert get_embedder(str(trained), dim=dim).info == get_embedder(str(trained)).info


def test_another_length_than_the_listed_ones_warns_once(trained: Path) -> None:
    """A length between the listed ones is allowed with a warning; an index that is opened again repeats none."""
    with pytest.warns(DimWarning, match="cut to 256 or 128: the first 200 of 384 numbers"):
        asked = get_embedder(str(trained), dim=200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reopen_embedder(str(trained), {"dim": 200}).fingerprint == asked.fingerprint


@pytest.mark.parametrize("dim", [0, -1, 385, 1.5, "128", "many", True, [128]])
def test_what_is_no_length_is_refused(trained: Path, dim: Any) -> None:
    """The message names the value; 385 is more than the model has."""
    with pytest.raises(InputError, match=r"dim is .*: use a whole number from 1 to 384") as caught:
        get_embedder(str(trained), dim=dim)
    assert repr(dim) in str(caught.value)


def test_what_is_no_length_of_a_transformer_is_refused(tiny: Path) -> None:
    """The transformer refuses with the same sentence, what is no number at all before it loads weights."""
    with pytest.raises(InputError, match="dim is 65: use a whole number from 1 to 64"):
        get_embedder(str(tiny), dim=65)
    with pytest.raises(InputError, match="dim is 'x': use a whole number"):
        get_embedder("transformer:no/such", dim="x")


def test_a_server_refuses_a_dim_that_is_none() -> None:
    """The openai embedder, whose dim is what the server is expected to give, takes no zero for "unknown"."""
    with pytest.raises(InputError, match="dim is 0: use a whole number"):
        get_embedder("openai:some-model", base_url="http://localhost:1", dim=0)


def test_a_folder_lists_lengths_as_vllm_and_sentence_transformers_write_them(
    tiny: Path, tmp_path: Path
) -> None:
    """Both are read; truncate_dim alone cuts nothing, so that the fingerprint stays what it was."""
    folder = tmp_path / "listing"
    shutil.copytree(tiny, folder)
    (folder / "config_sentence_transformers.json").write_text('{"truncate_dim": 16}')
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "matryoshka_dimensions": [8, 32, 64]}))
    embedder = get_embedder(str(folder))
    assert (embedder.info.dim, embedder.info.matryoshka_dims) == (64, (32, 16, 8))
    assert embedder.fingerprint == get_embedder(str(tiny)).fingerprint
    with warnings.catch_warnings():
        warnings.simplefilter("error", DimWarning)
        assert get_embedder(str(folder), dim=16).info.dim == 16
    assert listed_dims(tmp_path, {}) == ()
