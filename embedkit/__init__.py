"""embedkit: embedders, rerankers and tasks. The index lives in `embedkit_indexes`, the command line in `embedkit_cli`."""

from embedkit.contract import EmbedderInfo, Template
from embedkit.embedder import Embedder, InstructionWarning
from embedkit.errors import EmbedkitError
from embedkit.registry import get_embedder, list_embedders
from embedkit.rerankers.base import Reranker, RerankerInfo
from embedkit.rerankers.registry import get_reranker, list_rerankers
from embedkit.tasks import BUILT_IN_TASKS, Task, get_task, load_tasks

__all__ = [
    "BUILT_IN_TASKS",
    "Embedder",
    "EmbedderInfo",
    "EmbedkitError",
    "InstructionWarning",
    "Reranker",
    "RerankerInfo",
    "Task",
    "Template",
    "get_embedder",
    "get_reranker",
    "get_task",
    "list_embedders",
    "list_rerankers",
    "load_tasks",
]
