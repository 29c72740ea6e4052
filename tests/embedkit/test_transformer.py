"""The transformer embedder: token ids, invariances, precision, adapters, errors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedkit.contract import Template
from embedkit.embedders.transformer import ModelCodeWarning, TransformerEmbedder
from embedkit.errors import EmbedderError, InputError, MissingExtraError, UnknownNameError
from embedkit.registry import get_embedder
from tests.embedkit.tiny_models import (
    BARE,
    BERT,
    LLAMA,
    QWEN2,
    TEXTS,
    cosines,
    plain_ids,
    plain_model,
    plain_vectors,
    save_model,
)

torch = pytest.importorskip("torch", reason="needs the extra [torch]")
pytest.importorskip("transformers", reason="needs the extra [torch]")


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mistral whose tokenizer adds <s> and forgets </s>."""
    return save_model(tmp_path_factory.mktemp("mistral"), "Mistral", LLAMA)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT."""
    return save_model(tmp_path_factory.mktemp("bert"), "Bert", BERT)


def _open(folder: Path, **options: Any) -> TransformerEmbedder:
    return TransformerEmbedder.open(str(folder), **({"dtype": "float32"} | options))


def test_decoder_without_preset_pools_eos(mistral: Path) -> None:
    """A decoder folder of unknown name gets BOS + text + EOS and the state at EOS, though its tokenizer drops EOS."""
    embedder = _open(mistral)
    rows = [plain_ids(mistral, t, ["<s>"], ["</s>"]) for t in TEXTS]
    assert embedder.token_ids(TEXTS) == rows
    expected = plain_vectors(plain_model(mistral), rows, "last")
    assert cosines(embedder.encode_document(TEXTS), expected).min() >= 0.9999
    without_eos = plain_vectors(plain_model(mistral), [r[:-1] for r in rows], "last")
    assert cosines(without_eos, expected).max() < 0.999, "a lost EOS would show here"


def test_loading_draws_no_bar(mistral: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is drawn while the weights are loaded, and transformers' bars are on again afterwards."""
    from transformers.utils import logging

    # As a program finds it: another test may have turned it off.
    logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    _open(mistral)
    assert capfd.readouterr().err == ""
    assert logging.is_progress_bar_enabled()


@pytest.mark.parametrize("specials", [LLAMA, BARE], ids=["bos only", "no specials"])
@pytest.mark.parametrize(
    "flags", [{}, {"add_eos_token": True}, {"add_bos_token": True, "add_eos_token": False}]
)
@pytest.mark.parametrize(
    "tokenizer_class", ["LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast"]
)
def test_tokenizer_flags_never_decide_the_ids(
    tmp_path: Path, specials: Any, flags: dict[str, bool], tokenizer_class: str
) -> None:
    """Whatever class and add_*_token flags a folder names, ids are BOS, text, EOS, once each."""
    import json

    from embedkit.embedders.tokens import build_tokens, load_tokenizer
    from tests.embedkit.tiny_models import save_tokenizer

    save_tokenizer(tmp_path, specials)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | flags | {"tokenizer_class": tokenizer_class}))
    loaded = load_tokenizer(tmp_path, False)
    tokens = build_tokens(loaded, bos=True, eos="eos", last=True, max_length=64)
    body = loaded.backend_tokenizer.encode(TEXTS[0], add_special_tokens=False).ids
    assert tokens([TEXTS[0]]) == [[loaded.bos_token_id, *body, loaded.eos_token_id]]


@pytest.mark.parametrize("max_length", [3, 5, 17])
def test_truncation_keeps_eos(mistral: Path, bert: Path, max_length: int) -> None:
    """A long text is cut in its middle: the first and last tokens stay special, the length is exact."""
    for folder, before, after in ((mistral, "<s>", "</s>"), (bert, "[CLS]", "[SEP]")):
        embedder = _open(folder, max_length=max_length)
        full = plain_ids(folder, TEXTS[-1], [before], [after])
        assert embedder.token_ids([TEXTS[-1]]) == [[*full[: max_length - 1], full[-1]]]
        expected = plain_vectors(plain_model(folder), embedder.token_ids(TEXTS), embedder.info.pooling)
        assert cosines(embedder.encode_document(TEXTS), expected).min() >= 0.9999


def test_counted_tokens_are_the_encoded_ones(mistral: Path, bert: Path) -> None:
    """count_tokens and the tokenizer count what is encoded, special tokens included, before truncation."""
    for folder in (mistral, bert):
        embedder = _open(folder)
        expected = [len(ids) for ids in embedder.token_ids(TEXTS)]
        assert embedder.count_tokens(TEXTS) == expected
        assert [len(embedder.tokenizer.encode(t).ids) for t in TEXTS] == expected
        assert _open(folder, max_length=5).count_tokens(TEXTS) == expected


@pytest.mark.parametrize("name", ["mistral", "bert"])
@pytest.mark.parametrize("budget", [1, 64, 100_000])
def test_batch_mates_change_nothing(name: str, budget: int, request: pytest.FixtureRequest) -> None:
    """One by one, together, under any token budget: the same vectors (1e-5)."""
    folder = request.getfixturevalue(name)
    embedder = _open(folder, token_budget=budget)
    together = embedder.encode_document(TEXTS)
    alone = np.concatenate([embedder.encode_document([t]) for t in TEXTS])
    assert np.abs(together - alone).max() < 1e-5


