"""`amalgam merge`: build, plan and explain merges of adapter folders, without a server."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from amalgam.cli.recipe_options import (
    CONSOLE,
    Backend,
    Base,
    Device,
    Dtype,
    Expression,
    MaxRank,
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
)
from amalgam.errors.adapters import SourceNotFound
from amalgam.errors.requests import FieldRefused
from amalgam.merge.methods import METHODS, Space

app = typer.Typer(help="Merge adapter folders, without a server.", no_args_is_help=True)


@app.command()
def build(
    expression: Expression,
    out: Annotated[Path, typer.Option("--out", "-o", help="folder to write; must not hold an adapter yet")],
    rank: Rank = None,
    dtype: Dtype = None,
    seed: Seed = None,
    max_rank: MaxRank = 64,
    device: Device = "cpu",
    backend: Backend = "auto",
    max_workspace: Workspace = "1GiB",
    allow_base_mismatch: Mismatch = False,
    base: Base = None,
) -> None:
    """Merge adapter folders into a new one."""
    with sentences():
        from amalgam.merge.build import build_adapter
        from amalgam.store.tensor_files import WEIGHTS, FolderSink

        if (out / WEIGHTS).exists():
            raise FieldRefused("out", f"{out} holds an adapter already; name another folder")
        recipe = recipe_of(expression, rank, dtype, seed, allow_base_mismatch)
        sources = open_inputs(recipe, base)
        options = build_options(sources, max_rank, device, backend, max_workspace)
        with progress_bar() as progress:
            task = progress.add_task("merging", total=None)
            outcome = build_adapter(
                recipe, sources, FolderSink(out), options,
                on_progress=lambda done, total: progress.update(task, completed=done, total=total),
            )  # fmt: skip
    kept = "" if outcome.energy_kept is None else f", energy kept {outcome.energy_kept:.4f}"
    seconds = sum(outcome.seconds.values())
    CONSOLE.print(f"{out}: {outcome.module_count} modules, rank {outcome.rank}{kept}, {seconds:.2f} s", markup=False)
    _print_inputs(outcome.lineage.get("overall", {}))
    print_warnings(outcome.warnings)


@app.command()
def plan(
    expression: Expression,
    rank: Rank = None,
    dtype: Dtype = None,
    seed: Seed = None,
    max_rank: MaxRank = 64,
    device: Device = "cpu",
    max_workspace: Workspace = "1GiB",
    allow_base_mismatch: Mismatch = False,
    base: Base = None,
    as_json: Annotated[bool, typer.Option("--json", help="print everything, module by module, as JSON")] = False,
) -> None:
    """Say what a merge would do, and how its inputs relate, without building it."""
    with sentences():
        from amalgam.merge.build import diagnose

        recipe = recipe_of(expression, rank, dtype, seed, allow_base_mismatch)
        sources = open_inputs(recipe, base)
        layout, modules, overall = diagnose(
            recipe, sources, build_options(sources, max_rank, device, "auto", max_workspace)
        )
    facts: dict[str, Any] = {
        "method": layout.spec.name,
        "space": str(layout.space),
        "parameters": dict(layout.recipe.parameters),
        "modules": len(layout.modules),
        "partial_modules": len(layout.partial),
        "rank": layout.rank,
        "input_bytes": layout.input_bytes,
        "output_bytes": layout.output_bytes,
    }
    if as_json:
        details = [module.model_dump(mode="json", exclude={"result"}) for module in modules]
        print(json.dumps({**facts, "overall": overall, "warnings": layout.warnings, "diagnostics": details}))
        return
    for name, value in facts.items():
        CONSOLE.print(f"{name.replace('_', ' '):16} {value}", markup=False)
    _print_inputs(overall)
    print_warnings(layout.warnings)


@app.command()
def methods() -> None:
    """The table of methods, their spaces and parameters."""
    table = Table("method", "what it does", "spaces (first: default)", "parameters", "paper")
    for spec in METHODS.values():
        table.add_row(
            spec.name + (" (random)" if spec.random else ""),
            spec.summary,
            ", ".join(spec.spaces),
            "\n".join(_parameter_lines(spec.name)),
            spec.paper,
        )
    CONSOLE.print(table)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="a folder that `merge build` wrote")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="HTML file; without it: report.html beside it")
    ] = None,
) -> None:
    """Write a page that shows what a merge did to each input."""
    from amalgam.cli.merge_report import render

    with sentences():
        path = folder / "lineage.json"
        if not path.is_file():
            raise SourceNotFound
        page = render(json.loads(path.read_text(encoding="utf-8")))
    target = out or folder.with_name(folder.name + "-report.html")
    target.write_text(page, encoding="utf-8")
    CONSOLE.print(str(target), markup=False)


def _parameter_lines(name: str) -> Iterator[str]:
    spec = METHODS[name]
    for field, info in spec.parameters.model_fields.items():
        default = info.default
        by_space = {space: values[field] for space, values in (spec.defaults_by_space or {}).items() if field in values}
        others = "".join(f", {value} in {space}" for space, value in by_space.items() if space in tuple(Space))
        yield f"{info.alias or field}={default}{others}"


def _print_inputs(overall: Mapping[str, Any]) -> None:
    """Norms, cosines and retention of the inputs, over all modules."""
    if not overall:
        return
    names = overall["inputs"]
    retention = overall["retention"] if any(overall["retention"]) else None
    table = Table(
        "input", "norm", *(["still applied"] if retention else []), *(f"cos {i + 1}" for i in range(len(names)))
    )
    for i, name in enumerate(names):
        kept = [f"{retention[i]:+.3f}"] if retention else []
        cosines = (f"{value:+.3f}" for value in overall["cosine"][i])
        table.add_row(f"{i + 1}  {name}", f"{overall['norms'][i]:.4g}", *kept, *cosines)
    CONSOLE.print(table)
