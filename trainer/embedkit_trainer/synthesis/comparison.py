"""The figures of E5-mistral's synthetic set (arXiv 2401.00368, appendix C), and those of a set beside them."""

from __future__ import annotations

from dataclasses import dataclass

from embedkit_trainer.synthesis.statistics import UNSAID, Statistics

#: Examples by type, in thousands.
PAPER_TYPES = {
    "short-long": 167,
    "long-short": 122,
    "sts": 99,
    "bitext": 89,
    "long-long": 17,
    "short-short": 13,
}
PAPER_ENGLISH = 0.431
#: The thirteen languages after English, 2.7% to 3.0% each, and what is left for all others.
PAPER_NEXT = ("pl", "ja", "it", "ru", "id", "de", "fa", "es", "zh", "fr", "pt", "ar", "nl")
PAPER_EACH = 0.0285
PAPER_REST = 0.198
_PAPER_ALL = sum(PAPER_TYPES.values())
_WITHOUT_NEGATIVES = ("short-short", "long-long")


@dataclass(frozen=True, slots=True)
class Compared:
    """One line of the table: a figure of the paper, and the same of this set."""

    name: str
    paper: str
    here: str


def paper_share(kind: str) -> float | None:
    """Return a type's share in the paper, None for a type of one's own."""
    return PAPER_TYPES[kind] / _PAPER_ALL if kind in PAPER_TYPES else None


def paper_language(code: str) -> float | None:
    """Return a language's share in the paper's figure, None where it shows none."""
    return PAPER_ENGLISH if code == "en" else PAPER_EACH if code in PAPER_NEXT else None


def compare(made: Statistics) -> list[Compared]:
    """Return the table of the paper's figures beside the set's own; languages are those of the queries."""
    total = made.rows
    lines = [Compared("examples", "500,000", f"{total:,}")]
    for kind in (*PAPER_TYPES, *(k for k in sorted(made.types) if k not in PAPER_TYPES)):
        share = paper_share(kind)
        here = made.types.get(kind, 0)
        lines.append(Compared(kind, "" if share is None else f"{share:.1%}", f"{here / total:.1%}"))
    with_negatives = 1 - sum(PAPER_TYPES[kind] for kind in _WITHOUT_NEGATIVES) / _PAPER_ALL
    said = {code: n for code, n in made.languages.items() if code != UNSAID}
    spoken = max(1, sum(said.values()))
    following = [said.get(code, 0) / spoken for code in PAPER_NEXT]
    english = said.get("en", 0) / spoken
    lines += [
        Compared("with hard negatives", f"{with_negatives:.1%}", f"{1 - made.negatives[0] / total:.1%}"),
        Compared(
            "unique instructions", "150,000 (30%)", f"{made.instructions:,} ({made.instructions / total:.0%})"
        ),
        Compared("languages", "93", f"{len(set(said) | (set(made.document_languages) - {UNSAID}))}"),
        Compared("English", f"{PAPER_ENGLISH:.1%}", f"{english:.1%}"),
        Compared("the next thirteen, each", "2.7% to 3.0%", f"{min(following):.1%} to {max(following):.1%}"),
        Compared("all others", f"{PAPER_REST:.1%}", f"{max(0.0, 1 - english - sum(following)):.1%}"),
        Compared("models", "GPT-3.5-Turbo 25%, GPT-4 75%", _shares(made)),
        Compared("tokens", "180 million (360 an example)", _tokens(made)),
    ]
    return lines


def _shares(made: Statistics) -> str:
    if set(made.models) <= {UNSAID}:
        return UNSAID
    return ", ".join(f"{name} {n / made.rows:.0%}" for name, n in made.models.most_common(4))


def _tokens(made: Statistics) -> str:
    spent = sum(made.tokens) + sum(made.rejected_tokens)
    return f"{spent:,} ({spent / made.priced:,.0f} an example)" if made.priced else UNSAID