def test_padding_side_of_the_tokenizer_is_irrelevant(tmp_path: Path) -> None:
    """A tokenizer that pads left gives the vectors of one that pads right."""
    left, right = (
        _open(save_model(tmp_path / side, "Qwen2", QWEN2, padding_side=side), preset="gte-qwen2")
        for side in ("left", "right")
    )
    assert np.array_equal(left.encode_document(TEXTS), right.encode_document(TEXTS))


def test_bidirectional_qwen2_keeps_its_mask(tmp_path: Path) -> None:
    """A decoder config that says is_causal false is never run without a mask: batch mates change nothing."""
    embedder = _open(save_model(tmp_path, "Qwen2", QWEN2, is_causal=False))
    alone = np.concatenate([embedder.encode_document([t]) for t in TEXTS])
    assert np.abs(embedder.encode_document(TEXTS) - alone).max() < 1e-5


@pytest.mark.parametrize("name", ["mistral", "bert"])
def test_bfloat16_stays_close_to_float32(name: str, request: pytest.FixtureRequest) -> None:
    """In bfloat16 every cosine to the float32 vector is at least 0.999, and it is not float32 under another name."""
    folder = request.getfixturevalue(name)
    exact = _open(folder).encode_document(TEXTS)
    rounded = _open(folder, dtype="bfloat16").encode_document(TEXTS)
    assert cosines(exact, rounded).min() >= 0.999
    assert np.abs(exact - rounded).max() > 1e-5


def test_wrong_last_token_is_refused(mistral: Path) -> None:
    """Ids that do not end with EOS are never pooled."""
    embedder = _open(mistral)
    with pytest.raises(EmbedderError, match="not EOS"):
        embedder._backend.encode([[1, 5, 6]])


def test_out_of_memory_halves_and_gives_the_same_vectors(bert: Path) -> None:
    """A forward that fails like a full GPU above 40 tokens is split until it fits; vectors are unchanged."""
    embedder = _open(bert, token_budget=4096)
    expected = embedder.encode_document(TEXTS)
    encoder: Any = embedder._backend
    plain, sizes = encoder.forward, []

    def full(batch: Any) -> Any:
        if len(batch) > 1 and len(batch) * max(map(len, batch)) > 40:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(batch))
        return plain(batch)

    encoder.run_batch.forward = full
    assert np.abs(embedder.encode_document(TEXTS) - expected).max() < 1e-5
    assert len(sizes) > 1
    assert encoder.run_batch.budget < 4096


def _save_adapter(base: Path, folder: Path, trained: bool = True) -> Path:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        plain_model(base), LoraConfig(r=4, target_modules=["q_proj", "v_proj", "query", "value"])
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name and trained:
                parameter.normal_(0, 0.3)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("name", ["mistral", "bert"])
