"""The OpenAI plane: read, check, resolve the model, and let vLLM's own handler answer."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final, cast

from fastapi import APIRouter, Depends, Query, Request
from fastapi.routing import APIRoute
from starlette.responses import JSONResponse, Response, StreamingResponse

from amalgam.api.access import CLIENT, Caller, access_of, caller_of
from amalgam.api.errors import ERRORS
from amalgam.api.fields.by_endpoint import FIELDS
from amalgam.api.fields.table import IGNORED_HEADER, header_value
from amalgam.api.inference.body_reader import IGNORED
from amalgam.api.inference.deadline import Deadline
from amalgam.api.inference.hidden_names import HiddenName
from amalgam.api.inference.model_cards import PAGE, PART, ModelPages, alias_card, blend_card, model_card
from amalgam.api.inference.request_models import request_model
from amalgam.api.inference.spending import begin_spending, blend_counter
from amalgam.api.state import Services, services
from amalgam.api.transport.held_response import HeldResponse
from amalgam.domain.alias import Alias
from amalgam.engine.protocol import CallProfile, Endpoint
from amalgam.errors.requests import ModelNotFound
from amalgam.routing.request_text import said_in
from amalgam.services.cache_salts import cache_owner
from amalgam.services.catalog import Target
from amalgam.telemetry.context import note_adapter, note_route, note_tenant
from amalgam.telemetry.metrics import OTHER
from amalgam.telemetry.request_watch import CLIENT_GONE

_ROUTES: tuple[tuple[str, Endpoint, str], ...] = (
    ("/v1/chat/completions", "chat_completions", "Answer a chat"),
    ("/v1/completions", "completions", "Continue a text"),
    ("/v1/responses", "responses", "Answer in the Responses dialect"),
    ("/v1/messages", "messages", "Answer in Anthropic's dialect"),
    ("/v1/messages/count_tokens", "count_tokens", "Count a request's tokens in Anthropic's dialect"),
    ("/v1/embeddings", "embeddings", "Embed texts, where the model can"),
    ("/tokenize", "tokenize", "Text to token ids"),
    ("/detokenize", "detokenize", "Token ids to text"),
)
ENDPOINT_PATHS: Final[Mapping[str, Endpoint]] = {path: endpoint for path, endpoint, _ in _ROUTES}
"""It has the paths of inference."""
ROUTE_HEADER: Final = "x-amalgam-route"
"""It tells how an alias' router chose, as JSON."""
_WITHOUT_BATCH: Final = frozenset({"count_tokens", "tokenize", "detokenize"})


class BodyInDocument(APIRoute):
    """A route whose function reads the body itself; the model in its signature is for the OpenAPI document alone.

    The body is read once the request has been admitted, within bounds of its own, so that FastAPI must not touch it.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The marker's check, then the function; there is nothing else to prepare for it."""
        access, function = access_of(self), self.endpoint
        assert access is not None, f"{self.path} does not say whom it answers"

        async def handle(request: Request) -> Response:
            await access(request)
            return cast(Response, await function(request, None))

        return handle


async def forward(endpoint: Endpoint, request: Request, *, is_counted: bool = True) -> Response:
    """One request, from its body to a response that holds its version while the engine works on it.

    Args:
        endpoint: that is asked.
        request: that asks.
        is_counted: whether it counts among the requests that may be in progress; else somebody else bounds them.
    """
    app_services, caller = services(request), caller_of(request)
    note_tenant(caller.tenant_id)
    clock = asyncio.get_running_loop().time
    deadline = Deadline.of(request.headers, clock())
    async with AsyncExitStack() as admitted, AsyncExitStack() as held:
        # Before the body is read: what is refused costs next to nothing, and bodies in memory are bounded too.
        if is_counted:
            admitted.enter_context(app_services.inference.admission.enter(caller.client, caller.tenant_id))
        body: Mapping[str, Any] = await app_services.bodies.read(endpoint, request)
        async with deadline.kept(app_services.metrics):
            spending = await begin_spending(app_services, endpoint, request, body, sequences_of(body))
            body = held.enter_context(spending).body
            target = await held.enter_async_context(
                app_services.inference.admit(
                    body.get("model"),
                    user=_user(endpoint, body),
                    said=partial(said_in, body),
                    client=caller.client,
                    generates=endpoint not in _WITHOUT_BATCH,
                    sequences=sequences_of(body),
                    within_s=deadline.left_s(clock()),
                    gone=lambda: _client_gone(request),
                    before_build=blend_counter(app_services, spending),
                    scopes=caller.scopes,
                    tenant=caller.tenant_id,
                    weight=spending.weight,
                )
            )
        _note_target(target, app_services, endpoint, body)
        asked, profiles = await _for_engine(app_services, endpoint, body, target, caller)
        spending.is_asked = True
        response = await app_services.engine.call(endpoint, asked, deadline.request(request), *profiles)
        if response is None:
            deadline.require_time(clock(), app_services.metrics)
            return Response(status_code=CLIENT_GONE)
        if isinstance(response := _named(response, target, spending.headers), StreamingResponse):
            return HeldResponse(response, held.pop_all(), admitted.pop_all())
        return response


