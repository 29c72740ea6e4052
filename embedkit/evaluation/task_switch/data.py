"""The texts: a seed with its positives, one for each task, and further texts that make the index larger."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedkit.errors import CorpusError
from embedkit.evaluation.lines import read_lines, read_object, required_text
from embedkit.evaluation.ranking import find_file

TASKS = (
    "answer", "paraphrase", "duplicate", "translation_1", "translation_2", "entailed", "contradicting", "topic",
    "headline", "code",
)  # fmt: skip
# No training seed is asked for these, and they have no training wordings.
HELD_OUT_TASKS = ("headline",)
# A seed has code where code solves it; the training seeds keep their headlines out of `positives`.
OPTIONAL_TASKS = ("code", *HELD_OUT_TASKS)
TEST_FILE = Path(__file__).with_name("test.jsonl")


@dataclass(frozen=True, slots=True)
class Seed:
    """One query text and what each task must find for it.

    `positives` maps a task to the one text that is right for it; `distractor` is right for none. `lang` is the
    language of all these texts but the translations, which are in `lang_1` and `lang_2` (ISO 639-1).
    """

    id: str
    domain: str
    lang: str
    lang_1: str
    lang_2: str
    text: str
    distractor: str
    positives: Mapping[str, str]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that the seed has a positive for, in the order of TASKS."""
        return tuple(task for task in TASKS if task in self.positives)


def load_seeds() -> list[Seed]:
    """Return the test seeds that come with embedkit."""
    return read_seeds(TEST_FILE)


def read_seeds(path: str | Path) -> list[Seed]:
    """Read seeds, one JSON object a line. Raises CorpusError with the line that is wrong."""
    seeds: list[Seed] = []
    seen: set[str] = set()
    for number, record in _objects(path):
        seed = _seed(str(path), number, record)
        if seed.id in seen:
            raise CorpusError(str(path), f"the seed {seed.id!r} is there twice: make ids unique", number)
        seen.add(seed.id)
        seeds.append(seed)
    if not seeds:
        raise CorpusError(str(path), "holds no seed: write one a line")
    return seeds


def read_distractors(folder: str | Path) -> list[str]:
    """Return the texts of a BEIR folder's corpus.jsonl, each after its title. Raises CorpusError."""
    file = find_file(Path(folder), "corpus.jsonl")
    if file is None:
        raise CorpusError(str(folder), "holds no corpus.jsonl: give a BEIR folder")
    texts = []
    for number, record in _objects(file):
        title = record.get("title") or ""
        if not isinstance(title, str):
            raise CorpusError(str(file), f'"title" must be a string, got {title!r}', number)
        text = required_text(str(file), number, record, "text")
        texts.append(f"{title} {text}" if title.strip() else text)
    if not texts:
        raise CorpusError(str(file), "holds no document")
    return texts


def _seed(path: str, number: int, record: Mapping[str, Any]) -> Seed:
    positives = record.get("positives")
    if not isinstance(positives, dict):
        raise CorpusError(path, f'needs "positives", an object, got {positives!r}', number)
    unknown = sorted(set(positives) - set(TASKS))
    if unknown:
        raise CorpusError(path, f"has a positive for no task of ours: {unknown[0]!r}", number)
    return Seed(
        **{
            name: required_text(path, number, record, name)
            for name in ("id", "domain", "lang", "lang_1", "lang_2")
        },
        text=required_text(path, number, record, "seed"),
        distractor=required_text(path, number, record, "distractor"),
        positives={
            task: required_text(path, number, positives, task)
            for task in TASKS
            if task in positives or task not in OPTIONAL_TASKS
        },
    )


def _objects(path: str | Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in read_lines(path):
        if not line.strip():
            continue
        yield number, read_object(str(path), number, line)
