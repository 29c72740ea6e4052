"""The language of a text, as an ISO 639-1 code (639-3 where there is none), or "und"."""

from __future__ import annotations

import re
from bisect import bisect_right
from functools import cache
from typing import TYPE_CHECKING

from embedkit.errors import InputError

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

UNKNOWN = "und"
# Bytes that the detector walks, one by one and in Python: 300 are as good as 1,000, and 120 where they
# make it sure (benchmarks/language_detection.py).
_SAMPLE = 300
_FIRST = 120
_SURE = 0.8
# Below this confidence 8 of 18 answers are wrong; "python" or "AI" alone have no language.
_CONFIDENCE = 0.2

# Scripts that one language nearly owns: (first code point, last, language).
_SCRIPTS = (
    (0x0370, 0x03FF, "el"),
    (0x0530, 0x058F, "hy"),
    (0x0A00, 0x0A7F, "pa"),
    (0x0A80, 0x0AFF, "gu"),
    (0x0B00, 0x0B7F, "or"),
    (0x0B80, 0x0BFF, "ta"),
    (0x0C00, 0x0C7F, "te"),
    (0x0C80, 0x0CFF, "kn"),
    (0x0D00, 0x0D7F, "ml"),
    (0x0D80, 0x0DFF, "si"),
    (0x0E00, 0x0E7F, "th"),
    (0x0E80, 0x0EFF, "lo"),
    (0x1000, 0x109F, "my"),
    (0x10A0, 0x10FF, "ka"),
    (0x1780, 0x17FF, "km"),
    (0x3040, 0x30FF, "ja"),
    (0xAC00, 0xD7AF, "ko"),
)
_STARTS = [first for first, _, _ in _SCRIPTS]
_DECIDED = re.compile("[" + "".join(f"{chr(first)}-{chr(last)}" for first, last, _ in _SCRIPTS) + "]")
_LETTER = re.compile(r"[^\W\d_]")

# What the detector tells apart and a filter should not: standard Chinese taken for Wu, spoken Arabic, Pidgin.
_FOLDED = {"wuu": "zh", "ary": "ar", "arz": "ar", "pcm": "en", "gug": "gn", "kik": "ki", "zxx": UNKNOWN}

# ISO 639-2/3 and the macrolanguages' common members, to ISO 639-1.
_ISO = """
aar:aa abk:ab afr:af aka:ak twi:tw amh:am ara:ar arb:ar arg:an asm:as ava:av ave:ae aym:ay ayr:ay aze:az azj:az
bak:ba bam:bm bel:be ben:bn bis:bi bod:bo tib:bo bos:bs bre:br bul:bg cat:ca ces:cs cze:cs cha:ch che:ce chu:cu
chv:cv cor:kw cos:co cre:cr cym:cy wel:cy dan:da deu:de ger:de div:dv dzo:dz ell:el gre:el eng:en epo:eo est:et
ekk:et eus:eu baq:eu ewe:ee fao:fo fas:fa per:fa pes:fa fij:fj fin:fi fra:fr fre:fr fry:fy ful:ff fuv:ff gla:gd
gle:ga glg:gl glv:gv grn:gn guj:gu hat:ht hau:ha heb:he her:hz hin:hi hmo:ho hrv:hr hun:hu hye:hy arm:hy ibo:ig
ido:io iii:ii iku:iu ile:ie ina:ia ind:id ipk:ik isl:is ice:is ita:it jav:jv jpn:ja kal:kl kan:kn kas:ks kat:ka
geo:ka kau:kr knc:kr kaz:kk khm:km kik:ki kin:rw kir:ky kom:kv kon:kg kor:ko kua:kj kur:ku kmr:ku lao:lo lat:la
lav:lv lvs:lv lim:li lin:ln lit:lt ltz:lb lub:lu lug:lg mah:mh mal:ml mar:mr mkd:mk mac:mk mlg:mg plt:mg mlt:mt
mon:mn khk:mn mri:mi mao:mi msa:ms zsm:ms may:ms mya:my bur:my nau:na nav:nv nbl:nr nde:nd ndo:ng nep:ne npi:ne
nld:nl dut:nl nno:nn nob:nb nor:no nya:ny oci:oc oji:oj ori:or ory:or orm:om gaz:om oss:os pan:pa pli:pi pol:pl
por:pt pus:ps pbt:ps que:qu quy:qu roh:rm ron:ro rum:ro run:rn rus:ru sag:sg san:sa sin:si slk:sk slo:sk slv:sl
sme:se smo:sm sna:sn snd:sd som:so sot:st spa:es sqi:sq alb:sq als:sq srd:sc srp:sr ssw:ss sun:su swa:sw swh:sw
swe:sv tah:ty tam:ta tat:tt tel:te tgk:tg tgl:tl fil:tl tha:th tir:ti ton:to tsn:tn tso:ts tuk:tk tur:tr uig:ug
ukr:uk urd:ur uzb:uz uzn:uz ven:ve vie:vi vol:vo wln:wa wol:wo xho:xh yid:yi ydd:yi yor:yo zha:za zho:zh chi:zh
cmn:zh zul:zu iw:he in:id ji:yi jw:jv mo:ro sh:sr
"""
_TO_639_1 = dict(pair.split(":") for pair in _ISO.split())


