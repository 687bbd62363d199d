"""`amalgam experiments`: list, start, show and stop, on a running server."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from amalgam.cli.client import (
    DEFAULT_URL,
    Key,
    Url,
    answer,
    client,
    every_page,
    path_of,
    print_table,
)
from amalgam.cli.consoles import on_stderr, on_stdout
from amalgam.cli.one_line import OneLineGroup
from amalgam.cli.tables import PlainTable, whole

app = typer.Typer(cls=OneLineGroup, help="Experiments on aliases, on a running server.", no_args_is_help=True)


@app.command("ls")
def list_experiments(url: Url = DEFAULT_URL, key: Key = None) -> None:
    """List the newest experiment of each alias."""
    table = PlainTable(whole("alias"), "state", "verdict", "winner", "outcomes", "begun")
    with client(url, key) as session:
        for one in every_page(session, "/admin/v1/experiments"):
            outcomes = str(sum(target["outcomes"] for target in one["targets"]))
            row = (one["alias"], one["state"], one["verdict"] or "", one["winner"] or "", outcomes, one["created_at"])
            table.add_texts(*row)
    print_table(table)


@app.command()
def start(
    alias: str,
    metric: Annotated[str | None, typer.Option(help="name of the feedback that decides")] = None,
    control: Annotated[str | None, typer.Option(help="target that stays; without it: the one of most weight")] = None,
    minimum_effect: Annotated[float, typer.Option(help="a smaller difference of the means does not matter")] = 0.02,
    promote: Annotated[bool, typer.Option("--promote", help="the alias means the winner alone at the end")] = False,
    shadow: Annotated[list[str] | None, typer.Option(help="gets copies of requests and never answers")] = None,
    file: Annotated[
        Path | None, typer.Option(help="all of it as JSON, guards too", dir_okay=False, exists=True)
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Have an alias carry an experiment."""
    body: dict[str, Any] = {"metric": metric, "control": control, "minimum_effect": minimum_effect, "promote": promote}
    body["shadows"] = shadow or []
    if file is not None:
        try:
            body = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            on_stderr().print(f"{file} is no JSON: {error}. Mend the file.", markup=False, soft_wrap=True)
            raise typer.Exit(1) from error
    with client(url, key) as session:
        _print(answer(session.put(path_of("aliases", alias, "experiment"), json=body), "targets"))


@app.command()
def show(alias: str, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Show the experiment of an alias, or its last one."""
    with client(url, key) as session:
        _print(answer(session.get(path_of("aliases", alias, "experiment")), "targets"))


@app.command()
def stop(alias: str, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Stop an experiment; the alias stays as it is."""
    with client(url, key) as session:
        _print(answer(session.delete(path_of("aliases", alias, "experiment")), "targets"))


@app.command()
def outcomes(alias: str, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Show what clients say of an alias' answers, by target and name."""
    table = PlainTable(whole("target"), whole("version"), "name", "count", "mean", "between")
    with client(url, key) as session:
        for one in answer(session.get(path_of("aliases", alias, "outcomes")), "data")["data"]:
            mean, between = f"{one['mean']:.3f}", _between(one["interval"])
            table.add_texts(one["target"], one["version"], one["name"], str(one["count"]), mean, between)
    print_table(table)


def _print(one: dict[str, Any]) -> None:
    ended = "" if one["verdict"] is None else f": {one['verdict']}"
    winner = "" if one["winner"] is None else f", {one['winner']} stays"
    on_stdout().print(f"{one['alias']} {one['state']}{ended}{winner}", markup=False, soft_wrap=True)
    columns = ("role", "outcomes", "mean", "between", "above the control", "requests", "errors", "slow")
    table = PlainTable(whole("target"), *columns)
    for target in one["targets"]:
        mean = "" if target["mean"] is None else f"{target['mean']:.3f}"
        above = "" if target["difference"] is None else _between(target["difference"])
        counts = [str(target[name]) for name in ("requests", "errors", "slow")]
        seen = (target["role"], str(target["outcomes"]), mean, _between(target["interval"]), above)
        table.add_texts(target["model"], *seen, *counts)
    print_table(table)


def _between(pair: list[float]) -> str:
    return f"{pair[0]:.3f} to {pair[1]:.3f}"
