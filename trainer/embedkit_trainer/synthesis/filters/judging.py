"""An LLM as the judge of consistency: which of a row's texts serves its query best? It is not told which is the positive."""

from __future__ import annotations

import asyncio
import hashlib
import json
import pickle
import random
import tempfile
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import IO, Any, ClassVar

from embedkit.errors import InputError, ServerError
from embedkit_trainer.data.rows import Row
from embedkit_trainer.synthesis.answers import Reason, Rejected, read_numbers
from embedkit_trainer.synthesis.filters.example import Changed, Dropped, Example, Outcome
from embedkit_trainer.synthesis.filters.ranking import swapped
from embedkit_trainer.synthesis.from_index_judge import JudgeStore, fill
from embedkit_trainer.synthesis.plan import PlannedRequest, RequestPlan, _digest
from embedkit_trainer.synthesis.running import Run, RunReport
from embedkit_trainer.synthesis.settings import SynthesisConfig, TypeConfig
from embedkit_trainer.synthesis.store import EXAMPLES, FAILURES, read_records

#: The type of the request, as templates name it.
CONSISTENCY = "consistency"
_NO_TASK = "Given a query, find the text that answers it or fits it best"
_SCHEMA = {
    "type": "object",
    "properties": {"ranking": {"type": "array", "items": {"type": "integer"}}},
    "required": ["ranking"],
    "additionalProperties": False,
}
#: Does the work of asking, given as a function that takes `Run`'s `announce`, `tell` and `stop_wanted`.
Ask = Callable[[Callable[..., RunReport]], RunReport]


@dataclass(frozen=True, slots=True)
class Case:
    """Hold what is asked about a row: the texts that may serve its query, the positive first, none twice."""

    task: str
    query: str
    texts: tuple[str, ...]

    @classmethod
    def of(cls, row: Row) -> Case:
        """Return a row's case."""
        return cls(
            row.instruction or _NO_TASK, row.query, tuple(dict.fromkeys((row.positive, *row.negatives)))
        )

    @property
    def key(self) -> str:
        """What names the case, in whatever file and line its row stands."""
        text = json.dumps([self.task, self.query, *self.texts])
        return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


class Cases:
    """Keep cases in a file without a name, by number, until they are asked about. Memory: some 300 bytes a case."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._numbers: dict[str, int] = {}
        self._next = 0
        self._places: dict[int, int] = {}

    def __contains__(self, number: object) -> bool:
        """Return whether a row that is judged now has that number."""
        return number in self._places

    def __getitem__(self, number: int) -> Case:
        """Return case `number`."""
        self._file.seek(self._places[number])
        found: Case = pickle.load(self._file)
        return found

    @property
    def total(self) -> int:
        """One more than the largest number."""
        return self._next

    def know(self, key: str, number: int) -> None:
        """Take the number that a case has from an earlier run."""
        self._numbers[key] = number
        self._next = max(self._next, number + 1)

    def add(self, row: Row) -> int:
        """Return the number of a row's case: that of an earlier run, or a new one."""
        case = Case.of(row)
        number = self._numbers.setdefault(case.key, self._next)
        self._next = max(self._next, number + 1)
        if number not in self._places:
            self._places[number] = self._file.seek(0, 2)
            pickle.dump(case, self._file, pickle.HIGHEST_PROTOCOL)
        return number


@dataclass(frozen=True, slots=True)
class CaseRequest(PlannedRequest):
    """Ask for a ranking; `order` says which text of the case each number of the prompt is."""

    key: str = ""
    order: tuple[int, ...] = ()

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema that an answer has to meet."""
        return _SCHEMA

    def parse(self, text: str, finish_reason: str) -> dict[str, Any]:
        """Return the places of the case's texts, the best first. Raises answers.Rejected."""
        numbers, count = read_numbers(text, finish_reason, "ranking"), len(self.order)
        if not all(type(n) is int for n in numbers) or sorted(numbers) != list(range(1, count + 1)):
            raise Rejected(Reason.WRONG_SCHEMA, f"each of the numbers 1 to {count} must stand in it once")
        return {"ranking": [self.order[n - 1] for n in numbers]}

    def about(self) -> dict[str, Any]:
        """Return what a store keeps of the request."""
        return PlannedRequest.about(self) | {"case": self.key}


