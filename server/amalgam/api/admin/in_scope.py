"""What a key's scopes let its holder see and name on the admin plane.

What stands in a path is judged here, for every route: out of scope is the same as not there, word for word. Lists leave
out what is out of scope, their cursors too. Names in bodies are judged by the services that resolve them, and names
that a body would make by `require_new_name`.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

from starlette.requests import Request

from amalgam.api.access import caller_of
from amalgam.api.state import services
from amalgam.domain.adapter import is_name
from amalgam.domain.alias import Alias
from amalgam.domain.evaluation import Evaluation
from amalgam.domain.export import ExportRecord
from amalgam.domain.in_scope import evaluation_covered, job_covered, recipe_covered
from amalgam.domain.job import Job
from amalgam.domain.scopes import Scopes
from amalgam.domain.tenant import BUILT_IN_TENANT, Role
from amalgam.errors.adapters import AdapterNotFound
from amalgam.errors.aliases import AliasNotFound
from amalgam.errors.evaluations import EvaluationNotFound
from amalgam.errors.exports import ExportNotFound
from amalgam.errors.http import RouteNotFound
from amalgam.errors.jobs import JobNotFound
from amalgam.errors.tenants import KeyNotFound, NotInScope, TenantNotFound

_Item = TypeVar("_Item", covariant=True)
_Row = TypeVar("_Row")
_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""The database is not asked for what is no id."""
_MOST: Final = 500
"""So many rows are read at once to fill a page of what is in scope."""
_COLLECTION: Final = 3
"""The collection's name has this place in ``/admin/v1/adapters/{name}``."""


def scopes_of(request: Request) -> Scopes:
    """What whoever asks may know of."""
    return caller_of(request).scopes


def tenant_of(request: Request) -> str:
    """Whose key asks."""
    return caller_of(request).tenant_id


def sees_every_tenant(request: Request) -> bool:
    """Whether whoever asks may read of other tenants: an operator."""
    caller = caller_of(request)
    return Role.ADMIN in caller.roles or (caller.tenant_id == BUILT_IN_TENANT and caller.scopes.is_everything)


async def require_in_scope(request: Request) -> None:
    """Refuse what the path names and the key may not know of.

    Raises:
        AmalgamError: that it is not there, in the words for what is not there.
        NotInScope: where the request would make it, which tells nothing.
    """
    values = request.path_params
    if not values:
        return
    template: str = request.scope["route"].path
    collection = template.split("/")[_COLLECTION] if template.startswith("/admin/v1/") else ""
    gate = _GATES.get(collection)
    if gate is not None:
        await gate(request, values)
    elif not scopes_of(request).is_everything:
        # Fail closed: a path that nobody has thought of.
        raise RouteNotFound


async def _adapter(request: Request, values: Mapping[str, Any]) -> None:
    scopes, name = scopes_of(request), str(values["name"])
    number = values.get("number")
    if not (scopes.name(name) if number is None else scopes.version(f"{name}@{number}")):
        raise AdapterNotFound(name)


async def _alias(request: Request, values: Mapping[str, Any]) -> None:
    name = str(values["name"])
    if not scopes_of(request).name(name):
        raise NotInScope(f"the name {name!r}", param="name") if request.method == "PUT" else AliasNotFound(name)


async def _export(request: Request, values: Mapping[str, Any]) -> None:
    scopes, name = scopes_of(request), str(values["name"])
    if scopes.has_every_name:
        return
    if not is_name(name) or not scopes.name(name):
        raise ExportNotFound(name)
    if not export_covered(name, await services(request).exports.get(name), scopes):
        raise ExportNotFound(name)


async def _job(request: Request, values: Mapping[str, Any]) -> None:
    scopes, job_id = scopes_of(request), str(values["job_id"])
    if scopes.has_every_name:
        return
    if not _ID.fullmatch(job_id) or not job_covered(await services(request).merges.get(job_id), scopes):
        raise JobNotFound(job_id)


async def _evaluation(request: Request, values: Mapping[str, Any]) -> None:
    await require_evaluation(request, str(values.get("evaluation_id") or values["sweep_id"]))


