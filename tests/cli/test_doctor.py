"""`embedkit doctor`: broken installations are made for real, on a path of their own, and found."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from embedkit_cli import checks
from tests.cli.conftest import Run


def _package(folder: Path, name: str, version: str) -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def _module(folder: Path, name: str, code: str) -> None:
    (folder / f"{name}.py").write_text(code)


def _checks(run: Run, path: Path, **env: str) -> tuple[int, dict[str, Any]]:
    done = run("doctor", "--json", env={"PYTHONPATH": str(path), **env})
    found = json.loads(done.stdout)
    assert found["ok"] is (done.returncode == 0)
    return done.returncode, {c["name"]: c for c in found["checks"]}


def test_this_installation_is_in_order(run: Run) -> None:
    """Here every check passes and the exit code is 0; the text form marks each check."""
    done = run("doctor")
    assert done.returncode == 0, done.stdout
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith(("ok", "note"))] == [
        "python", "packages", "faiss", "gpu", "cpu", "model", "cache",
    ]  # fmt: skip


def test_every_kind_of_damage_is_found_at_once(run: Run, tmp_path: Path) -> None:
    """Two faiss packages, a torch that does not import, a model that does not open and a cache that takes no file."""
    _package(tmp_path, "faiss-gpu", "1.15.1")
    _module(tmp_path, "torch", "raise RuntimeError('libcudart.so.12 is missing')")
    _module(tmp_path, "openvino", "raise ImportError('openvino is broken')")
    (tmp_path / "cache").write_text("a file, no folder")
    code, found = _checks(run, tmp_path, EMBEDKIT_CACHE=str(tmp_path / "cache" / "below"))
    assert code == 2
    assert "overwrite each other" in found["faiss"]["detail"]
    assert found["faiss"]["repair"].startswith(
        "pip uninstall -y faiss-cpu faiss-gpu && pip install faiss-gpu==1.15.1"
    )
    assert "libcudart.so.12 is missing" in found["gpu"]["detail"]
    assert "openvino is broken" in found["model"]["detail"]
    assert "EMBEDKIT_CACHE" in found["cache"]["repair"]
    assert all(found[n]["status"] == "problem" for n in ("faiss", "gpu", "model", "cache"))


@pytest.mark.parametrize(
    ("code", "detail", "repair"),
    [
        ("raise RuntimeError('CUDA wheels are missing')", "does not import: RuntimeError: CUDA wheels", "pip install --force-reinstall --no-deps faiss-cpu=="),
        ("__version__ = '1.7.0'\ndef get_compile_options(): return ''\ndef omp_get_max_threads(): return 1", "the module is version 1.7.0", "pip install --force-reinstall --no-deps faiss-cpu=="),
    ],
)  # fmt: skip
def test_a_damaged_faiss_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, detail: str, repair: str
) -> None:
    """A faiss module that raises, or that is another version than its package, is a problem with its repair."""
    _module(tmp_path, "faiss", code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found, gpus = checks.check_faiss()
    assert (found.status, gpus) == ("problem", 0)
    assert detail in found.detail and found.repair.startswith(repair)


def test_no_faiss_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without any faiss package the repair is the extra [cpu]."""
    _module(tmp_path, "faiss", "raise ModuleNotFoundError(\"No module named 'faiss'\")")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(checks, "distributions", list)
    found, _ = checks.check_faiss()
    assert (found.status, found.repair) == ("problem", "pip install 'embedkit-retrieval[cpu]'")


def test_a_gpu_that_faiss_cannot_use_is_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where torch sees a GPU and faiss none, doctor says so and names the extra [gpu]; it is no problem."""
    _module(
        tmp_path, "torch",
        "__version__ = '9'\nclass version: cuda = '12'\n"
        "class cuda:\n is_available = device_count = staticmethod(lambda: 1)\n"
        " get_device_name = staticmethod(lambda i: 'H100')\n",
    )  # fmt: skip
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = checks.check_gpu(0)
    assert found.status == "note"
    assert "H100" in found.detail and "embedkit-retrieval[gpu]" in found.repair
    assert checks.check_gpu(1).status == "ok"


def test_threads_and_features_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor check counts the CPUs this process may use and repeats limits set by variables."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("EMBEDKIT_THREADS", "1")
    found = checks.check_cpu()
    if hasattr(os, "sched_getaffinity"):
        assert found.facts["threads"] == len(os.sched_getaffinity(0))
    assert found.facts["limits"] | {"OMP_NUM_THREADS": "3", "EMBEDKIT_THREADS": "1"} == found.facts["limits"]
    assert isinstance(found.facts["features"], list)