@pytest.mark.parametrize("merge", [True, False])
def test_adapter_equals_plain_peft(
    name: str, tmp_path: Path, merge: bool, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """A PEFT adapter, given beside its base or as a folder of its own, moves the vectors to where plain peft has them."""
    from peft import PeftModel

    folder = request.getfixturevalue(name)

    if not merge:
        monkeypatch.setattr("embedkit.embedders.encoder._MERGE_LIMIT", 0)
    adapter = _save_adapter(folder, tmp_path / "adapter")
    base = _open(folder)
    beside, alone = _open(folder, adapter=str(adapter)), get_embedder(str(adapter), dtype="float32")
    wrapped = PeftModel.from_pretrained(plain_model(folder), str(adapter)).eval()
    expected = plain_vectors(wrapped, base.token_ids(TEXTS), base.info.pooling)
    for embedder in (beside, alone):
        assert cosines(embedder.encode_document(TEXTS), expected).min() >= 0.9999
        assert embedder.info.weights != base.info.weights
    assert beside.fingerprint == alone.fingerprint
    assert cosines(base.encode_document(TEXTS), expected).max() < 0.999, "the adapter changes the vectors"


def test_a_merge_that_changes_the_model_is_refused(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merged weights that compute something else than model and adapter are never used."""
    from peft import LoraModel

    adapter = _save_adapter(bert, tmp_path / "adapter")
    merge: Any = LoraModel.merge_and_unload

    def spoilt(self: Any) -> Any:
        model = merge(self)
        with torch.no_grad():
            model.encoder.layer[0].output.dense.weight.mul_(1.5)
        return model

    monkeypatch.setattr(LoraModel, "merge_and_unload", spoilt)
    with pytest.raises(EmbedderError, match="merging the adapter changes"):
        _open(bert, adapter=str(adapter))


def test_untrained_adapter_is_refused(mistral: Path, tmp_path: Path) -> None:
    """An adapter whose lora_B is all zero changes nothing, and that is an error."""
    adapter = _save_adapter(mistral, tmp_path / "adapter", trained=False)
    with pytest.raises(EmbedderError, match="changes nothing"):
        _open(mistral, adapter=str(adapter))


def test_fingerprint_follows_content(bert: Path, tmp_path: Path) -> None:
    """The same files in another folder keep the fingerprint; weights, pooling or a length change it; dtype and device do not."""
    import shutil

    first = _open(bert)
    shutil.copytree(bert, tmp_path / "moved")
    assert _open(tmp_path / "moved", dtype="bfloat16", token_budget=7).fingerprint == first.fingerprint
    other = save_model(tmp_path / "other", "Bert", BERT, seed=1)
    changed = [_open(other), _open(bert, pooling="cls"), _open(bert, max_length=20)]
    changed.append(_open(bert, template=Template(document="passage: {text}")))
    assert len({e.fingerprint for e in [first, *changed]}) == 5


def test_dtype_of_info_is_that_of_the_files(bert: Path, tmp_path: Path) -> None:
    """info.dtype is what is stored, whatever is computed in."""
    from transformers import AutoModel

    assert _open(bert, dtype="bfloat16").info.dtype == "float32"
    save_model(tmp_path, "Bert", BERT)
    AutoModel.from_pretrained(str(tmp_path)).to(torch.float16).save_pretrained(str(tmp_path))
    assert _open(tmp_path).info.dtype == "float16"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "max"}, "pooling 'max'"),
        ({"dtype": "int8"}, "dtype 'int8'"),
        ({"max_length": 0}, "max_length 0"),
        ({"max_length": 2}, "no room for text"),
        ({"max_length": 10_000}, "above the model's 258 positions"),
        ({"token_budget": 0}, "token_budget 0"),
        ({"device": "tpu"}, "device 'tpu'"),
        ({"device": []}, "empty list"),
        ({"device": "cuda:99"}, "GPU"),
        ({"adapter": "/nowhere"}, "does not exist"),
    ],
)
def test_wrong_options_are_refused_with_their_value(
    bert: Path, options: dict[str, Any], message: str
) -> None:
    """A wrong option is an InputError that shows the value seen."""
    with pytest.raises(InputError, match=message):
        _open(bert, **options)


def test_unknown_preset_and_missing_folder(bert: Path) -> None:
    """A misspelt preset is answered with the nearest one, a missing folder with its path."""
    with pytest.raises(UnknownNameError, match="qwen3"):
        _open(bert, preset="qwen-3")
    with pytest.raises(InputError, match="no/such/folder"):
        _open(Path("no/such/folder"))
    with pytest.raises(InputError, match="needs a model"):
        TransformerEmbedder.open("")


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_missing_extra_names_the_pip_command(
    bert: Path, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without torch or transformers the message holds the command that installs them."""
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'embedkit-retrieval\[torch\]'"):
        _open(bert)


def test_hub_id_loads_from_its_snapshot(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub id goes through the hub client with its revision, and the preset follows from the id."""
    asked: list[tuple[str, str | None]] = []

    def snapshot(name: str, *, revision: str | None, **patterns: list[str]) -> str:
        asked.append((name, revision))
        return str(bert)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    embedder = get_embedder("intfloat/e5-small-v2", revision="abc", dtype="float32")
    assert asked == [("intfloat/e5-small-v2", "abc")]
    assert embedder.info.template.document == "passage: {text}"
    assert np.array_equal(embedder.encode_document(TEXTS), _open(bert, preset="e5").encode_document(TEXTS))


def test_what_is_fetched_from_the_hub(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Safetensors are taken and the same weights as .bin are not, but for Dense layers, which may have no other form."""
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]  # lazily exported

    files = ["config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin", "2_Dense/config.json",
             "2_Dense/pytorch_model.bin", "onnx/model.onnx", "openvino/openvino_model.bin"]  # fmt: skip
    taken: list[str] = []

    def snapshot(name: str, *, allow_patterns: list[str], ignore_patterns: list[str], **rest: Any) -> str:
        taken.extend(
            filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        )
        return str(bert)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    get_embedder("org/model")
    assert set(files) - set(taken) == {"pytorch_model.bin", "onnx/model.onnx", "openvino/openvino_model.bin"}


def test_unreachable_hub_is_an_embedder_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the hub gives nothing, the message names the model and the way out."""

    def snapshot(name: str, **options: Any) -> str:
        raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with pytest.raises(EmbedderError, match=r"org/model.*no route.*local folder"):
        get_embedder("org/model")


def test_float16_stays_close_to_float32(bert: Path) -> None:
    """In float16 on a CPU every cosine to the float32 vector is at least 0.999."""
    rounded = _open(bert, dtype="float16").encode_document(TEXTS)
    assert cosines(_open(bert).encode_document(TEXTS), rounded).min() >= 0.999


def test_a_models_own_code_is_not_run_unasked(tmp_path: Path) -> None:
    """A folder that names code of its own is opened with transformers' class, and a warning says so."""
    import json

    folder = save_model(tmp_path, "Qwen2", QWEN2)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}}))
    (folder / "evil.py").write_text("raise SystemExit('this code was run')")
    with pytest.warns(ModelCodeWarning, match=r"evil\.Model.*was not run.*qwen2 stood in"):
        _open(folder)
