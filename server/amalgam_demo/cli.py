"""``amalgam demo train`` and ``score``: make the demo adapters, and ask a running server what a model gets right.

What a model writes for the task ``code`` is run here, in a limited process.
"""

import asyncio
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from amalgam.cli.one_line import ended
from amalgam.demo.adapters import CHECKOUT
from amalgam.demo.base_model import ensure_base_model
from amalgam.errors import AmalgamError
from amalgam.errors.demo import UnknownDemoTask
from amalgam.settings import Settings
from amalgam_demo.card import Card, Measurement, read_card, write_card
from amalgam_demo.recipes import RECIPES, TrainRecipe
from amalgam_demo.scoring import Score, base_model_name, connect, grade, server_answers
from amalgam_demo.task_item import SPLITS, Split, TaskItem
from amalgam_demo.tasks import TASKS, generate
from amalgam_demo.training import LIBRARIES, StepDone, train

TaskName = Annotated[str, typer.Argument(help=f"one of: {', '.join(TASKS)}")]


def train_adapter(
    task: TaskName,
    steps: Annotated[int | None, typer.Option(min=1, help="optimizer steps")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="items per step")] = None,
    lr: Annotated[float | None, typer.Option(min=0.0, help="peak learning rate")] = None,
    rank: Annotated[int | None, typer.Option(min=1, max=512, help="rank of every module")] = None,
    seed: Annotated[int | None, typer.Option(help="draws items and first weights")] = None,
    out: Annotated[Path | None, typer.Option(help="folder to write; default: ./<task>")] = None,
    base: Annotated[Path | None, typer.Option(help="folder of the base model; default: the demo model")] = None,
) -> None:
    """Train a demo adapter on the CPU; what is not given is as for the committed adapter."""
    console, settings = Console(), Settings()
    with _explained():
        _known(task)
        recipe = RECIPES[task].changed(steps=steps, batch=batch, learning_rate=lr, rank=rank, seed=seed)
        folder = out or Path(task)
        model = base or ensure_base_model(settings.storage.cache_dir, console.print)
        final_loss = _train_with_progress(recipe, model, folder, console)
        versions = {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()}
        write_card(Card(recipe=recipe, versions=versions, final_loss=final_loss), folder)
    console.print(f"The adapter is in {folder}; its final loss was {final_loss:.4f}", soft_wrap=True)


def score_models(
    tasks: Annotated[list[str], typer.Argument(help=f"some of: {', '.join(TASKS)}")],
    url: Annotated[str, typer.Option(help="where the server listens")] = "http://127.0.0.1:8000",
    model: Annotated[
        str, typer.Option(help="what to score: a name, a version or an expression; default: the task's name")
    ] = "",
    items: Annotated[int, typer.Option(min=1, help="questions of each task")] = 200,
    split: Annotated[str, typer.Option(help=f"which questions: {', '.join(SPLITS)}")] = "test",
    seed: Annotated[int, typer.Option(help="draws the questions")] = 0,
    with_base: Annotated[bool, typer.Option("--base/--no-base", help="score the base model too")] = True,
    card: Annotated[bool, typer.Option("--card", help="write the scores into the committed adapter's card")] = False,
    misses: Annotated[int, typer.Option(min=0, help="wrong answers to show")] = 0,
    api_key: Annotated[str, typer.Option(help="default: the first of AMALGAM_API_KEYS")] = "",
) -> None:
    """Score a model on demo tasks through a running server, by running what it writes."""
    console, keys = Console(), Settings().access.api_keys
    with _explained():
        for task in tasks:
            _known(task)
        key = api_key or (keys[0].get_secret_value() if keys else None)
        for task in tasks:
            questions = generate(task, _split(split), items, seed)
            scores = asyncio.run(_score_all(url, key, model or task, with_base, questions, console))
            console.print(_table(task, scores))
            _print_misses(scores, misses, console)
            if card:
                _update_card(CHECKOUT / task, scores, split, seed)


def _known(task: str) -> None:
    if task not in TASKS:
        raise UnknownDemoTask(task, sorted(TASKS))


def _split(name: str) -> Split:
    for split in SPLITS:
        if split == name:
            return split
    raise typer.BadParameter(f"{name!r} is not one of: {', '.join(SPLITS)}")


@contextmanager
def _explained() -> Iterator[None]:
    """Show our own errors as one line and end with status 1; everything else is a bug and keeps its traceback."""
    try:
        yield
    except AmalgamError as error:
        raise ended(error.code, error.message, 1) from None


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)


def _train_with_progress(recipe: TrainRecipe, base: Path, out: Path, console: Console) -> float:
    """Train, and return the mean loss of the last tenth of the steps."""
    losses: list[float] = []
    with _bar(console) as progress:
        line = progress.add_task(f"training {recipe.task}", total=recipe.steps)

        def show(done: StepDone) -> None:
            losses.append(done.loss)
            progress.update(line, completed=done.step, description=f"training {recipe.task}, loss {done.loss:.3f}")

        train(recipe, base, out, show)
    last = losses[-max(1, recipe.steps // 10) :]
    return round(sum(last) / len(last), 4)


async def _score_all(
    url: str, key: str | None, model: str, with_base: bool, items: tuple[TaskItem, ...], console: Console
) -> dict[str, tuple[str, Score]]:
    """Who -> (model name, score): ``base`` first, where asked for, then ``adapter``."""
    scores: dict[str, tuple[str, Score]] = {}
    async with connect(url, key) as client:
        names = {"base": await base_model_name(client)} if with_base else {}
        names["adapter"] = model
        for who, name in names.items():
            with _bar(console) as progress:
                line = progress.add_task(name, total=len(items))
                answers = await server_answers(client, name, items, lambda: progress.advance(line))  # noqa: B023
            scores[who] = (name, await asyncio.to_thread(grade, items, answers))
    return scores


def _table(task: str, scores: dict[str, tuple[str, Score]]) -> Table:
    """Skills down, models across."""
    table = Table("skill", *(name for name, _ in scores.values()), title=f"{task}: right answers")
    rows = [score for _, score in scores.values()]
    for template in rows[0].by_template:
        table.add_row(template, *("{} of {}".format(*score.by_template[template]) for score in rows))
    table.add_section()
    table.add_row("all", *(f"{score.right} of {score.total} = {score.percent:.1f} %" for score in rows))
    return table


def _print_misses(scores: dict[str, tuple[str, Score]], count: int, console: Console) -> None:
    _, score = scores["adapter"]
    for miss in score.misses[:count]:
        text = f"\n{miss.item.prompt}\n  wanted: {miss.item.reference}\n  got:    {miss.answer}"
        console.print(text, markup=False, highlight=False)


def _update_card(folder: Path, scores: dict[str, tuple[str, Score]], split: str, seed: int) -> None:
    """Write ``scores`` into the card of the adapter in ``folder``."""
    card = read_card(folder)
    through = f"amalgam {version('amalgam')}"
    for who, (_, score) in scores.items():
        card = card.with_score(who, Measurement(score.right, score.total, split, seed, through))
    write_card(card, folder)
