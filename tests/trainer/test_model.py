"""The model in training: what it loads, what trains, and that it computes what plain transformers computes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedkit.contract import Pooling, Template
from embedkit.errors import EmbedderError, InputError
from embedkit_trainer.collate import pack, pad
from embedkit_trainer.config.records import LoraConfig, ModelConfig
from embedkit_trainer.model import load_model, load_tokens
from tests.embedkit.tiny_models import (
    BERT,
    GEMMA,
    LLAMA,
    QWEN3,
    TEXTS,
    XLMR,
    Specials,
    cosines,
    plain_ids,
    plain_model,
    plain_vectors,
    save_model,
)

CASES: list[tuple[str, Specials, Pooling, tuple[str, ...], tuple[str, ...]]] = [
    ("Bert", BERT, "mean", ("[CLS]",), ("[SEP]",)),
    ("XLMRoberta", XLMR, "cls", ("<s>",), ("</s>",)),
    ("Mistral", LLAMA, "last", ("<s>",), ("</s>",)),
    ("Qwen3", QWEN3, "last", (), ("<|endoftext|>",)),
    ("Gemma3Text", GEMMA, "mean", ("<bos>",), ()),
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny BERT, dropout 0.1."""
    return save_model(tmp_path_factory.mktemp("bert"), "Bert", BERT)


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny Mistral."""
    return save_model(tmp_path_factory.mktemp("mistral"), "Mistral", LLAMA)


def _config(folder: Path, **options: Any) -> ModelConfig:
    return ModelConfig(name=str(folder), **({"template": Template()} | options))


@pytest.mark.parametrize(("architecture", "specials", "pooling", "before", "after"), CASES)
def test_vectors_are_those_of_plain_transformers(
    tmp_path: Path,
    architecture: str,
    specials: Specials,
    pooling: Pooling,
    before: tuple[str, ...],
    after: tuple[str, ...],
) -> None:
    """Ids with special tokens as trained, and padded or packed vectors, equal plain transformers' one text at a time."""
    folder = save_model(tmp_path, architecture, specials)
    expected_ids = [plain_ids(folder, text, before, after) for text in TEXTS]
    expected = plain_vectors(plain_model(folder), expected_ids, pooling)
    for packing in (False, True):
        loaded = load_model(_config(folder, pooling=pooling, dropout=0.0), 128, 128, packing=packing)
        rows = loaded.document_tokens(TEXTS)
        assert [list(r) for r in rows] == expected_ids
        with torch.no_grad():
            vectors = loaded.model((pack if packing else pad)(rows))
        assert vectors.dtype == torch.float32
        assert vectors.shape == (len(TEXTS), loaded.model.dim)
        unit = torch.nn.functional.normalize(vectors, dim=-1).numpy()
        assert np.abs(unit - expected).max() < 1e-5
        assert cosines(unit, expected).min() > 1 - 1e-6


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "weightedmean", "cls", "last"])
def test_every_pooling_padded_and_packed(mistral: Path, pooling: Pooling, packing: bool) -> None:
    """All four poolings read their own row alone, whatever lies beside it."""
    loaded = load_model(_config(mistral, pooling=pooling), 128, 128, packing=packing)
    rows = loaded.query_tokens(TEXTS)
    collate = pack if packing else pad
    with torch.no_grad():
        together = loaded.model(collate(rows))
        states = [
            loaded.model.backbone(input_ids=torch.tensor([list(r)]), **_offsets(r, packing)) for r in rows
        ]
    for vector, output in zip(together, states, strict=True):
        state = output.last_hidden_state[0]
        weights = torch.arange(1.0, len(state) + 1)[:, None]
        expected = {
            "mean": state.mean(0),
            "weightedmean": (state * weights).sum(0) / weights.sum(),
            "cls": state[0],
            "last": state[-1],
        }[pooling]
        assert torch.allclose(vector, expected, atol=1e-5)


def _offsets(row: Any, packing: bool) -> dict[str, Any]:
    if not packing:
        return {}
    return {"row_offsets": torch.tensor([0, len(row)], dtype=torch.int32), "longest_row": len(row)}


def test_lengths_count_special_tokens(bert: Path) -> None:
    """Queries and documents are cut to their own lengths, the EOS kept."""
    _, queries, documents = load_tokens(_config(bert, pooling="mean"), 6, 9)
    for tokens, length in ((queries, 6), (documents, 9)):
        (row,) = tokens([TEXTS[3]])
        assert len(row) == length
        assert [row[-1]] == list(tokens.suffix)


