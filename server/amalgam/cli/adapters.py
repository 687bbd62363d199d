"""`amalgam adapters`: push, list, show, remove and move the default version, on a running server."""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import typer
from rich.markup import escape

from amalgam.cli import profiles
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
from amalgam.cli.recipe_options import require_writable, sentences
from amalgam.cli.tables import PlainTable, whole
from amalgam.errors.requests import FieldRefused
from amalgam.store.adapter_archive import unpack
from amalgam.store.file_rules import judge_names, left_out, names_in
from amalgam.store.peft_folder import read_peft_folder
from amalgam.store.profile_files import PROFILE_FILES

_REBUILD_S = 660.0

_PUSHED = ("model", "rank", "size_bytes", "warnings")
_MOVED = ("name", "default_version")
_REBUILT = ("model", "digest", "rebuilt_digest", "identical", "seconds", "built_with")
"""These fields of answers are shown when the connection is closed."""

Form = Literal["peft", "mlx", "gguf"]

app = typer.Typer(cls=OneLineGroup, help="Adapters of a running server.", no_args_is_help=True)
app.add_typer(profiles.app, name="profile")


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="PEFT folder")],
    name: Annotated[str | None, typer.Option(help="adapter name; without it: the folder's")] = None,
    keep_default: Annotated[bool, typer.Option("--keep-default", help="leave the default version where it is")] = False,
    use_profile: Annotated[
        bool, typer.Option("--use-profile", help="send chat template and sampling defaults along, and use them")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="only report what would be found")] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Upload an adapter folder as a new version."""
    paths = offered(folder)
    if use_profile:
        paths += [folder / name for name in PROFILE_FILES if (folder / name).is_file()]
    with ExitStack() as stack, client(url, key) as session:
        files = [("files", (path.name, stack.enter_context(path.open("rb")))) for path in paths]
        data = {"name": name or folder.resolve().name, "set_default": "false" if keep_default else "true"}
        data |= {"use_profile": "true"} if use_profile else {}
        if check:
            report = answer(session.post("/admin/v1/adapters:validate", data=data, files=files))
            for finding in report["findings"]:
                on_stdout().print(
                    f"{finding['severity']}: {finding['code']}: {finding['message']}", markup=False, soft_wrap=True
                )
            on_stdout().print("valid" if report["valid"] else "not valid")
            raise typer.Exit(0 if report["valid"] else 1)
        version = answer(session.post("/admin/v1/adapters", data=data, files=files), *_PUSHED)
    on_stdout().print(
        f"{version['model']}  rank {version['rank']}  {version['size_bytes'] / 1e6:.1f} MB",
        markup=False,
        soft_wrap=True,
    )
    for warning in version["warnings"]:
        on_stderr().print(f"warning: {warning}", markup=False, style="yellow", soft_wrap=True)


def offered(folder: Path) -> list[Path]:
    """The files of an adapter folder that go to a server; what stays behind is said once, on standard error.

    Ends the program where the folder holds nothing that a server could take.
    """
    names = names_in(folder)
    findings = judge_names(names)
    for finding in findings:
        on_stderr().print(f"{finding.severity}: {finding.message}", markup=False, soft_wrap=True)
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(1)
    stays = frozenset(left_out(names))
    return [folder / name for name in names if name not in stays]


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="name, or name@version; a name alone is its default version")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="folder (or file.gguf) to write; without it: the adapter's name")
    ] = None,
    form: Annotated[
        Form | None, typer.Option("--format", help="peft: the stored files (default); mlx; gguf: llama.cpp's file")
    ] = None,
    base: Annotated[Path | None, typer.Option(help="folder of the base model's config.json, for gguf")] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Download a version, compare it with its digest, and write it as a PEFT folder or as others read it."""
    with client(url, key) as session, sentences():
        adapter, _, number = name.partition("@")
        number = number or str(answer(session.get(path_of("adapters", adapter)))["default_version"])
        path = path_of("adapters", adapter, "versions", number)
        version = answer(session.get(path))
        target, wanted = _target(out or Path(adapter), form)
        with tempfile.TemporaryFile() as spool:
            with session.stream("GET", f"{path}/files") as response:
                if not response.is_success:
                    response.read()
                    answer(response)
                for chunk in response.iter_bytes():
                    spool.write(chunk)
            spool.seek(0)
            _unpacked(spool, target, version["digest"], wanted, base)
    inside = [target.name] if target.is_file() else sorted(path.name for path in target.iterdir())
    on_stdout().print(f"{target}: {version['model']}, {', '.join(inside)}", markup=False, soft_wrap=True)


