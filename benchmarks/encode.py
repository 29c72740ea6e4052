"""Compare encoding speed and fidelity on a CPU, arms interleaved in one process.

    EMBEDKIT_DATA=… python benchmarks/encode.py --arm st --arm transformer-bf16 --passages 600 --rounds 3

The reference is sentence-transformers' default (float32, batch 32) on all-MiniLM-L6-v2; the ratio is that
of median times within this run. Passages come from $EMBEDKIT_DATA/eval/*/corpus.jsonl[.gz], else from
examples/corpus (few: the printed count says how many).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from minilm import baseline, original

Encode = Callable[[list[str]], np.ndarray]
WORDS = (30, 140)  # passages of about 110 tokens on average, as a retrieval corpus has after chunking


def _st(model: str, batch_size: int = 32, **options: object) -> Encode:
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(model, device="cpu", model_kwargs=options or None)
    return lambda texts: loaded.encode(
        texts, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False
    )


def _transformer(model: str, **options: object) -> Encode:
    from embedkit.embedders.transformer import TransformerEmbedder

    return TransformerEmbedder.open(model, device="cpu", **options).encode_document  # type: ignore[arg-type]


def _bundled(model: str, **options: object) -> Encode:
    from embedkit.registry import get_embedder

    del model
    return get_embedder(baseline(), **options).encode_document


ARMS: dict[str, Callable[[str], Encode]] = {
    "st": _st,
    "st-bf16": lambda m: _st(m, dtype="bfloat16"),
    "transformer-fp32": lambda m: _transformer(m, dtype="float32"),
    "transformer-bf16": lambda m: _transformer(m, dtype="bfloat16"),
    **{
        f"transformer-bf16-{b}": lambda m, b=b: _transformer(m, dtype="bfloat16", token_budget=b)
        for b in (256, 512, 1024, 2048, 4096)
    },
    "bundled": _bundled,
    # What a CPU without bf16 gets, and the plain reference of the same graph.
    "bundled-int8": lambda m: _bundled(m, precision="int8"),
    "bundled-f32": lambda m: _bundled(m, precision="f32"),
}


def passages(count: int, seed: int) -> list[str]:
    """Return `count` passages of mixed sources and lengths; English ones where the source says so."""
    root = os.environ.get("EMBEDKIT_DATA")
    files = sorted(Path(root, "eval").glob("*/corpus.jsonl*")) if root else []
    files = files or [Path(__file__).parents[1] / "examples" / "corpus" / "corpus.jsonl"]
    found = [text for file in files for text in _texts(file)]
    if not found:
        raise SystemExit("no passages: set EMBEDKIT_DATA to a folder that holds eval/*/corpus.jsonl.gz")
    draw = random.Random(seed)
    draw.shuffle(found)
    cut = []
    for text in found:
        words = text.split()
        while len(words) >= WORDS[0] and len(cut) < count:
            size = draw.randint(*WORDS)
            cut.append(" ".join(words[:size]))
            words = words[size:]
    if len(cut) < count:
        print(f"only {len(cut)} passages found of {count}")
    draw.shuffle(cut)
    return cut


def _texts(file: Path) -> Iterator[str]:
    """Yield the English documents' texts, and code: the model timed here knows no other language."""
    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row.get("lang", "en") in ("en", "python", "sh"):
                yield str(row.get("text") or "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--arm", action="append", choices=sorted(ARMS), help="repeat; st is always there")
    parser.add_argument("--model", help="a sentence-transformers folder; default all-MiniLM-L6-v2")
    parser.add_argument("--passages", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="torch threads; default: the machine's cores")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.threads:
        os.environ["EMBEDKIT_THREADS"] = str(args.threads)  # the bundled arm keeps to it too
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    model = args.model or str(original())
    names = list(dict.fromkeys(["st", *(args.arm or ["bundled", "transformer-bf16"])]))
    texts = passages(args.passages, args.seed)
    arms = {name: ARMS[name](model) for name in names}
    for encode in arms.values():
        encode(texts[:32])
    times: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    vectors = {}
    for _ in range(args.rounds):
        for name, encode in arms.items():
            begin, busy = time.perf_counter(), time.process_time()
            vectors[name] = encode(texts)
            times[name].append(time.perf_counter() - begin)
            cpu[name].append(time.process_time() - busy)
    reference = vectors["st"]
    work = statistics.median(cpu["st"])
    base = statistics.median(times["st"])
    lengths = _token_counts(model, texts)
    print(
        f"{len(texts)} passages, {np.mean(lengths):.0f} tokens on average, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
    )
    print(
        "| arm | passages/s | ratio to st | CPU-time ratio | mean cosine | min cosine | seconds |\n| --- | --- | --- | --- | --- | --- | --- |"
    )
    for name in names:
        median = statistics.median(times[name])
        same = vectors[name].shape == reference.shape
        unit = vectors[name] / np.linalg.norm(vectors[name], axis=1, keepdims=True)
        cosines = (unit * reference).sum(axis=1) if same else np.array([np.nan])
        seconds = " ".join(f"{t:.2f}" for t in times[name])
        print(
            f"| {name} | {len(texts) / median:.0f} | {base / median:.2f} | {work / statistics.median(cpu[name]):.2f} | {cosines.mean():.5f} | {cosines.min():.5f} | {seconds} |"
        )


def _token_counts(model: str, texts: list[str]) -> list[int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(model, "tokenizer.json")))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    return [len(e.ids) for e in tokenizer.encode_batch_fast(texts)]


if __name__ == "__main__":
    main()
