"""nDCG@10 on BEIR folders while training, so that a run that gets worse is seen, and the best weights are kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedkit.errors import CorpusError, InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedkit.contract import Template
    from embedkit.embedders.tokens import TokenBuilder
    from embedkit_trainer.collate import Ids
    from embedkit_trainer.config.records import DevConfig

_DEPTH = 100
_BLOCK = 256  # queries scored at a time
_MOST_DOCUMENTS = 20_000


@dataclass(frozen=True)
class DevSet:
    """One BEIR folder, tokenised: a row of ids for every query and document, and what is relevant."""

    name: str
    query_names: list[str]
    queries: list[list[int]]
    document_names: list[str]
    documents: list[list[int]]
    qrels: dict[str, dict[str, int]]


def load_dev_sets(
    config: DevConfig,
    template: Template,
    query_tokens: TokenBuilder,
    document_tokens: TokenBuilder,
    *,
    default: str | None = None,
) -> list[DevSet]:
    """Read and tokenise the dev folders.

    `default` is the instruction of queries where the config names none: what the finished model gives its own.
    A large corpus is cut to the documents that are judged for the queries asked, and others up to 20,000: scores
    are to be compared within a run, not across runs with other settings. Raises InputError or CorpusError.
    """
    instructions = _instructions(config, default)
    return [
        _load(Path(folder), config, instruction, (template, query_tokens, document_tokens))
        for folder, instruction in zip(config.folders, instructions, strict=True)
    ]


def score(dev: DevSet, queries: NDArray[np.float32], documents: NDArray[np.float32]) -> float:
    """Return the mean nDCG@10 of unit vectors `[queries, dim]` and `[documents, dim]`."""
    from embedkit.evaluation import is_query_itself, mean, measure

    rankings: dict[str, list[str]] = {}
    # One more than the depth: the query itself may stand among the documents.
    depth = min(_DEPTH + 1, len(documents))
    for start in range(0, len(queries), _BLOCK):
        scores = queries[start : start + _BLOCK] @ documents.T
        top = np.argpartition(-scores, depth - 1, axis=1)[:, :depth]
        for name, row, found in zip(dev.query_names[start:], scores, top, strict=False):
            order = found[np.argsort(-row[found], kind="stable")]
            names = [dev.document_names[i] for i in order]
            relevant = dev.qrels.get(name, {})
            rankings[name] = [d for d in names if d in relevant or not is_query_itself(name, d)][:_DEPTH]
    return mean(measure(dev.qrels, rankings, _DEPTH).values(), _DEPTH).ndcg


def encode(
    model: Any, rows: Sequence[Ids], *, chunk_tokens: int, packed: bool = False, bfloat16: bool = False
) -> NDArray[np.float32]:
    """Return float32 unit vectors `[n, dim]` of token ids by the model in training, without dropout or a graph."""
    import torch

    from embedkit_trainer.collate import pack, pad, plan_chunks

    device = next(model.parameters()).device
    lengths = np.fromiter((len(r) for r in rows), np.int64, len(rows))
    precision = torch.autocast(device.type, dtype=torch.bfloat16) if bfloat16 else nullcontext()
    collate = pack if packed else pad
    out: NDArray[np.float32] | None = None
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), precision:  # FSDP cannot train on what inference_mode leaves behind
            for chunk in plan_chunks(lengths, chunk_tokens, packed=packed):
                vectors = model(collate([rows[i] for i in chunk], device))
                vectors = torch.nn.functional.normalize(vectors, dim=-1).cpu().numpy()
                if out is None:
                    out = np.empty((len(rows), vectors.shape[1]), dtype=np.float32)
                out[chunk] = vectors
    finally:
        model.train(was_training)
    assert out is not None
    return out


def _instructions(config: DevConfig, default: str | None) -> list[str | None]:
    """Return one instruction a folder: as written out, else the named task's, else the default."""
    from embedkit.tasks import get_task

    count = len(config.folders)
    for name, given in (("instructions", config.instructions), ("tasks", config.tasks)):
        if given and len(given) not in (1, count):
            raise InputError(
                f"dev.{name} has {len(given)} entries for {count} folders: give one, or one each"
            )
    texts: list[str | None] = (
        [*config.instructions] or [get_task(t).instruction for t in config.tasks] or [default]
    )
    return texts * (count if len(texts) == 1 else 1)


def _load(
    folder: Path,
    config: DevConfig,
    instruction: str | None,
    how: tuple[Template, TokenBuilder, TokenBuilder],
) -> DevSet:
    from embedkit.evaluation import find_file, find_qrels, read_qrels, read_queries, restrict_qrels, sample
    from embedkit.evaluation.lines import read_lines

    template, query_tokens, document_tokens = how
    corpus, asked = find_file(folder, "corpus.jsonl"), find_file(folder, "queries.jsonl")
    if corpus is None or asked is None:
        raise InputError(f"dev folder {folder} is no BEIR folder: it lacks corpus.jsonl or queries.jsonl")
    tables = find_qrels(folder)
    qrels = read_qrels(tables.get(None) or next(iter(tables.values())))
    judged = [q for q in read_queries(asked) if any(g > 0 for g in qrels.get(q.id, {}).values())]
    queries = sample(judged, config.queries)
    qrels = {q.id: qrels[q.id] for q in queries}
    needed = {d for grades in qrels.values() for d in grades}
    names, texts, others = [], [], 0
    for number, line in read_lines(corpus):
        if not line.strip():
            continue
        name, text = _document(str(corpus), number, line)
        others += name not in needed
        if name in needed or others <= _MOST_DOCUMENTS:
            names.append(name)
            texts.append(template.render_document(text))
    qrels = restrict_qrels(qrels, names)
    if not queries or not any(qrels.values()):
        raise InputError(f"dev folder {folder} holds no query with a relevant document in its corpus")
    rendered = [template.render_query(q.text, instruction) for q in queries]
    return DevSet(
        folder.name, [q.id for q in queries], query_tokens(rendered), names, document_tokens(texts), qrels
    )


def _document(path: str, number: int, line: str) -> tuple[str, str]:
    try:
        record = json.loads(line)
        title, text = str(record.get("title") or ""), str(record["text"])
        text = f"{title}\n{text}" if title else text
        text.encode()
        return str(record["_id"]), text
    except UnicodeEncodeError as e:
        raise CorpusError(path, "the text holds half a surrogate pair: mend it", number) from e
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as e:
        raise CorpusError(path, "expected a JSON object with _id and text", number) from e
