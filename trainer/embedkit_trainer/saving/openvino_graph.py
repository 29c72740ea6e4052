"""A BERT encoder with mean pooling as an OpenVINO graph, its weights rounded to few bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from embedkit.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float32]

GROUP = 32
_TABLE = "embeddings.word_embeddings.weight"
# A group's range is stretched by these before rounding to 4 bits: cutting the ends off a little costs less than
# coarser steps for all the others. The best one is taken.
_STRETCHES = (0.7, 0.75, 0.8, 0.84, 0.88, 0.91, 0.94, 0.96, 0.98, 1.0)
_ROWS_AT_ONCE = 8192


def quantise(w: Array) -> tuple[NDArray[np.int8], Array]:
    """Round a float32 matrix [rows, columns] to int8 with one float32 scale a row [rows, 1]."""
    import numpy as np

    scale = np.abs(w).max(axis=1, keepdims=True) / 127
    scale[scale == 0] = 1
    return np.clip(np.round(w / scale), -127, 127).astype(np.int8), scale.astype(np.float32)


def pack(table: Array) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Round a table [rows, dim] to 4 bits in groups of 32 values: (packed [rows, h], scales [rows, dim / 32]).

    A value is `(nibble - zero) * scale`; a row's nibbles are its `dim` values, then a zero a group, then one of filling
    where that makes an odd number. Byte i holds nibble i in its low half and nibble h + i in its high half.
    """
    import numpy as np

    rows, dim = table.shape
    groups = dim // GROUP
    half = (dim + groups + 1) // 2
    packed = np.empty((rows, half), np.uint8)
    scales = np.empty((rows, groups), np.float16)
    for start in range(0, rows, _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        values, zeros, scale = _round_groups(table[part].reshape(-1, groups, GROUP))
        nibbles = np.zeros((len(values), 2 * half), np.uint8)
        nibbles[:, :dim] = values.reshape(-1, dim)
        nibbles[:, dim : dim + groups] = zeros[..., 0]
        packed[part] = nibbles[:, :half] | nibbles[:, half:] << 4
        scales[part] = scale[..., 0]
    return packed, scales


def _round_groups(x: Array) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float16]]:
    """Return nibbles [rows, groups, 32], zeros and scales [rows, groups, 1] with the least squared error."""
    import numpy as np

    low, high = (np.minimum(x.min(-1, keepdims=True), 0), np.maximum(x.max(-1, keepdims=True), 0))
    best = np.zeros(x.shape, np.uint8)
    best_zero, best_scale = np.zeros(low.shape, np.uint8), np.ones(low.shape, np.float16)
    least = np.full(low.shape, np.inf, np.float32)
    for stretch in _STRETCHES:
        scale = ((high - low) * stretch / 15).astype(np.float16)
        scale[scale == 0] = 1
        step = scale.astype(np.float32)
        zero = np.clip(np.round(7.5 - (low + high) / 2 / step), 0, 15)
        nibble = np.clip(np.round(x / step + zero), 0, 15)
        error = ((nibble - zero) * step - x) ** 2
        error = error.sum(-1, keepdims=True)
        better = error < least
        best = np.where(better, nibble, best).astype(np.uint8)
        best_zero = np.where(better, zero, best_zero).astype(np.uint8)
        best_scale, least = np.where(better, scale, best_scale), np.where(better, error, least)
    return best, best_zero, best_scale


def unpack(packed: NDArray[np.uint8], scales: NDArray[np.float16]) -> Array:
    """Return the float32 table [rows, dim] that `pack` stored."""
    import numpy as np

    rows, groups = scales.shape
    nibbles = np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)
    dim = groups * GROUP
    values, zeros = nibbles[:, :dim].reshape(rows, groups, GROUP), nibbles[:, dim : dim + groups, None]
    table: Array = ((values - zeros) * scales[..., None].astype(np.float32)).reshape(rows, dim)
    return table


