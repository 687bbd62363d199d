"""Every request counted, timed and, where asked for, logged, when its last byte is out or its client gone.

Outside of authentication and routing, so that refusals count too, and around the sending, so that streams count when
they end. What is logged: method, route template, status, milliseconds, version and ids; no key, query, body or path.
"""

import logging
import re
from asyncio import CancelledError
from collections.abc import Awaitable, Iterable, Mapping
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from amalgam.api.access import matched_route
from amalgam.api.inference.charging import charge
from amalgam.api.inference.learning import remember
from amalgam.engine.token_usage import usage_in_answer, usage_left_on
from amalgam.telemetry.context import RequestContext, enter
from amalgam.telemetry.logs import FIELDS
from amalgam.telemetry.metrics import NONE, OTHER, Metrics, TokenUsage
from amalgam.telemetry.request_watch import RequestWatch

access: Final = logging.getLogger("amalgam.access")

_METHODS: Final = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
_TRACEPARENT: Final = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_CLIENT_LEFT: Final = (ClientDisconnect, CancelledError)
_USAGE_IN_ANSWER: Final = frozenset({"responses", "embeddings"})


class Observed:
    """The middleware.

    Args:
        app: what answers.
        metrics: where it is counted.
        endpoints: templates of the routes of inference, with the label of each.
        access_log: whether each request is one log line.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, endpoints: Mapping[str, str], *, access_log: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._endpoints = dict(endpoints)
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Watch one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = RequestContext(scope.get("amalgam.request_id", ""), trace_id=_trace_id(scope["headers"]))
        enter(context)
        endpoint = self._endpoints.get(matched_route(scope).template)
        watch = self._metrics.begin(endpoint, context)

        # Not a coroutine of its own: this runs for every token.
        def watched_send(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.body":
                watch.part(message.get("body", b""), message.get("more_body", False))
            elif message["type"] == "http.response.start":
                watch.status = message["status"]
            return send(message)

        failed = left = False
        try:
            await self._app(scope, receive, watched_send)
        except BaseException as error:
            failed, left = True, isinstance(error, _CLIENT_LEFT)
            raise
        finally:
            self._end(scope, watch, watch.code(failed=failed, left=left))

    def _end(self, scope: Scope, watch: RequestWatch, code: int) -> None:
        seconds = watch.seconds()
        method = scope["method"] if scope["method"] in _METHODS else OTHER
        usage = _usage(scope, watch)
        if watch.endpoint is None:
            self._metrics.end_http(method, _route(scope), code)
        else:
            self._metrics.end(watch, code, seconds, usage)
        charge(scope, watch, usage, code)
        remember(scope, watch, code, seconds)
        if self._access_log:
            _log(watch, method, watch.endpoint or _route(scope), code, seconds, usage)


def _route(scope: Scope) -> str:
    """The template of the route that answered; never the path, which a client wrote."""
    return getattr(scope.get("route"), "path", NONE)


def _trace_id(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    for name, value in headers:
        if name == b"traceparent":
            found = _TRACEPARENT.fullmatch(value)
            return found[1].decode() if found else None
    return None


def _usage(scope: Scope, watch: RequestWatch) -> TokenUsage | None:
    if watch.endpoint is None or not watch.finished or watch.status != 200:
        return None
    usage = usage_left_on(scope.get("state", {}))
    if usage is None and watch.endpoint in _USAGE_IN_ANSWER:
        usage = usage_in_answer(watch.last_part)
    return usage


def _log(watch: RequestWatch, method: str, route: str, code: int, seconds: float, usage: TokenUsage | None) -> None:
    fields: dict[str, str | int | float] = {"method": method, "route": route, "status": code}
    fields["ms"] = round(seconds * 1e3, 1)
    if watch.first_s is not None:
        fields["first_token_ms"] = round(watch.first_s * 1e3, 1)
    if watch.context.alias is not None:
        fields["alias"] = watch.context.alias
    if usage is not None:
        fields |= {"prompt_tokens": usage.prompt, "completion_tokens": usage.completion}
    shown = watch.context.adapter or "-"
    access.info("%s %s %d %.1f ms %s", method, route, code, seconds * 1e3, shown, extra={FIELDS: fields})
