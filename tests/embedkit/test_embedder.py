"""What the base class gives every embedder."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from embedkit import BUILT_IN_TASKS, Embedder, EmbedderInfo, InstructionWarning, Task, Template
from embedkit.embedder import LengthWarning
from embedkit.errors import EmbedderError, InputError, UnknownNameError
from embedkit.tasks import resolve_instruction


class Letters(Embedder):
    """Count letters: a text's vector is its numbers of a, b and c."""

    window = 4

    def __init__(self, **info: Any) -> None:
        described: dict[str, Any] = {
            "name": "letters",
            "dim": 3,
            "max_length": 99,
            "pooling": "mean",
            "weights": "w",
        }
        self.info = EmbedderInfo(**(described | info))
        self.calls: list[list[str]] = []
        self.answer: Any = None

    def _embed(self, texts: Sequence[str]) -> Any:
        self.calls.append(list(texts))
        return self.answer if self.answer is not None else [[t.count(c) for c in "abc"] for t in texts]


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text("abcz", min_size=1, max_size=30), max_size=25))
def test_order_survives_sorting(texts: list[str]) -> None:
    """Windows hold texts of like length, longest first, and every row comes back at its text's place."""
    model = Letters()
    found = model.encode_document(texts)
    assert found.shape == (len(texts), 3)
    assert found.dtype == np.float32
    for text, row in zip(texts, found, strict=True):
        counts = np.array([text.count(c) for c in "abc"], float)
        np.testing.assert_allclose(row, counts / (np.linalg.norm(counts) or 1), atol=1e-6)
    lengths = [len(t) for call in model.calls for t in call]
    assert lengths == sorted(lengths, reverse=True)
    assert all(len(call) <= 4 for call in model.calls)


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        ("float16", 1.0),
        ("float16", 1e4),
        *(("float32", scale) for scale in (1e-38, 1e-30, 1e-8, 1.0, 1e8, 1e37)),
        *(("float64", scale) for scale in (1e-300, 1e-30, 1.0, 1e30, 1e300)),
        ("int64", 1.0),
    ],
)
def test_unit_length(dtype: str, scale: float) -> None:
    """Rows have unit length for vectors of any size and dtype, where their squares over- or underflow too."""
    model = Letters()
    model.answer = (np.array([[3.0, 4.0, 0.0], [-1.0, 2.0, 2.0]]) * scale).astype(dtype)
    expected = [[0.6, 0.8, 0], [-1 / 3, 2 / 3, 2 / 3]]
    np.testing.assert_allclose(
        model.encode_document(["bb", "a"]), expected, atol=1e-3 if dtype == "float16" else 1e-6
    )


def test_zero_rows() -> None:
    """A text of which the embedder knows nothing gives a zero row, not NaN."""
    np.testing.assert_array_equal(Letters().encode_document(["zzz", "a"]), [[0, 0, 0], [1, 0, 0]])


INVISIBLE = [
    "\u200b",
    "\ufeff\u200d\u2060",
    "\x00\x1b",
    "\u00ad \n",
    "\u3164",
    "\ufe0f",
    "\u2800",
    "\U000e0041",
]


@pytest.mark.parametrize("text", INVISIBLE)
def test_texts_that_show_nothing(text: str) -> None:
    """A query of zero-width and control characters is refused; a document of them is a zero row, unseen by the model."""
    model = Letters(template=Template(document="abc {text}"))
    with pytest.raises(InputError, match="query 1 holds no visible character|query 1 is empty"):
        model.encode_query(["a", text])
    with pytest.raises(InputError, match="instruction is empty"):
        model.encode_query(["a"], instruction=text)
    assert model.calls == []
    assert not model.encode_document([text, "a"])[0].any()
    assert not model.encode_rendered([text])[0].any()
    assert model.calls == [["abc a"]]
    assert model.encode_query([f"a{text}"]).any(), "beside a letter they do no harm"


