"""Saving: three libraries open the folder and agree, and a failed save costs nothing."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedkit.contract import Template
from embedkit.embedders.saved import read_saved
from embedkit.embedders.transformer import TransformerEmbedder
from embedkit.errors import InputError, StoreError, TrainingError
from embedkit.registry import get_embedder
from embedkit.tasks import get_task
from embedkit_trainer.saving.export import check_destination, save_model
from tests.embedkit.tiny_models import TEXTS, cosines
from tests.trainer.saved_models import FAMILIES, trained_model

torch = pytest.importorskip("torch", reason="needs the extra [torch]")
st = pytest.importorskip("sentence_transformers", reason="the peer that opens the folder too")


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        *(("Mistral", kind) for kind in ("full", "merged", "adapter")),
        *(("Qwen3", kind) for kind in ("merged", "adapter")),
        *(("Bert", kind) for kind in ("full", "merged", "adapter")),
        *(("XLMRoberta", kind) for kind in ("merged", "adapter")),
    ],
)
def test_every_library_gives_the_trained_vectors(tmp_path: Path, architecture: str, kind: str) -> None:
    """Full, merged or adapter alone: embedkit, sentence-transformers and LlamaIndex give the vectors of training."""
    from embedkit.llama_index import EmbedkitEmbedding

    trained, record = trained_model(tmp_path, architecture, lora=kind != "full")
    folder = tmp_path / "model"
    save_model(trained, record, folder, merged=kind == "merged")
    assert (folder / "adapter_model.safetensors").exists() == (kind == "adapter")

    template, instruction = record.template, get_task("search").instruction
    queries = trained.embed(trained.tokens([template.render_query(t, instruction) for t in TEXTS]))
    documents = trained.embed(trained.tokens([template.render_document(t) for t in TEXTS]))
    assert cosines(queries, documents).max() < 0.9999, "a forgotten prompt would show"

    ours = get_embedder(str(folder), dtype="float32")
    assert cosines(ours.encode_query(TEXTS), queries).min() >= 0.9999
    assert cosines(ours.encode_document(TEXTS), documents).min() >= 0.9999
    assert (ours.info.pooling, ours.info.max_length) == (record.pooling, 64)

    peer = st.SentenceTransformer(str(folder), device="cpu")
    assert peer.max_seq_length == 64
    assert cosines(peer.encode(TEXTS, prompt_name="query"), queries).min() >= 0.9999
    theirs = peer.encode(TEXTS, prompt_name="document")
    assert cosines(theirs, documents).min() >= 0.9999
    assert np.allclose(np.linalg.norm(theirs, axis=1), 1, atol=1e-5)

    index = EmbedkitEmbedding(ours)
    assert cosines(np.array([index.get_query_embedding(TEXTS[0])]), queries[:1]).min() >= 0.9999
    assert cosines(np.array(index.get_text_embedding_batch(TEXTS)), documents).min() >= 0.9999


@pytest.mark.parametrize("architecture", FAMILIES)
def test_the_saved_tokenizer_gives_the_ids_of_training(tmp_path: Path, architecture: str) -> None:
    """Any loader of the folder's tokenizer adds BOS and EOS as trained, where the base's forgets EOS."""
    from transformers import AutoTokenizer

    trained, record = trained_model(tmp_path, architecture)
    save_model(trained, record, tmp_path / "model")
    long = [*TEXTS, " ".join(TEXTS)]
    loaded = AutoTokenizer.from_pretrained(str(tmp_path / "model"))
    assert loaded(long, truncation=True, max_length=64)["input_ids"] == trained.tokens(long)
    padded = loaded(TEXTS, padding=True, truncation=True)
    assert [sum(mask) for mask in padded["attention_mask"]] == [len(ids) for ids in trained.tokens(TEXTS)]


@pytest.mark.parametrize("pooling", ["mean", "weightedmean", "cls", "last"])
def test_every_pooling_is_saved(tmp_path: Path, pooling: Any) -> None:
    """Each pooling is written so that sentence-transformers reads it as what it is."""
    trained, record = trained_model(tmp_path, "Qwen3", pooling=pooling)
    save_model(trained, record, tmp_path / "model")
    documents = trained.embed(trained.tokens(TEXTS))
    peer = st.SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert cosines(peer.encode(TEXTS), documents).min() >= 0.9999
    assert TransformerEmbedder.open(str(tmp_path / "model")).info.pooling == pooling


def test_bfloat16_weights_stay_bfloat16(tmp_path: Path) -> None:
    """A merge runs in float32, and the folder holds the dtype of the base; its vectors pass their own check."""
    trained, record = trained_model(tmp_path, lora=True, dtype=torch.bfloat16)
    save_model(trained, record, tmp_path / "model")
    assert TransformerEmbedder.open(str(tmp_path / "model")).info.dtype == "bfloat16"
    assert next(p.dtype for n, p in trained.backbone.named_parameters() if "lora" not in n) == torch.bfloat16


def test_merging_for_export_leaves_the_trained_model_alone(tmp_path: Path) -> None:
    """After saving merged weights the model in memory still has its adapter and its vectors, so training can go on."""
    trained, record = trained_model(tmp_path, lora=True)
    rows = trained.tokens(TEXTS)
    before = trained.embed(rows)
    save_model(trained, record, tmp_path / "model")
    assert any("lora_B" in n for n, _ in trained.backbone.named_parameters())
    assert np.array_equal(trained.embed(rows), before)


def test_the_record_comes_back(tmp_path: Path) -> None:
    """embedkit.json holds what was given, the golden texts of both sides and many scripts, and the version."""
    trained, record = trained_model(tmp_path)
    written = save_model(trained, record, tmp_path / "model")
    read = read_saved(tmp_path / "model")
    assert read == written
    assert (read.template, read.sources, read.base_revision) == (
        record.template,
        record.sources,
        record.base_revision,
    )
    assert read.base_revision.startswith("sha256:")
    assert {g.side for g in read.golden} == {"query", "document"}
    assert any(g.instruction for g in read.golden)
    assert len(read.golden) >= 6
    assert read.version


def test_a_hub_base_is_named_by_its_commit(tmp_path: Path) -> None:
    """A base that lies in the hub's cache is recorded by the commit that was fetched."""
    from embedkit.embedders.folder import read_folder
    from embedkit_trainer.saving.export import base_revision
    from tests.embedkit.tiny_models import BERT
    from tests.embedkit.tiny_models import save_model as save_tiny

    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = save_tiny(tmp_path / "models--org--name" / "snapshots" / commit, "Bert", BERT)
    assert base_revision(read_folder(folder)) == commit


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_written_through(tmp_path: Path, there: bool) -> None:
    """An output that is a link stays one, whether its folder is there or not, and leaves nothing beside it."""
    trained, record = trained_model(tmp_path)
    (tmp_path / "out").mkdir()
    if there:
        (tmp_path / "real").mkdir()
    link = tmp_path / "out" / "model"
    link.symlink_to(tmp_path / "real")
    save_model(trained, record, link)
    save_model(trained, record, link, replace_existing=True)
    assert link.is_symlink()
    assert [p.name for p in link.parent.iterdir()] == ["model"]
    TransformerEmbedder.open(str(link))


