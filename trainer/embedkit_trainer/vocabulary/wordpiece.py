"""Extend the WordPiece vocabulary of an English BERT by tokens of other languages.

The old tokens keep their ids, and English text keeps its tokens; the new ones follow. The tokenizer that comes out
differs from the English one in what it does before it looks words up: marks and accents stay (they carry vowels in
Hindi and Thai and tones in Vietnamese), and Chinese characters are not set apart, so that a word of several characters
can be a token. A run of a script without spaces is set apart from what is around it and begins with a token of its
own, RUN: so every token inside has one form (`##…`) wherever it stands. Such a run is cut at the longest token that
fits, from the left.

WordPiece gives a whole word up for one character that no token continues it with. So marks of that kind are left out,
and other such characters (emoji, symbols, letters of other alphabets) are set apart: in "refund😡" the refund stays.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

# A run without spaces is cut here: WordPiece tries every end of a run from every start.
LONGEST_RUN = 64
RUN = "\u2581"
_PIECES = 2  # of a run that begin anew; what is longer is cut anyhow, and a token may be unknown there
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\u30fc\u3005"
_UNSPACED_BLOCKS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_STARTS_UNSPACED = re.compile(f"[{_UNSPACED_BLOCKS}]")


def training_order(texts: Mapping[str, Sequence[str]], characters: Mapping[str, int]) -> Iterator[str]:
    """Give the texts of each language until it has given so many characters, again from the start where it ends."""
    for language, budget in characters.items():
        own = texts[language]
        given = 0
        while own and given < budget:
            for text in own:
                given += len(text)
                yield text
                if given >= budget:
                    break


def learn_tokens(texts: Iterable[str], size: int) -> list[str]:
    """Learn up to `size` WordPiece tokens from texts, the most useful first."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    # Without RUN, which would grow together with what follows it.
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer(" "), pre_tokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=["[UNK]"], show_progress=False, limit_alphabet=8000
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary = tokenizer.get_vocab()
    ranked = sorted((t for t in vocabulary if t != "[UNK]"), key=vocabulary.__getitem__)
    return [RUN, *dict.fromkeys(f"##{t}" if _STARTS_UNSPACED.match(t) else t for t in ranked)]


def extend(base: Tokenizer, tokens: Iterable[str], size: int) -> Tokenizer:
    """Return a tokenizer with the tokens of `base` under their ids, then new ones up to `size` tokens in all."""
    described = json.loads(base.to_str())
    vocabulary: dict[str, int] = dict(described["model"]["vocab"])
    for token in tokens:
        if len(vocabulary) >= size:
            break
        vocabulary.setdefault(token, len(vocabulary))
    extended = Tokenizer(
        models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=LONGEST_RUN)
    )
    continuing = _continuing(vocabulary)
    marks = _inside(c for c in continuing if _kind(c) == "M")
    extended.normalizer = normalizer(unspaced=known_characters(vocabulary) or _UNSPACED, marks=marks)
    extended.pre_tokenizer = pre_tokenizer(_words(continuing, {t for t in vocabulary if len(t) == 1}))
    extended.post_processor, extended.decoder = base.post_processor, base.decoder
    for token in described["added_tokens"]:
        if token["special"]:
            extended.add_special_tokens([token["content"]])
    return extended