class Graph:
    """Build the graph of a BERT encoder with mean pooling from its weights by name and its config.json.

    `table_bits` and `body_bits` are those of the token table (4, 8 or 32) and of the other matrices (8 or 32). With a
    table of 4 bits positions are float16, and those beyond `positions` are left out. Raises InputError for a config that is no such
    model.
    """

    def __init__(
        self,
        weights: Mapping[str, NDArray[Any]],
        config: Mapping[str, Any],
        *,
        table_bits: int,
        body_bits: int,
        positions: int | None = None,
    ) -> None:
        import numpy as np

        self.weights: dict[str, Array] = {
            name.removeprefix("bert."): w.astype(np.float32)
            for name, w in weights.items()
            if w.dtype != np.int64
        }
        self.config, self.table_bits, self.body_bits = config, table_bits, body_bits
        self.positions = positions
        odd = [
            f"{key} {config.get(key)!r}"
            for key, known in (
                ("model_type", ("bert",)),
                ("position_embedding_type", ("absolute", None)),
                ("hidden_act", ("gelu",)),
            )
            if config.get(key) not in known
        ]
        if odd:
            raise InputError(
                f"a model of {', '.join(odd)} cannot be exported: only BERT with absolute positions and gelu can"
            )
        if table_bits == 4 and config["hidden_size"] % GROUP:
            raise InputError(
                f"a hidden size of {config['hidden_size']} cannot be stored in 4 bits: it is no multiple of {GROUP}"
            )

    def _matrix(self, name: str) -> Any:
        from openvino import Type
        from openvino import opset13 as op

        w = self.weights[name]
        if self.body_bits == 32:
            return op.constant(w)
        q, scale = quantise(w)
        return op.multiply(op.convert(op.constant(q), Type.f32), op.constant(scale))

    def _linear(self, x: Any, name: str) -> Any:
        from openvino import opset13 as op

        return op.add(
            op.matmul(x, self._matrix(f"{name}.weight"), False, True),
            op.constant(self.weights[f"{name}.bias"]),
        )

    def _norm(self, x: Any, name: str) -> Any:
        import numpy as np
        from openvino import opset13 as op

        axes = op.constant(np.array([2], np.int64))
        y = op.mvn(x, axes, True, float(self.config["layer_norm_eps"]), "inside_sqrt")
        y = op.multiply(y, op.constant(self.weights[f"{name}.weight"]))
        return op.add(y, op.constant(self.weights[f"{name}.bias"]))

    def _tokens(self, ids: Any) -> Any:
        from openvino import Type
        from openvino import opset13 as op

        table, zero = self.weights[_TABLE], op.constant(0)
        if self.table_bits == 32:
            return op.gather(op.constant(table), ids, zero)
        if self.table_bits == 4:
            return _unpacked_rows(*pack(table), ids)
        q, scale = quantise(table)
        return op.multiply(
            op.convert(op.gather(op.constant(q), ids, zero), Type.f32),
            op.gather(op.constant(scale), ids, zero),
        )

    def _embeddings(self, ids: Any) -> Any:
        import numpy as np
        from openvino import Type
        from openvino import opset13 as op

        zero = op.constant(0)
        places = self.weights["embeddings.position_embeddings.weight"]
        places = places + self.weights["embeddings.token_type_embeddings.weight"][0]
        stored = op.constant(places)
        if self.table_bits == 4:
            stored = op.convert(op.constant(places[: self.positions].astype(np.float16)), Type.f32)
        length = op.unsqueeze(op.gather(op.shape_of(ids), op.constant(1), zero), zero)
        first, step = op.constant(np.array([0], np.int64)), op.constant(np.array([1], np.int64))
        return self._norm(
            op.add(self._tokens(ids), op.slice(stored, first, length, step, first)), "embeddings.LayerNorm"
        )

    def _layer(self, x: Any, bias: Any, name: str) -> Any:
        import numpy as np
        from openvino import opset13 as op

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

    def model(self, name: str) -> Any:
        """Return the whole graph, an openvino.Model.

        It takes `input_ids` and `attention_mask` (int32 and float32, [batch, length]) and gives `pooled` (float32
        [batch, dim], the mean over the mask, not normalised).
        """
        import numpy as np
        from openvino import Model, PartialShape, Type
        from openvino import opset13 as op

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
        # OpenVINO counts names through the whole process: the file, and so the fingerprint, would change with what came before.
        for number, node in enumerate(graph.get_ordered_ops()):
            if node.get_type_name() != "Parameter":
                node.set_friendly_name(f"{node.get_type_name()}_{number}")
        return graph


def _unpacked_rows(packed: NDArray[np.uint8], scales: NDArray[np.float16], ids: Any) -> Any:
    """Return the graph of `unpack(packed[ids], scales[ids])`: rows are gathered packed, the table never unpacked.

    By arithmetic, not bit operations: all the numbers are whole and at most 255, which bfloat16 holds exactly.
    """
    import numpy as np
    from openvino import Type
    from openvino import opset13 as op

    groups = scales.shape[1]
    dim = groups * GROUP
    zero, last = op.constant(0), op.constant(np.array([2], np.int64))

    def cut(x: Any, start: int, stop: int) -> Any:
        first, end, step = (op.constant(np.array([n], np.int64)) for n in (start, stop, 1))
        return op.slice(x, first, end, step, last)

    pairs = op.convert(op.gather(op.constant(packed), ids, zero), Type.f32)
    high = op.floor(op.multiply(pairs, op.constant(np.float32(1 / 16))))
    low = op.subtract(pairs, op.multiply(high, op.constant(np.float32(16))))
    nibbles = op.concat([low, high], 2)
    values = op.reshape(
        cut(nibbles, 0, dim), op.constant(np.array([0, 0, groups, GROUP], np.int64)), special_zero=True
    )
    zeros = op.unsqueeze(cut(nibbles, dim, dim + groups), op.constant(3))
    scale = op.unsqueeze(op.convert(op.gather(op.constant(scales), ids, zero), Type.f32), op.constant(3))
    rows = op.multiply(op.subtract(values, zeros), scale)
    return op.reshape(rows, op.constant(np.array([0, 0, dim], np.int64)), special_zero=True)
