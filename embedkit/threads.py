"""The one place that says how many threads FAISS, OpenVINO, torch and BLAS may use."""

from __future__ import annotations

import os

from embedkit.errors import InputError

_MOST = 1024


def wanted_threads() -> int | None:
    """Return $EMBEDKIT_THREADS, None where it is not set.

    Raises InputError where the variable is not a positive whole number.
    """
    wanted = os.environ.get("EMBEDKIT_THREADS", "").strip()
    if not wanted:
        return None
    if not wanted.isdecimal() or not 1 <= int(wanted) <= _MOST:
        raise InputError(
            f"EMBEDKIT_THREADS is {wanted!r}: set it to a whole number from 1 to {_MOST}, or unset it"
        )
    return int(wanted)


def thread_count() -> int:
    """Return $EMBEDKIT_THREADS, else the number of CPUs this process may run on; raises as `wanted_threads`."""
    wanted = wanted_threads()
    if wanted is not None:
        return wanted
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def limit_blas() -> None:
    """Hold the matrix products of this process, NumPy's and FAISS's, to $EMBEDKIT_THREADS; leave them where it is unset.

    BLAS libraries take as many threads as there are cores when they are loaded, and read other variables than ours.
    """
    wanted = wanted_threads()
    if wanted is not None:
        # Imported here: it looks through all loaded libraries, for which few processes ask.
        from threadpoolctl import threadpool_limits

        threadpool_limits(wanted, user_api="blas")
