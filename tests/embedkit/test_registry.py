"""The plug-in door: installed embedders are listed by metadata, imported on use, and fail with clear errors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from embedkit import Template, get_embedder, list_embedders
from embedkit.errors import EmbedderError, InputError, MissingExtraError, UnknownNameError
from embedkit.registry import full_name

GOOD = """
import numpy as np
from embedkit import Embedder, EmbedderInfo


class Lengths(Embedder):
    def __init__(self, model="", scale=1.0):
        self.info = EmbedderInfo(name=f"acme:{model}", dim=2, max_length=10, pooling="none", weights="1")
        self.scale = scale

    @classmethod
    def open(cls, name_or_path, *, scale=1.0):
        return cls(name_or_path, scale)

    def _embed(self, texts):
        return np.array([[len(t), self.scale] for t in texts], dtype=float)


class NoNumbers(Lengths):
    def _embed(self, texts):
        return np.full((len(texts), 2), np.nan)


class WrongShape(Lengths):
    def _embed(self, texts):
        return np.ones((len(texts), 3))


class Crashing(Lengths):
    @classmethod
    def open(cls, name_or_path):
        raise KeyError("weights.bin")


def function(model, **options):
    return Lengths(model, **options)


def no_embedder(model):
    return object()
"""
ENTRY_POINTS = """
[embedkit.embedders]
acme = acme_vectors:Lengths
acme-function = acme_vectors:function
acme-nan = acme_vectors:NoNumbers
acme-shape = acme_vectors:WrongShape
acme-crash = acme_vectors:Crashing
acme-none = acme_vectors:no_embedder
acme-absent = acme_vectors:Renamed
acme-broken = acme_broken:Lengths
acme-gone = acme_gone:Lengths
acme-extra = acme_extra:Lengths
"""


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Install a distribution with plug-ins into a folder on the path."""
    site = tmp_path / "site"
    info = site / "acme_vectors-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-vectors\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (site / "acme_vectors.py").write_text(GOOD)
    (site / "acme_broken.py").write_text("import a_library_that_is_not_there\n")
    (site / "acme_extra.py").write_text(
        "from embedkit.errors import MissingExtraError\nraise MissingExtraError('acme', 'torch')\n"
    )
    monkeypatch.syspath_prepend(str(site))
    list_embedders.cache_clear()
    yield site
    list_embedders.cache_clear()
    for name in ("acme_vectors", "acme_broken", "acme_extra"):
        sys.modules.pop(name, None)


def test_listed_without_import(plug_in: Path) -> None:
    """A plug-in is listed beside the built-in embedders, sorted, and its module is not imported."""
    names = list(list_embedders())
    assert {"acme", "openai", "openvino", "static", "transformer"} <= set(names)
    assert names == sorted(names)
    assert "acme_vectors" not in sys.modules
    assert list_embedders()["acme"].value == "acme_vectors:Lengths"


def test_opened_on_use(plug_in: Path) -> None:
    """A plug-in opens by its name, with the model after the colon and options by name, as class or function."""
    for kind in ("acme", "acme-function"):
        embedder = get_embedder(f"{kind}:model:v2", scale=3.0)
        assert embedder.info.name == "acme:model:v2"
        np.testing.assert_allclose(embedder.encode_document(["four"]), [[0.8, 0.6]], atol=1e-6)
    assert get_embedder("acme").info.name == "acme:"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "acme-broken",
            r"'acme-broken' \(acme_broken:Lengths\).*No module named 'a_library_that_is_not_there'",
        ),
        ("acme-gone", r"'acme-gone' .*No module named 'acme_gone'"),
        ("acme-absent", r"'acme-absent' .*AttributeError.*Renamed"),
        ("acme-crash", r"'acme-crash' .*KeyError: 'weights\.bin'"),
        ("acme-none", r"'acme-none' .*gave object, not an Embedder"),
    ],
)
def test_failing_plug_ins(plug_in: Path, name: str, message: str) -> None:
    """A plug-in that fails to import or to open is an EmbedderError with its name and the cause."""
    with pytest.raises(EmbedderError, match=message):
        get_embedder(name)


