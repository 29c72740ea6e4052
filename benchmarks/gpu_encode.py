"""Compare encoding with a Mistral-7B architecture (random weights) on one GPU with sentence-transformers.

    python benchmarks/gpu_encode.py                      # the card's figures
    python benchmarks/gpu_encode.py --tiny --device cpu  # a dry run of the same code anywhere

Passages are lognormal in length (mean about 128 tokens, at most 512). Both arms share one model in memory
and take turns. The share of the card is model FLOPs (real tokens only, padding earns nothing) over time,
against the rate of one large bf16 product measured in the same run.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

MAX_TOKENS = 512
WORDS = 1000


def save_tokenizer(folder: Path) -> None:
    """Save a tokenizer in which one word is one token, with <s> and </s>."""
    from transformers import PreTrainedTokenizerFast

    names = ["<s>", "</s>", "<unk>", *(f"w{i}" for i in range(WORDS))]
    tokenizer = Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        unk_token="<unk>",
        model_max_length=MAX_TOKENS,
    ).save_pretrained(str(folder))


def passages(count: int, seed: int) -> list[str]:
    """Return texts of lognormal length: median 105, mean about 128, at most 510 words."""
    draw = random.Random(seed)
    lengths = [min(max(int(draw.lognormvariate(4.65, 0.63)), 4), MAX_TOKENS - 2) for _ in range(count)]
    return [" ".join(f"w{draw.randrange(WORDS)}" for _ in range(n)) for n in lengths]


def build_model(tiny: bool, device: str, dtype: torch.dtype) -> Any:
    """Return a random Mistral-7B (or a tiny one), made on the device."""
    from transformers import MistralConfig, MistralModel

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    config = MistralConfig(vocab_size=32000, pad_token_id=1, **(sizes if tiny else {}))
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return MistralModel(config).eval()
    finally:
        torch.set_default_dtype(before)


def peer(model: Any, folder: Path, device: str, batch_size: int) -> Callable[[list[str]], np.ndarray]:
    """Return sentence-transformers' encode over the same model object."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers import models as modules
    from transformers import MistralConfig, MistralModel

    stub = MistralConfig(vocab_size=32000, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1)  # fmt: skip
    MistralModel(stub).save_pretrained(str(folder))
    transformer = modules.Transformer(str(folder), max_seq_length=MAX_TOKENS)
    holder = "auto_model" if "auto_model" in transformer._modules else "model"
    setattr(transformer, holder, model)
    loaded = SentenceTransformer(
        modules=[transformer, modules.Pooling(model.config.hidden_size, "lasttoken")], device=device
    )
    return lambda texts: loaded.encode(
        texts, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False
    )


def ours(
    model: Any, folder: Path, device: str, budget: int | None
) -> tuple[Any, Callable[[list[str]], np.ndarray]]:
    """Return embedkit's embedder and its encode over the same model object."""
    from transformers import AutoTokenizer

    from embedkit.contract import EmbedderInfo
    from embedkit.embedders.encoder import Encoder, EncoderSpec
    from embedkit.embedders.tokens import build_tokens
    from embedkit.embedders.transformer import TransformerEmbedder

    tokens = build_tokens(
        AutoTokenizer.from_pretrained(str(folder)), bos=True, eos="eos", last=True, max_length=MAX_TOKENS
    )
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    spec = EncoderSpec("random", None, dtype, "last", (), budget, tokens.suffix[-1], False)
    encoder = Encoder(spec, device, model)
    info = EmbedderInfo("random", encoder.dim, MAX_TOKENS, "last", weights="random")
    embedder = TransformerEmbedder(info, tokens, encoder)
    return embedder, embedder.encode_document


def matmul_rate(device: str, dtype: torch.dtype, size: int) -> float:
    """Return the FLOP/s of a square product, the best of five."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        _wait(device)
        begin = time.perf_counter()
        for _ in range(10):
            a @ b
        _wait(device)
        best = min(best, (time.perf_counter() - begin) / 10)
    return 2 * size**3 / best


def model_flops(model: Any, lengths: list[int]) -> float:
    """Return the FLOPs that the real tokens need: all products, and causal attention."""
    config = model.config
    weights = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n)
    attention = 2 * config.num_hidden_layers * config.hidden_size * sum(n * n for n in lengths)
    return float(2 * weights * sum(lengths) + attention)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--tiny", action="store_true", help="a tiny architecture: proves the script, not speed"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--passages", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--token-budget", type=int)
    parser.add_argument("--st-batch-size", type=int, default=32, help="32 is the peer's default")
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device: --tiny --device cpu is the dry run")
    dtype = getattr(torch, args.dtype)
    texts = passages(64 if args.tiny else args.passages, seed=0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_tokenizer(folder)
        model = build_model(args.tiny, args.device, dtype)
        embedder, encode = ours(model, folder, args.device, args.token_budget)
        arms = {
            "embedkit": encode,
            "sentence-transformers": peer(model, folder, args.device, args.st_batch_size),
        }
        times: dict[str, list[float]] = {name: [] for name in arms}
        vectors = {name: arm(texts[:64]) for name, arm in arms.items()}
        for _ in range(args.rounds):
            for name, arm in arms.items():
                begin = time.perf_counter()
                vectors[name] = arm(texts)
                times[name].append(time.perf_counter() - begin)
    lengths = embedder.count_tokens(texts)
    flops = model_flops(model, lengths)
    rate = matmul_rate(args.device, dtype, 256 if args.tiny else 8192)
    where = torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu"
    print(f"{where}; {len(texts)} passages, {np.mean(lengths):.0f} tokens on average, at most {max(lengths)}")
    print(f"{args.dtype} product: {rate / 1e12:.2f} TFLOP/s")
    print("| arm | passages/s | TFLOP/s of the model | share of the product's rate | ratio | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    base = statistics.median(times["sentence-transformers"])
    for name, taken in times.items():
        median = statistics.median(taken)
        seconds = " ".join(f"{t:.2f}" for t in taken)
        print(
            f"| {name} | {len(texts) / median:.0f} | {flops / median / 1e12:.3f} | {flops / median / rate:.1%} "
            f"| {base / median:.2f} | {seconds} |"
        )
    mine, theirs = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in vectors.values())
    cosines = (mine * theirs).sum(1)
    print(f"cosine between the arms: mean {cosines.mean():.5f}, least {cosines.min():.5f}")


if __name__ == "__main__":
    main()
