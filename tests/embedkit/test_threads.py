"""One variable holds every library's threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

_ASK = """
import json, numpy, threadpoolctl
from embedkit_indexes import faiss_engine
faiss_engine.load()
print(json.dumps([p["num_threads"] for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"]))
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_matrix_products_take_as_many_threads_as_asked(threads: int) -> None:
    """NumPy's BLAS and FAISS's own, whatever the machine has."""
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", _ASK],
        env={**environment, "EMBEDKIT_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=True,
    )
    counts = json.loads(done.stdout)
    assert counts and set(counts) == {threads}
