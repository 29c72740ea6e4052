"""Cross-encoders against plain transformers and sentence-transformers, on tiny seeded models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedkit import get_reranker
from embedkit.errors import EmbedderError, InputError, RerankerError
from embedkit.rerankers.base import RerankWarning
from tests.embedkit.tiny_models import BERT, QWEN3, TEXTS, XLMR, Specials, save_model
from tests.embedkit.tiny_rerankers import QUERY, plain_scores, save_causal_reranker, save_cross_encoder

pytest.importorskip("torch")
LONG = "salt and pepper and oil in the soup. " * 30
PASSAGES = [*TEXTS, LONG, "", "Wer zählt die Wolken?", *TEXTS]


@pytest.fixture(scope="module", params=["bert", "xlm-roberta"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-encoder of one label, 64 positions."""
    folder = tmp_path_factory.mktemp(request.param)
    return save_cross_encoder(folder, BERT if request.param == "bert" else XLMR)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of one label."""
    return save_cross_encoder(tmp_path_factory.mktemp("bert"))


def test_equals_plain_transformers(model: Path) -> None:
    """Scores in batches are the logits of one pair at a time, what is too long cut at its end, whatever the order."""
    reranker = get_reranker(str(model))
    expected = plain_scores(model, QUERY, PASSAGES, 64)[:, 0]
    assert np.ptp(expected) > 0.1
    found = reranker.score(QUERY, PASSAGES)
    assert found.dtype == np.float32 and found.shape == (len(PASSAGES),)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(reranker.score(QUERY, PASSAGES[::-1]), expected[::-1], atol=1e-5)
    small = get_reranker(str(model), token_budget=1)
    np.testing.assert_allclose(small.score(QUERY, PASSAGES), expected, atol=1e-5)
    assert reranker.info.max_length == 64 and reranker.info.kind == "cross-encoder"


def test_max_length_and_tokens(model: Path) -> None:
    """`max_length` cuts sooner, no more is read than it says, and the tokens read are counted."""
    reranker = get_reranker(str(model), max_length=24)
    expected = plain_scores(model, QUERY, PASSAGES, 24)[:, 0]
    scores = reranker.measured(QUERY, PASSAGES)
    np.testing.assert_allclose(scores.values, expected, atol=1e-5)
    assert reranker.measured(QUERY, [LONG]).tokens == 24 and scores.tokens <= 24 * len(PASSAGES)
    with pytest.raises(InputError, match="takes 1 to 64 tokens"):
        get_reranker(str(model), max_length=65)


@pytest.mark.parametrize("specials", [BERT, XLMR])
def test_two_labels_are_a_difference(specials: Specials, tmp_path: Path) -> None:
    """A head of two labels scores by the second's logit minus the first's."""
    folder = save_cross_encoder(tmp_path / "two", specials, labels=2)
    both = plain_scores(folder, QUERY, TEXTS, 64)
    np.testing.assert_allclose(
        get_reranker(str(folder)).score(QUERY, TEXTS), both[:, 1] - both[:, 0], atol=1e-5
    )


@pytest.mark.parametrize("activation", ["Identity", "Sigmoid", "Tanh"])
def test_equals_sentence_transformers(bert: Path, activation: str, tmp_path: Path) -> None:
    """A folder that CrossEncoder saved gives the numbers of its `predict`: activation, length and prompt as stored."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    import torch

    theirs = sentence_transformers.CrossEncoder(
        str(bert),
        device="cpu",
        activation_fn=getattr(torch.nn, activation)(),
        max_length=40,
        prompts={"ask": "query: "},
        default_prompt_name="ask",
    )
    theirs.save_pretrained(str(tmp_path / "saved"))
    reranker = get_reranker(str(tmp_path / "saved"))
    expected = theirs.predict([(QUERY, text) for text in PASSAGES])
    np.testing.assert_allclose(reranker.score(QUERY, PASSAGES), expected, atol=1e-5)
    assert reranker.info.max_length == 40
    bare = get_reranker(str(tmp_path / "saved"), prompt="", activation="Identity", max_length=64)
    np.testing.assert_allclose(
        bare.score(QUERY, PASSAGES), plain_scores(bert, QUERY, PASSAGES, 64)[:, 0], atol=1e-5
    )


