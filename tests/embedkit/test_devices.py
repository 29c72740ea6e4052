"""Several devices: a process each, the vectors of one, and errors that reach the caller."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedkit.embedders.devices import DevicePool, open_backend, resolve_devices
from embedkit.embedders.encoder import EncoderSpec
from embedkit.embedders.transformer import TransformerEmbedder
from embedkit.errors import EmbedderError, InputError
from tests.embedkit.tiny_models import LLAMA, TEXTS, save_model

torch = pytest.importorskip("torch", reason="needs the extra [torch]")
pytest.importorskip("transformers", reason="needs the extra [torch]")


def test_two_processes_equal_one_and_fail_aloud(tmp_path: Path) -> None:
    """["cpu", "cpu"] gives one device's vectors, to several callers at once too; a child's error and a child's death raise; closing ends both."""
    folder = str(save_model(tmp_path, "Mistral", LLAMA))
    single = TransformerEmbedder.open(folder, dtype="float32", token_budget=32)
    double = TransformerEmbedder.open(folder, dtype="float32", token_budget=32, device=["cpu", "cpu"])
    pool: Any = double._backend
    assert isinstance(pool, DevicePool)
    texts = TEXTS * 5
    for _ in range(2):
        assert np.abs(double.encode_document(texts) - single.encode_document(texts)).max() < 1e-6
    assert double.fingerprint == single.fingerprint
    expected = single.encode_document(texts)
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(double.encode_document, [texts] * 8):
            assert np.abs(found - expected).max() < 1e-6
    with pytest.raises(EmbedderError, match="not EOS"):
        pool.encode([[1, 5, 6]])
    assert np.abs(double.encode_document(texts) - single.encode_document(texts)).max() < 1e-6
    processes = list(pool.processes)
    processes[0].kill()
    processes[0].join()
    with pytest.raises(EmbedderError, match="ended early"):
        double.encode_document(texts)
    del double, pool
    gc.collect()
    for process in processes:
        process.join(timeout=60)
        assert not process.is_alive()


def test_child_that_cannot_load_tells_why(tmp_path: Path) -> None:
    """A model that breaks in the child is an EmbedderError with the child's words."""
    spec = EncoderSpec(str(tmp_path), None, "float32", "last", (), None, None, False)
    with pytest.raises(EmbedderError, match=r"process on cpu failed: EmbedderError: .*cannot be loaded"):
        DevicePool(spec, ["cpu"])


def test_torch_keeps_to_the_threads_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EMBEDKIT_THREADS holds for a model on the CPU; without it, torch's own number is left alone."""
    spec = EncoderSpec(
        str(save_model(tmp_path, "Llama", LLAMA)), None, "float32", "mean", (), None, None, False
    )
    before = torch.get_num_threads()
    try:
        for wanted, expected in (("", 3), ("2", 2)):
            torch.set_num_threads(3)
            monkeypatch.setenv("EMBEDKIT_THREADS", wanted)
            open_backend(spec, "cpu")
            assert torch.get_num_threads() == expected
        monkeypatch.setenv("EMBEDKIT_THREADS", "0")
        with pytest.raises(InputError, match="EMBEDKIT_THREADS is '0'"):
            open_backend(spec, "cpu")
    finally:
        torch.set_num_threads(before)


def test_device_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """auto takes a GPU where there is one; cuda:all names every GPU; a GPU that is not there is refused."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert resolve_devices(None) == resolve_devices("auto") == resolve_devices("cpu") == ["cpu"]
    for name in ("cuda", "cuda:0", "cuda:all"):
        with pytest.raises(InputError, match="GPU"):
            resolve_devices(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_devices("auto") == ["cuda"]
    assert resolve_devices("cuda:all") == resolve_devices(["cuda:0", "cuda:1"]) == ["cuda:0", "cuda:1"]
    for name in ("cuda:2", "cpu:1", "cuda:x", "gpu", ""):
        with pytest.raises(InputError, match="device"):
            resolve_devices(name)
