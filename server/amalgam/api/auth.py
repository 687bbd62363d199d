"""Who asks, and whether the route that answers lets them in; each route's marker says whom (`amalgam.api.access`).

Keys are compared in constant time by their SHA-256; the plain text is dropped once hashed. A server without keys
listens on loopback only, where every web page its user opens can reach it too: it answers no foreign site or host.
"""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_plus, urlsplit

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from amalgam.api.access import ALL_ROLES, CALLER, Caller, has_control_characters, matched_route
from amalgam.api.errors import error_response
from amalgam.api.state import Services
from amalgam.api.transport.cross_origin import EVERY
from amalgam.domain.tenant import Role
from amalgam.errors import AmalgamError
from amalgam.errors.http import KeyInAddress, KeyUnusable, MalformedRequest
from amalgam.errors.requests import UnsafeBinding
from amalgam.services.key_directory import KeyDirectory, KnownKey
from amalgam.settings import Settings

_HASHED: Final = re.compile(r"sha256:([0-9a-fA-F]{64})")
_KEY: Final = re.compile(r"[!-~]{1,512}")
"""It matches printable ASCII without blanks: what survives a header and a list separated by commas."""
_KEY_HEADERS: Final = ("x-api-key", "api-key")
_PROXIED: Final = frozenset({b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip", b"via"})
"""A proxy adds these headers: the connection is from this machine, and whoever asks need not be."""
_SHOWN_DIGITS: Final = 12
"""The id of a configured key shows so many digits of its word."""
_ROLES: Final = {role: frozenset({role}) for role in Role}
_IN_QUERY: Final = frozenset({
    "key", "apikey", "xapikey", "xgoogapikey", "subscriptionkey", "token", "apitoken", "accesstoken", "authtoken",
    "authorization", "bearer",
})  # fmt: skip
"""Clients give a key in the query these names, which stand here in small letters and without what joins words."""
_JOINT: Final = re.compile("[-_ .]")


def _digest(key: SecretStr, variable: str) -> bytes:
    """The SHA-256 of a configured key, or the hash that it is already."""
    text = key.get_secret_value()
    if hashed := _HASHED.fullmatch(text):
        return bytes.fromhex(hashed[1])
    if text.startswith("sha256:"):
        raise KeyUnusable(variable, "after sha256: it does not have 64 hex digits")
    if not _KEY.fullmatch(text):
        raise KeyUnusable(variable, "it is empty, too long, or has blanks or letters beyond ASCII")
    return hashlib.sha256(text.encode()).digest()


def _digests(key: SecretStr | None, variable: str) -> tuple[bytes, ...]:
    return () if key is None else (_digest(key, variable),)


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The accepted keys, as SHA-256 digests, and who may read the metrics without one."""

    admin: tuple[bytes, ...]
    api: tuple[bytes, ...]
    metrics: tuple[bytes, ...]
    metrics_open: bool
    origins: frozenset[str] = frozenset()
    """A server without keys answers pages of these sites too."""

    @classmethod
    def of(cls, settings: Settings) -> "KeyRing":
        """Hash the configured keys; a key written ``sha256:<hex>`` is a hash already.

        Raises:
            KeyUnusable: a key that no header could carry, an empty one included.
        """
        api = tuple(_digest(key, "AMALGAM_API_KEYS") for key in settings.access.api_keys)
        metrics = _digests(settings.access.metrics_key, "AMALGAM_METRICS_KEY")
        admin = _digests(settings.access.admin_key, "AMALGAM_ADMIN_KEY")
        # Without keys every site would be no site: whoever opens a page anywhere would be let in.
        origins = frozenset(settings.http.allowed_origins) - {EVERY}
        return cls(admin, api, metrics, settings.access.metrics_open, origins)

    @property
    def open(self) -> bool:
        """No key is configured: a server on loopback, for one person."""
        return not self.admin and not self.api

    def caller(self, scope: Scope, directory: KeyDirectory | None = None) -> Caller:
        """Who asks, by the key; without any key configured, by the machine that the request means.

        Args:
            scope: of the request.
            directory: of the keys in the registry; None before the server has begun, when there are none.
        """
        headers = Headers(scope=scope)
        token = key_of(headers)
        if token is not None and directory is not None and (known := directory.find(token)) is not None:
            return self._holder(known)
        is_here = _is_of_this_machine(headers, self.origins)
        free = frozenset({Role.METRICS}) if self._reads_metrics_freely(scope, is_here=is_here) else frozenset()
        if self.open:
            return Caller("", ALL_ROLES if is_here else free, is_foreign=not is_here)
        if token is None:
            return Caller("", free)
        # All are asked, so that the time taken tells nothing.
        kinds = ((self.admin, ALL_ROLES), (self.api, {Role.CLIENT}), (self.metrics, {Role.METRICS}))
        found = [roles for keys, roles in kinds if _among(token, keys)]
        if not found:
            return Caller("", free)
        client = client_of(token)
        return Caller(client, free.union(*found), key_id=f"env-{client[:_SHOWN_DIGITS]}")

    def _holder(self, known: KnownKey) -> Caller:
        """Who holds a key of the registry. Counters name every adapter, so that it needs the role to read them."""
        key = known.key
        if known.ended is not None:
            return Caller("", frozenset(), ended=known.ended)
        roles = ALL_ROLES if key.role is Role.ADMIN else _ROLES[key.role]
        if self.metrics_open:
            roles |= {Role.METRICS}
        return Caller(key.id, roles, key_id=key.id, tenant_id=key.tenant, scopes=key.scopes)

    def _reads_metrics_freely(self, scope: Scope, *, is_here: bool) -> bool:
        """Everybody where the setting says so; else a program on this machine that no proxy speaks for."""
        if self.metrics_open or self.metrics:
            return self.metrics_open
        peer = scope.get("client")
        came_by_proxy = any(name in _PROXIED for name, _ in scope["headers"])
        return is_here and not came_by_proxy and peer is not None and _is_loopback(peer[0])


def _among(token: str, accepted: Iterable[bytes]) -> bool:
    """Compare against every key, so that the time taken tells nothing."""
    given = hashlib.sha256(token.encode(errors="surrogateescape")).digest()
    found = False
    for key in accepted:
        found |= hmac.compare_digest(given, key)
    return found


def key_of(headers: Headers) -> str | None:
    """The key of a request: ``Authorization: Bearer``, Anthropic's ``x-api-key``, or Azure's ``api-key``."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    return next((key for name in _KEY_HEADERS if (key := headers.get(name, "").strip())), None)


def client_of(key: str) -> str:
    """A stable word for a key, from which the key cannot be had."""
    return hashlib.sha256(b"client " + key.encode(errors="surrogateescape")).hexdigest()[:16]


def _is_of_this_machine(headers: Headers, origins: frozenset[str]) -> bool:
    """Whether ``Host`` is a loopback name, which a rebound DNS name is not, and ``Origin`` absent, one, or allowed."""
    origin = headers.get("origin")
    return _is_loopback_authority(f"//{headers.get('host', '')}") and (
        origin is None or origin in origins or _is_loopback_authority(origin)
    )


def _is_loopback_authority(url: str) -> bool:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.path or parts.query or parts.fragment or parts.username is not None:
            return False
        return host == "localhost" or host.endswith(".localhost") or _is_loopback(host)
    except ValueError:
        return False


def _is_loopback(address: str) -> bool:
    """Whether an IP address is of this machine alone; False for what is no address, as the name of a socket file."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


class AuthMiddleware:
    """Answers 400, 401 or 403 before a route reads anything; leaves word in the scope of who asks.

    ``amalgam.client`` is a stable word for the key, the same as long as the key is, and empty on a server without keys.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let ``lifespan`` and requests with a fitting key through; nothing else than HTTP is spoken here."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        caller = self._keys.caller(scope, _directory(scope))
        error = self._refusal(scope, caller)
        if error is None:
            scope[CALLER] = caller
            scope["amalgam.client"] = caller.client
            await self._app(scope, receive, send)
            return
        await error_response(error, Request(scope))(scope, receive, send)

    def _refusal(self, scope: Scope, caller: Caller) -> AmalgamError | None:
        if has_control_characters(scope["path"]):
            return MalformedRequest("its path has control characters")
        error = matched_route(scope).access.refusal(caller)
        if error is not None and error.status == 401 and _has_key_in_query(scope):
            return KeyInAddress()
        return error


def _directory(scope: Scope) -> KeyDirectory | None:
    """The keys of the registry, once the application has begun."""
    built: Services | None = getattr(scope["app"].state, "amalgam", None) if "app" in scope else None
    return None if built is None else built.keys


def _has_key_in_query(scope: Scope) -> bool:
    """Whether the request, which has no key where keys are read, has one where logs and histories would keep it."""
    if key_of(Headers(scope=scope)) is not None:
        return False
    names = (unquote_plus(one.partition("=")[0]) for one in _pairs(scope["query_string"].decode("latin-1")))
    return any(_JOINT.sub("", name).lower() in _IN_QUERY for name in names)


def _pairs(query: str) -> list[str]:
    return query.replace(";", "&").split("&")


def require_safe_binding(settings: Settings) -> None:
    """Raise UnsafeBinding where the address can be reached by others and nobody could tell who asks.

    With the administrator's key alone the server is closed to all others until that one has created keys.
    """
    if settings.access.admin_key is not None:
        return
    try:
        is_loopback = ipaddress.ip_address(settings.http.host).is_loopback
    except ValueError:
        is_loopback = settings.http.host == "localhost"
    if not is_loopback:
        raise UnsafeBinding(settings.http.host)
