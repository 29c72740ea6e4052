"""A synthesis as frozen dataclasses: what its TOML file holds, and the paper's values where it is silent."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from embedkit_trainer.config.schema import suggest
from embedkit_trainer.synthesis.languages import LANGUAGES
from embedkit_trainer.synthesis.templates import weights_of
from embedkit_trainer.synthesis.types import BUILT_IN, TaskType

StructuredOutput = Literal["auto", "on", "off"]
PUBLIC_URL = "https://api.openai.com/v1"
#: What of a request is not for `extra_body`: several answers, or longer ones, would cost more than was booked.
_OWN = frozenset(("model", "messages", "stream", "n", "max_tokens", "max_completion_tokens"))


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Name one model, where it is served and what it costs.

    `share` is its part of the requests, relative to the others'. `api_key_env` names the environment variable that
    holds the key; `api_version` asks for Azure's older addresses. Prices are per million tokens, in whatever
    currency the ceiling is in; None: not known. `structured_output`: JSON schema where the server has it (auto),
    always, never. `max_tokens` bounds an answer; `limit_name` is what the server calls that (OpenAI's newer models:
    max_completion_tokens). `batch_discount` is the part of the price that the Batch API takes off.
    """

    name: str = ""
    base_url: str = PUBLIC_URL
    api_key_env: str = "OPENAI_API_KEY"
    api_version: str | None = None
    share: float = 1.0
    price_input: float | None = None
    price_output: float | None = None
    batch_discount: float = 0.5
    structured_output: StructuredOutput = "auto"
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 4096
    limit_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    extra_body: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BrainstormConfig:
    """Say how pools grow: `requests` for each type, `tasks` asked for in each.

    Tasks whose `similarity` (Jaccard, of runs of four characters) to one in the pool reaches the number
    are left out.
    """

    requests: int = 100
    tasks: int = 20
    similarity: float = 0.8


@dataclass(frozen=True, slots=True)
class BatchConfig:
    """Bound the files of the Batch API, by OpenAI's limits where nothing is said; `poll` is the longest wait between
    two looks at a batch, in seconds.
    """

    requests: int = 50_000
    megabytes: float = 200.0
    poll: float = 60.0


@dataclass(frozen=True, slots=True)
class TypeConfig:
    """Declare a task type of one's own; the fields are those of `types.TaskType`."""

    name: str
    query: str
    positive: str
    negative: str | None = None
    pool: bool = True
    instruction: str = ""
    pair: bool = False


