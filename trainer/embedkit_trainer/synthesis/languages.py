"""The languages that examples are written in, and how often: XLM-R's list, weighted as in E5-mistral's figure."""

from __future__ import annotations

from collections.abc import Mapping

#: XLM-R's languages by ISO code; romanised and second scripts of one language are one entry.
LANGUAGES: Mapping[str, str] = {
    "af": "Afrikaans", "am": "Amharic", "ar": "Arabic", "as": "Assamese", "az": "Azerbaijani", "be": "Belarusian",
    "bg": "Bulgarian", "bn": "Bengali", "br": "Breton", "bs": "Bosnian", "ca": "Catalan", "cs": "Czech", "cy": "Welsh",
    "da": "Danish", "de": "German", "el": "Greek", "en": "English", "eo": "Esperanto", "es": "Spanish",
    "et": "Estonian", "eu": "Basque", "fa": "Persian", "fi": "Finnish", "fr": "French", "fy": "Western Frisian",
    "ga": "Irish", "gd": "Scottish Gaelic", "gl": "Galician", "gu": "Gujarati", "ha": "Hausa", "he": "Hebrew",
    "hi": "Hindi", "hr": "Croatian", "hu": "Hungarian", "hy": "Armenian", "id": "Indonesian", "is": "Icelandic",
    "it": "Italian", "ja": "Japanese", "jv": "Javanese", "ka": "Georgian", "kk": "Kazakh", "km": "Khmer",
    "kn": "Kannada", "ko": "Korean", "ku": "Kurdish", "ky": "Kyrgyz", "la": "Latin", "lo": "Lao", "lt": "Lithuanian",
    "lv": "Latvian", "mg": "Malagasy", "mk": "Macedonian", "ml": "Malayalam", "mn": "Mongolian", "mr": "Marathi",
    "ms": "Malay", "my": "Burmese", "ne": "Nepali", "nl": "Dutch", "no": "Norwegian", "om": "Oromo", "or": "Odia",
    "pa": "Punjabi", "pl": "Polish", "ps": "Pashto", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian",
    "sa": "Sanskrit", "sd": "Sindhi", "si": "Sinhala", "sk": "Slovak", "sl": "Slovenian", "so": "Somali",
    "sq": "Albanian", "sr": "Serbian", "su": "Sundanese", "sv": "Swedish", "sw": "Swahili", "ta": "Tamil",
    "te": "Telugu", "th": "Thai", "tl": "Tagalog", "tr": "Turkish", "ug": "Uyghur", "uk": "Ukrainian", "ur": "Urdu",
    "uz": "Uzbek", "vi": "Vietnamese", "xh": "Xhosa", "yi": "Yiddish", "zh": "Chinese",
}  # fmt: skip
#: Shares that the paper's figure shows.
ENGLISH = 0.431
_NEXT = "pl ja it ru id de fa es zh fr pt ar nl".split()  # noqa: SIM905
_NEXT_SHARE = 0.371


def default_weights() -> dict[str, float]:
    """Return each language's share; they sum to 1.

    English 43.1%, the thirteen that the figure names 37.1% in equal parts (2.9% each), all others 19.8% likewise.
    """
    rest = [code for code in LANGUAGES if code != "en" and code not in _NEXT]
    weights = dict.fromkeys(LANGUAGES, (1 - ENGLISH - _NEXT_SHARE) / len(rest))
    weights.update(dict.fromkeys(_NEXT, _NEXT_SHARE / len(_NEXT)))
    weights["en"] = ENGLISH
    return weights


def pair_weights(languages: Mapping[str, float]) -> dict[tuple[str, str], float]:
    """Return the share of each pair (source, target): both drawn by their weights, the target another than the source."""
    total = sum(languages.values())
    shares = {code: weight / total for code, weight in languages.items() if weight}
    return {(a, b): p * q / (1 - p) for a, p in shares.items() for b, q in shares.items() if a != b}