@pytest.mark.parametrize(
    ("mark", "sigmoid"),
    [
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, False),
        ({"sbert_ce_default_activation_function": None}, True),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}, True),
        ({"sentence_transformers": {"version": "4.0.1"}}, True),
        ({}, False),
    ],
)
def test_marks_in_the_config(bert: Path, mark: dict[str, Any], sigmoid: bool, tmp_path: Path) -> None:
    """Older folders name the activation in config.json; a mark without one means Sigmoid, none at all the raw logit."""
    folder = _changed(bert, tmp_path / "marked", "config.json", **mark)
    logits = plain_scores(bert, QUERY, TEXTS, 64)[:, 0]
    expected = 1 / (1 + np.exp(-logits)) if sigmoid else logits
    np.testing.assert_allclose(get_reranker(str(folder)).score(QUERY, TEXTS), expected, atol=1e-5)


def test_long_query_is_cut_with_a_warning(bert: Path) -> None:
    """A query that leaves a text too little room is cut, and a warning says how many tokens were scored."""
    reranker = get_reranker(str(bert))
    query = "salt pepper " * 60
    with pytest.warns(RerankWarning, match="its first 45 were scored"):
        found = reranker.score(query, TEXTS)
    assert np.isfinite(found).all() and np.ptp(found) > 0


def test_instruction_is_said_to_be_ignored(bert: Path) -> None:
    """A cross-encoder takes no instruction: it warns once, and scores as without."""
    reranker = get_reranker(str(bert))
    with pytest.warns(RerankWarning, match="takes no instruction"):
        found = reranker.score(QUERY, TEXTS, instruction="Find recipes")
    np.testing.assert_array_equal(found, reranker.score(QUERY, TEXTS))


def test_half_precision_is_near(bert: Path) -> None:
    """`dtype` bfloat16 gives nearly the scores of float32, in float32."""
    found = get_reranker(str(bert), dtype="bfloat16").score(QUERY, TEXTS)
    exact = get_reranker(str(bert)).score(QUERY, TEXTS)
    assert found.dtype == np.float32
    assert 0 < np.abs(found - exact).max() < 0.2


