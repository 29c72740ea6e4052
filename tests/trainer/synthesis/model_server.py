"""llama.cpp's own server with a tiny language model: OpenAI-compatible, it decodes under the grammar of a JSON schema.

    python model_server.py FOLDER

writes the model into FOLDER and prints the address. The model is a Llama of two layers that no training has seen: its output
weights say how often one token follows another in `examples/synthetic`, its layers are seeded noise. So it writes something
like words, in no sensible order, ends its texts, and lets the prompt disturb it a little. What is drawn differs from request to
request, as on any server.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedkit_trainer.synthesis.types import BUILT_IN

NAME = "my-model"
LANGUAGES = ("en", "de")
_EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "synthetic"
_VOCABULARY, _HIDDEN, _LAYERS, _HEADS = 768, 64, 2, 2
_CONTEXT, _SLOTS = 4096, 4
_END = "<|endoftext|>"
_NOISE = 0.1
#: So many of a sample text are enough to learn from, and keep what is written short.
_WORDS = 10
_TEMPLATE = "{% for m in messages %}{{ m.content }}\n{% endfor %}"


@contextmanager
def model_server(folder: Path) -> Iterator[str]:
    """Run the server as a process on loopback; yield what `base_url` must be."""
    command = [sys.executable, __file__, str(folder)]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://"), (folder / "server.log").read_text()
        yield f"{address}/v1"
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def texts(language: str) -> list[str]:
    """Return JSON like what is asked for, of the sample rows in a language: lists of tasks, and each field with short texts."""
    rows = [json.loads(line) for path in sorted(_EXAMPLES.glob("*.jsonl")) for line in path.open("rb")]
    rows = [row for row in rows if (row["lang_q"], row["lang_d"]) == (language, language)]
    tasks = [_start(row["instruction"]) for row in rows]
    values: list[Any] = [{"tasks": tasks[i : i + 4]} for i in range(0, len(tasks), 4)]
    for i, row in enumerate(rows):
        fields = BUILT_IN[i % len(BUILT_IN)].fields
        written = map(_start, (row["query"], row["positive"], *row["negatives"]))
        values.append(dict(zip(fields, written, strict=False)))
    return [json.dumps(value, ensure_ascii=False, separators=(",", ":")) for value in values]


def _start(text: str) -> str:
    return " ".join(text.split()[:_WORDS])


def learn_tokenizer(lines: Sequence[str]) -> Any:
    """Return a byte-level BPE tokenizer that has every byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY, special_tokens=[_END], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(lines, trainer)
    return made


def followers(tokenizer: Any) -> NDArray[np.float64]:
    """Return log p(next token | token), each language weighing the same."""
    size = tokenizer.get_vocab_size()
    counts = np.full((size, size), 1e-3)
    for language in LANGUAGES:
        lines = [encoding.ids for encoding in tokenizer.encode_batch(texts(language))]
        weight = 1e5 / sum(map(len, lines))
        for ids in lines:
            np.add.at(counts, (ids, [*ids[1:], 0]), weight)
    found: NDArray[np.float64] = np.log(counts / counts.sum(axis=1, keepdims=True))
    return found


def write_model(path: Path) -> None:
    """Write the model as GGUF."""
    from gguf import GGUFWriter, TokenType

    tokenizer = learn_tokenizer([line for language in LANGUAGES for line in texts(language)])
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    size = len(vocabulary)
    writer = GGUFWriter(str(path), "llama")
    writer.add_name(NAME)
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(size)
    writer.add_feed_forward_length(_HIDDEN)
    writer.add_block_count(_LAYERS)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_key_length(_HIDDEN // _HEADS)
    writer.add_value_length(_HIDDEN // _HEADS)
    writer.add_rope_dimension_count(_HIDDEN // _HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types(
        [TokenType.CONTROL if token == _END else TokenType.NORMAL for token, _ in vocabulary]
    )
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(_TEMPLATE)

    random = np.random.default_rng(11)

    def add(name: str, values: NDArray[Any]) -> None:
        writer.add_tensor(f"{name}.weight", np.ascontiguousarray(values, dtype=np.float32))

    def noise(rows: int, columns: int, size: float = 1.0) -> NDArray[np.float64]:
        return random.normal(0, size / np.sqrt(columns), (rows, columns))

    # Each token has a dimension of its own, so the output weights are the table of followers; what the layers add stirs it.
    quiet = _NOISE / np.sqrt(size)
    add("token_embd", np.eye(size))
    for i in range(_LAYERS):
        add(f"blk.{i}.attn_norm", np.ones(size))
        for part in ("attn_q", "attn_k", "attn_v"):
            add(f"blk.{i}.{part}", noise(_HIDDEN, size))
        add(f"blk.{i}.attn_output", noise(size, _HIDDEN, quiet))
        add(f"blk.{i}.ffn_norm", np.ones(size))
        add(f"blk.{i}.ffn_gate", noise(_HIDDEN, size))
        add(f"blk.{i}.ffn_up", noise(_HIDDEN, size))
        add(f"blk.{i}.ffn_down", noise(size, _HIDDEN, quiet))
    add("output_norm", np.full(size, size**-0.5))
    add("output", followers(tokenizer).T)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Serve until the process is ended."""
    import xllamacpp

    path = Path(sys.argv[1]) / "model.gguf"
    write_model(path)
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.model_alias = {NAME}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = _CONTEXT * _SLOTS
    params.n_parallel = _SLOTS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.warmup = False
    # Else the end of a text, which may follow any word but none often, is mostly cut away.
    params.sampling.top_k, params.sampling.min_p = 0, 0.0
    server = xllamacpp.Server(params)
    sys.stdout.write(f"{server.listening_address}\n")
    sys.stdout.flush()
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
