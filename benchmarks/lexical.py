"""Compare lexical search with bm25s: nDCG@10 in every language, index time, queries a second, memory.

    python benchmarks/lexical.py [--data folder] [--rounds 3] [--rows 100000] [--only quality|speed]

Quality, on the evaluation sets under --data or EMBEDKIT_DATA (skipped, and said so, without): bm25s with its own words
(no stemmer, no stop words, as there is one for every language), bm25s with embedkit's terms, and embedkit. All have
k1 0.9 and b 0.4. At most --queries queries a case, drawn with a fixed seed.

Speed, on texts of the same sets (or, without them, of the sample corpus) cut into pieces of 60 words and shuffled: both
index the same texts and answer the same queries for the best 10, A B A B, each round in a process of its own, on one
thread; seconds are the process's own CPU seconds, which other programs on the machine disturb less. bm25s needs no extra: a virtual environment is made in a temporary folder and removed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

SAMPLE = Path(__file__).resolve().parent.parent / "examples" / "corpus" / "corpus.jsonl"
LANGUAGES = ("en", "de", "es", "ru", "zh", "ar", "hi", "th", "tr", "vi", "el", "ro")
CASES = [("xquad", lang) for lang in LANGUAGES] + [
    ("jaquad_dev", None), ("jsquad", None), ("iapp_th_test", None), ("arcd_test", None), ("norquad_test", None),
    ("medquad_eval", None), ("cosqa_dev", None), ("banking77_similar", None), ("banking77_label", None),
    ("clinc150_similar", None), ("clinc150_label", None), ("tldr_command", "en"), ("tldr_page", "en"),
]  # fmt: skip
K1, B, K = 0.9, 0.4, 10
WAYS = ("bm25s, its words", "bm25s, these terms", "embedkit")
Rankings = list[list[int]]


def lines(folder: Path, name: str) -> Iterator[str]:
    plain, zipped = folder / name, folder / f"{name}.gz"
    with plain.open(encoding="utf-8") if plain.is_file() else gzip.open(zipped, "rt", encoding="utf-8") as f:
        yield from f


def text_of(document: dict[str, str]) -> str:
    return f"{document['title']}\n\n{document['text']}" if document.get("title") else document["text"]


def read_case(folder: Path, lang: str | None, limit: int) -> dict[str, Any]:
    """Return the documents' texts, the queries, their grades by document and what each must not return."""
    # A tool's commands have the language of the shell, not that of the query.
    documents = [json.loads(line) for line in lines(folder, "corpus.jsonl")]
    if lang and any(d["lang"] == lang for d in documents):
        documents = [d for d in documents if d["lang"] == lang]
    place = {d["_id"]: i for i, d in enumerate(documents)}
    grades: dict[str, dict[int, int]] = {}
    for line in list(lines(folder, "qrels.tsv"))[1:]:
        query, document, grade = line.split("\t")
        if document in place and int(grade) > 0:
            grades.setdefault(query, {})[place[document]] = int(grade)
    queries = [q for q in map(json.loads, lines(folder, "queries.jsonl")) if q["_id"] in grades]
    queries = [q for q in queries if lang in (None, q["lang"])]
    if len(queries) > limit:
        queries = random.Random(0).sample(queries, limit)
    itself = [{place.get(i, -1) for i in (q["_id"], q["_id"].removeprefix("q-"))} for q in queries]
    return {
        "texts": [text_of(d) for d in documents],
        "queries": [q["text"] for q in queries],
        "grades": [grades[q["_id"]] for q in queries],
        "skip": [own - set(grades[q["_id"]]) for q, own in zip(queries, itself, strict=True)],
    }


def ndcg(ranking: Sequence[int], grades: dict[int, int]) -> float:
    gains = [grades.get(d, 0) for d in ranking[:K]]
    ideal = sorted(grades.values(), reverse=True)[:K]
    return sum(g / math.log2(i + 2) for i, g in enumerate(gains)) / sum(
        g / math.log2(i + 2) for i, g in enumerate(ideal)
    )


def run_embedkit(texts: Sequence[str], queries: Sequence[str], k: int) -> tuple[Rankings, dict[str, float]]:
    from embedkit_indexes.lexical import LexicalIndex, build_lexical, search_lexical

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        start = time.process_time()
        names = build_lexical(folder, texts)
        built = time.process_time()
        index = LexicalIndex.open(folder)
        opened = time.process_time()
        rankings = [search_lexical([index], q, k)[2].tolist() for q in queries]
        done = time.process_time()
        size = sum((folder / name).stat().st_size for name in names)
    return rankings, figures((start, built, opened, done), len(queries), size)


def run_bm25s(
    texts: Sequence[str], queries: Sequence[str], k: int, own_words: bool
) -> tuple[Rankings, dict[str, float]]:
    import bm25s

    def terms(some: Sequence[str]) -> list[list[str]]:
        if own_words:
            tokens: list[list[str]] = bm25s.tokenize(
                list(some), stopwords=None, return_ids=False, show_progress=False
            )
            return tokens
        from embedkit_indexes.lexical_tokens import tokenize

        return [tokenize(text) for text in some]

    with tempfile.TemporaryDirectory() as temporary:
        start = time.process_time()
        retriever = bm25s.BM25(k1=K1, b=B, method="lucene")
        retriever.index(terms(texts), show_progress=False)
        retriever.save(temporary)
        built = time.process_time()
        retriever = bm25s.BM25.load(temporary, mmap=True)
        opened = time.process_time()
        rankings = []
        for query in queries:  # one by one, as a person's searches come
            [words] = terms([query])
            if not any(word in retriever.vocab_dict for word in words):
                rankings.append([])
                continue
            found, scores = retriever.retrieve(
                [words], k=min(k, len(texts)), show_progress=False, n_threads=0
            )
            rankings.append([int(d) for d, s in zip(found[0], scores[0], strict=True) if s > 0])
        done = time.process_time()
        size = sum(f.stat().st_size for f in Path(temporary).iterdir())
    return rankings, figures((start, built, opened, done), len(queries), size)


