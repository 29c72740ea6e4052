"""STS, bitext, classification, clustering and passkey, against scipy, scikit-learn and NumPy directly."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from embedkit import Embedder, EmbedderInfo, Template, get_embedder
from embedkit.errors import CorpusError, InputError
from embedkit.evaluation.bitext import evaluate_bitext, weighted_f1
from embedkit.evaluation.classification import draw, evaluate_classification
from embedkit.evaluation.clustering import evaluate_clustering
from embedkit.evaluation.passkey import evaluate_passkey, make_passkeys
from embedkit.evaluation.protocol import ProtocolEncoder, ProtocolName, choose_instruction
from embedkit.evaluation.records import Labelled, Pair, read_labelled, read_pairs, restrict
from embedkit.evaluation.sts import evaluate_sts

INSTRUCT = Template("{query}", "Instruct: {instruction}\nQuery: {query}", "{text}")


class Recorder(Embedder):
    """Give each text a seeded vector of its own (length 3 to 4), and remember the texts."""

    def __init__(self, trained: bool = True) -> None:
        self.info = EmbedderInfo(
            name="recorder",
            dim=16,
            max_length=512,
            pooling="mean",
            template=INSTRUCT,
            instruction_trained=trained,
            weights="w",
            tokenizer="t",
        )
        self.seen: list[str] = []

    def _embed(self, texts: Sequence[str]) -> NDArray[np.floating[Any]]:
        self.seen += texts
        return np.stack([self.vector(t) for t in texts])

    @staticmethod
    def vector(text: str) -> NDArray[np.float64]:
        """Return the raw vector of a rendered text; the same words give near vectors."""
        total = np.zeros(16)
        for word in text.lower().split():
            total += np.random.default_rng(list(word.encode())).standard_normal(16)
        return total / np.linalg.norm(total) * (3 + len(text) % 7 / 7)

    def units(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return unit vectors of rendered texts."""
        raw = np.stack([self.vector(t) for t in texts])
        unit: NDArray[np.float64] = raw / np.linalg.norm(raw, axis=1, keepdims=True)
        return unit


def told(text: str) -> str:
    """Return a text as a query under the instruction `Compare`."""
    return f"Instruct: Compare\nQuery: {text}"


STS = [
    Pair("a dog runs", "the dog runs", 5.0, ("en", "en")),
    Pair("a cat sleeps", "stocks fell", 0.5, ("en", "en")),
    Pair("rain falls", "it rains today", 3.5, ("en", "en")),
    Pair("ein Hund", "ein Hund rennt", 4.0, ("de", "de")),
    Pair("eine Katze", "der Markt", 0.0, ("de", "de")),
    Pair("der Regen", "der Regen heute", 3.0, ("de", "de")),
    Pair("a bird", "ein Vogel", 4.5, ("en", "de")),
]


@pytest.mark.parametrize("protocol", ["one-sided", "paper"])
def test_sts_is_scipys_spearman_of_cosines_under_either_protocol(protocol: ProtocolName) -> None:
    """Spearman equals scipy's on cosines, with the instruction on the first sentence alone, or under "paper" on both."""
    from scipy.stats import spearmanr

    embedder = Recorder()
    report = evaluate_sts(ProtocolEncoder(embedder, protocol, "Compare"), STS)
    second = [told(p.second) if protocol == "paper" else p.second for p in STS]
    cosines = (embedder.units([told(p.first) for p in STS]) * embedder.units(second)).sum(axis=1)
    gold = [p.score for p in STS]
    assert report.overall.measures["spearman"] == pytest.approx(spearmanr(cosines, gold).statistic)
    groups = {g.group: g for g in report.groups}
    assert list(groups) == ["de", "en", "en → de"]
    assert groups["en"].measures["spearman"] == pytest.approx(spearmanr(cosines[:3], gold[:3]).statistic)
    assert groups["en → de"].measures["spearman"] is None  # one pair has no rank correlation
    known = [groups[g].measures["spearman"] for g in ("de", "en")]
    assert report.overall.measures["mean"] == pytest.approx(np.mean([k for k in known if k is not None]))


def test_a_text_is_encoded_once() -> None:
    """A sentence that stands in several pairs on one side reaches the embedder once."""
    embedder = Recorder()
    pairs = [Pair("same", f"other {i}", float(i)) for i in range(4)]
    evaluate_sts(ProtocolEncoder(embedder), pairs)
    assert embedder.seen.count("same") == 1


def test_scores_that_are_all_alike_are_refused() -> None:
    """Without differing scores there is no rank correlation, and the sentence says so."""
    with pytest.raises(InputError, match="all scored 2"):
        evaluate_sts(ProtocolEncoder(Recorder()), [Pair("a", "b", 2.0)] * 4)


