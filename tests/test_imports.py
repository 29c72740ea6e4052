"""What starting costs, measured in imported modules: the same on every machine."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {
    "numpy", "torch", "faiss", "openvino", "onnxruntime", "pyarrow", "transformers", "sentence_transformers",
    "tokenizers", "openai", "llama_index", "pydantic", "scipy",
}  # fmt: skip


def _loaded(*command: str) -> set[str]:
    """Return the top-level names of all modules that a Python process imports, as -X importtime reports them."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command], capture_output=True, text=True, check=True
    )
    rows = [
        line.split("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")
    ]
    return {name.split(".")[0] for name in rows}


def test_the_measure_sees_imports() -> None:
    """A process that does import a heavy package is seen to, so the tests below can fail."""
    assert "numpy" in _loaded("-c", "import embedkit, numpy")


@pytest.mark.parametrize(
    "code",
    [
        "import embedkit",
        "import embedkit; embedkit.list_embedders(); embedkit.get_task('qa')",
        "import embedkit.embedders.static, embedkit.embedders.openai, embedkit.hashing",
    ],
)
def test_import_is_light(code: str) -> None:
    """Importing embedkit, listing embedders and importing the light embedders load no heavy package."""
    loaded = _loaded("-c", code)
    assert "embedkit" in loaded
    assert not loaded & HEAVY


def test_help_is_light() -> None:
    """`embedkit --help`, through the console entry point, prints its help and loads no heavy package."""
    code = "import sys; from embedkit_cli.main import main; sys.argv = ['embedkit', '--help']; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage: embedkit" in done.stdout
    loaded = _loaded("-c", code)
    assert "embedkit_cli" in loaded
    assert not loaded & HEAVY
