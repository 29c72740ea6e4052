"""Model folders with broken, cut or missing files: one sentence, and never a model that is partly random."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from embedkit.embedders.transformer import TransformerEmbedder
from embedkit.errors import EmbedderError
from tests.embedkit.tiny_models import BERT, save_model

pytest.importorskip("torch", reason="needs the extra [torch]")


def _config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (_cut, r"cannot be loaded: SafetensorError: .*incomplete"),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "cannot be loaded: SafetensorError"),
    "shapes": (lambda f: _config(f, hidden_size=32), "weights have other shapes than its config.json says"),
    "layers": (
        lambda f: _config(f, num_hidden_layers=5),
        r"lacks weights .* 48, such as encoder\.layer\.2\.",
    ),
    "type": (lambda f: _config(f, model_type="zzz"), "cannot be loaded"),
    "no tokenizer": (
        lambda f: (f / "tokenizer.json").unlink(),
        "instantiate the backend tokenizer from one of: .*[a-z]",
    ),
    "tokenizer": (lambda f: (f / "tokenizer.json").write_text("[]"), "the tokenizer of .* cannot be loaded"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_in_one_line(
    damage: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever transformers raises or only logs becomes one EmbedderError of one line that names the folder."""
    folder = save_model(tmp_path / "model", "Bert", BERT)
    act, message = DAMAGES[damage]
    act(folder)
    with pytest.raises(EmbedderError, match=message) as caught:
        TransformerEmbedder.open(str(folder)).encode_document(["salt"])
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    printed = "".join(capfd.readouterr()).upper()
    assert "MISMATCH" not in printed and "MISSING" not in printed  # the library's own table


def test_a_pooler_may_lack(tmp_path: Path) -> None:
    """A BERT saved without the pooler that no pooling reads, as most are, opens."""
    from safetensors.torch import load_file, save_file

    path = save_model(tmp_path / "model", "Bert", BERT) / "model.safetensors"
    kept = {k: v for k, v in load_file(path).items() if not k.startswith("pooler.")}
    save_file(kept, path, {"format": "pt"})
    assert TransformerEmbedder.open(str(path.parent)).encode_document(["salt"]).shape == (1, 64)


def test_a_models_own_code_that_fails_is_no_bug_of_ours(tmp_path: Path) -> None:
    """An exception in code that trust_remote_code runs is told with the folder's name."""
    folder = save_model(tmp_path / "model", "Bert", BERT)
    _config(folder, model_type="own", auto_map={"AutoConfig": "configuration_own.OwnConfig"})
    (folder / "configuration_own.py").write_text("raise RuntimeError('boom')\n")
    with pytest.raises(EmbedderError, match=r"cannot be loaded: boom"):
        TransformerEmbedder.open(str(folder), trust_remote_code=True)
