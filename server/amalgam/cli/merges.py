"""`amalgam merges`: have a running server merge its own adapters."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from amalgam.cli.client import DEFAULT_URL, Key, Url, answer, client, path_of
from amalgam.cli.consoles import on_stderr, on_stdout
from amalgam.cli.fit_options import prompts_file
from amalgam.cli.jobs import described, followed
from amalgam.cli.one_line import OneLineGroup
from amalgam.cli.recipe_options import recipe_file
from amalgam.domain.fit import FitMethod, FitRecord
from amalgam.errors.terminal import FileUnusable

app = typer.Typer(
    cls=OneLineGroup, help="Merge adapters that a running server has; `merge` is for folders.", no_args_is_help=True
)


@app.callback()
def _several() -> None:
    """Keep the verb in the command line although there is one only."""


def fit_body(path: Path | None, evaluation: str | None, budget_s: float | None) -> dict[str, Any] | None:
    """What the server fits the merge by; None where it fits nothing.

    Raises:
        FileUnusable: the file is no JSON object, or has prompts beside items.
    """
    if path is None and evaluation is None:
        return None
    body: dict[str, Any] = {} if evaluation is None else {"by": "items", "evaluation": evaluation}
    if path is not None:
        given = prompts_file(path)
        rows = [row for each in given.values() if isinstance(each, list) for row in each]
        labelled = [isinstance(row, dict) and bool(row.keys() & {"reference", "pattern"}) for row in rows]
        if any(labelled) and not all(labelled):
            raise FileUnusable(str(path), "some of its prompts have a reference and some have none")
        body |= {"by": "items", "items": given} if any(labelled) else {"by": "kept", "prompts": given}
    return body if budget_s is None else body | {"budget_s": budget_s}


def described_merge(expression: str) -> dict[str, Any]:
    """What a request says of what is merged: an expression, or the recipe of a file of JSON."""
    if not expression.endswith(".json"):
        return {"expression": expression}
    # Defaults are the server's own; what is written there is sent, and checked once more.
    return {"recipe": json.loads(recipe_file(Path(expression)).model_dump_json(exclude_unset=True))}


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="adapter that the result becomes a version of")],
    expression: Annotated[str, typer.Argument(help="such as 'sql + 0.5*json', or a recipe file (.json)")],
    fit: Annotated[
        Path | None,
        typer.Option(
            "--fit",
            help="fit the merge first, by a JSON file: prompts by input, or items with references by input",
        ),
    ] = None,
    fit_evaluation: Annotated[
        str | None, typer.Option("--fit-evaluation", help="the same by an evaluation, whose items are scored")
    ] = None,
    fit_method: Annotated[
        FitMethod | None,
        typer.Option(
            "--fit-method",
            help="iteris (inputs are fitted to what they read) or weights (a search); without it the server chooses",
        ),
    ] = None,
    fit_budget_s: Annotated[
        float | None,
        typer.Option("--fit-budget-s", min=1, help="longest search or reading, seconds; the server's default is 300"),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="until it is in service, or has failed")] = False,
    keep_default: Annotated[bool, typer.Option("--keep-default", help="leave the default version where it is")] = False,
    probe: Annotated[
        Path | None, typer.Option("--probe", help='JSON file of prompts by input, such as {"sql": ["…"]}')
    ] = None,
    probe_evaluation: Annotated[
        str | None, typer.Option("--probe-evaluation", help="id of an evaluation whose tasks are named like the inputs")
    ] = None,
    require_kept: Annotated[
        float | None, typer.Option("--require-kept", min=0, max=1, help="publish only if so much of each input is kept")
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Build a merged adapter on the server; prints its version, or the job that makes it."""
    searched = fit_body(fit, fit_evaluation, fit_budget_s)
    if searched is not None and fit_method is not None:
        searched["method"] = fit_method
    asked = {"prompts": prompts_file(probe) if probe else None, "evaluation": probe_evaluation}
    body = {"name": name, "set_default": not keep_default, **described_merge(expression)}
    body |= {} if searched is None else {"fit": searched}
    body |= {"probe": {field: value for field, value in asked.items() if value}} if any(asked.values()) else {}
    body |= {} if require_kept is None else {"require": {"kept": require_kept}}
    with client(url, key) as session:
        made = answer(session.post(path_of("merges"), json=body))
        if "job" in made and wait:
            job = followed(session, made["job"])
            adapter, _, number = job["version"].partition("@")
            made = answer(session.get(path_of("adapters", adapter, "versions", number)))
        if "job" in made:
            on_stdout().print(described(made["job"]), markup=False, soft_wrap=True)
            return
        _print_version(made)


def _print_version(made: dict[str, Any]) -> None:
    """What was built, how it was fitted, and what it keeps of its inputs."""
    text = f"{made['model']}  rank {made['rank']}  {made['size_bytes'] / 1e6:.1f} MB"
    on_stdout().print(text, markup=False, soft_wrap=True)
    lineage = made["lineage"] or {}
    if found := lineage.get("fit"):
        on_stdout().print(FitRecord.model_validate(found).outcome, markup=False, soft_wrap=True)
    for name, figures in (lineage.get("kept") or {}).get("inputs", {}).items():
        line = f"gives {figures['answers']:.0%} of the answers of {name} alike ({figures['prompts']} prompts)"
        on_stdout().print(line, markup=False, soft_wrap=True)
    for warning in made["warnings"]:
        on_stderr().print(f"warning: {warning}", markup=False, style="yellow", soft_wrap=True)