@dataclass(frozen=True, slots=True)
class SynthesisConfig:
    """Hold a whole synthesis; `settings_file.load_synthesis` reads one.

    `examples` is how many are asked for; it may be raised later, and all ceilings hold for the data set, not for a
    run. `shares` (type), `languages` (code) and `pairs` ("en-de") are relative weights that replace the paper's;
    `placeholders` gives, by type ("*": all) and name, values or weights that replace a template's.
    """

    seed: int = 42
    examples: int = 500_000
    output: str = "synthesis"
    pools: str = ""
    rows: str = ""
    templates: tuple[str, ...] = ()
    shipped_templates: bool = True
    shares: dict[str, float] = field(default_factory=dict)
    languages: dict[str, float] = field(default_factory=dict)
    pairs: dict[str, float] = field(default_factory=dict)
    placeholders: dict[str, dict[str, Any]] = field(default_factory=dict)
    types: tuple[TypeConfig, ...] = ()
    models: tuple[ModelConfig, ...] = ()
    brainstorm: BrainstormConfig = field(default_factory=BrainstormConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    concurrency: int = 16
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    timeout: float = 120.0
    retries: int = 6
    longest_wait: float = 120.0
    repair: bool = False
    max_requests: int | None = None
    max_tokens: int | None = None
    max_cost: float | None = None

    @property
    def task_types(self) -> dict[str, TaskType]:
        """The types by name, built-in ones and the file's, with the shares that hold."""
        own = {t.name: TaskType(**{f.name: getattr(t, f.name) for f in fields(t)}) for t in self.types}
        found = {t.name: t for t in BUILT_IN} | own
        return {name: _with_share(t, self.shares) for name, t in found.items()}


def at_batch_prices(config: SynthesisConfig) -> SynthesisConfig:
    """Return the config with what each model's requests cost in batches."""
    from dataclasses import replace

    def less(price: float | None, model: ModelConfig) -> float | None:
        return None if price is None else price * (1 - model.batch_discount)

    models = [
        replace(m, price_input=less(m.price_input, m), price_output=less(m.price_output, m))
        for m in config.models
    ]
    return replace(config, models=tuple(models))


def _with_share(kind: TaskType, shares: Mapping[str, float]) -> TaskType:
    from dataclasses import replace

    return replace(kind, share=shares.get(kind.name, 0.0)) if shares else kind


def problems_of(config: SynthesisConfig) -> Iterator[str]:
    """Yield one line for each value that makes no sense, beginning with its key path."""
    for key, least in (
        ("examples", 1),
        ("concurrency", 1),
        ("retries", 0),
        ("max_requests", 1),
        ("max_tokens", 1),
    ):
        value = getattr(config, key)
        if value is not None and value < least:
            yield f"{key} = {value} is too small: give {least} or more"
    for key in ("requests_per_minute", "tokens_per_minute", "timeout", "longest_wait", "max_cost"):
        value = getattr(config, key)
        if value is not None and value <= 0:
            yield f"{key} = {value} must be above 0"
    yield from _brainstorm(config.brainstorm)
    for key, top in (("requests", 50_000), ("megabytes", 200), ("poll", 3600)):
        value = getattr(config.batch, key)
        if not 0 < value <= top:
            yield f"batch.{key} = {value} is out of range: give a number above 0, {top:,} at most"
    for key in ("output", "pools", "rows", "templates"):
        if "\0" in "".join(getattr(config, key)):
            yield f"{key} holds the character U+0000, which no path has: take it out"
    yield from _weights(config)
    yield from _models(config)
    yield from _types(config)
    for kind, names in config.placeholders.items():
        if kind != "*" and kind not in config.task_types:
            yield f"placeholders.{kind} is no type: {suggest(kind, config.task_types)}"
        for name, values in names.items():
            if weights_of(values) is None:
                yield f"placeholders.{kind}.{name} must be a list of values or a table of weights"


def _brainstorm(brainstorm: BrainstormConfig) -> Iterator[str]:
    if brainstorm.requests < 1 or not 1 <= brainstorm.tasks <= 100:
        yield "brainstorm asks for nothing or too much: give requests of 1 or more and tasks from 1 to 100"
    if not 0.3 <= brainstorm.similarity <= 1:
        yield f"brainstorm.similarity = {brainstorm.similarity} is out of range: give a number from 0.3 to 1"


def _weights(config: SynthesisConfig) -> Iterator[str]:
    for key, known in (("shares", config.task_types), ("languages", LANGUAGES)):
        table: Mapping[str, float] = getattr(config, key)
        for name, weight in table.items():
            if name not in known:
                yield f"{key}.{name} is unknown: {suggest(name, known)}"
            if weight < 0:
                yield f"{key}.{name} = {weight} is negative: give 0 or more"
        if table and not any(weight > 0 for weight in table.values()):
            yield f"{key} leaves nothing to draw: give one of them a weight above 0"
    for pair, weight in config.pairs.items():
        source, _, target = pair.partition("-")
        if source not in LANGUAGES or target not in LANGUAGES or source == target:
            yield f'pairs.{pair} is no pair of two languages: write it as "en-de"'
        if weight <= 0:
            yield f"pairs.{pair} = {weight} must be above 0"


def _models(config: SynthesisConfig) -> Iterator[str]:
    if not config.models:
        yield 'models is empty: add [[models]] with name = "…" and its base_url'
    if config.models and not any(m.share > 0 for m in config.models):
        yield "models: no share is above 0, so no model would be asked"
    names = [m.name for m in config.models]
    for name in sorted({n for n in names if names.count(n) > 1}):
        yield f"models has {names.count(name)} called {name!r}: keep one"
    for i, model in enumerate(config.models):
        where = f"models.{model.name or i}"
        if not model.name:
            yield f"{where}.name is missing: write the model's name as the server knows it"
        yield from _address(where, model.base_url)
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", model.api_key_env):
            # Its value is not shown: it may be the key itself.
            yield f"{where}.api_key_env is no name of a variable: name the one that holds the key"
        yield from _extra_body(where, model)
        if model.max_tokens < 16:
            yield f"{where}.max_tokens = {model.max_tokens} is too small: give 16 or more"
        for key, top in (
            ("share", 1e9),
            ("price_input", 1e9),
            ("price_output", 1e9),
            ("batch_discount", 1),
            ("temperature", 2),
            ("top_p", 1),
        ):
            value = getattr(model, key)
            if value is not None and not 0 <= value <= top:
                yield f"{where}.{key} = {value} is out of range: give a number from 0 to {top:g}"
        if (model.price_input is None) != (model.price_output is None):
            yield f"{where} has one price of two: give price_input and price_output, per million tokens"


def _extra_body(where: str, model: ModelConfig) -> Iterator[str]:
    import json

    for key in sorted(set(model.extra_body) & _OWN):
        yield f"{where}.extra_body.{key} would undo what the ceilings reckon with: take it out, or see {where}.max_tokens"
    try:
        json.dumps(model.extra_body, allow_nan=False)
    except (TypeError, ValueError) as e:
        yield f"{where}.extra_body holds what JSON has not: {e}"


def _address(where: str, base_url: str) -> Iterator[str]:
    import ipaddress
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(base_url)
        _ = parts.port  # refused where it is none
        host = parts.hostname or ""
        if "[" in parts.netloc:
            ipaddress.IPv6Address(host.partition("%")[0])
        usable = parts.scheme in ("http", "https") and bool(host)
    except ValueError:
        usable = False
    if not usable or any(c.isspace() or not c.isprintable() for c in base_url):
        yield f"{where}.base_url is no web address: write it as {PUBLIC_URL}"
    elif "@" in parts.netloc:
        yield f"{where}.base_url holds a user or a password: take them out, the key belongs into the variable of api_key_env"


def _types(config: SynthesisConfig) -> Iterator[str]:
    for kind in config.types:
        texts = [kind.query, kind.positive, *([kind.negative] if kind.negative is not None else [])]
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,40}", kind.name or ""):
            yield f"types.{kind.name}.name must be lower-case letters, digits and hyphens: folders are called so"
        if not all(texts) or len(set(texts)) < len(texts):
            yield f"types.{kind.name}: query, positive and negative must be different names of fields"
        if not kind.pool and not kind.instruction.strip():
            yield f"types.{kind.name} has neither pool nor instruction: rows would come without a task"
        if not config.shares or kind.name not in config.shares:
            yield f"types.{kind.name} has no share: set shares.{kind.name}, and those of the other types you want"
