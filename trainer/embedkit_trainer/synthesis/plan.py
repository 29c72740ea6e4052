"""The request plan: what request number i asks for, as a pure function of the seed and i."""

from __future__ import annotations

import hashlib
import json
import random
from bisect import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from typing import Any, Generic, TypeVar

from embedkit.errors import InputError
from embedkit_trainer.synthesis.answers import parse_example, parse_tasks
from embedkit_trainer.synthesis.languages import LANGUAGES, default_weights, pair_weights
from embedkit_trainer.synthesis.settings import ModelConfig, SynthesisConfig
from embedkit_trainer.synthesis.templates import Template, load_templates, weights_of
from embedkit_trainer.synthesis.types import TaskType, pool_schema

T = TypeVar("T")


class Choice(Generic[T]):
    """Draw one of several things by their weights."""

    def __init__(self, weights: Iterable[tuple[T, float]]) -> None:
        kept = [(thing, weight) for thing, weight in weights if weight > 0]
        self.things = [thing for thing, _ in kept]
        self._sums = list(accumulate(weight for _, weight in kept))

    def draw(self, source: random.Random) -> T:
        """Return one thing, drawn with one number of `source`."""
        return self.things[min(bisect(self._sums, source.random() * self._sums[-1]), len(self.things) - 1)]


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """Hold what one request asks for. `placeholders` are those that were drawn; `languages` are the query's and the documents'."""

    number: int
    type: TaskType
    template: Template
    model: ModelConfig
    prompt: str
    instruction: str = ""
    languages: tuple[str, str] = ("en", "en")
    placeholders: Mapping[str, str] = field(default_factory=dict)

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema that an answer has to meet."""
        return pool_schema() if self.template.step == "brainstorm" else self.type.schema

    def parse(self, text: str, finish_reason: str) -> dict[str, Any]:
        """Return the answer in a model's text. Raises answers.Rejected."""
        if self.template.step == "brainstorm":
            return {"tasks": parse_tasks(text, self.prompt, finish_reason)}
        return dict(parse_example(text, self.type.fields, self.prompt, finish_reason))

    def about(self) -> dict[str, Any]:
        """Return what a store keeps of the request."""
        return {
            "request": self.number,
            "type": self.type.name,
            "model": self.model.name,
            "template": self.template.name,
            "instruction": self.instruction,
            "languages": list(self.languages),
            "placeholders": dict(self.placeholders),
        }


class _Plan:
    """Hold what both steps draw from: templates by type, placeholders, models."""

    step = ""

    def __init__(self, config: SynthesisConfig, kinds: Sequence[TaskType]) -> None:
        self.config = config
        self.kinds = kinds
        templates = load_templates(config.templates, config.shipped_templates)
        self.templates = {
            kind.name: [t for t in templates if t.type == kind.name and t.step == self.step] for kind in kinds
        }
        known = config.task_types
        for template in templates:
            if template.type not in known:
                raise InputError(
                    f"template {template.name} is for the type {template.type!r}, which nothing declares: add [[types]] to the config"
                )
        for name, found in self.templates.items():
            if not found:
                raise InputError(
                    f"the type {name} has no template for the step {self.step!r}: put one into a folder and name it in `templates`"
                )
        self._drawn = {
            t.name: [(name, Choice(w.items())) for name, w in sorted(self._weights(t).items())]
            for found in self.templates.values()
            for t in found
        }
        self._models = Choice((m, m.share) for m in config.models)
        self._check_placeholders()

    @property
    def digest(self) -> str:
        """Return what names this plan: the same seed, weights, templates, models and pools give the same."""
        return _digest(self.parts)

    @property
    def parts(self) -> dict[str, str]:
        """Digests of what the plan is made of, by name, so that one can say what differs."""
        config = self.config
        models = [
            (m.name, m.share, m.temperature, m.top_p, m.max_tokens, m.extra_body) for m in config.models
        ]
        return {
            "seed": str(config.seed),
            "types": _digest([asdict(kind) for kind in self.kinds]),
            "templates": _digest(
                [asdict(t) for name in sorted(self.templates) for t in self.templates[name]]
            ),
            "placeholders": _digest(config.placeholders),
            "models": _digest(models),
        }

    @property
    def declared(self) -> dict[str, dict[str, list[str]]]:
        """What each template's placeholders are drawn from."""
        return {
            name: {key: choice.things for key, choice in choices} for name, choices in self._drawn.items()
        }

    def _weights(self, template: Template) -> dict[str, Mapping[str, float]]:
        given = {**self.config.placeholders.get("*", {}), **self.config.placeholders.get(template.type, {})}
        return {
            name: weights_of(given[name]) or w if name in given else w for name, w in template.drawn.items()
        }

    def _check_placeholders(self) -> None:
        for kind, names in self.config.placeholders.items():
            found = self.templates.get(kind)
            for name in names if found else ():
                if not any(name in t.drawn for t in found or ()) and self.step == "generate":
                    raise InputError(
                        f"placeholders.{kind}.{name} is in no template of that type: check the name"
                    )

    def _draw(self, source: random.Random, template: Template) -> dict[str, str]:
        return {name: choice.draw(source) for name, choice in self._drawn[template.name]}


