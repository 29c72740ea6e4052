"""The task switch: its texts and wordings, and its measures against plain loops and trec_eval."""

from __future__ import annotations

import hashlib
import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from embedkit import Embedder, EmbedderInfo, Template
from embedkit.errors import CorpusError, InputError
from embedkit.evaluation import measure
from embedkit.evaluation.task_switch import (
    HELD_OUT_TASKS,
    TASKS,
    Report,
    Seed,
    evaluate_task_switch,
    load_instructions,
    load_seeds,
    metrics,
    read_distractors,
    read_seeds,
)
from embedkit.evaluation.task_switch.conditions import ABSENT, make_queries, render
from embedkit.evaluation.task_switch.instructions import INSTRUCTIONS_FILE
from embedkit.evaluation.task_switch.picture import draw_confusion
from embedkit.evaluation.task_switch.ranking import Ranks, TextIndex, rank_members

TRAIN_FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "task_switch" / "train.jsonl"
SEEDS = load_seeds()
FEW = SEEDS[::12]
INSTRUCTIONS = load_instructions()
T = len(TASKS)


class Hashed(Embedder):
    """Give each text a unit vector drawn by its hash; `meant` says which text a rendered query stands for."""

    def __init__(self, meant: Callable[[str], str] = str, trained: bool = True, dim: int = 64) -> None:
        self.info = EmbedderInfo(
            name="hashed",
            dim=dim,
            max_length=512,
            pooling="mean",
            weights="w",
            template=Template(query="q: {query}", document="d: {text}"),
            instruction_trained=trained,
            default_task="search",
        )
        self.meant = meant
        self.seen: list[str] = []

    def _embed(self, texts: Sequence[str]) -> NDArray[np.floating[Any]]:
        self.seen += texts
        return np.stack([self.vector(self.meant(t)) for t in texts])

    def vector(self, text: str) -> NDArray[np.float64]:
        """Draw the vector of a text."""
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
        return np.random.default_rng(seed).standard_normal(self.info.dim)


class Bag(Hashed):
    """Add up the drawn vectors of a text's words, so that instructions move the ranking a little."""

    def vector(self, text: str) -> NDArray[np.float64]:
        """Return the sum of the words' vectors."""
        words = [super(Bag, self).vector(w) for w in re.findall(r"\w+", text.lower())]
        total: NDArray[np.float64] = np.stack(words).sum(axis=0)
        return total


def obedient(seeds: Sequence[Seed]) -> Hashed:
    """Return an embedder whose query vector is that of the text which the instruction asks for."""
    info = Hashed().info
    answers = {}
    for seed in seeds:
        for task in seed.tasks:
            told = [*INSTRUCTIONS.several(seed, task), INSTRUCTIONS.in_other_language(seed, task)]
            answers.update({render(info, seed.text, t): f"d: {seed.positives[task]}" for t in told if t})
    return Hashed(lambda text: answers.get(text, text))


def deaf(text: str) -> str:
    """Return a rendered query without its instruction."""
    return f"q: {text.rpartition('Query: ')[2]}" if text.startswith("Instruct: ") else text


def ranks_of(embedder: Embedder, seeds: Sequence[Seed]) -> Ranks:
    """Rank the seeds' members."""
    texts = [t for s in seeds for t in (*s.positives.values(), s.distractor)]
    index = TextIndex.build(embedder, texts, lambda count: None)
    queries = make_queries(seeds, INSTRUCTIONS, embedder.info)
    return rank_members(embedder, queries, index, seeds, lambda count: None)


@pytest.fixture(scope="module")
def bag() -> Ranks:
    """Ranks of an embedder that is neither obedient nor deaf."""
    return ranks_of(Bag(), FEW)


def plain(text: str) -> str:
    """Return a text's words alone, in lower case."""
    return " ".join(re.findall(r"\w+", text.lower()))


def texts_of(record: dict[str, Any]) -> list[str]:
    """Return every text of a seed's record."""
    return [
        record["seed"], record["distractor"], *record["positives"].values(), *record["held_out"].values()
    ]  # fmt: skip


