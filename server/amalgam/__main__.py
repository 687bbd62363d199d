"""The console script. Each verb lives in a file of its own; heavy imports happen inside the verbs."""

from typing import Annotated

import typer

from amalgam import __version__
from amalgam.cli import (
    adapters,
    aliases,
    ask,
    batches,
    blender,
    demo,
    doctor,
    engine,
    experiments,
    export,
    jobs,
    keys,
    merge,
    merges,
    serve,
    tenants,
    usage,
    worker,
)
from amalgam.cli.one_line import OneLineGroup

app = typer.Typer(
    cls=OneLineGroup,
    name="amalgam",
    help="Serve many LoRA adapters from one base model, and merge them exactly while serving.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    # Its boxes cut names and examples, even in 80 columns.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"]},
)
app.command(context_settings={"allow_extra_args": True})(serve.serve)
app.command(context_settings={"allow_extra_args": True})(engine.engine)
app.command(hidden=True)(worker.worker)
app.command(hidden=True)(blender.blender)
app.command()(doctor.doctor)
app.command()(export.export)
app.command()(ask.ask)
app.command()(usage.usage)
app.add_typer(adapters.app, name="adapters")
app.add_typer(aliases.app, name="aliases")
app.add_typer(experiments.app, name="experiments")
app.add_typer(merge.app, name="merge")
app.add_typer(merges.app, name="merges")
app.add_typer(jobs.app, name="jobs")
app.add_typer(tenants.app, name="tenants")
app.add_typer(keys.app, name="keys")
app.add_typer(batches.app, name="batches")
app.add_typer(demo.demo_commands(), name="demo")


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def _version_asked(asked: bool) -> None:
    if asked:
        version()
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool, typer.Option("--version", help="print the version", callback=_version_asked, is_eager=True)
    ] = False,
) -> None:
    """Serve many LoRA adapters from one base model, and merge them exactly while serving."""


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
