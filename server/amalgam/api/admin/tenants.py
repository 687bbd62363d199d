"""Tenants and their keys on the admin plane: create, change, rotate, revoke, list."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import JSONResponse

from amalgam.api.admin.audited import about, made
from amalgam.api.admin.idempotency import keep_instead
from amalgam.api.admin.in_scope import sees_every_tenant, tenant_of
from amalgam.api.admin.kit import ADMINISTERS, ID_PATTERN, READS, IdCursor, ShortLimit, admin_router
from amalgam.api.admin.tenant_models import (
    IssuedKeyView,
    KeyBody,
    KeyPageView,
    KeyView,
    RotateBody,
    RotatedView,
    TenantBody,
    TenantPageView,
    TenantPatchBody,
    TenantView,
)
from amalgam.api.state import services
from amalgam.domain.tenant import TENANT_PATTERN, TenantChange

_TenantId = Annotated[str, Path(pattern=f"^{TENANT_PATTERN}$", description="tenant", examples=["acme"])]
_KeyId = Annotated[str, Path(pattern=ID_PATTERN, description="id of a key", examples=["3f9a1c5e7b2d4680"])]
_UNKEPT: Final = {"Cache-Control": "no-store"}
_ISSUED: Final[dict[int | str, dict[str, Any]]] = {
    201: {"model": IssuedKeyView, "description": "The key; no other answer has its secret"}
}
_ROTATED: Final[dict[int | str, dict[str, Any]]] = {
    200: {"model": RotatedView, "description": "Both keys; no other answer has the successor's secret"}
}
_OfTenant = Annotated[str | None, Query(pattern=f"^{TENANT_PATTERN}$", description="of this tenant alone")]


def router() -> APIRouter:
    """The routes below ``/admin/v1/tenants`` and ``/admin/v1/keys``."""
    routes = admin_router("Tenants and keys")
    _add_tenants(routes)
    _add_tenant_reading(routes)
    _add_keys(routes)
    _add_key_reading(routes)
    return routes


def _add_tenants(routes: APIRouter) -> None:
    @routes.post("/tenants", dependencies=ADMINISTERS, status_code=201, summary="Create a tenant")
    async def create(request: Request, body: TenantBody) -> TenantView:
        await about(request, body.id)
        given = TenantChange(**{name: getattr(body, name) for name in body.model_fields_set - {"id"}})
        return TenantView.of(await services(request).tenants.create(body.id, given))

    @routes.patch("/tenants/{tenant_id}", dependencies=ADMINISTERS, summary="Change a tenant")
    async def change(request: Request, tenant_id: _TenantId, body: TenantPatchBody) -> TenantView:
        asked = {name: getattr(body, name) for name in body.model_fields_set}
        # Only the group may be taken away; null of the others is the same as leaving them out.
        given = {name: value for name, value in asked.items() if value is not None or name == "cache_group"}
        return TenantView.of(await services(request).tenants.update(tenant_id, TenantChange(**given)))

    @routes.delete("/tenants/{tenant_id}", dependencies=ADMINISTERS, summary="Delete a tenant and revoke its keys")
    async def delete(request: Request, tenant_id: _TenantId) -> TenantView:
        return TenantView.of(await services(request).tenants.delete(tenant_id))


def _add_tenant_reading(routes: APIRouter) -> None:
    @routes.get("/tenants", dependencies=READS, summary="List tenants")
    async def list_tenants(request: Request, limit: ShortLimit = 100, cursor: IdCursor = None) -> TenantPageView:
        tenants = services(request).tenants
        if not sees_every_tenant(request):
            return TenantPageView.of([await tenants.tenant(tenant_of(request))], TenantView.of, None)
        page = await tenants.list_tenants(limit, cursor)
        return TenantPageView.of(page.items, TenantView.of, page.next_cursor)

    @routes.get("/tenants/{tenant_id}", dependencies=READS, summary="One tenant")
    async def show(request: Request, tenant_id: _TenantId) -> TenantView:
        return TenantView.of(await services(request).tenants.tenant(tenant_id))


def _add_keys(routes: APIRouter) -> None:
    @routes.post(
        "/keys",
        dependencies=ADMINISTERS,
        status_code=201,
        summary="Create a key; its secret is shown once",
        responses=_ISSUED,
    )
    async def create(request: Request, body: KeyBody) -> JSONResponse:
        issued = await services(request).tenants.issue(body.asked())
        made(request, issued.key.id)
        keep_instead(request, IssuedKeyView.issued(issued, has_secret=False).model_dump_json().encode())
        return JSONResponse(IssuedKeyView.issued(issued).model_dump(mode="json"), 201, _UNKEPT)

    @routes.post(
        "/keys/{key_id}:rotate",
        dependencies=ADMINISTERS,
        summary="Put a successor beside a key",
        responses=_ROTATED,
    )
    async def rotate(request: Request, key_id: _KeyId, body: RotateBody | None = None) -> JSONResponse:
        body = body or RotateBody()
        rotation = await services(request).tenants.rotate(
            key_id, overlap_s=body.overlap_s, lifetime_s=body.expires_in_s
        )
        keep_instead(request, RotatedView.of(rotation, has_secret=False).model_dump_json().encode())
        return JSONResponse(RotatedView.of(rotation).model_dump(mode="json"), 200, _UNKEPT)

    @routes.post("/keys/{key_id}:revoke", dependencies=ADMINISTERS, summary="End a key at once")
    async def revoke(request: Request, key_id: _KeyId) -> KeyView:
        return KeyView.of(await services(request).tenants.revoke(key_id))


def _add_key_reading(routes: APIRouter) -> None:
    @routes.get("/keys", dependencies=READS, summary="List keys, without their secrets")
    async def list_keys(
        request: Request, tenant: _OfTenant = None, limit: ShortLimit = 100, cursor: IdCursor = None
    ) -> KeyPageView:
        if not sees_every_tenant(request):
            # Of another tenant there is nothing to be told, not even that it is there.
            if tenant not in (None, tenant_of(request)):
                return KeyPageView.of((), KeyView.of, None)
            tenant = tenant_of(request)
        page = await services(request).tenants.list_keys(tenant, limit, cursor)
        return KeyPageView.of(page.items, KeyView.of, page.next_cursor)

    @routes.get("/keys/{key_id}", dependencies=READS, summary="One key, without its secret")
    async def show(request: Request, key_id: _KeyId) -> KeyView:
        return KeyView.of(await services(request).tenants.key(key_id))
