"""``/v1/load_lora_adapter`` and ``/v1/unload_lora_adapter`` as vLLM's server has them, for tools written for it.

The same bodies and the same words of success, over our own rules: the admin key, confined sources, validation before
the engine, and a new version where vLLM would change weights in place under running requests.
"""

import re
from typing import Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import PlainTextResponse

from amalgam.api.access import caller_of
from amalgam.api.admin.audited import about
from amalgam.api.admin.idempotency import request_key
from amalgam.api.admin.in_scope import scopes_of
from amalgam.api.admin.kit import ADMINISTERS, NO_NUL, PUBLISHES, Body, admin_router
from amalgam.api.state import services
from amalgam.domain.adapter import is_name
from amalgam.errors.adapters import AdapterNotFound, NameTaken
from amalgam.errors.http import LoraAlreadyLoaded
from amalgam.errors.requests import FieldRefused
from amalgam.services.new_versions import NewVersion

_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TEXT: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "vLLM's words of success"}
}


class _LoraBody(Body):
    """What both have in common."""

    lora_name: str = Field(min_length=1, max_length=256, description="adapter name", examples=["sql"])


class LoadBody(_LoraBody):
    """What vLLM's clients send to load an adapter."""

    lora_path: str = Field(
        min_length=1,
        max_length=4096,
        pattern=NO_NUL,
        description="a folder below AMALGAM_SOURCE_ROOTS, a hub id, or any source of the admin plane",
        examples=["/srv/adapters/sql"],
    )
    load_inplace: bool = Field(default=False, description="add a version where the adapter exists")
    is_3d_lora_weight: bool = Field(
        default=False, description="whether weights are three-dimensional; only false is served"
    )
    base_model_name: str | None = Field(
        default=None, max_length=4096, description="informative: the adapter's shapes are compared with the base model"
    )


class UnloadBody(_LoraBody):
    """What vLLM's clients send to unload an adapter."""

    lora_int_id: int | None = Field(default=None, description="informative: the name decides, as in vLLM")


def source_of(lora_path: str) -> str:
    """The source that ``lora_path`` means: it may be one, be a hub id, or be a folder of this machine."""
    if "://" in lora_path:
        return lora_path
    if _HUB_ID.fullmatch(lora_path):
        return f"hf://{lora_path}"
    return f"file://{quote(lora_path)}"


def router() -> APIRouter:
    """The two routes."""
    routes = admin_router("vLLM's adapter routes", prefix="/v1")
    _add_load(routes)
    _add_unload(routes)
    return routes


def _add_load(routes: APIRouter) -> None:
    @routes.post(
        "/load_lora_adapter",
        dependencies=ADMINISTERS,
        summary="Register an adapter from a source",
        response_class=PlainTextResponse,
        responses=_TEXT,
    )
    async def load(request: Request, body: LoadBody) -> PlainTextResponse:
        if body.is_3d_lora_weight:
            raise FieldRefused("is_3d_lora_weight", "must be false; LoRA on three-dimensional weights is not served")
        await about(request, body.lora_name)
        new = NewVersion(
            body.lora_name,
            if_absent=not body.load_inplace,
            request_key=request_key(request),
            stored_by=caller_of(request).stored_by,
        )
        try:
            _, created = await services(request).adapters.take_source(new, source_of(body.lora_path))
        except NameTaken:
            if services(request).catalog.alias(body.lora_name) is not None:
                raise
            raise LoraAlreadyLoaded(body.lora_name) from None
        if not created and not body.load_inplace:
            raise LoraAlreadyLoaded(body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


def _add_unload(routes: APIRouter) -> None:
    @routes.post(
        "/unload_lora_adapter",
        dependencies=PUBLISHES,
        summary="Delete an adapter; running requests finish",
        response_class=PlainTextResponse,
        responses=_TEXT,
    )
    async def unload(request: Request, body: UnloadBody) -> PlainTextResponse:
        scopes = scopes_of(request)
        if not is_name(body.lora_name) or not scopes.name(body.lora_name):
            raise AdapterNotFound(body.lora_name)
        await about(request, body.lora_name)
        await services(request).adapters.delete(body.lora_name, scopes=scopes)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")
