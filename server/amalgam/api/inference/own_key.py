"""`/v1/me`: what a key is told of itself, so that whoever holds it need not try what it may do."""

from collections.abc import Sequence
from typing import Final, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

from amalgam.api.access import HOLDER, Caller, caller_of
from amalgam.api.admin.kit import Timestamp
from amalgam.api.errors import ERRORS
from amalgam.api.inference.spending import payer_of
from amalgam.api.state import services
from amalgam.domain.limits import Bucket, Measure
from amalgam.domain.scopes import BASE, BlendScope, Scopes
from amalgam.domain.tenant import Key, Role, Tenant
from amalgam.services.limits import LimitView

_FROM_WIDEST: Final = (Role.ADMIN, Role.PUBLISHER, Role.READER, Role.CLIENT)


class LimitLeftView(BaseModel):
    """One limit that the key's requests have to pass."""

    whose: str = Field(description="whose limit it is, as errors name it", examples=["The tenant 'acme'"])
    measure: Measure = Field(examples=["tokens_per_day"])
    limit: int = Field(examples=[100_000])
    left: int = Field(description="what is left of it now, at all servers together", examples=[82_400])
    full_in_s: float | None = Field(
        description="seconds until all of a rate may be used again, if nothing is used meanwhile",
        examples=[None],
    )
    ends_at: Timestamp | None = Field(description="when a budget begins anew", examples=["2030-02-01T00:00:00+00:00"])

    @classmethod
    def of(cls, bucket: Bucket, view: LimitView) -> "LimitLeftView":
        """The view of ``bucket``."""
        full_in_s = round(view.full_in_s, 1) if bucket.measure.is_rate else None
        return cls(
            whose=bucket.owner,
            measure=bucket.measure,
            limit=view.limit,
            left=view.left,
            full_in_s=full_in_s,
            ends_at=bucket.ends_at,
        )


class OwnKeyView(BaseModel):
    """The key that asks."""

    object: Literal["key"] = "key"
    id: str = Field(description="id as records name it; empty on a server without keys", examples=["3f9a1c5e7b2d4680"])
    name: str = Field(description="name for people; empty for keys of the environment", examples=["production"])
    role: Role = Field(description="role of the key; admin on a server without keys", examples=["client"])
    tenant: str = Field(description="tenant whose it is", examples=["acme"])
    models: tuple[str, ...] = Field(description="what it may ask for, by pattern", examples=[["acme.*"]])
    blends: BlendScope = Field(examples=["own"])
    expires_at: Timestamp | None = Field(examples=[None])
    limits: tuple[LimitLeftView, ...] = Field(description="limits of key and tenant, but for stored bytes")

    @classmethod
    def of(cls, caller: Caller, key: Key | None, limits: Sequence[LimitLeftView]) -> "OwnKeyView":
        """The view of who asks."""
        return cls(
            id=caller.key_id,
            name="" if key is None else key.name,
            role=next(role for role in _FROM_WIDEST if role in caller.roles),
            tenant=caller.tenant_id,
            models=caller.scopes.models,
            blends=caller.scopes.blends,
            expires_at=None if key is None else key.expires_at,
            limits=tuple(limits),
        )


def router() -> APIRouter:
    """The route."""
    routes = APIRouter(responses=ERRORS, tags=["OpenAI plane"])

    @routes.get("/v1/me", dependencies=[Depends(HOLDER)], summary="The key that asks: its role, scopes and limits")
    async def show(request: Request) -> OwnKeyView:
        app_services, caller = services(request), caller_of(request)
        payer = payer_of(app_services, request)
        if payer is None:
            return OwnKeyView.of(caller, None, ())
        found = await app_services.limits.standings(payer, _met(payer.tenant, caller.scopes))
        return OwnKeyView.of(caller, payer.key, [LimitLeftView.of(*one) for one in found])

    return routes


def _met(tenant: Tenant, scopes: Scopes) -> list[int]:
    """The places of the tenant's limits by name that are all about what the key may know of."""
    patterns = [entry.pattern for entry in tenant.model_limits]
    return [
        place
        for place, pattern in enumerate(patterns)
        # A star or a question mark is a letter like others to the patterns of a scope that cover it.
        if (scopes.base if pattern == BASE else scopes.asked(pattern))
    ]
