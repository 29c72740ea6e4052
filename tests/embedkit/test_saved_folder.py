"""A folder that embedkit trained: what embedkit.json says is obeyed, and what was changed since is found."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedkit.contract import Template
from embedkit.embedders.folder import read_folder
from embedkit.embedders.saved import FILE, Golden, SavedModel, check_golden_vectors, read_saved
from embedkit.embedders.serving import open_folder
from embedkit.embedders.transformer import TransformerEmbedder
from embedkit.errors import EmbedderError, EmbedkitError, InputError
from tests.embedkit.tiny_models import BERT, LLAMA, TEXTS, plain_model, plain_vectors, save_model

torch = pytest.importorskip("torch", reason="needs the extra [torch]")
pytest.importorskip("transformers", reason="needs the extra [torch]")

TEMPLATE = Template("ask: {query}", "{instruction} / {query}", "doc: {text}")


def _golden(model: Any, tokens: Any, pooling: str) -> tuple[Golden, ...]:
    drafts = [
        Golden("salt and pepper", "query", "Find spices", (), ""),
        Golden("Wer zählt die Wolken?", "query", None, (), ""),
        Golden("The cook adds salt.", "document", None, (), ""),
    ]
    rows = tokens([d.rendered(TEMPLATE) for d in drafts])
    vectors = plain_vectors(model, rows, pooling)
    return tuple(
        Golden.of(d.text, d.side, d.instruction, row, vector)
        for d, row, vector in zip(drafts, rows, vectors, strict=True)
    )


def _save(folder: Path, architecture: str = "Bert", specials: Any = BERT, **changes: Any) -> Path:
    """Save a tiny model with an embedkit.json, its golden vectors by plain transformers."""
    save_model(folder, architecture, specials)
    opened = open_folder(str(folder))
    opened.tokens.tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    pooling = changes.get("pooling", opened.pooling)
    record = SavedModel(
        base="org/base",
        pooling=pooling,
        template=TEMPLATE,
        query_length=20,
        document_length=30,
        golden=_golden(plain_model(folder), opened.tokens, pooling),
    )
    replace(record, **changes).write(folder)
    return folder


def _edit(path: Path, **values: Any) -> None:
    old = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({k: v for k, v in (old | values).items() if v is not None}), encoding="utf-8")


def _another_run(folder: Path) -> None:
    """Replace every weight by a random one of the same size and spread."""
    from safetensors.torch import load_file, save_file

    torch.manual_seed(3)
    weights = load_file(folder / "model.safetensors")
    moved = {k: torch.randn_like(v) * v.std() + v.mean() for k, v in weights.items()}
    save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved BERT; tests that change it copy it."""
    return _save(tmp_path_factory.mktemp("saved"))


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved Mistral."""
    return _save(tmp_path_factory.mktemp("saved"), "Mistral", LLAMA)


def test_the_record_decides(tmp_path: Path) -> None:
    """Pooling, template, length and default task come from embedkit.json, whatever the folder's name says."""
    folder = _save(
        tmp_path / "intfloat" / "e5-small-v2", pooling="cls", default_task="qa", instruction_trained=True
    )
    info = TransformerEmbedder.open(str(folder)).info
    assert (info.pooling, info.template, info.max_length) == ("cls", TEMPLATE, 30)
    assert (info.default_task, info.instruction_trained) == ("qa", True)


