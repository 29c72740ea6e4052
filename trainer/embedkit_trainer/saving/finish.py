"""The end of a run: what is known of the model goes into its folder, beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit.embedders.saved import SavedModel, SourceRecord
from embedkit.errors import InputError
from embedkit_trainer.stage import default_task

if TYPE_CHECKING:
    from torch import Tensor

    from embedkit.embedders.serving import OpenedFolder
    from embedkit_trainer.config.records import RunConfig
    from embedkit_trainer.stage import Stage


def check_finish(config: RunConfig, opened: OpenedFolder, stages: list[Stage]) -> None:
    """Raise now what `save_finished` would raise of the output folder and the record, after hours of training.

    InputError for a record that no folder can hold, StoreError for an output that holds something else.
    """
    from embedkit_trainer.saving.export import check_destination
    from embedkit_trainer.saving.folder_files import check_record

    if opened.adapter is not None and config.model.tuning != "full" and not config.merge:
        raise InputError(
            f"{config.model.name} is an adapter, which is merged before a new one is put on: with merge = false the "
            "new one would name the wrong base; set merge = true"
        )
    check_destination(Path(config.output), replace_existing=True)
    check_record(_record(config, opened, stages, {}))


def save_finished(
    config: RunConfig,
    opened: OpenedFolder,
    stages: list[Stage],
    model: Any,
    *,
    metrics: Mapping[str, float],
    weights: dict[str, Tensor] | None = None,
) -> SavedModel:
    """Write the finished model to `config.output`; `weights` are the gathered ones where `model` holds shards.

    Raises StoreError where the folder cannot be written, TrainingError where it does not come back as it is here.
    """
    from embedkit_trainer.attention.packing import undo_packing
    from embedkit_trainer.dev import encode
    from embedkit_trainer.saving.export import Trained, save_model

    if any(stage.packing for stage in config.stages):
        undo_packing(model.backbone)
    trained = Trained(
        model.backbone,
        opened.tokenizer,
        opened.tokens,
        lambda rows: encode(model, rows, chunk_tokens=4096),
        weights,
    )
    return save_model(
        trained,
        _record(config, opened, stages, metrics),
        Path(config.output),
        merged=config.merge,
        replace_existing=True,
        trust_remote_code=config.model.trust_remote_code,
    )


def _record(
    config: RunConfig, opened: OpenedFolder, stages: list[Stage], metrics: Mapping[str, float]
) -> SavedModel:
    from embedkit_trainer.config.file import to_toml
    from embedkit_trainer.saving.export import base_revision

    rows: dict[tuple[str, str], int] = {}
    for stage in stages:
        for store in stage.stores:
            key = (store.name, store.licence)
            rows[key] = max(rows.get(key, 0), len(store))
    instructed = any(store.counts.instructed for stage in stages for store in stage.stores)
    return SavedModel(
        base=config.model.name,
        base_revision=base_revision(opened.folder),
        pooling=opened.pooling,
        template=opened.template,
        query_length=max(s.query_length for s in config.stages),
        document_length=max(s.document_length for s in config.stages),
        default_task=default_task(config, opened, instructed),
        instruction_trained=instructed or opened.instruction_trained,
        sources=tuple(SourceRecord(name, count, licence) for (name, licence), count in rows.items()),
        metrics=dict(metrics),
        recipe=to_toml(config, Path(config.output)),
    )
