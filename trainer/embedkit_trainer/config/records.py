"""A training run as frozen dataclasses: what the TOML file holds, and the defaults where it is silent.

The defaults are E5-mistral's (arXiv 2401.00368, section 4.1 and appendix C) wherever the paper gives one.
`config_file.load_config` reads the file, checks it against these classes and reports all errors at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from embedkit.contract import Pooling, Template

Tuning = Literal["full", "lora", "qlora"]
LossName = Literal[
    "info_nce", "gte", "simcse", "cosent", "cosine_regression", "distil_cosine", "distil_mse", "distil_kl",
    "margin_mse",
]  # fmt: skip
#: What a loss compares with: the batch, graded scores, a teacher's scores, a teacher's vectors.
CONTRASTIVE: tuple[LossName, ...] = ("info_nce", "gte", "simcse")
GRADED: tuple[LossName, ...] = ("cosent", "cosine_regression")
TEACHER_SCORES: tuple[LossName, ...] = ("distil_kl", "margin_mse")
TEACHER_VECTORS: tuple[LossName, ...] = ("distil_cosine", "distil_mse")
TeacherTarget = Literal["own", "positive"]
Batches = Literal["one-source", "mixed"]
Schedule = Literal["linear", "cosine", "constant"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """LoRA as PEFT names it; `target_modules` "all-linear" means every linear layer of the backbone.

    `quantize` of QLoRA is bitsandbytes' nf4 with bfloat16 arithmetic.
    """

    r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.1
    target_modules: str | tuple[str, ...] = "all-linear"


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Name the base model and say what is trained of it.

    `name` is a folder or a hub id. `pooling` None: what the folder, its preset or its architecture says.
    `template` None: likewise, else E5-mistral's. `default_task`: the task of a query that names none, once served.
    `attention` is transformers' attn_implementation; `dropout` overrides the config's own probabilities.
    """

    name: str = ""
    revision: str | None = None
    tuning: Tuning = "full"
    lora: LoraConfig = field(default_factory=LoraConfig)
    pooling: Pooling | None = None
    template: Template | None = None
    default_task: str | None = None
    dropout: float | None = None
    attention: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class SourceConfig:
    """Describe one source of rows.

    `format` is "rows" (our JSONL/Parquet schema) or a name of `data.formats`. `path` is a file, a glob or a folder,
    relative to the config file. `ratio` is the share of the source's rows that an epoch takes (the paper's 0.1 for
    Quora); `weight` fixes its share of the batches instead of n^alpha. `instructions`: one is drawn by the query where
    the row brings none (None: from those that are known of the format; an empty list: none). `instruction_dropout`:
    the share of queries that lose theirs. `negatives`: how many of a row's negatives are used, the stage's number where
    None; which ones changes with every visit. `limit`: the first N rows. `block`: so many rows that follow one another
    in the file stay together in a batch (one query under several instructions, each row's positive wrong for the
    others). `distil` false leaves the source to the contrastive part of a loss that follows a teacher's vectors.
    """

    path: str = ""
    name: str = ""
    format: str = "rows"
    ratio: float = 1.0
    weight: float | None = None
    instructions: tuple[str, ...] | None = None
    instruction_dropout: float = 0.0
    negatives: int | None = None
    limit: int | None = None
    block: int = 1
    distil: bool = True
    licence: str = ""


@dataclass(frozen=True, slots=True)
class LossConfig:
    """Choose the loss and its numbers; `matryoshka` lists the prefix widths that are trained beside the full one.

    `mask_identity` leaves out documents that are right for the query by id, `mask_text` by equal text;
    `mask_similarity` candidates whose cosine exceeds the positive's times this factor (None: off). `in_batch` false
    compares with the row's own negatives alone. `teacher_temperature` divides a teacher's scores, `score_scale` brings
    graded scores into -1..1 for `cosine_regression` (5 for STS's 0..5). `contrastive_weight` adds so much of InfoNCE
    to a loss that is not contrastive.
    """

    name: LossName = "info_nce"
    temperature: float = 0.02
    matryoshka: tuple[int, ...] = ()
    matryoshka_weights: tuple[float, ...] = ()
    mask_identity: bool = True
    mask_text: bool = True
    mask_similarity: float | None = None
    in_batch: bool = True
    teacher_temperature: float = 1.0
    score_scale: float = 1.0
    contrastive_weight: float = 0.0


