"""Tiny seeded models and tokenizers of every family, and vectors computed from them by plain transformers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TEXTS = [
    "A bicycle needs air in its tyres.",
    "Which planet has the most moons, and who counted them first?",
    "Rain.",
    "The cook adds salt, pepper and two spoons of oil to the soup, then waits for an hour while it simmers.",
    "Wer zählt die Wolken über der Stadt?",
    "salt and pepper",
    "An index is built once and searched under any instruction, which is why documents are encoded bare. "
    * 2,
]
_CORPUS = [*TEXTS, "Instruct: query passage task title none text search result Represent this sentence"] * 4
_SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
_GROUPED = {**_SIZES, "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.1}
_ENCODER = {**_SIZES, "max_position_embeddings": 258, "initializer_range": 0.1}


@dataclass(frozen=True)
class Specials:
    """Name the special tokens of a tokenizer and what its post-processor adds."""

    bos: str | None
    eos: str
    pad: str
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


BERT = Specials("[CLS]", "[SEP]", "[PAD]", ("[CLS]",), ("[SEP]",))
XLMR = Specials("<s>", "</s>", "<pad>", ("<s>",), ("</s>",))
# As transformers 5 loads E5-mistral's: the post-processor adds <s> and forgets </s>.
LLAMA = Specials("<s>", "</s>", "</s>", ("<s>",))
BARE = Specials("<s>", "</s>", "</s>")
GEMMA = Specials("<bos>", "<eos>", "<pad>", ("<bos>",))
QWEN2 = Specials(None, "<|endoftext|>", "<|endoftext|>")
QWEN3 = Specials(None, "<|im_end|>", "<|endoftext|>", (), ("<|endoftext|>",))


def _words(tokenizer: Any) -> dict[str, int]:
    """Return the corpus' words and how often each stands in it, sorted: the same in every process."""
    counts: Counter[str] = Counter()
    for text in _CORPUS:
        normal = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
        counts.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal))
    return dict(sorted(counts.items()))


def save_tokenizer(folder: Path, specials: Specials, padding_side: str = "right") -> int:
    """Make a small tokenizer in the family's manner, save it, return its vocabulary's size.

    Pieces of words are learned by byte pairs alone: what the library learns for WordPiece and Unigram differs from
    process to process, so that their vocabularies are all words and letters.
    """
    import transformers
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    names = list(
        dict.fromkeys(n for n in (specials.bos, specials.pad, specials.eos, "<unk>", *specials.after) if n)
    )
    trainer: Any = None
    if specials == BERT:
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        words = _words(tokenizer)
        letters = sorted({letter for word in words for letter in word})
        pieces = dict.fromkeys([*names, *letters, *(f"##{letter}" for letter in letters), *words])
        tokenizer.model = models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="<unk>")
    elif specials == XLMR:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        words = _words(tokenizer)
        letters = sorted({letter for word in words for letter in word} - words.keys())
        scored = [*((name, 0.0) for name in names), *((letter, -10.0) for letter in letters)]
        scored += [(word, math.log(count / len(_CORPUS))) for word, count in words.items()]
        tokenizer.model = models.Unigram(scored, names.index("<unk>"))
    elif specials in (QWEN2, QWEN3):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=names, initial_alphabet=alphabet, show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=names, show_progress=False)
    tokenizer.add_special_tokens(names)
    if trainer is not None:
        tokenizer.train_from_iterator(_CORPUS, trainer)
    if specials.before or specials.after:
        used = [(n, tokenizer.token_to_id(n)) for n in (*specials.before, *specials.after)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*specials.before, "$A", *specials.after], special_tokens=used
        )
    roles = {"bos_token": specials.bos, "cls_token": "[CLS]" if specials == BERT else None}
    wrapper: Any = transformers.PreTrainedTokenizerFast
    wrapper(
        tokenizer_object=tokenizer,
        eos_token=specials.eos,
        pad_token=specials.pad,
        unk_token="<unk>",
        sep_token="[SEP]" if specials == BERT else None,
        padding_side=padding_side,
        **{k: v for k, v in roles.items() if v},
    ).save_pretrained(str(folder))
    return int(tokenizer.get_vocab_size())


def save_model(folder: Path, architecture: str, specials: Specials, seed: int = 0, **changes: Any) -> Path:
    """Save a seeded model of `architecture` with its tokenizer; return the folder."""
    import torch
    import transformers

    vocab = save_tokenizer(folder, specials, changes.pop("padding_side", "right"))
    # <s> has id 0 and <pad> id 1, as in XLM-R, which counts positions from there.
    options: dict[str, Any] = {"vocab_size": vocab, "pad_token_id": 1 if specials == XLMR else 0}
    if architecture in ("Bert", "XLMRoberta", "Gte"):
        options |= _ENCODER
    else:
        options |= _GROUPED
    if architecture == "Qwen3":
        options["head_dim"] = 16
    if architecture == "Gemma3Text":
        options |= {"head_dim": 16, "use_bidirectional_attention": True, "sliding_window": 8}
    config = getattr(transformers, f"{architecture}Config")(**(options | changes))
    torch.manual_seed(seed)
    model = getattr(transformers, f"{architecture}Model")(config)
    with torch.no_grad():  # biases and norms begin at 0 and 1: move them, so that forgetting one shows
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and "norm" not in name.lower():
                parameter.normal_(0, 0.1)
            elif parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.eval().save_pretrained(str(folder))
    return folder


def plain_model(folder: Path) -> Any:
    """Load the model by plain transformers, in float32."""
    import torch
    from transformers import AutoModel

    return AutoModel.from_pretrained(str(folder), dtype=torch.float32).eval()


def plain_ids(folder: Path, text: str, before: Sequence[str], after: Sequence[str]) -> list[int]:
    """Return the ids of one text between the named special tokens, straight from tokenizer.json."""
    from tokenizers import Tokenizer

    tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
    body = tokenizer.encode(text, add_special_tokens=False).ids
    return [*map(tokenizer.token_to_id, before), *body, *map(tokenizer.token_to_id, after)]


def plain_vectors(model: Any, rows: Sequence[Sequence[int]], pooling: str) -> NDArray[np.float32]:
    """Return unit vectors by plain transformers: one sequence a time, no padding, no mask."""
    import torch

    vectors = []
    for ids in rows:
        with torch.no_grad():
            states = model(input_ids=torch.tensor([list(ids)])).last_hidden_state[0].float()
        vector = {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling]
        vectors.append((vector / vector.norm()).numpy())
    return np.stack(vectors)


def cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosine of each row of `a` with the same row of `b`."""
    rows: NDArray[np.float32] = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return rows
