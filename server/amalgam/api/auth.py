"""The doors: every route but the probes needs a key, by the path that is routed and nothing else.

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
from urllib.parse import urlsplit

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from amalgam.api.responses import error_response
from amalgam.errors import AmalgamError
from amalgam.errors.doors import AdminKeyNeeded, ForeignOrigin, KeyUnusable
from amalgam.errors.requests import InvalidApiKey, UnsafeBinding
from amalgam.settings import Settings

_HASHED: Final = re.compile(r"sha256:([0-9a-fA-F]{64})")
_KEY: Final = re.compile(r"[!-~]{1,512}")
"""Printable ASCII without blanks: what survives a header and a list separated by commas."""
_PROBES: Final = frozenset({"/livez", "/readyz"})
_ADMIN_V1: Final = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
_CLIENT: Final = frozenset({"/tokenize", "/detokenize", "/version", "/metrics"})


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


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The accepted keys of both planes, as SHA-256 digests."""

    admin: tuple[bytes, ...]
    api: tuple[bytes, ...]
    metrics_open: bool

    @classmethod
    def of(cls, settings: Settings) -> "KeyRing":
        """Hash the configured keys; a key written ``sha256:<hex>`` is a hash already.

        Raises:
            KeyUnusable: a key that no header could carry, an empty one included.
        """
        admin = () if settings.admin_key is None else (_digest(settings.admin_key, "AMALGAM_ADMIN_KEY"),)
        return cls(admin, tuple(_digest(key, "AMALGAM_API_KEYS") for key in settings.api_keys), settings.metrics_open)

    @property
    def open(self) -> bool:
        """No key is configured: a server on loopback, for one person."""
        return not self.admin and not self.api

    def refusal(self, path: str, headers: Headers) -> AmalgamError | None:
        """Why a request may not enter at ``path``; None where it may. Admin keys open both planes."""
        if path in _PROBES or (path == "/metrics" and self.metrics_open):
            return None
        if self.open:
            return None if _is_of_this_machine(headers) else ForeignOrigin()
        token = bearer(headers)
        if token is None:
            return InvalidApiKey("admin" if needs_admin(path) else "client")
        is_admin, is_client = _among(token, self.admin), _among(token, self.api)
        if is_admin or (is_client and not needs_admin(path)):
            return None
        return AdminKeyNeeded() if is_client else InvalidApiKey("admin" if needs_admin(path) else "client")


def needs_admin(path: str) -> bool:
    """Whether ``path`` belongs to the admin plane; whatever is not known to be for clients does."""
    return path in _ADMIN_V1 or not (path.startswith("/v1/") or path in _CLIENT)


def _among(token: str, accepted: Iterable[bytes]) -> bool:
    """Compare against every key, so that the time taken tells nothing."""
    given = hashlib.sha256(token.encode(errors="surrogateescape")).digest()
    found = False
    for key in accepted:
        found |= hmac.compare_digest(given, key)
    return found


def bearer(headers: Headers) -> str | None:
    """The key of a request: ``Authorization: Bearer``, or ``x-api-key`` as Anthropic's clients send it."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    return headers.get("x-api-key") or None


def client_of(headers: Headers) -> str:
    """A stable word for the key of a request, from which the key cannot be had; empty without one."""
    token = bearer(headers)
    return "" if token is None else hashlib.sha256(b"client " + token.encode(errors="surrogateescape")).hexdigest()[:16]


def _is_of_this_machine(headers: Headers) -> bool:
    """Whether ``Host`` is a loopback name, which a rebound DNS name is not, and ``Origin`` is absent or one as well."""
    origin = headers.get("origin")
    return _is_loopback_authority(f"//{headers.get('host', '')}") and (origin is None or _is_loopback_authority(origin))


def _is_loopback_authority(url: str) -> bool:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.path or parts.query or parts.fragment or parts.username is not None:
            return False
        return host == "localhost" or host.endswith(".localhost") or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def routed_path(scope: Scope) -> str:
    """The path that the router matches, as Starlette cuts it: without the prefix that the server is mounted under."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and (path == root or path.startswith(f"{root}/")):
        path = path[len(root) :]
    return path


class AuthMiddleware:
    """Answers 401 or 403 before any route is matched."""

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
        headers = Headers(scope=scope)
        error = self._keys.refusal(routed_path(scope), headers)
        if error is None:
            scope["amalgam.client"] = "" if self._keys.open else client_of(headers)
            await self._app(scope, receive, send)
            return
        await error_response(error, Request(scope))(scope, receive, send)


def require_safe_binding(settings: Settings) -> None:
    """Raise UnsafeBinding where the address can be reached by others and a plane has no key."""
    if settings.admin_key is not None and settings.api_keys:
        return
    try:
        is_loopback = ipaddress.ip_address(settings.host).is_loopback
    except ValueError:
        is_loopback = settings.host == "localhost"
    if not is_loopback:
        raise UnsafeBinding(settings.host)
