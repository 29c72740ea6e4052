"""Qwen3-Reranker: a causal model that answers yes or no; the score is the difference of the two logits.

Template and reading are those of the model's authors (arXiv 2506.05176, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from embedkit.errors import InputError
from embedkit.rerankers.base import Reranker, RerankerInfo, Scores
from embedkit.rerankers.pairs import PairIds, fitting_query
from embedkit.rerankers.running import Loading, Runner

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

_LONGEST = 8192
_BEFORE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
_AFTER = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
_PAIR = "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {text}"
_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"


class Qwen3Reranker(Reranker):
    """Score by log p(yes) - log p(no) after the model's own template, which takes an instruction."""

    def __init__(self, info: RerankerInfo, tokenizer: Tokenizer, run: Runner) -> None:
        self.info = info
        self._tokenizer = tokenizer
        self._run = run
        self._before, self._after = self._ids(_BEFORE), self._ids(_AFTER)
        room = info.max_length - len(self._before) - len(self._after)
        if room < 8:
            raise InputError(
                f"max_length is {info.max_length}: the template alone takes {info.max_length - room} tokens, raise it"
            )
        self._room = room

    def _score(self, query: str, texts: Sequence[str], instruction: str | None) -> Scores:
        sentence = instruction or _INSTRUCTION
        frame = len(self._ids(_PAIR.format(instruction=sentence, query="", text="")))
        if frame >= self._room:
            raise InputError(
                f"the instruction leaves no room in the {self.info.max_length:,} tokens of {self.info.name}: shorten it"
            )
        query = fitting_query(self._tokenizer, query, self._room - frame, self.info.name)
        rendered = [_PAIR.format(instruction=sentence, query=query, text=text) for text in texts]
        rows = [
            PairIds([*self._before, *encoding.ids[: self._room], *self._after])
            for encoding in self._tokenizer.encode_batch(rendered, add_special_tokens=False)
        ]
        return Scores(self._run(rows), sum(len(row) for row in rows))

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


def open_causal(loading: Loading) -> Qwen3Reranker:
    """Load a causal reranker. Raises InputError for a family whose template is not known here."""
    name, folder = loading.name, loading.folder
    if folder.model_type != "qwen3":
        raise InputError(
            f"{name} is a causal model ({folder.architecture}): of those only Qwen3-Reranker's template is known here"
        )
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    loaded = loading.tokenizer()
    yes, no = (loaded.backend_tokenizer.token_to_id(word) for word in ("yes", "no"))
    if yes is None or no is None:
        raise InputError(f"{name}: its tokenizer has no token for yes and no, so it is no Qwen3-Reranker")
    tokenizer = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    longest = folder.longest(loaded.model_max_length, loading.max_length)
    if loading.max_length is None:
        longest = min(longest, _LONGEST)
    model = loading.model(AutoModelForCausalLM)

    def logits(inputs: dict[str, Tensor]) -> Tensor:
        last: Tensor = model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1].float()
        return last[:, yes] - last[:, no]

    # Padded on the left, so that the last place holds each row's last token.
    run = Runner(
        logits,
        loading.device,
        pad=int(loaded.pad_token_id or 0),
        token_budget=loading.token_budget,
        left=True,
    )
    return Qwen3Reranker(RerankerInfo(name, longest, "causal", True), tokenizer, run)
