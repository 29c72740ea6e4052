"""WordPiece tokenizers as the bundled models have them, small, made from the sample corpus."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

CORPUS = Path(__file__).parents[2] / "examples" / "corpus" / "corpus.jsonl"
# Scripts that the corpus does not have.
MORE = (
    "მთვარის მიზიდულობა იწვევს მოქცევას.",
    "Լուսնի ձգողությունը մակընթացություն է առաջացնում։",
    "የጨረቃ ስበት ማዕበልን ያስከትላል።",
    "চাঁদের মহাকর্ষ জোয়ার ঘটায়।",
    "நிலவின் ஈர்ப்பு அலைகளை உண்டாக்குகிறது.",
    "చంద్రుని ఆకర్షణ వల్ల అలలు వస్తాయి.",
    "ဒီရေသည် လ၏ဆွဲအားကြောင့် ဖြစ်သည်။",
    "ជំនោរកើតឡើងដោយសារព្រះចន្ទ។",
    "ນ້ຳຂຶ້ນນ້ຳລົງເກີດຈາກດວງຈັນ.",
    "ਚੰਦ ਦੀ ਖਿੱਚ ਨਾਲ ਜਵਾਰ ਆਉਂਦਾ ਹੈ।",
)
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\u30fc\u3005"


def texts() -> list[str]:
    """Return texts in more than twenty languages and fifteen scripts, code among them."""
    rows = [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    return [*(str(row["text"]) for row in rows), *MORE]


def tokenizer(seed: int = 0, longest: int = 48) -> Tokenizer:
    """Return a tokenizer that sets runs of unspaced scripts apart, with a vocabulary drawn from the texts.

    Some characters are left out of it, so that words come out unknown.
    """
    draw = random.Random(seed)
    vocabulary = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "\u2581", "#", "##", "a", "##a"])
    for text in texts():
        for word in text.lower().split():
            start = draw.randrange(len(word))
            piece = word[start : start + draw.randint(1, 5)]
            vocabulary |= dict.fromkeys(
                [piece, f"##{piece}", *word[:9:2], *(f"##{character}" for character in word[:9])]
            )
    made = Tokenizer(
        models.WordPiece(
            {token: i for i, token in enumerate(vocabulary)},
            unk_token="[UNK]",
            max_input_chars_per_word=longest,
        )
    )
    parts: list[Any] = [
        normalizers.NFKC(),
        normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=False, strip_accents=False, lowercase=True
        ),
        normalizers.Replace(Regex(rf"(?<![{_UNSPACED}])(?=[{_UNSPACED}])"), " \u2581"),
        normalizers.Replace(Regex(rf"(?<=[{_UNSPACED}])(?![{_UNSPACED}\s])"), " "),
    ]
    cut: list[Any] = [
        pre_tokenizers.BertPreTokenizer(),
        pre_tokenizers.Split(Regex(rf"[\s\S]{{1,{longest}}}"), behavior="isolated"),
    ]
    untyped: Any = made
    untyped.normalizer = normalizers.Sequence(parts)
    untyped.pre_tokenizer = pre_tokenizers.Sequence(cut)
    untyped.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    return made
