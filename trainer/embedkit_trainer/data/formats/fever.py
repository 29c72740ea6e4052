"""FEVER: claims and the paragraphs that support or refute them, from KILT's files or a BEIR folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from embedkit_trainer.data.formats import files
from embedkit_trainer.data.formats.judged import JudgedQuery, judged_rows
from embedkit_trainer.data.formats.retrieval import beir
from embedkit_trainer.data.rows import Row

_KNOWLEDGE = "kilt_knowledgesource.json"


def fever(path: Path) -> Iterator[Row]:
    """Read a folder: BEIR's layout, or KILT's `fever-train*.jsonl` beside `kilt_knowledgesource.json`.

    KILT names evidence by Wikipedia page and paragraph; the texts come out of the knowledge source (one page a line:
    `wikipedia_id`, `wikipedia_title`, `text` as a list of paragraphs), which is read once. Evidence that refutes a
    claim answers it as well as evidence that supports it. Claims without evidence are left out.
    """
    if files.find(path, "corpus.jsonl"):
        yield from beir(path)
        return
    source = files.need(path, _KNOWLEDGE)
    claims = []
    for file in files.inputs(path, ".jsonl"):
        for line, record in files.records(file):
            evidence: dict[str, None] = {}
            for value in files.list_of(record, "output", file, line):
                output = files.as_object(value, file, line)
                for place in files.list_of(output, "provenance", file, line):
                    page = files.text_of(place, "wikipedia_id", file, line)
                    evidence[f"{page}#{place.get('start_paragraph_id', 0)}"] = None
            if evidence:
                claims.append(
                    JudgedQuery(files.text_of(record, "input", file, line), tuple(evidence), (), line)
                )
    yield from judged_rows(claims, _paragraphs(source), source)


def _paragraphs(source: Path) -> Iterator[tuple[str, str]]:
    for line, page in files.records(source):
        identifier = files.text_of(page, "wikipedia_id" if "wikipedia_id" in page else "_id", source, line)
        for number, paragraph in enumerate(files.list_of(page, "text", source, line)):
            yield f"{identifier}#{number}", files.titled(page.get("wikipedia_title"), str(paragraph).strip())
