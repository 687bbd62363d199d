"""`amalgam export`: a base model and what adapters add to it, as one checkpoint folder, without a server."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from amalgam.cli.consoles import on_stdout
from amalgam.cli.recipe_options import (
    Device,
    Expression,
    Mismatch,
    Rank,
    Seed,
    Workspace,
    build_options,
    open_inputs,
    print_warnings,
    progress_bar,
    recipe_of,
    sentences,
    size_bytes,
)
from amalgam.domain.export import ExportDtype

if TYPE_CHECKING:
    from amalgam.domain.export import ExportAdded
    from amalgam.store.export_folders import ExportFolders
    from amalgam.workers.exporter import ExportOrder


def export(
    expression: Expression,
    base: Annotated[Path, typer.Option(help="folder of the base model, with safetensors files")],
    out: Annotated[Path, typer.Option("--out", "-o", help="folder to write; must not be there yet")],
    dtype: Annotated[ExportDtype, typer.Option(help="of the checkpoint; base: as it is there")] = "base",
    max_shard: Annotated[str, typer.Option(help="most bytes of tensors in one file, such as 2GiB")] = "5000000000",
    dequantize: Annotated[bool, typer.Option(help="write a quantised base model's weights unpacked")] = False,
    rank: Rank = None,
    seed: Seed = None,
    device: Device = "cpu",
    max_workspace: Workspace = "1GiB",
    allow_base_mismatch: Mismatch = False,
) -> None:
    """Write base model + adapters as a checkpoint that transformers and vLLM load."""
    with sentences():
        from amalgam.merge.plan import UNLIMITED_RANK
        from amalgam.store.export_folders import ExportFolders
        from amalgam.workers.exporter import describe_export

        target = out.expanduser().absolute()
        folders = ExportFolders(target.parent)
        if folders.find(target.name) is not None:
            raise folders.taken(target.name)
        recipe = recipe_of(expression, rank, None, seed, allow_base_mismatch)
        sources = open_inputs(recipe, base, dora_rank=None)
        options = build_options(sources, UNLIMITED_RANK, device, "auto", max_workspace, base)
        shard_bytes = size_bytes(max_shard)
        order = describe_export(
            recipe, sources, base, options, dtype=dtype, max_shard_bytes=shard_bytes, dequantize=dequantize
        )
        seconds = _write(order, folders, target.name)
        record = folders.get(target.name)
    files = f"{record.weight_bytes} bytes in {record.shard_count} files"
    said = "" if record.added is None else f", {rank_of(record.added)}"
    on_stdout().print(
        f"{out}: {record.changed_modules} modules changed{said}, {files}, {seconds:.1f} s", markup=False, soft_wrap=True
    )
    print_warnings(() if record.added is None else record.added.warnings)


def rank_of(added: "ExportAdded") -> str:
    """What was added, in words: its rank, and what a smaller one than the exact one keeps."""
    if added.rank >= added.exact_rank:
        return f"rank {added.rank}"
    kept = "" if added.energy_kept is None else f", energy kept {added.energy_kept:.4f}"
    return f"rank {added.rank} of an exact {added.exact_rank}{kept}"


def _write(order: "ExportOrder", folders: "ExportFolders", name: str) -> float:
    """Stage and publish, with a bar; the seconds it took."""
    from amalgam.workers.exporter import stage_export

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