def test_what_is_no_cross_encoder_is_refused(bert: Path, tmp_path: Path) -> None:
    """An embedder, three labels, other modules, other activations: one sentence each, before weights are read."""
    embedder = save_model(tmp_path / "embedder", "Bert", BERT)
    with pytest.raises(InputError, match=r"is no cross-encoder \(BertModel\).*embedder:"):
        get_reranker(str(embedder))
    with pytest.raises(InputError, match="has 3 labels"):
        get_reranker(str(save_cross_encoder(tmp_path / "three", labels=3)))
    pooled = _changed(bert, tmp_path / "pooled", "config.json")
    kinds = ["Transformer", "Pooling"]
    (pooled / "modules.json").write_text(json.dumps([{"type": f"x.{kind}", "path": ""} for kind in kinds]))
    with pytest.raises(InputError, match=r"is an embedder \(Transformer, Pooling\)"):
        get_reranker(str(pooled))
    dense = [{"type": "x.Transformer", "path": ""}, {"type": "x.Dense", "path": "1"}]
    (pooled / "modules.json").write_text(json.dumps(dense))
    with pytest.raises(InputError, match="holds a Dense module"):
        get_reranker(str(pooled))
    odd = {"sentence_transformers": {"activation_fn": "os.system"}}
    with pytest.raises(InputError, match=r"activation os\.system: known are Identity"):
        get_reranker(str(_changed(bert, tmp_path / "odd", "config.json", **odd)))
    malformed: list[dict[str, Any]] = [{"architectures": 5}, {"id2label": None, "num_labels": "many"}]
    for number, change in enumerate(malformed):
        folder = _changed(bert, tmp_path / f"malformed-{number}", "config.json", **change)
        with pytest.raises(InputError, match="cannot be read as a cross-encoder"):
            get_reranker(str(folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no config\.json"):
        get_reranker(str(tmp_path / "empty"))


def test_broken_weights_are_refused(bert: Path, tmp_path: Path) -> None:
    """A head that lacks in the file is never drawn at random; NaN weights give no order."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(bert / "model.safetensors")
    lacking = _changed(bert, tmp_path / "lacking", "config.json")
    save_file(
        {n: w for n, w in weights.items() if not n.startswith("classifier")},
        lacking / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(EmbedderError, match=r"lacks weights.*classifier"):
        get_reranker(str(lacking))
    nan = _changed(bert, tmp_path / "nan", "config.json")
    weights["classifier.bias"] = torch.full_like(weights["classifier.bias"], float("nan"))
    save_file(weights, nan / "model.safetensors", {"format": "pt"})
    with pytest.raises(RerankerError, match="NaN or infinity for 2 of 2"):
        get_reranker(str(nan)).score(QUERY, TEXTS[:2])


def test_options_are_checked(bert: Path) -> None:
    """Each wrong option is one sentence that names it."""
    for options, message in (
        ({"activation": "Softmax"}, "activation 'Softmax' is none of"),
        ({"dtype": "int8"}, "dtype 'int8' is none of"),
        ({"device": "tpu"}, "device 'tpu' is none of"),
        ({"token_budget": 0}, "token_budget is 0"),
        ({"max_length": 4}, "leaves no room beside 3 special tokens"),
        ({"max_lenght": 4}, "did you mean max_length"),
    ):
        with pytest.raises(InputError, match=message):
            get_reranker(str(bert), **options)


def test_qwen3_reranker_equals_plain_transformers(tmp_path: Path) -> None:
    """A causal reranker scores by the logits of yes and no after its authors' template, instruction included."""
    import torch
    import transformers

    folder = save_causal_reranker(tmp_path / "qwen3")
    loader: Any = transformers.AutoTokenizer
    tokenizer = loader.from_pretrained(str(folder), padding_side="left")
    kind: Any = transformers.AutoModelForCausalLM
    model = kind.from_pretrained(str(folder), dtype=torch.float32).eval()

    def plain(instruction: str, text: str, length: int) -> float:
        before = (
            "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
            'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
        )
        after = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        first, last = (tokenizer.encode(part, add_special_tokens=False) for part in (before, after))
        pair = f"<Instruct>: {instruction}\n<Query>: {QUERY}\n<Document>: {text}"
        room = length - len(first) - len(last)
        body = tokenizer.encode(pair, add_special_tokens=False, truncation=True, max_length=room)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*first, *body, *last]])).logits[0, -1]
        yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
        return float(logits[yes] - logits[no])

    reranker = get_reranker(str(folder))
    assert reranker.info.instruction_trained and reranker.info.kind == "causal"
    web = "Given a web search query, retrieve relevant passages that answer the query"
    for given, used in ((None, web), ("Find the recipe", "Find the recipe")):
        expected = [plain(used, text, 1024) for text in PASSAGES]
        assert np.ptp(expected) > 0.01
        np.testing.assert_allclose(reranker.score(QUERY, PASSAGES, instruction=given), expected, atol=1e-4)
    assert not np.allclose(
        reranker.score(QUERY, TEXTS), reranker.score(QUERY, TEXTS, instruction="Find the recipe")
    )
    short = get_reranker(str(folder), max_length=440)
    assert short.measured(QUERY, [LONG]).tokens == 440
    np.testing.assert_allclose(short.score(QUERY, [LONG]), [plain(web, LONG, 440)], atol=1e-4)


def test_other_causal_models_are_refused(tmp_path: Path) -> None:
    """No template is guessed: a causal model of another family is refused in one sentence."""
    folder = save_causal_reranker(tmp_path / "llama", "Llama")
    with pytest.raises(InputError, match=r"causal model \(LlamaForCausalLM\).*only Qwen3-Reranker"):
        get_reranker(str(folder))
    assert QWEN3.bos is None


def _changed(folder: Path, target: Path, name: str, **changes: Any) -> Path:
    """Copy a model folder, with changes to one of its JSON files."""
    import shutil

    shutil.copytree(folder, target)
    path = target / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return target
