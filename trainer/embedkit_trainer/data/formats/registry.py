"""The list of formats: how each public set is read, which files it needs, and what its queries ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from embedkit.errors import UnknownNameError
from embedkit_trainer.data.formats import answers, code, fever, languages, retrieval, sentences
from embedkit_trainer.data.rows import Row, read_rows

Loader = Callable[[Path], Iterator[Row]]


@dataclass(frozen=True, slots=True)
class Format:
    """Describe one format: `load` reads a file, a glob or a folder of it.

    `files` says what is expected there. `instructions` are what queries of the set ask for, where neither the row
    nor the source says so. `licence` is the publisher's where it is well known; read it before you publish a model.
    """

    name: str
    description: str
    files: str
    load: Loader
    instructions: tuple[str, ...] = ()
    licence: str = ""


def _rows(path: Path) -> Iterator[Row]:
    return read_rows(path)


_PASSAGE_LINES = "or JSON lines with query, positive_passages, negative_passages"
_SEARCH = "Find passages that answer what was typed into a web search engine"
_FORMATS = (
    Format("rows", "rows of the project's own schema, synthetic data among them", "*.jsonl or *.parquet with query, positive, negatives, instruction", _rows),
    Format("pairs", "texts that belong together, weakly supervised", "a table of two columns without a header", sentences.pairs),
    Format("texts", "plain texts, each its own positive", "one text a line", sentences.texts),
    Format("beir", "a folder in BEIR's layout", "corpus.jsonl, queries.jsonl, qrels/train.tsv", retrieval.beir),
    Format("passages", "retrieval sets as Tevatron lays them out", "JSON lines with query, positive_passages, negative_passages", retrieval.passages),
    Format("msmarco", "MS MARCO passages: web searches", f"collection.tsv, queries.train.tsv, qrels.train.tsv, wanted or not qidpidtriples*.tsv; or triples*.tsv of texts; {_PASSAGE_LINES}", retrieval.msmarco, (_SEARCH,), "research use only (Microsoft's terms)"),
    Format("msmarco-document", "MS MARCO documents: web searches, whole pages", "msmarco-docs.tsv, msmarco-doctrain-queries.tsv, msmarco-doctrain-qrels.tsv", retrieval.msmarco_document, ("Find web pages that answer what was typed into a search engine",), "research use only (Microsoft's terms)"),
    Format("nq", "Natural Questions in DPR's files", "biencoder-nq-train.json", answers.dpr, ("Find the encyclopaedia passage that holds the answer to the question",), "CC BY-SA 3.0"),
    Format("triviaqa", "TriviaQA in DPR's files", "biencoder-trivia-train.json", answers.dpr, ("Find encyclopaedia passages from which the quiz question can be answered",), "Apache-2.0; texts of various owners"),
    Format("squad", "SQuAD 1.1 or 2.0", "train-v1.1.json or train-v2.0.json", answers.squad, ("Find the paragraph in which the question is answered",), "CC BY-SA 4.0"),
    Format("hotpotqa", "HotpotQA: questions that take two paragraphs", "hotpot_train_v1.1.json", answers.hotpotqa, ("Find the paragraphs that together answer a question of several steps",), "CC BY-SA 4.0"),
    Format("fever", "FEVER: claims and evidence", "fever-train-kilt.jsonl with kilt_knowledgesource.json, or BEIR's layout", fever.fever, ("Find evidence that shows whether the claim is true or false",), "CC BY-SA 3.0"),
    Format("nli", "SNLI and MultiNLI: premises and hypotheses", "snli_1.0_train.jsonl, multinli_1.0_train.jsonl, or the hub's Parquet", sentences.nli, ("Find a statement that must be true if the given text is true", "Find sentences that say the same as the given one"), "CC BY-SA 4.0 (SNLI); OANC and others (MultiNLI)"),
    Format("quora", "Quora's duplicate questions", "quora_duplicate_questions.tsv or train.csv", sentences.quora, ("Find questions that ask the same in other words", "Find earlier questions whose answers would serve the given one too"), "Quora's terms: non-commercial"),
    Format("eli5", "ELI5: questions and the best-voted explanation", "eli5-train-kilt.jsonl, or the hub's JSON lines", answers.eli5, ("Find the explanation that readers would vote for as the answer to the question",), "Reddit's terms"),
    Format("miracl", "MIRACL: Wikipedia search in 18 languages", f"topics*train.tsv, qrels*train.tsv, docs*.jsonl for each language; {_PASSAGE_LINES}", languages.miracl, ("Find Wikipedia passages in the question's language that answer it",), "Apache-2.0"),
    Format("mrtydi", "Mr. TyDi: Wikipedia search in 11 languages", f"topic.train.tsv, qrels.train.txt, docs.jsonl for each language; {_PASSAGE_LINES}", languages.mrtydi, ("Find Wikipedia passages that answer a question asked in the same language",), "Apache-2.0"),
    Format("dureader", "DuReader-retrieval: Chinese web searches", f"dual.train.tsv; or JSON lines with question, answer_paragraphs; {_PASSAGE_LINES}", languages.dureader, ("Find Chinese web passages that answer the Chinese search query",), "Apache-2.0"),
    Format("t2ranking", "T2Ranking: Chinese web searches, judged in grades", "collection.tsv, queries.train.tsv, qrels.train.tsv", languages.t2ranking, ("Find Chinese passages on which the searcher would find what was asked",), "Apache-2.0"),
    Format("codesearchnet", "CodeSearchNet: functions in six languages", "*_train_*.jsonl with docstring and code", code.codesearchnet, ("Find the function that does what the description says",), "the licences of the repositories"),
    Format("sts", "graded pairs of sentences", "sentence1, sentence2, score in TSV, CSV or JSON lines, or STS benchmark's sts-train.csv", sentences.sts, ("Find sentences whose meaning is alike",)),
)  # fmt: skip
FORMATS: Mapping[str, Format] = {item.name: item for item in _FORMATS}


def get_format(name: str) -> Format:
    """Return a format. Raises UnknownNameError with the nearest names."""
    if name not in FORMATS:
        raise UnknownNameError("data format", name, FORMATS)
    return FORMATS[name]


def load_rows(name: str, path: str | Path, *, source: str = "") -> Iterator[Row]:
    """Yield the rows of a set, fit to be trained on.

    Rows whose query or positive is blank are left out, as are negatives that are blank, repeated, or the positive by
    id or by text. `source` is written into rows that have none. `path` is a file, a glob or a folder.
    Raises UnknownNameError for the format and CorpusError with file and, where there is one, line.
    """
    load = get_format(name).load
    if name == "rows":
        for row in load(Path(path)):
            yield row if row.source or not source else replace(row, source=source)
        return
    for row in load(Path(path)):
        cleaned = _clean(row, source or name)
        if cleaned is not None:
            yield cleaned


def _clean(row: Row, source: str) -> Row | None:
    query, positive = _text(row.query), _text(row.positive)
    if not query or not positive:
        return None
    kept: dict[str, str | None] = {}
    ids = row.negative_ids or (None,) * len(row.negatives)
    for negative, identifier in zip(row.negatives, ids, strict=True):
        text = _text(negative)
        same = identifier is not None and identifier == row.positive_id
        if text and text != positive and not same:
            kept.setdefault(text, identifier)
    return replace(
        row,
        query=query,
        positive=positive,
        negatives=tuple(kept),
        negative_ids=tuple(kept.values()),
        source=row.source or source,
    )


def _text(text: str) -> str:
    stripped = text.strip()
    try:
        stripped.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which no tokenizer takes
        return stripped.encode("utf-8", "replace").decode()
    return stripped
