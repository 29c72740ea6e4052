"""Make tiny seeded models of a given architecture, tokenizer included, so that a run can be tried in seconds."""

from __future__ import annotations

import hashlib
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedkit.errors import InputError

WIDTH = 64
POSITIONS = 512
_VOCABULARY = 1000
_SIZES = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
_DECODER = {
    **_SIZES,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.1,
}
_ENCODER = {**_SIZES, "max_position_embeddings": POSITIONS, "initializer_range": 0.1}


@dataclass(frozen=True, slots=True)
class _Family:
    """Say how a family splits text, which special tokens it has, and what its post-processor adds.

    `roles` maps transformers' names (bos_token …) to tokens, in the order of their ids.
    """

    model: str
    roles: dict[str, str]
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


_LLAMA = _Family("bpe", {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}, ("<s>",))
_BERT = _Family(
    "wordpiece",
    {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"},
    ("[CLS]",),
    ("[SEP]",),
)  # fmt: skip
# XLM-R counts positions from its padding's id on: <pad> must be 1.
_XLMR = _Family(
    "unigram",
    {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"},
    ("<s>",),
    ("</s>",),
)  # fmt: skip
_QWEN = _Family("bpe", {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}, (), ("<|endoftext|>",))
_GEMMA = _Family(
    "bpe",
    {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"},
    ("<bos>",),
)
_FAMILIES = {
    "mistral": _LLAMA,
    "llama": _LLAMA,
    "qwen2": _QWEN,
    "qwen3": _QWEN,
    "gemma3_text": _GEMMA,
    "bert": _BERT,
    "xlm-roberta": _XLMR,
}


def make_tiny_model(folder: Path, model_type: str, texts: Sequence[str], seed: int) -> Path:
    """Save a seeded model of `model_type`, 64 wide, and a tokenizer trained on `texts`, below `folder`.

    Return its own folder, whose name is made from all that decides its content: what is there already is kept, so
    that a resumed run meets the same model. Raises InputError for an architecture that has no tiny twin.
    """
    if model_type not in _FAMILIES:
        raise InputError(
            f"--tiny has no model of the architecture {model_type!r} (it has {', '.join(sorted(_FAMILIES))})"
        )
    key = hashlib.sha256("\0".join([model_type, str(seed), *texts]).encode("utf-8", "replace")).hexdigest()[
        :12
    ]
    target = folder / f"{model_type}-{key}"
    if target.is_dir():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".making-"))
    try:
        vocabulary = _save_tokenizer(temporary, _FAMILIES[model_type], texts)
        _save_weights(temporary, model_type, vocabulary, seed)
        temporary.chmod(0o755)
        temporary.replace(target)
    except OSError:
        if not target.is_dir():  # another process was first
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _save_tokenizer(folder: Path, family: _Family, texts: Sequence[str]) -> int:
    import transformers
    from tokenizers import processors

    names = [*family.roles.values()]
    make = {"wordpiece": _wordpiece, "unigram": _unigram, "bpe": _byte_level}[family.model]
    tokenizer = make(names, family.roles.get("unk_token", ""), texts)
    tokenizer.add_special_tokens(names)
    used = [(name, tokenizer.token_to_id(name)) for name in (*family.before, *family.after)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*family.before, "$A", *family.after], special_tokens=used
    )
    wrapper: Any = transformers.PreTrainedTokenizerFast
    wrapper(tokenizer_object=tokenizer, **family.roles).save_pretrained(str(folder))
    return int(tokenizer.get_vocab_size())


def _wordpiece(names: list[str], unknown: str, texts: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer: Any = Tokenizer(models.WordPiece(unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words = _counts(tokenizer, texts)
    letters = sorted({letter for word in words for letter in word})
    pieces = dict.fromkeys([*names, *letters, *(f"##{letter}" for letter in letters), *words])
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer.model = models.WordPiece(vocab=vocabulary, unk_token=unknown)
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _unigram(names: list[str], unknown: str, texts: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer: Any = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    words = _counts(tokenizer, texts)
    letters = sorted({letter for word in words for letter in word} - words.keys())
    pieces = [(name, 0.0) for name in names]
    pieces += [(letter, -10.0) for letter in letters]
    pieces += [(word, math.log(count)) for word, count in words.items()]
    tokenizer.model = models.Unigram(pieces, names.index(unknown))
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def _byte_level(names: list[str], unknown: str, texts: Sequence[str]) -> Any:
    """Return byte-level BPE, for every decoder family: a tiny vocabulary then has no unknown character."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    del unknown
    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY, special_tokens=names, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _counts(tokenizer: Any, texts: Sequence[str]) -> dict[str, int]:
    """Return the most frequent words with their counts; ties by spelling, as the library's trainers do not."""
    counts: Counter[str] = Counter()
    for text in texts:
        normal = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
        counts.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_VOCABULARY])


def _save_weights(folder: Path, model_type: str, vocabulary: int, seed: int) -> None:
    import torch
    import transformers
    from safetensors.torch import save_file

    family = _FAMILIES[model_type]
    ids = {role: i for i, role in enumerate(family.roles)}
    settings: dict[str, Any] = _ENCODER if model_type in ("bert", "xlm-roberta") else _DECODER
    settings = {**settings, "vocab_size": vocabulary, "pad_token_id": ids.get("pad_token")}
    settings |= {f"{role}_id": ids[role] for role in ("bos_token", "eos_token") if role in ids}
    if model_type == "xlm-roberta":
        settings["max_position_embeddings"] += 2
    if model_type in ("qwen3", "gemma3_text"):
        settings["head_dim"] = WIDTH // 4
    config = transformers.AutoConfig.for_model(model_type, **settings)
    with torch.random.fork_rng(devices=[]):  # the run's own random numbers stay as they were
        torch.manual_seed(seed)
        auto: Any = transformers.AutoModel
        model = auto.from_config(config)
    config.save_pretrained(str(folder))
    # transformers' own saving draws a progress bar.
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