def test_bitext_equals_scikit_learns_weighted_f1_both_ways() -> None:
    """F1 and accuracy of the nearest neighbour equal scikit-learn's, forward and backward, one language pair at a time."""
    from sklearn.metrics import accuracy_score, f1_score

    embedder = Recorder()
    pairs = [
        Pair(f"n{i} shared thing", f"n{i if i % 3 else i // 2} gemeinsam x{i}", None, ("en", "de"))
        for i in range(12)
    ]
    pairs += [Pair("one", "un", None, ("en", "fr")), Pair("two", "deux", None, ("en", "fr"))]
    report = evaluate_bitext(ProtocolEncoder(embedder, "one-sided", "Compare"), pairs)
    german = pairs[:12]
    first, second = [p.first for p in german], [p.second for p in german]
    measures = {g.group: g.measures for g in report.groups}
    for direction, asked, found in (("forward", first, second), ("backward", second, first)):
        scores = embedder.units([told(t) for t in asked]) @ embedder.units(found).T
        answers = scores.argmax(axis=1)
        gold = list(range(12))
        assert 0 < accuracy_score(gold, answers) < 1
        assert measures["en → de"][f"accuracy {direction}"] == pytest.approx(accuracy_score(gold, answers))
        expected = f1_score(gold, answers, average="weighted", zero_division=0)
        assert measures["en → de"][f"f1 {direction}"] == pytest.approx(expected)
    assert report.overall.measures["f1 forward"] == pytest.approx(
        np.mean([m["f1 forward"] for m in measures.values()])
    )


def test_weighted_f1_with_repeated_classes_is_scikit_learns() -> None:
    """Classes that are gold several times weigh as often, as in scikit-learn's weighted average."""
    from sklearn.metrics import f1_score

    generator = np.random.default_rng(0)
    gold, found = generator.integers(0, 5, 60), generator.integers(0, 7, 60)
    assert weighted_f1(gold, found) == pytest.approx(
        f1_score(gold, found, average="weighted", zero_division=0)
    )


def test_a_translation_that_two_sentences_share_is_one_candidate() -> None:
    """Two pairs with the same second text do not compete with each other."""
    pairs = [Pair("good day", "good day sir"), Pair("good day to you", "good day sir"), Pair("rain", "rain")]
    report = evaluate_bitext(ProtocolEncoder(Recorder()), pairs)
    assert report.overall.measures["accuracy forward"] == 1.0


def _rows(count: int, seed: int, lang: str = "en") -> list[Labelled]:
    generator = np.random.default_rng(seed)
    words = {
        "weather": ["rain", "sun", "wind", "cloud", "storm"],
        "food": ["bread", "soup", "salt", "rice", "sun"],
        "2": ["wheel", "road", "motor", "wind", "brake"],
    }
    rows = []
    for i in range(count):
        label = list(words)[i % 3]
        rows.append(Labelled(" ".join(generator.choice(words[label], 2)) + f" {i % 4}", label, lang))
    return rows


