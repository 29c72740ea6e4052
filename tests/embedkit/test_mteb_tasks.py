"""Tasks of the real library mteb, defined here in memory, against figures computed directly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedkit.errors import InputError, UnknownNameError
from embedkit.evaluation.protocol import ProtocolName
from tests.embedkit.test_evaluation_kinds import Recorder, told

pytest.importorskip("mteb")

from embedkit.evaluation.mteb_names import find_tasks
from embedkit.evaluation.mteb_tasks import MtebEncoder, MtebScore, run_tasks
from embedkit.evaluation.mteb_wording import mteb_instruction

TASKS = """
from datasets import Dataset, DatasetDict
from mteb.abstasks.classification import AbsTaskClassification
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.abstasks.text.bitext_mining import AbsTaskBitextMining


def described(name, kind, score):
    return TaskMetadata(
        name=name, type=kind, main_score=score, description="A few texts.", reference=None, category="t2t",
        dataset={"path": "local", "revision": "1"}, modalities=["text"], eval_splits=["test"],
        eval_langs=["eng-Latn"], date=("2024-01-01", "2024-01-02"), domains=[], task_subtypes=[], dialect=[],
        license="cc0-1.0", annotations_creators="derived", sample_creation="created", bibtex_citation="",
    )


class LocalSTS(AbsTaskSTS):
    metadata = described("LocalSTS", "STS", "cosine_spearman")

    def load_data(self, **options):
        columns = {
            "sentence1": ["a dog runs", "a cat sleeps", "rain falls", "tea is hot", "she reads"],
            "sentence2": ["the dog runs far", "stocks fell", "rain today", "cold tea", "he reads books"],
            "score": [4.5, 0.0, 3.5, 2.0, 2.5],
        }
        self.dataset = DatasetDict({"test": Dataset.from_dict(columns)})
        self.data_loaded = True


class LocalRetrieval(AbsTaskRetrieval):
    metadata = described("LocalRetrieval", "Retrieval", "ndcg_at_10")

    def load_data(self, **options):
        documents = ["git commit stores changes", "a mosquito net keeps insects away", "", "changes in the net"]
        self.queries = {"test": {"q0": "git stores what", "q1": "net against insects", "q2": "what changes"}}
        self.corpus = {"test": {f"d{i}": {"title": "", "text": t} for i, t in enumerate(documents)}}
        self.relevant_docs = {"test": {"q0": {"d0": 1}, "q1": {"d1": 1}, "q2": {"d3": 1}}}
        self.convert_v1_dataset_format_to_v2(num_proc=1)
        self.data_loaded = True


class LocalBitext(AbsTaskBitextMining):
    metadata = described("LocalBitext", "BitextMining", "accuracy")

    def load_data(self, **options):
        first = [f"n{i} thing" for i in range(9)]
        second = [f"n{i if i % 3 else i // 2} Ding x{i}" for i in range(9)]
        self.dataset = DatasetDict({"test": Dataset.from_dict({"sentence1": first, "sentence2": second})})
        self.data_loaded = True


class LocalClassification(AbsTaskClassification):
    metadata = described("LocalClassification", "Classification", "accuracy")
    n_experiments = 2

    def load_data(self, **options):
        texts = ["good film", "nice film", "bad film", "awful film"] * 3
        data = Dataset.from_dict({"text": texts, "label": [1, 1, 0, 0] * 3})
        self.dataset = DatasetDict({"train": data, "test": data})
        self.data_loaded = True
"""


@pytest.fixture(scope="module")
def tasks_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python file that defines four tasks."""
    path = tmp_path_factory.mktemp("mteb") / "local_tasks.py"
    path.write_text(TASKS)
    return path


def _run(
    tasks_file: Path, protocol: ProtocolName, told: str | None = "Compare"
) -> tuple[Recorder, dict[str, MtebScore]]:
    embedder = Recorder()
    scores = run_tasks(MtebEncoder(embedder, protocol, told), find_tasks([str(tasks_file)]))
    return embedder, {s.task: s for s in scores}


@pytest.mark.parametrize("protocol", ["one-sided", "paper"])
def test_mteb_measures_what_the_protocol_encodes(tasks_file: Path, protocol: ProtocolName) -> None:
    """mteb's main scores equal direct computations with the instruction on the query side, or under "paper" on both."""
    from scipy.stats import spearmanr

    embedder, scores = _run(tasks_file, protocol)

    def other(texts: list[str]) -> list[str]:
        return [told(t) for t in texts] if protocol == "paper" else texts

    first = ["a dog runs", "a cat sleeps", "rain falls", "tea is hot", "she reads"]
    second = ["the dog runs far", "stocks fell", "rain today", "cold tea", "he reads books"]
    cosines = (embedder.units([told(t) for t in first]) * embedder.units(other(second))).sum(axis=1)
    expected = spearmanr(cosines, [4.5, 0.0, 3.5, 2.0, 2.5]).statistic
    assert scores["LocalSTS"].score == pytest.approx(expected)

    columns = [f"n{i} thing" for i in range(9)], [f"n{i if i % 3 else i // 2} Ding x{i}" for i in range(9)]
    similarity = embedder.units([told(t) for t in columns[0]]) @ embedder.units(other(columns[1])).T
    accuracy = float(np.mean(similarity.argmax(axis=1) == np.arange(9)))
    assert 0 < accuracy < 1
    assert scores["LocalBitext"].score == pytest.approx(accuracy)


