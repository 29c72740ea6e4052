"""What `embedkit doctor` checks; each check that fails names its repair. Nothing heavy is imported in this process."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, distributions, requires, version
from pathlib import Path
from typing import Any, Literal

Status = Literal["ok", "note", "problem"]
_DISTRIBUTION = "embedkit-retrieval"
_OLDEST_PYTHON = (3, 11)
_TIMEOUT = 120
# All of these install the module `faiss`; pip sees no conflict between them.
_FAISS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs", "faiss-gpu-cu11", "faiss-gpu-cu12", "faiss-cuda")
_CPU_FEATURES = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx512f", "avx2", "asimd", "bf16")
_FAISS_PROBE = (
    "import faiss, json; gpus = getattr(faiss, 'get_num_gpus', lambda: 0)(); "
    "print(json.dumps([faiss.__version__, gpus, faiss.get_compile_options().split(), faiss.omp_get_max_threads()]))"
)
_TORCH_PROBE = (
    "import torch, json; n = torch.cuda.device_count() if torch.cuda.is_available() else 0; "
    "print(json.dumps([torch.__version__, torch.version.cuda, [torch.cuda.get_device_name(i) for i in range(n)]]))"
)
_MODEL_PROBE = (
    "import json, numpy as np; from embedkit import get_embedder; e = get_embedder(); "
    "v = e.encode_document(['a test', 'ein Versuch']); "
    "assert v.shape == (2, e.info.dim) and np.allclose(np.linalg.norm(v, axis=1), 1, atol=1e-3), v; "
    "print(json.dumps([e.info.name, e.info.dim, e.info.matryoshka_dims, e.fingerprint]))"
)


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; `repair` is the command or step that mends a problem."""

    name: str
    status: Status
    detail: str
    repair: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def run_checks() -> list[Check]:
    """Run every check, in the order in which one builds on another."""
    faiss, faiss_gpus = check_faiss()
    return [
        check_python(),
        check_packages(),
        faiss,
        check_gpu(faiss_gpus),
        check_cpu(),
        check_model(),
        check_cache(),
    ]


def check_python() -> Check:
    """Check that the interpreter is new enough."""
    seen = platform.python_version()
    detail = f"{seen} ({sys.executable})"
    if sys.version_info[:2] >= _OLDEST_PYTHON:
        return Check("python", "ok", detail, facts={"version": seen})
    oldest = ".".join(map(str, _OLDEST_PYTHON))
    return Check("python", "problem", f"{detail} is older than {oldest}", f"install Python {oldest} or newer")


def check_packages() -> Check:
    """Check that embedkit's own requirements are installed."""
    try:
        wanted = [r for r in requires(_DISTRIBUTION) or [] if "extra ==" not in r]
    except PackageNotFoundError:
        return Check("packages", "problem", "embedkit is not installed", f"pip install {_DISTRIBUTION}")
    versions = {n: _version(n) for n in [_DISTRIBUTION, *(re.split(r"[^\w.-]", r)[0] for r in wanted)]}
    extras = ("torch", "transformers", "peft", "pytrec-eval-terrier", "llama-index-core")
    versions |= {name: seen for name in extras if (seen := _version(name))}
    missing = [name for name, seen in versions.items() if seen is None]
    facts = {"versions": versions}
    if missing:
        return Check(
            "packages", "problem", f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}", facts
        )
    return Check("packages", "ok", ", ".join(f"{n} {v}" for n, v in versions.items()), facts=facts)


def check_faiss() -> tuple[Check, int]:
    """Check that exactly one faiss package is installed and that it imports; return the GPUs it sees, too."""
    found: dict[str, str] = {}
    for dist in distributions():
        name = re.sub(r"[-_.]+", "-", dist.metadata["Name"] or "").lower()
        if name in _FAISS:
            found[name] = dist.version
    names = ", ".join(f"{n} {v}" for n, v in sorted(found.items()))
    facts: dict[str, Any] = {"packages": found}
    if not found and _probe("import faiss; print(1)")[0] is None:
        return Check("faiss", "problem", "no faiss package", f"pip install '{_DISTRIBUTION}[cpu]'", facts), 0
    keep = next((n for n in _FAISS[::-1] if n in found), "faiss-cpu")
    if len(found) > 1:
        repair = f"pip uninstall -y {' '.join(sorted(found))} && pip install {keep}=={found[keep]}"
        detail = f"{names} overwrite each other's files: keep one"
        return Check("faiss", "problem", detail, repair, facts), 0
    answer, problem = _probe(_FAISS_PROBE)
    if answer is None:
        repair = f"pip install --force-reinstall --no-deps {keep}" + (
            f"=={found[keep]}" if keep in found else ""
        )
        return Check("faiss", "problem", f"{names or 'faiss'} does not import: {problem}", repair, facts), 0
    release, gpus, options, threads = answer
    facts |= {"version": release, "gpus": gpus, "compile_options": options, "threads": threads}
    if found and not any(v.startswith(release) for v in found.values()):
        repair = f"pip install --force-reinstall --no-deps {keep}=={found[keep]}"
        detail = f"{names} is installed, but the module is version {release}: left over from another package"
        return Check("faiss", "problem", detail, repair, facts), gpus
    return Check(
        "faiss", "ok", f"{names or release}; {' '.join(options)}; {threads} threads", facts=facts
    ), gpus


