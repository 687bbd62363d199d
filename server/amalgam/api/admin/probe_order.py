"""A merge's probe, from the body of a request to what the service takes."""

from collections.abc import Mapping, Sequence
from functools import partial

from starlette.requests import Request

from amalgam.api.access import caller_of
from amalgam.api.admin.evaluations import read_item, read_items
from amalgam.api.admin.fit_models import FitBody
from amalgam.api.admin.in_scope import require_evaluation, scopes_of, tenant_of
from amalgam.api.admin.merge_models import MergeBody
from amalgam.api.admin.probe_models import ProbePromptBody
from amalgam.api.state import services
from amalgam.domain.evaluation import EvaluationItem
from amalgam.domain.fit import FitOrder
from amalgam.domain.skill_probe import MAX_PROMPTS, ProbeOrder
from amalgam.errors.fits import FitRefused
from amalgam.errors.skills import ProbeRefused
from amalgam.services.fits import FittedMerge


async def read_probe(request: Request, body: MergeBody) -> ProbeOrder | None:
    """What ``body`` asks the merge, each prompt within the bounds of a client's request; None where it asks nothing.

    Raises:
        FieldRefused: of the first prompt at fault, by its place.
        EvaluationNotFound: the evaluation.
        ProbeRefused: no task of the evaluation is named like an input.
    """
    if body.probe is None:
        return None
    prompts: dict[str, tuple[EvaluationItem, ...]] = {}
    if body.probe.evaluation is not None:
        await require_evaluation(request, body.probe.evaluation)
        items = await services(request).evaluations.items(body.probe.evaluation)
        prompts |= by_input(items, [entry.adapter for entry in body.described().inputs])
    for name, given in body.probe.prompts.items():
        prompts[name] = tuple(_item(f"probe.prompts.{name}.{at}", prompt) for at, prompt in enumerate(given))
    return ProbeOrder(prompts, body.probe.max_tokens, None if body.require is None else body.require.kept)


async def fitted_merge(request: Request, body: MergeBody, fit: FitBody, probe: ProbeOrder | None) -> FittedMerge:
    """A merge that is fitted first. Raises as `read_fit`."""
    return FittedMerge(
        name=body.name,
        recipe=body.described(),
        fit=await read_fit(request, body, fit),
        set_default=body.set_default,
        probe=probe,
        required=None if body.require is None else body.require.kept,
        scopes=scopes_of(request),
        tenant=tenant_of(request),
        key_id=caller_of(request).key_id,
    )


async def read_fit(request: Request, body: MergeBody, fit: FitBody) -> FitOrder:
    """What ``fit`` goes by, each prompt within the bounds of a client's request.

    Raises:
        FieldRefused: of the first prompt at fault, by its place.
        EvaluationNotFound: the evaluation.
        FitRefused: no task of the evaluation is named like an input, or a metric is of no input.
    """
    found: dict[str, tuple[EvaluationItem, ...]] = {}
    if fit.evaluation is not None:
        await require_evaluation(request, fit.evaluation)
        items = await services(request).evaluations.items(fit.evaluation)
        inputs = [entry.adapter for entry in body.described().inputs]
        try:
            found |= by_input(items, inputs, labelled=fit.by == "items")
        except ProbeRefused as error:
            raise FitRefused(error.reason) from error
    for name, given in fit.prompts.items():
        found[name] = tuple(_item(f"fit.prompts.{name}.{at}", prompt) for at, prompt in enumerate(given))
    for name, rows in fit.items.items():
        found[name] = read_items(rows, f"fit.items.{name}")
    if strange := sorted(fit.metrics.keys() - found.keys()):
        raise FitRefused(f"a metric is given for {strange[0]!r}, which has no items; name it as its items do")
    method = "weights" if fit.of_search else fit.method
    return FitOrder(fit.by, found, fit.metrics, fit.candidates, fit.budget_s, fit.seed, fit.max_tokens, method)


def by_input(
    items: Sequence[EvaluationItem], inputs: Sequence[str], *, labelled: bool = False
) -> Mapping[str, tuple[EvaluationItem, ...]]:
    """The first items of each task that is named like an input, with or without its version.

    Args:
        items: of an evaluation.
        inputs: of a merge.
        labelled: whether what is wanted as an answer is taken too.

    Raises:
        ProbeRefused: there is no such task.
    """
    found = {}
    for name in inputs:
        of_task = [item for item in items if item.task in (name, name.partition("@")[0])]
        if of_task and labelled:
            found[name] = tuple(of_task[:MAX_PROMPTS])
        elif of_task:
            # What is wanted as an answer is no part of the question.
            found[name] = tuple(
                item.model_copy(update={"reference": None, "pattern": None}) for item in of_task[:MAX_PROMPTS]
            )
    if not found:
        raise ProbeRefused(
            f"the evaluation has no task that is named like an input; its tasks are "
            f"{', '.join(sorted({item.task for item in items})[:8])}"
        )
    return found


def _item(place: str, prompt: str | ProbePromptBody) -> EvaluationItem:
    if isinstance(prompt, str):
        prompt = ProbePromptBody(messages=({"role": "user", "content": prompt},))
    return read_item(place, partial(EvaluationItem, messages=prompt.messages, prompt=prompt.prompt))
