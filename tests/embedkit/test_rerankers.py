"""The reranker door: kinds, plug-ins and their errors, and late re-scoring by another embedder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedkit import get_embedder, get_reranker, list_rerankers
from embedkit.errors import InputError, RerankerError, UnknownNameError
from embedkit.rerankers.base import RerankWarning

TEXTS = ["You can cancel your plan in the settings.", "The invoice comes by mail.", " ", "Soup needs salt."]
GOOD = """
from embedkit import Reranker, RerankerInfo
from embedkit.rerankers.base import Scores


class Shortest(Reranker):
    def __init__(self, model="", scale=1.0):
        self.info = RerankerInfo(f"acme:{model}", 512, "test")
        self.scale = scale

    @classmethod
    def open(cls, name_or_path, *, scale=1.0):
        return cls(name_or_path, scale)

    def _score(self, query, texts, instruction):
        return Scores([-self.scale * len(t) for t in texts])


def no_reranker(model):
    return object()
"""
ENTRY_POINTS = """
[embedkit.rerankers]
acme = acme_scores:Shortest
acme-none = acme_scores:no_reranker
acme-gone = acme_gone:Shortest
"""


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install a distribution with plug-ins into a folder on the path."""
    info = tmp_path / "site" / "acme_scores-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-scores\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (info.parent / "acme_scores.py").write_text(GOOD)
    monkeypatch.syspath_prepend(str(info.parent))
    list_rerankers.cache_clear()
    yield
    list_rerankers.cache_clear()
    sys.modules.pop("acme_scores", None)


def test_plug_ins_come_through_the_same_door(plug_in: None) -> None:
    """A plug-in is listed beside the built-in kinds without its import, and opens by its name, with options."""
    assert list(list_rerankers()) == sorted(list_rerankers())
    assert {"acme", "cross-encoder", "embedder", "llm"} <= set(list_rerankers())
    assert "acme_scores" not in sys.modules
    reranker = get_reranker("acme:model:v2", scale=2.0)
    assert reranker.info.name == "acme:model:v2"
    assert reranker.score("q", ["aaa", "a"]).tolist() == [-6, -2]
    assert reranker.measured("q", ["aaa"]).tokens == 0


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("acme-none", RerankerError, r"'acme-none' .*gave object, not a Reranker"),
        ("acme-gone", RerankerError, r"'acme-gone' .*No module named 'acme_gone'"),
        ("cross-encodr", UnknownNameError, "did you mean cross-encoder"),
        ("lmm:gpt", UnknownNameError, "did you mean llm"),
        ("./no/folder", InputError, "does not exist"),
        ("", InputError, "name is empty"),
        (5, InputError, "name is 5, int: give a text"),
        (Path("a"), InputError, r"str\(path\)"),
        ("x" * 5000, UnknownNameError, "unknown reranker 'xxx"),
        ("~nobody-of-this-name/x", InputError, "does not exist"),
        ("cross-encoder:", InputError, "needs a model"),
        ("embedder:bundld", UnknownNameError, "unknown embedder 'bundld': did you mean bundled"),
    ],
)
def test_wrong_names(plug_in: None, name: Any, error: type[Exception], message: str) -> None:
    """Each is one sentence, with the nearest names where there are any."""
    with pytest.raises(error, match=message):
        get_reranker(name)


def test_wrong_arguments(plug_in: None) -> None:
    """An empty query, a bare string of texts and what is no text are refused; no texts are no error."""
    reranker = get_reranker("acme")
    assert reranker.score("q", []).shape == (0,)
    for query, texts, message in (
        ("\u200b", ["a"], "query is empty"),
        ("q", "text", "got one string"),
        ("q", ["a", 3], "text 1 is int"),
        ("q", None, "texts is None"),
    ):
        with pytest.raises(InputError, match=message):
            reranker.score(query, texts)  # type: ignore[arg-type]


def test_an_embedder_scores_by_its_cosine() -> None:
    """Late re-scoring is the cosine of the query under the instruction with each text, 0 for a blank one."""
    pytest.importorskip("openvino")
    embedder, reranker = get_embedder("bundled"), get_reranker("embedder:bundled")
    assert reranker.info.instruction_trained and reranker.info.max_length == embedder.info.max_length
    documents = embedder.encode_document([t for t in TEXTS if t.strip()])
    for instruction in (None, "Given a question, retrieve passages that answer the question"):
        query = embedder.encode_query(["how do I cancel?"], instruction=instruction)[0]
        scores = reranker.measured("how do I cancel?", TEXTS, instruction=instruction)
        np.testing.assert_allclose(scores.values[[0, 1, 3]], documents @ query, atol=1e-3)
        assert scores.values[2] == 0
        rendered = [embedder.render_query("how do I cancel?", instruction=instruction)]
        assert scores.tokens == sum(embedder.count_tokens([*rendered, *(t for t in TEXTS if t.strip())]))
    short = get_reranker("embedder:bundled", dim=128)
    assert not np.allclose(short.score("q", TEXTS), reranker.score("q", TEXTS), atol=1e-3)


def test_an_untrained_embedder_says_so(tmp_path: Path) -> None:
    """Word vectors take no instruction: the bare query is scored, and a warning tells."""
    (tmp_path / "words.txt").write_text("salt 1.0 0.0\nsoup 0.6 0.8\nrain 0.0 1.0\n")
    reranker = get_reranker(f"embedder:{tmp_path / 'words.txt'}")
    with pytest.warns(RerankWarning, match="takes no instruction"):
        scores = reranker.score("salt", ["salt", "soup", "rain"], instruction="Find soup")
    np.testing.assert_allclose(scores, [1, 0.6, 0], atol=1e-3)
