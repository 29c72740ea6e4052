"""The cells of a fast-scan index in a file that is mapped. FAISS is handed in by `faiss_engine`.

FAISS packs four-bit codes in blocks of 32 rows to compare a whole block by a few instructions, but can only read such
cells into memory: 30 ms and 56 MB for a million rows of 384 dimensions, before the first answer. So they lie in a file
of their own: each cell's number of rows (uint64, filled up to 64 bytes), then, cell by cell, its blocks of codes and its
row numbers (int64), both filled up to whole blocks. So every block lies at a multiple of 32 bytes, as FAISS asks for. FAISS's class for mapped lists finds them there though it knows of
no blocks: it only asks where a cell's codes and its numbers begin.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BLOCK = 32  # rows
_NUMBER = 8  # bytes
_ALIGNED = 64
# FAISS for Windows is built without mapped lists.
_MAPPED = sys.platform != "win32"


def write(faiss: Any, ivf: Any, file: BinaryIO) -> None:
    """Write a fast-scan index's cells, and leave the index without them."""
    import numpy as np

    lists = faiss.downcast_InvertedLists(ivf.invlists)
    code = lists.block_size // BLOCK
    sizes = np.array([lists.list_size(cell) for cell in range(ivf.nlist)], dtype="<u8")
    file.write(sizes.tobytes().ljust(_first(ivf.nlist), b"\0"))
    for cell, rows in enumerate(_filled_up(sizes).tolist()):
        if not rows:
            continue
        file.write(faiss.rev_swig_ptr(lists.get_codes(cell), rows * code))
        numbers = np.zeros(rows, dtype="<i8")
        numbers[: sizes[cell]] = faiss.rev_swig_ptr(lists.get_ids(cell), int(sizes[cell]))
        file.write(numbers.tobytes())
    empty = faiss.BlockInvertedLists(ivf.nlist, BLOCK, lists.block_size)
    _give(ivf, empty)


def attach(faiss: Any, ivf: Any, path: Path, rows: int) -> str:
    """Map the cells of `rows` rows that `write` wrote and give them to the index; return what is wrong, "" for nothing.

    Raises OSError and RuntimeError where the file cannot be read or mapped.
    """
    import numpy as np

    code = faiss.downcast_InvertedLists(ivf.invlists).block_size // BLOCK
    sizes = np.fromfile(path, dtype="<u8", count=ivf.nlist)
    if len(sizes) != ivf.nlist or sizes.max(initial=0) > rows or int(sizes.sum()) != rows:
        return "the cells do not hold the rows"
    kept = _filled_up(sizes)
    ends = np.cumsum(kept * np.uint64(code + _NUMBER), dtype=np.uint64) + np.uint64(_first(ivf.nlist))
    total = path.stat().st_size
    if total != int(ends[-1]):
        return f"{total:,} bytes instead of {int(ends[-1]):,}"
    starts = ends - kept * np.uint64(code + _NUMBER)
    if not _MAPPED:
        lists = _in_memory(faiss, path, np.stack([sizes, kept, starts], axis=1), code)
    else:
        lists = faiss.OnDiskInvertedLists(ivf.nlist, code, str(path))
        # Reading ahead by threads costs a millisecond a search, eight times the search.
        lists.prefetch_nthread = 0
        lists.read_only = True
        lists.totsize = total
        table = np.stack([sizes, kept, starts], axis=1)
        faiss.memcpy(lists.lists.data(), faiss.swig_ptr(table), table.nbytes)
        lists.do_mmap()
    _give(ivf, lists)
    return ""


def _first(cells: int) -> int:
    """Return where the first cell begins."""
    return -(-cells * _NUMBER // _ALIGNED) * _ALIGNED


def _give(ivf: Any, lists: Any) -> None:
    # Python lets go first: an interruption in between would have it freed twice.
    lists.this.disown()
    ivf.replace_invlists(lists, True)


def _filled_up(sizes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the numbers of rows, each raised to whole blocks."""
    import numpy as np

    block = np.uint64(BLOCK)
    kept: NDArray[np.uint64] = (sizes + block - np.uint64(1)) // block * block
    return kept


def _in_memory(faiss: Any, path: Path, table: NDArray[np.uint64], code: int) -> Any:
    import numpy as np

    lists = faiss.BlockInvertedLists(len(table), BLOCK, code * BLOCK)
    whole = np.fromfile(path, dtype=np.uint8)
    for cell, (size, filled, start) in enumerate(table.tolist()):
        if size:
            lists.resize(cell, size)
            numbers = start + filled * code
            faiss.memcpy(lists.get_codes(cell), faiss.swig_ptr(whole[start:numbers]), filled * code)
            faiss.memcpy(lists.get_ids(cell), faiss.swig_ptr(whole[numbers:]), size * _NUMBER)
    return lists
