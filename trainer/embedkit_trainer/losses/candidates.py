"""Candidates: what each positive competes with once false negatives are left out, and how well it does."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from embedkit_trainer.config.records import LossConfig
from embedkit_trainer.data.batches import Batch
from embedkit_trainer.losses.masks import Masks, false_negative_masks
from embedkit_trainer.losses.pairs import directions, in_full_precision, owners, row_blocks


@dataclass(frozen=True, slots=True)
class Candidates:
    """Hold the masks of each kind of candidate, named as `gte_contrastive` names them (True = left out), and `logs`."""

    masks: dict[str, Tensor]
    logs: dict[str, float]


@in_full_precision
@torch.no_grad()
def candidates_of(config: LossConfig, queries: Tensor, documents: Tensor, batch: Batch) -> Candidates:
    """Return the candidates of every query `[B, dim]` among queries and documents `[N, dim]`, as the loss takes them.

    With `mask_similarity` = f, a candidate is left out where its cosine exceeds f times that of query and positive
    (that itself, where it is 0 or less: a factor says nothing there), whatever kind it is: hard negatives too, as in
    Qwen3-Embedding (arXiv 2506.05176, with a factor for its fixed margin). The vectors decide, but get no gradient by
    it.
    """
    false = false_negative_masks(batch, identity=config.mask_identity, text=config.mask_text)
    q, d = directions(queries), directions(documents)
    p = d[false.positives.to(d.device)]
    masks = {name: mask.to(q.device) for name, mask in _masks_of(config, false).items()}
    sides = {
        "query_document": (q, p if config.name == "simcse" else d),
        "query_query": (q, q),
        "document_query": (p, q),
        "document_document": (p, d),
    }
    limits = (q * p).sum(1, keepdim=True)
    nearest = limits if config.mask_similarity is None else limits * config.mask_similarity
    nearest = torch.where(limits > 0, nearest, limits)
    counts = torch.zeros(len(q), device=q.device)
    before = sum(int(mask.sum()) for mask in masks.values())
    best = torch.full((len(q),), -torch.inf, device=q.device, dtype=q.dtype)
    for name, mask in masks.items():
        left, right = sides[name]
        for block in row_blocks(len(left), len(right)):
            similarities = left[block] @ right.T
            if config.mask_similarity is not None:
                mask[block] |= similarities > nearest[block]
            if name == "query_document":
                best[block] = similarities.masked_fill(mask[block], -torch.inf).amax(1)
        counts += (~mask).sum(1)
    logs = {f"masked_rate_{source}": rate for source, rate in false.rate_by_source.items()}
    logs["negatives_per_query"] = float(counts.mean())
    # A lead within float32's rounding is none: collapsed vectors must not look accurate.
    logs["in_batch_accuracy"] = float((limits[:, 0] > best + 1e-6).float().mean())
    if config.mask_similarity is not None:
        after = sum(int(mask.sum()) for mask in masks.values())
        logs["masked_by_similarity"] = (after - before) / max(
            sum(m.numel() for m in masks.values()) - before, 1
        )
    return Candidates(masks, logs)


def _masks_of(config: LossConfig, false: Masks) -> dict[str, Tensor]:
    """Return the masks of the kinds that the loss knows; the pair itself is no candidate, hence True."""
    rows = torch.arange(len(false.positives))
    own = false.query_document.clone()
    own[rows, false.positives] = True
    if config.name == "simcse":
        return {"query_document": own[:, false.positives]}
    if config.name == "gte":
        mirrored = false.document_query.clone()
        mirrored[rows, rows] = True
        return {
            "query_document": own,
            "query_query": false.query_query,
            "document_query": mirrored,
            "document_document": false.document_document,
        }
    if not config.in_batch:
        offsets = torch.cat([false.positives, torch.tensor([own.shape[1]])])
        own |= owners(offsets)[None, :] != rows[:, None]
    return {"query_document": own}