@pytest.mark.parametrize("name", ["bert", "mistral"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_arithmetic_passes_the_check(name: str, dtype: str, request: pytest.FixtureRequest) -> None:
    """Golden vectors of float32 are near enough to those of bfloat16 and float16 arithmetic."""
    embedder = TransformerEmbedder.open(str(request.getfixturevalue(name)), dtype=dtype)
    assert embedder.encode_document(TEXTS).shape == (len(TEXTS), 64)


def test_a_shorter_length_or_another_template_is_the_users(bert: Path) -> None:
    """max_length and template may be chosen: the check uses the stored ones."""
    embedder = TransformerEmbedder.open(str(bert), max_length=5, template=Template())
    assert max(map(len, embedder.token_ids(TEXTS))) == 5
    assert embedder.info.template == Template()


def test_altered_weights_are_refused_with_the_cosine(bert: Path, tmp_path: Path) -> None:
    """Weights of another run under the same names: refused, with the text and how far it is off."""
    folder = Path(shutil.copytree(bert, tmp_path / "m"))
    _another_run(folder)
    with pytest.raises(EmbedderError, match=r"not the one trained.*cosine -?0\.\d{4}.*at least 0\.999"):
        TransformerEmbedder.open(str(folder), dtype="float32")


def test_one_altered_layer_is_enough(mistral: Path, tmp_path: Path) -> None:
    """One weight matrix of one layer scaled by a third shows in the golden vectors."""
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(mistral, tmp_path / "m"))
    weights = load_file(folder / "model.safetensors")
    weights["layers.0.self_attn.v_proj.weight"] *= 1.33
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EmbedderError, match="not the one trained"):
        TransformerEmbedder.open(str(folder), dtype="float32")


@pytest.mark.parametrize("change", ["lost EOS", "lost BOS", "other pieces"])
def test_an_altered_tokenizer_is_refused(mistral: Path, tmp_path: Path, change: str) -> None:
    """A post-processor that loses a special token, or a vocabulary in another order: refused, with the place."""
    folder = Path(shutil.copytree(mistral, tmp_path / "m"))
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    single = content["post_processor"]["single"]
    if change == "lost EOS":
        content["post_processor"]["single"] = single[:-1]
    elif change == "lost BOS":
        content["post_processor"]["single"] = single[1:]
    else:
        content["model"]["merges"] = content["model"]["merges"][:5]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(
        EmbedderError, match=r"the tokenizer of .* is not the one trained with: .* position \d+"
    ):
        TransformerEmbedder.open(str(folder))


def test_a_trainer_may_pool_otherwise(tmp_path: Path) -> None:
    """Opened for further training, a saved model may change its pooling: last-token pooling then gets its EOS."""
    folder = _save(tmp_path, "Mistral", LLAMA, pooling="mean")
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    del content["post_processor"]["single"][-1]
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    values = json.loads((folder / FILE).read_text(encoding="utf-8"))
    for golden in values["golden"]:
        golden["ids"] = golden["ids"][:-1]
    (folder / FILE).write_text(json.dumps(values), encoding="utf-8")
    assert open_folder(str(folder)).tokens.suffix == ()
    assert len(open_folder(str(folder), pooling="last").tokens.suffix) == 1


def test_altered_pooling_is_refused(bert: Path, tmp_path: Path) -> None:
    """Another pooling in the Pooling module, in embedkit.json or asked for: each is refused."""
    folder = Path(shutil.copytree(bert, tmp_path / "m"))
    with pytest.raises(InputError, match="trained with pooling mean: leave 'cls' out"):
        TransformerEmbedder.open(str(folder), pooling="cls")
    with pytest.raises(InputError, match="leave preset 'e5' out"):
        TransformerEmbedder.open(str(folder), preset="e5")
    kinds = ("Transformer", "Pooling")
    listed = [
        {"idx": i, "name": str(i), "path": "1_Pooling" * i, "type": f"x.{k}"} for i, k in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "cls"}))
    with pytest.raises(EmbedderError, match="trained with pooling mean, its Pooling module says cls"):
        TransformerEmbedder.open(str(folder))
    _edit(folder / FILE, pooling="cls")
    with pytest.raises(EmbedderError, match="cosine"):
        TransformerEmbedder.open(str(folder))


