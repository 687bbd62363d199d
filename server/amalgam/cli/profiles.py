"""`amalgam adapters profile`: how a version wants to be asked, shown, set, switched and taken away."""

import json
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from amalgam.cli.client import DEFAULT_URL, Key, Url, answer, client, path_of
from amalgam.cli.consoles import on_stdout
from amalgam.cli.one_line import OneLineGroup
from amalgam.cli.recipe_options import sentences
from amalgam.errors.requests import FieldRefused

Version = Annotated[str, typer.Argument(help="name@version; a name alone is its default version")]

app = typer.Typer(
    cls=OneLineGroup, help="Serving profiles: template, system prompt, sampling, stops.", no_args_is_help=True
)


@app.command()
def show(version: Version, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Show a version's profile with its history, as JSON."""
    with client(url, key) as session:
        on_stdout().print_json(data=answer(session.get(_path(session, version)), "model"))


@app.command("set")
def put(
    version: Version,
    file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="the whole profile, as JSON; options go over it")
    ] = None,
    template: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="file of a chat template")] = None,
    system: Annotated[str | None, typer.Option(help="system prompt")] = None,
    sampling: Annotated[str | None, typer.Option(help="defaults, as JSON: '{\"temperature\": 0.2}'")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="string that ends an answer; may be given several times")
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="keep it, without using it")] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Set a version's profile in place of the one it has."""
    with sentences(), client(url, key) as session:
        body: dict[str, Any] = _read("file", file.read_bytes()) if file is not None else {}
        if template is not None:
            body["chat_template"] = _text("template", template)
        if system is not None:
            body["system_prompt"] = system
        if sampling is not None:
            body["sampling"] = _read("sampling", sampling.encode())
        if stop:
            body["stop"] = stop
        _say(answer(session.put(_path(session, version), json=body | {"active": not off}), "model", "active"))


@app.command()
def on(version: Version, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Have requests get a version's profile."""
    _switch(version, url, key, active=True)


@app.command()
def off(version: Version, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Keep a version's profile, and have requests not get it."""
    _switch(version, url, key, active=False)


@app.command()
def rm(version: Version, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Take a version's profile away; its history stays."""
    with client(url, key) as session:
        gone = answer(session.delete(_path(session, version)), "model")
    on_stdout().print(f"{gone['model']} has no profile now", markup=False, soft_wrap=True)


def _switch(version: str, url: str, key: str | None, *, active: bool) -> None:
    with client(url, key) as session:
        _say(answer(session.patch(_path(session, version), json={"active": active}), "model", "active"))


def _path(session: httpx.Client, version: str) -> str:
    name, _, number = version.partition("@")
    number = number or str(answer(session.get(path_of("adapters", name)))["default_version"])
    return path_of("adapters", name, "versions", number, "profile")


def _say(view: dict[str, Any]) -> None:
    parts = ", ".join(view["profile"] or ()) or "nothing"
    state = "on" if view["active"] else "off"
    on_stdout().print(f"{view['model']}  revision {view['revision']}  {state}  {parts}", markup=False, soft_wrap=True)


def _read(option: str, data: bytes) -> dict[str, Any]:
    """The JSON object that an option holds.

    Raises:
        FieldRefused: it holds something else.
    """
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise FieldRefused(option, "must be a JSON object")
    return found


def _text(option: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise FieldRefused(option, f"{str(path)!r} is not UTF-8. Name a text file") from None
