"""Evaluate an embedder: rankings, and the kinds beyond them (sts, bitext, classification, clustering, passkey, mteb).

The names here measure rankings; each other kind is a module of this package.
"""

from embedkit.evaluation.ranking import (
    Measures,
    Qrels,
    Query,
    QueryMeasures,
    find_file,
    find_qrels,
    is_query_itself,
    mean,
    measure,
    pooled,
    rank_documents,
    read_qrels,
    read_queries,
    restrict_qrels,
    sample,
)

__all__ = [
    "Measures",
    "Qrels",
    "Query",
    "QueryMeasures",
    "find_file",
    "find_qrels",
    "is_query_itself",
    "mean",
    "measure",
    "pooled",
    "rank_documents",
    "read_qrels",
    "read_queries",
    "restrict_qrels",
    "sample",
]
