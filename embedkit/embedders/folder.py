"""What a model folder says of itself: modules, pooling, prompts, lengths, weight files, adapter."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from embedkit.contract import Pooling, Template
from embedkit.errors import EmbedderError, InputError

_OLD_POOLING_KEYS: Mapping[str, str] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
_POOLINGS: Mapping[str, Pooling] = {
    "mean": "mean",
    "weightedmean": "weightedmean",
    "cls": "cls",
    "lasttoken": "last",
}
_QUERY_NAMES = ("query",)
_DOCUMENT_NAMES = ("document", "passage", "corpus")
_ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
)
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """Name a sentence-transformers Dense module: its folder, sizes and activation (a class of torch.nn)."""

    folder: str
    in_features: int
    out_features: int
    bias: bool
    activation: str


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """Describe a local model folder; None where it says nothing.

    `model` is the folder of config.json and weights, `words` that of the tokenizer (None: the same; an adapter's
    folder may bring its own); `query_prompt` and `document_prompt` are
    sentence-transformers' prompts, `default_prompt` the one it uses where neither name exists.
    """

    root: Path
    model: Path
    config: Mapping[str, Any]
    pooling: Pooling | None = None
    dense: tuple[DenseLayer, ...] = ()
    max_length: int | None = None
    lower_case: bool = False
    query_prompt: str | None = None
    document_prompt: str | None = None
    words: Path | None = None

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer's files."""
        return self.words or self.model

    def weight_files(self) -> list[Path]:
        """Return the files that hold the weights, Dense layers included. Raises EmbedderError for none."""
        files = _weights(self.model)
        for layer in self.dense:
            files += _weights(Path(layer.folder))
        return files

    def tokenizer_files(self) -> list[Path]:
        """Return the files that decide how text becomes tokens, tokenizer.json alone where there is one."""
        files = [self.tokenizer / name for name in _TOKENIZER_FILES if (self.tokenizer / name).is_file()]
        return files[:1] if files and files[0].name == "tokenizer.json" else files

    def stored_dtype(self) -> str:
        """Return the dtype of the stored weights: the safetensors header's, else config.json's."""
        first = _weights(self.model)[0]
        if first.suffix == ".safetensors":
            return _safetensors_dtype(first)
        return str(self.config.get("dtype") or self.config.get("torch_dtype") or "float32")

    def template(self) -> Template | None:
        """Return the template that the stored prompts amount to; None where there are none.

        A query prompt of the form `Instruct: …\\nQuery:` or `task: … | query: ` is the family's instruct
        form with one task filled in: the task becomes `{instruction}` again, and stays for a query without one.
        """
        if not self.query_prompt and not self.document_prompt:
            return None
        query = self.query_prompt or ""
        document = (self.document_prompt or "") + "{text}"
        if found := re.fullmatch(r"(?s)Instruct: .*?(\s*\n\s*Query: ?)", query):
            return Template(query + "{query}", "Instruct: {instruction}" + found[1] + "{query}", document)
        if re.fullmatch(r"task: .* \| query: ", query):
            return Template(query + "{query}", "task: {instruction} | query: {query}", document)
        return Template(query + "{query}", query + "{instruction} {query}", document)

    @property
    def instruct_prompt(self) -> bool:
        """Whether the stored query prompt shows a model trained on `Instruct: …` queries."""
        return bool(re.match(r"Instruct: ", self.query_prompt or ""))


def read_folder(root: Path, base: ModelFolder | None = None) -> ModelFolder:
    """Read a Hugging Face or sentence-transformers folder. Raises InputError for what cannot be served.

    Where `base` is given, `root` holds an adapter over it: config and weights are the base's, and the modules,
    prompts, lengths and tokenizer the adapter's own, if it brings a modules.json.
    """
    modules = _read_json(root / "modules.json")
    if modules is None:
        return base or ModelFolder(root, root, _config(root))
    if not isinstance(modules, list) or not modules:
        raise InputError(f"{root / 'modules.json'} lists no modules: the model folder is broken")
    kinds = [(str(m.get("type", "")).rsplit(".", 1)[-1], root / str(m.get("path", ""))) for m in modules]
    if kinds[0][0] != "Transformer":
        raise InputError(f"{root} begins with a {kinds[0][0]} module: only Transformer models are read here")
    pooling: Pooling | None = None
    dense: list[DenseLayer] = []
    for kind, folder in kinds[1:]:
        if kind == "Pooling":
            pooling = _pooling(folder)
        elif kind == "Dense":
            dense.append(_dense(folder))
        elif kind not in ("Normalize", "Dropout"):
            raise InputError(
                f"{root} holds a {kind} module, which is not known here "
                "(known: Transformer, Pooling, Dense, Normalize, Dropout)"
            )
    model = kinds[0][1]
    bert = _read_json(model / "sentence_bert_config.json") or {}
    prompts = _read_json(root / "config_sentence_transformers.json") or {}
    return ModelFolder(
        root,
        model if base is None else base.model,
        _config(model) if base is None else base.config,
        pooling,
        tuple(dense),
        bert.get("max_seq_length"),
        bool(bert.get("do_lower_case")),
        _prompt(prompts, _QUERY_NAMES, _DOCUMENT_NAMES),
        _prompt(prompts, _DOCUMENT_NAMES, _QUERY_NAMES),
        words=model if base is not None and any((model / n).is_file() for n in _TOKENIZER_FILES) else None,
    )