def test_the_240_seeds_are_whole() -> None:
    """240 seeds, every task in each (code in some), three languages in each, ids and texts all different."""
    assert len(SEEDS) == len({s.id for s in SEEDS}) == 240
    assert all(set(s.tasks) | {"code"} == set(TASKS) for s in SEEDS)
    assert sum("code" in s.positives for s in SEEDS) == 46
    assert all(len({s.lang, s.lang_1, s.lang_2}) == 3 for s in SEEDS)
    assert sum(s.lang != "en" for s in SEEDS) == 53
    texts = [plain(t) for s in SEEDS for t in (s.text, s.distractor, *s.positives.values())]
    assert len(texts) == len(set(texts))


def test_no_training_text_is_in_the_test() -> None:
    """Training and test seeds share neither an id nor a text; the training seeds have no positive for a held-out task."""
    train = [json.loads(line) for line in TRAIN_FILE.read_text(encoding="utf-8").splitlines()]
    test = {plain(t) for s in SEEDS for t in (s.text, s.distractor, *s.positives.values())}
    assert not {r["id"] for r in train} & {s.id for s in SEEDS}
    assert not {plain(t) for r in train for t in texts_of(r)} & test
    assert not [r["id"] for r in train if set(r["positives"]) & set(HELD_OUT_TASKS)]
    assert len(read_seeds(TRAIN_FILE)) == len(train) == 760


def test_no_training_wording_is_in_the_test() -> None:
    """Every wording stands once; the held-out task has no training wording; every language has its names."""
    tasks = INSTRUCTIONS.tasks
    wordings = [plain(w) for t in tasks.values() for w in (*t.train, *t.test, *t.other_languages.values())]
    assert len(wordings) == len(set(wordings))
    for name, task in tasks.items():
        assert len(task.train) == (0 if name in HELD_OUT_TASKS else 24), name
        assert len(task.test) == 8 and "en" not in task.other_languages, name
        assert len(task.other_languages) >= 10, name
        held = [w for w in (*task.train, *task.test) if "{language}" in w]
        assert len(held) == (32 if name == "translation" else 0), name
    asked = {code for s in SEEDS for code in (s.lang_1, s.lang_2)}
    languages = {code for t in tasks.values() for code in t.other_languages}
    assert all({"en", *languages} <= set(INSTRUCTIONS.language_names[code]) for code in asked)


def test_a_seed_is_asked_in_five_wordings_that_do_not_change() -> None:
    """The right wording is a training one, the second is held out, all five differ; another run draws the same."""
    again = load_instructions()
    for seed in FEW:
        for task in seed.tasks:
            several = INSTRUCTIONS.several(seed, task)
            assert several == again.several(seed, task)
            assert len(several) == len(set(several)) == 5
            assert not any("{" in w for w in several)
            assert (INSTRUCTIONS.right(seed, task), INSTRUCTIONS.held_out(seed, task)) == several[:2]
            if not task.startswith("translation"):
                wordings = INSTRUCTIONS.tasks[task]
                seen = [w in wordings.train for w in several]
                assert seen == ([False] * 5 if task in HELD_OUT_TASKS else [True, False, True, True, False])
    seed = next(s for s in SEEDS if (s.lang_1, s.lang_2) == ("de", "zh"))
    assert "German" in INSTRUCTIONS.right(seed, "translation_1")
    assert "Chinese" in INSTRUCTIONS.held_out(seed, "translation_2")
    assert len({INSTRUCTIONS.right(s, "answer") for s in SEEDS}) > 20


def test_documents_are_bare_and_every_embedder_is_told() -> None:
    """Documents are encoded once without an instruction; an untrained embedder reads it inside its query prefix."""
    trained, untrained = Hashed(), Hashed(trained=False)
    assert render(trained.info, "t", "i") == "Instruct: i\nQuery: t"
    assert render(untrained.info, "t", "i") == "q: Instruct: i\nQuery: t"
    assert render(trained.info, "t", None) == "q: t"  # whatever the default task
    evaluate_task_switch(untrained, FEW[:3], INSTRUCTIONS)
    documents = [t for t in untrained.seen if t.startswith("d: ")]
    assert sorted(documents) == sorted(
        f"d: {t}" for s in FEW[:3] for t in (*s.positives.values(), s.distractor)
    )
    assert len(untrained.seen) == len(set(untrained.seen))


