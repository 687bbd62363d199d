"""One export from end to end, for the merge worker and for the command line: adapter in, checkpoint folder out.

Memory is that of a merge, and then of a few blocks.
"""

import asyncio
import logging
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import amalgam
from amalgam.domain.export import (
    RECORD_FILE,
    ExportAdded,
    ExportBase,
    ExportDtype,
    ExportInput,
    ExportRecord,
    ExportSpec,
)
from amalgam.domain.job import Job
from amalgam.domain.recipe import Recipe
from amalgam.errors import Unavailable
from amalgam.errors.exports import BaseNotExportable
from amalgam.errors.jobs import LeaseLost
from amalgam.merge.build import BuildOptions, build_adapter
from amalgam.merge.methods import unchanged_input
from amalgam.merge.plan import UNLIMITED_RANK, MergePlan, plan, require_export_room
from amalgam.merge.sources import TensorSource
from amalgam.registry.jobs import JobRegistry
from amalgam.store.base_model import base_spec
from amalgam.store.checkpoint_layout import CheckpointLayout, lay_out
from amalgam.store.checkpoint_writer import write_checkpoint
from amalgam.store.disk import disk_errors
from amalgam.store.export_folders import ExportFolders, ExportStaging, read_record
from amalgam.store.packings import Packing
from amalgam.store.peft_folder import read_peft_folder
from amalgam.store.tensor_files import FolderSink, open_tensors

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExportOrder:
    """What goes in."""

    spec: ExportSpec
    sources: Mapping[str, TensorSource]
    """It has every adapter of the recipe, opened, by the recipe's spelling."""
    base: Path
    """It is the folder of the base model."""
    options: BuildOptions
    recipes: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """They are those of the inputs that were merged themselves."""


def describe_export(
    recipe: Recipe,
    sources: Mapping[str, TensorSource],
    base: Path,
    options: BuildOptions,
    *,
    dtype: ExportDtype,
    max_shard_bytes: int,
    dequantize: bool = False,
) -> ExportOrder:
    """The order for opened adapters of any kind, its recipe completed.

    Raises:
        InvalidRequest: one of `amalgam.errors.merging`, where it needs no tensor.
        BaseModelUnreadable: the base model.
    """
    earlier = read_record(base)
    spec = ExportSpec(
        recipe=_planned(recipe, sources, options).recipe,
        dtype=dtype,
        max_shard_bytes=max_shard_bytes,
        dequantize=dequantize,
        input_digests={name: source.digest for name, source in sources.items()},
        base_fingerprint=base_spec(base, "", options.max_rank).fingerprint,
        base_weights_digest=None if earlier is None else earlier.weights_digest,
    )
    return ExportOrder(spec, sources, base, options)


def _planned(recipe: Recipe, sources: Mapping[str, TensorSource], options: BuildOptions) -> MergePlan:
    headers = {name: source.header for name, source in sources.items()}
    layout = plan(recipe, headers, max_rank=UNLIMITED_RANK, bases=options.bases)
    require_export_room(layout, options.run.max_workspace_bytes)
    return layout


def lay_out_export(order: ExportOrder) -> CheckpointLayout:
    """Where every byte goes, and every refusal that needs no tensor.

    Raises:
        BaseNotExportable: another base model than the spec's. Besides, as `lay_out`.
    """
    layout = _planned(order.spec.recipe, order.sources, order.options)
    base = read_record(order.base)
    known = (base_spec(order.base, "", order.options.max_rank).fingerprint, base and base.weights_digest)
    if known != (order.spec.base_fingerprint, order.spec.base_weights_digest):
        raise BaseNotExportable("its folder holds another model than the one that is served")
    adapted = {module.name: module.inputs[0].header for module in layout.modules}
    spec = order.spec
    return lay_out(
        order.base, adapted, dtype=spec.dtype, max_shard_bytes=spec.max_shard_bytes, dequantize=spec.dequantize
    )


