"""Examples of a router: written out, questions of evaluations, and prompts that its adapters tell apart."""

from collections.abc import Iterable, Mapping, Sequence

from starlette.requests import Request

from amalgam.api.admin.in_scope import require_evaluation, scopes_of
from amalgam.api.admin.router_models import RouterBody
from amalgam.api.state import services
from amalgam.domain.evaluation import EvaluationItem
from amalgam.domain.routing import MAX_EXAMPLE_LENGTH, MAX_EXAMPLES
from amalgam.errors.requests import FieldRefused
from amalgam.routing.request_text import said_in


async def examples_of(request: Request, router: RouterBody) -> Mapping[str, tuple[str, ...]]:
    """Give each candidate's examples; of more questions or prompts than fit, every so many.

    Raises:
        EvaluationNotFound: none of that id that the key may know of.
        FieldRefused: an evaluation without a question of the task that says something.
        What `PromptLabels.labelled` raises.
    """
    found = {name: list(texts) for name, texts in router.by.examples.items()}
    await _add_questions(request, router, found)
    if router.by.adapters is not None:
        aliases, scopes = services(request).aliases, scopes_of(request)
        told = await aliases.labelled(router.candidates, router.by.adapters.prompts, scopes)
        for name, texts in told.items():
            _add(found, name, texts)
    return {name: tuple(texts) for name, texts in found.items()}


async def _add_questions(request: Request, router: RouterBody, found: dict[str, list[str]]) -> None:
    for name, source in router.by.evaluations.items():
        await require_evaluation(request, source.evaluation)
        items = await services(request).evaluations.items(source.evaluation)
        questions = questions_of(item for item in items if source.task in (None, item.task))
        if not questions:
            reason = "has no question that says something; name another evaluation, or another task of it"
            raise FieldRefused(f"router.by.evaluations.{name[:128]}", reason)
        _add(found, name, questions)


def _add(found: dict[str, list[str]], name: str, texts: Sequence[str]) -> None:
    """As many of ``texts`` as an adapter may have examples, without those that are there."""
    given = found.setdefault(name, [])
    given += evenly([text for text in texts if text not in given], MAX_EXAMPLES - len(given))


def questions_of(items: Iterable[EvaluationItem]) -> Sequence[str]:
    """What the user says last in each, once."""
    bodies = ({"prompt": item.prompt} if item.messages is None else {"messages": list(item.messages)} for item in items)
    texts = (said_in(body).last[:MAX_EXAMPLE_LENGTH].replace("\x00", " ") for body in bodies)
    return list(dict.fromkeys(text for text in texts if text.strip()))


def evenly(texts: Sequence[str], most: int) -> Sequence[str]:
    """At most ``most`` of them, from the begin to the end."""
    if len(texts) <= most:
        return texts
    return [texts[place * len(texts) // most] for place in range(max(0, most))]
