"""What each family of embedders expects: pooling, special tokens, template; a record each, matched by name."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from embedkit.contract import Pooling, Template
from embedkit.errors import UnknownNameError


@dataclass(frozen=True, slots=True)
class Preset:
    """Describe one family.

    `pattern` is searched in the lower-cased hub id or folder name. `bos` and `eos` say whether a sequence
    begins with the tokenizer's BOS and which token ends it (a token's text, or "eos" for the tokenizer's
    own); None leaves both to the tokenizer's post-processor. `max_length` counts tokens; None: the model's.
    """

    name: str
    description: str
    pattern: str
    pooling: Pooling
    template: Template = field(default_factory=Template)
    max_length: int | None = None
    bos: bool | None = None
    eos: str | None = None
    instruction_trained: bool = False
    default_task: str | None = None


def _prefixed(query: str = "", document: str = "") -> Template:
    """Return the template of a family that knows prefixes only; an instruction goes before the query."""
    return Template(
        query=query + "{query}", instruct=query + "{instruction} {query}", document=document + "{text}"
    )


_INSTRUCT = Template(query="{query}", instruct="Instruct: {instruction}\nQuery: {query}", document="{text}")

_PRESETS = (
    Preset(
        "e5-mistral",
        "E5-mistral and its kin (SFR, Linq): last token, instruction on the query (arXiv 2401.00368)",
        r"e5-mistral|sfr-embedding-(mistral|2)|linq-embed-mistral",
        "last",
        _INSTRUCT,
        max_length=4096,
        bos=True,
        eos="eos",
        instruction_trained=True,
        default_task="search",
    ),
    Preset(
        "me5-instruct",
        "multilingual E5 instruct: mean, instruction on the query",
        r"multilingual-e5-\w+-instruct",
        "mean",
        _INSTRUCT,
        max_length=512,
        instruction_trained=True,
        default_task="search",
    ),
    Preset(
        "e5",
        "E5 and multilingual E5: mean, `query: ` and `passage: `",
        r"(^|/)((multilingual-)?e5-(small|base|large)(-v2|-unsupervised)?)$",
        "mean",
        _prefixed("query: ", "passage: "),
        max_length=512,
    ),
    Preset(
        "bge-m3",
        "BGE-M3's dense vectors: CLS, no prefix",
        r"(^|/)bge-m3($|-(unsupervised|retromae))",
        "cls",
        _prefixed(),
        max_length=8192,
    ),
    Preset(
        "bge-zh",
        "BGE Chinese: CLS, its sentence before a query",
        r"(^|/)bge-(small|base|large)-zh",
        "cls",
        _prefixed("为这个句子生成表示以用于检索相关文章："),
        max_length=512,
    ),
    Preset(
        "bge",
        "BGE English: CLS, its sentence before a query",
        r"(^|/)bge-(small|base|large)-en",
        "cls",
        _prefixed("Represent this sentence for searching relevant passages: "),
        max_length=512,
    ),
    Preset(
        "gte-qwen2",
        "gte-Qwen2: last token, instruction on the query",
        r"gte-qwen(2|1\.5)",
        "last",
        _INSTRUCT,
        max_length=8192,
        bos=False,
        eos="<|endoftext|>",
        instruction_trained=True,
        default_task="search",
    ),
    Preset(
        "gte-cls",
        "GTE of the second generation (v1.5, multilingual, ModernBERT): CLS, no prefix",
        r"gte-(base|large)-(en-)?v1\.5|gte-multilingual-base|gte-modernbert",
        "cls",
        _prefixed(),
        max_length=8192,
    ),
    Preset(
        "gte",
        "GTE: mean, no prefix (arXiv 2308.03281)",
        r"(^|/)gte-(small|base|large)$",
        "mean",
        _prefixed(),
        max_length=512,
    ),
    Preset(
        "qwen3",
        "Qwen3-Embedding: last token, instruction on the query, no space after `Query:`",
        r"qwen3-embedding",
        "last",
        Template(query="{query}", instruct="Instruct: {instruction}\nQuery:{query}", document="{text}"),
        max_length=8192,
        bos=False,
        eos="<|endoftext|>",
        instruction_trained=True,
        default_task="search",
    ),
    Preset(  # its own words for search stand in `query`: a better default than a sentence it never saw
        "embeddinggemma",
        "EmbeddingGemma: mean over BOS, text and EOS, `task: … | query: ` and `title: none | text: `",
        r"embeddinggemma",
        "mean",
        Template(
            query="task: search result | query: {query}",
            instruct="task: {instruction} | query: {query}",
            document="title: none | text: {text}",
        ),
        max_length=2048,
        bos=True,
        eos="eos",
        instruction_trained=True,
    ),
    Preset(
        "repllama",
        "RepLLaMA / RankLLaMA-style LLaMA-2: last token, `query: ` and `passage: `",
        r"repllama",
        "last",
        _prefixed("query: ", "passage: "),
        max_length=512,
        bos=True,
        eos="eos",
    ),
    Preset(
        "simcse",
        "SimCSE: CLS, no prefix, without the pooler that the supervised models were published with",
        r"simcse",
        "cls",
        _prefixed(),
        max_length=512,
    ),
    Preset(
        "sbert",
        "Sentence-BERT and sentence-transformers' own models: mean, no prefix",
        r"(^|/)(all|paraphrase|multi-qa|msmarco|distiluse|stsb|nli|gtr|sentence-t5)-|^sentence-transformers/",
        "mean",
        _prefixed(),
    ),
)
_BY_NAME = {p.name: p for p in _PRESETS}


def list_presets() -> dict[str, Preset]:
    """Return the presets by name, sorted."""
    return dict(sorted(_BY_NAME.items()))


def get_preset(name: str) -> Preset:
    """Return the preset called `name`. Raises UnknownNameError with the nearest names."""
    if name not in _BY_NAME:
        raise UnknownNameError("preset", name, _BY_NAME)
    return _BY_NAME[name]


def match_preset(*names: str) -> Preset | None:
    """Return the first preset whose pattern occurs in one of `names` (hub ids, folder names), or None."""
    for name in names:
        plain = name.rstrip("/\\").replace("\\", "/").lower()
        for preset in _PRESETS:
            if re.search(preset.pattern, "/".join(plain.split("/")[-2:])):
                return preset
    return None
