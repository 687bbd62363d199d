"""`amalgam adapters`: push, list, show, remove and move the default version, on a running server."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from amalgam.cli.client import CONSOLE, DEFAULT_URL, ERRORS, Key, Url, answer, client, every_page

_REBUILD_S = 660.0

app = typer.Typer(help="Adapters of a running server.", no_args_is_help=True)


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="PEFT folder")],
    name: Annotated[str | None, typer.Option(help="adapter name; without it: the folder's")] = None,
    keep_default: Annotated[bool, typer.Option("--keep-default", help="leave the default version where it is")] = False,
    check: Annotated[bool, typer.Option("--check", help="only report what would be found")] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Upload an adapter folder as a new version."""
    # Everything is offered, so that the server's check sees what is really there; it says what it leaves out.
    paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    with ExitStack() as stack, client(url, key) as session:
        files = [("files", (path.name, stack.enter_context(path.open("rb")))) for path in paths]
        data = {"name": name or folder.resolve().name, "set_default": "false" if keep_default else "true"}
        if check:
            report = answer(session.post("/admin/v1/adapters:validate", data=data, files=files))
            for finding in report["findings"]:
                CONSOLE.print(f"{finding['severity']}: {finding['code']}: {finding['message']}", markup=False)
            CONSOLE.print("valid" if report["valid"] else "not valid")
            raise typer.Exit(0 if report["valid"] else 1)
        version = answer(session.post("/admin/v1/adapters", data=data, files=files))
    CONSOLE.print(f"{version['model']}  rank {version['rank']}  {version['size_bytes'] / 1e6:.1f} MB")
    for warning in version["warnings"]:
        ERRORS.print(f"[yellow]warning[/yellow]: {warning}")


@app.command("ls")
def list_adapters(
    search: Annotated[str, typer.Argument(help="part of the name")] = "", url: Url = DEFAULT_URL, key: Key = None
) -> None:
    """List adapters."""
    table = Table("name", "default", "versions", "rank", "MB", "source")
    with client(url, key) as session:
        for adapter in every_page(session, "/admin/v1/adapters", search):
            versions = adapter["versions"]
            newest: dict[str, Any] = versions[-1] if versions else {"rank": 0, "size_bytes": 0, "source": ""}
            default = str(adapter["default_version"] or "-")
            size = f"{newest['size_bytes'] / 1e6:.1f}"
            table.add_row(adapter["name"], default, str(len(versions)), str(newest["rank"]), size, newest["source"])
    CONSOLE.print(table)


@app.command()
def show(name: str, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Show one adapter with its versions, as JSON."""
    with client(url, key) as session:
        CONSOLE.print_json(data=answer(session.get(f"/admin/v1/adapters/{name}")))


@app.command()
def rm(
    name: Annotated[str, typer.Argument(help="name, or name@version")], url: Url = DEFAULT_URL, key: Key = None
) -> None:
    """Delete an adapter, or one version of it; running requests finish."""
    adapter, _, number = name.partition("@")
    path = f"/admin/v1/adapters/{adapter}" + (f"/versions/{number}" if number else "")
    with client(url, key) as session:
        for ref in answer(session.delete(path))["deleted"]:
            CONSOLE.print(f"deleted {ref}")


@app.command("default")
def set_default(name: str, version: int, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Make a version the one that the bare name means."""
    with client(url, key) as session:
        body = answer(session.patch(f"/admin/v1/adapters/{name}", json={"default_version": version}))
    CONSOLE.print(f"{body['name']} -> {body['name']}@{body['default_version']}")


@app.command()
def verify(
    name: Annotated[str, typer.Argument(help="adapter; without it: all")] = "", url: Url = DEFAULT_URL, key: Key = None
) -> None:
    """Compare stored files with their digests; exit code 1 where one is damaged."""
    damaged = 0
    with client(url, key) as session:
        names = [name] if name else [adapter["name"] for adapter in every_page(session, "/admin/v1/adapters", "")]
        for adapter in names:
            for ref, sound in answer(session.post(f"/admin/v1/adapters/{adapter}:verify"))["versions"].items():
                damaged += not sound
                CONSOLE.print(f"{'ok     ' if sound else 'DAMAGED'} {ref}")
    raise typer.Exit(1 if damaged else 0)


@app.command()
def rebuild(
    version: Annotated[str, typer.Argument(help="name@version of a merged adapter")],
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Build a merged version again from its lineage and compare the bytes; exit code 1 where they differ."""
    adapter, _, number = version.partition("@")
    if not number.isdecimal():
        raise typer.BadParameter("name an exact version, such as sql-json@2")
    with client(url, key, timeout_s=_REBUILD_S) as session:
        rebuilt = answer(session.post(f"/admin/v1/adapters/{adapter}/versions/{number}:rebuild"))
    CONSOLE.print(f"{rebuilt['model']}  stored   {rebuilt['digest']}", soft_wrap=True)
    CONSOLE.print(f"{rebuilt['model']}  rebuilt  {rebuilt['rebuilt_digest']}", soft_wrap=True)
    if rebuilt["identical"]:
        CONSOLE.print(f"identical, built in {rebuilt['seconds']:.2f} s")
        return
    first = ", ".join(f"{what} {which}" for what, which in rebuilt["built_with"].items())
    ERRORS.print(f"[red]not the same bytes[/red]; the first build was by {first}")
    raise typer.Exit(1)