def test_perfect_obedience_is_100_percent() -> None:
    """An embedder that maps each query to the text asked for gets every measure's best, under every wording."""
    report = evaluate_task_switch(obedient(FEW), FEW, INSTRUCTIONS)
    for row in (report.trained, report.overall, *report.tasks):
        assert row.switch_right.value == row.switch_held_out.value == row.robustness.value == 1.0
        assert row.ndcg["right"].value == row.ndcg["other language"].value == 1.0
        assert row.p_mrr_right.value is not None and row.p_mrr_right.value > 90
        assert row.right_minus_wrong.low is not None and row.right_minus_wrong.low > 0.9
    assert all(
        report.confusion["right"][t] == {f: 0 for f in TASKS if f != t} | {t: n} for t, n in counted(FEW)
    )
    assert report.unchanged and re.fullmatch(r"[0-9a-f]{64}", report.checksum_before)


def counted(seeds: Sequence[Seed]) -> list[tuple[str, int]]:
    """Count the seeds of each task."""
    return [(task, sum(task in s.positives for s in seeds)) for task in TASKS]


def test_a_deaf_embedder_has_no_p_mrr_and_guesses() -> None:
    """Where the instruction is ignored p-MRR is 0, no condition differs, and one member is found whatever is asked."""
    report = evaluate_task_switch(Hashed(deaf), FEW, INSTRUCTIONS)
    for row in (report.trained, report.overall, *report.tasks):
        zero = {"value": 0.0, "low": 0.0, "high": 0.0}
        assert row.p_mrr_right.to_dict() == row.p_mrr_held_out.to_dict() == zero
        assert row.right_minus_none.to_dict() == zero
        assert row.right_minus_wrong.value == pytest.approx(0.0, abs=1e-12)
        assert row.robustness == row.ndcg["right"] == row.ndcg["none"] == row.ndcg["nonsense"]
    common = [report.confusion["right"][t] for t in TASKS if t != "code"]
    assert all(c == common[0] for c in common)
    hits = sum(r.switch_right.value or 0.0 for r in report.tasks if r.name != "code")
    assert hits == pytest.approx(sum(common[0][t] for t in TASKS if t != "code") / len(FEW))


def test_ndcg_is_trec_evals(bag: Ranks) -> None:
    """nDCG@10 under each task's own instruction equals trec_eval's on the full ranking."""
    pytest.importorskip("pytrec_eval")
    embedder = Bag()
    texts = [t for s in FEW for t in (*s.positives.values(), s.distractor)]
    vectors = embedder.encode_document(texts)
    qrels, rankings = {}, {}
    for seed in FEW:
        for task in seed.tasks:
            query = embedder.encode_query([seed.text], instruction=INSTRUCTIONS.right(seed, task))[0]
            key = f"{seed.id} {task}"
            qrels[key] = {seed.positives[task]: 1}
            rankings[key] = [texts[i] for i in np.argsort(-(vectors @ query), kind="stable")]
    found = measure(qrels, rankings)
    mine = metrics.ndcg(np.diagonal(bag.right, axis1=1, axis2=2))
    for i, seed in enumerate(FEW):
        for t, task in enumerate(TASKS):
            if task in seed.positives:
                assert mine[i, t] == pytest.approx(found[f"{seed.id} {task}"].ndcg)
            else:
                assert math.isnan(mine[i, t])


def test_p_mrr_is_the_papers_formula(bag: Ranks) -> None:
    """p-MRR of each seed and ordered pair equals FollowIR's formula written as a loop."""
    found = metrics.p_mrr(bag.right)
    for i, seed in enumerate(FEW):
        for a in range(T):
            for b in range(T):
                if a == b or not {TASKS[a], TASKS[b]} <= set(seed.tasks):
                    assert math.isnan(found[i, a, b])
                    continue
                old, new = int(bag.right[i, a, a]), int(bag.right[i, b, a])
                assert found[i, a, b] == pytest.approx(new / old - 1 if old >= new else 1 - old / new)
    # A document that falls from rank 1 to 4 gives +0.75, one that rises from 4 to 1 gives -0.75.
    ranks = np.array([[[1, 9], [4, 2]], [[4, 9], [1, 2]]])
    assert metrics.p_mrr(ranks)[:, 0, 1].tolist() == [0.75, -0.75]


