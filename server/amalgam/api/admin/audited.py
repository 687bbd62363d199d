"""Every change of the admin plane leaves an entry in the audit, written before the change is acknowledged.

`AUDITED` says of each route that changes something what it does and to what. What stands in the path is looked at
before and after; of what a body names, the route says so with `about`, and of what comes into being with `made`.
"""

import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from amalgam.api.access import caller_of
from amalgam.api.admin.audit_states import STATES
from amalgam.api.fields.strict_json import StrictRoute
from amalgam.api.state import services
from amalgam.domain.audit import AuditDraft, AuditKind, digest_of
from amalgam.errors import AmalgamError

_RECORD: Final = "amalgam.audit_record"
_IS_ONE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""It matches what may be a name, a number or an id; for another no database is asked, and the route refuses it."""
_ADAPTERS: Final = "/admin/v1/adapters"
_PROFILE: Final = f"{_ADAPTERS}/{{name}}/versions/{{number}}/profile"


@dataclass(frozen=True, slots=True)
class Audited:
    """What a route does.

    Attributes:
        verb: of the entry.
        kind: of what is changed.
        place: its name or id, made of the path's parameters; empty where a body names it, or it comes into being.
    """

    verb: str
    kind: AuditKind
    place: str = ""


AUDITED: Final[Mapping[tuple[str, str], Audited]] = {
    ("POST", _ADAPTERS): Audited("adapter.register", "adapter"),
    ("PATCH", f"{_ADAPTERS}/{{name}}"): Audited("adapter.change", "adapter", "{name}"),
    ("DELETE", f"{_ADAPTERS}/{{name}}"): Audited("adapter.delete", "adapter", "{name}"),
    ("DELETE", f"{_ADAPTERS}/{{name}}/versions/{{number}}"): Audited("version.delete", "adapter", "{name}"),
    ("POST", f"{_ADAPTERS}/{{name}}:load"): Audited("version.load", "residency", "{name}"),
    ("POST", f"{_ADAPTERS}/{{name}}:unload"): Audited("version.unload", "residency", "{name}"),
    ("POST", f"{_ADAPTERS}/{{name}}:pin"): Audited("version.pin", "residency", "{name}"),
    ("POST", f"{_ADAPTERS}/{{name}}:unpin"): Audited("version.unpin", "residency", "{name}"),
    ("POST", "/v1/load_lora_adapter"): Audited("adapter.register", "adapter"),
    ("POST", "/v1/unload_lora_adapter"): Audited("adapter.delete", "adapter"),
    ("PUT", _PROFILE): Audited("profile.set", "profile", "{name}@{number}"),
    ("PATCH", _PROFILE): Audited("profile.switch", "profile", "{name}@{number}"),
    ("DELETE", _PROFILE): Audited("profile.delete", "profile", "{name}@{number}"),
    ("PUT", "/admin/v1/aliases/{name}"): Audited("alias.set", "alias", "{name}"),
    ("POST", "/admin/v1/aliases/{name}:rollback"): Audited("alias.rollback", "alias", "{name}"),
    ("DELETE", "/admin/v1/aliases/{name}"): Audited("alias.delete", "alias", "{name}"),
    ("PUT", "/admin/v1/aliases/{name}/experiment"): Audited("experiment.start", "alias", "{name}"),
    ("DELETE", "/admin/v1/aliases/{name}/experiment"): Audited("experiment.stop", "alias", "{name}"),
    ("POST", "/admin/v1/merges"): Audited("merge.submit", "job"),
    ("POST", "/admin/v1/jobs/{job_id}:cancel"): Audited("job.cancel", "job", "{job_id}"),
    ("POST", "/admin/v1/exports"): Audited("export.submit", "job"),
    ("POST", "/admin/v1/evaluations"): Audited("evaluation.submit", "evaluation"),
    ("POST", "/admin/v1/evaluations/{evaluation_id}:cancel"): Audited(
        "evaluation.cancel", "evaluation", "{evaluation_id}"
    ),
    ("POST", "/admin/v1/evaluations/{evaluation_id}:resume"): Audited(
        "evaluation.resume", "evaluation", "{evaluation_id}"
    ),
    ("DELETE", "/admin/v1/evaluations/{evaluation_id}"): Audited("evaluation.delete", "evaluation", "{evaluation_id}"),
    ("POST", "/admin/v1/sweeps"): Audited("sweep.submit", "evaluation"),
    ("POST", "/admin/v1/sweeps/{sweep_id}:promote"): Audited("sweep.promote", "job"),
    ("POST", "/admin/v1/tenants"): Audited("tenant.create", "tenant"),
    ("PATCH", "/admin/v1/tenants/{tenant_id}"): Audited("tenant.change", "tenant", "{tenant_id}"),
    ("DELETE", "/admin/v1/tenants/{tenant_id}"): Audited("tenant.delete", "tenant", "{tenant_id}"),
    ("POST", "/admin/v1/keys"): Audited("key.create", "key"),
    ("PATCH", "/admin/v1/keys/{key_id}"): Audited("key.change", "key", "{key_id}"),
    ("POST", "/admin/v1/keys/{key_id}:rotate"): Audited("key.rotate", "key", "{key_id}"),
    ("POST", "/admin/v1/keys/{key_id}:revoke"): Audited("key.revoke", "key", "{key_id}"),
}
CHANGES_NOTHING: Final = frozenset(
    {
        ("POST", f"{_ADAPTERS}:validate"),
        ("POST", f"{_ADAPTERS}/{{name}}:verify"),
        ("POST", f"{_ADAPTERS}/{{name}}/versions/{{number}}:rebuild"),
        ("POST", "/admin/v1/merges:plan"),
        ("POST", "/admin/v1/aliases/{name}:explain"),
    }
)
"""These other routes of the admin plane change nothing although their method is not GET: what they find out is their
answer. A test compares both with the application's routes."""


