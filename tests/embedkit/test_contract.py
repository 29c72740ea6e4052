"""Templates, and what the fingerprint covers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkit import EmbedderInfo, Template
from embedkit.errors import InputError

INFO = EmbedderInfo("name", 8, 512, "mean", "w" * 64, "t" * 64)


def test_default_template() -> None:
    """By default queries and documents are encoded as they are, and an instruction as E5-mistral writes it."""
    template = Template()
    assert template.render_query("q", None) == "q"
    assert template.render_document("d") == "d"
    assert template.render_query("q", "Find it") == "Instruct: Find it\nQuery: q"


@given(query=st.text(), instruction=st.text(), text=st.text())
def test_user_text_is_never_a_template(query: str, instruction: str, text: str) -> None:
    """Whatever braces a user's text holds, it stands in the encoded string unchanged and once."""
    for extra in ("", "{query}", "{instruction}", "{text}", "{0}", "{{x}}"):
        q, i, t = query + extra, extra + instruction, text + extra
        template = Template("query: {query}", "<{instruction}> [{query}] ({instruction})", "passage: {text}!")
        assert template.render_query(q, None) == "query: " + q
        assert template.render_query(q, i) == f"<{i}> [{q}] ({i})"
        assert template.render_document(t) == "passage: " + t + "!"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"query": "query: "}, r"template query 'query: ' lacks \{query\}"),
        ({"instruct": "{query}"}, r"lacks \{instruction\}"),
        ({"instruct": ""}, r"lacks \{instruction\} and \{query\}"),
        ({"document": "{query}"}, r"template document '\{query\}' lacks \{text\}"),
    ],
)
def test_template_without_its_place(fields: dict[str, str], message: str) -> None:
    """A template that would drop the user's text is refused with what it lacks."""
    with pytest.raises(InputError, match=message):
        Template(**fields)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "renamed"},
        {"instruction_trained": True},
        {"default_task": "qa"},
        {"matryoshka_dims": (4, 2)},
        {"template": Template(query="query: {query}", instruct="{instruction} {query}")},
    ],
)
def test_fingerprint_is_kept(change: dict[str, Any]) -> None:
    """A new name or another query side keeps the fingerprint, so that indexes stay valid."""
    assert replace(INFO, **change).fingerprint() == INFO.fingerprint()


@pytest.mark.parametrize(
    "change",
    [
        {"dim": 9},
        {"max_length": 256},
        {"pooling": "cls"},
        {"weights": "other"},
        {"tokenizer": "other"},
        {"dtype": "float16"},
        {"template": Template(document="passage: {text}")},
    ],
)
def test_fingerprint_changes(change: dict[str, Any]) -> None:
    """Everything that decides a document's vector changes the fingerprint."""
    assert replace(INFO, **change).fingerprint() != INFO.fingerprint()


def test_fingerprint_is_pinned() -> None:
    """The fingerprint of a given description is the same in every release: stored indexes depend on it."""
    assert INFO.fingerprint() == "ek1:69c8f56e8fe2033b"
