"""Make the bundled embedder, from raw data folders to the exported model, with one command.

    python scripts/bundled/build.py DATA WORK [--install]

WORK receives rows and base (`data/`), checkpoints and the trained folder (`models/`), and the exported model
(`NAME/`). What is there already is kept: the same command goes on after an interruption, training from its newest
checkpoint. --install puts the exported model into the package.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from embedkit_trainer.saving.openvino import BundleOptions, export_openvino

HERE = Path(__file__).resolve().parent
MODELS = HERE.parent.parent / "embedkit" / "models"
NAME = "embedkit-small-v1"
RECIPE = "bundled-embedder"


def run(what: str, *command: str, cwd: Path | None = None) -> None:
    """Run one step, and say what it took."""
    started = time.monotonic()
    done = subprocess.run([sys.executable, *command], cwd=cwd, check=False)
    if done.returncode:
        sys.exit(f"{what} failed with exit code {done.returncode}: the same command goes on from there")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{what}: {time.monotonic() - started:,.0f} s; CPU so far {used.ru_utime + used.ru_stime:,.0f} s",
        flush=True,
    )


def main() -> None:
    """Run what is not done yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with train/NAME/pairs.jsonl[.xz]")
    parser.add_argument("work", type=Path)
    parser.add_argument("--install", action="store_true")
    args = parser.parse_args()
    data, work = args.data.resolve(), args.work.resolve()
    rows, base, trained = work / "data", work / "data" / "bert-bundled-base", work / "models" / RECIPE
    done = rows / ".rows"
    if not done.is_file():
        run("rows", str(HERE / "rows.py"), str(data), str(rows))
        done.touch()
    if not (base / "tokenizer_config.json").is_file():  # written last
        run("vocabulary and base", str(HERE / "vocabulary.py"), str(data), str(base))
    if not (trained / "embedkit.json").is_file():
        run("training", str(Path(sys.executable).with_name("embedkit")), "train", RECIPE, cwd=work)
    result = export_openvino(
        trained,
        work / NAME,
        BundleOptions(
            name=NAME,
            instruction_trained=True,
            matryoshka_dims=(256, 128),
            max_length=256,
            licence=HERE.parent.parent / "LICENSE",
        ),
    )
    print(result)
    if args.install:
        target = MODELS / NAME
        target.mkdir(parents=True, exist_ok=True)
        for file in (work / NAME).iterdir():
            shutil.copyfile(file, target / file.name)
        print(f"installed as {target.relative_to(HERE.parent.parent)}")


if __name__ == "__main__":
    main()