def test_no_texts() -> None:
    """No text gives an empty array of the right width."""
    assert Letters().encode_document([]).shape == (0, 3)


def test_any_iterable() -> None:
    """A generator of texts is encoded whole, not consumed by the checks."""
    found = Letters().encode_document(t for t in ("a", "b"))  # type: ignore[arg-type]
    np.testing.assert_array_equal(found, [[1, 0, 0], [0, 1, 0]])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("abc", r"takes a list of texts, got one string: write \['abc'\]"),
        (["a", " \n\t"], " 1 is empty"),
        (["a", ""], " 1 is empty"),
        ([None], " 0 is NoneType, not str"),
        ([b"a"], " 0 is bytes, not str"),
        (["a", "b\ud800"], " 1 holds half a surrogate pair at character 1"),
    ],
)
def test_bad_texts(texts: Any, message: str) -> None:
    """A bare string, a blank, a non-string or half a surrogate is refused with its number, before the model runs."""
    model = Letters()
    for encode in (model.encode_query, model.encode_document):
        with pytest.raises(InputError, match=message):
            encode(texts)
    assert model.calls == []


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.ones((2, 4)), r"shape \(2, 4\), expected \(2, 3\)"),
        (np.ones((1, 3)), r"shape \(1, 3\), expected \(2, 3\)"),
        (np.ones(3), r"shape \(3,\)"),
        ([[1.0, 2.0, 3.0], [1.0]], "returned list, which is no array of floats"),
        ([["a", "b", "c"]] * 2, "no array of floats"),
        (np.array([[1, 2, 3], [1, np.nan, 3]]), "NaN or infinity for 1 of 2 texts, the first being 'a'"),
        (np.array([[1, 2, np.inf], [1, 2, 3]]), "NaN or infinity for 1 of 2 texts, the first being 'bb'"),
    ],
)
def test_broken_embedders(answer: Any, message: str) -> None:
    """Wrong shapes, ragged rows, NaN and infinity are EmbedderErrors with the embedder's name."""
    model = Letters()
    model.answer = answer
    with pytest.raises(EmbedderError, match=message) as caught:
        model.encode_document(["a", "bb"])
    assert "'letters'" in str(caught.value)


def test_what_is_encoded() -> None:
    """Documents are encoded bare; queries under their task, or a free instruction, or the default task."""
    model = Letters(instruction_trained=True, template=Template(document="d: {text}"))
    model.encode_document(["x"])
    model.encode_query(["x"])
    model.encode_query(["x"], task="bitext")
    model.encode_query(["x"], task=Task("mine", "find"))
    model.encode_query(["x"], instruction="find {query}")
    Letters.encode_query(model, ["x"], "qa")
    instructions = {name: task.instruction for name, task in BUILT_IN_TASKS.items()}
    assert [call[0] for call in model.calls] == [
        "d: x",
        "x",
        f"Instruct: {instructions['bitext']}\nQuery: x",
        "Instruct: find\nQuery: x",
        "Instruct: find {query}\nQuery: x",
        f"Instruct: {instructions['qa']}\nQuery: x",
    ]
    default = Letters(instruction_trained=True, default_task="search")
    assert default.render_query("x") == f"Instruct: {instructions['search']}\nQuery: x"
    assert default.render_query("x", instruction="find") == "Instruct: find\nQuery: x"


def test_rendered_is_encoded() -> None:
    """`render_query` shows exactly what `encode_query` encodes."""
    model = Letters(instruction_trained=True, default_task="qa")
    for arguments in ({}, {"task": "code"}, {"instruction": "find"}):
        model.encode_query(["{query} x"], **arguments)
        assert model.calls[-1] == [model.render_query("{query} x", **arguments)]


