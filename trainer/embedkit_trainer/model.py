"""The model that is trained: a Hugging Face backbone and a pooling, from token ids to vectors with a graph."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from embedkit.contract import Pooling, Template
from embedkit.embedders.loading import broken_files, load_weights
from embedkit.embedders.pooling import pool
from embedkit.embedders.positions import FROM_PADDING, needs_no_mask
from embedkit.embedders.serving import OpenedFolder, open_folder
from embedkit.errors import EmbedderError, InputError
from embedkit_trainer.attention.float32 import use_float32_attention
from embedkit_trainer.attention.packing import use_packing
from embedkit_trainer.collate import Inputs

if TYPE_CHECKING:
    from embedkit.embedders.tokens import TokenBuilder
    from embedkit_trainer.config.records import ModelConfig, Precision

_DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "attention_dropout",
    "hidden_dropout",
    "dropout",
    "embedding_dropout",
    "embd_pdrop",
    "resid_pdrop",
    "attn_pdrop",
)


class EmbeddingModel(torch.nn.Module):
    """Embed token ids: `backbone` (transformers, or PEFT around it), then `pooling`; not normalised."""

    def __init__(self, backbone: Any, pooling: Pooling) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling = pooling
        config = backbone.config
        self._causal = needs_no_mask(config)
        self._first_position = int(config.pad_token_id) + 1 if config.model_type in FROM_PADDING else 0

    @property
    def dim(self) -> int:
        """The width of the vectors."""
        config = self.backbone.config
        return int(getattr(config, "hidden_size", 0) or config.d_model)

    def forward(self, inputs: Inputs) -> Tensor:
        """Return float32 `[n, dim]` for `n` rows, in their order."""
        options: dict[str, Any] = {}
        if inputs.offsets is not None:
            options["position_ids"] = inputs.positions() + self._first_position
            options["row_offsets"] = inputs.offsets
            options["longest_row"] = inputs.longest
        elif not self._causal and not inputs.full:
            options["attention_mask"] = inputs.mask()
        if getattr(self.backbone.config, "use_cache", False):
            options["use_cache"] = False
        states: Tensor = self.backbone(input_ids=inputs.ids, return_dict=True, **options).last_hidden_state
        if inputs.offsets is None:
            return pool(states, inputs.lengths, self.pooling)
        return _pool_packed(states[0], inputs, self.pooling)


def _pool_packed(states: Tensor, inputs: Inputs, pooling: Pooling) -> Tensor:
    """Return float32 `[n, dim]` from packed `states` `[tokens, dim]`."""
    assert inputs.offsets is not None
    offsets = inputs.offsets.long()
    if pooling == "cls":
        return states[offsets[:-1]].float()
    if pooling == "last":
        return states[offsets[1:] - 1].float()
    rows = torch.repeat_interleave(torch.arange(len(inputs.lengths), device=states.device), inputs.lengths)
    weights = torch.ones(len(states), device=states.device)
    if pooling == "weightedmean":
        weights = inputs.positions()[0].float() + 1
    sums = states.new_zeros((len(inputs.lengths), states.shape[1]), dtype=torch.float32)
    sums = sums.index_add(0, rows, states.float() * weights[:, None])
    return sums / torch.zeros_like(sums[:, 0]).index_add(0, rows, weights)[:, None]


@dataclass(frozen=True)
class LoadedModel:
    """Hold a model ready to train and all that turns text into its ids.

    `opened` is what the base folder resolves to; `pooling` and `template` are those in force.
    """

    model: EmbeddingModel
    opened: OpenedFolder
    query_tokens: TokenBuilder
    document_tokens: TokenBuilder

    @property
    def template(self) -> Template:
        """The template in force."""
        return self.opened.template


def load_tokens(
    config: ModelConfig, query_length: int, document_length: int
) -> tuple[OpenedFolder, TokenBuilder, TokenBuilder]:
    """Resolve the base and return it with the token builders of queries and of documents; no weights are read.

    Raises InputError for a length above the model's positions, and EmbedderError where last-token pooling has no
    EOS to read.
    """
    opened = open_folder(
        config.name,
        pooling=config.pooling,
        template=config.template,
        max_length=max(query_length, document_length),
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        default_template=Template(),
    )
    if not opened.folder.tokenizer_files():  # transformers makes up one that knows no word
        raise EmbedderError(f"{opened.folder.tokenizer} holds no tokenizer file: fetch it again")
    if opened.folder.dense:
        raise InputError(
            f"{config.name} ends in a Dense layer, which is not trained here: name its base model"
        )
    if opened.adapter is not None and config.tuning == "qlora":
        raise InputError(
            f"{config.name} is an adapter, which cannot be merged into nf4 weights: name a merged model (merge = true), "
            "or write tuning = lora"
        )
    room = len(opened.tokens.prefix) + len(opened.tokens.suffix)
    for side, length in (("query", query_length), ("document", document_length)):
        if length <= room:
            raise InputError(f"{side}_length {length} leaves no room for text: {room} tokens are special")
    if opened.pooling == "last" and not opened.tokens.suffix:
        raise EmbedderError(f"last-token pooling needs an EOS token, and {config.name} has none")
    return (
        opened,
        replace(opened.tokens, max_length=query_length),
        replace(opened.tokens, max_length=document_length),
    )


def load_model(
    config: ModelConfig,
    query_length: int,
    document_length: int,
    *,
    precision: Precision = "float32",
    device: torch.device | str = "cpu",
    packing: bool = False,
) -> LoadedModel:
    """Load the base's weights and put the adapter of `config.tuning` on them.

    What is trained stays in float32, whatever the arithmetic; the frozen weights under an adapter are kept in
    bfloat16 where that is the arithmetic of a GPU.
    """
    opened, queries, documents = load_tokens(config, query_length, document_length)
    device = torch.device(device)
    frozen = config.tuning != "full" and precision == "bfloat16" and device.type == "cuda"
    if config.tuning == "qlora":
        from embedkit_trainer.adapters import load_quantized

        backbone = load_quantized(
            opened.folder.model, attention=config.attention, trust_remote_code=config.trust_remote_code
        )
    else:
        backbone = load_backbone(opened, torch.bfloat16 if frozen else torch.float32, config)
    if packing:
        use_packing(backbone)
    elif precision == "bfloat16" and device.type == "cpu":
        use_float32_attention(backbone)
    if config.tuning != "full":
        from embedkit_trainer.adapters import add_lora, keep_input_dtype

        backbone = add_lora(backbone, config.lora)
        if precision == "bfloat16":
            keep_input_dtype(backbone)
    model = EmbeddingModel(backbone, opened.pooling)
    if config.tuning != "qlora":
        model = model.to(device)
    return LoadedModel(model.train(), opened, queries, documents)


def load_backbone(opened: OpenedFolder, dtype: torch.dtype, config: ModelConfig) -> Any:
    """Return the transformers model of an opened folder, an adapter that lies there merged into it."""
    from transformers import AutoConfig, AutoModel

    folder = str(opened.folder.model)
    options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    with broken_files(f"the model in {folder} cannot be loaded"):
        settings = AutoConfig.from_pretrained(folder, **options)
    if getattr(settings, "is_encoder_decoder", False):
        raise InputError(f"{config.name} is an encoder-decoder: only encoders and decoders are trained here")
    _set_dropout(settings, config.dropout)
    if config.attention:
        options["attn_implementation"] = config.attention
    backbone = load_weights(AutoModel, folder, config=settings, dtype=dtype, **options)
    if opened.adapter is not None:
        from peft import PeftModel

        from embedkit.embedders.merging import merge_adapter

        with broken_files(f"the adapter in {opened.adapter} does not fit the model"):
            wrapped = PeftModel.from_pretrained(backbone.float(), str(opened.adapter))
        backbone = merge_adapter(wrapped).to(dtype).requires_grad_(True)  # peft froze it
    _freeze_pooler(backbone)
    return backbone


def checkpoint_activations(backbone: Any) -> None:
    """Recompute a layer's activations in the backward pass rather than keep them."""
    # transformers 5 renames it, and warns under the old name.
    enable = (
        getattr(backbone, "activation_checkpointing_enable", None) or backbone.gradient_checkpointing_enable
    )
    enable({"use_reentrant": False})


def keep_activations(backbone: Any) -> None:
    """Undo `checkpoint_activations`."""
    disable = (
        getattr(backbone, "activation_checkpointing_disable", None) or backbone.gradient_checkpointing_disable
    )
    disable()


def _set_dropout(settings: Any, rate: float | None) -> None:
    if rate is None:
        return
    for name in _DROPOUTS:
        if isinstance(getattr(settings, name, None), int | float):
            setattr(settings, name, rate)


def _freeze_pooler(backbone: Any) -> None:
    # BERT's pooler gets no gradient, and DDP would wait for one; it is saved as it came.
    pooler = getattr(backbone, "pooler", None)
    if pooler is not None:
        pooler.requires_grad_(False)