def _third_party_adapter(base: Path, folder: Path) -> Path:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(plain_model(base), LoraConfig(r=4, target_modules=["query", "value"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(str(folder))
    return folder


def test_anothers_adapter_over_a_saved_model(bert: Path, tmp_path: Path) -> None:
    """An adapter trained elsewhere on a saved model keeps its template and length, and is not held to its vectors."""
    adapter = _third_party_adapter(bert, tmp_path / "adapter")
    alone = TransformerEmbedder.open(str(adapter))
    beside = TransformerEmbedder.open(str(bert), adapter=str(adapter))
    assert alone.fingerprint == beside.fingerprint != TransformerEmbedder.open(str(bert)).fingerprint
    assert (alone.info.template, alone.info.max_length) == (TEMPLATE, 30)


def test_another_base_under_an_adapter_is_found(bert: Path, tmp_path: Path) -> None:
    """An adapter folder with golden vectors notices that its base was exchanged."""
    adapter = _third_party_adapter(bert, tmp_path / "adapter")
    opened = open_folder(str(adapter))
    from peft import PeftModel

    wrapped = PeftModel.from_pretrained(plain_model(bert), str(adapter)).eval()
    record = read_saved(bert)
    assert record is not None
    replace(record, golden=_golden(wrapped, opened.tokens, "mean")).write(adapter)
    TransformerEmbedder.open(str(adapter))
    other = Path(shutil.copytree(bert, tmp_path / "other"))
    _another_run(other)
    _edit(adapter / "adapter_config.json", base_model_name_or_path=str(other))
    with pytest.raises(EmbedderError, match="base model or pooling were changed"):
        TransformerEmbedder.open(str(adapter))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": 99}, "format 99.*update embedkit"),
        ({"template": None}, "lacks 'template'"),
        ({"template": {"query": "no place"}}, "lacks {query}"),
        ({"pooling": "max"}, "pooling 'max'"),
        ({"query_length": "long"}, "query_length 'long'"),
        ({"golden": []}, "no golden texts"),
        ({"golden": [{"text": "a"}]}, "lacks 'ids'"),
        (
            {"golden": [{"text": "a", "side": "x", "instruction": None, "ids": [1], "vector": "AAAA"}]},
            "side 'x'",
        ),
        (
            {"golden": [{"text": "a", "side": "query", "instruction": None, "ids": [1], "vector": "A"}]},
            "broken",
        ),
        ({"default_task": 5}, "default_task 5"),
    ],
)
def test_a_broken_record_is_an_input_error(
    bert: Path, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    """Whatever is wrong with embedkit.json, the message names the file and the value."""
    shutil.copy(bert / FILE, tmp_path / FILE)
    _edit(tmp_path / FILE, **values)
    with pytest.raises(InputError, match=rf"embedkit\.json.*{message}"):
        read_saved(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"', "\ufeff{}"])
def test_a_record_that_is_no_object(tmp_path: Path, content: str) -> None:
    """An embedkit.json that is no JSON object is an InputError, never a traceback."""
    (tmp_path / FILE).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"embedkit\.json"):
        read_saved(tmp_path)


def test_no_mutilated_record_escapes_as_another_error(bert: Path, tmp_path: Path) -> None:
    """embedkit.json with any one of its values replaced by any other kind is read, or refused as one sentence."""
    whole = json.loads((bert / FILE).read_text(encoding="utf-8"))
    for key in whole:
        values: list[Any] = [None, 0, -1, "x", [], {}, [1], {"a": 1}, [[]], True]
        for value in values:
            (tmp_path / FILE).write_text(json.dumps(whole | {key: value}), encoding="utf-8")
            try:
                read_saved(tmp_path)
            except EmbedkitError as e:
                assert FILE in str(e)


def test_vectors_of_another_width_or_nan_are_refused(bert: Path) -> None:
    """Vectors of another dimension, NaN or zero never pass for golden ones."""
    saved = read_saved(bert)
    assert saved is not None
    good = np.stack([g.unit() for g in saved.golden])
    assert check_golden_vectors(saved, good * 7, bert) == pytest.approx(1, abs=1e-6)
    with pytest.raises(EmbedderError, match="dimension 3, in training they had 64"):
        check_golden_vectors(saved, good[:, :3], bert)
    for bad in (float("nan"), 0.0):
        with pytest.raises(EmbedderError, match="not the one trained"):
            check_golden_vectors(saved, np.full_like(good, bad), bert)


def test_a_folder_without_a_record_is_as_before(tmp_path: Path) -> None:
    """A folder of anybody else has no embedkit.json, and nothing is checked."""
    folder = save_model(tmp_path, "Bert", BERT)
    assert read_saved(folder) is None
    assert open_folder(str(folder)).saved is None
    assert read_folder(folder).tokenizer == folder