def test_a_place_that_cannot_be_written_shows_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A parent that is a file, or that one may not write to, is told by the check that runs before the first step."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="file is no folder that you may write to"):
        check_destination(tmp_path / "file" / "deep" / "model", replace_existing=True)
    check_destination(tmp_path / "deep" / "model", replace_existing=True)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(StoreError, match="no folder that you may write to"):
        check_destination(tmp_path / "deep" / "model", replace_existing=True)


@pytest.mark.parametrize("error", ["OSError", "SafetensorError"])
@pytest.mark.parametrize("standing", [False, True])
def test_a_full_disk_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str, standing: bool
) -> None:
    """A disk that fills up while saving is one sentence; the model that stood there stays, and no debris does."""
    from safetensors import SafetensorError

    trained, record = trained_model(tmp_path)
    folder = tmp_path / "out" / "model"
    if standing:
        save_model(trained, record, folder)
    before = _files(tmp_path / "out") if standing else {}
    save = type(trained.backbone).save_pretrained

    def full(self: Any, path: str, **options: Any) -> None:
        save(self, path, **options)
        if error == "OSError":
            raise OSError(errno.ENOSPC, "No space left on device")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(type(trained.backbone), "save_pretrained", full)
    with pytest.raises(StoreError, match=r"out/model.*the disk is full.*nothing there was changed"):
        save_model(trained, record, folder, replace_existing=True)
    assert _files(tmp_path / "out") == before
    if standing:
        TransformerEmbedder.open(str(folder))


