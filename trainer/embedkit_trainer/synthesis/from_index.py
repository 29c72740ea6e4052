"""Queries for the chunks of a corpus, under a task that its owner describes; what they find is mined and judged."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from embedkit.errors import InputError
from embedkit_trainer.mining.negatives import MiningConfig, Scorer, Search
from embedkit_trainer.synthesis.answers import Reason, Rejected, parse_example
from embedkit_trainer.synthesis.budget import Forecast
from embedkit_trainer.synthesis.chunks import Chunk, Draw, Sample
from embedkit_trainer.synthesis.from_index_judge import Cases, JudgePlan, JudgeStore, fill
from embedkit_trainer.synthesis.from_index_rows import RowsReport, read_queries, write_judged, write_mined
from embedkit_trainer.synthesis.languages import LANGUAGES
from embedkit_trainer.synthesis.plan import PlannedRequest, RequestPlan
from embedkit_trainer.synthesis.running import Progress, Run, RunReport
from embedkit_trainer.synthesis.settings import SynthesisConfig, TypeConfig
from embedkit_trainer.synthesis.store import Spent, Store
from embedkit_trainer.synthesis.types import TaskType

#: The types of the two requests, as templates name them.
QUERY, JUDGE = "from-index", "from-index-judge"
_KIND = TaskType(
    QUERY, query="user_query", positive="passage", pool=False, words={"user_query": 12, "passage": 0}
)
_SCHEMA = {
    "type": "object",
    "properties": {"user_query": {"type": "string"}},
    "required": ["user_query"],
    "additionalProperties": False,
}
_NO_CHUNK = Chunk(-1, "", "")
_LONGEST_TASK = 2000


@dataclass(frozen=True, slots=True)
class FromIndexConfig:
    """Say what is written for which chunks.

    `origin` names the corpus and the filter that its chunks passed: an output folder belongs to them. `each` is how
    often a chunk may be drawn. With `judge` the model reads each query's `candidates` nearest passages and its own.
    """

    task: str
    origin: str
    each: int = 1
    judge: bool = False
    candidates: int = 8
    mining: MiningConfig = field(default_factory=MiningConfig)

    def __post_init__(self) -> None:
        if not self.task.strip() or not self.task.isprintable() or len(self.task) > _LONGEST_TASK:
            raise InputError(
                f"the task must be one line of at most {_LONGEST_TASK:,} printable characters: say what is searched for, "
                "such as: Given a question about the product, find the passage of the manual that answers it"
            )


@dataclass(frozen=True, slots=True)
class FromIndexReport:
    """Tell how the requests went and what became of the rows; `judging` is None where nobody judged."""

    queries: RunReport
    judging: RunReport | None
    rows: RowsReport
    folder: str


@dataclass(frozen=True, slots=True)
class ChunkRequest(PlannedRequest):
    """Ask for a query that a chunk answers; only the query is the model's."""

    chunk: Chunk = _NO_CHUNK

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema that an answer has to meet."""
        return _SCHEMA

    def parse(self, text: str, finish_reason: str) -> dict[str, Any]:
        """Return the query with the chunk's text. Raises answers.Rejected."""
        found = parse_example(text, ("user_query",), self.prompt, finish_reason)
        query, passage = (" ".join(t.casefold().split()) for t in (found["user_query"], self.chunk.shown))
        if query in passage and 2 * len(query) > len(passage):
            raise Rejected(Reason.PROMPT_ECHO, "the query copies the passage")
        return {**found, "passage": self.chunk.text}

    def about(self) -> dict[str, Any]:
        """Return what a store keeps of the request."""
        own = {"document_id": self.chunk.document_id, "chunk_id": self.chunk.id}
        return PlannedRequest.about(self) | own


class ChunkPlan(RequestPlan):
    """Plan the queries: request i is for chunk i of a sample; all else is drawn anew.

    The language is the chunk's own, unless the config names languages.
    """

    def __init__(
        self, config: SynthesisConfig, wanted: FromIndexConfig, sample: Sequence[Chunk] | Sample
    ) -> None:
        super().__init__(_of_type(config, QUERY, wanted.task), {})
        self._wanted, self._sample = wanted, sample

    @property
    def parts(self) -> dict[str, str]:
        """Digests of what the plan is made of, task and index among them."""
        own = {"task": self._wanted.task, "index": self._wanted.origin}
        return {**super().parts, "languages": str(sorted(self.config.languages.items())), **own}

    def request(self, number: int) -> ChunkRequest:
        """Return request `number`, from 0."""
        source = random.Random(f"{self.config.seed}/{QUERY}/{number}")
        chunk = self._sample[number]
        model = self._models.draw(source)
        template = source.choice(self.templates[QUERY])
        drawn = self._draw(source, template)
        code = self._languages.draw(source) if self.config.languages else chunk.lang
        filled = {
            "task": self._wanted.task,
            "passage": chunk.shown,
            "language": LANGUAGES.get(code, "the language in which a reader of the passage would ask"),
        }
        prompt = template.render(drawn | fill(template.name, template.filled, filled))
        return ChunkRequest(
            number, _KIND, template, model, prompt, self._wanted.task, (code, chunk.lang), drawn, chunk
        )  # fmt: skip