@pytest.mark.parametrize("protocol", ["one-sided", "paper"])
def test_classification_is_a_logistic_regression_on_the_examples_drawn(protocol: ProtocolName) -> None:
    """Accuracy and macro F1 equal scikit-learn's on the drawn examples: unit rows, under "paper" the raw ones."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, f1_score

    embedder, train, test = Recorder(), _rows(60, 1), _rows(30, 2)
    encoder = ProtocolEncoder(embedder, protocol, "Compare")
    report = evaluate_classification(encoder, train, test, per_label=4, experiments=3, seed=5)
    accuracies, f1s = [], []
    for seed in (5, 6, 7):
        rows = draw(train, 4, seed)
        assert [[train[i].label for i in rows].count(name) for name in ("weather", "food", "2")] == [4, 4, 4]
        texts = [train[i].text for i in rows], [r.text for r in test]
        if protocol == "paper":
            known, asked = (np.stack([embedder.vector(told(t)) for t in side]) for side in texts)
        else:
            known, asked = (embedder.units(side) for side in texts)
        model = LogisticRegression(max_iter=100).fit(known.astype(np.float32), [train[i].label for i in rows])
        answers = model.predict(asked.astype(np.float32))
        accuracies.append(accuracy_score([r.label for r in test], answers))
        f1s.append(f1_score([r.label for r in test], answers, average="macro"))
    assert report.overall.measures["accuracy"] == pytest.approx(np.mean(accuracies))
    assert report.overall.measures["f1"] == pytest.approx(np.mean(f1s))
    assert report.overall.measures["std"] == pytest.approx(np.std(accuracies))
    assert report.facts["normalized"] is (protocol == "one-sided")


def test_classification_refuses_labels_that_were_never_shown() -> None:
    """A test label that no training text has, and a training file of one label, are errors that name it."""
    rows = _rows(9, 0)
    with pytest.raises(InputError, match="'stones'"):
        evaluate_classification(ProtocolEncoder(Recorder()), rows, [Labelled("x", "stones")])
    with pytest.raises(InputError, match="1 label"):
        evaluate_classification(ProtocolEncoder(Recorder()), [Labelled("x", "a")], [Labelled("x", "a")])


def test_clustering_is_scikit_learns_v_measure() -> None:
    """The V-measure equals mini-batch k-means and v_measure_score directly, the mean over seeds; languages apart."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.metrics import v_measure_score

    embedder = Recorder()
    rows = _rows(45, 3) + _rows(30, 4, "de") + [Labelled("pluie", "weather", "fr")]
    report = evaluate_clustering(ProtocolEncoder(embedder), rows, experiments=2, seed=1)
    vectors = embedder.units([r.text for r in rows]).astype(np.float32)
    labels = [r.label for r in rows]
    expected = [
        v_measure_score(labels, MiniBatchKMeans(3, batch_size=512, n_init=1, random_state=s).fit_predict(vectors))
        for s in (1, 2)
    ]  # fmt: skip
    assert report.overall.measures["v_measure"] == pytest.approx(np.mean(expected))
    assert [(g.group, g.count) for g in report.groups] == [("de", 30), ("en", 45), ("fr", 1)]
    assert report.groups[2].measures["v_measure"] is None
    assert evaluate_clustering(ProtocolEncoder(embedder), rows, experiments=2, seed=1) == report


@pytest.mark.parametrize("length", [64, 256, 1000])
def test_passkey_notes_have_the_length_in_the_embedders_own_tokens(length: int) -> None:
    """Every note of the bundled model is at most `length` tokens and at most a sentence shorter."""
    embedder = get_embedder("bundled")
    made = make_passkeys(embedder.count_tokens, length)
    assert made.tokens == tuple(embedder.count_tokens(made.documents))
    assert max(made.tokens) <= length and min(made.tokens) > length - 20
    assert (len(made.documents), len(made.queries), len(set(made.answers))) == (100, 50, 50)
    for question, answer in zip(made.queries, made.answers, strict=True):
        person = question.removeprefix("What is the pass key of ").removesuffix("?")
        assert [person in note for note in made.documents].count(True) == 1
        assert person in made.documents[answer]
    assert make_passkeys(embedder.count_tokens, length) == made
    assert make_passkeys(embedder.count_tokens, length, seed=1).documents != made.documents


def test_passkey_keys_stand_anywhere_in_the_note() -> None:
    """The key's place varies from the first tenth of a note to the last."""
    made = make_passkeys(get_embedder("bundled").count_tokens, 512)
    places = [note.index("The pass key of") / len(note) for note in made.documents]
    assert min(places) < 0.1 and max(places) > 0.8


def test_passkey_falls_where_the_key_lies_beyond_what_the_embedder_reads() -> None:
    """The bundled model reads 256 tokens: short notes are told apart, of long ones about those whose key comes early."""
    encoder = ProtocolEncoder(get_embedder("bundled"))
    report = evaluate_passkey(encoder, [64, 700], candidates=16, queries=16)
    short, long = (g.measures["top-1"] for g in report.groups)
    assert short is not None and long is not None
    assert short > 0.5 and long < 0.6 * short
    assert report.facts["chance"] == pytest.approx(1 / 16)


def test_bm25_alone_solves_the_passkey_test() -> None:
    """BM25 finds every note at a length far beyond a transformer's window: it proves length, not understanding."""
    made = make_passkeys(lambda texts: [len(t.split()) for t in texts], 4000)
    notes = [Counter(re.findall(r"\w+", note.lower())) for note in made.documents]
    seen = Counter(word for note in notes for word in note)
    mean = np.mean([note.total() for note in notes])
    for question, answer in zip(made.queries, made.answers, strict=True):
        scores = np.zeros(len(notes))
        for word in re.findall(r"\w+", question.lower()):
            rarity = np.log(1 + (len(notes) - seen[word] + 0.5) / (seen[word] + 0.5))
            for i, note in enumerate(notes):
                scores[i] += (
                    rarity * note[word] * 2.2 / (note[word] + 1.2 * (0.25 + 0.75 * note.total() / mean))
                )
        assert int(scores.argmax()) == answer


