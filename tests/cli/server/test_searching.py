"""POST /search answers as Index.search does, under several tasks at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from embedkit import Task
from embedkit_cli.server.hits import shown_source
from embedkit_indexes import Index
from tests.cli.server.conftest import Server, Start, embedkit

QUERY = "how do I undo my last commit?"


def _hits(result: Any) -> list[tuple[str, float]]:
    return [(hit["document_id"], round(hit["score"], 5)) for hit in result["hits"]]


def _expected(index: Index, **asked: Any) -> list[tuple[str, float]]:
    return [(h.document_id, round(h.score, 5)) for h in index.search(QUERY, **asked).hits]


def test_several_tasks_are_answered_side_by_side(server: Server, sample_index: Path) -> None:
    """A name, a task stored with the index and a free instruction give what Index.search gives, in that order."""
    tasks = ["bitext", "recipe", {"instruction": "Find the law"}]
    answer = server.post("/search", {"query": QUERY, "index": "sample", "tasks": tasks, "k": 5}).json
    index = Index.open(sample_index)
    assert (answer["index"], answer["generation"], answer["query"]) == ("sample", 1, QUERY)
    assert [r["task"] for r in answer["results"]] == ["bitext", "recipe", None]
    assert [r["instruction"] for r in answer["results"]][1:] == ["Find the recipe", "Find the law"]
    wanted = [{"task": "bitext"}, {"task": "recipe"}, {"instruction": "Find the law"}]
    assert [_hits(r) for r in answer["results"]] == [_expected(index, k=5, **w) for w in wanted]


def test_several_tasks_are_encoded_in_one_call(start: Start, shop_index: Path) -> None:
    """One query under four tasks, one of them twice, is one call of the embedder with three texts."""
    server = start(shop_index)
    before = len(server.calls)
    answer = server.post(
        "/search", {"query": "cancel", "tasks": ["qa", "topic", "qa", {"instruction": "Find it"}]}
    )
    assert [r["task"] for r in answer.json["results"]] == ["qa", "topic", "qa", None]
    assert server.calls[before:] == [3]


@pytest.mark.parametrize(
    "asked",
    [
        {"mode": "hybrid"},
        {"mode": "hybrid", "weights": [1, 0.25]},
        {"mode": "lexical"},
        {"lang": "de"},
        {"where": 'topic = "git-undo" and lang != "en"'},
    ],
)
def test_modes_and_filters(server: Server, sample_index: Path, asked: dict[str, Any]) -> None:
    """Hybrid and lexical search, weights, language and a filter's text give what Index.search gives."""
    answer = server.post(
        "/search", {"query": QUERY, "index": "sample", "tasks": ["qa"], "k": 4, **asked}
    ).json
    (result,) = answer["results"]
    assert _hits(result) == _expected(
        Index.open(sample_index), task=Task("qa", "The index's own qa"), k=4, **asked
    )
    assert len(result["hits"]) == 4


def test_a_filter_as_an_object(server: Server) -> None:
    """The filter's JSON form filters as its text does."""
    where = {
        "and": [
            {"test": ">=", "name": "year", "value": 2021},
            {"not": {"test": "=", "name": "year", "value": 2022}},
        ]
    }
    text = "year >= 2021 and not year = 2022"
    one, other = (
        server.post("/search", {"query": "plan", "where": w}).json["results"][0] for w in (where, text)
    )
    assert _hits(one) == _hits(other)
    assert {h["document_id"] for h in one["hits"]} == {"refund", "deutsch"}


def test_a_search_by_words_names_its_task(server: Server) -> None:
    """Words are searched without an instruction; each result still says which task it answers."""
    tasks = ["qa", {"instruction": "Find it"}]
    results = server.post("/search", {"query": "plan", "mode": "lexical", "tasks": tasks}).json["results"]
    assert [(r["task"], r["instruction"]) for r in results] == [("qa", None), (None, None)]


def test_explain_shows_what_was_encoded(server: Server) -> None:
    """With explain the exact string is there; without a task it is the embedder's default task that was asked."""
    (result,) = server.post("/search", {"query": "cancel", "explain": True}).json["results"]
    assert result["encoded"] == f"Instruct: {result['instruction']}\nQuery: cancel"
    assert (result["task"], result["obeys"], result["truncated"]) == ("search", True, 0)
    assert "encoded" not in server.post("/search", {"query": "cancel"}).json["results"][0]


@pytest.mark.parametrize("snippets", [True, "words", "meaning"])
def test_a_snippet_is_a_passage_of_the_text(server: Server, snippets: Any) -> None:
    """Each hit has a passage of its text, by characters; by words it is the one that shares the query's."""
    asked = {"query": "where are the settings?", "k": 4, "snippets": snippets}
    (result,) = server.post("/search", asked).json["results"]
    for hit in result["hits"]:
        snippet = hit["snippet"]
        assert hit["text"][snippet["start"] : snippet["end"]] == snippet["text"] != ""
    if snippets != "meaning":
        passages = {h["document_id"]: h["snippet"]["text"] for h in result["hits"]}
        assert passages["cancel"] == "Go to the settings, and choose Cancel."


