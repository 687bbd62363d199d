"""Examples of a router: what a body writes out, and the questions of evaluations that it names."""

from collections.abc import Iterable, Mapping, Sequence

from starlette.requests import Request

from amalgam.api.admin.in_scope import require_evaluation
from amalgam.api.admin.router_models import SignalBody
from amalgam.api.state import services
from amalgam.domain.evaluation import EvaluationItem
from amalgam.domain.routing import MAX_EXAMPLE_LENGTH, MAX_EXAMPLES
from amalgam.errors.requests import FieldRefused
from amalgam.routing.request_text import said_in


async def examples_of(request: Request, by: SignalBody) -> Mapping[str, tuple[str, ...]]:
    """Give each candidate's examples; of an evaluation with more questions than fit, every so many.

    Raises:
        EvaluationNotFound: none of that id that the key may know of.
        FieldRefused: an evaluation without a question of the task that says something.
    """
    found = {name: list(texts) for name, texts in by.examples.items()}
    for name, source in by.evaluations.items():
        await require_evaluation(request, source.evaluation)
        items = await services(request).evaluations.items(source.evaluation)
        given = found.setdefault(name, [])
        questions = questions_of(item for item in items if source.task in (None, item.task))
        if not questions:
            reason = "has no question that says something; name another evaluation, or another task of it"
            raise FieldRefused(f"router.by.evaluations.{name[:128]}", reason)
        new = [question for question in questions if question not in given]
        given += evenly(new, MAX_EXAMPLES - len(given))
    return {name: tuple(texts) for name, texts in found.items()}


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