def iso_code(said: str) -> str:
    """Return the ISO 639-1 code for a language tag such as `zh-Hans`, `eng_Latn` or `EN`.

    A language that has none keeps its three letters; what is no tag at all comes back as it is.
    """
    first = said.strip().replace("_", "-").split("-")[0].lower()
    if not (2 <= len(first) <= 3 and first.isascii() and first.isalpha()):
        return said.strip()
    return _TO_639_1.get(first, first)


def detect_language(text: str, title: str = "") -> str:
    """Return the language of a text (of its title too where the text is short), "und" when unsure."""
    language, confidence = identify_language(text, title)
    return UNKNOWN if confidence < _CONFIDENCE else language


def identify_language(text: str, title: str = "") -> tuple[str, float]:
    """Return the likeliest language of a text, read as `detect_language` does, and the confidence, 0 to 1."""
    sample = text[:_SAMPLE].lstrip() if len(text) >= 40 or not title else f"{title} {text[:_SAMPLE]}"
    if len(text) > 2 * _SAMPLE:
        middle = len(text) // 2
        sample = f"{sample[: _SAMPLE // 2]} {text[middle : middle + _SAMPLE // 2]}"
    if not sample.isascii():
        decided = _DECIDED.findall(sample)
        # Japanese mixes kana with Chinese characters, and every script is mixed with Latin names.
        if len(decided) * 4 > len(sample):
            return _SCRIPTS[bisect_right(_STARTS, ord(decided[len(decided) // 2])) - 1][2], 1.0
    if _LETTER.search(sample) is None:
        return UNKNOWN, 0.0
    language, confidence = _classified(sample, _FIRST)
    if confidence < _SURE:
        language, confidence = _classified(sample, _SAMPLE)
    return _FOLDED.get(language, language), confidence


def known_languages() -> frozenset[str]:
    """Return the codes that `identify_language` can answer with."""
    labels = {str(label) for label in _identifier().nb_classes}
    return frozenset({_FOLDED.get(c, c) for c in labels} | {c for *_, c in _SCRIPTS}) - {UNKNOWN}


def _classified(sample: str, size: int) -> tuple[str, float]:
    """Return language and confidence by at most `size` bytes, half of them from the middle."""
    data = sample.encode("utf-8", "replace")
    if len(data) > size:
        middle = sample[len(sample) // 2 :].encode("utf-8", "replace")
        parts = (data[: size // 2], middle[: size // 2])
        data = b" ".join(part.decode("utf-8", "ignore").encode() for part in parts)
    language, confidence = _identifier().classify(data)
    return str(language), confidence


@cache
def _identifier() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    try:
        return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    except OSError as e:
        # It unpacks its model into a temporary file. No document is to blame, so no reader may skip one for it.
        reason = e.strerror or e
        raise InputError(
            f"languages cannot be detected without room for temporary files ({reason}): set TMPDIR, or give --lang"
        ) from e