@dataclass(frozen=True, slots=True)
class TeacherConfig:
    """Name the teacher of a distillation; its vectors are computed once and kept in the cache folder.

    `target` "own": each text regresses the teacher's vector of itself; "positive": query and positive both regress
    the teacher's vector of the positive (multilingual distillation, arXiv 2004.09813). With "own", `as_query` has the
    teacher encode queries as its queries, under their instructions; else every text is encoded as a document, bare.
    A loss of scores (`distil_kl`, `margin_mse`) takes the cosines of these vectors, and the rows' own `teacher_scores`
    where there is no teacher.
    """

    embedder: str = ""
    target: TeacherTarget = "own"
    as_query: bool = False


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """AdamW with linear decay; `lr` is the peak, reached after `warmup_steps` (or `warmup_ratio` of all steps).

    `embedding_lr` is that of the embedding tables (None: the same). The decay ends at `lr_end` of the peak.
    `max_grad_norm` 0 clips nothing.
    """

    lr: float = 1e-4
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    warmup_steps: int = 100
    warmup_ratio: float | None = None
    schedule: Schedule = "linear"
    max_grad_norm: float = 1.0
    embedding_lr: float | None = None
    lr_end: float = 0.0


@dataclass(frozen=True, slots=True)
class StageConfig:
    """One stage: its sources, batch, lengths, loss and optimiser.

    `batch_size` counts queries of the global batch (all processes). `max_steps` cuts `epochs` short.
    `query_length` and `document_length` count tokens, special ones included. `chunk_tokens` is the budget of one
    forward pass (rows x longest row where padded, the sum where packed); None: chosen for the device. `graph_tokens`
    is how many tokens of activations may be held at once (None: one chunk's): what exceeds it goes by way of
    GradCache, a second forward pass. `trainable` are regular expressions of parameter names; empty: all.
    `accumulation` sums that many batches before an optimiser step: it does not enlarge the pool of negatives.
    `frozen_documents` trains the query side alone: documents keep the vectors that the teacher gives them, so queries
    learn to search what the teacher embedded (arXiv 2601.04646), and no document is embedded in a step. `train_tokens_from`
    keeps the token vectors below that id as they are: those of a vocabulary that new tokens were added to.
    """

    name: str = "train"
    sources: tuple[SourceConfig, ...] = ()
    batch_size: int = 2048
    epochs: float = 1.0
    max_steps: int | None = None
    query_length: int = 512
    document_length: int = 512
    negatives: int = 1
    batches: Batches = "one-source"
    alpha: float = 1.0
    loss: LossConfig = field(default_factory=LossConfig)
    teacher: TeacherConfig | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    chunk_tokens: int | None = None
    graph_tokens: int | None = None
    trainable: tuple[str, ...] = ()
    accumulation: int = 1
    gradient_checkpointing: bool = False
    packing: bool = False
    frozen_documents: bool = False
    train_tokens_from: int = 0

    def negatives_of(self, source: SourceConfig) -> int:
        """Return how many of a row's negatives a source of this stage brings at most."""
        return self.negatives if source.negatives is None else source.negatives


@dataclass(frozen=True, slots=True)
class DevConfig:
    """Measure nDCG@10 on BEIR folders every `every` steps; the best checkpoint by their mean is kept."""

    folders: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    instructions: tuple[str, ...] = ()
    every: int = 100
    queries: int | None = 300


@dataclass(frozen=True, slots=True)
class RunConfig:
    """All of one training run.

    `output` is where the finished model goes, `work` the folder of checkpoints and caches (default: `output` with
    `.work` added). `save_every` counts optimiser steps. `tracker` is accelerate's name of a logger.
    """

    name: str = "run"
    recipe: str | None = None
    seed: int = 42
    output: str = "model"
    work: str | None = None
    model: ModelConfig = field(default_factory=ModelConfig)
    stages: tuple[StageConfig, ...] = ()
    dev: DevConfig | None = None
    precision: Precision = "float32"
    device: str = "auto"
    save_every: int = 500
    keep: int = 2
    log_every: int = 1
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    backend: Literal["auto", "ddp", "fsdp2", "deepspeed"] = "auto"
    merge: bool = True
