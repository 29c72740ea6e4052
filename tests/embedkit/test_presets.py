"""Presets: each family's template, special tokens and pooling, against vectors by plain transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from embedkit.embedders.presets import get_preset, list_presets, match_preset
from embedkit.embedders.transformer import TransformerEmbedder
from embedkit.errors import UnknownNameError
from tests.embedkit.tiny_models import (
    BARE,
    BERT,
    GEMMA,
    LLAMA,
    QWEN2,
    QWEN3,
    TEXTS,
    XLMR,
    Specials,
    cosines,
    plain_ids,
    plain_model,
    plain_vectors,
    save_model,
)

pytest.importorskip("torch", reason="needs the extra [torch]")
pytest.importorskip("transformers", reason="needs the extra [torch]")

INSTRUCTION = "Find the recipe"
SEARCH = "Given a web search query, retrieve relevant passages that answer the query"


@dataclass(frozen=True)
class Family:
    """Say by hand what a preset must do; `query`, `instruct` and `document` stand before the text."""

    preset: str
    hub: str
    architecture: str
    specials: Specials
    before: tuple[str, ...]
    after: tuple[str, ...]
    pooling: str
    query: str
    instruct: str
    document: str


Shape = tuple[str, Specials, tuple[str, ...], tuple[str, ...]]  # architecture, tokenizer, before, after


def _instruct(preset: str, hub: str, shape: Shape, pooling: str, gap: str = " ") -> Family:
    instruct = f"Instruct: {INSTRUCTION}\nQuery:{gap}"
    return Family(preset, hub, *shape, pooling, f"Instruct: {SEARCH}\nQuery:{gap}", instruct, "")


def _prefix(preset: str, hub: str, shape: Shape, pooling: str, heads: tuple[str, str] = ("", "")) -> Family:
    query, document = heads
    return Family(preset, hub, *shape, pooling, query, f"{query}{INSTRUCTION} ", document)


B, E, END = ("<s>",), ("</s>",), ("<|endoftext|>",)
BERT_BASE: Shape = ("Bert", BERT, ("[CLS]",), ("[SEP]",))
XLMR_BASE: Shape = ("XLMRoberta", XLMR, B, E)
E5_HEADS = ("query: ", "passage: ")
BGE_HEADS = ("Represent this sentence for searching relevant passages: ", "")
FAMILIES = [
    _instruct("e5-mistral", "intfloat/e5-mistral-7b-instruct", ("Mistral", LLAMA, B, E), "last"),
    _instruct("e5-mistral", "Salesforce/SFR-Embedding-2_R", ("Mistral", BARE, B, E), "last"),
    _instruct("me5-instruct", "intfloat/multilingual-e5-large-instruct", XLMR_BASE, "mean"),
    _instruct("gte-qwen2", "Alibaba-NLP/gte-Qwen2-1.5B-instruct", ("Qwen2", QWEN2, (), END), "last"),
    _instruct("qwen3", "Qwen/Qwen3-Embedding-0.6B", ("Qwen3", QWEN3, (), END), "last", gap=""),
    _prefix("e5", "intfloat/e5-small-v2", BERT_BASE, "mean", E5_HEADS),
    _prefix("e5", "intfloat/multilingual-e5-base", XLMR_BASE, "mean", E5_HEADS),
    _prefix("bge", "BAAI/bge-small-en-v1.5", BERT_BASE, "cls", BGE_HEADS),
    _prefix("bge-zh", "BAAI/bge-large-zh-v1.5", BERT_BASE, "cls", ("为这个句子生成表示以用于检索相关文章：", "")),
    _prefix("bge-m3", "BAAI/bge-m3", XLMR_BASE, "cls"),
    _prefix("gte", "thenlper/gte-base", BERT_BASE, "mean"),
    _prefix("gte-cls", "Alibaba-NLP/gte-modernbert-base", ("ModernBert", *BERT_BASE[1:]), "cls"),
    _prefix("gte-cls", "Alibaba-NLP/gte-base-en-v1.5", ("Gte", *BERT_BASE[1:]), "cls"),
    _prefix("sbert", "sentence-transformers/all-MiniLM-L6-v2", BERT_BASE, "mean"),
    _prefix("simcse", "princeton-nlp/unsup-simcse-bert-base-uncased", BERT_BASE, "cls"),
    _prefix("repllama", "castorini/repllama-v1-7b-lora-passage", ("Llama", LLAMA, B, E), "last", E5_HEADS),
    Family(
        "embeddinggemma", "google/embeddinggemma-300m", "Gemma3Text", GEMMA, ("<bos>",), ("<eos>",), "mean",
        "task: search result | query: ", "task: Find the recipe | query: ", "title: none | text: ",
    ),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::embedkit.embedder.InstructionWarning")
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.hub.split("/")[1])
def test_preset_equals_plain_transformers(family: Family, tmp_path: Path) -> None:
    """Ids and vectors of queries, instructed queries and documents equal those made by hand (cosine 0.9999)."""
    folder = save_model(tmp_path / family.hub, family.architecture, family.specials)
    embedder = TransformerEmbedder.open(str(folder), dtype="float32")
    model = plain_model(folder)
    for head, vectors in (
        (family.query, embedder.encode_query(TEXTS)),
        (family.instruct, embedder.encode_query(TEXTS, instruction=INSTRUCTION)),
        (family.document, embedder.encode_document(TEXTS)),
    ):
        rendered = [head + text for text in TEXTS]
        rows = [plain_ids(folder, text, family.before, family.after) for text in rendered]
        assert embedder.token_ids(rendered) == rows
        assert embedder.count_tokens(rendered) == [len(row) for row in rows]
        expected = plain_vectors(model, rows, family.pooling)
        assert cosines(vectors, expected).min() >= 0.9999
        others = expected @ expected.T - np.eye(len(TEXTS))
        assert others.max() < 0.9999, "the model tells no two texts apart: the comparison proves nothing"


def test_every_preset_has_a_family_here() -> None:
    """No preset is left without a comparison against plain transformers."""
    assert {f.preset for f in FAMILIES} == set(list_presets())


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.hub.split("/")[1])
def test_hub_id_finds_its_preset(family: Family) -> None:
    """The published name of a model leads to its family, whatever the case of its letters."""
    found = match_preset(family.hub), match_preset(family.hub.upper())
    assert [p and p.name for p in found] == [family.preset] * 2


@pytest.mark.parametrize(
    "name",
    ["bert-base-uncased", "intfloat/e5-something-else", "BAAI/bge-reranker-base", "BAAI/bge-multilingual-gemma2", "BAAI/bge-en-icl", "nvidia/NV-Embed-v2", ""],
)  # fmt: skip
def test_other_names_match_no_preset(name: str) -> None:
    """A model that no family covers is not taken for one of them."""
    assert match_preset(name) is None


def test_unknown_preset_suggests_the_nearest() -> None:
    """A misspelt preset is refused with the right spelling."""
    with pytest.raises(UnknownNameError, match="e5-mistral"):
        get_preset("e5-mistal")


def test_instruct_families_search_by_default() -> None:
    """A family trained with `Instruct:` has the default task search; the others none."""
    for preset in list_presets().values():
        instruct = preset.template.instruct.startswith("Instruct:")
        assert (preset.default_task == "search") is instruct
        assert preset.instruction_trained is (instruct or preset.name == "embeddinggemma")