def normalizer(
    run: str = f" {RUN}", unspaced: str = _UNSPACED, marks: str | None = None
) -> normalizers.Normalizer:
    """Return what happens to a text first: NFKC, control characters out, lower case; accents stay; runs set apart.

    `unspaced` is what a character class holds: the characters that make up runs. A longer run begins anew after
    LONGEST_RUN characters, RUN counted in. `marks`, of the same form, are the combining marks that stay; None: all.
    """
    inside = f"[{unspaced}]"
    steps = [
        normalizers.NFKC(),
        normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=False, strip_accents=False, lowercase=True
        ),
        *([] if marks is None else [normalizers.Replace(Regex(_unknown_marks(marks)), "")]),
        normalizers.Replace(Regex(f"(?<!{inside})(?={inside})"), run),
        normalizers.Replace(Regex(rf"(?<={inside})(?!{inside}|\s)"), " "),
    ]
    if run.strip():
        # One piece more each time: a look-behind of any length takes ten times longer than all else.
        begun = Regex(f"(?<={run.strip()}{inside}{{{LONGEST_RUN - 1}}})(?={inside})")
        steps += [normalizers.Replace(begun, run)] * _PIECES
    return normalizers.Sequence(steps)


def known_characters(vocabulary: Iterable[str]) -> str:
    """Return the inside of a character class: the unspaced characters that have a token `##c`.

    A run is made of these alone. WordPiece gives a whole word up for one unknown character, and a run is a clause.
    """
    return _inside(c for c in _continuing(vocabulary) if _STARTS_UNSPACED.match(c))


def pre_tokenizer(words: str = rf"[\s\S]{{1,{LONGEST_RUN}}}") -> pre_tokenizers.PreTokenizer:
    """Return the cut into words: at spaces and around punctuation, and in runs of more than LONGEST_RUN characters.

    `words` is a regular expression that matches the pieces of what lies between: it leaves nothing out.
    """
    return pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Split(Regex(words), behavior="isolated")]
    )


def _words(continuing: set[str], beginning: set[str]) -> str:
    """Return what `pre_tokenizer` cuts by, for characters that are tokens `##c` and those that are tokens `c`.

    A character that can only begin a word begins one (it may be a letter, or RUN), or is one where it is a symbol.
    Characters of neither kind are one word together: the unknown token says the same of one as of ten.
    """
    known = {c for c in continuing if not _STARTS_UNSPACED.match(c) and not _cut_by_bert(c)}
    heads = {c for c in beginning - continuing if not _STARTS_UNSPACED.match(c) and not _cut_by_bert(c)}
    symbols = {c for c in heads if _kind(c) == "S" and c != RUN}
    inside, more = _inside(known), LONGEST_RUN - 1
    pieces = [f"[{inside}]{{1,{LONGEST_RUN}}}"] if known else []
    if letters := heads - symbols:
        pieces.append(f"[{_inside(letters)}][{inside}{_UNSPACED_BLOCKS}]{{0,{more}}}")
    if symbols:
        pieces.append(rf"[{_inside(symbols)}]\p{{M}}{{0,{more}}}")
    neither = f"[^{_inside(known | heads)}]" if known | heads else r"[\s\S]"
    pieces.append(rf"{neither}(?:{neither}|\p{{M}}){{0,{more}}}")
    return "|".join(pieces)


def _continuing(vocabulary: Iterable[str]) -> set[str]:
    """Return the characters that have a token `##c`."""
    return {t[2] for t in vocabulary if len(t) == 3 and t.startswith("##")}


def _kind(character: str) -> str:
    """Return the first letter of a character's category: L a letter, M a mark, S a symbol …"""
    return unicodedata.category(character)[0]


def _cut_by_bert(character: str) -> bool:
    """Say whether BertPreTokenizer makes a word of its own of this character: punctuation."""
    return _kind(character) == "P" or (character.isascii() and not character.isalnum())


def _unknown_marks(marks: str) -> str:
    return rf"[\p{{M}}&&[^{marks}]]" if marks else r"\p{M}"


def _inside(characters: Iterable[str]) -> str:
    """Return the inside of a character class that holds these characters; none of them may mean something there."""
    spans: list[list[int]] = []
    for code in sorted(map(ord, set(characters))):
        if spans and code == spans[-1][1] + 1:
            spans[-1][1] = code
        else:
            spans.append([code, code])
    return "".join(chr(a) if a == b else f"{chr(a)}-{chr(b)}" for a, b in spans)
