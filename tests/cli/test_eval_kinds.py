"""`embedkit eval --kind`: similarity, bitext, classification, clustering, passkey, mteb, and code in several languages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedkit import get_embedder
from tests.cli.conftest import Invoke

STS = [
    ("a dog runs in the park", "a dog is running outside", 4.6, "en"),
    ("she buys bread", "the river is wide", 0.2, "en"),
    ("it rains today", "the weather is wet", 3.4, "en"),
    ("he plays the guitar", "a man plays an instrument", 4.0, "en"),
    ("ein Hund rennt", "ein Hund läuft", 4.5, "de"),
    ("der Zug kommt", "die Suppe ist heiß", 0.0, "de"),
    ("das Kind liest", "ein Kind liest ein Buch", 3.8, "de"),
]
WEATHER = ["rain all day", "a storm is coming", "sunny and warm", "snow in the hills", "fog at dawn"]
FOOD = ["fresh bread", "a bowl of soup", "rice with beans", "grilled fish", "a slice of cake"]


def _evaluate(invoke: Invoke, *arguments: Any) -> dict[str, Any]:
    result = invoke("eval", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def sts(tmp_path: Path) -> Path:
    """Seven scored pairs in two languages."""
    names = ("sentence1", "sentence2", "score", "lang")
    return _write(tmp_path / "sts.jsonl", [dict(zip(names, row, strict=True)) for row in STS])


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """A folder with train.jsonl and test.jsonl of two labels."""
    folder = tmp_path / "labelled"
    folder.mkdir()
    for name, cut in (("train", slice(0, 3)), ("test", slice(3, 5))):
        rows = [{"text": t, "label": "weather"} for t in WEATHER[cut]]
        _write(folder / f"{name}.jsonl", rows + [{"text": t, "label": "food"} for t in FOOD[cut]])
    return folder


def test_an_instruction_without_end_is_told(invoke: Invoke, sts: Path) -> None:
    """Where the instruction fills the embedder's length, the figures carry a note that says so."""
    found = _evaluate(invoke, "--kind", "sts", sts, "--instruction", "tide " * 300)
    assert found["note"].startswith(
        "the instruction fills the 256 tokens that embedkit-small-v1 reads: nothing "
    )
    assert _evaluate(invoke, "--kind", "sts", sts, "--instruction", "tide " * 30)["note"] is None


def test_sts_of_the_bundled_model_is_scipys_spearman(invoke: Invoke, sts: Path) -> None:
    """The figures equal scipy's on the bundled model's cosines, overall and by language; --lang takes one language."""
    from scipy.stats import spearmanr

    found = _evaluate(invoke, "--kind", "sts", sts)
    embedder = get_embedder()
    told = "Retrieve semantically similar text"
    first = embedder.encode_query([row[0] for row in STS], instruction=told)
    second = embedder.encode_document([row[1] for row in STS])
    cosines = np.einsum("ij,ij->i", first, second)
    gold = [row[2] for row in STS]
    assert found["overall"]["spearman"] == pytest.approx(spearmanr(cosines, gold).statistic)
    by_group = {g["group"]: g for g in found["groups"]}
    assert by_group["en"]["spearman"] == pytest.approx(spearmanr(cosines[:4], gold[:4]).statistic)
    assert (found["protocol"], found["instruction"], found["instructed"]) == (
        "one-sided",
        told,
        "the query side",
    )
    german = _evaluate(invoke, "--kind", "sts", sts, "--lang", "de")
    assert german["overall"]["spearman"] == pytest.approx(by_group["de"]["spearman"])


def test_the_protocol_decides_which_side_is_instructed(invoke: Invoke, sts: Path, words: Path) -> None:
    """An instruction goes on the query side, or with --protocol paper on both; an untrained model is remarked upon."""
    told = [sts, "--kind", "sts", "--instruction", "Find the same meaning"]
    untrained = _evaluate(invoke, *told, "--embedder", words)
    assert "was not trained on instructions" in untrained["note"]
    one, both = (_evaluate(invoke, *told, "--protocol", p) for p in ("one-sided", "paper"))
    assert (one["instructed"], both["instructed"]) == ("the query side", "both sides")
    assert one["note"] is None
    assert one["overall"] != both["overall"]
    by_task = _evaluate(invoke, sts, "--kind", "sts", "--task", "paraphrase")
    assert by_task["instruction"] == "Retrieve semantically similar text"