async def _for_engine(
    app_services: Services, endpoint: Endpoint, body: Mapping[str, Any], target: Target, caller: Caller
) -> tuple[dict[str, Any], tuple[CallProfile, ...]]:
    """The body as the engine is asked: under the version's own name, with its profile, its bounds and its salt."""
    named = {**body, "model": target.engine_name}
    changed, profile = await app_services.profiles.applied(endpoint, named, caller.client)
    bounded = app_services.bodies.bounded(endpoint, changed)
    asked = app_services.salts.salted(endpoint, bounded, _cache_owner(app_services, caller))
    return asked, () if profile is None else (profile,)


def _note_target(target: Target, app_services: Services, endpoint: Endpoint, body: Mapping[str, Any]) -> None:
    """Say what answers the current request, for logs and numbers, and give its shadows a copy."""
    app_services.shadows.copy(endpoint, body)
    note_adapter(target.engine_name)
    if target.route is not None:
        note_route(target.route.reason)


def _named(response: Response, target: Target, headers: Mapping[str, str]) -> Response:
    """The answer with what gave it in its headers, under the name by which the caller may know it."""
    response.headers.update(headers)
    response.headers["x-amalgam-adapter"] = target.shown or target.engine_name
    if target.recipe is not None:
        response.headers["x-amalgam-recipe"] = target.recipe
    if target.route is not None:
        response.headers[ROUTE_HEADER] = target.route.header()
    if target.shown is not None:
        response = HiddenName(target.engine_name, target.shown).in_response(response)
    return response


def _cache_owner(app_services: Services, caller: Caller) -> str:
    """Whose prompts share the prefix cache. A key of the environment is not in the directory."""
    keys = app_services.keys
    tenant = keys.tenant(caller.tenant_id) if keys.key(caller.key_id) is not None else None
    return cache_owner(caller.client, tenant)


def sequences_of(body: Mapping[str, Any]) -> int:
    """How many sequences a checked body has the engine run at once: every choice of every prompt."""
    prompts = body.get("prompt")
    count = len(prompts) if isinstance(prompts, list) and prompts and not isinstance(prompts[0], int) else 1
    return count * (body.get("n") or 1)


async def _client_gone(request: Request) -> None:
    """Return when the client has left. The body has been read: nothing else can come."""
    while (await request.receive())["type"] != "http.disconnect":
        continue


def _user(endpoint: Endpoint, body: Mapping[str, Any]) -> str | None:
    """Who asks, where the request says so: ``user``, in Anthropic's dialect ``metadata.user_id``."""
    metadata = body.get("metadata")
    in_metadata = metadata.get("user_id") if endpoint == "messages" and isinstance(metadata, dict) else None
    user = body.get("user") or in_metadata
    return user if isinstance(user, str) else None


def _endpoint(endpoint: Endpoint) -> Callable[[Request, Any], Awaitable[Response]]:
    model = request_model(endpoint)

    async def route(request: Request, body: model) -> Response:  # type: ignore[valid-type]  # made of a table
        response = await forward(endpoint, request)
        ignored: list[str] = request.scope.get(IGNORED, ())
        if ignored:
            response.headers[IGNORED_HEADER] = header_value(ignored)
            services(request).metrics.fields_ignored(endpoint, [n if n in FIELDS[endpoint] else OTHER for n in ignored])
        return response

    return route


_LIMIT: Final = (
    f"most names; without it all of them, up to {PAGE:,}, or {PART:,} where the registry holds more than the server "
    "keeps in memory"
)


def router(started_at: float) -> APIRouter:
    """The routes; ``started_at`` (Unix seconds) is the base model's ``created``."""
    routes = APIRouter(responses=ERRORS, dependencies=[Depends(CLIENT)])
    pages = ModelPages(int(started_at))
    for path, endpoint, summary in _ROUTES:
        routes.add_api_route(
            path,
            _endpoint(endpoint),
            methods=["POST"],
            summary=summary,
            operation_id=endpoint,
            tags=["OpenAI plane"],
            route_class_override=BodyInDocument,
        )

    @routes.get("/v1/models", summary="What can be asked for", tags=["OpenAI plane"])
    async def list_models(
        request: Request,
        limit: int | None = Query(None, ge=1, le=PAGE, description=_LIMIT),
        after: str | None = Query(None, max_length=256, description="the last name of the page before"),
    ) -> Response:
        page = await pages.page(services(request).catalog, limit, after, caller_of(request).scopes)
        return Response(page, media_type="application/json")

    @routes.get("/v1/models/{model:path}", summary="One model", tags=["OpenAI plane"])
    async def show_model(request: Request, model: str) -> JSONResponse:
        app_services, caller = services(request), caller_of(request)
        catalog, base = app_services.catalog, app_services.catalog.base.served_name
        if not model.strip():
            raise ModelNotFound(model)
        scopes = caller.scopes
        found = await app_services.inference.found(
            lambda: catalog.alias(model, scopes) or app_services.inference.resolve(model, scopes, caller.tenant_id)
        )
        if isinstance(found, Alias):
            return JSONResponse(alias_card(catalog.shown(found, scopes), base) | {"id": model})
        created = int(found.version.created_at.timestamp()) if found.version else int(started_at)
        if found.recipe is not None:
            return JSONResponse(blend_card(model, found, base, created))
        return JSONResponse(model_card(Target(model, found.version), base, created))

    return routes
