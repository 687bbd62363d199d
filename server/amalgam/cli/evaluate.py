"""``amalgam eval``: score a model, or an expression, on the demo tasks; what it writes runs in a sandbox, here."""

from typing import Annotated

import typer

from amalgam.cli.demo import score_model
from amalgam.demo.tasks import TASKS


def evaluate(
    tasks: Annotated[list[str], typer.Argument(help=f"some of: {', '.join(TASKS)}")],
    model: Annotated[str, typer.Option(help="as in a request: a name, a version, an expression")],
    url: Annotated[str, typer.Option(help="where the server listens")] = "http://127.0.0.1:8000",
    items: Annotated[int, typer.Option(min=1, help="questions of each task")] = 200,
    split: Annotated[str, typer.Option(help="which questions: train, dev or test")] = "test",
    seed: Annotated[int, typer.Option(help="draws the questions")] = 0,
    misses: Annotated[int, typer.Option(min=0, help="wrong answers to show")] = 0,
    api_key: Annotated[str, typer.Option(help="default: the first of AMALGAM_API_KEYS")] = "",
) -> None:
    """Score a model on demo tasks through a running server, by running what it writes."""
    unknown = [task for task in tasks if task not in TASKS]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is not one of: {', '.join(TASKS)}")
    for task in tasks:
        score_model(
            task, url=url, model=model, items=items, split=split, seed=seed, with_base=False, card=False,
            misses=misses, api_key=api_key,
        )  # fmt: skip
