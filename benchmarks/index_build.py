"""Time a whole build (read, detect languages, chunk, embed, write, check) against encoding the same chunks alone.

    EMBEDKIT_DATA=folder python benchmarks/index_build.py [--rounds 3] [--documents 1500] [--embedder bundled]

Both in one process, A B A B ...; the figure is the ratio of the medians. Without EMBEDKIT_DATA the sample corpus
is used, repeated with a number in each text.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

from embedkit import get_embedder
from embedkit_indexes import ChunkConfig, Index, read_corpus
from embedkit_indexes.corpus.chunking import chunk_documents

SAMPLE = Path(__file__).resolve().parent.parent / "examples" / "corpus" / "corpus.jsonl"


def _lines(path: Path) -> Iterator[str]:
    """Yield a file's lines, over and over."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return cycle(data.decode().splitlines())


def records(limit: int) -> Iterator[dict[str, str]]:
    """Yield documents of the evaluation sets in turn, without their language, which the build then detects."""
    data = os.environ.get("EMBEDKIT_DATA")
    files = sorted(Path(data, "eval").glob("*/corpus.jsonl*")) if data else [SAMPLE]
    streams = [_lines(f) for f in files]
    number = 0
    while number < limit:
        for i, stream in enumerate(streams):
            row = json.loads(next(stream))
            yield {"_id": f"{i}-{number}", "title": row.get("title", ""), "text": f"{row['text']} {number}"}
            number += 1
            if number == limit:
                return


def main() -> None:
    """Write the corpus, then time both in turn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--documents", type=int, default=1500)
    parser.add_argument("--embedder", default="bundled")
    args = parser.parse_args()
    embedder = get_embedder(args.embedder)
    with tempfile.TemporaryDirectory() as temporary:
        corpus = Path(temporary) / "documents.jsonl"
        rows = (json.dumps(r, ensure_ascii=False) + "\n" for r in records(args.documents))
        corpus.write_text("".join(rows), encoding="utf-8")
        texts = [c.text for c in chunk_documents(read_corpus([corpus]), embedder, ChunkConfig())]
        embedder.encode_document(texts[:64])
        build: list[float] = []
        encode: list[float] = []
        for _ in range(args.rounds):
            start = time.perf_counter()
            report = Index.build(Path(temporary) / "index", read_corpus([corpus]), embedder, overwrite=True)
            build.append(time.perf_counter() - start)
            start = time.perf_counter()
            embedder.encode_document(texts)
            encode.append(time.perf_counter() - start)
        ratio = statistics.median(build) / statistics.median(encode)
        pairs = [a / b for a, b in zip(build, encode, strict=True)]
        print(
            f"{embedder.info.name}: {report.documents:,} documents, {report.chunks:,} chunks, {report.tokens:,} tokens: "
            f"build {statistics.median(build):.2f} s, encoding alone {statistics.median(encode):.2f} s, "
            f"ratio {ratio:.3f} (pair by pair {min(pairs):.3f} to {max(pairs):.3f})"
        )


if __name__ == "__main__":
    main()