def test_the_other_measures_are_plain_loops(bag: Ranks) -> None:
    """The member found first, the confusion, the mean of wrong instructions and the worst wording, by loops."""
    found = metrics.first_member(bag.right)
    confusion = np.zeros((T, T), dtype=int)
    wrong, worst = metrics.mean_of_wrong(bag.right), metrics.robustness(bag.wordings)
    for i, seed in enumerate(FEW):
        own = [TASKS.index(t) for t in seed.tasks]
        for a in range(T):
            if a not in own:
                assert found[i, a] == -1 and math.isnan(wrong[i, a]) and math.isnan(worst[i, a])
                continue
            best = min(own, key=lambda m: bag.right[i, a, m])
            assert found[i, a] == best
            confusion[a, best] += 1
            gains = [gain(bag.right[i, b, a]) for b in own if b != a]
            assert wrong[i, a] == pytest.approx(sum(gains) / len(gains))
            assert worst[i, a] == pytest.approx(min(gain(r) for r in bag.wordings[i, a]))
            assert bag.wordings[i, a, 0] == bag.right[i, a, a]
            assert bag.wordings[i, a, 1] == bag.held_out[i, a, a]
    assert metrics.confusion(found).tolist() == confusion.tolist()
    assert np.nansum(metrics.switched(found)) == np.trace(confusion)


def gain(rank: int) -> float:
    """Return nDCG@10 of one relevant text at this rank."""
    return 1 / math.log2(1 + rank) if rank <= 10 else 0.0


def test_ranks_are_those_of_a_sorted_list(bag: Ranks) -> None:
    """A member's rank is its place among all texts by score, without an instruction as with a meaningless one."""
    embedder = Bag()
    texts = sorted({t for s in FEW for t in (*s.positives.values(), s.distractor)})
    vectors = embedder.encode_document(texts)
    for i, seed in enumerate(FEW[:5]):
        for told, ranks in ((None, bag.bare), (INSTRUCTIONS.meaningless(seed), bag.nonsense)):
            query = embedder.encode_rendered([render(embedder.info, seed.text, told)])[0]
            order = [texts[j] for j in np.argsort(-(vectors @ query))]
            assert [ranks[i, TASKS.index(t)] for t in seed.tasks] == [
                1 + order.index(seed.positives[t]) for t in seed.tasks
            ]


def test_equal_scores_favour_no_task() -> None:
    """Where every text scores the same, ranks are still a permutation, and tasks share the first places."""
    ranks = ranks_of(Hashed(lambda text: "all the same"), FEW)
    found = np.bincount(metrics.first_member(ranks.right)[:, 0], minlength=T)
    assert found.max() <= len(FEW) / 2
    bare = ranks.bare[ranks.bare > 0]
    assert len(bare) == len(set(bare.tolist()))


def test_the_bootstrap_is_a_loop_over_resamples() -> None:
    """Means and intervals equal those of drawn seeds averaged one by one, NaNs left out; the same seed draws the same."""
    generator = np.random.default_rng(3)
    values = generator.random((12, 3))
    values[generator.random((12, 3)) < 0.3] = np.nan
    values[:, 2] = np.nan
    draws = metrics.resample(12, seed=5, resamples=200)
    assert (draws == metrics.resample(12, seed=5, resamples=200)).all() and (draws.sum(axis=1) == 12).all()
    estimate = metrics.Bootstrap(values, draws).of([0, 1, 2])
    means = []
    for draw in draws.astype(int):
        rows = np.repeat(np.arange(12), draw)
        means.append(np.nanmean([np.nanmean(values[rows, c]) for c in (0, 1)]))
    assert estimate.value == pytest.approx(np.mean([np.nanmean(values[:, c]) for c in (0, 1)]))
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.percentile(means, (2.5, 97.5))))
    assert metrics.Bootstrap(values, draws).of([2]).value is None


