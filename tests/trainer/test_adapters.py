"""LoRA: what is adapted, that training moves it, and that merging keeps what it computes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from embedkit.errors import InputError, MissingExtraError, TrainingError
from embedkit_trainer.adapters import add_lora, is_quantized, load_quantized, merge, remember, require_moved
from embedkit_trainer.config.records import LoraConfig, ModelConfig
from embedkit_trainer.model import load_tokens
from embedkit_trainer.saving.export import save_model as save_model_folder
from tests.embedkit.tiny_models import TEXTS, cosines, plain_model, plain_vectors, save_model
from tests.trainer.saved_models import FAMILIES, trained_model

torch = pytest.importorskip("torch", reason="needs the extra [torch]")
transformers = pytest.importorskip("transformers", reason="needs the extra [torch]")
pytest.importorskip("peft", reason="needs the extra [torch]")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny base of every family."""
    root = tmp_path_factory.mktemp("bases")
    return {name: save_model(root / name, name, specials) for name, specials in FAMILIES.items()}


def _trained_names(model: Any) -> set[str]:
    return {n for n, p in model.named_parameters() if p.requires_grad}


def test_the_papers_number_of_parameters() -> None:
    """The default LoRA on Mistral-7B's shapes trains 41,943,040 parameters, as E5-mistral did."""
    shapes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000}
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(transformers.MistralConfig(**shapes, **heads))
        model = add_lora(model, LoraConfig())
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 41_943_040
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (16, 32, 0.1)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_all_linear_is_every_layer_that_decides_the_vector(bases: dict[str, Path], architecture: str) -> None:
    """all-linear adapts each linear layer once, without the pooler and embeddings, and trains nothing else."""
    model = plain_model(bases[architecture])
    linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "pooler" not in n}
    trained = _trained_names(add_lora(model, LoraConfig(r=2)))
    adapted = {n.removeprefix("base_model.model.").split(".lora_")[0] for n in trained}
    assert adapted == linear
    assert len(trained) == 2 * len(linear)


def test_named_targets_and_wrong_ones(bases: dict[str, Path]) -> None:
    """Names choose the layers; names that no layer has are answered with those there are."""
    model = add_lora(plain_model(bases["Mistral"]), LoraConfig(r=2, target_modules=("q_proj", "v_proj")))
    assert {n.split(".")[-4] for n in _trained_names(model)} == {"q_proj", "v_proj"}
    with pytest.raises(TrainingError, match=r"query.*MistralModel.*q_proj.*all-linear"):
        add_lora(plain_model(bases["Mistral"]), LoraConfig(target_modules=("query",)))


def _step(model: Any, lr: float) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    model(input_ids=torch.tensor([[1, 5, 9, 2]])).last_hidden_state.square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("lora", [True, False])
def test_a_step_that_moves_nothing_is_refused(bases: dict[str, Path], lora: bool) -> None:
    """A learning rate of zero, or a loss that never reaches the weights, is an error after one step; a step is none."""
    model = plain_model(bases["Mistral"])
    if lora:
        model = add_lora(model, LoraConfig(r=2))
    start = remember(model)
    _step(model, lr=0.0)
    with pytest.raises(TrainingError, match="every lora_B is zero" if lora else "none of 20 trained weights"):
        require_moved(model, start)
    _step(model, lr=1e-3)
    assert require_moved(model, start, step=2) > 0.4


def test_an_adapter_that_went_on_must_move_too(bases: dict[str, Path]) -> None:
    """An adapter trained before has lora_B that are not zero: that it stands still is found all the same."""
    model = add_lora(plain_model(bases["Mistral"]), LoraConfig(r=2))
    _step(model, lr=1e-3)
    start = remember(model)
    with pytest.raises(TrainingError, match="none of 28 trained weights"):
        require_moved(model, start)


def test_a_frozen_model_is_refused(bases: dict[str, Path]) -> None:
    """A model without a single trained weight is refused before the first step."""
    with pytest.raises(TrainingError, match="no weight of the model is trained"):
        remember(plain_model(bases["Bert"]).requires_grad_(False))


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_merge_computes_what_the_adapter_did(tmp_path: Path, architecture: str) -> None:
    """Merged weights give the adapter's vectors (0.9999), not the base's, and hold no LoRA layer."""
    trained, record = trained_model(tmp_path, architecture, lora=True)
    rows = trained.tokens(TEXTS)
    merged = merge(trained.backbone, rows)
    assert not any("lora" in n for n, _ in merged.named_parameters())
    assert all(p.dtype == torch.float32 for p in merged.parameters())
    vectors = plain_vectors(merged, rows, record.pooling)
    assert cosines(vectors, trained.embed(rows)).min() >= 0.9999
    base = plain_vectors(plain_model(Path(record.base)), rows, record.pooling)
    assert cosines(vectors, base).max() < 0.999, "the adapter changes the vectors"


