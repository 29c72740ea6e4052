"""A BERT exported to the bundled format: few bits, the same vectors, or a refusal."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from embedkit.contract import Template
from embedkit.embedders.openvino import OpenVINOEmbedder
from embedkit.embedders.openvino_graph import unpack_matrices
from embedkit.embedders.saved import Golden, SavedModel
from embedkit.errors import EmbedderError, InputError, TrainingError
from embedkit_trainer.saving.openvino import BundleOptions, Exported, export_openvino
from embedkit_trainer.saving.openvino_graph import pack, quantise, unpack
from tests.embedkit.compact_tokenizers import texts, tokenizer

DIM, LAYERS, HEADS, INNER, POSITIONS = 64, 2, 4, 96, 128
SCRIPT = Path(__file__).parents[3] / "scripts" / "export_openvino.py"
Weights = dict[str, NDArray[np.float32]]
OPTIONS = BundleOptions(max_length=60, matryoshka_dims=(16, 32))


def _weights(vocabulary: int) -> Weights:
    draw = np.random.default_rng(0)

    def made(*shape: int, mean: float = 0.0) -> NDArray[np.float32]:
        values: NDArray[np.float32] = (mean + 0.1 * draw.standard_normal(shape)).astype(np.float32)
        return values

    found = {
        "embeddings.word_embeddings.weight": made(vocabulary, DIM),
        "embeddings.position_embeddings.weight": made(POSITIONS, DIM),
        "embeddings.token_type_embeddings.weight": made(2, DIM),
    }
    names = [("embeddings.LayerNorm", 0, DIM)]
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}"
        names += [(f"{layer}.attention.self.{part}", DIM, DIM) for part in ("query", "key", "value")]
        names += [
            (f"{layer}.attention.output.dense", DIM, DIM),
            (f"{layer}.attention.output.LayerNorm", 0, DIM),
        ]
        names += [(f"{layer}.intermediate.dense", DIM, INNER), (f"{layer}.output.dense", INNER, DIM)]
        names += [(f"{layer}.output.LayerNorm", 0, DIM)]
    for name, columns, rows in names:
        found[f"{name}.weight"] = made(rows, columns) if columns else made(rows, mean=1.0)
        found[f"{name}.bias"] = made(rows)
    return found


def _forward(w: Weights, places: NDArray[np.float32], ids: list[int]) -> NDArray[np.float32]:
    """Return the unit vector of one row of ids by plain NumPy; `places` are positions and token type together."""

    def norm(x: NDArray[Any], name: str) -> NDArray[Any]:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-12)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: NDArray[Any], name: str) -> NDArray[Any]:
        return x @ w[f"{name}.weight"].T.astype(np.float64) + w[f"{name}.bias"]

    x = norm(w["embeddings.word_embeddings.weight"][ids] + places[: len(ids)], "embeddings.LayerNorm")
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}"
        q, k, v = (
            linear(x, f"{layer}.attention.self.{part}").reshape(len(ids), HEADS, -1).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = np.exp(q @ k.transpose(0, 2, 1) / math.sqrt(DIM // HEADS))
        a = (scores / scores.sum(-1, keepdims=True)) @ v
        a = linear(a.transpose(1, 0, 2).reshape(len(ids), DIM), f"{layer}.attention.output.dense")
        x = norm(a + x, f"{layer}.attention.output.LayerNorm")
        h = linear(x, f"{layer}.intermediate.dense")
        h = h * (1 + np.vectorize(math.erf)(h / math.sqrt(2))) / 2
        x = norm(linear(h, f"{layer}.output.dense") + x, f"{layer}.output.LayerNorm")
    pooled = x.mean(0)
    unit: NDArray[np.float32] = (pooled / np.linalg.norm(pooled)).astype(np.float32)
    return unit


def _rounded(w: Weights) -> tuple[Weights, NDArray[np.float32]]:
    """Return the weights as they are stored, and the positions."""
    places = w["embeddings.position_embeddings.weight"] + w["embeddings.token_type_embeddings.weight"][0]
    stored = {}
    for name, value in w.items():
        if name.startswith("encoder") and value.ndim == 2:
            q, scale = quantise(value)
            stored[name] = q * scale
        elif name == "embeddings.word_embeddings.weight":
            stored[name] = unpack(*pack(value))
        else:
            stored[name] = value
    return stored, places.astype(np.float16).astype(np.float32)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny seeded BERT with a WordPiece tokenizer."""
    folder = tmp_path_factory.mktemp("source")
    words = tokenizer()
    words.save(str(folder / "tokenizer.json"))
    save_file(_weights(words.get_vocab_size()), str(folder / "model.safetensors"))
    config = {
        "model_type": "bert", "hidden_act": "gelu", "layer_norm_eps": 1e-12, "hidden_size": DIM, "pad_token_id": 0,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "max_position_embeddings": POSITIONS,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def exported(source: Path) -> Exported:
    """The tiny model in the bundled format."""
    return export_openvino(source, source.parent / "exported", OPTIONS, texts=texts()[:20])


def _ids(text: str) -> list[int]:
    ids = tokenizer().encode(text).ids
    return ids if len(ids) <= 60 else [*ids[:59], ids[-1]]


def test_four_bits_are_what_a_row_says() -> None:
    """Packing and unpacking keeps every value within a step of its group, zeros and constant groups exact."""
    table = np.random.default_rng(1).standard_normal((50, 96)).astype(np.float32)
    table[0] = 0
    table[1, :32] = 0.5
    packed, scales = pack(table)
    assert (packed.shape, scales.shape) == ((50, 50), (50, 3))
    back = unpack(packed, scales)
    assert (back[0] == 0).all()
    np.testing.assert_allclose(back[1, :32], 0.5, rtol=1e-2)
    error = np.linalg.norm(back - table) / np.linalg.norm(table)
    assert error < 0.09
    groups = np.abs(back - table).reshape(50, 3, 32).max(-1)
    span = np.ptp(np.pad(table.reshape(50, 3, 32), ((0, 0), (0, 0), (0, 1))), axis=-1)
    assert (groups <= 0.2 * span + 1e-6).all()


def test_vectors_equal_the_rounded_weights(source: Path, exported: Exported) -> None:
    """Queries and batches have the vectors that NumPy computes from the unpacked weights; bf16 comes close."""
    rows = texts()[:40]
    weights, places = _rounded(_weights(tokenizer().get_vocab_size()))
    expected = np.array([_forward(weights, places, _ids(row)) for row in rows])
    plain = OpenVINOEmbedder(exported.folder, precision="f32")
    np.testing.assert_allclose(plain.encode_document(rows), expected, atol=2e-5)
    np.testing.assert_allclose(plain.encode_query(rows[:1]), expected[:1], atol=2e-5)
    usual = OpenVINOEmbedder(exported.folder).encode_document(rows)
    assert (usual * expected).sum(1).min() > 0.998
    full = _weights(tokenizer().get_vocab_size())
    both = full["embeddings.position_embeddings.weight"] + full["embeddings.token_type_embeddings.weight"][0]
    assert (np.array([_forward(full, both, _ids(row)) for row in rows]) * expected).sum(1).mean() > 0.98


def test_the_table_stays_packed(exported: Exported) -> None:
    """Preparing the batch graph unpacks the matrices and leaves the table in bytes."""
    import openvino

    model = openvino.Core().read_model(str(exported.folder / "model.xml"))
    unpack_matrices(model)
    constants = [n for n in model.get_ordered_ops() if n.get_type_name() == "Constant"]
    kinds = [(str(n.get_element_type()), list(n.shape)) for n in constants]
    rows = tokenizer().get_vocab_size()
    assert [shape for kind, shape in kinds if "uint8" in kind] == [[rows, DIM // 2 + 1]]
    assert not [shape for kind, shape in kinds if "int8_t" in kind and "uint8" not in kind]


def test_the_folder_is_as_small_as_its_bits(exported: Exported) -> None:
    """The weights take 4.5 bits and a scale a group in the table, 8 elsewhere; the size told is that on the disk."""
    rows = tokenizer().get_vocab_size()
    table = rows * (DIM // 2 + 1 + 2 * DIM // 32)
    body = LAYERS * (4 * DIM * DIM + 2 * DIM * INNER)
    small = 4 * LAYERS * (20 * DIM + 4 * INNER) + 2 * DIM * 64 + 4096
    assert (exported.folder / "model.bin").stat().st_size < table + body + small
    assert exported.size == sum(f.stat().st_size for f in exported.folder.iterdir())
    assert {f.name for f in exported.folder.iterdir()} == {
        "embedkit_model.json", "model.bin", "model.xml", "tokenizer.bin",
    }  # fmt: skip


def test_every_file_enters_the_fingerprint(source: Path, exported: Exported, tmp_path: Path) -> None:
    """A second export has the same fingerprint; another tokenizer file, graph or weight another one."""
    again = export_openvino(source, tmp_path / "again", replace(OPTIONS, name="exported")).folder
    fingerprint = OpenVINOEmbedder(exported.folder).fingerprint
    assert OpenVINOEmbedder(again).fingerprint == fingerprint
    for name in ("tokenizer.bin", "model.xml", "model.bin"):
        good = (again / name).read_bytes()
        (again / name).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        assert OpenVINOEmbedder(again).fingerprint != fingerprint, name
        (again / name).write_bytes(good)


def test_a_broken_vocabulary_is_one_error(source: Path, tmp_path: Path) -> None:
    """Encoding with a truncated vocabulary file, or with none, gives one EmbedderError that names it."""
    folder = export_openvino(source, tmp_path / "m", OPTIONS).folder
    whole = (folder / "tokenizer.bin").read_bytes()
    (folder / "tokenizer.bin").write_bytes(whole[:-5])
    with pytest.raises(EmbedderError, match="tokenizer.bin is damaged"):
        OpenVINOEmbedder(folder).encode_query(["tides"])
    (folder / "tokenizer.bin").unlink()
    with pytest.raises(EmbedderError, match="lacks tokenizer.bin"):
        OpenVINOEmbedder(folder)


def test_the_older_form_of_folder_gives_the_same_vectors(
    source: Path, exported: Exported, tmp_path: Path
) -> None:
    """With tokenizer.json in the place of tokenizer.bin, and in its stead, a folder encodes alike."""
    older = replace(OPTIONS, compact_tokenizer=False)
    folder = tmp_path / "m"
    export_openvino(source, folder, OPTIONS)
    export_openvino(source, folder, older)
    assert (folder / "tokenizer.json").is_file()
    assert not (folder / "tokenizer.bin").exists()
    rows = texts()[::30]
    old, new = OpenVINOEmbedder(folder, precision="f32"), OpenVINOEmbedder(exported.folder, precision="f32")
    np.testing.assert_array_equal(old.encode_document(rows), new.encode_document(rows))
    assert old.count_tokens(rows) == new.count_tokens(rows)
    eight = export_openvino(source, tmp_path / "eight", replace(OPTIONS, table_bits=8))
    assert eight.mean_cosine > exported.mean_cosine


def test_a_trained_folder_brings_its_record(source: Path, tmp_path: Path) -> None:
    """Template, task and length come from embedkit.json, and a golden vector of another model is refused."""
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    template = Template(instruct="Instruct: {instruction}\nQuery: {query}")
    weights = _weights(tokenizer().get_vocab_size())
    places = (
        weights["embeddings.position_embeddings.weight"]
        + weights["embeddings.token_type_embeddings.weight"][0]
    )
    golden = [
        Golden.of(text, "document", None, _ids(text), _forward(weights, places, _ids(text)))
        for text in ("the tide", "月の引力")
    ]
    record = SavedModel(
        base="tiny", pooling="mean", template=template, query_length=30, document_length=60,
        instruction_trained=True, golden=tuple(golden),
    )  # fmt: skip
    record.write(tmp_path)
    folder = export_openvino(tmp_path, tmp_path / "out", BundleOptions(matryoshka_dims=(16, 32))).folder
    card = json.loads((folder / "embedkit_model.json").read_text())
    assert card["template"] == asdict(template)
    assert (card["max_length"], card["default_task"], card["instruction_trained"]) == (60, None, True)
    assert card["matryoshka_dims"] == [32, 16]
    info = OpenVINOEmbedder(folder).info
    assert (info.template, info.max_length, info.name) == (template, 60, "out")
    replace(record, golden=(golden[0], replace(golden[0], ids=golden[1].ids))).write(tmp_path)
    with pytest.raises(EmbedderError, match="is not the one trained"):
        export_openvino(tmp_path, tmp_path / "other", OPTIONS)
    assert not (tmp_path / "other").exists()


def test_what_the_format_cannot_hold_is_refused(source: Path, tmp_path: Path) -> None:
    """Another architecture, too long texts, odd dimensions and missing weights each give one InputError."""
    config = json.loads((source / "config.json").read_text())
    for changes, options, match in (
        ({"model_type": "roberta"}, OPTIONS, "model_type 'roberta'"),
        ({"hidden_act": "relu"}, OPTIONS, "hidden_act 'relu'"),
        ({"num_hidden_layers": 3}, OPTIONS, "lacks the weight 'encoder.layer.2"),
        ({}, replace(OPTIONS, max_length=500), "max_length is 500"),
        ({}, replace(OPTIONS, matryoshka_dims=(64,)), "matryoshka_dims"),
        ({}, replace(OPTIONS, table_bits=3), "table_bits is 3"),
    ):
        for file in source.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(InputError, match=match):
            export_openvino(tmp_path, tmp_path / "out", options)
        assert not (tmp_path / "out").exists()


def test_too_coarse_a_model_is_refused(source: Path, tmp_path: Path) -> None:
    """A model whose rounded vectors differ too much is not written: TrainingError, from the script exit code 2."""
    with pytest.raises(TrainingError, match="differs too much once its weights are rounded"):
        export_openvino(source, tmp_path / "out", replace(OPTIONS, least_cosine=0.99999))
    command = [sys.executable, str(SCRIPT), str(source), "--out", str(tmp_path), "--name", "out"]
    command += ["--max-length", "60", "--least-cosine", "0.99999"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "differs too much" in done.stderr
    assert not list(tmp_path.iterdir())
