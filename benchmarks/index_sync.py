"""Time the synchronisation of an index of which 1% changed, against its full build.

    python benchmarks/index_sync.py [--documents 100000] [--changed 0.01] [--rounds 3] [--embedder bundled]

One build, then rounds of: change another 1% of the documents, read the whole corpus file again, synchronise. Both read
the same JSON lines through the same reader, and both are whole: from the file to the manifest. The documents are
sentences of the sample corpus in new orders, about as long as a paragraph, each with its number.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from embedkit import get_embedder
from embedkit_indexes import Index, ReadOptions, ReadReport, read_corpus

SAMPLE = Path(__file__).resolve().parent.parent / "examples" / "corpus" / "corpus.jsonl"


def write_corpus(path: Path, documents: Sequence[str]) -> None:
    """Write the documents as JSON lines."""
    with path.open("w", encoding="utf-8") as f:
        for number, text in enumerate(documents):
            f.write(json.dumps({"_id": f"d{number}", "text": text, "year": 2000 + number % 25}) + "\n")


def main() -> None:
    """Build once, synchronise several times, print the ratio of the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--changed", type=float, default=0.01)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--embedder", default="bundled")
    args = parser.parse_args()
    rng = random.Random(0)
    rows = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    sentences = [s for r in rows for s in r["text"].replace("\n", " ").split(". ") if 20 < len(s) < 200]

    def text(number: int) -> str:
        return ". ".join(rng.sample(sentences, 5)) + f". {number}"

    documents = [text(n) for n in range(args.documents)]
    embedder = get_embedder(args.embedder)
    embedder.encode_document(documents[:64])  # the graph is compiled before the clock runs
    reading = ReadOptions(detect_language=False)
    with tempfile.TemporaryDirectory() as temporary:
        corpus, directory = Path(temporary, "corpus.jsonl"), Path(temporary, "index")
        write_corpus(corpus, documents)
        wall, cpu = time.perf_counter(), time.process_time()
        report = Index.build(directory, read_corpus([corpus], reading), embedder, embedder_spec=args.embedder)
        build = (time.perf_counter() - wall, time.process_time() - cpu)
        print(f"build: {report.chunks:,} chunks, {build[0]:.1f} s, {build[1]:.1f} CPU-s", flush=True)
        index = Index.open(directory, embedder)
        index.search("the first search checks the probes")
        times = []
        for _ in range(args.rounds):
            changed = rng.sample(range(args.documents), int(args.documents * args.changed))
            for number in changed:
                documents[number] = text(number)
            write_corpus(corpus, documents)
            wall, cpu = time.perf_counter(), time.process_time()
            read = ReadReport()
            report = index.sync(read_corpus([corpus], reading, read), read_report=read)
            times.append((time.perf_counter() - wall, time.process_time() - cpu))
            if report.updated != len(changed) or report.unchanged != args.documents - len(changed):
                raise SystemExit(f"counts are off: {report}")
            print(
                f"sync: {report.updated:,} updated, {report.embedded:,} embedded, {report.segments} segments, "
                f"{times[-1][0]:.2f} s, {times[-1][1]:.2f} CPU-s",
                flush=True,
            )
        shares = [statistics.median(t[i] for t in times) / build[i] for i in (0, 1)]
        print(f"sync / build: {shares[0]:.2%} of the time, {shares[1]:.2%} of the CPU time")


if __name__ == "__main__":
    main()
