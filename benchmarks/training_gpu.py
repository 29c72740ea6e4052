"""Time one contrastive training step of a Mistral-7B architecture (random weights, LoRA) on one GPU.

    python benchmarks/training_gpu.py                      # the card's figures: padded/packed x checkpointing x GradCache
    python benchmarks/training_gpu.py --tiny --device cpu  # a dry run of the same code anywhere

Pairs of lognormal length (mean about 128 tokens, at most 512), frozen bfloat16 weights, a float32 LoRA adapter (r 16
on every linear layer), InfoNCE over the batch, AdamW. sentence-transformers trains the same model object with
CachedMultipleNegativesRankingLoss under accelerate's bfloat16, in the same run. Memory that runs out is a row: without
checkpointing, a token keeps some 9 MB (6 without LoRA's dropout), so that 80 GB hold about 7,000 tokens at once. Batch
16 is there to show the plain step where it fits.

What is counted, in FLOPs (a product of [m, k] and [k, n] is 2mkn). N are the weights in the layers' products, A those
of the adapter, T tokens, S the sum of squared row lengths, L layers of width h:
- forward(T, S) = 2 (N + A) T + 2 L h S: causal attention computes half of two [n, n] products a head.
- backward(T, S) = 2 N T + 4 A T + 5 L h S: the gradient of activations goes through the frozen weights once; only the
  adapter has weight gradients; fused attention computes five products, one of them again.
- Executed: forward and backward of all token places, padding included, plus forward once more for what GradCache
  sends forward twice, plus forward once more under checkpointing. Attention's share of the second pass is taken by
  tokens. Over the seconds and the rate of one large bfloat16 product measured in this run: hardware utilisation.
- Model: forward and backward of real tokens, once, attention's backward at 4 L h S: what no step can do without. Over
  the same: model FLOPs utilisation (MFU).
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_encode import build_model, matmul_rate, save_tokenizer
from numpy.typing import NDArray

from embedkit_trainer.adapters import add_lora, keep_input_dtype
from embedkit_trainer.attention.packing import use_packing
from embedkit_trainer.collate import plan_chunks
from embedkit_trainer.config.records import LoraConfig, LossConfig
from embedkit_trainer.data.batches import Batch
from embedkit_trainer.gradcache import StepPlan, StepResult, train_step
from embedkit_trainer.losses.objective import build_objective
from embedkit_trainer.model import EmbeddingModel

Rows = list[NDArray[np.int32]]
TEMPERATURE = 0.02
LONGEST = 512


def make_batch(size: int, seed: int, vocabulary: int) -> Batch:
    """Return `size` pairs of random ids: lognormal lengths, median 105, mean about 128, 4 to 512."""
    draw = np.random.default_rng(seed)

    def side() -> Rows:
        lengths = np.clip(draw.lognormal(4.65, 0.63, size), 4, LONGEST).astype(int)
        return [draw.integers(3, vocabulary, n, dtype=np.int32) for n in lengths]

    keys = np.arange(1, size + 1, dtype=np.int64)
    return Batch(
        step=0, queries=side(), documents=side(), offsets=np.arange(size + 1, dtype=np.int64), query_keys=keys,
        text_keys=keys, id_keys=np.zeros(size, np.int64), scores=None, teacher_scores=None, teacher_queries=None,
        teacher_documents=None, rows=[(0, i) for i in range(size)], sources=np.zeros(size, np.int64),
    )  # fmt: skip


@dataclass(frozen=True)
class Costs:
    """Count FLOPs of a model; the module's docstring says what is what."""

    weights: int
    adapter: int
    layers: int
    width: int

    @classmethod
    def of(cls, model: torch.nn.Module, config: Any) -> Costs:
        """Count the parameters of a backbone with its adapter."""
        products = {
            n: p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embed_tokens" not in n
        }
        adapter = sum(count for name, count in products.items() if "lora_" in name)
        return cls(sum(products.values()) - adapter, adapter, config.num_hidden_layers, config.hidden_size)

    def forward(self, tokens: float, squares: float) -> float:
        """FLOPs of one forward pass."""
        return 2 * (self.weights + self.adapter) * tokens + 2 * self.layers * self.width * squares

    def backward(self, tokens: float, squares: float, attention: int = 5) -> float:
        """FLOPs of one backward pass into the adapter; `attention` is 5 as executed, 4 as needed."""
        return (2 * self.weights + 4 * self.adapter) * tokens + attention * self.layers * self.width * squares

    def model(self, lengths: NDArray[np.int64]) -> float:
        """FLOPs that the real tokens need."""
        tokens, squares = float(lengths.sum()), float((lengths**2).sum())
        return self.forward(tokens, squares) + self.backward(tokens, squares, 4)

    def executed(
        self, lengths: NDArray[np.int64], plan: StepPlan, again: float, checkpointing: bool
    ) -> float:
        """FLOPs of all passes of a step; `again` is the share of token places that went forward twice."""
        chunks = [lengths[c] for c in plan_chunks(lengths, plan.chunk_tokens, packed=plan.packed)]
        if not plan.packed:
            chunks = [np.full(len(c), c.max()) for c in chunks]
        tokens, squares = float(sum(c.sum() for c in chunks)), float(sum((c**2).sum() for c in chunks))
        passes = 1 + again + checkpointing
        return passes * self.forward(tokens, squares) + self.backward(tokens, squares)


