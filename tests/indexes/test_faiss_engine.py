"""The search engines by themselves, and their way over a GPU."""

from __future__ import annotations

import json
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from embedkit.errors import CorruptIndexError, InputError
from embedkit_indexes import (
    engine_approximate,
    engine_cells,
    engine_exact,
    engine_lists,
    faiss_engine,
    planner,
    tuning,
)
from embedkit_indexes.faiss_engine import Engine, EngineConfig, SearchEffort
from embedkit_indexes.rows import RowSet

ROWS, DIM = 5000, 32


CODED = ("ivf-pq", "ivf-rabitq")  # one file has its cells mapped by embedkit, one by FAISS


def _vectors(count: int, dim: int = DIM, seed: int = 0) -> NDArray[np.float32]:
    """Unit vectors around 60 centres, row i about centre i % 60."""
    centres = np.random.default_rng(99).standard_normal((60, dim))
    out = centres[np.arange(count) % 60] + np.random.default_rng(seed).standard_normal((count, dim))
    return np.asarray(out / np.linalg.norm(out, axis=1, keepdims=True), dtype=np.float32)


VECTORS = _vectors(ROWS).astype(np.float16)
ASKED = _vectors(60, seed=1)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep FAISS to one thread and its measuring short: the tests' cores are shared."""
    monkeypatch.setenv("EMBEDKIT_THREADS", "1")
    monkeypatch.setattr(tuning, "QUERIES", 100)


def _truth(queries: NDArray[np.float32], k: int, allowed: RowSet | None = None) -> NDArray[np.int64]:
    product = queries @ VECTORS.astype(np.float32).T
    if allowed is not None:
        product[:, ~allowed.mask] = -9
    return np.argsort(-product, axis=1, kind="stable")[:, :k]


def _recall(found: NDArray[np.int64], truth: NDArray[np.int64]) -> float:
    return float(np.mean([len(set(f) & set(t)) / len(t) for f, t in zip(found, truth, strict=True)]))


def _share(share: float, seed: int = 0) -> RowSet:
    return RowSet(np.random.default_rng(seed).random(ROWS) < share)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """One engine of each kind over the same vectors."""
    out = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBEDKIT_THREADS", "1")
        patch.setattr(tuning, "QUERIES", 100)
        for kind in ("ivf-pq", "ivf-rabitq", "ivf-sq8", "hnsw", "IVF50,Flat", "PQ16x4fs"):
            folder = tmp_path_factory.mktemp("engine")
            out[kind] = folder, faiss_engine.build(folder, VECTORS, EngineConfig(kind))
    return out