class _Record:
    """The entry of one request, while it is carried out."""

    def __init__(self, request: Request, spec: Audited) -> None:
        self._request = request
        self._spec = spec
        self._object: str | None = None
        self._before: str | None = None

    async def about(self, name: str) -> None:
        """The change is of what ``name`` is now."""
        self._before = await self._digest(name)
        self._object = name

    def made(self, name: str) -> None:
        """The change is that ``name`` came into being."""
        self._object, self._before = name, None

    async def finish(self, *, is_refused: bool) -> None:
        """Write the entry; of a request that was refused only where something changed all the same."""
        if self._object is None:
            return
        after = await self._digest(self._object)
        if is_refused and after == self._before:
            return
        caller = caller_of(self._request)
        draft = AuditDraft(
            key_id=caller.key_id,
            tenant=caller.tenant_id,
            verb=self._spec.verb,
            kind=self._spec.kind,
            object=self._object,
            before=self._before,
            after=after,
            request_id=self._request.scope.get("amalgam.request_id", ""),
        )
        await services(self._request).audit.append(draft)

    async def _digest(self, name: str) -> str | None:
        return digest_of(await STATES[self._spec.kind](services(self._request), name))


async def about(request: Request, name: str) -> None:
    """Say, before it is done, what the change that the body asks for is of."""
    await _record(request).about(name)


def made(request: Request, name: str) -> None:
    """Say what the request brought into being."""
    _record(request).made(name)


def _record(request: Request) -> _Record:
    found: _Record = request.scope[_RECORD]
    return found


class AuditedRoute(StrictRoute):
    """A route of the admin plane, whose change is recorded before it is acknowledged."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler of `StrictRoute`, between two looks at what it changes."""
        handler = super().get_route_handler()
        spec = next((AUDITED[key] for method in self.methods or () if (key := (method, self.path)) in AUDITED), None)
        if spec is None:
            return handler

        async def audited(request: Request) -> Response:
            record = request.scope[_RECORD] = _Record(request, spec)
            return await _carried_out(handler, request, record, spec.place)

        return audited


async def _carried_out(
    handler: Callable[[Request], Awaitable[Response]], request: Request, record: _Record, place: str
) -> Response:
    if place and all(map(_IS_ONE.fullmatch, request.path_params.values())):
        await record.about(place.format_map(request.path_params))
    try:
        response = await handler(request)
    except AmalgamError:
        # A request of two changes may have made the first.
        await record.finish(is_refused=True)
        raise
    await record.finish(is_refused=response.status_code >= 400)
    return response
