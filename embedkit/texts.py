"""What a text must be before it is encoded: whole characters, one of them visible."""

from __future__ import annotations

import re

# White space, control characters, Unicode's Default_Ignorable_Code_Point, and the Braille pattern without a dot.
# By number: what a category holds changes with the version of Unicode that Python brings.
_INVISIBLE = re.compile(
    "[\\s\x00-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff]*"
)


def is_visible(text: str) -> bool:
    """Return whether a text holds a character that shows, not white space, controls and zero-width ones alone."""
    return _INVISIBLE.fullmatch(text) is None


def half_surrogate(text: str) -> int | None:
    """Return where the first half of a surrogate pair stands, which no encoding has; None where there is none."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        return e.start
    return None


def without_surrogates(text: str) -> str:
    """Return the text with a question mark for each half of a surrogate pair."""
    return text if half_surrogate(text) is None else text.encode("utf-8", "replace").decode("utf-8")
