"""Lets web pages of named sites ask (CORS). Without a name nothing is said of permission, and browsers keep them out.

Outside of authentication, because a browser asks whether it may ask before it sends a key, and so that a page can read
why it was refused.
"""

from collections.abc import Collection
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

EVERY: Final = "*"
PERMISSION: Final = "amalgam.cross_origin"
"""This key of the scope holds what this middleware adds to answers, for an answer that is sent outside of it."""
_METHODS: Final = "GET, POST, PATCH, PUT, DELETE"
_KEPT_S: Final = "600"
_READABLE: Final = (
    "x-request-id, x-amalgam-adapter, x-amalgam-recipe, x-amalgam-route, x-amalgam-ignored, retry-after, "
    "x-should-retry, location, idempotency-replayed, x-amalgam-max-tokens, "
    "x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
    "x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens, "
    "anthropic-ratelimit-requests-limit, anthropic-ratelimit-requests-remaining, anthropic-ratelimit-requests-reset, "
    "anthropic-ratelimit-tokens-limit, anthropic-ratelimit-tokens-remaining, anthropic-ratelimit-tokens-reset"
)
"""A page may read these headers of answers; browsers hide all others from it."""


class CrossOrigin:
    """The middleware.

    Args:
        app: what answers.
        origins: sites as browsers name them, such as ``https://chat.example``; ``*`` is every site.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self._app = app
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the question before a request; let all else through, with the permission in its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is None or not self._allows(origin):
            scope[PERMISSION] = {"vary": "Origin"}
            await self._app(scope, receive, _varying(send))
            return
        scope[PERMISSION] = {**_permission(origin), "vary": "Origin"}
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            answer = Response(status_code=204, headers={"access-control-allow-origin": origin, "vary": "Origin"})
            answer.headers["access-control-allow-methods"] = _METHODS
            answer.headers["access-control-allow-headers"] = headers.get("access-control-request-headers", EVERY)
            answer.headers["access-control-max-age"] = _KEPT_S
            await answer(scope, receive, send)
            return

        async def permitted(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                answer.update(_permission(origin))
                answer.add_vary_header("Origin")
            await send(message)

        await self._app(scope, receive, permitted)

    def _allows(self, origin: str) -> bool:
        return EVERY in self._origins or origin in self._origins


def _permission(origin: str) -> dict[str, str]:
    return {"access-control-allow-origin": origin, "access-control-expose-headers": _READABLE}


def _varying(send: Send) -> Send:
    """Has caches keep an answer without a permission apart from those with one."""

    async def varied(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).add_vary_header("Origin")
        await send(message)

    return varied