def test_missing_extra_goes_through(plug_in: Path) -> None:
    """A plug-in's own MissingExtraError reaches the user as it is."""
    with pytest.raises(MissingExtraError, match=r"pip install 'embedkit-retrieval\[torch\]'"):
        get_embedder("acme-extra")


@pytest.mark.parametrize(
    ("name", "message"), [("acme-nan", "NaN or infinity for 1 of 1"), ("acme-shape", r"\(1, 3\)")]
)
def test_bad_vectors(plug_in: Path, name: str, message: str) -> None:
    """NaN and wrong shapes from a plug-in are refused."""
    with pytest.raises(EmbedderError, match=message):
        get_embedder(name).encode_document(["text"])


def test_unknown_options(plug_in: Path) -> None:
    """An option that the embedder does not take is refused with the nearest that it does."""
    with pytest.raises(
        UnknownNameError, match="unknown option of the embedder 'acme': 'scales': did you mean scale"
    ):
        get_embedder("acme", scales=2)


@pytest.mark.parametrize(
    ("name", "nearest"), [("bundle", "bundled"), ("transfomer", "transformer"), ("opnai:m", "openai")]
)
def test_unknown_names(name: str, nearest: str) -> None:
    """An unknown embedder suggests the nearest name."""
    with pytest.raises(UnknownNameError, match=f"did you mean {nearest}"):
        get_embedder(name)


def test_a_folder_does_not_hide_an_embedder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plug_in: Path
) -> None:
    """A folder in the working directory that is called as an embedder is leaves the embedder alone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "acme").mkdir()
    assert get_embedder("acme").info.name == "acme:"


def _text(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text("{}")
        return folder / name

    return make


def _folder(**files: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        for name, content in files.items():
            (folder / name.replace("__", ".")).write_text(content)
        return folder

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_text("notes.md"), r"notes\.md is no embedder: give a model folder or a word-vector file"),
        (_text("archive.tar.gz"), "is no embedder"),
        (_folder(), "is no model folder: it has neither config.json nor modules.json"),
        (_folder(config__json="{"), "is no readable model folder"),
        (_folder(config__json="[]"), "is no readable model folder"),
        (lambda folder: folder / "not" / "there", "does not exist"),
    ],
)
def test_wrong_paths(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    """A path that is no model is refused with what was expected there."""
    with pytest.raises(InputError, match=message):
        get_embedder(str(make(tmp_path)))


def test_empty_name() -> None:
    """An empty name is refused rather than taken for the working directory."""
    with pytest.raises(InputError, match="name is empty"):
        get_embedder("")


def test_listing_is_light() -> None:
    """Listing embedders in a fresh process imports no embedder's module."""
    code = (
        "import sys, embedkit; names = list(embedkit.list_embedders())\n"
        "print(*names, *(m for m in sys.modules if m.startswith('embedkit.embedders')))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "static" in out.split()
    assert "embedkit.embedders" not in out


def test_a_template_may_be_plain_values(tmp_path: Path) -> None:
    """A template out of JSON (the command line, an index's manifest) is the Template of these fields; others are refused."""
    path = tmp_path / "words.txt"
    path.write_text("moon 1 0\nsea 0 1\n")
    embedder = get_embedder(str(path), template={"document": "passage: {text}"})
    assert embedder.info.template == Template(document="passage: {text}")
    for wrong in ({"documents": "{text}"}, {"document": 7}):
        with pytest.raises(InputError, match="template holds 'document"):
            get_embedder(str(path), template=wrong)


def test_a_folder_called_as_a_model_is_not_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server's model and the bundled one keep their names although a folder here is called so; a path is made absolute."""
    monkeypatch.chdir(tmp_path)
    for name in ("text-embedding-3-small", "embedkit-small-v1", "words"):
        Path(name).mkdir()
    for name in ("openai:text-embedding-3-small", "openvino:embedkit-small-v1"):
        assert full_name(name) == name
    assert full_name("static:words") == f"static:{tmp_path.resolve() / 'words'}"