def test_bitext_is_measured_both_ways(invoke: Invoke, tmp_path: Path) -> None:
    """Tab-separated columns of translations give F1 and accuracy forward and backward."""
    path = tmp_path / "pairs.tsv"
    path.write_text("a red house\tla casa rossa\nthe cat\tthe cat\nmusic\tmusic and song\n", encoding="utf-8")
    found = _evaluate(invoke, "--kind", "bitext", path)
    assert set(found["overall"]) == {
        "group", "count", "f1 forward", "accuracy forward", "f1 backward", "accuracy backward"
    }  # fmt: skip
    assert found["overall"]["accuracy forward"] == 1.0


def test_classification_takes_a_folder_or_two_files(invoke: Invoke, labelled: Path) -> None:
    """Both ways of naming the files give the same figures; the bundled model tells weather from food."""
    kind = ["--kind", "classification", "--experiments", "3"]
    folder = _evaluate(invoke, *kind, labelled)
    files = _evaluate(invoke, *kind, labelled / "train.jsonl", labelled / "test.jsonl")
    assert folder["overall"] == files["overall"]
    assert folder["overall"]["accuracy"] >= 0.75
    assert folder["normalized"] is True


def test_the_papers_classification_says_whether_vectors_were_normalised(
    invoke: Invoke, labelled: Path, words: Path
) -> None:
    """Under --protocol paper a model that normalises its vectors itself is remarked upon; one that does not is not."""
    paper = ["--kind", "classification", labelled, "--protocol", "paper"]
    raw = _evaluate(invoke, *paper, "--embedder", words)
    assert raw["normalized"] is False and raw["note"] is None
    assert raw["shortest"] < 0.99
    unit = _evaluate(invoke, *paper)
    assert unit["normalized"] is (unit["note"] is not None)


def test_clustering_is_seeded(invoke: Invoke, tmp_path: Path) -> None:
    """Two subjects are told apart, the same way for the same seed."""
    rows = [{"text": t, "label": k} for k, texts in (("w", WEATHER), ("f", FOOD)) for t in texts]
    path = _write(tmp_path / "rows.jsonl", rows)
    first, again = (_evaluate(invoke, "--kind", "clustering", path, "--experiments", "3") for _ in range(2))
    assert first["overall"] == again["overall"]
    assert 0 < first["overall"]["v_measure"] <= 1
    assert first["experiments"] == 3


def test_passkey_gives_a_row_a_length(invoke: Invoke) -> None:
    """Each length asked for is a group; by default those that the embedder reads, and a note says so."""
    found = _evaluate(invoke, "--kind", "passkey", "--lengths", "48,64")
    assert [g["group"] for g in found["groups"]] == ["48", "64"]
    assert found["groups"][0]["top-1"] > 0.3  # of 50 notes that differ in a name and a number
    assert found["groups"][1]["tokens"] <= 64
    result = invoke("eval", "--kind", "passkey", env={"COLUMNS": "120"})
    assert result.exit_code == 0
    assert "top-1" in result.stdout and "256" in result.stdout and "512" not in result.stdout
    assert "reads 256 tokens: longer texts are left out" in result.stderr


CODE = {
    "python": ["def add(a, b):\n    return a + b", "def read(path):\n    return open(path).read()"],
    "go": ["func Add(a int, b int) int { return a + b }", "func Read(path string) []byte { return os.ReadFile(path) }"],
    "javascript": ["function add(a, b) { return a + b; }", "const read = path => fs.readFileSync(path);"],
    "sql": ["SELECT a + b AS total FROM numbers", "SELECT content FROM files WHERE path = ?"],
}  # fmt: skip


def test_code_search_is_measured_by_programming_language(invoke: Invoke, tmp_path: Path) -> None:
    """Documents whose `lang` is a programming language give one row for each, in CodeSearchNet's layout."""
    documents = [
        {"_id": f"{lang}{i}", "text": code, "lang": lang}
        for lang, codes in CODE.items()
        for i, code in enumerate(codes)
    ]
    asked = ("add two numbers", "read the content of a file")
    queries = [
        {"_id": f"q-{lang}-{i}", "text": f"{text} in {lang}", "lang": "en"}
        for lang in CODE
        for i, text in enumerate(asked)
    ]
    _write(tmp_path / "corpus.jsonl", documents)
    _write(tmp_path / "queries.jsonl", queries)
    rows = [f"q-{lang}-{i}\t{lang}{i}\t1\n" for lang in CODE for i in range(2)]
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))
    found = _evaluate(invoke, tmp_path, "--task", "code")
    pairs = {(p["query"], p["document"]): p for p in found["languages"]}
    assert set(pairs) == {("en", lang) for lang in CODE}
    assert all(p["queries"] == 2 and p["nDCG@10"] > 0.6 for p in pairs.values())
    alone = _evaluate(invoke, tmp_path, "--task", "code", "--doc-lang", "go")
    assert alone["documents"] == 2
    assert alone["overall"]["nDCG@10"] == pairs[("en", "go")]["nDCG@10"]


