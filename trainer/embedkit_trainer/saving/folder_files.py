"""The files of a saved folder beside its weights: tokenizer, and what sentence-transformers reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit.contract import Template
from embedkit.embedders.saved import SavedModel
from embedkit.errors import InputError
from embedkit.tasks import resolve_instruction

if TYPE_CHECKING:
    from embedkit.embedders.tokens import TokenBuilder

_MODES = {"mean": "mean", "weightedmean": "weightedmean", "cls": "cls", "last": "lasttoken"}
_OLD_MODES = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
_MODULES = (
    ("", "sentence_transformers.models.Transformer"),
    ("1_Pooling", "sentence_transformers.models.Pooling"),
    ("2_Normalize", "sentence_transformers.models.Normalize"),
)


def check_record(record: SavedModel) -> None:
    """Raise InputError for what no folder can say: an unknown pooling or task, a template that ends after the text.

    Ask before the first step, not after the last.
    """
    if record.pooling not in _MODES:
        raise InputError(
            f"a model of pooling {record.pooling!r} cannot be saved: known are {', '.join(_MODES)}"
        )
    instruction = resolve_instruction(record.default_task, None)
    for text in (record.template.render_query("\0", instruction), record.template.render_document("\0")):
        if not text.endswith("\0"):
            raise InputError(
                f"the template puts {text.split(chr(0), 1)[1]!r} after the text, which no sentence-transformers prompt "
                "can say: end the template with the text"
            )


def query_prompt(template: Template, default_task: str | None) -> str:
    """Return what stands before a query that names no task: sentence-transformers' prompt "query"."""
    marked = template.render_query("\0", resolve_instruction(default_task, None))
    return marked.split("\0", 1)[0]


def write_tokenizer(folder: Path, tokenizer: Any, tokens: TokenBuilder, record: SavedModel) -> None:
    """Save the tokenizer whose post-processor adds exactly the special tokens trained with.

    Under a class that reads tokenizer.json as it is: a Llama tokenizer's own class puts its own BOS and EOS
    back (transformers 5 forgets the `</s>` of E5-mistral).
    """
    import transformers
    from tokenizers import Tokenizer

    names = {k: v for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}
    names.setdefault(
        "pad_token", names.get("eos_token") or names.get("unk_token") or tokenizer.convert_ids_to_tokens(0)
    )
    wrapper: Any = transformers.PreTrainedTokenizerFast
    wrapper(
        tokenizer_object=Tokenizer.from_str(tokens.tokenizer.to_str()),
        model_max_length=record.max_length,
        padding_side="right",
        truncation_side="right",
        model_input_names=list(tokenizer.model_input_names),
        clean_up_tokenization_spaces=False,
        **names,
    ).save_pretrained(str(folder))
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, config | {"tokenizer_class": "PreTrainedTokenizerFast"})


def write_modules(folder: Path, dim: int, record: SavedModel) -> None:
    """Write sentence-transformers' files, in the form that its releases since 2.3 all read."""
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(_MODULES)
    ]
    write_json(folder / "modules.json", modules)
    mode = _MODES[record.pooling]
    for path, _ in _MODULES[1:]:
        (folder / path).mkdir()
    pooling: dict[str, Any] = {"word_embedding_dimension": dim}
    pooling |= {key: name == mode for name, key in _OLD_MODES.items()}
    pooling |= {"pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False}
    write_json(folder / "1_Pooling" / "config.json", pooling | {"include_prompt": True})
    write_json(
        folder / "sentence_bert_config.json", {"max_seq_length": record.max_length, "do_lower_case": False}
    )
    prompts = {
        "query": query_prompt(record.template, record.default_task),
        "document": record.template.render_document(""),
    }
    write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