class RequestPlan(_Plan):
    """Plan the examples. Raises InputError where a pool that is needed holds no tasks.

    >>> RequestPlan(config, pools).request(123_456)     # needs none of those before it
    """

    step = "generate"

    def __init__(self, config: SynthesisConfig, pools: Mapping[str, Sequence[str]]) -> None:
        kinds = [kind for kind in config.task_types.values() if kind.share > 0]
        super().__init__(config, kinds)
        for kind in kinds:
            if kind.pool and not pools.get(kind.name):
                raise InputError(
                    f"the pool {config.pools}/{kind.name}.jsonl holds no tasks: run `embedkit synth brainstorm` first "
                    "(with --retry-failed, where no answer of an earlier run could be used), or write some"
                )
        self.pools = {kind.name: pools[kind.name] for kind in kinds if kind.pool}
        self._kinds = Choice((kind, kind.share) for kind in kinds)
        weights = config.languages or default_weights()
        self._languages = Choice(weights.items())
        pairs = (
            {(a, b): w for (a, _, b), w in ((p.partition("-"), w) for p, w in config.pairs.items())}
            if config.pairs
            else pair_weights(weights)
        )
        self._pairs = Choice(pairs.items())
        if any(kind.pair for kind in kinds) and not self._pairs.things:
            raise InputError(
                "languages holds one alone, and pairs of languages need two: set pairs, or shares.bitext = 0"
            )
        self._language_parts = _digest([sorted(weights.items()), sorted(map(str, pairs.items()))])

    @property
    def parts(self) -> dict[str, str]:
        """Digests of what the plan is made of, pools and languages among them."""
        pools = {f"pool of {name}": _digest(list(tasks)) for name, tasks in sorted(self.pools.items())}
        return {**super().parts, "languages": self._language_parts, **pools}

    def request(self, number: int) -> PlannedRequest:
        """Return request `number`, from 0; everything in it is drawn anew."""
        source = random.Random(f"{self.config.seed}/generate/{number}")
        kind = self._kinds.draw(source)
        model = self._models.draw(source)
        template = source.choice(self.templates[kind.name])
        if kind.pair:
            languages = self._pairs.draw(source)
        else:
            language = self._languages.draw(source)
            languages = (language, language)
        filled = {
            "language": LANGUAGES[languages[0]],
            "language_q": LANGUAGES[languages[0]],
            "language_d": LANGUAGES[languages[1]],
        }
        instruction = source.choice(self.pools[kind.name]) if kind.pool else _filled(kind.instruction, filled)
        filled["task"] = instruction
        drawn = self._draw(source, template)
        values = drawn | {name: _fill(template, name, filled) for name in template.filled}
        return PlannedRequest(
            number, kind, template, model, template.render(values), instruction, languages, drawn
        )


class BrainstormPlan(_Plan):
    """Plan the brainstorm: request i is for the type i modulo their number."""

    step = "brainstorm"

    def __init__(self, config: SynthesisConfig) -> None:
        super().__init__(
            config, [kind for kind in config.task_types.values() if kind.share > 0 and kind.pool]
        )

    @property
    def total(self) -> int:
        """How many requests the config asks for."""
        return self.config.brainstorm.requests * len(self.kinds)

    @property
    def parts(self) -> dict[str, str]:
        """Digests of what the plan is made of."""
        return {**super().parts, "brainstorm.tasks": str(self.config.brainstorm.tasks)}

    def request(self, number: int) -> PlannedRequest:
        """Return request `number`, from 0."""
        source = random.Random(f"{self.config.seed}/brainstorm/{number}")
        kind = self.kinds[number % len(self.kinds)]
        model = self._models.draw(source)
        template = source.choice(self.templates[kind.name])
        drawn = self._draw(source, template)
        filled = {"count": str(self.config.brainstorm.tasks), "language": "English"}
        values = drawn | {name: _fill(template, name, filled) for name in template.filled}
        return PlannedRequest(number, kind, template, model, template.render(values), placeholders=drawn)


Plan = RequestPlan | BrainstormPlan


def _fill(template: Template, name: str, filled: Mapping[str, str]) -> str:
    source = template.filled[name]
    if source not in filled:
        raise InputError(
            f"template {template.name}: the placeholder {name!r} is filled from {source!r}, which the step {template.step} has not"
        )
    return filled[source]


def _filled(text: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
