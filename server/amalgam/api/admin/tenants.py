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
    KeyPatchBody,
    KeyView,
    RotateBody,
    RotatedView,
    TenantBody,
    TenantPageView,
    TenantPatchBody,
    TenantView,
)
from amalgam.api.state import services
from amalgam.domain.stored_bytes import StoredBytes
from amalgam.domain.tenant import TENANT_PATTERN, Key, Tenant, TenantChange, TenantPage

_TenantId = Annotated[str, Path(pattern=f"^{TENANT_PATTERN}$", description="tenant", examples=["acme"])]
_KeyId = Annotated[str, Path(pattern=ID_PATTERN, description="id of a key", examples=["3f9a1c5e7b2d4680"])]
_UNKEPT: Final = {"Cache-Control": "no-store"}
_ISSUED: Final[dict[int | str, dict[str, Any]]] = {
    201: {"model": IssuedKeyView, "description": "The key; no other answer has its secret"}
}
_ROTATED: Final[dict[int | str, dict[str, Any]]] = {
    200: {"model": RotatedView, "description": "Both keys; no other answer has the successor's secret"}
}
_OfTenant = Annotated[str | None, Query(pattern=f"^{TENANT_PATTERN}$", description="keys of this tenant alone")]


def router() -> APIRouter:
    """The routes below ``/admin/v1/tenants`` and ``/admin/v1/keys``."""
    routes = admin_router("Tenants and keys")
    _add_tenants(routes)
    _add_tenant_reading(routes)
    _add_keys(routes)
    _add_key_changes(routes)
    _add_key_reading(routes)
    return routes


def _add_tenants(routes: APIRouter) -> None:
    @routes.post("/tenants", dependencies=ADMINISTERS, status_code=201, summary="Create a tenant")
    async def create(request: Request, body: TenantBody) -> TenantView:
        await about(request, body.id)
        given = TenantChange(**{name: getattr(body, name) for name in body.model_fields_set - {"id"}})
        return await _shown(request, await services(request).tenants.create(body.id, given))

    @routes.patch("/tenants/{tenant_id}", dependencies=ADMINISTERS, summary="Change a tenant")
    async def change(request: Request, tenant_id: _TenantId, body: TenantPatchBody) -> TenantView:
        asked = {name: getattr(body, name) for name in body.model_fields_set}
        # Only the group may be taken away; null of the others is the same as leaving them out.
        given = {name: value for name, value in asked.items() if value is not None or name == "cache_group"}
        return await _shown(request, await services(request).tenants.update(tenant_id, TenantChange(**given)))

    @routes.delete("/tenants/{tenant_id}", dependencies=ADMINISTERS, summary="Delete a tenant and revoke its keys")
    async def delete(request: Request, tenant_id: _TenantId) -> TenantView:
        return await _shown(request, await services(request).tenants.delete(tenant_id))


def _add_tenant_reading(routes: APIRouter) -> None:
    @routes.get("/tenants", dependencies=READS, summary="List tenants")
    async def list_tenants(request: Request, limit: ShortLimit = 100, cursor: IdCursor = None) -> TenantPageView:
        tenants = services(request).tenants
        if sees_every_tenant(request):
            page = await tenants.list_tenants(limit, cursor)
        else:
            page = TenantPage((await tenants.tenant(tenant_of(request)),), None)
        stored = await tenants.stored_of_tenants(page.items)
        return TenantPageView.of(page.items, lambda one: TenantView.of(one, stored[one.id]), page.next_cursor)

    @routes.get("/tenants/{tenant_id}", dependencies=READS, summary="One tenant")
    async def show(request: Request, tenant_id: _TenantId) -> TenantView:
        return await _shown(request, await services(request).tenants.tenant(tenant_id))


async def _shown(request: Request, tenant: Tenant) -> TenantView:
    stored = await services(request).tenants.stored_of_tenants((tenant,))
    return TenantView.of(tenant, stored[tenant.id])


async def _shown_key(request: Request, key: Key) -> KeyView:
    return KeyView.of(key, await _stored(request, key))


async def _stored(request: Request, key: Key) -> StoredBytes:
    return (await services(request).tenants.stored_of_keys((key,)))[key.id]


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
        tenants = services(request).tenants
        # Before there is a secret, so that nothing can fail once it has to be shown.
        stored = await _stored(request, await tenants.key(key_id))
        rotation = await tenants.rotate(key_id, overlap_s=body.overlap_s, lifetime_s=body.expires_in_s)
        keep_instead(request, RotatedView.of(rotation, stored, has_secret=False).model_dump_json().encode())
        return JSONResponse(RotatedView.of(rotation, stored).model_dump(mode="json"), 200, _UNKEPT)


def _add_key_changes(routes: APIRouter) -> None:
    @routes.post("/keys/{key_id}:revoke", dependencies=ADMINISTERS, summary="End a key at once")
    async def revoke(request: Request, key_id: _KeyId) -> KeyView:
        return await _shown_key(request, await services(request).tenants.revoke(key_id))

    @routes.patch("/keys/{key_id}", dependencies=ADMINISTERS, summary="Change a key, but for its tenant and role")
    async def change(request: Request, key_id: _KeyId, body: KeyPatchBody) -> KeyView:
        return await _shown_key(request, await services(request).tenants.update_key(key_id, body.change()))


def _add_key_reading(routes: APIRouter) -> None:
    @routes.get("/keys", dependencies=READS, summary="List keys, without their secrets")
    async def list_keys(
        request: Request, tenant: _OfTenant = None, limit: ShortLimit = 100, cursor: IdCursor = None
    ) -> KeyPageView:
        if not sees_every_tenant(request):
            # Of another tenant there is nothing to be told, not even that it is there.
            if tenant not in (None, tenant_of(request)):
                return KeyPageView(data=(), next_cursor=None)
            tenant = tenant_of(request)
        tenants = services(request).tenants
        page = await tenants.list_keys(tenant, limit, cursor)
        stored = await tenants.stored_of_keys(page.items)
        return KeyPageView.of(page.items, lambda one: KeyView.of(one, stored[one.id]), page.next_cursor)

    @routes.get("/keys/{key_id}", dependencies=READS, summary="One key, without its secret")
    async def show(request: Request, key_id: _KeyId) -> KeyView:
        return await _shown_key(request, await services(request).tenants.key(key_id))
