"""Reading a model's text: what is taken, what is not, and that nothing in it is ever run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from embedkit_trainer.synthesis.answers import LARGEST, Reason, Rejected, parse_example, parse_tasks

FIELDS = ("S1", "S2", "S3")
GOOD = {"S1": "The cat sleeps.", "S2": "A cat is asleep.", "S3": "The cat eats."}
TEXT = json.dumps(GOOD)
PROMPT = "Write three short texts about animals, and take care that none of them is a copy of this request."


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        f"\n  {TEXT}\n",
        json.dumps(GOOD, indent=4),
        f"```json\n{TEXT}\n```",
        f"```\n{TEXT}```",
        f"Sure! Here it is:\n\n```json\n{TEXT}\n```\nLet me know {{if}} it helps.",
        f"Here you are: {TEXT} I hope it helps.",
        f"A set {{of three}}: {TEXT}",
        f'<think>\nPerhaps {{"S1": "a draft"}}? Or {TEXT}?\n</think>\n\n{TEXT}',
    ],
)
def test_one_object_is_found_in_what_surrounds_it(text: str) -> None:
    """Fences, thoughts and prose around one object are cut off."""
    assert parse_example(text, FIELDS, PROMPT) == GOOD


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", Reason.EMPTY),
        (TEXT[:-8], Reason.TRUNCATED),
        ("no JSON at all", Reason.NO_JSON),
        ("[1, 2]", Reason.NO_JSON),
        ('"text"', Reason.NO_JSON),
        ("{'S1': 'a', 'S2': 'b', 'S3': 'c'}", Reason.NO_JSON),
        ("I'm sorry, but I can't help with that.", Reason.REFUSAL),
        (f"{TEXT}\n{TEXT}", Reason.WRONG_SCHEMA),
        (json.dumps({"S1": "a", "S2": "b"}), Reason.WRONG_SCHEMA),
        (json.dumps(GOOD | {"why": "so"}), Reason.WRONG_SCHEMA),
        (json.dumps(GOOD | {"S3": 3}), Reason.WRONG_SCHEMA),
        (json.dumps(GOOD | {"S3": ["a"]}), Reason.WRONG_SCHEMA),
        ('{"S1": "a", "S1": "b", "S2": "c", "S3": "d"}', Reason.WRONG_SCHEMA),
        (json.dumps(GOOD | {"S3": " \n"}), Reason.EMPTY_FIELD),
        (json.dumps(GOOD | {"S3": "..."}), Reason.EMPTY_FIELD),
        (json.dumps(GOOD | {"S3": "a\x00b"}), Reason.CONTROL_CHARACTERS),
        (json.dumps(GOOD | {"S3": "a\x1b[2Jb"}), Reason.CONTROL_CHARACTERS),
        (json.dumps(GOOD | {"S3": "a \ud800 b"}), Reason.CONTROL_CHARACTERS),
        (json.dumps(GOOD | {"S3": PROMPT}), Reason.PROMPT_ECHO),
        (json.dumps(GOOD | {"S3": "I'm sorry, but I can't write this."}), Reason.REFUSAL),
        (json.dumps(GOOD | {"S3": "A CAT is asleep."}), Reason.SAME_TEXT),
        (json.dumps(GOOD | {"S3": "x" * LARGEST}), Reason.TOO_LARGE),
        ('{"a":' * 20_000, Reason.TOO_LARGE),
        ('{"a":' * 10_000, Reason.TRUNCATED),
        ("[" * 60_000, Reason.NO_JSON),
        ("{" * 60_000 + "}", Reason.NO_JSON),
    ],
)
def test_what_is_not_taken_says_why(text: str, reason: Reason) -> None:
    """Each kind of useless answer has its reason."""
    with pytest.raises(Rejected) as told:
        parse_example(text, FIELDS, PROMPT)
    assert told.value.reason is reason
    assert told.value.detail


@pytest.mark.parametrize(
    "text",
    ["```" + "a" * 60_000, "```" + " " * 60_000, "`" * 60_000, "```{" * 15_000, '{"a": ' + "1" * 60_000 + "}", "<think>" * 9_000,
     "I" + "'" * 60_000, "{" * 30_000 + "}" * 30_000],
)  # fmt: skip
def test_no_text_takes_long(text: str) -> None:
    """Texts made to slow a parser down are refused in the time of any other."""
    began = time.process_time()
    with pytest.raises(Rejected):
        parse_example(text, FIELDS, PROMPT)
    assert time.process_time() - began < 1


def test_a_cut_answer_is_told_by_the_server() -> None:
    """Where the server says that it stopped at the limit, the reason is that."""
    with pytest.raises(Rejected) as told:
        parse_example("{", FIELDS, PROMPT, "length")
    assert told.value.reason is Reason.TRUNCATED
    assert parse_example(TEXT, FIELDS, PROMPT, "length") == GOOD


@pytest.mark.parametrize(
    "hostile",
    [
        "__import__('pathlib').Path('MARK').touch()",
        '{"S1": __import__("pathlib").Path("MARK").touch(), "S2": "b", "S3": "c"}',
        "```python\nopen('MARK', 'w')\n```",
        '{"__class__": "os.system", "args": ["touch MARK"]}',
    ],
)
def test_text_is_never_run(hostile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code in an answer is refused as any other text that is no JSON of the schema."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Rejected):
        parse_example(hostile, FIELDS, PROMPT)
    assert list(tmp_path.iterdir()) == []


def test_code_and_paths_are_texts_like_any_other() -> None:
    """What looks dangerous inside a field is kept as it is: it is data."""
    odd = GOOD | {"S3": "'; DROP TABLE rows; -- ../../etc/passwd <script>alert(1)</script>\n\teval('x')"}
    assert parse_example(json.dumps(odd), FIELDS, PROMPT) == odd


def test_tasks() -> None:
    """A brainstorm's answer is a list of tasks, each on one line."""
    assert parse_tasks('{"tasks": ["Find  the\\n law.", " Find a recipe. "]}', PROMPT) == [
        "Find the law.",
        "Find a recipe.",
    ]
    bad: list[Any] = [
        {"tasks": []},
        {"tasks": "x"},
        {"tasks": [1]},
        {"x": 1},
        {"tasks": ["a" * 700]},
        {"tasks": [PROMPT]},
    ]
    for value in bad:
        with pytest.raises(Rejected):
            parse_tasks(json.dumps(value), PROMPT)
