"""The OpenAI plane: read, check, resolve the model, and let vLLM's own handler answer."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Final

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response

from amalgam.api.error_document import ERRORS
from amalgam.api.fields import check_fields
from amalgam.api.held_response import HeldResponse
from amalgam.api.model_cards import PAGE, ModelPages, alias_card, blend_card, model_card
from amalgam.api.state import services
from amalgam.api.strict_json import parse_object, require_json
from amalgam.engine.protocol import Endpoint
from amalgam.errors.requests import ModelNotFound
from amalgam.services.catalog import Target
from amalgam.telemetry.context import note_adapter
from amalgam.telemetry.request_watch import CLIENT_GONE

_ROUTES: tuple[tuple[str, Endpoint, str], ...] = (
    ("/v1/chat/completions", "chat_completions", "Answer a chat"),
    ("/v1/completions", "completions", "Continue a text"),
    ("/v1/responses", "responses", "Answer in the Responses dialect"),
    ("/v1/messages", "messages", "Answer in Anthropic's dialect"),
    ("/v1/embeddings", "embeddings", "Embed texts, where the model can"),
    ("/tokenize", "tokenize", "Text to token ids"),
    ("/detokenize", "detokenize", "Token ids to text"),
)
ENDPOINT_PATHS: Final[Mapping[str, Endpoint]] = {path: endpoint for path, endpoint, _ in _ROUTES}
"""The paths of inference."""
_WITHOUT_BATCH: Final = frozenset({"tokenize", "detokenize"})


async def read_json(request: Request) -> dict[str, Any]:
    """The body as a JSON object.

    Raises:
        UnsupportedMediaType: not sent as JSON.
        FieldRefused: not JSON as `parse_json` reads it, or not an object.
    """
    require_json(request)
    return parse_object(await request.body())


async def forward(endpoint: Endpoint, request: Request) -> Response:
    """One request, from its body to a response that holds its version until the last byte."""
    house = services(request)
    body = await read_json(request)
    check_fields(endpoint, body, house.catalog.base.vocabulary_size)
    async with AsyncExitStack() as stack:
        client = request.scope.get("amalgam.client", "")
        held = house.inference.admit(
            body.get("model"),
            user=_user(endpoint, body),
            client=client,
            generates=endpoint not in _WITHOUT_BATCH,
            gone=lambda: _client_gone(request),
        )
        target = await stack.enter_async_context(held)
        note_adapter(target.engine_name)
        response = await house.engine.call(endpoint, body | {"model": target.engine_name}, request)
        if response is None:
            return Response(status_code=CLIENT_GONE)
        response.headers["x-amalgam-adapter"] = target.engine_name
        if target.recipe is not None:
            response.headers["x-amalgam-recipe"] = target.recipe
        return HeldResponse(response, stack.pop_all())


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


def _endpoint(endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    async def route(request: Request) -> Response:
        return await forward(endpoint, request)

    return route


def router(started_at: float) -> APIRouter:
    """The routes; ``started_at`` (Unix seconds) is the base model's ``created``."""
    routes = APIRouter(responses=ERRORS)
    pages = ModelPages(int(started_at))
    for path, endpoint, summary in _ROUTES:
        routes.add_api_route(
            path,
            _endpoint(endpoint),
            methods=["POST"],
            summary=summary,
            operation_id=endpoint,
            tags=["OpenAI plane"],
            openapi_extra={"requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}}},
        )

    @routes.get("/v1/models", summary="What can be asked for", tags=["OpenAI plane"])
    async def list_models(
        request: Request, limit: int = Query(PAGE, ge=1, le=PAGE), after: str | None = Query(None, max_length=256)
    ) -> Response:
        page = await pages.page(services(request).catalog, limit, after)
        return Response(page, media_type="application/json")

    @routes.get("/v1/models/{model:path}", summary="One model", tags=["OpenAI plane"])
    async def show_model(request: Request, model: str) -> JSONResponse:
        house = services(request)
        catalog, base = house.catalog, house.catalog.base.served_name
        if not model.strip():
            raise ModelNotFound(model)
        if (alias := catalog.alias(model)) is not None:
            return JSONResponse(alias_card(alias, base) | {"id": model})
        target = house.inference.resolve(model)
        created = int(target.version.created_at.timestamp()) if target.version else int(started_at)
        if target.recipe is not None:
            return JSONResponse(blend_card(model, target, base, created))
        return JSONResponse(model_card(Target(model, target.version), base, created))

    return routes
