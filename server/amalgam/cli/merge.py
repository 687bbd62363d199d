"""`amalgam merge`: build, plan and explain merges of adapter folders, without a server."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from amalgam.domain.expression import parse_expression
from amalgam.domain.recipe import Recipe
from amalgam.errors import AmalgamError
from amalgam.errors.adapters import SourceNotFound
from amalgam.errors.requests import FieldRefused
from amalgam.merge.methods import METHODS, Space

if TYPE_CHECKING:
    from amalgam.merge.build import BuildOptions
    from amalgam.merge.sources import TensorSource

app = typer.Typer(help="Merge adapter folders, without a server.", no_args_is_help=True)

_CONSOLE: Final = Console(highlight=False)
_ERRORS: Final = Console(stderr=True, highlight=False)
_UNITS: Final = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}

Expression = Annotated[
    str, typer.Argument(help="such as 'ties(./a, 0.5*./b; density=0.5)', or a recipe file (.json); inputs are folders")
]
Rank = Annotated[str | None, typer.Option(help="auto, a number, or energy=0.95")]
Dtype = Annotated[str | None, typer.Option(help="bfloat16, float16 or float32")]
Seed = Annotated[int | None, typer.Option(help="of the random methods")]
MaxRank = Annotated[int, typer.Option(help="largest rank that serving allows")]
Device = Annotated[str, typer.Option(help="cpu, cuda:0, …")]
Backend = Annotated[str, typer.Option(help="auto, reference, cpu or triton")]
Workspace = Annotated[str, typer.Option(help="bound on working memory, such as 512MiB or 1GiB")]
Mismatch = Annotated[bool, typer.Option("--allow-base-mismatch", help="merge adapters of different base models")]


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
) -> None:
    """Merge adapter folders into a new one."""
    with _sentences():
        from amalgam.merge.build import build_adapter
        from amalgam.store.tensor_files import WEIGHTS, FolderSink

        if (out / WEIGHTS).exists():
            raise FieldRefused("out", f"{out} holds an adapter already; name another folder")
        recipe = _recipe(expression, rank, dtype, seed, allow_base_mismatch)
        sources = _open(recipe)
        options = _options(sources, max_rank, device, backend, max_workspace)
        with _progress() as progress:
            task = progress.add_task("merging", total=None)
            outcome = build_adapter(
                recipe, sources, FolderSink(out), options,
                on_progress=lambda done, total: progress.update(task, completed=done, total=total),
            )  # fmt: skip
    kept = "" if outcome.energy_kept is None else f", energy kept {outcome.energy_kept:.4f}"
    seconds = sum(outcome.seconds.values())
    _CONSOLE.print(f"{out}: {outcome.module_count} modules, rank {outcome.rank}{kept}, {seconds:.2f} s", markup=False)
    _print_inputs(outcome.lineage.get("overall", {}))
    _print_warnings(outcome.warnings)


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
    as_json: Annotated[bool, typer.Option("--json", help="print everything, module by module, as JSON")] = False,
) -> None:
    """Say what a merge would do, and how its inputs relate, without building it."""
    with _sentences():
        from amalgam.merge.build import diagnose

        recipe = _recipe(expression, rank, dtype, seed, allow_base_mismatch)
        sources = _open(recipe)
        layout, modules, overall = diagnose(recipe, sources, _options(sources, max_rank, device, "auto", max_workspace))
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
        _CONSOLE.print(f"{name.replace('_', ' '):16} {value}", markup=False)
    _print_inputs(overall)
    _print_warnings(layout.warnings)


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
    _CONSOLE.print(table)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="a folder that `merge build` wrote")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="HTML file; without it: report.html beside it")
    ] = None,
) -> None:
    """Write a page that shows what a merge did to each input."""
    from amalgam.cli.merge_report import render

    with _sentences():
        path = folder / "lineage.json"
        if not path.is_file():
            raise SourceNotFound
        page = render(json.loads(path.read_text(encoding="utf-8")))
    target = out or folder.with_name(folder.name + "-report.html")
    target.write_text(page, encoding="utf-8")
    _CONSOLE.print(str(target), markup=False)


def _parameter_lines(name: str) -> Iterator[str]:
    spec = METHODS[name]
    for field, info in spec.parameters.model_fields.items():
        default = info.default
        by_space = {space: values[field] for space, values in (spec.defaults_by_space or {}).items() if field in values}
        others = "".join(f", {value} in {space}" for space, value in by_space.items() if space in tuple(Space))
        yield f"{info.alias or field}={default}{others}"


def _recipe(expression: str, rank: str | None, dtype: str | None, seed: int | None, mismatch: bool) -> Recipe:
    """The recipe of an expression or a file, with the options on top."""
    if expression.endswith(".json"):
        recipe = Recipe.model_validate_json(Path(expression).read_text(encoding="utf-8"))
    else:
        recipe = parse_expression(expression, allow_paths=True)
    fields = recipe.model_dump()
    if rank is not None:
        fields["output"]["rank"] = _rank(rank)
    if dtype is not None:
        fields["output"]["dtype"] = dtype
    if seed is not None:
        fields["seed"] = seed
    fields["allow_base_mismatch"] = mismatch or recipe.allow_base_mismatch
    return Recipe.model_validate(fields)


def _rank(text: str) -> str | int | dict[str, float]:
    try:
        if text.startswith("energy="):
            return {"energy": float(text.removeprefix("energy="))}
        return text if text == "auto" else int(text)
    except ValueError:
        raise FieldRefused("rank", f"{text!r} is none of: auto, a number, energy=0.95") from None


def _open(recipe: Recipe) -> "dict[str, TensorSource]":
    """Every folder of the recipe: plain LoRA checked and mapped, other kinds converted."""
    from amalgam.merge.formats import convert, is_plain
    from amalgam.store.peft_folder import read_peft_folder
    from amalgam.store.tensor_files import CONFIG, open_tensors, read_all

    opened: dict[str, TensorSource] = {}
    for name in recipe.adapters:
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise FieldRefused("inputs", f"{name!r} is no folder. Name the folder of a PEFT adapter")
        config = folder / CONFIG
        if config.is_file() and not is_plain(config.read_text(encoding="utf-8")):
            opened[name] = convert(name, *read_all(folder))
            continue
        header = read_peft_folder(folder, None, scan_values=False).require()
        opened[name] = open_tensors(folder, header)
    return opened


def _options(
    sources: "Mapping[str, TensorSource]", max_rank: int, device: str, backend: str, workspace: str
) -> "BuildOptions":
    from amalgam.merge.build import BuildOptions
    from amalgam.merge.run import RunOptions

    # Without a model at hand its name is all there is: folders and capital letters do not count.
    bases = {name: (source.header.base_model or "").rstrip("/").rpartition("/")[2].lower() or None
             for name, source in sources.items()}  # fmt: skip
    run = RunOptions(device=device, backend=backend, max_workspace_bytes=_bytes(workspace))
    return BuildOptions(max_rank=max_rank, run=run, bases=bases)


def _bytes(text: str) -> int:
    number, unit = next(((text.removesuffix(u), size) for u, size in _UNITS.items() if text.endswith(u)), (text, 1))
    try:
        return int(float(number) * unit)
    except ValueError:
        raise FieldRefused("max-workspace", f"{text!r} is not a size such as 512MiB") from None


def _progress() -> Progress:
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=_ERRORS, transient=True)


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
    _CONSOLE.print(table)


def _print_warnings(warnings: tuple[str, ...]) -> None:
    for warning in warnings:
        _ERRORS.print(f"warning: {warning}", markup=False, style="yellow")


@contextmanager
def _sentences() -> Iterator[None]:
    """Errors of the tree end the program with their message and code, not with a trace."""
    try:
        yield
    except AmalgamError as error:
        _ERRORS.print(f"{error.code}: {error.message}", markup=False, style="red", soft_wrap=True)
        raise typer.Exit(2) from None
    except ValueError as error:
        # What pydantic refuses in a recipe file or an option.
        _ERRORS.print(f"invalid_recipe: {error}", markup=False, style="red", soft_wrap=True)
        raise typer.Exit(2) from None
