"""What is read from, done to and asked of an OpenVINO graph of a BERT."""

from __future__ import annotations

from typing import Any


def positions_of(model: Any) -> int | None:
    """Return how many positions a graph has a vector for: it takes the first of them, as many as a text has tokens."""
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Slice":
            continue
        table = node.get_input_partial_shape(0)
        if table.is_static and len(table) == 2:
            return int(table[0].get_length())
    return None


def unpack_matrices(model: Any) -> None:
    """Replace each int8 matrix times its scales by the float32 product; the token table stays as it is.

    OpenVINO unpacks int8 weights again for every batch, which costs bf16 arithmetic a third of its speed.
    """
    from openvino import Type, opset13

    for product in model.get_ordered_ops():
        if product.get_type_name() != "Multiply":
            continue
        convert, scale = (product.input_value(i).get_node() for i in range(2))
        if convert.get_type_name() != "Convert" or scale.get_type_name() != "Constant":
            continue
        packed = convert.input_value(0).get_node()
        if packed.get_type_name() == "Constant" and packed.get_element_type() == Type.i8:
            matrix = opset13.constant(packed.data.astype("float32") * scale.data)
            product.output(0).replace(matrix.output(0))


def arithmetic_of(core: Any, precision: str | None) -> dict[str, str]:
    """Return the options for a precision ("bf16", "int8", "f32"); None: bf16 where the CPU has it, else int8."""
    if precision is None:
        precision = "bf16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "int8"
    if precision == "bf16":
        return {"INFERENCE_PRECISION_HINT": "bf16"}
    group = "384" if precision == "int8" else "0"
    return {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": group}
