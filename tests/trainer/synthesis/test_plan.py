"""The plan: a pure function of the seed and the request's number, drawn as the config says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from scipy.stats import chisquare

from embedkit.errors import InputError
from embedkit_trainer.synthesis.languages import LANGUAGES, default_weights, pair_weights
from embedkit_trainer.synthesis.plan import BrainstormPlan, RequestPlan
from embedkit_trainer.synthesis.settings import BrainstormConfig, ModelConfig, SynthesisConfig
from embedkit_trainer.synthesis.types import BUILT_IN

POOLS = {kind.name: [f"{kind.name} task {i}" for i in range(20)] for kind in BUILT_IN if kind.pool}
MODELS = (ModelConfig("gpt-3.5", share=1), ModelConfig("gpt-4", share=3))
CONFIG = SynthesisConfig(models=MODELS)
COUNT = 50_000


def _fits(found: Counter[Any], weights: Mapping[Any, float]) -> None:
    """Assert that counts are drawn from weights: a chi-square test at a level that a right seed passes for good."""
    total = sum(weights.values())
    keys = [k for k, w in weights.items() if w]
    assert set(found) <= set(keys)
    expected = [weights[k] / total * found.total() for k in keys]
    # Where few are expected, they are counted together.
    few = [i for i, e in enumerate(expected) if e < 5]
    kept = [i for i in range(len(keys)) if i not in set(few)]
    seen = [found[keys[i]] for i in kept] + ([sum(found[keys[i]] for i in few)] if few else [])
    wanted = [expected[i] for i in kept] + ([sum(expected[i] for i in few)] if few else [])
    assert chisquare(seen, wanted).pvalue > 1e-3, (seen, wanted)


def test_fifty_thousand_requests_follow_the_config() -> None:
    """Types, models, languages, pairs, tasks, templates and every placeholder are drawn by their weights."""
    plan = RequestPlan(CONFIG, POOLS)
    found: dict[Any, Counter[Any]] = {}
    for number in range(COUNT):
        request = plan.request(number)
        kind = request.type.name
        found.setdefault("type", Counter())[kind] += 1
        found.setdefault("model", Counter())[request.model.name] += 1
        found.setdefault(("template", kind), Counter())[request.template.name] += 1
        if request.type.pair:
            found.setdefault("pair", Counter())[request.languages] += 1
        else:
            found.setdefault("language", Counter())[request.languages] += 1
        if request.type.pool:
            found.setdefault(("task", kind), Counter())[request.instruction] += 1
        for name, value in request.placeholders.items():
            found.setdefault((request.template.name, name), Counter())[value] += 1
    _fits(found["type"], {k.name: k.share for k in BUILT_IN})
    _fits(found["model"], {"gpt-3.5": 1, "gpt-4": 3})
    _fits(found["language"], {(code, code): w for code, w in default_weights().items()})
    _fits(found["pair"], pair_weights(default_weights()))
    for kind, templates in plan.templates.items():
        _fits(found["template", kind], {t.name: 1 for t in templates})
        for template in templates:
            for name, weights in template.drawn.items():
                _fits(found[template.name, name], weights)
    for kind, tasks in POOLS.items():
        _fits(found["task", kind], dict.fromkeys(tasks, 1))


def test_placeholders_are_drawn_independently() -> None:
    """No two placeholders of a request depend on one another."""
    plan = RequestPlan(replace(CONFIG, shares={"sts": 1}), POOLS)
    pairs = [("unit", "high_score"), ("high_score", "low_score"), ("unit", "difficulty")]
    for first, second in pairs:
        drawn = plan.templates["sts"][0].drawn
        seen = Counter(
            (r.placeholders[first], r.placeholders[second]) for r in map(plan.request, range(9000))
        )
        _fits(seen, dict.fromkeys(product(drawn[first], drawn[second]), 1))


def test_the_languages_are_the_papers() -> None:
    """93 languages; English 43.1%, the thirteen of the figure 2.85% each, the others share 19.8%."""
    weights = default_weights()
    assert len(LANGUAGES) == len(weights) == 93
    assert sum(weights.values()) == pytest.approx(1)
    assert weights["en"] == 0.431
    assert weights["pl"] == weights["nl"] == pytest.approx(0.371 / 13)
    assert sum(w for w in weights.values() if w < 0.01) == pytest.approx(0.198)


def test_any_request_without_those_before_it() -> None:
    """Request i is the same whether or not another was planned before, in this process or another plan."""
    plan = RequestPlan(CONFIG, POOLS)
    in_turn = [plan.request(i) for i in range(300)]
    again = RequestPlan(CONFIG, POOLS)
    assert again.request(299) == in_turn[299]
    assert [again.request(i) for i in reversed(range(300))][::-1] == in_turn
    assert RequestPlan(replace(CONFIG, seed=43), POOLS).request(299) != in_turn[299]


def test_weights_of_ones_own() -> None:
    """Shares, languages, pairs and placeholders of the config replace the paper's."""
    config = replace(
        CONFIG,
        shares={"bitext": 1, "sts": 1},
        languages={"de": 1, "pl": 3},
        pairs={"de-pl": 2, "pl-cs": 1},
        placeholders={"*": {"unit": ["line"]}, "sts": {"high_score": {"5": 3, "4": 1}}},
    )
    plan = RequestPlan(config, POOLS)
    requests = [plan.request(i) for i in range(4000)]
    sts = [r for r in requests if r.type.name == "sts"]
    _fits(Counter(r.languages for r in sts), {("de", "de"): 1, ("pl", "pl"): 3})
    _fits(Counter(r.languages for r in requests if r.type.pair), {("de", "pl"): 2, ("pl", "cs"): 1})
    _fits(Counter(r.placeholders["high_score"] for r in sts), {"5": 3, "4": 1})
    assert {r.placeholders["unit"] for r in requests} == {"line"}
    assert all("line" in r.prompt and "{" not in r.prompt for r in requests)