def test_means_leave_the_held_out_task_out() -> None:
    """The means over trained tasks are those of their rows, and of the pairs among them; all tasks' add the headline."""
    report = evaluate_task_switch(Bag(), FEW, INSTRUCTIONS)
    rows = {row.name: row for row in report.tasks}
    trained = [t for t in TASKS if t not in HELD_OUT_TASKS]
    for names, row in ((trained, report.trained), (list(TASKS), report.overall)):
        assert row.queries == sum(rows[t].queries for t in names)
        assert row.switch_right.value == pytest.approx(np.mean([rows[t].switch_right.value for t in names]))
        assert row.chance == pytest.approx(np.mean([rows[t].chance for t in names]))
        pairs = [report.p_mrr[a][b] for a in names for b in names if a != b]
        assert row.p_mrr_right.value == pytest.approx(np.mean(pairs))
    bare = {name: row.ndcg["none"].value for name, row in rows.items()}
    assert report.default_task == max(bare, key=lambda name: bare[name] or 0.0)
    assert evaluate_task_switch(Bag(), FEW, INSTRUCTIONS).to_dict() == report.to_dict()


def test_more_distractors_stand_in_the_same_index(tmp_path: Path) -> None:
    """A BEIR folder's texts, after their titles, enlarge the index; one that is there already is not doubled."""
    rows = [{"_id": "1", "title": "Bread", "text": "needs time"}, {"_id": "2", "text": FEW[0].distractor}]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    more = read_distractors(tmp_path)
    assert more == ["Bread needs time", FEW[0].distractor]
    report = evaluate_task_switch(Bag(), FEW, INSTRUCTIONS, distractors=more)
    assert report.facts["further distractors"] == 1
    assert report.facts["texts"] == sum(len(s.positives) + 1 for s in FEW) + 1


def test_the_picture_holds_every_share() -> None:
    """The SVG is well-formed, names every task in rows and columns, and writes each cell's percentage."""
    report: Report = evaluate_task_switch(obedient(FEW), FEW, INSTRUCTIONS)
    root = ET.fromstring(draw_confusion(report))
    words = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    assert words.count("100") == 2 * T and words.count("0") == 2 * T * (T - 1)
    assert words.count("paraphrase") == 3 and words.count("headline *") == 3
    assert any("hashed" in (w or "") for w in words)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": " "}, 'line 1: needs a "seed" that is not empty'),
        ({"positives": {"answer": "x"}}, 'line 1: needs a "paraphrase"'),
        ({"positives": {"poem": "x"}}, "line 1: has a positive for no task of ours: 'poem'"),
        ({"positives": None}, 'line 1: needs "positives", an object'),
        ({"id": "twice"}, "line 2: the seed 'twice' is there twice"),
    ],
)
def test_a_broken_seed_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """The line and what is wrong with it are named."""
    record = json.loads(TRAIN_FILE.read_text(encoding="utf-8").splitlines()[0]) | change
    (tmp_path / "seeds.jsonl").write_text((json.dumps(record) + "\n") * 2, encoding="utf-8")
    with pytest.raises(CorpusError, match=re.escape(message)):
        read_seeds(tmp_path / "seeds.jsonl")


def test_broken_wordings_are_named(tmp_path: Path) -> None:
    """A missing part, a task without wordings and a held-out task with a training one are refused; so is no seed."""
    data = json.loads(INSTRUCTIONS_FILE.read_text(encoding="utf-8"))
    path = tmp_path / "instructions.json"

    def refused(change: dict[str, Any], message: str) -> None:
        path.write_text(json.dumps(data | change), encoding="utf-8")
        with pytest.raises(CorpusError, match=message):
            load_instructions(path)

    tasks = data["tasks"]
    refused({"tasks": {"answer": {}}}, "lacks 'train'")
    refused({"tasks": {t: w for t, w in tasks.items() if t != "topic"}}, "no wordings for the task 'topic'")
    refused(
        {"tasks": tasks | {"headline": tasks["topic"]}}, "'headline' needs two test wordings and no train"
    )
    refused({"nonsense": []}, "no nonsense")
    with pytest.raises(InputError, match="a seed at least"):
        evaluate_task_switch(Bag(), [], INSTRUCTIONS)


def test_absent_tasks_are_never_asked() -> None:
    """A seed without code has no query for it, and one with code has."""
    queries = make_queries(FEW, INSTRUCTIONS, Hashed().info)
    code = TASKS.index("code")
    for i, seed in enumerate(FEW):
        assert (queries.right[i, code] == ABSENT) == ("code" not in seed.positives)
        assert (queries.wordings[i, :code] != ABSENT).all()