def test_no_snippets(server: Server) -> None:
    """With snippets false there is none."""
    (result,) = server.post("/search", {"query": "settings", "snippets": False}).json["results"]
    assert all("snippet" not in hit for hit in result["hits"])


def test_html_in_a_document_is_text(server: Server) -> None:
    """A document's script comes back as a JSON string, under a type and headers that let no browser run it."""
    answer = server.post("/search", {"query": "alert found", "mode": "lexical", "k": 1})
    hit = answer.json["results"][0]["hits"][0]
    assert hit["text"].endswith("<script>alert('found')</script> & \"quotes\" in a document")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert hit["metadata"]["big"] == 10**30


def test_no_path_of_the_server_is_shown(server: Server, shop_index: Path) -> None:
    """Of an absolute source the last part is shown; neither answers nor errors name the server's folders."""
    answer = server.post("/search", {"query": "plan", "explain": True})
    assert {hit["source"] for hit in answer.json["results"][0]["hits"]} == {"shop.jsonl"}
    told = [
        answer,
        server.get("/indexes"),
        server.get("/tasks"),
        server.get("/v1/models"),
        server.post("/search", {"query": "plan", "where": "nothing = 1"}),
        server.post("/search", {"query": "plan", "lang": "xx"}),
        server.post("/search", {"query": "plan", "index": "other"}),
    ]
    assert [t.status for t in told] == [200, 200, 200, 200, 400, 400, 404]
    for one in told:
        assert str(shop_index.parent).encode() not in one.body


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("/srv/secret/a.txt", "a.txt"),
        ("C:\\secret\\a.txt", "a.txt"),
        ("../secret/a.txt", "a.txt"),
        ("file:///srv/secret/a.txt", "a.txt"),
        ("FILE:/srv/secret/a.txt", "a.txt"),
        ("file://secret/share/a.txt", "a.txt"),
        ("file:///C:/secret/a.txt", "a.txt"),
        ("sqlite:////srv/secret/a.db", "a.db"),
        ("https://user:secret@example.org/a?b=c@d", "https://example.org/a?b=c@d"),
        ("https://secret@example.org", "https://example.org"),
        ("https://example.org/srv/a.txt", "https://example.org/srv/a.txt"),
        ("https://example.org/@user", "https://example.org/@user"),
        ("sub/a.txt", "sub/a.txt"),
        ("wiki", "wiki"),
        ("http://[", "http://["),
        ("", ""),
    ],
)
def test_a_source_as_a_client_sees_it(source: str, shown: str) -> None:
    """No folder of the server's stands in a source, in whatever way it is written, and no password of an address."""
    assert shown_source(source) == shown


