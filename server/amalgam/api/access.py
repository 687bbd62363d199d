"""What a route asks of its caller, and which route a request means: one reader of the path, for everybody who asks.

Every route carries exactly one `Access` among its dependencies. `AuthMiddleware` decides by the marker of the route
that the router itself matches, and the marker is the route's own check as well, so that a way around the middleware, or
a disagreement about the path, ends in a refusal. A route without a marker is served to nobody.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from amalgam.domain.scopes import EVERYTHING, Scopes
from amalgam.domain.stored_bytes import StoredBy
from amalgam.domain.tenant import BUILT_IN_TENANT, KeyEnd, Role
from amalgam.errors import AmalgamError
from amalgam.errors.http import ForeignOrigin, KeyNotSufficient
from amalgam.errors.requests import InvalidApiKey
from amalgam.errors.tenants import KeyExpired, KeySuspended, TenantSuspended

CALLER: Final = "amalgam.caller"
"""The middleware leaves the `Caller` under this key of the scope."""
_MATCHED: Final = "amalgam.matched_route"
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]|%(?:[01][0-9a-f]|7f)", re.IGNORECASE)
"""It matches control characters and line ends, as they are or behind one more percent-encoding: no route has them in
its path."""
ALL_ROLES: Final = frozenset(Role)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as far as the key and the connection tell.

    Attributes:
        client: stable word for the key, from which the key cannot be had; empty without a known key.
        roles: what the caller may do.
        is_foreign: asks a server without keys from somewhere else.
        ended: why the key opens nothing any more; None where it does, or is none.
        key_id: id of the key, of one of the environment ``env-`` and a part of its word; empty without a known key.
        tenant_id: whose key it is.
        scopes: what the caller may ask for, and so all that answers to it may name.
    """

    client: str
    roles: frozenset[Role]
    is_foreign: bool = False
    key_id: str = ""
    tenant_id: str = BUILT_IN_TENANT
    scopes: Scopes = EVERYTHING
    ended: KeyEnd | None = None

    @property
    def stored_by(self) -> StoredBy:
        """Whose bytes count what the caller stores."""
        return StoredBy(self.tenant_id, self.key_id)


@dataclass(frozen=True, slots=True)
class Access:
    """The marker of a route: whom it answers.

    Attributes:
        plane: how refusals call it.
        roles: any of these is enough; None: everybody, without a key.
    """

    plane: str
    roles: frozenset[Role] | None

    async def __call__(self, request: Request) -> None:
        """The route's own check. Raises what `refusal` returns; where nobody has looked at the key, InvalidApiKey."""
        error = self.refusal(caller_of(request))
        if error is not None:
            raise error

    def refusal(self, caller: Caller) -> AmalgamError | None:
        """Why ``caller`` may not enter; None where they may."""
        if self.roles is None or self.roles & caller.roles:
            return None
        if caller.ended is not None:
            return _ENDED[caller.ended]()
        if caller.is_foreign:
            return ForeignOrigin()
        return KeyNotSufficient(self.plane) if caller.client else InvalidApiKey(self.plane)


_ENDED: Final[Mapping[KeyEnd, type[KeyExpired | KeySuspended | TenantSuspended]]] = {
    "expired": KeyExpired,
    "key_suspended": KeySuspended,
    "suspended": TenantSuspended,
}
OPEN: Final = Access("open", None)
CLIENT: Final = Access("client", frozenset({Role.CLIENT, Role.PUBLISHER, Role.ADMIN}))
METRICS: Final = Access("metrics", frozenset({Role.METRICS, Role.ADMIN}))
READ: Final = Access("admin", frozenset({Role.READER, Role.PUBLISHER, Role.ADMIN}))
"""It holds for what changes nothing and shows only what is in scope."""
PUBLISH: Final = Access("admin", frozenset({Role.PUBLISHER, Role.ADMIN}))
"""It holds for what changes names in scope only."""
ADMIN: Final = Access("admin", frozenset({Role.ADMIN}))
HOLDER: Final = Access("client", ALL_ROLES - {Role.METRICS})
"""It holds for what a key is told of itself. The role of metrics is not enough: on many servers nobody needs a key for
it."""
_NO_ROUTE: Final = CLIENT
"""Whoever has a key of either plane is told that there is no such route; others are told nothing."""
_NOBODY: Final = Access("admin", frozenset())
_NOBODY_KNOWN: Final = Caller("", frozenset())


def caller_of(request: Request) -> Caller:
    """Who asks; nobody where nobody has looked at the key."""
    found: Caller | None = request.scope.get(CALLER)
    return found or _NOBODY_KNOWN


@dataclass(frozen=True, slots=True)
class MatchedRoute:
    """The route that answers a request, by the router's own matching.

    Attributes:
        template: its path as it is written in the code, never the client's; empty where no route matches.
        access: its marker.
    """

    template: str
    access: Access


def matched_route(scope: Scope) -> MatchedRoute:
    """The route that the application's router will choose; asked once for each request, and remembered in the scope."""
    found: MatchedRoute | None = scope.get(_MATCHED)
    if found is None:
        found = scope[_MATCHED] = _match(scope)
    return found


def _match(scope: Scope) -> MatchedRoute:
    """Choose as Starlette's router does: the first that matches in full, else the first that differs in the method."""
    if has_control_characters(scope["path"]):
        return MatchedRoute("", _NO_ROUTE)
    partial: BaseRoute | None = None
    for route in scope["app"].router.routes if "app" in scope else ():
        match, _ = route.matches(scope)
        if match is Match.FULL:
            return _marked(route)
        if match is Match.PARTIAL and partial is None:
            partial = route
    return MatchedRoute("", _NO_ROUTE) if partial is None else _marked(partial)


def has_control_characters(path: str) -> bool:
    """Whether a decoded path holds what a pattern's end, a log line or another decoder might read differently."""
    return _CONTROL.search(path) is not None


def _marked(route: BaseRoute) -> MatchedRoute:
    return MatchedRoute(getattr(route, "path", ""), access_of(route) or _NOBODY)


def access_of(route: BaseRoute) -> Access | None:
    """The marker of ``route``; None where it has none, or more than one."""
    if not isinstance(route, APIRoute):
        return None
    found = [depends.dependency for depends in route.dependencies if isinstance(depends.dependency, Access)]
    return found[0] if len(found) == 1 else None


def unmarked(routes: Iterable[BaseRoute]) -> list[str]:
    """The routes that nobody is let in to, because they do not carry exactly one marker."""
    return [repr(route) for route in routes if access_of(route) is None]
