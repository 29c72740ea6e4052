"""POST /search with `context`: what is found, as passages for a prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from embedkit_cli.server.answers import ContextAnswer
from tests.cli.server.conftest import Server


def ask(server: Server, **context: Any) -> dict[str, Any]:
    """Return the context of a search of the shop."""
    answer = server.post("/search", {"query": "how do I cancel my plan?", "k": 4, "context": context})
    assert answer.status == 200, answer.message
    found: dict[str, Any] = answer.json["results"][0]["context"]
    return found


def test_every_format_holds_the_passages(server: Server) -> None:
    """Each format gives what it is named for, and the passages with their places; the answer is as OpenAPI has it."""
    for form, field in (
        ("text", "text"),
        ("json", "text"),
        ("markdown", "markdown"),
        ("messages", "messages"),
    ):
        found = ask(server, format=form)
        ContextAnswer.model_validate(found)
        assert [f for f in ("text", "markdown", "messages") if f in found] == [field]
        assert {b["document_id"] for b in found["blocks"]} == {"cancel", "refund", "script", "deutsch"}
        written = found[field][1]["content"] if form == "messages" else found[field]
        if form == "markdown":
            # Each under its number, as a quotation; what a document's HTML says stands in a fence.
            for block in found["blocks"]:
                assert f"## [{block['number']}] " in written
                quoted = block["text"] if "<script>" in block["text"] else f"> {block['text']}"
                assert quoted in written
            assert "```\n<script>" in written
        else:
            assert all(block["text"] in written for block in found["blocks"])
        assert found["tokens"] <= found["budget"] == 2000
    assert found["messages"][1]["content"].endswith("Question: how do I cancel my plan?")


def test_the_budget_is_the_servers_embedders(server: Server) -> None:
    """What does not fit the budget is left out and counted; one that holds nothing at all is the client's mistake."""
    small = ask(server, budget=60)
    assert small["tokens"] <= 60 and small["left_out"]["budget"] + len(small["blocks"]) == 4
    answer = server.post("/search", {"query": "plan", "context": {"budget": 3, "format": "messages"}})
    assert answer.status == 400 and "budget 3 is too small" in answer.message


def test_what_a_program_stored_for_itself_is_not_sent(server: Server) -> None:
    """Metadata that begins with `_node_` leave neither in hits nor in a context; the rest does."""
    body = {"query": "two weeks to return", "k": 4, "context": {"format": "json"}}
    answer = server.post("/search", body)
    (refund,) = [h for h in answer.json["results"][0]["hits"] if h["document_id"] == "refund"]
    assert refund["metadata"] == {"year": 2021}
    assert "_node_file" not in json.dumps(answer.json)


def test_no_path_of_the_server_is_cited(server: Server, shop_index: Path) -> None:
    """Citations name the last part of an absolute source, in every format."""
    for form in ("text", "markdown", "messages"):
        found = ask(server, format=form)
        assert {b["source"] for b in found["blocks"]} == {"shop.jsonl"}
        cited = "[shop.jsonl#cancel](shop.jsonl)" if form == "markdown" else "shop.jsonl#cancel"
        written = found[form][1]["content"] if form == "messages" else found[form]
        assert f"{cited}, characters 0" in written
        assert str(shop_index.parent) not in str(found)


@pytest.mark.parametrize(
    "wrong", [{"budget": 0}, {"format": "html"}, {"expand": -1}, {"order": 1}, {"size": 1}, [], 5]
)
def test_mistakes_are_400(server: Server, wrong: Any) -> None:
    """A wrong field of the context is told by its name."""
    answer = server.post("/search", {"query": "plan", "context": wrong})
    assert answer.status == 400 and "context" in answer.message