def _open(built: dict[str, tuple[Path, dict[str, Any]]], kind: str) -> Engine:
    folder, description = built[kind]
    return faiss_engine.open_engine(folder, VECTORS, json.loads(json.dumps(description)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("count", [1, 7, 1000])
@pytest.mark.parametrize("queries", [1, 3, 50])
def test_the_exact_engine_is_a_sorted_product(count: int, queries: int, dtype: type) -> None:
    """Scores and rows are those of NumPy in float32; where k exceeds the rows, the rest is -1."""
    vectors: NDArray[np.floating[Any]] = _vectors(count).astype(dtype)
    asked = _vectors(queries, seed=1)
    scores, rows = faiss_engine.ExactEngine(vectors).search(asked, 10)
    product = asked @ vectors.astype(np.float32).T
    kept = min(10, count)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores[:, :kept], -np.sort(-product, axis=1)[:, :kept], atol=1e-5)
    np.testing.assert_allclose(
        np.take_along_axis(product, rows[:, :kept], axis=1), scores[:, :kept], atol=1e-5
    )
    assert (rows[:, kept:] == -1).all()
    assert np.isneginf(scores[:, kept:]).all()


def test_no_rows_and_no_queries_give_empty_answers() -> None:
    """An empty segment, an empty filter and an empty batch are searched like any other."""
    empty = faiss_engine.ExactEngine(np.empty((0, DIM), np.float16))
    assert (empty.search(ASKED[:2], 3)[1] == -1).all()
    full = faiss_engine.ExactEngine(VECTORS)
    assert full.search(ASKED[:0], 3)[1].shape == (0, 3)
    assert (full.search(ASKED[:2], 3, RowSet(np.zeros(ROWS, bool)))[1] == -1).all()


def test_vectors_are_not_copied() -> None:
    """The FAISS index reads the array's own memory: what is written there changes the answer."""
    own = VECTORS.copy()
    index = engine_exact.wrap(faiss, own)
    own[123] = ASKED[0]
    assert index.search(ASKED[:1], 1)[1][0, 0] == 123


@pytest.mark.parametrize("queries", [1, 60])
@pytest.mark.parametrize("share", [0.95, 0.5, 0.1, 0.003])
def test_a_subset_is_searched_exactly(monkeypatch: pytest.MonkeyPatch, queries: int, share: float) -> None:
    """Fetched by number, met by bitmap or in blocks, one query or many: the subset's best rows in order."""
    monkeypatch.setattr(engine_exact, "_BLOCK", 701)
    allowed = _share(share)
    _, rows = faiss_engine.ExactEngine(VECTORS).search(ASKED[:queries], 10, allowed)
    truth = _truth(ASKED[:queries], 10, allowed)
    assert _recall(rows, truth) > 0.999
    assert allowed.mask[rows].all()


@pytest.mark.parametrize("queries", [1, 30])
def test_equal_scores_are_ordered_by_row(queries: int) -> None:
    """Documents of the same vector come in their order in the segment."""
    vectors = np.repeat(_vectors(5).astype(np.float16), 4, axis=0)
    _, rows = faiss_engine.ExactEngine(vectors).search(_vectors(queries), 4)
    assert (np.diff(rows, axis=1) == 1).all()


@pytest.mark.parametrize("kind", ["ivf-pq", "ivf-rabitq", "ivf-sq8", "hnsw", "IVF50,Flat", "PQ16x4fs"])
def test_an_engine_reaches_its_target(built: dict[str, tuple[Path, dict[str, Any]]], kind: str) -> None:
    """With the scores of exact search, for one query and for many; the curve rises to its top."""
    engine = _open(built, kind)
    scores, rows = engine.search(ASKED, 10)
    assert _recall(rows, _truth(ASKED, 10)) > 0.93
    single = np.concatenate([engine.search(q[None], 10)[1] for q in ASKED])
    assert _recall(single, rows) > 0.999
    exact = np.take_along_axis(ASKED @ VECTORS.astype(np.float32).T, rows, axis=1)
    np.testing.assert_allclose(scores, exact, atol=1e-5)
    recalls = [p["recall"] for p in built[kind][1]["curve"]]
    assert recalls == sorted(recalls)
    assert recalls[-1] > 0.97


@pytest.mark.parametrize("kind", CODED)
def test_more_recall_is_more_effort(built: dict[str, tuple[Path, dict[str, Any]]], kind: str) -> None:
    """The asked recall is reached, at the price of a higher nprobe; a recall of one is exact."""
    engine = _open(built, kind)
    low, high = (engine.plan(10, effort=SearchEffort(recall=r)) for r in (0.8, 0.99))
    assert low["nprobe"] < high["nprobe"]
    assert _recall(engine.search(ASKED, 10, effort=SearchEffort(recall=0.99))[1], _truth(ASKED, 10)) > 0.98
    assert engine.plan(10, effort=SearchEffort(recall=1)) == {"engine": "exact", "scanned": ROWS, "k": 10}
    assert _recall(engine.search(ASKED, 10, effort=SearchEffort(recall=1))[1], _truth(ASKED, 10)) == 1


@pytest.mark.parametrize("kind", ["ivf-pq", "ivf-rabitq", "ivf-sq8", "hnsw", "IVF50,Flat", "PQ16x4fs"])
@pytest.mark.parametrize("filtered", ["random", "clusters"])
@pytest.mark.parametrize("share", [0.95, 0.5, 0.1, 0.01])
def test_filters_keep_the_recall(
    built: dict[str, tuple[Path, dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    filtered: str,
    share: float,
) -> None:
    """Whether or not a filter goes with the clusters: recall, k results while k exist, allowed rows alone."""
    # At this size all would be scanned.
    monkeypatch.setattr(planner, "_QUICK", 0.0)
    monkeypatch.setattr(planner, "scan_seconds", lambda rows, count: 1.0)
    allowed = _share(share) if filtered == "random" else RowSet(np.arange(ROWS) % 60 < max(1, 60 * share))
    _, rows = _open(built, kind).search(ASKED, 10, allowed)
    assert (rows >= 0).all()
    assert allowed.mask[rows].all()
    assert _recall(rows, _truth(ASKED, 10, allowed)) >= 0.93


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        ("ivf-pq", "cells"),
        ("ivf-rabitq", "cells"),
        ("ivf-sq8", "cells"),
        ("IVF50,Flat", "cells"),
        ("hnsw", "probe"),
    ],
)
def test_cells_without_allowed_rows_are_skipped_where_there_are_cells(
    built: dict[str, tuple[Path, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, kind: str, way: str
) -> None:
    """A filter of middling width is sought in its cells; a graph has none, and raises its effort."""
    monkeypatch.setattr(planner, "scan_seconds", lambda rows, count: 1.0)
    assert _open(built, kind).plan(10, _share(0.6))["way"] == way


def test_one_bit_codes_are_compared_with_few_bits_of_the_query(
    built: dict[str, tuple[Path, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAISS's default, the query's floats, finds the same and takes thirty times as long."""
    asked: list[int] = []
    real = faiss.IVFRaBitQSearchParameters

    def recorded(**given: Any) -> Any:
        asked.append(given["qb"])
        return real(**given)

    monkeypatch.setattr(faiss, "IVFRaBitQSearchParameters", recorded)
    _open(built, "ivf-rabitq").search(ASKED, 10)
    assert asked == [4]


@pytest.mark.parametrize("kind", ["ivf-pq", "ivf-rabitq", "hnsw"])
def test_k_may_be_large(built: dict[str, tuple[Path, dict[str, Any]]], kind: str) -> None:
    """Hundreds of results are found; where k exceeds what there is, everything comes, then -1."""
    engine = _open(built, kind)
    assert _recall(engine.search(ASKED[:20], 300)[1], _truth(ASKED[:20], 300)) > 0.9
    allowed = _share(0.5)
    _, rows = engine.search(ASKED[:3], ROWS + 5, allowed)
    assert (np.sort(rows[:, : allowed.count], axis=1) == allowed.numbers).all()
    assert (rows[:, allowed.count :] == -1).all()


@pytest.mark.parametrize("kind", CODED)
def test_too_few_found_are_made_up_for(built: dict[str, tuple[Path, dict[str, Any]]], kind: str) -> None:
    """Where one probed cell holds fewer than k rows, the query is answered exactly."""
    _, rows = _open(built, kind).search(ASKED, 500, effort=SearchEffort(nprobe=1))
    assert (rows >= 0).all()
    assert _recall(rows, _truth(ASKED, 500)) > 0.999


def _advised(path: Path) -> str:
    """Return the flags of the mapping of a file, as Linux tells them."""
    blocks = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").split("VmFlags:")
    return next(flags.splitlines()[0] for before, flags in pairwise(blocks) if str(path) in before)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system tells no flags of mappings")
def test_searches_keep_what_they_touch_and_scans_read_ahead(
    built: dict[str, tuple[Path, dict[str, Any]]], tmp_path: Path
) -> None:
    """Mapped vectors are read here and there, until a search compares all of them."""
    file = tmp_path / "vectors.npy"
    np.save(file, VECTORS)
    folder, description = built["ivf-pq"]
    engine = faiss_engine.open_engine(folder, np.load(file, mmap_mode="r"), description)
    engine.search(ASKED, 10)
    assert " rr" in _advised(file)
    engine.search(ASKED, 10, effort=SearchEffort(recall=1))
    assert " rr" not in _advised(file)


@pytest.mark.parametrize("kind", CODED)
def test_threads_share_an_engine(built: dict[str, tuple[Path, dict[str, Any]]], kind: str) -> None:
    """Eight threads that search at once, filtered and not, get what one gets."""
    engine = _open(built, kind)
    sets = [None, _share(0.95), _share(0.5)]
    alone = [engine.search(ASKED, 10, s)[1] for s in sets]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: engine.search(ASKED, 10, sets[i % 3])[1], range(48)))
    assert all((rows == alone[i % 3]).all() for i, rows in enumerate(together))


@pytest.mark.parametrize("kind", CODED)
def test_many_cells_are_found_by_codes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    """The way of large segments, whose cells are found approximately, reaches the target too."""
    monkeypatch.setattr(engine_cells, "_MANY_CELLS", 64)
    description = faiss_engine.build(tmp_path, VECTORS, EngineConfig(kind))
    _, rows = faiss_engine.open_engine(tmp_path, VECTORS, description).search(ASKED, 10)
    assert _recall(rows, _truth(ASKED, 10)) > 0.93


def test_real_queries_tune_the_engine(tmp_path: Path) -> None:
    """The description says what it was tuned on."""
    description = faiss_engine.build(tmp_path, VECTORS, EngineConfig("ivf-sq8"), ASKED)
    assert description["tuned_on"] == "queries"
    assert description["files"] == ["faiss.index"]


def test_small_segments_need_no_file(tmp_path: Path) -> None:
    """Up to the limit the engine is exact, and nothing is written."""
    assert faiss_engine.build(tmp_path, VECTORS)["type"] == "exact"
    assert faiss_engine.build(tmp_path, VECTORS[:20], EngineConfig("ivf-rabitq"))["type"] == "exact"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["IVF10,Nonsense", "cagra"])
def test_an_engine_that_cannot_be_built_is_refused(tmp_path: Path, kind: str) -> None:
    """The error names it."""
    with pytest.raises(InputError, match=kind):
        faiss_engine.build(tmp_path, VECTORS, EngineConfig(kind))


@pytest.mark.parametrize(
    ("kind", "file"),
    [("ivf-pq", "faiss.index"), ("ivf-pq", "faiss.cells"), ("ivf-rabitq", "faiss.index"), ("ivf-sq8", "faiss.index"), ("hnsw", "faiss.index")],
)  # fmt: skip
def test_a_truncated_file_is_refused(
    built: dict[str, tuple[Path, dict[str, Any]]], tmp_path: Path, kind: str, file: str
) -> None:
    """At any length, lengthened or missing, with an error that names the file."""
    folder, description = built[kind]
    for name in description["files"]:
        shutil.copy(folder / name, tmp_path)
    whole = (folder / file).read_bytes()
    for share in (0, 0.001, 0.3, 0.6, 0.999):
        (tmp_path / file).write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(CorruptIndexError, match=re.escape(file)):
            faiss_engine.open_engine(tmp_path, VECTORS, description)
    (tmp_path / file).unlink()
    with pytest.raises(CorruptIndexError, match=re.escape(file)):
        faiss_engine.open_engine(tmp_path, VECTORS, description)


def test_queries_of_another_dimension_are_refused(built: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    """FAISS is handed a pointer, and would read on behind them."""
    engine = _open(built, "ivf-pq")
    for queries in (ASKED[:, :4], ASKED[0]):
        with pytest.raises(ValueError, match="32 dimensions"):
            engine.search(queries, 10)
    doubled = ASKED.astype(np.float64)[:, ::-1]
    mirrored = np.ascontiguousarray(doubled, dtype=np.float32)
    found = engine.search(doubled, 10)[1]  # type: ignore[arg-type]
    np.testing.assert_array_equal(found, engine.search(mirrored, 10)[1])


def test_a_graph_has_no_cells_to_probe(built: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    """An effort of the other kind of engine is refused, not read as one's own."""
    with pytest.raises(InputError, match="give ef_search"):
        _open(built, "hnsw").search(ASKED, 10, effort=SearchEffort(nprobe=4))
    with pytest.raises(InputError, match="give nprobe"):
        _open(built, "ivf-pq").search(ASKED, 10, effort=SearchEffort(ef_search=4))


def test_a_plan_tells_a_recall_only_where_it_was_measured(
    built: dict[str, tuple[Path, dict[str, Any]]],
) -> None:
    """Not for other settings than those of the curve, other numbers of results, or under a filter."""
    engine = _open(built, "ivf-pq")
    assert engine.plan(10)["recall"] >= 0.95
    assert engine.plan(10, effort=SearchEffort(recall=0.8))["recall"] >= 0.8
    assert engine.plan(10, effort=SearchEffort(nprobe=1))["recall"] is None
    assert engine.plan(20)["recall"] is None
    assert engine.plan(10, _share(0.99))["recall"] is None


@pytest.mark.parametrize(("field", "value"), [("bbs", 64), ("implem", 10)])
def test_an_index_that_reads_its_cells_another_way_is_refused(
    built: dict[str, tuple[Path, dict[str, Any]]], tmp_path: Path, field: str, value: int
) -> None:
    """What says how FAISS goes through packed codes must be as it was written."""
    shutil.copytree(built["ivf-pq"][0], tmp_path, dirs_exist_ok=True)
    index = faiss.read_index(str(tmp_path / "faiss.index"))
    setattr(index, field, value)
    faiss.write_index(index, str(tmp_path / "faiss.index"))
    with pytest.raises(CorruptIndexError, match="other vectors"):
        faiss_engine.open_engine(tmp_path, VECTORS, built["ivf-pq"][1])


def test_cells_of_other_sizes_are_refused(
    built: dict[str, tuple[Path, dict[str, Any]]], tmp_path: Path
) -> None:
    """A cell that claims more rows than there are, and one that took another's: nothing beyond the file is read."""
    folder, description = built["ivf-pq"]
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    whole = (folder / "faiss.cells").read_bytes()
    sizes = np.frombuffer(whole, np.uint64, description["cells"])
    for change in (np.uint64(1 << 63), np.uint64(64)):
        changed = sizes.copy()
        changed[3] += change
        if change == 64:
            changed[int(sizes.argmax())] -= change
        (tmp_path / "faiss.cells").write_bytes(changed.tobytes() + whole[changed.nbytes :])
        if change == 64:
            assert changed.sum() == ROWS
        try:
            engine = faiss_engine.open_engine(tmp_path, VECTORS, description)
        except CorruptIndexError as e:
            assert "faiss.cells" in str(e)
        else:
            assert change == 64
            _, rows = engine.search(ASKED, 10, effort=SearchEffort(nprobe=10_000))
            assert (rows < ROWS).all()


def test_a_row_that_comes_twice_is_damage_once_it_is_looked_for(
    built: dict[str, tuple[Path, dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that searches often looks at all row numbers once, and names the engine whose cells are wrong."""
    folder, description = built["ivf-pq"]
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    whole = bytearray((folder / "faiss.cells").read_bytes())
    one, other = ((n).to_bytes(8, "little") for n in (4321, 4322))
    at = whole.find(one, 8 * description["cells"])
    while whole[at : at + 8] == one and at % 8:
        at = whole.find(one, at + 1)
    whole[at : at + 8] = other
    (tmp_path / "faiss.cells").write_bytes(whole)
    monkeypatch.setattr(engine_approximate, "_LOOKS_AFTER", 3)
    engine = faiss_engine.open_engine(tmp_path, VECTORS, description)
    engine.search(ASKED, 10)
    engine.search(ASKED, 10)
    with pytest.raises(CorruptIndexError, match="each row once"):
        engine.search(ASKED, 10)


def test_few_rows_are_coded_without_warnings(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """FAISS would warn of each of the small k-means."""
    faiss_engine.build(tmp_path, VECTORS[:150], EngineConfig("ivf-pq"))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ["IDMap,Flat", "IVF10,Nonsense"])
def test_an_engine_that_cannot_be_filled_is_refused(tmp_path: Path, kind: str) -> None:
    """As one that cannot be built."""
    with pytest.raises(InputError, match=kind):
        faiss_engine.build(tmp_path, VECTORS, EngineConfig(kind))


def test_an_engine_that_needs_more_rows_is_told(tmp_path: Path) -> None:
    """A small segment of a large index is compared whole, and its description says what it stands for."""
    description = faiss_engine.build(tmp_path, VECTORS, EngineConfig("IVF99999,Flat"))
    assert (description["type"], description["instead_of"]) == ("exact", "IVF99999,Flat")


def test_a_target_of_all_compares_all(tmp_path: Path) -> None:
    """Whatever engine was named: no curve promises a recall of one."""
    description = faiss_engine.build(tmp_path, VECTORS, EngineConfig("ivf-pq", recall=1))
    engine = faiss_engine.open_engine(tmp_path, VECTORS, description)
    assert engine.plan(10)["engine"] == "exact"


def test_copies_do_not_spoil_the_measure(tmp_path: Path) -> None:
    """Where a third of the rows are copies of one text, recall is measured by those queries that have an answer."""
    vectors = VECTORS.copy()
    vectors[: ROWS // 3] = vectors[0]
    description = faiss_engine.build(tmp_path, vectors, EngineConfig("ivf-pq"))
    assert description["curve"][-1]["recall"] > 0.97


@pytest.mark.parametrize("entry", [{"curve": "abc"}, {"recall": "x"}, {"curve": [{"effort": 4}]}])
def test_a_damaged_description_is_told(
    built: dict[str, tuple[Path, dict[str, Any]]], entry: dict[str, Any]
) -> None:
    """The manifest's own checksum aside."""
    folder, description = built["ivf-pq"]
    with pytest.raises(CorruptIndexError, match="entry of the engine"):
        faiss_engine.open_engine(folder, VECTORS, {**description, **entry})


def test_an_index_of_another_engine_beside_the_cells_is_refused(
    built: dict[str, tuple[Path, dict[str, Any]]], tmp_path: Path
) -> None:
    """The cells are read as packed codes only by the index they were packed for."""
    shutil.copytree(built["ivf-pq"][0], tmp_path, dirs_exist_ok=True)
    shutil.copy(built["ivf-sq8"][0] / "faiss.index", tmp_path)
    with pytest.raises(CorruptIndexError, match="another engine"):
        faiss_engine.open_engine(tmp_path, VECTORS, built["ivf-pq"][1])


def test_mapped_cells_answer_as_those_in_memory(
    built: dict[str, tuple[Path, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of Windows, where FAISS maps no lists, finds the same with the same scores."""
    mapped = _open(built, "ivf-pq").search(ASKED, 10)
    monkeypatch.setattr(engine_lists, "_MAPPED", False)
    read = _open(built, "ivf-pq").search(ASKED, 10)
    np.testing.assert_array_equal(mapped[1], read[1])
    np.testing.assert_array_equal(mapped[0], read[0])


@pytest.mark.parametrize("dim", [30, 33, 49])
def test_dimensions_that_four_does_not_divide_are_coded_too(tmp_path: Path, dim: int) -> None:
    """By three, two or one dimensions a code."""
    vectors, asked = _vectors(3000, dim), _vectors(50, dim, seed=1)
    description = faiss_engine.build(tmp_path, vectors, EngineConfig("ivf-pq"))
    _, rows = faiss_engine.open_engine(tmp_path, vectors, description).search(asked, 10)
    assert _recall(rows, np.argsort(-(asked @ vectors.T), axis=1)[:, :10]) > 0.93


@pytest.mark.parametrize("kind", CODED)
def test_a_row_number_beyond_the_vectors_is_never_followed(
    built: dict[str, tuple[Path, dict[str, Any]]], tmp_path: Path, kind: str
) -> None:
    """A flipped high bit in the file's row numbers loses that row, and reads nothing beyond the vectors."""
    folder, description = built[kind]
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    file = description["files"][-1]
    whole = bytearray((folder / file).read_bytes())
    row = int(_truth(ASKED[:1], 1)[0, 0])
    at = -1
    while (at := whole.find(row.to_bytes(8, "little"), at + 1)) >= 0:
        whole[at + 5] = 0x40
    (tmp_path / file).write_bytes(whole)
    engine = faiss_engine.open_engine(tmp_path, VECTORS, description)
    _, rows = engine.search(ASKED[:1], 10, effort=SearchEffort(nprobe=10_000))
    assert row not in rows
    assert (rows < ROWS).all()


def test_a_broken_engine_is_named(tmp_path: Path, built: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    """Junk, another segment's file, other vectors and an engine of a later version each give their error."""
    description = built["ivf-rabitq"][1]
    with pytest.raises(CorruptIndexError, match=r"faiss\.index"):
        faiss_engine.open_engine(tmp_path, VECTORS, description)
    (tmp_path / "faiss.index").write_bytes(b"junk" * 100)
    with pytest.raises(CorruptIndexError, match=r"faiss\.index"):
        faiss_engine.open_engine(tmp_path, VECTORS, description)
    with pytest.raises(CorruptIndexError, match="built for 5000"):
        faiss_engine.open_engine(built["ivf-rabitq"][0], VECTORS[:-1], description)
    fewer = {**description, "rows": ROWS - 1}
    with pytest.raises(CorruptIndexError, match="5000 vectors of 32"):
        faiss_engine.open_engine(built["ivf-rabitq"][0], VECTORS[:-1], fewer)
    with pytest.raises(CorruptIndexError, match="update embedkit"):
        faiss_engine.open_engine(tmp_path, VECTORS, {"type": "warp", "rows": ROWS, "dim": DIM})


class _Cards(SimpleNamespace):
    """FAISS as it looks with two GPUs, whose work the CPU does."""

    def __init__(self) -> None:
        super().__init__(**{n: getattr(faiss, n) for n in dir(faiss) if not n.startswith("__")})
        self.calls: list[str] = []
        self.StandardGpuResources = lambda: "resources"
        self.get_num_gpus = lambda: 2
        self.index_cpu_to_all_gpus = self._spread
        self.knn_gpu = self._knn

    def _spread(self, index: Any) -> Any:
        self.calls.append(f"spread {index.ntotal}")
        return index

    def _knn(self, resources: str, queries: Any, block: Any, k: int, metric: int, device: int) -> Any:
        assert (resources, metric) == ("resources", faiss.METRIC_INNER_PRODUCT)
        self.calls.append(f"search {len(block)} on {device}")
        return faiss.knn(queries, block, k, metric=metric)


def test_gpus_train_and_search_and_what_is_written_is_a_cpu_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Assignment goes to all cards, an exact batch is streamed over them; the file opens where there is none."""
    cards = _Cards()
    monkeypatch.setattr(faiss_engine, "_ready", [cards])
    description = faiss_engine.build(tmp_path, VECTORS, EngineConfig("ivf-pq"))
    cells = description["cells"]
    assert f"spread {cells}" in cards.calls
    monkeypatch.setattr("embedkit_indexes.gpu._BLOCK_BYTES", 1000 * DIM * 4)
    cards.calls.clear()
    allowed = _share(0.7)
    _, everything = faiss_engine.ExactEngine(VECTORS).search(ASKED, 10)
    assert sorted(cards.calls) == [f"search 1000 on {d}" for d in (0, 0, 0, 1, 1)]
    _, subset = faiss_engine.ExactEngine(VECTORS).search(ASKED, 10, allowed)
    monkeypatch.undo()
    assert _recall(everything, _truth(ASKED, 10)) > 0.999
    assert _recall(subset, _truth(ASKED, 10, allowed)) > 0.999
    _, rows = faiss_engine.open_engine(tmp_path, VECTORS, description).search(ASKED, 10)
    assert _recall(rows, _truth(ASKED, 10)) > 0.93


def test_only_one_file_imports_faiss() -> None:
    """`faiss_engine.py` is the only file of the packages that imports faiss (doctor asks a process of its own)."""
    root = Path(__file__).resolve().parents[2]
    files = [p for folder in ("embedkit", "indexes", "trainer", "cli") for p in (root / folder).rglob("*.py")]
    importing = [p.name for p in files if any(
        line.strip().startswith(("import faiss", "from faiss")) for line in p.read_text(encoding="utf-8").splitlines()
    )]  # fmt: skip
    assert importing == ["faiss_engine.py"]
    assert "faiss" in sys.modules


def _no_gpu() -> bool:
    return not hasattr(faiss, "StandardGpuResources") or not faiss.get_num_gpus()


@pytest.mark.gpu
def test_a_gpu_finds_what_the_cpu_finds(tmp_path: Path) -> None:
    """Exact batches agree up to ties; an index trained there is read back on the CPU and reaches its target."""
    if _no_gpu():
        pytest.skip("FAISS sees no GPU")
    vectors, asked = _vectors(50_000, 64), _vectors(1000, 64, seed=1)
    truth = np.argsort(-(asked @ vectors.T), axis=1)[:, :10]
    engine = faiss_engine.ExactEngine(vectors.astype(np.float16))
    assert _recall(engine.search(asked, 10)[1], truth) > 0.99
    description = faiss_engine.build(tmp_path, vectors, EngineConfig("ivf-pq"))
    _, found = faiss_engine.open_engine(tmp_path, vectors, description).search(asked, 10)
    assert _recall(found, truth) > 0.93


@pytest.mark.gpu
def test_cagra_is_built_on_the_gpu_and_searched_on_the_cpu(tmp_path: Path) -> None:
    """Its graph is written as a CPU index."""
    if _no_gpu() or not hasattr(faiss, "GpuIndexCagra"):
        pytest.skip("FAISS has no CAGRA or sees no GPU")
    vectors, asked = _vectors(20_000, 64), _vectors(200, 64, seed=1)
    description = faiss_engine.build(tmp_path, vectors, EngineConfig("cagra"))
    _, rows = faiss_engine.open_engine(tmp_path, vectors, description).search(asked, 10)
    assert _recall(rows, np.argsort(-(asked @ vectors.T), axis=1)[:, :10]) > 0.9