def test_a_length_that_holds_no_key_is_refused() -> None:
    """Ten tokens are too few, and the sentence says how many it takes."""
    with pytest.raises(InputError, match="length 10 is too short"):
        make_passkeys(get_embedder("bundled").count_tokens, 10)


def test_an_untrained_embedder_is_told_nothing_unless_asked() -> None:
    """The kind's own instruction goes to instruction-trained embedders alone; words of yours go to any."""
    assert choose_instruction(Recorder(), "sts") == "Retrieve semantically similar text"
    assert choose_instruction(Recorder(trained=False), "sts") is None
    assert choose_instruction(Recorder(trained=False), "sts", None, "Compare") == "Compare"


def test_raw_vectors_keep_the_length_the_embedder_gave() -> None:
    """`encode_rendered` adds no template; without `normalize` the rows are what `_embed` returned."""
    embedder = Recorder()
    found = embedder.encode_rendered(["rain", "sun and wind"], normalize=False)
    expected = np.stack([embedder.vector("rain"), embedder.vector("sun and wind")])
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    unit = embedder.encode_rendered(["rain"])
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-6)


PAIRS = (Pair("a", "b", 1.5, ("en", "de"), "test"), Pair("c", "d", 2.0, ("und", "und")))


def test_pairs_are_read_from_json_lines_columns_and_gzip(tmp_path: Path) -> None:
    """JSON lines, named columns and bare columns give the same pairs."""
    rows: list[dict[str, object]] = [
        {"sentence1": "a", "sentence2": "b", "score": 1.5, "lang1": "en", "lang2": "de", "split": "test", "set": "x"},
        {"sentence1": "c", "sentence2": "d", "score": 2},
    ]  # fmt: skip
    with gzip.open(tmp_path / "p.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "named.tsv").write_text(
        "sentence1\tsentence2\tscore\tlang1\tlang2\tsplit\na\tb\t1.5\ten\tde\ttest\nc\td\t2\t\t\t\n"
    )
    (tmp_path / "bare.tsv").write_text("a\tb\t1.5\nc\td\t2\n")
    assert read_pairs(tmp_path / "p.jsonl.gz", scored=True) == list(PAIRS)
    assert read_pairs(tmp_path / "named.tsv", scored=True) == list(PAIRS)
    assert [(p.first, p.second, p.score) for p in read_pairs(tmp_path / "bare.tsv", scored=True)] == [
        ("a", "b", 1.5),
        ("c", "d", 2.0),
    ]


def test_training_rows_and_labels_are_read(tmp_path: Path) -> None:
    """`query` and `positive` are a pair, a whole number is a label, and --lang and --split choose records."""
    (tmp_path / "p.jsonl").write_text('{"query": "a", "positive": "b", "lang_q": "en", "lang_d": "fr"}\n')
    assert read_pairs(tmp_path / "p.jsonl", scored=False) == [Pair("a", "b", None, ("en", "fr"))]
    (tmp_path / "l.jsonl").write_text(
        '{"text": "a", "label": 3, "lang": "en"}\n{"text": "b", "label": "x"}\n'
    )
    rows = read_labelled(tmp_path / "l.jsonl")
    assert rows == [Labelled("a", "3", "en"), Labelled("b", "x")]
    assert restrict(rows, "l", ["en"], None) == rows[:1]
    with pytest.raises(InputError, match="no record of l is left of 2: its languages are en, und"):
        restrict(rows, "l", ["fr"], None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no record"),
        ('{"sentence1": "a", "score": 1}\n', "line 1: needs a \"sentence2\" that is not empty, got None"),
        ('{"sentence1": "a", "sentence2": "b", "score": "high"}\n', "line 1: needs a \"score\" that is a number"),
        ('{"sentence1": "a", "sentence2": "b", "score": NaN}\n', "line 1: needs a \"score\" that is a number"),
        ('{"sentence1": "a", "sentence2": "b", "score": 1}\n[1]\n', "line 2: needs an object, got list"),
        ("a\tb\n", "line 1: needs 3 tab-separated columns"),
        ('{"sentence1": "a", "sentence2": "b", "score": 1, "lang": 3}\n', '"lang" must be a string'),
    ],
)  # fmt: skip
def test_a_broken_record_is_named_by_its_line(tmp_path: Path, content: str, message: str) -> None:
    """What is wrong with a record is said with its file and line."""
    path = tmp_path / "p.txt"
    path.write_text(content)
    with pytest.raises(CorpusError) as caught:
        read_pairs(path, scored=True)
    assert message in str(caught.value) and str(path) in str(caught.value)
