"""`amalgam merge build --fit`: each input fitted to prompts of its own, with the base model, before it is merged."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from pydantic import ValidationError

from amalgam.domain.evaluation import EvaluationItem, digest_of_items
from amalgam.domain.fit import FitRecord, ReadingFit
from amalgam.domain.fit_forecast import FitForecast
from amalgam.domain.recipe import Recipe
from amalgam.errors.fits import FitRefused
from amalgam.errors.requests import FieldRefused
from amalgam.errors.terminal import FileUnusable

if TYPE_CHECKING:
    from torch import Tensor

    from amalgam.merge.sources import AdapterSink, TensorSource

FitFile = Annotated[
    Path | None,
    typer.Option(
        "--fit",
        help='JSON file of prompts by input, such as {"./sql": ["…"]}: each input is fitted to its own; needs --base',
        dir_okay=False,
    ),
]

_MAX_TOKENS: Final = 64
"""It is the longest answer of an input to one of its prompts."""
_BUDGET_S: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class FitNote:
    """What a lineage says of a fit; the sink that it comes from writes it beside the rest."""

    sink: "AdapterSink"
    record: FitRecord

    def write(
        self,
        tensors: "Mapping[str, tuple[Tensor, Tensor]]",
        config: Mapping[str, Any],
        lineage: Mapping[str, Any],
    ) -> None:
        """Write the result with the fit in its lineage."""
        self.sink.write(tensors, config, {**lineage, "fit": self.record.model_dump(mode="json")})


def prompts_file(path: Path) -> dict[str, Any]:
    """The prompts of a file, by input.

    Raises:
        FileUnusable: it is no JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise FileUnusable(str(path), "it is no JSON object of prompts by input")
    return found


def fitted_inputs(
    file: Path | None,
    recipe: Recipe,
    sources: "dict[str, TensorSource]",
    sink: "AdapterSink",
    place: tuple[Path | None, str, int],
) -> "tuple[dict[str, TensorSource], AdapterSink]":
    """The inputs as they are merged, and where the result goes; both as they were without a file.

    Args:
        file: Of prompts by input: texts, or objects with `prompt` or `messages`, and `reference` if all have one.
        recipe: Its inputs are what the file names: as they are spelled there, or by the last part of that.
        sources: Every adapter of the recipe.
        sink: Where the result would go.
        place: The base model's folder, the device, and the workspace in bytes.

    Raises:
        FileUnusable, FieldRefused, FitRefused: the file, or that there is no base model.
        FitUnread: the base model does not read them.
    """
    if file is None:
        return sources, sink
    from amalgam.workers.reading_fit import Place, read_and_fit

    base, device, workspace = _named(place[0]), *place[1:]
    fit = reading_of(file, recipe)
    inputs = {ref: sources[ref] for ref in fit.items}
    found = read_and_fit(Place(base, device, workspace), inputs, fit, lambda: False)
    record = _record(fit).model_copy(update={"tokens": found.tokens, "unread": len(found.unread)})
    return {**sources, **found.sources}, FitNote(sink, record)


def fit_forecast(file: Path, recipe: Recipe, base: Path | None, device: str) -> FitForecast:
    """What the fit of a build with these options will take; nothing is read but the prompts' file.

    Raises:
        FileUnusable, FieldRefused, FitRefused: the file, or that there is no base model.
    """
    from amalgam.workers.reading_fit import reading_needs

    fit = reading_of(file, recipe)
    needs = reading_needs(_named(base), device)
    counts = {ref: len(items) for ref, items in fit.items.items()}
    return FitForecast.of(_record(fit), counts, needs)


def fit_sentence(fit: FitForecast) -> str:
    """What a fit will take, in a line."""
    count = sum(fit.prompts.values())
    answered = "the answers that are given" if fit.answers == 0 else f"answers of at most {fit.max_tokens} tokens"
    text = f"{fit.method}: {count} prompts with {answered}"
    if fit.reading is None:
        return text
    needs = fit.reading
    return (
        f"{text}, read in {needs.dtype} on {needs.device} by {needs.threads} threads; about "
        f"{needs.memory_bytes / 1e9:.1f} GB of memory, {needs.free_bytes / 1e9:.1f} GB free"
    )


def _named(base: Path | None) -> Path:
    if base is None:
        raise FieldRefused("base", "is needed with --fit: the base model reads the prompts. Name its folder")
    return base


def _record(fit: ReadingFit) -> FitRecord:
    """A fit as the lineage has it, before it is done."""
    items = [item for its in fit.items.values() for item in its]
    return FitRecord(
        method="iteris", by="items" if fit.labelled else "kept", prompts_digest=digest_of_items(items), seed=0,
        max_tokens=fit.max_tokens, budget_s=fit.budget_s,
    )  # fmt: skip


def reading_of(file: Path, recipe: Recipe) -> ReadingFit:
    """The prompts of a file, by the recipe's spelling of its inputs.

    Raises:
        FileUnusable: it is no JSON object. FieldRefused: a prompt is none.
        FitRefused: an input has no prompts, or some of them have answers and some have not.
    """
    given = prompts_file(file)
    items: dict[str, tuple[EvaluationItem, ...]] = {}
    for entry in recipe.inputs:
        name = entry.adapter
        rows = given.get(name, given.get(Path(name).name))
        if not isinstance(rows, list) or not rows:
            raise FitRefused(f"{name} has no prompts in {file}, so that nothing says what is kept of it; add some")
        items[name] = tuple(_item(name, at, row) for at, row in enumerate(rows))
    answered = {bool(item.reference) for its in items.values() for item in its}
    if len(answered) > 1:
        raise FitRefused("some of the prompts have a reference and some have none; give all of them one, or none")
    return ReadingFit(items=items, labelled=answered == {True}, max_tokens=_MAX_TOKENS, budget_s=_BUDGET_S)


def _item(name: str, at: int, row: Any) -> EvaluationItem:
    fields = {"messages": [{"role": "user", "content": row}]} if isinstance(row, str) else row
    try:
        return EvaluationItem.model_validate(fields)
    except ValidationError:
        raise FieldRefused(
            "fit", f"prompt {at + 1} of {name} is neither a text nor an object with messages or prompt. Mend it"
        ) from None
