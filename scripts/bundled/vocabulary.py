"""Make the base of the bundled embedder: all-MiniLM-L6-v2 with a vocabulary of many languages.

    python scripts/bundled/vocabulary.py DATA OUT [--tokens 112000]

1. Learn WordPiece tokens from the foreign side of the training sets, so many characters a language.
2. Align them with English tokens over all parallel rows (IBM Model 1).
3. Start each new token vector as the mean of the English ones it stands for, at unit length; the model's body stays.

The result is a folder in the sentence-transformers layout. It already finds translations; training takes it from there.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from rows import ALIASES, LANGUAGES, Builder, base_folder
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from embedkit_trainer.vocabulary.alignment import Alignment
from embedkit_trainer.vocabulary.wordpiece import RUN, extend, learn_tokens, training_order

LEFT_OUT = ("tokenizer_config.json", "vocab.txt", ".gitattributes", "README.md", "data_config.json")
# Sets about the world at large come first: the others are manuals, which would fill the vocabulary with their jargon.
WORLDLY = (
    "ntrex", "tico19", "stories", "bible", "gatitos", "omw", "afriqa", "jaquad", "drcd", "cmrc2018", "iapp_th", "arcd",
    "norquad", "nli", "jsts", "wikipedia_app", "mozilla_www", "ha_intents",
)  # fmt: skip
CHARACTERS, CHARACTERS_OTHERS = 1_600_000, 80_000
# Scripts that say more in a character need fewer of them.
DENSE = {"ja": 0.7, "zh-Hans": 0.6, "zh-Hant": 0.35, "ko": 0.7}
# Tokens that change their form to `##…` fall together: learn more than are wanted.
SPARE = 1.09
LONGEST = {"foreign": 60, "english": 50}


def foreign_texts(builder: Builder) -> dict[str, list[str]]:
    """Return the texts of each language that is not English, worldly ones first and twice."""
    worldly: dict[str, set[str]] = defaultdict(set)
    others: dict[str, set[str]] = defaultdict(set)
    for row in builder.read(*[p.name for p in sorted(builder.data.iterdir())]):
        into = worldly if row["set"] in WORLDLY else others
        for text, language in ((row["query"], row["lang_q"]), (row["positive"], row["lang_d"])):
            if language not in ("en", "sh"):
                into[ALIASES.get(language, language)].add(text)
    draw = random.Random(1)
    texts = {}
    for language in sorted({*worldly, *others}):
        first = draw.sample(sorted(worldly[language]), len(worldly[language]))
        rest = draw.sample(sorted(others[language]), len(others[language]))
        texts[language] = [*first, *first, *rest]
    return texts


def budgets(texts: dict[str, list[str]]) -> dict[str, int]:
    """Return how many characters each language gives to the learning of tokens."""
    found = {}
    for language, own in texts.items():
        if language in LANGUAGES:
            found[language] = int(CHARACTERS * DENSE.get(language, 1.0))
        elif sum(map(len, own)) > 100_000:
            found[language] = CHARACTERS_OTHERS
    return found


def aligned(
    tokenizer: Tokenizer,
    base: Tokenizer,
    table: torch.Tensor,
    pairs: list[tuple[str, str, str, str]],
    rounds: int = 4,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the start vectors `[tokens, dim]` of a tokenizer's tokens, and how often each was aligned."""
    run = tokenizer.token_to_id(RUN)
    foreign = [x[x != run] for x in _ids(tokenizer, [p[0] for p in pairs])]
    english = _ids(base, [p[1] for p in pairs])
    kept = [
        i
        for i, (f, e) in enumerate(zip(foreign, english, strict=True))
        if 0 < len(f) <= LONGEST["foreign"] and 0 < len(e) <= LONGEST["english"]
    ]
    alignment = Alignment([foreign[i] for i in kept], [english[i] for i in kept], len(table))
    alignment.fit(rounds)
    return alignment.vectors(table, tokenizer.get_vocab_size())


def _ids(tokenizer: Tokenizer, texts: list[str], step: int = 20_000) -> list[np.ndarray]:  # type: ignore[type-arg]
    return [
        np.array(e.ids, np.int32)
        for i in range(0, len(texts), step)
        for e in tokenizer.encode_batch_fast(texts[i : i + step], add_special_tokens=False)
    ]


def start_table(
    tokenizer: Tokenizer, table: torch.Tensor, vectors: torch.Tensor, counts: torch.Tensor
) -> torch.Tensor:
    """Return the token table to start from: old rows, then aligned ones at unit length; the mean where none is known.

    Old tokens of other scripts, which the English model never learnt in earnest, start from their alignment, too.
    """
    old, mean = len(table), table[1000:].mean(dim=0)
    started = vectors / vectors.norm(dim=1, keepdim=True).clamp_min(0.05)
    started[counts < 0.5] = mean
    out = torch.cat([table, started[old:]])
    for token, i in tokenizer.get_vocab().items():
        foreign = any(ord(c) > 0x24F for c in token.removeprefix("##"))
        if i < old and foreign and counts[i] > 3:
            out[i] = started[i]
    out[tokenizer.token_to_id(RUN)] = mean
    return out


def save(folder: Path, out: Path, tokenizer: Tokenizer, table: torch.Tensor) -> None:
    """Write the base folder with a new tokenizer and token table."""
    if out.exists():
        shutil.rmtree(out)
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns(*LEFT_OUT))
    weights = load_file(folder / "model.safetensors")
    key = next(k for k in weights if k.endswith("word_embeddings.weight"))
    weights[key] = table.to(weights[key].dtype)
    save_file(
        {k: v.contiguous() for k, v in weights.items()}, out / "model.safetensors", metadata={"format": "pt"}
    )
    config = json.loads((out / "config.json").read_text(encoding="utf-8")) | {"vocab_size": len(table)}
    (out / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    tokenizer.save(str(out / "tokenizer.json"))
    special = {f"{n}_token": f"[{n.upper()}]" for n in ("unk", "sep", "pad", "cls", "mask")}
    described = {"tokenizer_class": "PreTrainedTokenizerFast", **special, "model_max_length": 256}
    (out / "tokenizer_config.json").write_text(json.dumps(described, indent=2), encoding="utf-8")


def main() -> None:
    """Make the base folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=int, default=112_000)
    args = parser.parse_args()
    builder = Builder(
        args.data / "train" if (args.data / "train").is_dir() else args.data, args.out.parent, seed=7
    )
    folder = base_folder()
    base = Tokenizer.from_file(str(folder / "tokenizer.json"))
    base.no_padding()
    base.no_truncation()
    texts = foreign_texts(builder)
    tokens = learn_tokens(training_order(texts, budgets(texts)), int(args.tokens * SPARE))
    tokenizer = extend(base, tokens, args.tokens)
    print(f"{tokenizer.get_vocab_size():,} tokens", flush=True)
    weights = load_file(folder / "model.safetensors")
    table = next(v for k, v in weights.items() if k.endswith("word_embeddings.weight")).float()
    vectors, counts = aligned(tokenizer, base, table, builder.pairs())
    print(f"{int((counts >= 0.5).sum()):,} tokens aligned", flush=True)
    save(folder, args.out, tokenizer, start_table(tokenizer, table, vectors, counts))


if __name__ == "__main__":
    main()