def figures(times: tuple[float, float, float, float], queries: int, size: int) -> dict[str, float]:
    start, built, opened, done = times
    return {
        "index, s": built - start,
        "open, ms": 1000 * (opened - built),
        "queries/s": queries / (done - opened),
        "file, MB": size / 1e6,
        "peak memory, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def worker(way: str, path: Path) -> None:
    """Run one way over cases read from a file, in this process, and print rankings and figures as JSON."""
    out = []
    for case in json.loads(path.read_text(encoding="utf-8")):
        texts, queries = case["texts"], case["queries"]
        k = K + 2 if "grades" in case else K  # the query itself may be among the documents
        run = (
            run_embedkit(texts, queries, k)
            if way == WAYS[2]
            else run_bm25s(texts, queries, k, way == WAYS[0])
        )
        out.append(run)
    print(json.dumps(out))


def start(python: Path, way: str, cases: Path) -> Any:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    command = [str(python), str(Path(__file__).resolve()), "--worker", way, "--cases", str(cases)]
    here = os.pathsep.join(str(SAMPLE.parents[2] / part) for part in (".", "indexes"))
    environment = {**os.environ, **threads, "PYTHONPATH": here}
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout)


def quality(python: Path, folder: Path, data: Path, limit: int) -> None:
    cases = [read_case(data / "eval" / name, lang, limit) for name, lang in CASES]
    path = folder / "quality.json"
    plain = [{**c, "skip": [], "grades": []} for c in cases]
    path.write_text(json.dumps(plain), encoding="utf-8")
    results = {way: [rankings for rankings, _ in start(python, way, path)] for way in WAYS}
    print(f"nDCG@10{'':18}" + "".join(f"{way:>20}" for way in WAYS))
    means: list[list[float]] = []
    for i, ((name, lang), case) in enumerate(zip(CASES, cases, strict=True)):
        row = []
        for way in WAYS:
            pairs = zip(results[way][i], case["grades"], case["skip"], strict=True)
            row.append(statistics.mean(ndcg([d for d in r if d not in skip], g) for r, g, skip in pairs))
        means.append(row)
        print(f"{name + ' ' + (lang or ''):<25}" + "".join(f"{value:>20.4f}" for value in row))
    print(
        f"{'mean':<25}" + "".join(f"{statistics.mean(column):>20.4f}" for column in zip(*means, strict=True))
    )


def pieces(data: Path | None, rows: int) -> list[str]:
    """Return texts of 60 words, of all the sets, shuffled; where they run out, their words are drawn anew."""
    rng = random.Random(0)
    files = sorted((data / "eval").glob("*/corpus.jsonl*")) if data else [SAMPLE]
    texts: list[str] = []
    for file in files:
        for line in lines(file.parent, "corpus.jsonl"):
            words = text_of(json.loads(line)).split()
            texts += (" ".join(words[i : i + 60]) for i in range(0, len(words), 60))
    words = " ".join(texts).split()
    while len(texts) < rows:
        texts.append(" ".join(rng.choices(words, k=60)))
    rng.shuffle(texts)
    return texts[:rows]


def speed(python: Path, folder: Path, data: Path | None, rows: int, rounds: int) -> None:
    texts = pieces(data, rows)
    rng = random.Random(1)
    queries = [
        " ".join(rng.sample(words, min(8, len(words)))) for words in map(str.split, rng.choices(texts, k=500))
    ]
    path = folder / "speed.json"
    path.write_text(json.dumps([{"texts": texts, "queries": queries}]), encoding="utf-8")
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            runs[way].append(start(python, way, path)[0][1])
    print(
        f"\n{rows:,} texts of 60 words, {len(queries)} queries of 8 words, one at a time, one thread; CPU time, medians"
    )
    print(
        f"{'':25}"
        + "".join(f"{way:>20}" for way in WAYS)
        + f"{'ratio to the first':>20}{'to the second':>15}"
    )
    for name in runs[WAYS[0]][0]:
        row = [statistics.median(run[name] for run in runs[way]) for way in WAYS]
        ratios = f"{row[2] / row[0]:>20.2f}{row[2] / row[1]:>15.2f}"
        print(f"{name:<25}" + "".join(f"{value:>20.4g}" for value in row) + ratios)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("EMBEDKIT_DATA"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--only", choices=["quality", "speed"])
    parser.add_argument(
        "--bm25s", default="bm25s==0.3.16", help="what pip installs; add numba for its compiled way"
    )
    parser.add_argument("--worker", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--cases", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments.cases)
        return
    data = Path(arguments.data) if arguments.data else None
    if data and not (data / "eval").is_dir():
        sys.exit(f"lexical.py: {data} has no folder eval: give the folder that holds eval/xquad and others")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
        python = folder / "venv" / "bin" / "python"
        install = [str(python), "-m", "pip", "install", "-q", *arguments.bm25s.split()]
        subprocess.run([*install, "numpy"], check=True)
        if data is None:
            print(
                "lexical.py: quality skipped, set EMBEDKIT_DATA or --data to the folder that holds eval/xquad"
            )
        elif arguments.only != "speed":
            quality(python, folder, data, arguments.queries)
        if arguments.only != "quality":
            speed(python, folder, data, arguments.rows, arguments.rounds)


if __name__ == "__main__":
    main()
