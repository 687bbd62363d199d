"""`amalgam aliases`: list, set, show, remove and roll back, on a running server."""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Final

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

app = typer.Typer(cls=OneLineGroup, help="Names for weighted targets, on a running server.", no_args_is_help=True)

_WEIGHTED = re.compile(r"(.+)=(\d+)", re.DOTALL)
_FIT_TIMEOUT_S: Final = 330.0
"""It is longer than the server reads prompts for adapters that find their examples."""
Revision = Annotated[
    int | None, typer.Option(help="only if the alias is at this revision; 0: only if it is new", min=0)
]


@app.command("ls")
def list_aliases(
    search: Annotated[str, typer.Argument(help="part of the name")] = "", url: Url = DEFAULT_URL, key: Key = None
) -> None:
    """List aliases."""
    table = PlainTable(whole("name"), "revision", "means", "changed")
    with client(url, key) as session:
        for alias in every_page(session, "/admin/v1/aliases", search):
            table.add_texts(alias["name"], str(alias["revision"]), _meaning(alias), alias["updated_at"])
    print_table(table)


@app.command("set")
def set_alias(
    name: str,
    targets: Annotated[list[str], typer.Argument(help="MODEL or MODEL=WEIGHT, as in sql@3=90 sql@4=10")],
    revision: Revision = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Make a name mean targets, each with its weight."""
    body = {"targets": [_target(text) for text in targets], "revision": revision}
    with client(url, key) as session:
        _print(answer(session.put(path_of("aliases", name), json=body)))


@app.command("route")
def route_alias(
    name: str,
    file: Annotated[Path, typer.Argument(help="the router as JSON", dir_okay=False, exists=True)],
    revision: Revision = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Make a name choose its target by content, with the router of a file."""
    try:
        router = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        on_stderr().print(f"{file} is no JSON: {error}. Mend the file.", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    body = {"router": router, "revision": revision}
    with client(url, key, _FIT_TIMEOUT_S) as session:
        _print(answer(session.put(path_of("aliases", name), json=body)))


@app.command()
def explain(
    name: str,
    prompt: Annotated[str, typer.Argument(help="what a user says")],
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Show which target an alias chooses for a prompt, and why, as JSON."""
    with client(url, key) as session:
        found = answer(session.post(path_of("aliases", name) + ":explain", json={"prompt": prompt}), "model", "reason")
        on_stdout().print_json(data=found)


@app.command()
def show(
    name: str,
    history: Annotated[bool, typer.Option("--history", help="what it meant before, newest first")] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Show one alias, or its latest changes, as JSON."""
    with client(url, key) as session:
        path = path_of("aliases", name, *(["history"] if history else []))
        on_stdout().print_json(data=answer(session.get(path), "data" if history else "name"))


@app.command()
def rm(name: str, revision: Revision = None, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Delete an alias; what it means stays."""
    headers = {} if revision is None else {"If-Match": f'"{revision}"'}
    with client(url, key) as session:
        gone = answer(session.delete(path_of("aliases", name), headers=headers), "deleted")
    on_stdout().print(f"deleted {gone['deleted']}", markup=False, soft_wrap=True)


@app.command()
def rollback(
    name: str,
    to: Annotated[int | None, typer.Option(help="revision to bring back; without it: before the last change")] = None,
    revision: Revision = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Bring back what an alias meant before."""
    with client(url, key) as session:
        body = {"to_revision": to, "revision": revision}
        _print(answer(session.post(path_of("aliases", name) + ":rollback", json=body)))


def _target(text: str) -> dict[str, Any]:
    found = _WEIGHTED.fullmatch(text)
    return {"model": found[1], "weight": int(found[2])} if found else {"model": text}


def _meaning(alias: dict[str, Any]) -> str:
    router = alias.get("router")
    if router is not None:
        return f"by content: {', '.join(router['candidates'])}; else {router['otherwise']}"
    return ", ".join(f"{100 * target['share']:.4g} % {target['model']}" for target in alias["targets"])


def _print(alias: dict[str, Any]) -> None:
    on_stdout().print(
        f"{alias['name']} -> {_meaning(alias)}  (revision {alias['revision']})", markup=False, soft_wrap=True
    )
