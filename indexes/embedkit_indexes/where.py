"""Read a filter's text: `year >= 2020 and (source = "wiki" or tags contains "moon") and draft is null`.

```
filter = all { "or" all }
all    = one { "and" one }
one    = "not" one | "(" filter ")" | name test
test   = ("=" | "==" | "!=" | "<>" | "<" | "<=" | ">" | ">=") value
       | ["not"] "in" "(" value { "," value } ")"
       | ("contains" | "startswith" | "like") value
       | "is" ["not"] "null" | "exists"
```
A name is bare (`author.name`) or in backticks; a string in either quotes, with JSON's escapes or its quote doubled.
Keywords may be written in capitals. `= null` means `is null`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NoReturn

from embedkit.errors import InputError
from embedkit_indexes.conditions import DEEPEST, And, Compare, Condition, Exists, In, Not, Or
from embedkit_indexes.predicates import KEYWORDS, NAME, ORDER, TEXT_TESTS

_TOKEN = re.compile(
    rf"""
    (?P<space>\s+)
  | (?P<sign>==|!=|<>|<=|>=|[=<>(),])
  | (?P<string>"(?:[^"\\]|\\.|"")*"|'(?:[^'\\]|\\.|'')*')
  | (?P<quoted>`(?:[^`]|``)+`)
  | (?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![\w.-]))
  | (?P<word>{NAME.pattern})
    """,
    re.VERBOSE | re.DOTALL,
)
_WORDS = ("contains", *TEXT_TESTS, "exists", "is", "in", "not")
_SAME = {"==": "=", "<>": "!="}
_LITERALS = {"true": True, "false": False, "null": None}
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})|\\(.)|(\"\"|'')", re.DOTALL)
# A condition's text has at most two for each of its levels: not, and a parenthesis.
_LEVELS = 2 * DEEPEST
# Python itself refuses longer ones, and no float is as large.
_DIGITS_LIMIT = 400


def parse_where(text: str) -> Condition:
    """Return the condition that the text writes. Raises InputError that marks the place where it cannot be read."""
    if not isinstance(text, str):
        raise InputError(f'a filter is a text, as in year >= 2020 and lang = "de", not {text!r:.60}')
    if not text.strip():
        raise InputError('the filter is empty: write a condition, as in year >= 2020 and lang = "de"')
    return _Parser(text).filter()


@dataclass(frozen=True, slots=True)
class _Token:
    """`kind` is "sign", "string", "name", "number", "keyword", or "end"; `value` what it means."""

    kind: str
    value: Any
    start: int


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = self._read()
        self._at = 0
        self._level = 0

    def _read(self) -> list[_Token]:
        tokens, start = [], 0
        while start < len(self._text):
            match = _TOKEN.match(self._text, start)
            if match is None:
                self._stray(start)
            if match.lastgroup != "space":
                tokens.append(self._token(str(match.lastgroup), match[0], start))
            start = match.end()
        return [*tokens, _Token("end", "", start)]

    def _token(self, kind: str, found: str, start: int) -> _Token:
        if kind == "string":
            return _Token(kind, self._unescaped(found, start), start)
        if kind == "quoted":
            return _Token("name", found[1:-1].replace("``", "`"), start)
        if kind == "number":
            if len(found) > _DIGITS_LIMIT:
                self._fail(start, f"a number of {len(found)} characters is too long")
            return _Token(kind, float(found) if set(found) & set(".eE") else int(found), start)
        if kind == "word":
            word = found.lower()
            return _Token("keyword", word, start) if word in KEYWORDS else _Token("name", found, start)
        return _Token(kind, _SAME.get(found, found), start)

    def _unescaped(self, found: str, start: int) -> str:
        quote = found[0]

        def replaced(match: re.Match[str]) -> str:
            if match[1]:
                return chr(int(match[1], 16))
            if match[3]:
                return quote if match[3][0] == quote else match[3]
            if match[2] in "\"'\\/`":
                return match[2]
            if match[2] not in _ESCAPES:
                self._fail(
                    start + match.start() + 1, rf"no escape \{match[2]} is known: write \\ for a backslash"
                )
            return _ESCAPES[match[2]]

        text = _ESCAPE.sub(replaced, found[1:-1])
        try:
            # Two escapes of sixteen bits are one character beyond them.
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            self._fail(start, "this string holds half a character")

    def _stray(self, start: int) -> NoReturn:
        c = self._text[start]
        if c in "\"'`":
            self._fail(start, f"this {c} is never closed")
        if re.match(r"[+-]?\.?[0-9]", self._text[start:]):
            self._fail(start, "this is no number: put dates and other strings in quotes")
        self._fail(start, f"the character {c!r} means nothing here")

    def filter(self) -> Condition:
        """Read all of the text."""
        condition = self._any()
        if self._now.kind != "end":
            self._expected("and, or, or the end")
        return condition

    def _any(self) -> Condition:
        parts = [self._all()]
        while self._take("keyword", "or"):
            parts.append(self._all())
        return Or(tuple(parts)) if len(parts) > 1 else parts[0]

    def _all(self) -> Condition:
        parts = [self._one()]
        while self._take("keyword", "and"):
            parts.append(self._one())
        return And(tuple(parts)) if len(parts) > 1 else parts[0]

    def _one(self) -> Condition:
        self._level += 1
        if self._level > _LEVELS:
            self._fail(self._now.start, f"more than {_LEVELS} levels of not and parentheses")
        if self._take("keyword", "not"):
            condition: Condition = Not(self._one())
        elif self._take("sign", "("):
            condition = self._any()
            self._must("sign", ")")
        else:
            condition = self._test()
        self._level -= 1
        return condition

    def _test(self) -> Condition:
        name = self._now
        if name.kind != "name":
            hint = " (a name that is a keyword goes in backticks)" if name.kind == "keyword" else ""
            self._expected(f"the name of a field{hint}")
        self._at += 1
        test = self._now
        if test.kind == "sign" and test.value in ORDER:
            self._at += 1
            return self._compared(name.value, test.value)
        if test.kind != "keyword" or test.value not in _WORDS:
            self._expected(f"a test after {name.value}, such as =, >=, in, contains or is null")
        self._at += 1
        if test.value == "exists":
            return Exists(name.value)
        if test.value == "is":
            negated = self._take("keyword", "not")
            self._must("keyword", "null")
            return Exists(name.value) if negated else Not(Exists(name.value))
        if test.value in ("in", "not"):
            if test.value == "not" and not self._take("keyword", "in"):
                self._expected(
                    f"in after not (other tests are turned round as a whole: not {name.value} contains …)"
                )
            return In(name.value, self._values(), negated=test.value == "not")
        return self._compared(name.value, test.value)

    def _compared(self, name: str, test: str) -> Condition:
        start = self._now.start
        value = self._value(test)
        if value is None:
            if test not in ("=", "!="):
                self._fail(start, f"{test} cannot be asked of null: write is null, or is not null")
            return Exists(name) if test == "!=" else Not(Exists(name))
        try:
            return Compare(name, test, value)
        except InputError as e:
            self._fail(start, str(e))

    def _values(self) -> tuple[Any, ...]:
        self._must("sign", "(")
        values: list[Any] = []
        while not values or self._take("sign", ","):
            start = self._now.start
            values.append(self._value("in"))
            if values[-1] is None:
                self._fail(start, "null is no value of a list: join it by or, with is null")
        self._must("sign", ")")
        return tuple(values)

    def _value(self, test: str) -> Any:
        token = self._now
        if token.kind == "keyword" and token.value in _LITERALS:
            self._at += 1
            return _LITERALS[token.value]
        if token.kind not in ("string", "number"):
            hint = " (strings go in quotes)" if token.kind in ("name", "keyword") else ""
            self._expected(f"a value after {test}{hint}")
        self._at += 1
        return token.value

    @property
    def _now(self) -> _Token:
        return self._tokens[self._at]

    def _take(self, kind: str, value: str) -> bool:
        taken = self._now.kind == kind and self._now.value == value
        self._at += taken
        return taken

    def _must(self, kind: str, value: str) -> None:
        if not self._take(kind, value):
            self._expected(value)

    def _expected(self, what: str) -> NoReturn:
        self._fail(self._now.start, f"expected {what}")

    def _fail(self, start: int, problem: str) -> NoReturn:
        """Raise with a piece of the text, the place marked; characters count from 1."""
        before = self._text[max(0, start - 30) : start]
        after = self._text[start : start + 20]
        place = f"at character {start + 1}" if after else "at its end"
        raise InputError(f"cannot read the filter {place}: {problem}; here: {before}<here>{after}")
