"""Lines of batches asked as requests of the key that created the batch: the same checks, limits and usage."""

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections.abc import Callable
from typing import Any, Final, cast

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Scope

from amalgam.api.access import CALLER, Caller
from amalgam.api.errors import error_body
from amalgam.api.fields.strict_json import parse_object
from amalgam.api.inference.charging import charge
from amalgam.api.inference.openai import ENDPOINT_PATHS, forward
from amalgam.api.state import Services
from amalgam.domain.batch import MAX_CUSTOM_ID, Batch
from amalgam.domain.tenant import Role, Tenant
from amalgam.engine.inner_scope import inner_scope
from amalgam.engine.protocol import Endpoint
from amalgam.engine.token_usage import usage_in_answer, usage_left_on
from amalgam.errors import AmalgamError
from amalgam.errors.batches import BatchKeyEnded, InvalidBatchLine
from amalgam.errors.engine import EngineNotReady
from amalgam.errors.http import InternalError
from amalgam.errors.requests import FieldRefused
from amalgam.errors.tenants import KeySuspended, TenantSuspended
from amalgam.services.batch_lines import BatchLine, LineAnswer
from amalgam.telemetry.context import RequestContext, enter
from amalgam.telemetry.metrics import TokenUsage
from amalgam.telemetry.request_watch import RequestWatch

logger = logging.getLogger(__name__)

MAX_LOSSES: Final = 3
"""A line at which the engine went away so often is not asked again: it may be why."""
_SUSPENDED_S: Final = 60.0
_ROLES: Final = frozenset({Role.CLIENT})
_ENVIRONMENT: Final = "env-"
"""Ids of keys of the environment begin with it."""


class BatchAsker:
    """See `amalgam.services.batch_lines.LineAsker`.

    Args:
        app: whose routes would answer.
        built: gives the services, once they are there.
    """

    def __init__(self, app: ASGIApp, built: Callable[[], Services]) -> None:
        self._app = app
        self._built = built

    def read(self, raw: bytes, endpoint: str) -> BatchLine:
        """What a line says."""
        try:
            line = parse_object(raw)
        except FieldRefused:
            return BatchLine(None, problem=InvalidBatchLine("is no JSON object"))
        given = line.get("custom_id")
        is_usable = isinstance(given, str) and 0 < len(given) <= MAX_CUSTOM_ID
        custom_id = given if is_usable else None
        reason = _why_not(line, custom_id, endpoint)
        if reason is not None:
            return BatchLine(custom_id, problem=InvalidBatchLine(reason))
        return BatchLine(custom_id, line["body"])

    async def require(self, batch: Batch, model: str | None) -> None:
        """Nothing where ``model`` is there for the key."""
        caller, _ = self._caller(batch)
        app_services = self._built()
        catalog, inference, scopes = app_services.catalog, app_services.inference, caller.scopes
        await inference.found(
            lambda: catalog.alias(model, scopes) or inference.resolve(model, scopes, caller.tenant_id)
        )

    def _caller(self, batch: Batch) -> tuple[Caller, Tenant | None]:
        """Whose request a line is. Raises BatchKeyEnded."""
        keys = self._built().keys
        tenant = keys.tenant(batch.tenant)
        if not batch.key_id or batch.key_id.startswith(_ENVIRONMENT):
            return Caller(batch.client, _ROLES, key_id=batch.key_id, tenant_id=batch.tenant), tenant
        key = keys.living(batch.key_id)
        if key is None:
            raise BatchKeyEnded
        return Caller(key.id, _ROLES, key_id=key.id, tenant_id=key.tenant, scopes=key.scopes), tenant

    async def ask(self, batch: Batch, line: BatchLine) -> LineAnswer:
        """The answer, or the refusal that stays one."""
        caller, tenant = self._caller(batch)
        key = self._built().keys.key(caller.key_id)
        if tenant is not None and tenant.state != "active":
            raise _waiting(TenantSuspended())
        if key is not None and key.state != "active":
            raise _waiting(KeySuspended())
        engine = self._built().engine
        if engine.state != "ready":
            raise EngineNotReady(engine.state)
        gone = asyncio.Event()
        # Of its own, as each request has one: what is counted for it is found by its task.
        call = asyncio.create_task(self._asked(ENDPOINT_PATHS[batch.endpoint], caller, line, gone))
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            # vLLM's handlers work in tasks of their own, which only a client that leaves ends.
            gone.set()
            call.add_done_callback(_forget)
            raise
        except EngineNotReady as error:
            line.losses += 1
            if line.losses < MAX_LOSSES:
                raise
            return LineAnswer(error.status, "", error_body(error, None, caller.scopes))

    async def _asked(self, endpoint: Endpoint, caller: Caller, line: BatchLine, gone: asyncio.Event) -> LineAnswer:
        request_id = f"req-{secrets.token_hex(12)}"
        context = RequestContext(request_id)
        enter(context)
        watch = RequestWatch(endpoint, context, time.monotonic)
        scope, code = self._scope(caller, request_id), 500
        request = Request(scope, _received(json.dumps(line.body).encode(), gone))
        usage: TokenUsage | None = None
        try:
            response = await forward(endpoint, request, is_counted=False)
            code, body = response.status_code, _body(response)
            usage = usage_left_on(scope["state"]) or usage_in_answer(bytes(response.body))
            return LineAnswer(code, request_id, body)
        except AmalgamError as error:
            code = error.status
            if error.retry_after_s is not None:
                raise
            return LineAnswer(code, request_id, error_body(error, request_id, caller.scopes))
        except Exception:
            logger.exception("batch_line_failed request=%s", request_id)
            return LineAnswer(500, request_id, error_body(InternalError(), request_id))
        finally:
            charge(scope, watch, usage, code)

    def _scope(self, caller: Caller, request_id: str) -> Scope:
        return inner_scope(self._app, [(b"content-type", b"application/json")]) | {
            "amalgam.client": caller.client,
            "amalgam.request_id": request_id,
            CALLER: caller,
        }


def _why_not(line: dict[str, Any], custom_id: str | None, endpoint: str) -> str | None:
    """Why a line is no request; None: it is one."""
    if custom_id is None:
        return f"needs a custom_id, a text of 1 to {MAX_CUSTOM_ID} characters"
    if line.get("method") != "POST":
        return "needs the method POST"
    if line.get("url") != endpoint:
        return f"needs the url {endpoint}, which is the batch's endpoint"
    body = line.get("body")
    if not isinstance(body, dict):
        return "needs a body, which is a JSON object"
    if body.get("stream"):
        return "asks for a stream, which a file cannot hold; leave stream out of its body"
    return None


def _received(body: bytes, gone: asyncio.Event) -> Callable[[], Any]:
    """What a client sends who stays until ``gone``."""
    parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if parts:
            return parts.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    return receive


def _waiting(suspended: KeySuspended | TenantSuspended) -> KeySuspended | TenantSuspended:
    """The same error, after which the line is asked again."""
    suspended.retry_after_s = _SUSPENDED_S
    return suspended


def _body(response: Response) -> dict[str, Any]:
    return cast(dict[str, Any], json.loads(bytes(response.body))) if response.body else {}


def _forget(call: "asyncio.Task[Any]") -> None:
    """Whatever a call that nobody waits for came to has been asked about, so that nothing complains."""
    with contextlib.suppress(asyncio.CancelledError):
        call.exception()