def test_wrong_tasks() -> None:
    """An unknown task, or a task beside an instruction, is refused before the model runs."""
    model = Letters()
    with pytest.raises(UnknownNameError):
        model.encode_query(["x"], task="bitex")
    with pytest.raises(InputError, match="choose one"):
        model.encode_query(["x"], task="qa", instruction="find")
    assert model.calls == []


def test_untrained_embedder_warns_once() -> None:
    """An instruction to an untrained embedder warns once for each embedder, at the caller's line; a bare query never."""
    model = Letters()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.encode_query(["x"])
        model.encode_query(["x"], task="qa")
        model.encode_query(["x"], instruction="find")
        Letters(instruction_trained=True).encode_query(["x"], task="qa")
    assert [w.category for w in caught] == [InstructionWarning]
    assert caught[0].filename == __file__
    assert "letters was not trained on instructions" in str(caught[0].message)


def test_an_instruction_that_fills_the_model_warns_once() -> None:
    """Where no token of the query is read, a LengthWarning says that the instruction is to blame, once an embedder."""

    class Small(Letters):
        def count_tokens(self, texts: Sequence[str]) -> list[int]:
            return [2 + len(text.split()) for text in texts]

    model = Small(instruction_trained=True, max_length=8)  # [CLS] Instruct: … Query: [SEP]: four of the eight
    assert [model.room_for_query("x " * n) for n in (1, 3, 4, 9)] == [3, 1, 0, -5]
    assert model.room_for_query() == 6
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.encode_query(["a " * 99])
        model.encode_query(["a " * 99], instruction="x x x")
        assert not caught
        model.encode_query(["a"], instruction="x x x x")
        model.encode_query(["a"], instruction="y y y y y")
    assert [w.category for w in caught] == [LengthWarning]
    assert caught[0].filename == __file__
    assert "the instruction fills the 8 tokens that letters reads" in str(caught[0].message)


@pytest.fixture
def words() -> Iterator[Any]:
    """Give a real word-level tokenizer that adds two special tokens and truncates."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", None, [("[CLS]", 1), ("[SEP]", 2)]
    )
    yield tokenizer


def test_token_counts(words: Any) -> None:
    """Tokens are counted by the tokenizer with special ones; without one, four bytes of UTF-8 make a token."""

    class WithTokenizer(Letters):
        tokenizer = words

    assert WithTokenizer().count_tokens(["a b c", "a", "a \ud800"]) == [5, 3, 4]
    assert Letters().count_tokens(["abcdefgh", "é" * 4, "\ud800"]) == [4, 4, 2]


def test_a_failing_plug_in_is_named() -> None:
    """An exception inside `_embed` becomes an EmbedderError that names the embedder, the text and the cause."""

    class Failing(Embedder):
        info = EmbedderInfo(name="mine", dim=2, max_length=8, pooling="none", weights="w")

        def _embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
            raise KeyError("weights")

    with pytest.raises(
        EmbedderError, match=r"'mine' failed on 1 texts, the first being 'tide': KeyError: 'weights'"
    ):
        Failing().encode_document(["tide"])


def test_half_a_surrogate_in_an_instruction_is_named() -> None:
    """An instruction, free or a task's, with half a surrogate pair is an InputError that says where, on every way in."""
    model = Letters(instruction_trained=True)
    for ask in (
        lambda: model.encode_query(["a"], instruction="find\udcff"),
        lambda: model.render_query("a", instruction="find\udcff"),
        lambda: Task("mine", "find\udcff"),
    ):
        with pytest.raises(InputError, match=r"the instruction.* half a surrogate pair at character 4"):
            ask()
    assert model.calls == []


@pytest.mark.parametrize(("task", "instruction"), [(5, None), (None, 5), (["qa"], None)])
def test_tasks_of_a_wrong_type_are_refused(task: Any, instruction: Any) -> None:
    """A task that is neither a name nor a Task, and an instruction that is no string, are InputErrors."""
    with pytest.raises(InputError, match="int|list"):
        resolve_instruction(task, instruction)
