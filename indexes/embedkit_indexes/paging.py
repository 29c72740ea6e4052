"""Tell the system how mapped vectors will be read, so that it keeps in memory what is touched and little else."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def read_here_and_there(array: NDArray[np.generic]) -> None:
    """Say that single rows will be read, far apart: without it each brings in the 128 kB about it.

    A thousand searches of a million vectors of 768 bytes left all of them in memory, not the 240 MB that they touched.
    """
    _advise(array, "MADV_RANDOM")


def read_through(array: NDArray[np.generic]) -> None:
    """Say that from now on it is read from its beginning to its end too, and reading ahead pays."""
    _advise(array, "MADV_NORMAL")


def _advise(array: NDArray[np.generic], name: str) -> None:
    advice = getattr(mmap, name, None)
    if advice is None or not array.nbytes:
        # Windows has no such thing.
        return
    import ctypes

    start = array.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
    length = array.ctypes.data + array.nbytes - start
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    # It is advice: that it was refused changes nothing.
    advise(start, length, advice)
