"""Train one tiny Mistral one step at a time; `training.py` starts this and says when.

    python benchmarks/training_worker.py '{"arm": "sentence-transformers", "batch": 256, ...}'

One process is one contender with one setting, so that the kernel's high-water mark is that contender's memory.
It reads commands from standard input, one a line: `step N` trains on batch N and answers with seconds, CPU
seconds and memory in MiB; `gradient PATH` saves the gradient of batch 0 instead of using it. All contenders get
the same weights, the same ids, the same AdamW. What a data loader does beforehand (padding) is not timed for the
peers; embedkit collates inside its step, and that is timed.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = list[NDArray[np.int32]]
VOCABULARY = 32000
BOS, EOS, PAD = 1, 2, 0
TEMPERATURE = 0.02
MEAN_TOKENS = 43  # of the lengths below; chunks given in rows become budgets of tokens by it


def pairs(batch: int, seed: int) -> tuple[Ids, Ids]:
    """Return token ids of `batch` queries and their positives: lognormal lengths, median 32, 4 to 256."""
    draw = np.random.default_rng(seed)

    def side() -> Ids:
        lengths = np.clip(np.rint(draw.lognormal(np.log(32), 0.8, batch)), 4, 256).astype(int)
        bodies = (draw.integers(3, VOCABULARY, n - 2, dtype=np.int32) for n in lengths)
        return [np.concatenate(([BOS], body, [EOS])).astype(np.int32) for body in bodies]

    return side(), side()


def build_backbone() -> Any:
    """Return the seeded Mistral: hidden 256, 4 layers, 8 heads over 2 key-value heads, 11.5M parameters."""
    import torch
    from transformers import MistralConfig, MistralModel

    torch.manual_seed(0)
    return MistralModel(
        MistralConfig(
            vocab_size=VOCABULARY, hidden_size=256, intermediate_size=896, num_hidden_layers=4,
            num_attention_heads=8, num_key_value_heads=2, max_position_embeddings=512, sliding_window=None,
            pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS,
        )
    )  # fmt: skip


def save_folder(folder: Path) -> Any:
    """Save the backbone with a one-word-one-token tokenizer, as the peers want to load it; return the tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(3, VOCABULARY))]
    raw = Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="right"
    )
    tokenizer.save_pretrained(str(folder))
    build_backbone().save_pretrained(str(folder))
    return tokenizer


def pad(tokenizer: Any, rows: Ids) -> dict[str, Any]:
    """Pad as the peers' collators do: by the tokenizer, to the longest row given."""
    return dict(tokenizer.pad({"input_ids": [r.tolist() for r in rows]}, padding=True, return_tensors="pt"))


class Peer:
    """A contender whose step is loss, accelerate's backward and the optimiser, as in transformers' Trainer."""

    def __init__(self, model: Any, loss: Callable[[Any, Any], Any], setting: dict[str, Any]) -> None:
        import torch
        from accelerate import Accelerator

        precision = "bf16" if setting["precision"] == "bf16" else "no"
        self.accelerator = Accelerator(cpu=True, mixed_precision=precision)
        self.parameters = dict(model.named_parameters())
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.1, fused=True)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.model.train()
        self.loss = loss

    def backward(self, features: Any) -> float:
        """Leave the gradient of one batch in `.grad`."""
        loss = self.loss(self.model, features)
        self.accelerator.backward(loss)
        return float(loss.detach())

    def step(self, features: Any) -> float:
        """Train on one batch."""
        loss = self.backward(features)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss


def sentence_transformers_arm(setting: dict[str, Any], folder: Path) -> tuple[Any, Callable[[Ids, Ids], Any]]:
    """CachedMultipleNegativesRankingLoss; each column padded to its longest row, as the collator does.

    The loss itself cuts the padding that a whole mini-batch shares. `unit` "tokens" uses its
    mini_batch_num_tokens instead of mini_batch_size.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    tokenizer = save_folder(folder)
    transformer = modules.Transformer(str(folder), max_seq_length=256)
    model = SentenceTransformer(modules=[transformer, modules.Pooling(256, "lasttoken")], device="cpu")
    sizes: dict[str, Any] = {"mini_batch_size": setting["chunk"]}
    if setting["unit"] == "tokens":
        sizes["mini_batch_num_tokens"] = setting["chunk"] * MEAN_TOKENS
    loss = CachedMultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE, **sizes)

    def compute(prepared: Any, features: Any) -> Any:
        loss.model = prepared  # as SentenceTransformerTrainer does: the wrapped forward is the autocast one
        return loss([dict(f) for f in features], None)

    return Peer(model, compute, setting), lambda q, d: [pad(tokenizer, q), pad(tokenizer, d)]


def flag_embedding_arm(setting: dict[str, Any], folder: Path) -> tuple[Any, Callable[[Ids, Ids], Any]]:
    """FlagEmbedding's decoder-only model; `sub_batch_size` pads each chunk by itself, as its collator does.

    It keeps the graph of the whole batch (no gradient cache): `unit` "checkpointed" is its way to save memory.
    """
    from FlagEmbedding.finetune.embedder.decoder_only.base.modeling import BiDecoderOnlyEmbedderModel

    tokenizer = save_folder(folder)
    backbone = build_backbone()
    backbone.config.use_cache = False  # as its own load_model.py does
    model = BiDecoderOnlyEmbedderModel(
        backbone,
        tokenizer,
        temperature=TEMPERATURE,
        sub_batch_size=setting["chunk"],
        normalize_embeddings=True,
    )
    if setting["unit"] == "checkpointed":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    size = setting["chunk"]

    def collate(queries: Ids, documents: Ids) -> Any:
        return [
            [pad(tokenizer, side[i : i + size]) for i in range(0, len(side), size)]
            for side in (queries, documents)
        ]

    return Peer(model, lambda m, f: m(queries=f[0], passages=f[1]).loss, setting), collate


class Ours:
    """embedkit's step: `unit` is "padded" or "packed"; `graph` chunks keep their graph between the passes."""

    def __init__(self, setting: dict[str, Any]) -> None:
        import torch

        from embedkit_trainer.attention.float32 import use_float32_attention
        from embedkit_trainer.attention.packing import use_packing
        from embedkit_trainer.config.records import LossConfig
        from embedkit_trainer.gradcache import StepPlan
        from embedkit_trainer.losses.objective import build_objective
        from embedkit_trainer.model import EmbeddingModel

        backbone = build_backbone()
        packed = setting["unit"] == "packed"
        if packed:
            use_packing(backbone)
        elif setting["precision"] == "bf16":
            use_float32_attention(backbone)  # as load_model does on a CPU
        self.model = EmbeddingModel(backbone, "last").train()
        self.parameters = dict(self.model.named_parameters())
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, weight_decay=0.1, fused=True)
        self.objective = build_objective(LossConfig(temperature=TEMPERATURE), None)
        chunk = setting["chunk"] * MEAN_TOKENS if setting["chunk"] else None
        graph = chunk * setting["graph"] if chunk and setting.get("graph") else None
        self.plan = StepPlan(chunk, graph, packed, setting["precision"] == "bf16")

    def backward(self, batch: Any) -> float:
        """Leave the gradient of one batch in `.grad`."""
        from embedkit_trainer.gradcache import train_step

        return train_step(self.model, batch, self.objective, plan=self.plan).loss

    def step(self, batch: Any) -> float:
        """Train on one batch."""
        loss = self.backward(batch)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss


def embedkit_arm(setting: dict[str, Any], folder: Path) -> tuple[Any, Callable[[Ids, Ids], Any]]:
    """embedkit_trainer's train_step with its masks; chunks sorted by length, collated inside the step."""
    del folder

    def collate(queries: Ids, documents: Ids) -> Any:
        from embedkit_trainer.data.batches import Batch

        rows = len(queries)
        keys = np.arange(1, rows + 1, dtype=np.int64)
        return Batch(
            step=0, queries=queries, documents=documents, offsets=np.arange(rows + 1, dtype=np.int64),
            query_keys=keys, text_keys=keys, id_keys=np.zeros(rows, np.int64), scores=None, teacher_scores=None,
            teacher_queries=None, teacher_documents=None, rows=[(0, i) for i in range(rows)],
            sources=np.zeros(rows, np.int64),
        )  # fmt: skip

    return Ours(setting), collate


ARMS = {
    "embedkit": embedkit_arm,
    "sentence-transformers": sentence_transformers_arm,
    "FlagEmbedding": flag_embedding_arm,
}


def memory(key: str) -> float:
    """Return VmRSS or VmHWM of this process in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"/proc/self/status has no {key}: this benchmark needs Linux")


def save_gradient(parameters: dict[str, Any], path: str) -> None:
    """Save gradients under the backbone's own parameter names, whatever wraps it."""
    kept = {}
    for name, parameter in parameters.items():
        short = name[name.index("embed_tokens") :] if "embed_tokens" in name else name
        short = short[short.index("layers.") :] if "layers." in short else short
        short = "norm.weight" if short.endswith(".norm.weight") else short
        kept[short] = parameter.grad.float().numpy()
    np.savez(path, **kept)


def serve(setting: dict[str, Any], commands: Any, answer: Callable[[dict[str, Any]], None]) -> None:
    """Build the contender, then do what the lines say."""
    import torch

    torch.set_num_threads(setting["threads"])
    limit = int(setting["memory_limit_mib"]) << 20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with tempfile.TemporaryDirectory() as folder:
        contender, collate = ARMS[setting["arm"]](setting, Path(folder))
    base = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # begins the high-water mark anew, after the imports
    answer({"base": base})
    for line in commands:
        command, _, argument = line.strip().partition(" ")
        seed = int(argument) if command == "step" else 0
        features = collate(*pairs(setting["batch"], seed))
        try:
            begin, busy = time.perf_counter(), time.process_time()
            if command == "step":
                loss = contender.step(features)
            else:
                loss = contender.backward(features)
                save_gradient(contender.parameters, argument)
            seconds, cpu = time.perf_counter() - begin, time.process_time() - busy
        except RuntimeError as error:
            if "allocate memory" not in str(error):
                raise
            answer({"out_of_memory": True})
            return
        answer({"seconds": seconds, "cpu": cpu, "loss": loss, "peak": memory("VmHWM")})


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is no answer
    setting = json.loads(sys.argv[1])
    serve(setting, sys.stdin, lambda message: print(json.dumps(message), file=answers, flush=True))


if __name__ == "__main__":
    main()