def test_the_files_of_llama_index_show_no_folder(
    environment: dict[str, str], start: Start, tmp_path: Path
) -> None:
    """`file_path`, which LlamaIndex's readers store and embed, keeps its last part alone: in metadata, text and context."""
    path = "/srv/secret/cats.md"
    row = {
        "_id": "cats",
        "text": f"file_path: {path}\n\nCats sleep all day.",
        "file_path": path,
        "page": "/a",
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    embedkit(environment, "index", tmp_path / "rows.jsonl", "-o", tmp_path / "cats", "--embedder", "held")
    answer = start(tmp_path / "cats").post("/search", {"query": "cats", "context": {"format": "json"}})
    (hit,) = answer.json["results"][0]["hits"]
    assert hit["metadata"] == {"file_path": "cats.md", "page": "/a"}
    assert hit["text"] == "file_path: cats.md\n\nCats sleep all day."
    assert answer.json["results"][0]["context"]["blocks"][0]["metadata"]["file_path"] == "cats.md"
    assert "/srv/secret" not in hit["snippet"]["text"]


@pytest.mark.parametrize(
    ("asked", "status", "message"),
    [
        ({"query": "a", "index": "../shop"}, 404, "there is no index '../shop': this server has shop, sample"),
        ({"query": "a", "index": "/etc/passwd"}, 404, "there is no index '/etc/passwd': this server has shop, sample"),
        ({"query": "a", "tasks": ["../../etc/passwd"]}, 400, "unknown task '../../etc/passwd'"),
        ({"query": "a", "tasks": ["duplicat"]}, 400, "unknown task 'duplicat': did you mean duplicate?"),
        ({"query": "a", "tasks": [{"instruction": " "}]}, 400, "the instruction is empty: give it some text"),
        ({"query": "a", "tasks": ["qa"] * 9}, 400, "tasks: list should have at most 8 items"),
        ({"query": "a", "tasks": []}, 400, "tasks: list should have at least 1 item"),
        ({"query": " "}, 400, "the query is empty: give it some text"),
        ({}, 400, "query: field required"),
        ({"query": 1}, 400, "query: input should be a valid string"),
        ({"query": "a", "k": 10**9}, 400, "k: input should be less than or equal to 1000"),
        ({"query": "a", "k": 10**40}, 400, "k: input should be"),
        ({"query": "a", "k": 0}, 400, "k: input should be greater than or equal to 1"),
        ({"query": "a", "k": True}, 400, "k: input should be a valid integer"),
        ({"query": "a", "where": "year >"}, 400, "year >"),
        ({"query": "a", "where": {"test": "=", "name": "yaer", "value": 1}}, 400, "unknown field 'yaer': did you mean year?"),
        ({"query": "a", "where": {"rm": "-rf"}}, 400, "a filter is an object, as in"),
        ({"query": "a", "lang": "klingon"}, 400, "unknown language 'klingon'"),
        ({"query": "a", "mode": "psychic"}, 400, "mode: input should be 'dense', 'hybrid' or 'lexical'"),
        ({"query": "a", "weights": [1], "mode": "hybrid"}, 400, "weights: list should have at least 2 items"),
        ({"query": "a", "weights": [0, 0], "mode": "hybrid"}, 400, "weights: [0.0, 0.0] cannot weigh"),
        ({"query": "a", "recall": 2}, 400, "recall: input should be less than or equal to 1"),
        ({"query": "a", "task": "qa"}, 400, "there is no field 'task': did you mean 'tasks'?"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_said(
    server: Server, asked: dict[str, Any], status: int, message: str
) -> None:
    """A wrong field is answered with one sentence that names it, of OpenAI's shape."""
    answer = server.post("/search", asked)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
    assert message in answer.message


def test_indexes_and_tasks_are_listed(server: Server, shop_index: Path) -> None:
    """/indexes tells what is served, /tasks an index's tasks before the built-in ones and the default."""
    shop, sample = server.get("/indexes").json["indexes"]
    manifest = Index.open(shop_index).manifest
    assert (shop["name"], shop["documents"], shop["generation"]) == ("shop", 4, 1)
    assert shop["embedder"] == {
        "name": "held-1", "fingerprint": manifest.fingerprint, "dim": 16, "instruction_trained": True
    }  # fmt: skip
    assert (shop["tasks"], sample["tasks"]) == (["recipe"], ["qa", "recipe"])
    assert sum(shop["languages"].values()) == 4
    told = server.get("/tasks?index=sample").json
    assert [(t["name"], t["source"]) for t in told["tasks"][:3]] == [
        ("qa", "sample"), ("recipe", "sample"), ("search", "built-in")
    ]  # fmt: skip
    assert (told["default"], server.get("/tasks").json["default"]) == (None, "search")
    assert sum(t["name"] == "qa" for t in told["tasks"]) == 1
    assert server.get("/tasks?index=nothing").status == 404


def test_an_answer_is_json_for_any_client(server: Server) -> None:
    """Non-Latin text goes out as UTF-8."""
    answer = server.post(
        "/search", json.dumps({"query": "kündigen", "k": 1, "mode": "lexical"}, ensure_ascii=False).encode()
    )
    assert "können" in answer.body.decode("utf-8")


def test_a_reranker_by_name(start: Start, shop_index: Path) -> None:
    """A search may name a reranker that the server was started with; its scores order the hits."""
    server = start(shop_index, "--rerank", "strong=embedder:held")
    assert server.get("/indexes").json["rerankers"] == ["strong"]
    (result,) = server.post("/search", {"query": "plan", "mode": "lexical", "rerank": "strong"}).json[
        "results"
    ]
    scores = [hit["rerank_score"] for hit in result["hits"]]
    assert scores and scores == sorted(scores, reverse=True)
    plain = server.post("/search", {"query": "plan", "mode": "lexical"}).json["results"][0]
    before = {hit["document_id"]: hit["rank"] for hit in plain["hits"]}
    assert {hit["document_id"]: hit["first_rank"] for hit in result["hits"]} == before
    assert result["rerank"]["reranker"] == "strong" and result["rerank"]["seconds"] > 0
    assert result["rerank"]["candidates"] == len(result["hits"])
    assert "rerank" not in plain and plain["hits"][0]["first_rank"] is None
    wrong = server.post("/search", {"query": "plan", "rerank": "../strong"})
    assert (wrong.status, wrong.json["error"]["param"]) == (400, "rerank")
    assert "unknown reranker '../strong': did you mean strong?" in wrong.message
