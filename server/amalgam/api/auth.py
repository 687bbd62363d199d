"""The doors: every route but the probes needs a key, by the path that is routed and nothing else.

Keys are compared in constant time by their SHA-256; the plain text is dropped once hashed.
"""

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from amalgam.api.responses import error_response
from amalgam.errors.requests import InvalidApiKey, UnsafeBinding
from amalgam.settings import Settings

_HASHED: Final = "sha256:"
_PROBES: Final = frozenset({"/livez", "/readyz"})
_ADMIN_V1: Final = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})


def _digest(key: str) -> bytes:
    return bytes.fromhex(key[len(_HASHED) :]) if key.startswith(_HASHED) else hashlib.sha256(key.encode()).digest()


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The accepted keys of both planes, as SHA-256 digests."""

    admin: tuple[bytes, ...]
    api: tuple[bytes, ...]
    metrics_open: bool

    @classmethod
    def of(cls, settings: Settings) -> "KeyRing":
        """Hash the configured keys; a key written ``sha256:<hex>`` is a hash already."""
        admin = () if settings.admin_key is None else (_digest(settings.admin_key.get_secret_value()),)
        return cls(admin, tuple(_digest(k.get_secret_value()) for k in settings.api_keys), settings.metrics_open)

    @property
    def open(self) -> bool:
        """No key is configured: a server on loopback, for one person."""
        return not self.admin and not self.api

    def allows(self, path: str, token: str | None) -> bool:
        """Whether ``token`` opens ``path``. Admin keys open both planes."""
        if path in _PROBES or self.open or (path == "/metrics" and self.metrics_open):
            return True
        accepted = self.admin if needs_admin(path) else (*self.admin, *self.api)
        return token is not None and _among(token, accepted)


def needs_admin(path: str) -> bool:
    """Whether ``path`` belongs to the admin plane; whatever is not known to be for clients does."""
    client = path.startswith("/v1/") or path in {"/tokenize", "/detokenize", "/version", "/metrics"}
    return path in _ADMIN_V1 or not client


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


class AuthMiddleware:
    """Answers 401 before any route is matched."""

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let ``lifespan`` and requests with a fitting key through."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        path = "/" + scope["path"].strip("/")
        if scope["type"] == "http" and self._keys.allows(path, bearer(Headers(scope=scope))):
            await self._app(scope, receive, send)
            return
        error = InvalidApiKey("admin" if needs_admin(path) else "client")
        response = error_response(error, Request(scope) if scope["type"] == "http" else None)
        await response(scope, receive, send)


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