def _target(out: Path, form: Form | None) -> tuple[Path, Form]:
    """The folder or file to write, and its form.

    Raises:
        FieldRefused: something lies there, or no folder can be made there.
    """
    if form == "gguf" and out.suffix.lower() != ".gguf":
        out = out / f"{out.absolute().name or 'adapter'}.gguf"
    if out.is_file() or (out.is_dir() and names_in(out)):
        raise FieldRefused("out", f"{str(out)!r} is not empty. Name another folder")
    require_writable(out)
    return out, form or ("gguf" if out.suffix.lower() == ".gguf" else "peft")


def _unpacked(archive: BinaryIO, target: Path, digest: str, form: Form, base: Path | None) -> None:
    """Write the archive's adapter to ``target`` in the form that is asked for."""
    if form == "peft":
        target.mkdir(parents=True, exist_ok=True)
        unpack(archive, target, digest)
        return
    from amalgam.store.tensor_files import open_tensors

    with tempfile.TemporaryDirectory() as folder:
        unpack(archive, Path(folder), digest)
        source = open_tensors(Path(folder), read_peft_folder(Path(folder), None).require(), digest=digest)
        if form == "mlx":
            from amalgam.store.mlx_files import write_mlx

            write_mlx(target, source)
            return
        from amalgam.cli.merge_outputs import model_for
        from amalgam.store.gguf_files import write_gguf

        model = model_for({digest: source}, base)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_gguf(target, source, model)


@app.command("ls")
def list_adapters(
    search: Annotated[str, typer.Argument(help="part of the name")] = "", url: Url = DEFAULT_URL, key: Key = None
) -> None:
    """List adapters."""
    table = PlainTable(whole("name"), "default", "versions", "rank", "MB", "source")
    with client(url, key) as session:
        for adapter in every_page(session, "/admin/v1/adapters", search):
            versions = adapter["versions"]
            newest: dict[str, Any] = versions[-1] if versions else {"rank": 0, "size_bytes": 0, "source": ""}
            default = str(adapter["default_version"] or "-")
            size = f"{newest['size_bytes'] / 1e6:.1f}"
            table.add_texts(adapter["name"], default, str(len(versions)), str(newest["rank"]), size, newest["source"])
    print_table(table)


@app.command()
def show(name: str, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Show one adapter with its versions, as JSON."""
    with client(url, key) as session:
        on_stdout().print_json(data=answer(session.get(path_of("adapters", name)), "name"))


@app.command()
def rm(
    name: Annotated[str, typer.Argument(help="name, or name@version")], url: Url = DEFAULT_URL, key: Key = None
) -> None:
    """Delete an adapter, or one version of it; running requests finish."""
    adapter, _, number = name.partition("@")
    path = path_of("adapters", adapter, "versions", number) if number else path_of("adapters", adapter)
    with client(url, key) as session:
        for ref in answer(session.delete(path))["deleted"]:
            on_stdout().print(f"deleted {ref}", markup=False, soft_wrap=True)


@app.command("default")
def set_default(name: str, version: int, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Make a version the one that the bare name means."""
    with client(url, key) as session:
        body = answer(session.patch(path_of("adapters", name), json={"default_version": version}), *_MOVED)
    on_stdout().print(f"{body['name']} -> {body['name']}@{body['default_version']}", markup=False, soft_wrap=True)


@app.command()
def verify(
    name: Annotated[str, typer.Argument(help="adapter; without it: all")] = "", url: Url = DEFAULT_URL, key: Key = None
) -> None:
    """Compare stored files with their digests; exit code 1 where one is damaged."""
    damaged = 0
    with client(url, key) as session:
        names = [name] if name else [adapter["name"] for adapter in every_page(session, "/admin/v1/adapters", "")]
        for adapter in names:
            for ref, sound in answer(session.post(path_of("adapters", adapter) + ":verify"))["versions"].items():
                damaged += not sound
                on_stdout().print(f"{'ok     ' if sound else 'DAMAGED'} {ref}", markup=False, soft_wrap=True)
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
        rebuilt = answer(session.post(path_of("adapters", adapter, "versions", number) + ":rebuild"), *_REBUILT)
    on_stdout().print(f"{rebuilt['model']}  stored   {rebuilt['digest']}", markup=False, soft_wrap=True)
    on_stdout().print(f"{rebuilt['model']}  rebuilt  {rebuilt['rebuilt_digest']}", markup=False, soft_wrap=True)
    if rebuilt["identical"]:
        on_stdout().print(f"identical, built in {rebuilt['seconds']:.2f} s", markup=False, soft_wrap=True)
        return
    first = ", ".join(f"{what} {which}" for what, which in rebuilt["built_with"].items())
    on_stderr().print(f"[red]not the same bytes[/red]; the first build was by {escape(first)}", soft_wrap=True)
    raise typer.Exit(1)