def adapter_base(folder: Path) -> str | None:
    """Return the base model that a PEFT folder names; None where the folder is no adapter."""
    config = _read_json(folder / "adapter_config.json")
    if config is None:
        return None
    base = config.get("base_model_name_or_path")
    if not base:
        raise InputError(f"{folder / 'adapter_config.json'} names no base_model_name_or_path: add it")
    return str(base)


def adapter_files(folder: Path) -> list[Path]:
    """Return the weight files of a PEFT folder. Raises InputError where it is none."""
    if not (folder / "adapter_config.json").is_file():
        raise InputError(f"{folder} is no PEFT adapter: it has no adapter_config.json")
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
    raise EmbedderError(f"{folder} has no adapter_model.safetensors: save the adapter again")


def _prompt(config: Mapping[str, Any], names: Sequence[str], others: Sequence[str]) -> str | None:
    """Return the prompt of one side: the first of `names` with any text, else the default prompt.

    An empty prompt of that name means none (newer sentence-transformers write it so) and shuts out the
    default, as does a default that is the other side's prompt.
    """
    prompts = config.get("prompts") or {}
    default = config.get("default_prompt_name")
    named = [prompts[n] for n in names if prompts.get(n) is not None]
    if named:
        return next((p for p in named if p), "")
    return None if default in others else prompts.get(default or "")


def _pooling(folder: Path) -> Pooling:
    config = _read_json(folder / "config.json")
    if config is None:
        raise InputError(f"{folder} has no config.json: the Pooling module cannot be read")
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _OLD_POOLING_KEYS.items() if config.get(key)]
    modes = [modes] if isinstance(modes, str) else list(modes) or ["mean"]
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise InputError(
            f"{folder} pools by {' and '.join(modes)}: only {', '.join(_POOLINGS)} are read here"
        )
    if config.get("include_prompt") is False:
        raise InputError(f"{folder} leaves the prompt out of the pooling, which is not read here")
    return _POOLINGS[modes[0]]


def _dense(folder: Path) -> DenseLayer:
    config = _read_json(folder / "config.json")
    if config is None:
        raise InputError(f"{folder} has no config.json: the Dense module cannot be read")
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    name = activation.rsplit(".", 1)[-1]
    if not activation.startswith("torch.nn.") or name not in _ACTIVATIONS:
        raise InputError(f"{folder} has the activation {activation}: known are {', '.join(_ACTIVATIONS)}")
    odd = [k for k in ("use_residual",) if config.get(k)]
    odd += [
        k
        for k in ("module_input_name", "module_output_name")
        if config.get(k) not in (None, "sentence_embedding")
    ]
    if odd:
        raise InputError(f"{folder} sets {', '.join(odd)}, which is not read here")
    return DenseLayer(
        str(folder),
        int(config["in_features"]),
        int(config["out_features"]),
        bool(config.get("bias", True)),
        name,
    )


def _weights(folder: Path) -> list[Path]:
    for single, index in (
        ("model.safetensors", "model.safetensors.index.json"),
        ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    ):
        if (folder / single).is_file():
            return [folder / single]
        if (listing := _read_json(folder / index)) is not None:
            return [folder / name for name in sorted(set(listing["weight_map"].values()))]
    raise EmbedderError(f"{folder} has no weights (model.safetensors or pytorch_model.bin): fetch it again")


def _safetensors_dtype(path: Path) -> str:
    with path.open("rb") as f:
        header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
    sizes: dict[str, int] = {}
    for name, tensor in header.items():
        if name != "__metadata__":
            begin, end = tensor["data_offsets"]
            sizes[tensor["dtype"]] = sizes.get(tensor["dtype"], 0) + end - begin
    largest = max(sizes, key=lambda d: sizes[d], default="F32")
    return _DTYPES.get(largest, largest)


def _config(folder: Path) -> Mapping[str, Any]:
    config = _read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise InputError(f"{folder} has no config.json: it is no Hugging Face model folder")
    return config


def _read_json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return cast("Any", json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as e:
        raise InputError(f"{path} cannot be read: {e}") from e
