"""Read `.safetensors` files into mapped NumPy arrays, without a package."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U8": "|u1",
    "BOOL": "|b1",
}
_LONGEST_HEADER = 100_000_000


def read_safetensors(path: Path) -> dict[str, NDArray[Any]]:
    """Return the file's tensors by name, memory-mapped (bfloat16 alone is read and widened to float32).

    The layout is 8 bytes of header length (little-endian), a JSON header, then the raw tensors. Raises
    InputError naming the file where it is cut short or damaged.
    """
    import numpy as np

    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= min(_LONGEST_HEADER, path.stat().st_size):
                raise ValueError(f"a header of {length} bytes")
            header: dict[str, Any] = json.loads(file.read(length))
        raw = np.memmap(path, np.uint8, "r", offset=8 + length)
        header.pop("__metadata__", None)
        return {name: _tensor(raw, entry) for name, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise InputError(f"{path} is no readable safetensors file ({e}): fetch it again") from e


def _tensor(raw: NDArray[np.uint8], entry: dict[str, Any]) -> NDArray[Any]:
    import numpy as np

    start, end = entry["data_offsets"]
    shape = [int(n) for n in entry["shape"]]
    bfloat = entry["dtype"] == "BF16"
    dtype = np.dtype("<u2" if bfloat else _DTYPES[entry["dtype"]])
    if not 0 <= start <= end <= len(raw) or end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"a tensor of shape {shape} at bytes {start}-{end} of {len(raw)}")
    values = np.frombuffer(raw[start:end], dtype)
    if bfloat:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.reshape(shape)