def test_a_rename_that_fails_puts_the_old_model_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the finished folder cannot take its place, the one that stood there is there again."""
    trained, record = trained_model(tmp_path)
    folder = tmp_path / "out" / "model"
    save_model(trained, record, folder)
    before, rename = _files(folder), Path.rename

    errors = [PermissionError(errno.EACCES, "Permission denied"), KeyboardInterrupt()]

    def refuse(self: Path, target: Path) -> Path:
        if self.name.endswith(".writing"):
            raise errors[0]
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(StoreError, match="Permission denied"):
        save_model(trained, record, folder, replace_existing=True)
    del errors[0]
    with pytest.raises(KeyboardInterrupt):
        save_model(trained, record, folder, replace_existing=True)
    assert _files(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_what_stands_there_is_not_lost_unasked(tmp_path: Path) -> None:
    """A finished model is replaced on request alone, and a folder of anything else never."""
    trained, record = trained_model(tmp_path)
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.txt").write_text("years of work")
    with pytest.raises(StoreError, match="no saved model"):
        save_model(trained, record, other, replace_existing=True)
    (other / "embedkit.json").write_text('{"format": 1, "fingerprint": "ek1:0"}')  # as an index has
    with pytest.raises(StoreError, match="no saved model"):
        save_model(trained, record, other, replace_existing=True)
    with pytest.raises(StoreError, match="no saved model"):
        save_model(trained, record, other / "chapter.txt", replace_existing=True)
    folder = tmp_path / "model"
    folder.mkdir()
    save_model(trained, record, folder)
    with pytest.raises(StoreError, match="finished model already"):
        save_model(trained, record, folder)
    first = read_saved(folder)
    with torch.no_grad():
        next(iter(trained.backbone.parameters())).add_(1.0)
    assert save_model(trained, record, folder, replace_existing=True) != first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base-Mistral", "model", "thesis"]


def test_a_folder_that_is_another_model_is_not_kept(tmp_path: Path) -> None:
    """Where the saved files give other vectors than the model in memory, saving fails and leaves nothing."""
    trained, record = trained_model(tmp_path)
    save = type(trained.backbone).save_pretrained

    class Spoilt(type(trained.backbone)):  # type: ignore[misc]
        def save_pretrained(self, path: str, **options: Any) -> None:
            with torch.no_grad():
                self.layers[1].mlp.down_proj.weight.mul_(3)
            save(self, path, **options)

    trained.backbone.__class__ = Spoilt
    with pytest.raises(TrainingError, match=r"not the model in memory.*cosine"):
        save_model(trained, record, tmp_path / "out" / "model")
    assert not list((tmp_path / "out").iterdir())


def test_nan_and_unsayable_templates_are_refused(tmp_path: Path) -> None:
    """NaN weights, a pooling or a template that no folder can say: each is refused before anything is written."""
    from dataclasses import replace

    trained, record = trained_model(tmp_path)
    with pytest.raises(InputError, match="after the text"):
        save_model(trained, replace(record, template=Template(document="{text} (end)")), tmp_path / "a")
    with pytest.raises(InputError, match="pooling 'none'"):
        save_model(trained, replace(record, pooling="none"), tmp_path / "a")
    with torch.no_grad():
        trained.backbone.norm.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="NaN"):
        save_model(trained, record, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_the_cards_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Every Python block of the model card runs as it stands, and the card names data, licences and figures."""
    trained, record = trained_model(tmp_path)
    save_model(trained, record, tmp_path / "my model-1")
    card = (tmp_path / "my model-1" / "README.md").read_text(encoding="utf-8")
    front = card.split("---")[1]
    assert "- sentence-transformers" in front
    assert "base_model" not in front, "a local path is no hub id"
    assert "trained from `base-Mistral`" in card
    assert str(tmp_path) not in card, "nobody else has that folder"
    assert "| questions | 1,234 | CC-BY-4.0 |" in card
    assert "No licence was stated for a|b" in card
    assert "| nDCG@10 | 0.5000 |" in card
    assert "seed = 42" in card
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(block, {})
    out = capsys.readouterr().out
    scores = [float(x) for x in re.findall(r"\[\[(-?[\d.]+)\]\]", out)]
    assert len(scores) == 2
    assert scores[0] == pytest.approx(scores[1], abs=0.01)  # embedkit computes in bfloat16 where that is fast


def test_the_card_names_a_hub_base(tmp_path: Path) -> None:
    """A base from the hub stands in the card's front matter, which is what the hub links by; it is valid YAML."""
    from dataclasses import replace

    import yaml

    from embedkit_trainer.saving.model_card import model_card

    _, record = trained_model(tmp_path)
    card = model_card(replace(record, base="intfloat/e5-mistral-7b-instruct"), name="m", adapter=True, dim=64)
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == "intfloat/e5-mistral-7b-instruct"
    assert "An adapter alone" in card


def test_a_relative_folder_is_no_hub_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base folder named `models/base` looks like a hub id and is none: the hub would link somebody else's model."""
    from dataclasses import replace

    from embedkit_trainer.saving.model_card import model_card

    _, record = trained_model(tmp_path)
    (tmp_path / "models" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    card = model_card(replace(record, base="models/base"), name="m", adapter=True, dim=64)
    assert "base_model" not in card
    assert "it needs its base, `base`, unchanged" in card


def test_saving_draws_no_bar(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """transformers' bars stay off the terminal while a model is written."""
    trained, record = trained_model(tmp_path)
    capfd.readouterr()
    save_model(trained, record, tmp_path / "model")
    assert "it/s" not in capfd.readouterr().err


def test_an_adapter_names_its_base_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base given by a relative path is written absolute: the adapter opens from any directory."""
    from dataclasses import replace

    trained, record = trained_model(tmp_path, lora=True)
    monkeypatch.chdir(tmp_path)
    save_model(trained, replace(record, base="base-Mistral"), tmp_path / "model", merged=False)
    named = json.loads((tmp_path / "model" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert Path(named).is_absolute()
    monkeypatch.chdir("/")
    TransformerEmbedder.open(str(tmp_path / "model"))