def test_retrieval_instructs_the_query_alone_under_either_protocol(tasks_file: Path) -> None:
    """The documents of retrieval stay bare in the paper too, an empty one included; classification follows the protocol."""
    for protocol, classified in (("one-sided", "good film"), ("paper", told("good film"))):
        embedder, scores = _run(tasks_file, protocol)  # type: ignore[arg-type]
        assert scores["LocalRetrieval"].instructed == "the query side"
        seen = {t for t in embedder.seen if "git" in t}
        assert seen == {told("git stores what"), "git commit stores changes"}
        assert {t for t in embedder.seen if "good film" in t} == {classified}
        assert scores["LocalRetrieval"].score is not None and scores["LocalRetrieval"].score > 0.8


def test_classification_vectors_keep_their_length_under_the_papers_protocol() -> None:
    """Under "paper" a classification's rows have the embedder's own length (3 to 4 here), else length 1."""

    class Metadata:
        name, type = "X", "Classification"

    lengths = {}
    for protocol in ("one-sided", "paper"):
        encoder = MtebEncoder(Recorder(), protocol)
        rows = encoder.encode([{"text": ["a", "b c"]}], task_metadata=Metadata, hf_split="", hf_subset="")
        lengths[protocol] = np.linalg.norm(rows, axis=1)
    assert np.allclose(lengths["one-sided"], 1)
    assert (lengths["paper"] > 2.9).all()


def test_without_words_of_yours_each_task_gets_its_own(tasks_file: Path) -> None:
    """The instruction comes from the task's name, else its type; an untrained embedder gets none."""
    _, scores = _run(tasks_file, "one-sided", None)
    assert scores["LocalSTS"].instruction == "Retrieve semantically similar text"
    assert MtebEncoder(Recorder(trained=False)).instruction_for("STS12", "STS") is None
    assert "claim" in mteb_instruction("SciFact", "Retrieval")
    assert "code" in mteb_instruction("CodeSearchNetRetrieval", "Retrieval")
    assert "question" in mteb_instruction("MIRACLRetrieval", "Retrieval")
    assert mteb_instruction("Unheard", "Clustering") == "Identify the topic that the given text is about"


def test_results_are_kept_apart_by_protocol_and_instruction(tasks_file: Path, tmp_path: Path) -> None:
    """With a cache folder a task is not run again, except under another protocol or instruction."""

    def encoded(protocol: ProtocolName, told: str | None) -> int:
        embedder = Recorder()
        run_tasks(MtebEncoder(embedder, protocol, told), find_tasks([str(tasks_file)])[:1], cache=tmp_path)
        return len(embedder.seen)

    assert encoded("one-sided", None) > 0
    assert encoded("one-sided", None) == 0
    assert encoded("paper", None) > 0
    assert encoded("one-sided", "Compare") > 0


def test_names_are_found_or_answered_with_near_ones(tasks_file: Path, tmp_path: Path) -> None:
    """A task, a benchmark and a file are found; a wrong name, language, split or file is one sentence."""
    assert [t.metadata.name for t in find_tasks(["STS12"])] == ["STS12"]
    assert {"SciFact", "NFCorpus"} <= {t.metadata.name for t in find_tasks(["BEIR"])}
    assert find_tasks(["MIRACLRetrieval"], langs=["deu"])[0].hf_subsets == ["de"]
    with pytest.raises(UnknownNameError, match="did you mean .*MIRACLRetrieval"):
        find_tasks(["MIRACL"])
    with pytest.raises(InputError, match="has the languages deu"):
        find_tasks([str(tasks_file)], langs=["deu"])
    with pytest.raises(InputError, match="no split 'dev': it is evaluated on test"):
        find_tasks(["STS12"], split="dev")
    with pytest.raises(InputError, match="is no Python file"):
        find_tasks([str(tmp_path / "none.py")])
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(InputError, match="defines no mteb task"):
        find_tasks([str(tmp_path / "empty.py")])


def test_a_task_that_fails_is_named(tasks_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set that cannot be fetched ends as one sentence with the task's name."""
    task: Any = find_tasks([str(tasks_file)])[0]

    def unreachable(**options: Any) -> None:
        raise ConnectionError("Couldn't reach\nthe hub")

    monkeypatch.setattr(task, "load_data", unreachable)
    with pytest.raises(InputError, match=r"LocalClassification|LocalSTS.*Couldn't reach the hub"):
        run_tasks(MtebEncoder(Recorder()), [task])