def check_gpu(faiss_gpus: int) -> Check:
    """Tell which GPUs torch and faiss see, and what would let them see one."""
    if _version("torch") is None:
        detail = f"torch is not installed; faiss sees {faiss_gpus}"
        return Check("gpu", "ok", detail, facts={"torch": None, "faiss": faiss_gpus})
    answer, problem = _probe(_TORCH_PROBE)
    if answer is None:
        repair = "pip install --force-reinstall torch"
        return Check("gpu", "problem", f"torch does not import: {problem}", repair)
    release, cuda, names = answer
    facts = {"torch": release, "cuda": cuda, "torch_gpus": names, "faiss": faiss_gpus}
    detail = f"torch {release} sees {', '.join(names) or 'none'}; faiss sees {faiss_gpus}"
    if names and not faiss_gpus:
        repair = f"pip uninstall -y faiss-cpu && pip install '{_DISTRIBUTION}[gpu]'"
        return Check("gpu", "note", f"{detail}: indexes are searched on the CPU", repair, facts)
    if faiss_gpus and not names:
        repair = "pip install --force-reinstall torch (a build for this machine's CUDA)"
        return Check("gpu", "note", f"{detail}: models run on the CPU", repair, facts)
    return Check("gpu", "ok", detail, facts=facts)


def check_cpu() -> Check:
    """Tell how many threads may run and which vector units the processor has."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    flags = _cpu_flags()
    features = [f for f in _CPU_FEATURES if f in flags]
    facts: dict[str, Any] = {"threads": usable, "features": features, "machine": platform.machine()}
    limits = {
        n: os.environ[n]
        for n in ("EMBEDKIT_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        if n in os.environ
    }
    facts["limits"] = limits
    detail = f"{usable} threads, {platform.machine()}, {' '.join(features) or 'vector units unknown'}"
    if limits:
        detail += "; " + ", ".join(f"{n}={v}" for n, v in limits.items())
    if flags and platform.machine() == "x86_64" and "avx2" not in flags:
        return Check("cpu", "note", f"{detail}: without AVX2 embedding is slow", facts=facts)
    return Check("cpu", "ok", detail, facts=facts)


def check_model() -> Check:
    """Check that the bundled embedder opens and gives unit vectors, in a process of its own."""
    answer, problem = _probe(_MODEL_PROBE)
    if answer is None:
        repair = f"pip install --force-reinstall {_DISTRIBUTION}"
        return Check("model", "problem", f"the bundled embedder does not work: {problem}", repair)
    name, dim, cuts, fingerprint = answer
    facts = {"name": name, "dim": dim, "matryoshka_dims": cuts, "fingerprint": fingerprint}
    dims = f"{dim} dimensions" + (f" or the first {', '.join(map(str, cuts))}" if cuts else "")
    return Check("model", "ok", f"{name} opens and encodes ({dims}, {fingerprint})", facts=facts)


def check_cache() -> Check:
    """Check that the cache folder takes files."""
    from embedkit.hashing import cache_dir

    folder = cache_dir()
    existing = next((p for p in (folder, *folder.parents) if p.exists()), Path("/"))
    facts = {"folder": str(folder)}
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as e:
        repair = "set EMBEDKIT_CACHE to a folder that you may write to"
        return Check("cache", "problem", f"{folder} takes no files: {e.strerror or e}", repair, facts)
    return Check("cache", "ok", f"{folder} is writable", facts=facts)


def _probe(code: str) -> tuple[Any, str]:
    """Run code in a process of its own; return what it prints as JSON, or None and the reason."""
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            capture_output=True, text=True, timeout=_TIMEOUT, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode == 0:
            return json.loads(done.stdout.strip().splitlines()[-1]), ""
        lines = done.stderr.strip().splitlines()
        return None, lines[-1] if lines else f"the process ended with {done.returncode}"
    except subprocess.TimeoutExpired:
        return None, f"no answer in {_TIMEOUT} s"
    except (OSError, ValueError, IndexError) as e:
        return None, str(e)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    return set(found[1].split()) if found else set()