class Bench:
    """One model in memory, and steps of different kinds on it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device: str = options.device
        self.cuda = self.device.startswith("cuda")
        base = build_model(options.tiny, self.device, torch.bfloat16)
        self.config = base.config
        self.config.use_cache = False
        self.rate = matmul_rate(self.device, torch.bfloat16, 256 if options.tiny else 8192)
        self.backbone = add_lora(base, LoraConfig(r=16, lora_dropout=options.lora_dropout))
        keep_input_dtype(self.backbone)
        self.model = EmbeddingModel(self.backbone, "last").to(self.device).train()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        assert all(p.dtype == torch.float32 for p in self.trained)
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-6)
        self.objective = build_objective(LossConfig(temperature=TEMPERATURE))
        self.costs = Costs.of(self.model, self.config)

    def set_up(self, *, packed: bool, checkpointing: bool) -> None:
        """Switch attention and checkpointing of the one backbone."""
        inner = self.backbone.base_model.model
        if packed:
            use_packing(inner)
        else:
            inner.set_attn_implementation("sdpa")
        if checkpointing:
            self.backbone.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            self.backbone.gradient_checkpointing_disable()

    def ours(self, plan: StepPlan) -> Callable[[Batch], StepResult]:
        """Return embedkit's step."""

        def step(batch: Batch) -> StepResult:
            result = train_step(self.model, batch, self.objective, plan=plan)
            self._update()
            return result

        return step

    def peer(self, mini_batch: int) -> Callable[[Batch], None]:
        """Return sentence-transformers' step over the same backbone, padded as its collator does."""
        from accelerate import Accelerator
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer import modules
        from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
        from transformers import MistralConfig, MistralModel

        with tempfile.TemporaryDirectory() as folder:
            save_tokenizer(Path(folder))
            MistralModel(
                MistralConfig(
                    vocab_size=64, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                    num_attention_heads=1, num_key_value_heads=1,
                )
            ).save_pretrained(folder)  # fmt: skip
            transformer = modules.Transformer(folder, max_seq_length=LONGEST)
        holder = "auto_model" if "auto_model" in transformer._modules else "model"
        setattr(transformer, holder, self.backbone.base_model.model)
        width = self.config.hidden_size
        model = SentenceTransformer(
            modules=[transformer, modules.Pooling(width, "lasttoken")], device=self.device
        )
        loss = CachedMultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE, mini_batch_size=mini_batch)
        accelerator = Accelerator(mixed_precision="bf16", cpu=not self.cuda)
        loss.model = accelerator.prepare(model)
        loss.model.train()

        def step(batch: Batch) -> None:
            value = loss([self._padded(batch.queries), self._padded(batch.documents)], None)
            accelerator.backward(value)
            self._update()

        return step

    def _padded(self, rows: Rows) -> dict[str, torch.Tensor]:
        lengths = torch.tensor([len(r) for r in rows])
        ids = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(r).long() for r in rows], batch_first=True)
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        return {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}

    def _update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def time(self, step: Callable[[Batch], Any], size: int) -> tuple[float, float, Any] | None:
        """Return median seconds, peak GiB and the last result of some steps; None where memory ran out."""
        count = 1 if self.options.tiny else max(1, min(3, 1024 // size))
        batch = make_batch(size, 0, self.config.vocab_size)
        seconds, result = [], None
        self._clear()
        try:
            step(make_batch(min(size, 16), 99, self.config.vocab_size))
            for _ in range(count):
                self._wait()
                begin = time.perf_counter()
                result = step(batch)
                self._wait()
                seconds.append(time.perf_counter() - begin)
        except torch.OutOfMemoryError:
            self.optimizer.zero_grad(set_to_none=True)
            return None
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.cuda else float("nan")
        return statistics.median(seconds), peak, result

    def _clear(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def row(
        self, name: str, size: int, timed: tuple[float, float, Any] | None, executed: Callable[[Any], float]
    ) -> None:
        """Print one row; `executed` gives the FLOPs of the last result."""
        if timed is None:
            print(f"| {size} | {name} | out of memory | | | | |", flush=True)
            return
        seconds, peak, result = timed
        lengths = _lengths(make_batch(size, 0, self.config.vocab_size))
        flops = executed(result)
        hardware = f"{flops / seconds / self.rate:.1%}" if flops else ""
        mfu = self.costs.model(lengths) / seconds / self.rate
        print(
            f"| {size} | {name} | {lengths.sum() / seconds:,.0f} | {hardware} | {mfu:.1%} | {peak:.1f} | {seconds:.2f} |",
            flush=True,
        )


def _lengths(batch: Batch) -> NDArray[np.int64]:
    return np.array([len(r) for r in (*batch.queries, *batch.documents)], np.int64)


def compare(bench: Bench, size: int) -> None:
    """Print all rows of one batch size."""
    options = bench.options
    lengths = _lengths(make_batch(size, 0, bench.config.vocab_size))
    for cached, packed, checkpointing in product((False, True), repeat=3):
        chunk = options.checkpointed_chunk_tokens if checkpointing else options.chunk_tokens
        plan = StepPlan(chunk if cached else None, None, packed, True)
        bench.set_up(packed=packed, checkpointing=checkpointing)

        def executed(result: StepResult, plan: StepPlan = plan, checkpointing: bool = checkpointing) -> float:
            return bench.costs.executed(lengths, plan, result.recomputed / result.padded, checkpointing)

        words = [
            "GradCache" if cached else "plain",
            "packed" if packed else "padded",
            *(["checkpointing"] if checkpointing else []),
        ]
        bench.row("embedkit, " + ", ".join(words), size, bench.time(bench.ours(plan), size), executed)
    for mini_batch, checkpointing in product(options.mini_batch or [32, 128], (False, True)):
        bench.set_up(packed=False, checkpointing=checkpointing)
        name = f"sentence-transformers, mini-batch {mini_batch}" + (
            ", checkpointing" if checkpointing else ""
        )
        bench.row(name, size, bench.time(bench.peer(mini_batch), size), lambda _: 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--tiny", action="store_true", help="a tiny architecture: proves the script, not speed"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--batch", type=int, action="append", help="pairs; repeat (default: 16, 64, 512, 2048)"
    )
    parser.add_argument("--chunk-tokens", type=int, default=4096, help="of one GradCache pass")
    parser.add_argument(
        "--checkpointed-chunk-tokens", type=int, default=16384, help="the same under checkpointing"
    )
    parser.add_argument(
        "--mini-batch", type=int, action="append", help="the peer's; repeat (default: 32, 128)"
    )
    parser.add_argument("--lora-dropout", type=float, default=0.1, help="E5-mistral's 0.1")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device: --tiny --device cpu is the dry run")
    bench = Bench(options)
    where = torch.cuda.get_device_name() if bench.cuda else "cpu"
    costs = bench.costs
    print(
        f"{where}; {costs.weights / 1e9:.2f}e9 weights in products, {costs.adapter / 1e6:.1f}e6 in the adapter"
    )
    print(
        f"bfloat16 product: {bench.rate / 1e12:.2f} TFLOP/s; GradCache passes of {options.chunk_tokens} tokens"
    )
    print("| batch | step | real tokens/s | hardware utilisation | MFU | peak GiB | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for size in options.batch or ([8] if options.tiny else [16, 64, 512, 2048]):
        compare(bench, size)


if __name__ == "__main__":
    main()