def test_gathered_weights_are_merged_in_place_of_shards(tmp_path: Path) -> None:
    """Where the model in memory holds shards, the gathered weights decide; weights that do not fit are refused."""
    trained, record = trained_model(tmp_path, lora=True)
    rows = trained.tokens(TEXTS)
    expected = trained.embed(rows)
    weights = {k: v.clone() for k, v in trained.backbone.state_dict().items()}
    with torch.no_grad():
        for parameter in trained.backbone.parameters():
            parameter.zero_()
    vectors = plain_vectors(merge(trained.backbone, rows, weights=weights), rows, record.pooling)
    assert cosines(vectors, expected).min() >= 0.9999
    weights.popitem()
    with pytest.raises(TrainingError, match="1 missing"):
        merge(trained.backbone, rows, weights=weights)


def test_a_merge_that_changes_the_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Merged weights that compute something else than base and adapter are an error that names the way out."""
    from peft import LoraModel

    trained, _ = trained_model(tmp_path, lora=True)
    whole: Any = LoraModel.merge_and_unload

    def spoilt(self: Any) -> Any:
        model = whole(self)
        with torch.no_grad():
            model.layers[0].mlp.down_proj.weight.mul_(2)
        return model

    monkeypatch.setattr(LoraModel, "merge_and_unload", spoilt)
    with pytest.raises(TrainingError, match=r"merging the adapter changes.*merge = false"):
        merge(trained.backbone)


def test_qlora_says_what_is_missing(bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without bitsandbytes QLoRA names the pip command, without a GPU the other way to train."""
    import importlib.machinery
    import importlib.util

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "bitsandbytes" else found(n, *a)
    )
    with pytest.raises(MissingExtraError, match=r"qlora.*pip install"):
        load_quantized(bases["Mistral"])
    there = importlib.machinery.ModuleSpec("bitsandbytes", None)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: there if n == "bitsandbytes" else found(n, *a)
    )
    with pytest.raises(TrainingError, match=r"needs a CUDA GPU.*tuning = lora"):
        load_quantized(bases["Mistral"])


def test_qlora_over_an_adapter_is_refused(tmp_path: Path) -> None:
    """An adapter folder as base would lose the adapter in nf4: its base's weights alone are loaded there."""
    trained, record = trained_model(tmp_path, lora=True)
    saved = tmp_path / "adapter"
    save_model_folder(trained, record, saved, merged=False)
    with pytest.raises(InputError, match=r"is an adapter.*nf4.*tuning = lora"):
        load_tokens(ModelConfig(name=str(saved), tuning="qlora"), 16, 16)


def test_lora_without_peft_names_the_extra(bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without peft the message holds the command that installs it."""
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"embedkit-retrieval\[torch\]"):
        add_lora(plain_model(bases["Bert"]), LoraConfig())


def test_plain_weights_are_not_quantized(bases: dict[str, Path]) -> None:
    """A float model is never taken for an nf4 one."""
    assert not is_quantized(plain_model(bases["Bert"]))


def test_an_nf4_model_is_merged_from_the_weights_it_was_trained_around(tmp_path: Path) -> None:
    """QLoRA: only the adapter is trained, it moves, and the merged float model gives the vectors of nf4 and adapter."""
    pytest.importorskip("bitsandbytes", reason="needs the extra [qlora]")
    from embedkit_trainer.adapters import _load_nf4

    sizes = {"hidden_size": 128, "intermediate_size": 256}  # bitsandbytes on CPUs takes no odd ones
    folder = save_model(tmp_path, "Mistral", FAMILIES["Mistral"], **sizes)
    model = add_lora(_load_nf4(folder, {"": "cpu"}, None, False), LoraConfig(r=2))
    assert is_quantized(model)
    assert all("lora_" in n for n in _trained_names(model))
    start = remember(model)
    for _ in range(3):
        _step(model, lr=1e-2)
    assert require_moved(model, start) > 0.4
    rows = [[1, 5, 9, 2], [1, 30, 31, 32, 33, 2]]
    expected = plain_vectors(model.eval(), rows, "last")
    merged = merge(model, rows)
    assert not is_quantized(merged)
    assert cosines(plain_vectors(merged, rows, "last"), expected).min() >= 0.999
    base = plain_vectors(plain_model(folder), rows, "last")
    assert cosines(base, expected).max() < 0.999, "adapter and nf4 change the vectors"
