"""Question answering: DPR's files of NQ and TriviaQA, SQuAD, HotpotQA, ELI5."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embedkit.errors import CorpusError
from embedkit_trainer.data.formats import files
from embedkit_trainer.data.rows import Row


def dpr(path: Path) -> Iterator[Row]:
    """Read DPR's retriever files: `question`, `positive_ctxs`, `hard_negative_ctxs`, each context `title` and `text`.

    One JSON array (streamed) or JSON lines. The first positive is the one that was annotated; the others merely
    contain the answer's string, and are therefore neither positives nor negatives. Questions without a positive
    are left out. Negatives that are positives of the same question are dropped.
    """
    for file in files.inputs(path, ".json", ".jsonl"):
        for line, record in files.objects(file):
            question = files.text_of(record, "question", file, line)
            if "positive_ctxs" not in record:
                raise CorpusError(
                    str(file), "has no 'positive_ctxs': is this a DPR file for the retriever?", line
                )
            positives = _contexts(record, "positive_ctxs", file, line)
            negatives = _contexts(record, "hard_negative_ctxs", file, line)
            if not positives:
                continue
            known = {i for i, _ in positives if i} | {text for _, text in positives}
            kept = [(i, text) for i, text in negatives if i not in known and text not in known]
            identifier, text = positives[0]
            yield Row(
                question,
                text,
                tuple(t for _, t in kept),
                positive_id=identifier,
                negative_ids=tuple(i for i, _ in kept),
                line=line,
            )


def squad(path: Path) -> Iterator[Row]:
    """Read SQuAD 1.1 or 2.0: each question with the paragraph that answers it, under its article's title.

    Questions marked `is_impossible` are left out: their paragraph does not answer them.
    """
    for file in files.inputs(path, ".json"):
        articles = files.list_of(files.whole(file), "data", file, None)
        if not articles:
            raise CorpusError(str(file), "holds no articles under 'data': is this SQuAD's JSON?")
        for article in articles:
            title = str(article.get("title", "")).replace("_", " ")
            for number, paragraph in enumerate(files.list_of(article, "paragraphs", file, None)):
                context = files.titled(title, files.text_of(paragraph, "context", file, None))
                for qa in files.list_of(paragraph, "qas", file, None):
                    if not qa.get("is_impossible", False):
                        question = files.text_of(qa, "question", file, None)
                        yield Row(question, context, positive_id=f"{title}#{number}")


def hotpotqa(path: Path) -> Iterator[Row]:
    """Read HotpotQA's JSON: each supporting paragraph is a positive, the other paragraphs given are negatives.

    Takes the official layout (`supporting_facts` [[title, sentence]], `context` [[title, sentences]]) and the hub's
    ({"title": […], "sentences": […]}).
    """
    for file in files.inputs(path, ".json", ".jsonl", ".parquet"):
        for line, record in files.objects(file):
            question = files.text_of(record, "question", file, line)
            try:
                context = _pairs(record["context"], "sentences")
                gold = {title for title, _ in _pairs(record["supporting_facts"], "sent_id")}
            except (KeyError, TypeError, ValueError) as e:
                problem = f"needs 'context' and 'supporting_facts' as lists of [title, …], got {e!r}"
                raise CorpusError(str(file), problem, line) from e
            texts = {title: files.titled(title, "".join(sentences)) for title, sentences in context}
            others = [title for title in texts if title not in gold]
            for title, text in texts.items():
                if title in gold:
                    yield Row(
                        question,
                        text,
                        tuple(texts[t] for t in others),
                        positive_id=title,
                        negative_ids=tuple(others),
                        line=line,
                    )


def eli5(path: Path) -> Iterator[Row]:
    """Read ELI5: each question with its best-voted answer; KILT's JSON lines or the hub's.

    KILT: `input` and `output` [{"answer", "meta": {"score"}}]. The hub: `title`, `selftext` and `answers`
    {"text": […], "score": […]}. Answers without a score count as 0; among equals the first wins.
    """
    for file in files.inputs(path, ".jsonl", ".json", ".parquet"):
        for line, record in files.records(file):
            if "answers" in record:
                found = files.as_object(record["answers"], file, line)
                question = files.text_of(record, "title", file, line)
                body = record.get("selftext") or ""
                question = f"{question}\n{body}" if isinstance(body, str) and body.strip() else question
                answers = list(zip(found.get("text", []), found.get("score", []), strict=False))
            else:
                question = files.text_of(record, "input", file, line)
                outputs = [
                    files.as_object(o, file, line) for o in files.list_of(record, "output", file, line)
                ]
                answers = [
                    (o["answer"], (o.get("meta") or {}).get("score") or 0) for o in outputs if o.get("answer")
                ]
            if answers:
                best = max(answers, key=lambda answer: answer[1])
                yield Row(question, str(best[0]), line=line)


def _contexts(record: files.Record, key: str, file: Path, line: int) -> list[tuple[str | None, str]]:
    found: list[tuple[str | None, str]] = []
    for value in files.list_of(record, key, file, line):
        context = files.as_object(value, file, line)
        identifier: Any = context.get("passage_id", context.get("psg_id"))
        text = files.titled(context.get("title"), files.text_of(context, "text", file, line))
        found.append((None if identifier in (None, "") else str(identifier), text))
    return found


def _pairs(value: Any, second: str) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return list(zip(value["title"], value[second], strict=True))
    return [(str(title), rest) for title, rest in value]