class CasePlan(RequestPlan):
    """Plan the judging: template, model and order of the texts are functions of the seed and the case alone."""

    def __init__(self, config: SynthesisConfig, cases: Cases) -> None:
        own = TypeConfig(CONSISTENCY, query="query", positive="text", pool=False, instruction=_NO_TASK)
        shipped = Path(str(resources.files("embedkit_trainer.synthesis") / "templates")) / CONSISTENCY
        config = replace(
            config,
            types=(*config.types, own),
            shares={CONSISTENCY: 1.0},
            templates=((str(shipped),) if config.shipped_templates else ()) + config.templates,
            shipped_templates=False,
        )
        super().__init__(config, {})
        self._cases = cases
        self._kind = replace(self.kinds[0], words={"query": 4, "text": 0})

    @property
    def parts(self) -> dict[str, str]:
        """Digests of what verdicts depend on; the rest of the config may change."""
        drawn = {key: self.config.placeholders.get(key, {}) for key in (CONSISTENCY, "*")}
        found = super().parts | {"placeholders": _digest(drawn)}
        return {key: found[key] for key in ("seed", "templates", "models", "placeholders")}

    def request(self, number: int) -> CaseRequest:
        """Return request `number`; there must be a case of that number."""
        case = self._cases[number]
        source = random.Random(f"{self.config.seed}/{CONSISTENCY}/{case.key}")
        model = self._models.draw(source)
        template = source.choice(self.templates[CONSISTENCY])
        drawn = self._draw(source, template)
        order = list(range(len(case.texts)))
        source.shuffle(order)
        shown = "\n\n".join(f"[{i}]\n{case.texts[n]}" for i, n in enumerate(order, 1))
        filled = {"task": case.task, "query": case.query, "passages": shown}
        values = drawn | fill(template.name, template.filled, filled)
        return CaseRequest(
            number, self._kind, template, model, template.render(values), case.task, ("en", "en"), drawn, case.key,
            tuple(order),
        )  # fmt: skip


class JudgedConsistency:
    """Drop rows of which a model ranks a hard negative above the positive; with `relabel` the two change places.

    As `ranking.ConsistencyFilter` does by an embedder. All rows are read before the first request, so that the forecast
    is of all; they wait in a file without a name. Verdicts are stored in `folder` by what the rows hold: another run is
    asked for none that is there. A row without a usable verdict is dropped as `unjudged`, one without negatives passes.
    """

    name: ClassVar[str] = "consistency"

    def __init__(
        self,
        config: SynthesisConfig,
        folder: Path,
        ask: Ask,
        *,
        relabel: bool = False,
        retry_failed: bool = False,
    ) -> None:
        self._config, self._folder, self._ask = config, folder, ask
        self._relabel, self._retry_failed = relabel, retry_failed
        self.report: RunReport | None = None
        # What is wrong with the config or the folder shows before any row is read.
        with tempfile.TemporaryFile() as file:
            CasePlan(config, Cases(file))

    def check_all(self, batches: Iterator[list[Example]]) -> Iterator[list[Outcome]]:
        """Yield the outcomes, batch by batch.

        Raises InputError at a ceiling, ServerError where some were not answered, KeyboardInterrupt where it was asked
        to stop; what was answered is stored.
        """
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryFile(dir=self._folder.parent) as rows,
            tempfile.TemporaryFile(dir=self._folder.parent) as file,
        ):
            cases = Cases(file)
            plan = CasePlan(self._config, cases)
            with JudgeStore(self._folder, plan.digest, plan.parts, cases) as store:
                for name in (EXAMPLES, FAILURES):
                    for record in read_records(self._folder, name):
                        cases.know(record["case"], record["request"])
                asked = array("q")
                for batch in batches:
                    pickle.dump(batch, rows, pickle.HIGHEST_PROTOCOL)
                    asked.extend(cases.add(e.row) if _is_open(e.row) else -1 for e in batch)
                self.report = self._ask(
                    lambda **told: asyncio.run(
                        Run(plan, cases.total, store, retry_failed=self._retry_failed, **told).run()
                    )
                )
            self._check_done(self.report)
            verdicts = {
                record["request"]: (record["answer"]["ranking"], record["model"])
                for record in read_records(self._folder)
                if record["request"] in cases
            }
            rows.seek(0)
            at = 0
            while at < len(asked):
                batch = pickle.load(rows)
                yield [self._outcome(e, verdicts.get(asked[at + i])) for i, e in enumerate(batch)]
                at += len(batch)

    def _check_done(self, report: RunReport) -> None:
        if report.stopped == "signal":
            raise KeyboardInterrupt
        rest = f"rows still to be judged: {report.left:,}; none was written, and verdicts are kept in {self._folder}"
        if report.stopped:
            ceiling = getattr(self._config, report.stopped)
            raise InputError(
                f"stopped at the ceiling {report.stopped} = {ceiling:,}: {rest}; raise it, and the same command goes on"
            )
        if report.left:
            raise ServerError(
                f"the judge's server left requests unanswered: {rest}; run the same command again later"
            )

    def _outcome(self, example: Example, verdict: tuple[list[int], str] | None) -> Outcome:
        row = example.row
        if not row.negatives:
            return example
        if not _is_open(row):
            return Dropped(example, "inconsistent", "the positive is among the negatives")
        if verdict is None:
            return Dropped(example, "unjudged", "the judge gave no usable answer: --retry-failed asks again")
        ranking, model = verdict
        if ranking[0] == 0:
            return example
        best = row.negatives.index(Case.of(row).texts[ranking[0]])
        place = ranking.index(0) + 1
        detail = f"{model} ranks negatives[{best}] first, the positive {place} of {len(ranking)}"
        if not self._relabel or row.score is not None:
            return Dropped(example, "inconsistent", detail)
        return Changed(example, example.with_row(swapped(row, best)), "relabelled", detail)


def _is_open(row: Row) -> bool:
    """Say whether there is anything to ask: of the same text twice none is better."""
    return bool(row.negatives) and row.positive not in row.negatives