def own_config(config: SynthesisConfig, output: str | Path) -> SynthesisConfig:
    """Return a synthesis that writes to `output`, with the templates of this step in front of the config's own."""
    shipped = Path(str(resources.files("embedkit_trainer.synthesis") / "templates")) / QUERY
    folders = ((str(shipped),) if config.shipped_templates else ()) + config.templates
    return replace(
        config, output=str(output), rows=str(Path(output) / "rows"), templates=folders, shipped_templates=False
    )  # fmt: skip


def write_from_index(
    config: SynthesisConfig,
    wanted: FromIndexConfig,
    draw: Draw,
    search: Search,
    positive_scores: Scorer,
    *,
    retry_failed: bool = False,
    announce: Callable[[Forecast], object] = lambda _: None,
    tell: Callable[[Progress], object] = lambda _: None,
    stop_wanted: Callable[[], bool] = lambda: False,
) -> FromIndexReport:
    """Write queries for the chunks that are drawn, then rows with negatives that `search` finds.

    `config` is `own_config`'s. `search` and `positive_scores` are those of `mining.negatives`. A run goes on where it
    was stopped; with a judge a row is written once it was judged. All rows are held in memory while they are mined.
    """
    output = Path(config.output)
    sample = Sample(output / "chunks.jsonl")
    plan = ChunkPlan(config, wanted, sample)
    told: dict[str, Any] = {"announce": announce, "tell": tell, "stop_wanted": stop_wanted}
    judging: RunReport | None = None
    with ExitStack() as held:
        held.callback(sample.close)
        store = held.enter_context(Store(output / "store", plan.digest, plan.parts))
        sample.extend(draw, config.examples, wanted.each)
        if not len(sample):
            raise InputError("the index holds no chunk with enough text for a query: check --where")
        total = min(config.examples, len(sample))
        judge_config = _of_type(config, JUDGE, wanted.task)
        cases = Cases(search, positive_scores, wanted.candidates, wanted.mining)
        judge = JudgePlan(judge_config, wanted.task, cases) if wanted.judge else None
        judged = (
            held.enter_context(JudgeStore(output / "judge", judge.digest, judge.parts, cases))
            if judge
            else None
        )
        plan.config = _less(plan.config, judged.spent if judged else Spent())
        queries = asyncio.run(Run(plan, total, store, retry_failed=retry_failed, **told).run())
        records = read_queries(output / "store", total)
        if not records:
            return FromIndexReport(queries, None, RowsReport(), config.rows)
        path = Path(config.rows) / QUERY / "rows.jsonl"
        if judge is None or judged is None:
            rows = write_mined(path, records, _KIND, search, positive_scores, wanted.mining)
            return FromIndexReport(queries, None, rows, config.rows)
        cases.set_records(records, _KIND)
        judge.config = _less(judge.config, store.spent)
        if not queries.stopped:
            judging = asyncio.run(Run(judge, total, judged, retry_failed=retry_failed, **told).run())
        rows = write_judged(path, records, _KIND, output / "judge", wanted.mining.negatives)
    return FromIndexReport(queries, judging, rows, config.rows)


def _of_type(config: SynthesisConfig, kind: str, task: str) -> SynthesisConfig:
    """Return the config with both types of this step declared, and one of them asked for."""
    own = [
        TypeConfig(name, query="user_query", positive="passage", pool=False, instruction=task)
        for name in (QUERY, JUDGE)
    ]
    return replace(config, types=(*config.types, *own), shares={kind: 1.0})


def _less(config: SynthesisConfig, spent: Spent) -> SynthesisConfig:
    """Return the config with ceilings from which the other step's requests are taken off."""
    taken = (
        ("max_requests", spent.requests),
        ("max_tokens", spent.tokens_in + spent.tokens_out + spent.lost_tokens),
        ("max_cost", spent.cost + spent.lost_cost),
    )
    left = {key: getattr(config, key) - n for key, n in taken if getattr(config, key) is not None}
    return replace(config, **left)