def write_export(
    order: ExportOrder,
    layout: CheckpointLayout,
    folder: Path,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    is_cancelled: Callable[[], bool] | None = None,
) -> ExportRecord:
    """Build what is added, write the checkpoint into ``folder``, and the record last.

    Args:
        order: As for ``layout``.
        layout: Of `lay_out_export`.
        folder: There, and empty.
        on_progress: Told (tensors written, tensors in all).
        is_cancelled: Asked between batches of the merge and blocks of the checkpoint.

    Raises:
        InvalidRequest: one of `amalgam.errors.merging`, by what only tensors can tell.
        StoreUnavailable: the disk is full or failing.
    """
    recipe, base = order.spec.recipe, read_record(order.base)
    with tempfile.TemporaryDirectory(prefix="adapter-", dir=folder) as scratch:
        adapter, added = _adapter(order, Path(scratch), is_cancelled)
        written = write_checkpoint(layout, adapter, folder, on_progress=on_progress, is_cancelled=is_cancelled)
    record = ExportRecord(
        export_digest=order.spec.digest(),
        dtype=order.spec.dtype,
        dequantized=any(isinstance(tensor.base, Packing) for tensor in layout.tensors),
        recipe=recipe.model_dump(mode="json"),
        recipe_digest=recipe.digest(),
        inputs={name: _input(order, name) for name in recipe.adapters},
        added=added,
        base=ExportBase(
            fingerprint=order.spec.base_fingerprint,
            weights_digest=written.base_weights_digest,
            record=None if base is None else base.model_dump(mode="json"),
        ),
        fingerprint=base_spec(folder, "", order.options.max_rank).fingerprint,
        weights_digest=written.weights_digest,
        tensor_count=sum(1 for _ in layout.tensors),
        changed_modules=sum(tensor.changed_modules for tensor in layout.tensors),
        weight_bytes=written.weight_bytes,
        shard_count=len(layout.shards),
        versions={
            "amalgam": amalgam.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
    )
    with disk_errors():
        (folder / RECORD_FILE).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return record


def _adapter(
    order: ExportOrder, scratch: Path, is_cancelled: Callable[[], bool] | None
) -> tuple[TensorSource, ExportAdded]:
    """What is added: an input as it is stored, or what serving the recipe would apply, cut only as it asks."""
    same = unchanged_input(order.spec.recipe)
    if same is not None:
        source = order.sources[same]
        return source, ExportAdded(rank=source.header.rank, exact_rank=source.header.rank)
    recipe, options = order.spec.recipe, order.options
    # Diagnostics change nothing of the result, and nobody would see them.
    run = replace(options.run, diagnostics=False)
    options = replace(options, run=run, max_rank=UNLIMITED_RANK)
    # The one rounding is that of the checkpoint.
    exact = recipe.model_copy(update={"output": recipe.output.model_copy(update={"dtype": "float32"})})
    outcome = build_adapter(exact, order.sources, FolderSink(scratch), options, is_cancelled=is_cancelled)
    for warning in outcome.warnings:
        logger.warning("merge_warning reason=%s", warning)
    result = outcome.lineage["result"]
    added = ExportAdded(
        rank=outcome.rank,
        exact_rank=result["exact_rank"],
        energy_kept=outcome.energy_kept,
        warnings=outcome.warnings,
    )
    # Its values were judged as it was built.
    return open_tensors(scratch, read_peft_folder(scratch, None, scan_values=False).require()), added


def _input(order: ExportOrder, name: str) -> ExportInput:
    return ExportInput(digest=order.sources[name].digest, recipe=order.recipes.get(name))


def is_exported(folders: ExportFolders, job: Job) -> bool:
    """Whether an earlier start of ``job`` has given its result the name already.

    Raises:
        NameTaken: something else has the name.
    """
    found = folders.find(job.name)
    if found is not None and found.export_digest != job.recipe_digest:
        raise folders.taken(job.name)
    return found is not None


def stage_export(
    order: ExportOrder,
    folders: ExportFolders,
    staging: ExportStaging,
    on_progress: Callable[[int, int], None] | None = None,
    is_cancelled: Callable[[], bool] | None = None,
) -> dict[str, float]:
    """Everything but the name: lay out, refuse, merge where there is something to merge, write, sync.

    Returns: seconds by step.

    Raises:
        DiskTooSmall: the disk has no space for it. Besides, as `lay_out_export` and `write_export`.
    """
    began = time.monotonic()
    layout = lay_out_export(order)
    folders.require_room(layout.size_bytes)
    write_export(order, layout, staging.folder, on_progress=on_progress, is_cancelled=is_cancelled)
    written = time.monotonic()
    folders.sync(staging)
    return {"export": written - began, "sync": time.monotonic() - written}


async def record_export(jobs: JobRegistry, folders: ExportFolders, job: Job, timings: Mapping[str, float]) -> bool:
    """Record that the folder has its name; take the name back where the job was cancelled in that moment.

    Returns: whether it is recorded. Where the registry does not answer nobody knows; the job's next start finds out.

    Raises:
        LeaseLost: the job is another's, or nobody's, by now.
    """
    try:
        await jobs.finish_export(job.id, job.fencing_token, timings)
    except LeaseLost:
        if not (await jobs.get(job.id)).is_live:
            await asyncio.to_thread(folders.retract, job.name, job.recipe_digest)
        raise
    except Unavailable as error:
        logger.warning("export_not_recorded job=%s export=%s reason=%s", job.id, job.name, error)
        return False
    return True
