"""What a key's scopes cover, and what an answer to it shows in place of the rest.

A thing is shown only where every name in it is covered; where a thing itself is covered and names others, as an alias
its targets, those are replaced.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from amalgam.domain.alias import Alias, AliasChange, AliasTarget
from amalgam.domain.evaluation import Evaluation
from amalgam.domain.expression import is_expression, parse_expression
from amalgam.domain.job import Job
from amalgam.domain.routing import Router
from amalgam.domain.scopes import Scopes
from amalgam.errors.merging import InvalidExpression

HIDDEN: Final = "(not in scope)"
_REF: Final = re.compile(r"(?<![A-Za-z0-9._-])[A-Za-z0-9][A-Za-z0-9._-]{0,127}@[1-9][0-9]{0,8}(?![0-9A-Za-z])")


def covers(model: str, scopes: Scopes, base_names: Collection[str]) -> bool:
    """Whether ``model`` names nothing that is out of scope.

    Args:
        model: adapter, alias, version, name of the base model, or expression; of an expression every input counts.
        scopes: of the key.
        base_names: what the base model is called.
    """
    if scopes.has_every_name:
        return True
    if is_expression(model):
        try:
            return all(covers(name, scopes, base_names) for name in parse_expression(model).adapters)
        except InvalidExpression:
            return False
    return scopes.base if model in base_names else scopes.asked(model)


def shown_alias(alias: Alias, scopes: Scopes, base_names: Collection[str]) -> Alias:
    """``alias`` with the targets that the key may know of; the others keep their weight only."""
    shown = {"targets": shown_targets(alias.targets, scopes, base_names)}
    return alias.model_copy(update=shown | {"router": shown_router(alias.router, scopes, base_names)})


def shown_change(change: AliasChange, scopes: Scopes, base_names: Collection[str]) -> AliasChange:
    """The same of a change of an alias."""
    shown = {"targets": shown_targets(change.targets, scopes, base_names)}
    return change.model_copy(update=shown | {"router": shown_router(change.router, scopes, base_names)})


def shown_router(router: Router | None, scopes: Scopes, base_names: Collection[str]) -> Router | None:
    """A router with the names of those targets that are covered."""
    if router is None:
        return None
    candidates = tuple(one if covers(one, scopes, base_names) else HIDDEN for one in router.candidates)
    otherwise = router.otherwise if covers(router.otherwise, scopes, base_names) else HIDDEN
    return router.model_copy(update={"candidates": candidates, "otherwise": otherwise})


def shown_targets(
    targets: Iterable[AliasTarget], scopes: Scopes, base_names: Collection[str]
) -> tuple[AliasTarget, ...]:
    """Targets with the names of those that are covered."""
    return tuple(
        target if covers(target.model, scopes, base_names) else target.model_copy(update={"model": HIDDEN})
        for target in targets
    )


def job_covered(job: Job, scopes: Scopes) -> bool:
    """Whether a job names nothing that is out of scope: what it makes, and everything that goes in."""
    if scopes.has_every_name:
        return True
    recipe: Mapping[str, Any] = job.recipe.get("recipe", job.recipe) if job.kind == "export" else job.recipe
    return scopes.name(job.name) and recipe_covered(recipe, scopes)


def recipe_covered(recipe: Mapping[str, Any], scopes: Scopes) -> bool:
    """The same of a recipe as JSON, in which every input is an exact version."""
    inputs = [str(entry.get("adapter", "")) for entry in recipe.get("inputs", ())]
    against = [str(ref) for ref in recipe.get("orthogonalize_against") or ()]
    return all(scopes.asked(name) for name in (*inputs, *against))


def evaluation_covered(evaluation: Evaluation, scopes: Scopes, base_names: Collection[str]) -> bool:
    """Whether an evaluation or sweep names nothing that is out of scope; a weighted alias names what it draws."""
    if scopes.has_every_name:
        return True
    return all(
        target.meaning == target.pinned
        and covers(target.model, scopes, base_names)
        and covers(target.pinned, scopes, base_names)
        for target in evaluation.targets
    )


def redacted(value: Any, scopes: Scopes) -> Any:
    """A text, or JSON, without the exact versions that are out of scope.

    For what is made of pinned names alone: recipes, lineages, and what is said of them.
    """
    if scopes.has_every_name:
        return value
    if isinstance(value, str):
        return _REF.sub(lambda found: found[0] if scopes.version(found[0]) else HIDDEN, value)
    if isinstance(value, Mapping):
        return {redacted(name, scopes): redacted(inner, scopes) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(redacted(inner, scopes) for inner in value)
    return value
