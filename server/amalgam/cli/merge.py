"""`amalgam merge`: build, plan and explain merges of adapter folders, without a server."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from amalgam.cli.consoles import on_stdout
from amalgam.cli.fit_options import FitFile, fit_forecast, fit_sentence, fitted_inputs
from amalgam.cli.merge_outputs import LINEAGE_END, FormOption, default_dtype, require_free, sink_of, target_of
from amalgam.cli.one_line import OneLineGroup
from amalgam.cli.recipe_options import (
    DEFAULT_MAX_RANK,
    Backend,
    Base,
    Device,
    Dtype,
    Expression,
    MaxRank,
    Mismatch,
    Rank,
    Seed,
    UniformRank,
    Workspace,
    build_options,
    open_inputs,
    print_warnings,
    progress_bar,
    recipe_of,
    require_writable,
    sentences,
)
from amalgam.cli.tables import PlainTable, print_fitting
from amalgam.domain.skill_probe import unmeasured
from amalgam.errors.requests import FieldRefused
from amalgam.merge.methods import METHODS, Space
from amalgam.merge.plan import plan as plan_merge

_COSINE_COLUMNS: Final = 4
"""Up to this many inputs every pair has a place in 80 columns."""

_NAME_WIDTH: Final = 24

_REHEARSAL_S: Final = 60.0
"""A plan may merge for so long, to say how much of the energy is kept."""

app = typer.Typer(cls=OneLineGroup, help="Merge adapter folders, without a server.", no_args_is_help=True)


@app.command()
def build(
    expression: Expression,
    out: Annotated[Path, typer.Option("--out", "-o", help="folder or file to write; must not hold an adapter yet")],
    rank: Rank = None,
    dtype: Dtype = None,
    seed: Seed = None,
    max_rank: MaxRank = DEFAULT_MAX_RANK,
    device: Device = "cpu",
    backend: Backend = "auto",
    max_workspace: Workspace = "1GiB",
    allow_base_mismatch: Mismatch = False,
    base: Base = None,
    uniform_rank: UniformRank = False,
    form: FormOption = None,
    fit: FitFile = None,
) -> None:
    """Merge adapter folders into a new one."""
    with sentences():
        from amalgam.merge.build import build_adapter

        target, known = target_of(out, form)
        require_free(target)
        require_writable(out)
        recipe = recipe_of(expression, rank, default_dtype(known, dtype), seed, allow_base_mismatch, uniform_rank)
        sources = open_inputs(recipe, base, dora_rank=max_rank)
        sink = sink_of(target, known, sources, base)
        notes = unmeasured(recipe) if fit is None else ()
        options = replace(build_options(sources, max_rank, device, backend, max_workspace, base), notes=notes)
        place = (base, device, options.run.max_workspace_bytes)
        sources, sink = fitted_inputs(fit, recipe, sources, sink, place)
        with progress_bar() as progress:
            task = progress.add_task("merging", total=None)
            outcome = build_adapter(
                recipe, sources, sink, options,
                on_progress=lambda done, total: progress.update(task, completed=done, total=total),
            )  # fmt: skip
    kept = "" if outcome.energy_kept is None else f", energy kept {outcome.energy_kept:.4f}"
    stored = outcome.lineage["result"]["storage_error"]
    kept += f", {stored:.4f} off in {outcome.recipe.output.dtype}" if stored else ""
    seconds = sum(outcome.seconds.values())
    on_stdout().print(
        f"{out}: {outcome.module_count} modules, rank {outcome.rank}{kept}, {seconds:.2f} s",
        markup=False,
        soft_wrap=True,
    )
    _print_inputs(outcome.lineage.get("overall", {}))
    print_warnings(outcome.warnings)


@app.command()
def plan(
    expression: Expression,
    rank: Rank = None,
    dtype: Dtype = None,
    seed: Seed = None,
    max_rank: MaxRank = DEFAULT_MAX_RANK,
    device: Device = "cpu",
    max_workspace: Workspace = "1GiB",
    allow_base_mismatch: Mismatch = False,
    base: Base = None,
    fit: FitFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="print everything, module by module, as JSON")] = False,
) -> None:
    """Say what a merge would do, and how its inputs relate, without building it."""
    with sentences():
        from amalgam.merge.rehearse import rehearse

        recipe = recipe_of(expression, rank, dtype, seed, allow_base_mismatch)
        sources = open_inputs(recipe, base, dora_rank=max_rank)
        options = build_options(sources, max_rank, device, "auto", max_workspace, base)
        headers = {name: source.header for name, source in sources.items()}
        layout = plan_merge(recipe, headers, max_rank=max_rank, bases=options.bases)
        fitting = None if fit is None else fit_forecast(fit, recipe, base, device)
        until = time.monotonic() + _REHEARSAL_S
        forecast = rehearse(recipe, sources, options, is_over=lambda: time.monotonic() > until)
    overall, kept = forecast.overall, forecast.energy_kept
    seen = "" if forecast.is_complete else f" (over the {forecast.modules_seen} modules seen in {_REHEARSAL_S:.0f} s)"
    facts: dict[str, Any] = {
        "method": layout.spec.name,
        "space": str(layout.space),
        "parameters": dict(layout.recipe.parameters),
        "modules": len(layout.modules),
        "partial_modules": len(layout.partial),
        "exact_rank": layout.exact_rank,
        "rank": layout.rank,
        "energy_kept": kept,
        "input_bytes": layout.input_bytes,
        "output_bytes": layout.output_bytes,
    }
    warnings = (*layout.warnings, *(unmeasured(layout.recipe) if fitting is None else fitting.warnings()))
    if as_json:
        details = [module.model_dump(mode="json", exclude={"result"}) for module in forecast.modules]
        told = {"overall": overall, "warnings": warnings, "diagnostics": details}
        told |= {} if fitting is None else {"fit": fitting.model_dump(mode="json")}
        print(json.dumps({**facts, **told}))
        return
    facts["energy_kept"] = "all of it" if kept is None else f"{kept:.4f}{seen}"
    for name, value in facts.items():
        on_stdout().print(f"{name.replace('_', ' '):16} {value}", markup=False, soft_wrap=True)
    if fitting is not None:
        on_stdout().print(f"{'fit':16} {fit_sentence(fitting)}", markup=False, soft_wrap=True)
    _print_inputs(overall)
    print_warnings(warnings)


@app.command()
def methods() -> None:
    """The table of methods, their spaces and parameters."""
    table = PlainTable("method", "what it does", "spaces (first: default)", "parameters", "paper")
    for spec in METHODS.values():
        table.add_texts(
            spec.name + (" (random)" if spec.random else ""),
            spec.summary,
            ", ".join(spec.spaces),
            "\n".join(_parameter_lines(spec.name)),
            spec.paper,
        )
    print_fitting(on_stdout(), table)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="a folder that `merge build` wrote, or its .lineage.json")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="HTML file; without it: report.html beside it")
    ] = None,
) -> None:
    """Write a page that shows what a merge did to each input."""
    from amalgam.cli.merge_report import render

    with sentences():
        path = folder if folder.is_file() else folder / "lineage.json"
        if not path.is_file():
            raise FieldRefused(
                "folder", f"{folder} has no lineage.json; name a folder that `amalgam merge build` wrote"
            )
        try:
            page = render(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            raise FieldRefused("folder", f"{path} is not a lineage that `amalgam merge build` wrote") from None
        # The folder may be given as a dot, or a link, and is named all the same.
        real = folder.resolve()
        name = real.name.removesuffix(LINEAGE_END) if folder.is_file() else real.name
        target = out or real.with_name((name or "merge") + "-report.html")
        target.write_text(page, encoding="utf-8")
    on_stdout().print(str(target), markup=False, soft_wrap=True)


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
    wide = len(names) > _COSINE_COLUMNS
    heads = ["nearest"] if wide else [f"cos {i + 1}" for i in range(len(names))]
    table = PlainTable("#", "input", "norm", *(["still applied"] if retention else []), *heads)
    for i, name in enumerate(names):
        kept = [f"{retention[i]:+.3f}"] if retention else []
        row = overall["cosine"][i]
        cosines = [_nearest(i, row)] if wide else [f"{value:+.3f}" for value in row]
        table.add_texts(str(i + 1), _short(name), f"{overall['norms'][i]:.4g}", *kept, *cosines)
    print_fitting(on_stdout(), table)


def _nearest(own: int, cosines: Sequence[float]) -> str:
    """The input that an input is most like, or most unlike, and its cosine."""
    other = max((j for j in range(len(cosines)) if j != own), key=lambda j: abs(cosines[j]))
    return f"{cosines[other]:+.3f} with {other + 1}"


def _short(path: str) -> str:
    """The end of a long path, where folders differ."""
    text = path.rstrip("/")
    return text if len(text) <= _NAME_WIDTH else "…" + text[1 - _NAME_WIDTH :]
