"""Export a trained BERT as a folder of the bundled format, which the light embedder opens without torch.

The token table goes in at 4 bits in groups of 32, the other matrices at 8 with one scale a row, the tokenizer as one
small file. The graph is compared with that of the full weights, and a model that comes out too different is refused.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit.contract import Template
from embedkit.embedders.batching import round_up
from embedkit.embedders.compact_tokenizer import FILE as COMPACT
from embedkit.embedders.compact_tokenizer import CompactTokenizer, compactable, write_compact
from embedkit.embedders.folder import ModelFolder, read_folder
from embedkit.embedders.openvino import DESCRIPTION
from embedkit.embedders.openvino_core import shared_core
from embedkit.embedders.safetensors import read_safetensors
from embedkit.embedders.saved import SavedModel, check_golden_vectors, read_saved
from embedkit.errors import InputError, StoreError, TrainingError
from embedkit_trainer.saving.folder_files import write_json
from embedkit_trainer.saving.golden import golden_texts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

FORMAT = 1
_POSITIONS_MULTIPLE = 64  # the embedder pads to 16; more room costs little
_SAMPLES = (
    "A bicycle tyre goes flat when the tube is punctured.",
    "How do I undo the last commit in git?",
    "The moon's gravity pulls the ocean into two bulges; as the Earth turns, coasts pass through them twice a day.",
    "SELECT name, count(*) FROM orders GROUP BY name HAVING count(*) > 3;",
    "El pan de masa madre necesita una fermentación larga.",
    "Der Vertrag verlängert sich um ein Jahr, wenn er nicht drei Monate vorher gekündigt wird.",
    "La marée monte deux fois par jour sur la plupart des côtes.",
    "Приливы вызваны притяжением Луны и Солнца.",
    "Η παλίρροια οφείλεται στη σελήνη.",
    "潮汐是由月球和太阳的引力引起的。",
    "潮の満ち引きは月の引力によって起こります。",
    "조석은 달의 인력 때문에 생긴다.",
    "น้ำขึ้นน้ำลงเกิดจากแรงดึงดูดของดวงจันทร์",
    "ज्वार-भाटा चंद्रमा के गुरुत्वाकर्षण के कारण होता है।",
    "הגאות נגרמת מכוח המשיכה של הירח.",
    "Thủy triều do lực hút của Mặt Trăng gây ra.",
    "Gelgitler Ay'ın çekim kuvvetinden kaynaklanır.",
    "Mawimbi hutokana na mvutano wa mwezi.",
)


@dataclass(frozen=True)
class BundleOptions:
    """Say how a model is exported; None stands for what its folder says.

    `name` is that of the target folder by default. `template`, `instruction_trained`, `default_task` and `max_length`
    come from embedkit.json, else from sentence-transformers' files. `matryoshka_dims` are noted in the card: the
    lengths that vectors may be cut to. `least_cosine` bounds the mean cosine of the exported model to the full one.
    `licence` is a file to put beside the model.
    """

    name: str | None = None
    table_bits: int = 4
    compact_tokenizer: bool = True
    template: Template | None = None
    instruction_trained: bool | None = None
    default_task: str | None = None
    max_length: int | None = None
    matryoshka_dims: tuple[int, ...] = ()
    least_cosine: float = 0.99
    licence: Path | None = None


@dataclass(frozen=True)
class Exported:
    """Say what came out: the files' bytes and the mean and least cosine to the full weights."""

    folder: Path
    size: int
    mean_cosine: float
    least_cosine: float


def export_openvino(
    source: Path, target: Path, options: BundleOptions | None = None, *, texts: Sequence[str] = ()
) -> Exported:
    """Write the model of a Hugging Face, sentence-transformers or embedkit folder to `target` in the bundled format.

    The cosine is taken over `texts` beside two dozen built-in ones. Other files in `target` stay. Raises InputError for a
    model that the format cannot hold, TrainingError for one that it holds too coarsely, StoreError where `target`
    cannot be written.
    """
    import openvino

    options = options or BundleOptions()
    if options.table_bits not in (4, 8):
        raise InputError(f"table_bits is {options.table_bits!r}: use 4 or 8")
    folder, saved = read_folder(source), read_saved(source)
    card = _card(folder, saved, options, options.name or target.resolve().name)
    tokenizer = _tokenizer(folder)
    if options.compact_tokenizer and (reason := compactable(tokenizer)):
        raise InputError(
            f"the tokenizer of {source} cannot be stored small ({reason}): export tokenizer.json instead"
        )
    full, graph = _graphs(folder, card, options.table_bits)
    if saved is not None:
        _check_golden(full, tokenizer, saved, source)
    mean, least = _cosines(full, graph, _rows(tokenizer, card, texts))
    if not mean >= options.least_cosine:  # NaN too
        raise TrainingError(
            f"{source} differs too much once its weights are rounded: mean cosine {mean:.4f} to the full weights, at least "
            f"{options.least_cosine} expected; nothing was written: train on, or raise table_bits to 8"
        )
    beside = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.writing"
    try:
        beside.mkdir(parents=True)
        openvino.save_model(graph, str(beside / "model.xml"), compress_to_fp16=False)
        _write_tokenizer(tokenizer, beside, options.compact_tokenizer, [*_SAMPLES, *texts])
        write_json(beside / DESCRIPTION, card)
        if options.licence is not None:
            shutil.copyfile(options.licence, beside / "LICENSE")
        _move(beside, target)
        size = sum(f.stat().st_size for f in target.iterdir() if f.is_file())
    except OSError as e:
        raise StoreError(
            f"the model cannot be written to {target} ({e}): make room or name another folder"
        ) from e
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return Exported(target, size, mean, least)