async def require_evaluation(request: Request, evaluation_id: str) -> None:
    """Refuse an evaluation or sweep that names what the key may not know of. Raises EvaluationNotFound."""
    if scopes_of(request).has_every_name:
        return
    found = await services(request).evaluations.get(evaluation_id) if _ID.fullmatch(evaluation_id) else None
    if found is None or not shows_evaluation(request)(found):
        raise EvaluationNotFound(evaluation_id)


async def _tenant(request: Request, values: Mapping[str, Any]) -> None:
    if not sees_every_tenant(request) and values["tenant_id"] != tenant_of(request):
        raise TenantNotFound(str(values["tenant_id"]))


async def _key(request: Request, values: Mapping[str, Any]) -> None:
    if sees_every_tenant(request):
        return
    key_id = str(values["key_id"])
    if not _ID.fullmatch(key_id) or (await services(request).tenants.key(key_id)).tenant != tenant_of(request):
        raise KeyNotFound(key_id)


_GATES: Final[Mapping[str, Callable[[Request, Mapping[str, Any]], Awaitable[None]]]] = {
    "adapters": _adapter,
    "aliases": _alias,
    "exports": _export,
    "jobs": _job,
    "evaluations": _evaluation,
    "sweeps": _evaluation,
    "tenants": _tenant,
    "keys": _key,
}
"""Each collection that a path begins with has its own check."""


def require_new_name(request: Request, name: str) -> None:
    """Refuse to make what the key could not ask for; says nothing of whether it is there.

    Raises:
        NotInScope: with the name.
    """
    if not scopes_of(request).name(name):
        raise NotInScope(f"the name {name[:128]!r}", param="name")


def require_sources(request: Request) -> None:
    """Refuse sources to all but the operator: the server reads them with rights of its own, whoever's they are.

    Raises:
        NotInScope: upload the files instead.
    """
    if Role.ADMIN not in caller_of(request).roles:
        raise NotInScope("sources, which the server reads with its own rights; upload the files", param="source")


def export_covered(name: str, record: ExportRecord, scopes: Scopes) -> bool:
    """Whether an export names nothing that is out of scope, what its inputs were merged from included."""
    if scopes.has_every_name:
        return True
    recipes = [record.recipe, *(one.recipe or {} for one in record.inputs.values())]
    return scopes.name(name) and record.base.record is None and all(recipe_covered(one, scopes) for one in recipes)


def shows_job(request: Request) -> Callable[[Job], bool]:
    """Whether a job may be shown to whoever asks."""
    scopes = scopes_of(request)
    return lambda job: job_covered(job, scopes)


def shows_evaluation(request: Request) -> Callable[[Evaluation], bool]:
    """Whether an evaluation or sweep may be shown to whoever asks."""
    scopes, names = scopes_of(request), services(request).catalog.base.names
    return lambda evaluation: evaluation_covered(evaluation, scopes, names)


def shown_alias(request: Request, alias: Alias) -> Alias:
    """``alias`` without targets that whoever asks may not know of."""
    return services(request).catalog.shown(alias, scopes_of(request))


class _PageLike(Protocol[_Item]):
    @property
    def items(self) -> Sequence[_Item]:
        """Rows, in order."""

    @property
    def next_cursor(self) -> str | None:
        """None on the last page."""


async def covered_page(
    read: Callable[[int, str | None], Awaitable[_PageLike[_Row]]],
    limit: int,
    cursor: str | None,
    is_shown: Callable[[_Row], bool] | None,
    cursor_of: Callable[[_Row], str],
) -> tuple[Sequence[_Row], str | None]:
    """A page of rows that may be shown, and its cursor, which is one of them.

    Args:
        read: A page of all rows, by limit and cursor.
        limit: Most rows.
        cursor: Of the page before.
        is_shown: Whether a row may be shown; None: all may.
        cursor_of: What a row is named by in a cursor.
    """
    if is_shown is None:
        page = await read(limit, cursor)
        return page.items, page.next_cursor
    found: list[_Row] = []
    while len(found) <= limit:
        page = await read(_MOST, cursor)
        found += filter(is_shown, page.items)
        cursor = page.next_cursor
        if cursor is None:
            break
    shown = found[:limit]
    return shown, cursor_of(shown[-1]) if len(found) > limit else None
