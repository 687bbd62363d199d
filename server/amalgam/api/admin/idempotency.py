"""The header ``Idempotency-Key`` on every POST of the admin plane: sent again, a request is answered and not repeated.

The body is hashed while the route reads it, so an upload is neither held in memory nor read twice. Of a form with files
the boundary is left out, which clients draw anew for every attempt.
"""

import hashlib
import logging
import re
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from amalgam.api.access import ADMIN, matched_route
from amalgam.api.auth import key_of
from amalgam.api.errors import error_response
from amalgam.api.state import services
from amalgam.domain.idempotency import KeptAnswer, KeyStanding
from amalgam.errors import AmalgamError
from amalgam.errors.requests import FieldRefused, IdempotencyInProgress, IdempotencyKeyReused
from amalgam.services.idempotency import HeldKey, Idempotency
from amalgam.telemetry.request_watch import CLIENT_GONE

logger = logging.getLogger(__name__)

HEADER: Final = "Idempotency-Key"
REPLAYED: Final = "idempotency-replayed"
MAX_KEPT_BYTES: Final = 1 << 20
"""Only what changes nothing answers with more, such as a plan with its diagnostics; it is worked out again."""

_KEY: Final = re.compile(r"[ -~]{1,255}")
_BOUNDARY: Final = re.compile(r";\s*boundary\s*=\s*\"?([^\";]+)", re.IGNORECASE)
_KEPT_HEADERS: Final = frozenset({"content-type", "location"})
_SCOPE_KEY: Final = "amalgam.request_key"
_KEPT_BODY: Final = "amalgam.kept_body"


def keep_instead(request: Request, body: bytes) -> None:
    """Have ``body`` kept, and answered to the same request when it comes again, in place of a secret shown once."""
    request.scope[_KEPT_BODY] = body


def request_key(request: Request) -> str | None:
    """The idempotency key that this request holds, as the registry names it; None where its caller sent none."""
    found: str | None = request.scope.get(_SCOPE_KEY)
    return found


class Fingerprint:
    """SHA-256 over what makes a request the same one: method, route, query, type and body."""

    def __init__(self, scope: Scope) -> None:
        content_type = Headers(scope=scope).get("content-type", "")
        boundary = _BOUNDARY.search(content_type)
        self._cut = f"--{boundary[1].strip()}".encode() if boundary is not None else b""
        self._rest = b""
        media = content_type.partition(";")[0].strip().lower()
        head = [scope["method"], scope["path"], scope["query_string"].decode("latin-1"), media]
        self._hash = hashlib.sha256("\n".join(head).encode() + b"\n\n")
        self.is_whole = False

    def update(self, message: Message) -> None:
        """Take a message of the body."""
        if message["type"] != "http.request":
            return
        self.is_whole = not message.get("more_body", False)
        piece: bytes = message.get("body", b"")
        if not self._cut:
            self._hash.update(piece)
            return
        *parts, last = (self._rest + piece).split(self._cut)
        for part in parts:
            self._hash.update(part + b"\n--\n")
        # A boundary may go on in the next piece.
        kept = len(last) if self.is_whole else max(0, len(last) - len(self._cut) + 1)
        self._hash.update(last[:kept])
        self._rest = last[kept:]

    def hex(self) -> str:
        """The fingerprint, once the body `is_whole`."""
        return self._hash.hexdigest()


class IdempotencyKeys:
    """The middleware; inside of authentication and of the limit on bodies."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let through what has no key or is no POST of the admin plane."""
        if scope["type"] != "http" or scope["method"] != "POST" or matched_route(scope).access.plane != ADMIN.plane:
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).getlist(HEADER)
        if not given:
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        try:
            await self._once(key_name(given, request), request, receive, send)
        except AmalgamError as error:
            await error_response(error, request)(scope, receive, send)

    async def _once(self, key: str, request: Request, receive: Receive, send: Send) -> None:
        idempotency = services(request).idempotency
        async with idempotency.hold(key) as held:
            messages = []
            if isinstance(held, HeldKey):
                messages = await self._carry_out(held, request.scope, receive)
        for message in messages:
            await send(message)
        if not isinstance(held, HeldKey):
            answer = await _again(idempotency, key, held, request.scope, receive)
            if answer is not None:
                await _replay(answer)(request.scope, receive, send)

    async def _carry_out(self, held: HeldKey, scope: Scope, receive: Receive) -> list[Message]:
        """Run the route and keep its answer before the caller has it: what was acknowledged is never done again."""
        scope[_SCOPE_KEY] = held.key
        fingerprint = Fingerprint(scope)
        messages: list[Message] = []

        async def hashed() -> Message:
            message = await receive()
            fingerprint.update(message)
            return message

        async def collect(message: Message) -> None:
            messages.append(message)

        await self._app(scope, hashed, collect)
        try:
            await _drain(fingerprint, receive)
            answer = answer_to_keep(messages, fingerprint, scope.get(_KEPT_BODY))
            if answer is not None:
                await held.finish(answer)
        except AmalgamError as error:
            logger.warning("idempotency_answer_lost reason=%s", error)
        return messages


def key_name(given: list[str], request: Request) -> str:
    """Caller and key under one name, which gives neither away."""
    if len(given) != 1 or not _KEY.fullmatch(given[0]):
        raise FieldRefused(HEADER, "must be sent once, with 1 to 255 printable ASCII characters")
    caller = hashlib.sha256((key_of(request.headers) or "").encode(errors="surrogateescape")).hexdigest()
    return hashlib.sha256(f"{caller}\n{given[0]}".encode()).hexdigest()


async def _drain(fingerprint: Fingerprint, receive: Receive) -> None:
    """Read what the route left of the body; a client that left ends it."""
    while not fingerprint.is_whole:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        fingerprint.update(message)


def answer_to_keep(messages: list[Message], fingerprint: Fingerprint, kept: bytes | None = None) -> KeptAnswer | None:
    """What is to be kept, ``kept`` in place of the body where it is there; None for what may come out better again."""
    start = next((message for message in messages if message["type"] == "http.response.start"), None)
    body = b"".join(message.get("body", b"") for message in messages)
    if start is None or not fingerprint.is_whole or len(body) > MAX_KEPT_BYTES:
        return None
    status = int(start["status"])
    if status >= 500 or status in (429, CLIENT_GONE):
        return None
    headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in start["headers"]]
    shown = tuple(pair for pair in headers if pair[0] in _KEPT_HEADERS)
    return KeptAnswer(fingerprint.hex(), status, shown, body if kept is None else kept)


async def _again(
    idempotency: Idempotency, key: str, standing: KeyStanding, scope: Scope, receive: Receive
) -> KeptAnswer | None:
    """The first answer, for a request that proves to be the same one; None where the client left.

    Raises:
        IdempotencyKeyReused: it is another one.
        IdempotencyInProgress: the first one has no answer yet, or ended without one.
    """
    fingerprint = Fingerprint(scope)
    await _drain(fingerprint, receive)
    if not fingerprint.is_whole:
        return None
    answer = standing.answer or await idempotency.answer(key)
    if answer is None:
        raise IdempotencyInProgress
    if answer.fingerprint != fingerprint.hex():
        raise IdempotencyKeyReused
    return answer


def _replay(answer: KeptAnswer) -> Response:
    return Response(answer.body, answer.status, headers=dict(answer.headers) | {REPLAYED: "true"})
