"""Mining: which candidates become negatives, compared with plain NumPy, and why the others do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from embedkit.errors import InputError
from embedkit_trainer.data.rows import Row
from embedkit_trainer.mining.nearest import nearest
from embedkit_trainer.mining.negatives import (
    Candidate,
    MiningConfig,
    MiningReport,
    Search,
    mine_from_vectors,
    mine_negatives,
)

TOP = MiningConfig(sampling="top", max_ratio=None)
LONG = "The old mill on the river was built by monks and grinds flour to this day."


def _unit(rng: np.random.Generator, count: int, dim: int = 8) -> NDArray[np.float32]:
    vectors = rng.standard_normal((count, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def _found(*candidates: Candidate) -> Search:
    return lambda rows, k: [candidates[:k] for _ in rows]


def _mine(
    row: Row,
    candidates: Sequence[Candidate],
    config: MiningConfig = TOP,
    *,
    positive: float = 1.0,
    others: Sequence[Row] = (),
    **options: Any,
) -> Row:
    rows = [row, *others]
    mined = mine_negatives(rows, _found(*candidates), lambda batch: [positive] * len(batch), config, **options)  # fmt: skip
    return next(mined)


@pytest.mark.parametrize("block", [1, 7, 50, 1000])
@pytest.mark.parametrize("k", [1, 5, 300])
def test_nearest_is_the_full_sort_for_any_block(block: int, k: int) -> None:
    """Neighbours found block by block are those of one sort of all scores, equal scores in the order of numbers."""
    rng = np.random.default_rng(5)
    queries = rng.integers(-2, 3, (9, 4)).astype(np.float32)
    documents = rng.integers(-2, 3, (200, 4)).astype(np.float32)  # whole numbers: many exact ties
    scores = queries @ documents.T
    for i, (numbers, values) in enumerate(nearest(queries, documents, k, block)):
        expected = np.lexsort((np.arange(200), -scores[i]))[:k]
        assert numbers.tolist() == expected.tolist()
        assert values.tolist() == scores[i, expected].tolist()


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"margin": 0.15},
        {"max_ratio": 0.8},
        {"margin": 0.05, "max_ratio": 0.95, "min_rank": 3, "max_rank": 20},
        {"min_score": 0.1, "max_score": 0.5},
    ],
)
def test_rules_are_those_of_a_plain_loop(rules: dict[str, Any]) -> None:
    """Under each set of rules the nearest allowed documents are taken, as a loop over sorted scores finds them."""
    rng = np.random.default_rng(11)
    documents, queries = _unit(rng, 120), _unit(rng, 40)
    gold = rng.integers(0, 120, 40)
    rows = [Row(f"q{i}", f"d{g}", positive_id=str(g)) for i, g in enumerate(gold)]
    config = replace(TOP, negatives=3, **rules)
    report = MiningReport()
    mined = mine_from_vectors(
        rows,
        query_vectors=queries,
        positive_vectors=documents[gold],
        documents=[(str(i), f"d{i}") for i in range(120)],
        document_vectors=documents,
        config=config,
        report=report,
    )
    for i, row in enumerate(mined):
        scores = (documents @ queries[i]).astype(np.float64)
        best = scores[gold[i]]
        expected = []
        for rank, number in enumerate(np.argsort(-scores, kind="stable"), 1):
            score = scores[number]
            ratio = config.max_ratio
            allowed = (
                number != gold[i]
                and config.min_rank <= rank <= config.max_rank
                and (config.margin is None or score <= best - config.margin)
                and (ratio is None or score <= (ratio * best if best > 0 else best))
                and (config.max_score is None or score <= config.max_score)
                and (config.min_score is None or score >= config.min_score)
            )
            if allowed:
                expected.append(f"d{number}")
        assert list(row.negatives) == expected[:3]
        assert row.negative_ids == tuple(n[1:] for n in row.negatives)
    assert report.rows == 40
    assert report.candidates == report.kept + sum(report.dropped.values()) == 40 * min(120, config.max_rank)


def test_neither_the_positive_nor_another_positive_of_the_query_is_taken() -> None:
    """Positives are known by id and by text, white space aside, whatever the instruction of the other row."""
    row = Row("q", "own text", positive_id="1")
    others = [Row("q", "other text", positive_id="2"), Row("q", "third", instruction="another")]
    found = [
        Candidate("9", "own  text", 0.9),
        Candidate("1", "a chunk of it", 0.8),
        Candidate("8", "other text", 0.7),
        Candidate("2", "a chunk of the other", 0.6),
        Candidate(None, "third", 0.5),
        Candidate("3", "free", 0.4),
    ]
    report = MiningReport()
    mined = _mine(row, found, replace(TOP, negatives=6), others=others, report=report)
    assert mined.negatives == ("free",)
    assert report.dropped["the positive itself"] == 2
    assert report.dropped["another positive of the query"] == 3


def test_a_chunk_of_the_positive_is_no_negative() -> None:
    """A long text within the positive, with or without a title before it, or one that holds it, is refused."""
    row = Row("q", f"{LONG} It stands to this day.")
    found = [Candidate("a", LONG, 0.9), Candidate("b", f"Mills\n{LONG}", 0.8), Candidate("c", f"Mills. {row.positive} More.", 0.7), Candidate("d", "day.", 0.6)]  # fmt: skip
    assert _mine(row, found, replace(TOP, negatives=4)).negatives == ("day.",)


def test_a_row_of_another_query_does_not_protect_its_positive() -> None:
    """What answers one query may be a negative of another."""
    assert _mine(Row("q", "a"), [Candidate("2", "b", 0.5)], others=[Row("r", "b")]).negatives == ("b",)


def test_the_draw_depends_on_the_row_alone() -> None:
    """Rows in another order, or beside other rows, get the same random negatives; another seed gives others."""
    rng = np.random.default_rng(3)
    documents = _unit(rng, 80)
    rows = [Row(f"q{i}", f"d{i}") for i in range(30)]
    queries = _unit(rng, 30)

    def mine(order: NDArray[np.int64], seed: int) -> dict[str, tuple[str, ...]]:
        mined = mine_from_vectors(
            [rows[i] for i in order],
            query_vectors=queries[order],
            positive_vectors=documents[order],
            documents=[(None, f"d{i}") for i in range(80)],
            document_vectors=documents,
            config=MiningConfig(negatives=2, max_ratio=None, max_rank=40, seed=seed),
        )
        return {row.query: row.negatives for row in mined}

    straight = mine(np.arange(30), 1)
    mixed = mine(rng.permutation(30)[:20], 1)
    assert all(straight[query] == negatives for query, negatives in mixed.items())
    other = mine(np.arange(30), 2)
    assert sum(straight[q] != other[q] for q in straight) > 20
    nearest_two = {row.query: row.negatives for row in mine_from_vectors(
        rows, query_vectors=queries, positive_vectors=documents[:30], documents=[(None, f"d{i}") for i in range(80)],
        document_vectors=documents, config=replace(TOP, negatives=2),
    )}  # fmt: skip
    assert sum(straight[q] != nearest_two[q] for q in straight) > 20


def test_a_ratio_of_a_negative_score_is_no_limit_above_it() -> None:
    """Where the positive scores below 0, nothing that scores above it is taken."""
    found = [Candidate("1", "above", -0.195), Candidate("2", "below", -0.21)]
    mined = _mine(Row("q", "p"), found, MiningConfig(max_ratio=0.95, negatives=2), positive=-0.2)
    assert mined.negatives == ("below",)


def test_own_negatives_stay_before_the_mined_ones() -> None:
    """A row's negatives are kept and never mined again; `replace` drops them, and their teacher's scores with them."""
    row = Row("q", "p", ("own",), negative_ids=("7",), teacher_scores=(1.0, 0.5))
    found = [Candidate("7", "its chunk", 0.5), Candidate("8", "own", 0.4), Candidate("9", "new", 0.3)]
    report = MiningReport()
    added = _mine(row, found, report=report)
    assert (added.negatives, added.negative_ids, added.teacher_scores) == (("own", "new"), ("7", "9"), None)
    assert report.dropped["a negative the row has"] == 2
    swapped = _mine(row, found, replace(TOP, replace=True, scores=True), positive=0.75)
    assert (swapped.negatives, swapped.negative_ids) == (("its chunk",), ("7",))
    assert swapped.teacher_scores == (0.75, 0.5)
    with pytest.raises(InputError, match=r"'q' \(line 0\) has negatives without this embedder's scores"):
        _mine(row, found, replace(TOP, scores=True))


def test_ids_of_unnamed_negatives_are_filled_in() -> None:
    """A row with negatives but without their ids gets None for them, so that the lists stay of one length."""
    mined = _mine(Row("q", "p", ("own",)), [Candidate("9", "new", 0.3)])
    assert mined.negative_ids == (None, "9")


def test_a_row_for_which_nothing_is_left_comes_back() -> None:
    """The row is unchanged and counted, as are rows that got fewer than asked for."""
    report = MiningReport()
    row = Row("q", "p", teacher_scores=(1.0,))
    assert _mine(row, [Candidate("1", "p", 1.0)], report=report) == row
    assert (report.rows, report.without, report.short) == (1, 1, 0)
    scored = _mine(row, [Candidate("1", "p", 1.0)], replace(TOP, scores=True), positive=0.5)
    assert (scored.negatives, scored.teacher_scores) == ((), (0.5,))
    _mine(row, [Candidate("1", "x", 0.2)], replace(TOP, negatives=2), report=report)
    assert (report.rows, report.without, report.short) == (2, 1, 1)


def test_the_judge_refuses_and_is_asked_no_more_than_needed() -> None:
    """Refused candidates are replaced by the next ones; once there are enough, nobody is asked."""
    asked: list[str] = []

    def judge(query: str, positive: str, texts: Sequence[str]) -> list[bool]:
        assert (query, positive) == ("q", "p")
        asked.extend(texts)
        return [int(t) % 2 == 1 for t in texts]

    report = MiningReport()
    found = [Candidate(str(i), str(i), 0.5 - i / 100) for i in range(20)]
    mined = _mine(Row("q", "p"), found, replace(TOP, negatives=2), judge=judge, report=report)
    assert mined.negatives == ("1", "3")
    assert asked == ["0", "1", "2", "3"]
    assert (report.dropped["refused by the judge"], report.dropped["not needed"]) == (2, 16)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"negatives": 0}, "negatives is 0"),
        ({"min_rank": 0}, "ranks 0 to 100 are no window"),
        ({"min_rank": 9, "max_rank": 8}, "ranks 9 to 8 are no window"),
        ({"margin": -0.1}, "margin is -0.1"),
        ({"margin": float("nan")}, "margin is nan"),
        ({"max_ratio": 1.5}, "max_ratio is 1.5"),
        ({"sampling": "best"}, "sampling is 'best'"),
    ],
)
def test_rules_that_make_no_sense_are_refused(rules: dict[str, Any], message: str) -> None:
    """Each error names the rule and the value."""
    with pytest.raises(InputError, match=message):
        MiningConfig(**rules)


def test_vectors_that_do_not_fit_are_refused() -> None:
    """A vector too few is told before anything is mined."""
    one = np.ones((1, 4), np.float32)
    with pytest.raises(InputError, match="do not fit 2 rows and 1 documents"):
        list(mine_from_vectors([Row("q", "p")] * 2, query_vectors=one, positive_vectors=one, documents=[(None, "d")], document_vectors=one))  # fmt: skip


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny seeded BERT with one output for a pair of texts."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from tests.embedkit.tiny_models import BERT, save_tokenizer

    folder = tmp_path_factory.mktemp("judge")
    size = save_tokenizer(folder, BERT)
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=size, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, initializer_range=0.5, num_labels=1,
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_a_cross_encoder_judges_by_what_its_model_says(judge_folder: Path) -> None:
    """A text is accepted where the sigmoid of the model's logit is below the threshold and the positive's."""
    import torch
    import transformers

    from embedkit_trainer.mining.cross_encoder import CrossEncoderJudge

    texts = ["salt", "pepper and oil", "Rain. " * 200, "a planet", "the cook", "index", "clouds", "tyres"]
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(judge_folder)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(judge_folder)
    expected = []
    with torch.inference_mode():
        for text in texts:
            pair = tokenizer("soup", text, truncation=True, max_length=64, return_tensors="pt")
            expected.append(model.eval()(**pair).logits.sigmoid().item())
    order = sorted(range(8), key=lambda i: expected[i])
    assert len(set(expected)) == 8
    threshold = (expected[order[3]] + expected[order[4]]) / 2
    judge = CrossEncoderJudge(judge_folder, threshold=threshold, device="cpu")
    assert judge.relevance("soup", texts) == pytest.approx(expected, abs=1e-5)
    for positive, accepted in ((order[2], 2), (order[6], 4)):
        verdicts = judge("soup", texts[positive], texts)
        assert verdicts == [e < threshold and e < expected[positive] for e in expected]
        assert sum(verdicts) == accepted


def test_a_folder_that_is_no_judge_is_refused(tmp_path: Path) -> None:
    """A folder without a model is one sentence."""
    from embedkit_trainer.mining.cross_encoder import CrossEncoderJudge

    with pytest.raises(InputError, match="is no model folder: it holds no config.json"):
        CrossEncoderJudge(tmp_path)