def test_the_digest_names_what_is_asked() -> None:
    """Seed, pools, weights and models change it; addresses, prices, ceilings and the number of examples do not."""
    plan = RequestPlan(CONFIG, POOLS)
    same = replace(
        CONFIG, examples=9, max_cost=1.0, models=(replace(MODELS[0], base_url="http://x/v1"), MODELS[1])
    )
    assert RequestPlan(same, POOLS).digest == plan.digest
    others = [
        RequestPlan(replace(CONFIG, seed=1), POOLS),
        RequestPlan(replace(CONFIG, languages={"en": 1, "de": 1}), POOLS),
        RequestPlan(replace(CONFIG, models=MODELS[:1]), POOLS),
        RequestPlan(CONFIG, {**POOLS, "long-long": ["another task"]}),
        RequestPlan(replace(CONFIG, placeholders={"sts": {"unit": ["line"]}}), POOLS),
    ]
    assert len({plan.digest, *(o.digest for o in others)}) == 6


def test_the_brainstorm_asks_for_each_type_alike() -> None:
    """Each asymmetric type gets its number of requests; the number of tasks stands in the prompt."""
    plan = BrainstormPlan(replace(CONFIG, brainstorm=BrainstormConfig(requests=6, tasks=17)))
    requests = [plan.request(i) for i in range(plan.total)]
    kinds = Counter(r.type.name for r in requests)
    assert kinds == dict.fromkeys(("short-long", "long-short", "short-short", "long-long"), 6)
    assert all("17" in r.prompt and '"tasks"' in r.prompt and "{" not in r.prompt for r in requests)
    assert len({r.prompt for r in requests}) > 20


def test_what_cannot_be_planned_is_told() -> None:
    """An empty pool, a placeholder of no template and a pair out of one language are each one sentence."""
    with pytest.raises(
        InputError, match=r"long-long\.jsonl holds no tasks: run `embedkit synth brainstorm` first"
    ):
        RequestPlan(CONFIG, {**POOLS, "long-long": []})
    with pytest.raises(InputError, match=r"placeholders\.sts\.lenght is in no template"):
        RequestPlan(replace(CONFIG, placeholders={"sts": {"lenght": ["1"]}}), POOLS)
    with pytest.raises(InputError, match="pairs of languages need two"):
        RequestPlan(replace(CONFIG, languages={"en": 1}), POOLS)
