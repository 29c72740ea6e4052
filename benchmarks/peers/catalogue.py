"""What index_peers.py compares: tools, the settings to build each with, the efforts to sweep each over."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import product
from typing import Any

Effort = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """One index of one tool: what its `build` is given, and the search efforts to try, cheapest first."""

    name: str
    options: dict[str, Any]
    efforts: list[Effort]


@dataclass(frozen=True)
class Tool:
    """One contender: requirements of its environment (none: the one that runs the benchmark), module, settings."""

    name: str
    module: str
    requirements: tuple[str, ...] = ()
    settings: list[Setting] = field(default_factory=list)


def grid(**values: list[Any]) -> list[Effort]:
    """Return every combination of the values."""
    return [dict(zip(values, v, strict=True)) for v in product(*values.values())]


EF = grid(ef_search=[12, 16, 24, 32, 48, 64, 96, 128, 192, 256])
PROBES = [4, 6, 8, 12, 14, 16, 18, 20, 24, 32, 48, 64]


def _faiss(cells: int) -> list[Setting]:
    ivf = f"IVF{cells}"
    refined = grid(nprobe=PROBES, k_factor=[2, 4, 8, 16])
    queried = grid(qb=[8], nprobe=PROBES, k_factor=[2, 4, 8, 16])

    # Cells found by four-bit codes and exact comparison of some, or by a graph, instead of all centroids.
    coded, graph = f"IVF{cells}(PQ96x4fs,RFlat)", f"IVF{cells}_HNSW32"

    def rabitq(name: str, code: str, store: str, turned: bool = True) -> Setting:
        factory = f"RR384,{ivf},{code}" if turned else f"{ivf},{code}"
        return Setting(name, {"factory": factory, "store": store}, queried if "fs" not in code else refined)

    return [
        Setting("ivf-flat", {"factory": f"{ivf},Flat"}, grid(nprobe=PROBES)),
        Setting("ivf-sq8", {"factory": f"{ivf},SQ8"}, grid(nprobe=PROBES)),
        Setting("ivf-sq8-fp16", {"factory": f"{ivf},SQ8", "store": "SQfp16"},
                grid(nprobe=PROBES, k_factor=[1.5, 2, 4])),
        rabitq("ivf-rabitq-plain-fp16", "RaBitQ", "SQfp16", turned=False),
        rabitq("ivf-rabitq-fp16", "RaBitQ", "SQfp16"),
        rabitq("ivf-rabitq-fp32", "RaBitQ", "Flat"),
        rabitq("ivf-rabitq-sq8", "RaBitQ", "SQ8"),
        rabitq("ivf-rabitqfs-fp16", "RaBitQfs", "SQfp16"),
        rabitq("ivf-rabitqfs-sq8", "RaBitQfs", "SQ8"),
        rabitq("ivf-rabitq4-fp16", "RaBitQ4", "SQfp16"),
        Setting("ivf-pq96fs-fp16", {"factory": f"{ivf},PQ96x4fs", "store": "SQfp16"}, refined),
        Setting("ivf-pq96fs-sq8", {"factory": f"{ivf},PQ96x4fs", "store": "SQ8"}, refined),
        Setting("coded-ivf-rabitq-fp16", {"factory": f"RR384,{coded},RaBitQ", "store": "SQfp16"}, queried),
        Setting("coded-ivf-pq96fs-fp16", {"factory": f"{coded},PQ96x4fs", "store": "SQfp16"}, refined),
        # Codes of the difference to the centroid.
        Setting("coded-ivf-pq96fsr-fp16", {"factory": f"{coded},PQ96x4fsr", "store": "SQfp16"}, refined),
        Setting("graph-ivf-rabitq-fp16", {"factory": f"RR384,{graph},RaBitQ", "store": "SQfp16"}, queried),
        Setting("graph-ivf-pq96fs-fp16", {"factory": f"{graph},PQ96x4fs", "store": "SQfp16"}, refined),
        Setting("hnsw32-flat", {"factory": "HNSW32", "ef_construction": 100}, EF),
        Setting("hnsw32-sq8", {"factory": "HNSW32,SQ8", "ef_construction": 100}, EF),
    ]  # fmt: skip


def tools(rows: int) -> list[Tool]:
    """Return all contenders, with sizes that suit `rows` rows."""
    # About 4·sqrt(rows), as FAISS's guidelines say, as a power of two.
    cells = 1 << round(math.log2(4 * rows**0.5))
    partitions = max(16, cells // 2)
    lance = grid(nprobes=[8, 16, 32, 64, 96, 128], refine=[2, 4, 8, 16])
    probing = [{"parameters": f"nprobe={n},efSearch={e},k_factor_rf={f}"}
               for n, e in ((8, 16), (16, 32), (32, 64), (64, 96), (128, 128), (256, 256)) for f in (1, 4)]  # fmt: skip
    return [
        Tool("embedkit", "embedkit", (), [
            Setting("auto", {"config": {"exact_limit": min(rows - 1, 50_000)}, "tuned": True},
                    [{}, *grid(nprobe=PROBES, refine=[20, 40, 80, 160])]),
        ]),
        Tool("faiss", "faiss", (), _faiss(cells)),
        Tool("autofaiss", "autofaiss", ("autofaiss", "faiss-cpu<1.12", "numpy<2", "pyarrow<21"), [
            Setting("defaults", {"options": {}}, [{}, *probing]),
            Setting("1KB-a-row", {"options": {"max_index_memory_usage": f"{max(1, rows // 1000)}M"}}, [{}, *probing]),
        ]),
        Tool("usearch", "usearch", ("usearch", "numpy"), [
            Setting("f16", {"dtype": "f16", "connectivity": 16, "ef_construction": 100}, EF),
            Setting("i8", {"dtype": "i8", "connectivity": 16, "ef_construction": 100}, EF),
        ]),
        Tool("hnswlib", "hnswlib", ("hnswlib", "numpy"), [
            Setting("M16", {"M": 16, "ef_construction": 100}, EF),
        ]),
        Tool("lancedb", "lancedb", ("lancedb", "pylance", "numpy"), [
            Setting("ivf-rq", {"index": "IvfRq", "options": {"num_partitions": partitions}}, lance),
            Setting("ivf-pq96", {"index": "IvfPq",
                                 "options": {"num_partitions": partitions, "num_sub_vectors": 96}}, lance),
            Setting("ivf-hnsw-sq", {"index": "IvfHnswSq",
                                    "options": {"num_partitions": max(1, rows // 250_000), "ef_construction": 100}},
                    grid(nprobes=[1, 2, 4], ef=[24, 32, 48, 64, 128, 256], refine=[1, 2])),
        ]),
        Tool("milvus-lite", "milvus", ("milvus-lite", "numpy"), [
            Setting("hnsw", {"index": "HNSW", "options": {"M": 16, "efConstruction": 100}},
                    grid(ef=[10, 12, 16, 24, 32, 48, 64, 96])),
            Setting("ivf-sq8", {"index": "IVF_SQ8", "options": {"nlist": 1024}},
                    grid(nprobe=[4, 8, 12, 16, 24, 32, 48, 64])),
        ]),
    ]  # fmt: skip
