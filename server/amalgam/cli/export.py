"""`amalgam export`: a base model and what adapters add to it, as one checkpoint folder, without a server."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from amalgam.cli.recipe_options import (
    CONSOLE,
    Device,
    Expression,
    MaxRank,
    Mismatch,
    Rank,
    Seed,
    Workspace,
    build_options,
    open_inputs,
    progress_bar,
    recipe_of,
    sentences,
    size_bytes,
)
from amalgam.domain.export import ExportDtype

if TYPE_CHECKING:
    from amalgam.exporter import ExportOrder
    from amalgam.store.export_folders import ExportFolders


def export(
    expression: Expression,
    base: Annotated[Path, typer.Option(help="folder of the base model, with safetensors files")],
    out: Annotated[Path, typer.Option("--out", "-o", help="folder to write; must not be there yet")],
    dtype: Annotated[ExportDtype, typer.Option(help="of the checkpoint; base: as it is there")] = "base",
    max_shard: Annotated[str, typer.Option(help="most bytes of tensors in one file, such as 2GiB")] = "5000000000",
    rank: Rank = None,
    seed: Seed = None,
    max_rank: MaxRank = 64,
    device: Device = "cpu",
    max_workspace: Workspace = "1GiB",
    allow_base_mismatch: Mismatch = False,
) -> None:
    """Write base model + adapters as a checkpoint that transformers and vLLM load."""
    with sentences():
        from amalgam.exporter import describe_export
        from amalgam.store.export_folders import ExportFolders

        target = out.expanduser().absolute()
        folders = ExportFolders(target.parent)
        if folders.find(target.name) is not None:
            raise folders.taken(target.name)
        recipe = recipe_of(expression, rank, None, seed, allow_base_mismatch)
        sources = open_inputs(recipe)
        options = build_options(sources, max_rank, device, "auto", max_workspace)
        shard_bytes = size_bytes(max_shard)
        order = describe_export(recipe, sources, base, options, dtype=dtype, max_shard_bytes=shard_bytes)
        seconds = _write(order, folders, target.name)
        record = folders.get(target.name)
    files = f"{record.weight_bytes} bytes in {record.shard_count} files"
    CONSOLE.print(f"{out}: {record.changed_modules} modules changed, {files}, {seconds:.1f} s", markup=False)


def _write(order: "ExportOrder", folders: "ExportFolders", name: str) -> float:
    """Stage and publish, with a bar; the seconds it took."""
    from amalgam.exporter import stage_export

    staging = folders.stage()
    try:
        with progress_bar() as progress:
            task = progress.add_task("exporting", total=None)
            timings = stage_export(
                order, folders, staging, lambda done, total: progress.update(task, completed=done, total=total)
            )
        folders.publish(staging, name)
    finally:
        staging.close()
    return sum(timings.values())
