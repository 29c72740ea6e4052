"""The README.md of a saved model: how to use it, what it was trained on, what it reached, what it cannot do."""

from __future__ import annotations

import json
import re
from pathlib import Path

from embedkit.embedders.saved import SavedModel
from embedkit.tasks import resolve_instruction

_POOLINGS = {
    "mean": "the mean of all token states",
    "weightedmean": "the mean of all token states, each weighted by its position",
    "cls": "the state of the first token",
    "last": "the state of EOS, the last token",
}


def model_card(record: SavedModel, *, name: str, adapter: bool, dim: int) -> str:
    """Return the card as Markdown with YAML front matter; `name` is the folder's own name."""
    instruction = resolve_instruction(record.default_task, None)
    kind = "A LoRA adapter" if adapter else "An embedding model"
    sides = (
        "Queries carry a one-sentence instruction; documents carry none, so that one index serves every task."
        if record.instruction_trained
        else "It was not trained on instructions."
    )
    parts = [
        _front_matter(record),
        f"# {name}",
        f"{kind} of {dim} dimensions, trained from `{_base(record)}`"
        f"{f' ({record.base_revision[:19]})' if record.base_revision else ''} with embedkit {record.version}. "
        f"Vectors are {_POOLINGS[record.pooling]}, scaled to unit length; compare them by inner product. {sides}",
        "## Use",
        _usage(record, name),
        "## How a text is encoded",
        _encoding(record, instruction),
        "## Training data",
        _sources(record),
        "## Measured",
        _metrics(record),
        "## Hyper-parameters",
        f"```toml\n{record.recipe.strip()}\n```" if record.recipe.strip() else "Not recorded.",
        "## Limits",
        _limits(record, adapter),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(record: SavedModel) -> str:
    lines = ["---", "library_name: sentence-transformers", "pipeline_tag: sentence-similarity"]
    lines += ["license: other", "license_name: of-the-base-model-and-the-training-data"]
    if _on_the_hub(record.base):  # the hub refuses a card that names anything else
        lines.append(f"base_model: {record.base}")
    lines += ["tags:", "- sentence-transformers", "- feature-extraction", "- embedkit"]
    lines.append(f"# trained on: {json.dumps([s.name for s in record.sources], ensure_ascii=False)}")
    return "\n".join([*lines, "---"])


def _on_the_hub(base: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", base) is not None and not Path(base).exists()


def _base(record: SavedModel) -> str:
    """Return the base's hub id, or its folder's name: nobody else has the folder where it is."""
    return record.base if _on_the_hub(record.base) else Path(record.base).name


def _usage(record: SavedModel, name: str) -> str:
    task = f', task="{record.default_task or "search"}"' if record.instruction_trained else ""
    return f"""embedkit:

```python
from embedkit import get_embedder

embedder = get_embedder("./{name}")
queries = embedder.encode_query(["how do I cancel?"]{task})
documents = embedder.encode_document(["Write to us thirty days ahead."])
print(queries @ documents.T)
```

sentence-transformers (the prompt "query" holds the default instruction):

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("./{name}")
queries = model.encode(["how do I cancel?"], prompt_name="query")
documents = model.encode(["Write to us thirty days ahead."], prompt_name="document")
print(queries @ documents.T)
```

LlamaIndex:

```python
from embedkit.llama_index import EmbedkitEmbedding

embedding = EmbedkitEmbedding("./{name}")
print(len(embedding.get_query_embedding("how do I cancel?")))
```"""


def _encoding(record: SavedModel, instruction: str | None) -> str:
    template = record.template
    rows = [
        ("a query that names no task", template.render_query("{query}", instruction)),
        ("a query under an instruction", template.instruct),
        ("a document", template.document),
    ]
    table = ["| side | string |", "| --- | --- |", *(f"| {side} | `{_cell(text)}` |" for side, text in rows)]
    return "\n".join(table) + (
        f"\n\nTrained on queries of up to {record.query_length} tokens and documents of up to {record.document_length}, "
        "special tokens included; longer texts are cut."
    )


def _sources(record: SavedModel) -> str:
    if not record.sources:
        return "Not recorded."
    rows = [f"| {_cell(s.name)} | {s.rows:,} | {_cell(s.licence) or 'not stated'} |" for s in record.sources]
    return "\n".join(["| source | rows | licence |", "| --- | ---: | --- |", *rows])


def _metrics(record: SavedModel) -> str:
    if not record.metrics:
        return "Nothing was measured during training."
    rows = [f"| {_cell(name)} | {value:.4f} |" for name, value in record.metrics.items()]
    return "\n".join(["| figure | value |", "| --- | ---: |", *rows])


def _limits(record: SavedModel, adapter: bool) -> str:
    unstated = [s.name for s in record.sources if not s.licence]
    lines = [
        "- Licences: those of the base model and of every source above apply; this card grants none.",
        "- Languages, domains and tasks that the sources do not hold are served no better than the base model does.",
        "- A score ranks; it is no probability, and scores of two models do not compare.",
    ]
    if unstated:
        lines.append(
            f"- No licence was stated for {', '.join(unstated)}: find out before you publish the model."
        )
    if adapter:
        lines.append(f"- An adapter alone: it needs its base, `{_base(record)}`, unchanged.")
    if not record.instruction_trained:
        lines.append(
            "- An instruction is read as part of the query's text; rankings may change for the worse."
        )
    lines.append(
        "- `embedkit.json` holds texts with the ids and vectors they had in training; embedkit refuses to open the folder "
        "where they come out otherwise."
    )
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "\\n")