def test_lengths_that_do_not_fit_are_refused(bert: Path) -> None:
    """A length above the model's positions, and one that special tokens fill, are named."""
    with pytest.raises((InputError, EmbedderError), match="258|positions"):
        load_tokens(_config(bert, pooling="mean"), 32, 500)
    with pytest.raises(InputError, match="query_length 2 leaves no room for text: 2 tokens are special"):
        load_tokens(_config(bert, pooling="mean"), 2, 32)


def test_a_dense_layer_is_refused(tmp_path: Path) -> None:
    """A folder that projects its vectors would be trained without its last layer: it is not."""
    folder = tmp_path / "dense"
    save_model(folder, "Bert", BERT)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    for name, values in (
        ("1_Pooling", {"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True}),
        ("2_Dense", {"in_features": 64, "out_features": 8, "bias": False}),
    ):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(values))
    with pytest.raises((InputError, EmbedderError), match="Dense"):
        load_tokens(_config(folder), 32, 32)


def test_dropout_is_overridden(bert: Path) -> None:
    """`dropout` sets every probability of the config; without it the config's own hold."""
    for rate, expected in ((None, 0.1), (0.0, 0.0), (0.3, 0.3)):
        model = load_model(_config(bert, pooling="mean", dropout=rate), 32, 32).model
        rates = {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}
        assert rates == {expected}
        assert model.training


def test_packing_with_attention_dropout_is_refused(bert: Path) -> None:
    """BERT's own dropout of attention has no place in the packed kernel: the error says what to set."""
    with pytest.raises(InputError, match=r"model\.dropout = 0"):
        load_model(_config(bert, pooling="mean"), 32, 32, packing=True)


def test_the_pooler_stays_as_it_came(bert: Path) -> None:
    """BERT's pooler, which no pooling reads, does not train; all else does."""
    model = load_model(_config(bert, pooling="mean"), 32, 32).model
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"backbone.pooler.dense.weight", "backbone.pooler.dense.bias"}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_lora_trains_the_adapter_alone(mistral: Path) -> None:
    """LoRA leaves the vectors of the base at first, and its matrices alone train."""
    config = _config(mistral, tuning="lora", lora=LoraConfig(r=4))
    adapted, plain = load_model(config, 32, 32), load_model(replace(config, tuning="full"), 32, 32)
    trained = [n for n, p in adapted.model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * 7
    assert all("lora_" in n for n in trained)
    rows = adapted.query_tokens(TEXTS)
    with torch.no_grad():
        a, b = (m.model.eval()(pad(rows)) for m in (adapted, plain))
    assert torch.allclose(a, b, atol=1e-6)


def test_bfloat16_keeps_trained_weights_in_float32(mistral: Path) -> None:
    """Whatever the arithmetic, what an optimiser updates is float32: small steps would be rounded away."""
    for tuning in ("full", "lora"):
        model = load_model(_config(mistral, tuning=tuning), 32, 32, precision="bfloat16").model
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    """T5 and its like are named as what is not trained here."""
    import transformers

    save_model(tmp_path, "Bert", BERT)
    transformers.T5Config(vocab_size=50, d_model=16, num_layers=1, num_heads=2, d_ff=16).save_pretrained(
        tmp_path
    )
    with pytest.raises(InputError, match="encoder-decoder"):
        load_model(_config(tmp_path, pooling="mean"), 32, 32)


def test_a_broken_weight_file_is_named(tmp_path: Path) -> None:
    """A weight file that is none gives a sentence with the folder's name."""
    folder = tmp_path / "broken"
    save_model(folder, "Bert", BERT)
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(EmbedderError, match="broken"):
        load_model(_config(folder, pooling="mean"), 32, 32)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    """transformers would make up a tokenizer that knows no word, and every text would be [UNK]."""
    folder = save_model(tmp_path / "model", "Bert", BERT)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(EmbedderError, match="holds no tokenizer file"):
        load_tokens(_config(folder), 32, 32)


def test_missing_layers_are_not_drawn_at_random(tmp_path: Path) -> None:
    """A config that asks for more layers than the file holds is refused: training would begin at noise."""
    folder = save_model(tmp_path / "model", "Bert", BERT)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(EmbedderError, match=r"lacks weights .*encoder\.layer\.2"):
        load_model(_config(folder), 32, 32)


def test_an_adapter_as_base_trains_in_full(tmp_path: Path, mistral: Path) -> None:
    """An adapter folder is merged first, and what it lies over trains: every weight."""
    import peft
    from transformers import AutoModel

    options = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(AutoModel.from_pretrained(mistral), options).save_pretrained(
        str(tmp_path / "adapter")
    )
    model = load_model(_config(tmp_path / "adapter"), 32, 32).model
    assert all(p.requires_grad for p in model.parameters())