def _card(folder: ModelFolder, saved: SavedModel | None, options: BundleOptions, name: str) -> dict[str, Any]:
    config = folder.config
    pooling = saved.pooling if saved else folder.pooling or "mean"
    if pooling != "mean" or folder.dense:
        what = "a Dense module" if folder.dense else f"pooling {pooling!r}"
        raise InputError(f"{folder.root} has {what}: only mean pooling and nothing after it can be exported")
    if folder.lower_case:
        raise InputError(f"{folder.root} lower-cases outside of its tokenizer: put that into tokenizer.json")
    positions = int(config["max_position_embeddings"])
    length = options.max_length or (saved.max_length if saved else folder.max_length) or positions
    if not 2 < length <= positions:
        raise InputError(f"max_length is {length}: the model has {positions} positions")
    template = options.template or (saved.template if saved else folder.template()) or Template()
    trained, task = options.instruction_trained, options.default_task
    if trained is None:
        trained = saved.instruction_trained if saved else folder.instruct_prompt
    dims = sorted(options.matryoshka_dims, reverse=True)
    if any(not 0 < d < config["hidden_size"] for d in dims):
        raise InputError(f"matryoshka_dims are {dims}: use lengths below {config['hidden_size']}")
    return {
        "format": FORMAT,
        "name": name,
        "dim": config["hidden_size"],
        "max_length": length,
        "pooling": "mean",
        "dtype": "int8" if options.table_bits == 8 else "int4+int8",
        "pad_id": config.get("pad_token_id", 0),
        "template": asdict(template),
        "instruction_trained": trained,
        "default_task": task if task is not None or saved is None else saved.default_task,
        **({"matryoshka_dims": dims} if dims else {}),
    }


def _tokenizer(folder: ModelFolder) -> Tokenizer:
    from tokenizers import Tokenizer

    path = folder.tokenizer / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"{folder.root} has no tokenizer.json: save the model with its fast tokenizer")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _graphs(folder: ModelFolder, card: dict[str, Any], table_bits: int) -> tuple[Any, Any]:
    """Return the graph of the full weights and the one that is stored."""
    from embedkit_trainer.saving.openvino_graph import Graph

    files = folder.weight_files()
    if any(file.suffix != ".safetensors" for file in files):
        raise InputError(f"{folder.root} has no model.safetensors: save the model anew")
    weights = {name: tensor for file in files for name, tensor in read_safetensors(file).items()}
    try:
        full = Graph(weights, folder.config, table_bits=32, body_bits=32)
        positions = round_up(card["max_length"], _POSITIONS_MULTIPLE)
        stored = Graph(weights, folder.config, table_bits=table_bits, body_bits=8, positions=positions)
        return full.model(card["name"]), stored.model(card["name"])
    except KeyError as e:
        raise InputError(f"{folder.root} lacks the weight {e}: save the model anew") from e


def _rows(tokenizer: Tokenizer, card: dict[str, Any], texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of the texts that are compared, cut at the model's length."""
    template = Template(**card["template"])
    golden = [
        template.render_query(text, told) if side == "query" else template.render_document(text)
        for text, side, told in golden_texts(None)
    ]
    rows = [e.ids for e in tokenizer.encode_batch([*_SAMPLES, *golden, *texts])]
    limit = card["max_length"]
    return [ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]] for ids in rows]


def _vectors(graph: Any, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """Encode rows of ids one by one in float32: unit vectors [n, dim]."""
    import numpy as np

    compiled = shared_core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = []
    for row in rows:
        ids = np.array([row], np.int32)
        found.append(compiled({0: ids, 1: np.ones(ids.shape, np.float32)})[0][0])
    vectors: NDArray[np.float32] = np.array(found)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def _cosines(full: Any, graph: Any, rows: Sequence[Sequence[int]]) -> tuple[float, float]:
    cosines = (_vectors(full, rows) * _vectors(graph, rows)).sum(axis=1)
    return float(cosines.mean()), float(cosines.min())


def _check_golden(full: Any, tokenizer: Tokenizer, saved: SavedModel, source: Path) -> None:
    """Raise EmbedderError where the graph of the full weights is not the model that was trained."""
    check_golden_vectors(saved, _vectors(full, [golden.ids for golden in saved.golden]), source)
    for golden in saved.golden:
        ids = tokenizer.encode(golden.rendered(saved.template)).ids
        if len(ids) <= saved.max_length and tuple(ids) != golden.ids:
            raise InputError(
                f"the tokenizer of {source} gives {golden.text!r} other ids than in training: restore its tokenizer.json"
            )


def _write_tokenizer(tokenizer: Tokenizer, folder: Path, compact: bool, texts: Sequence[str]) -> None:
    if not compact:
        tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        return
    write_compact(tokenizer, folder / COMPACT)
    again = CompactTokenizer(folder / COMPACT)
    for text in texts:
        if not again.quick_ids(text) == again.whole.encode(text).ids == tokenizer.encode(text).ids:
            raise TrainingError(
                f"the small tokenizer gives other ids for {text!r}: export tokenizer.json instead"
            )


def _move(beside: Path, target: Path) -> None:
    """Put the finished files into the target folder, and the form of tokenizer that is not written away."""
    target.mkdir(exist_ok=True)
    written = {f.name for f in beside.iterdir()}
    for file in beside.iterdir():
        file.replace(target / file.name)
    for name in {COMPACT, "tokenizer.json"} - written:
        (target / name).unlink(missing_ok=True)