def test_mteb_runs_a_task_of_a_file(invoke: Invoke, tmp_path: Path) -> None:
    """A task defined in a Python file is run by the real mteb; the table and the JSON hold its main score."""
    pytest.importorskip("mteb")
    from tests.embedkit.test_mteb_tasks import TASKS

    path = tmp_path / "local_tasks.py"
    path.write_text(TASKS.partition("class LocalRetrieval")[0])
    found = _evaluate(invoke, "--kind", "mteb", path, "--protocol", "paper", "--cache", tmp_path / "cache")
    assert [(t["task"], t["metric"]) for t in found["tasks"]] == [("LocalSTS", "cosine_spearman")]
    assert found["tasks"][0]["score"] == found["mean"] == found["tasks"][0]["subsets"]["test"]["default"]
    shown = invoke("eval", "--kind", "mteb", path, "--cache", tmp_path / "cache", env={"COLUMNS": "120"})
    assert shown.exit_code == 0 and "LocalSTS" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kind", "sts"], "error: --kind sts takes one file; 0 SOURCEs are given"),
        (["--kind", "sts", "{tmp}/none.jsonl"], "error: {tmp}/none.jsonl: No such file"),
        (["--kind", "sts", "{tmp}/bad.jsonl"], "error: {tmp}/bad.jsonl, line 1: needs a \"score\""),
        (["--kind", "sts", "{tmp}/bad.jsonl", "--lengths", "5"], "error: --lengths is for --kind passkey, not for sts"),
        (["--kind", "bitext", "{tmp}/bad.jsonl", "--lang", "xx"], "error: no record of {tmp}/bad.jsonl is left of 1"),
        (["--kind", "passkey", "{tmp}/bad.jsonl"], "error: --kind passkey takes no SOURCE"),
        (["--kind", "passkey", "--lengths", "a,b"], "error: --lengths 'a,b' is no list of token counts"),
        (["--kind", "passkey", "--lengths", "5"], "error: length 5 is too short for a pass key"),
        (["--kind", "classification", "{tmp}"], "error: {tmp} is no folder with train.jsonl and test.jsonl"),
        (["--kind", "clustering", "{tmp}/bad.jsonl"], "error: {tmp}/bad.jsonl, line 1: needs a \"label\""),
        (["--kind", "clustering", "{tmp}/bad.jsonl", "--instruction", "x"], "error: clustering has no query"),
        (["--kind", "clustering", "{tmp}/bad.jsonl", "--seed", "-1"], "error: invalid value for '--seed'"),
        (["--kind", "mteb"], "error: --kind mteb takes names of mteb tasks"),
        (["--kind", "nonsense", "x"], "error: invalid value for '--kind'"),
        (["--split", "test", "{tmp}"], "error: --split is for --kind sts, bitext, clustering, mteb, not for retrieval"),
        (["{tmp}/bad.jsonl"], "error: {tmp}/bad.jsonl is no BEIR folder"),
        ([], "error: retrieval is measured on one SOURCE"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(
    invoke: Invoke, tmp_path: Path, arguments: list[str], message: str
) -> None:
    """Each mistake ends with exit code 2 and one sentence."""
    _write(tmp_path / "bad.jsonl", [{"sentence1": "a", "sentence2": "b", "text": "a"}])
    result = invoke("eval", *(a.format(tmp=tmp_path) for a in arguments))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(message.format(tmp=tmp_path))
    assert result.stderr.count("\n") == 1


def test_rope_base_and_window_reach_the_transformer(invoke: Invoke, tmp_path: Path) -> None:
    """Passkey under --rope-base and --window runs on a transformer, and is refused by an embedder that has neither."""
    pytest.importorskip("torch")
    from tests.embedkit.tiny_models import LLAMA, save_model

    model = save_model(tmp_path / "model", "Mistral", LLAMA)
    run = ["--kind", "passkey", "--lengths", "200", "--embedder", model]
    found = _evaluate(invoke, *run, "--rope-base", "50", "--window", "16")
    assert found["groups"][0]["count"] == 50 and found["groups"][0]["tokens"] <= 200
    refused = invoke("eval", "--kind", "passkey", "--lengths", "64", "--rope-base", "50")
    assert refused.exit_code == 2
    assert "option of the embedder 'openvino'" in refused.stderr and "rope_theta" in refused.stderr
