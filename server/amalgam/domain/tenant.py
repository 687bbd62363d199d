"""Who uses the server: tenants, their keys, what a key may do, and the limits of both."""

import hashlib
import hmac
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from amalgam.domain.scopes import MAX_PATTERNS, BlendScope, NamePattern, Scopes
from amalgam.errors.tenants import ScopesUnfit

BUILT_IN_TENANT: Final = "default"
"""The keys of the environment are this tenant's; it is always there, and never deleted."""
TENANT_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
TenantId = Annotated[str, Field(pattern=f"^{TENANT_PATTERN}$")]
KEY_ID_DIGITS: Final = 16
"""The id of a key has so many hex digits; keys of the environment have ids of another form."""
SECRET_BYTES: Final = 32
TenantState = Literal["active", "suspended", "deleted"]
KeyState = Literal["active", "suspended", "revoked"]
KeyEnd = Literal["expired", "key_suspended", "suspended"]
"""It tells why a key that is known opens nothing: its time is over, it is suspended, or its tenant is."""
MAX_LIMIT: Final = 1 << 53
"""Every reader of JSON takes it for the number it is."""
_Count = Annotated[int, Field(ge=1, le=MAX_LIMIT)]


class Role(StrEnum):
    """What a key is for. Its scopes narrow what the role may be used on."""

    CLIENT = "client"
    """It may ask for inference."""
    PUBLISHER = "publisher"
    """It may ask for inference; and it registers, merges, aliases and evaluates what its scopes name."""
    READER = "reader"
    """It reads the admin plane."""
    METRICS = "metrics"
    """It reads the metrics."""
    ADMIN = "admin"
    """It may do everything."""


class Limits(BaseModel):
    """What may be used; None: no limit. All that apply to a request must let it pass: of tenant, key and name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_minute: _Count | None = None
    tokens_per_minute: _Count | None = None
    concurrent_requests: _Count | None = None
    tokens_per_day: _Count | None = None
    tokens_per_month: _Count | None = None
    blends_per_minute: _Count | None = None
    stored_bytes: _Count | None = Field(default=None, description="bytes of adapters and stored files")


NO_LIMITS: Final = Limits()


class ModelLimits(BaseModel):
    """Limits of a tenant on what it asks for by names of one pattern."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pattern: NamePattern
    limits: Limits


class Tenant(BaseModel):
    """Whoever is served, counted and limited as one.

    Attributes:
        id: what keys and records name it by; never given to another, not even after its deletion.
        name: for people.
        weight: its share under contention, in proportion to the others' weights.
        cache_group: tenants with the same one find each other's prompts in the prefix cache; None: nobody else does.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    state: TenantState = "active"
    weight: float = 1.0
    limits: Limits = NO_LIMITS
    model_limits: tuple[ModelLimits, ...] = Field(default=(), max_length=MAX_PATTERNS)
    cache_group: str | None = None
    created_at: datetime
    updated_at: datetime


class Key(BaseModel):
    """A key without its secret, which nobody can be shown a second time.

    Attributes:
        id: public; the key itself is ``ak_<id>_<secret>``.
        secret_digest: SHA-256 of the secret, in hex.
        expires_at: from then on it opens nothing; None: it does not expire.
        last_used_at: within a minute.
        successor: id of the key that it was rotated to.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    tenant: str
    name: str = ""
    secret_digest: str
    role: Role
    scopes: Scopes = Scopes()
    limits: Limits = NO_LIMITS
    state: KeyState = "active"
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    successor: str | None = None
    created_at: datetime

    @property
    def prefix(self) -> str:
        """What may be shown of the key."""
        return f"ak_{self.id}"

    @cached_property
    def _digest(self) -> bytes:
        return bytes.fromhex(self.secret_digest)

    def opens(self, secret: str) -> bool:
        """Whether ``secret`` is this key's; the time it takes tells nothing of how near it came."""
        return hmac.compare_digest(secret_digest(secret), self._digest)


class TenantChange(BaseModel):
    """What of a tenant is to be another; what is not set stays."""

    model_config = ConfigDict(frozen=True)

    name: str | None = None
    state: Literal["active", "suspended"] | None = None
    weight: float | None = None
    limits: Limits | None = None
    model_limits: tuple[ModelLimits, ...] | None = None
    cache_group: str | None = None

    def fields(self) -> dict[str, Any]:
        """What was set, as it is stored. A ``cache_group`` that was set to None is taken away."""
        return self.model_dump(mode="json", include=self.model_fields_set)


class KeyChange(BaseModel):
    """What of a key is to be another; what is not set stays. Its tenant, role and secret are what they are.

    Attributes:
        expires_in_s: seconds from now until it expires; set to None: it does not.
    """

    model_config = ConfigDict(frozen=True)

    name: str | None = None
    state: Literal["active", "suspended"] | None = None
    models: tuple[NamePattern, ...] | None = None
    blends: BlendScope | None = None
    limits: Limits | None = None
    expires_in_s: float | None = None

    @property
    def moves_end(self) -> bool:
        """Whether the key is to expire at another time than it would."""
        return "expires_in_s" in self.model_fields_set

    def applied(self, key: Key) -> Key:
        """``key`` as it is to be, but for its end. Raises ScopesUnfit."""
        scopes = Scopes(models=self.models or key.scopes.models, blends=self.blends or key.scopes.blends)
        require_fitting(key.role, scopes)
        given = {"name": self.name, "state": self.state, "limits": self.limits}
        changed = {field: value for field, value in given.items() if value is not None}
        return key.model_copy(update={"scopes": scopes} | changed)


def require_fitting(role: Role, scopes: Scopes) -> None:
    """Nothing where a key of that role may have those scopes. Raises ScopesUnfit."""
    if role in (Role.ADMIN, Role.METRICS) and not scopes.is_everything:
        raise ScopesUnfit(role)


@dataclass(frozen=True, slots=True)
class TenantPage:
    """One page of tenants, in order of id."""

    items: tuple[Tenant, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class KeyPage:
    """One page of keys, in order of id."""

    items: tuple[Key, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class AccessRows:
    """All that decides who is let in, at one moment."""

    revision: int
    tenants: tuple[Tenant, ...]
    keys: tuple[Key, ...]
    """These were not revoked; some may have expired."""


def secret_digest(secret: str) -> bytes:
    """SHA-256 of a key's secret."""
    return hashlib.sha256(secret.encode(errors="surrogateescape")).digest()


def split_key(token: str) -> tuple[str, str] | None:
    """Id and secret of ``ak_<id>_<secret>``; None where the token is not of that form."""
    mark, _, rest = token.partition("_")
    key_id, _, secret = rest.partition("_")
    is_ours = mark == "ak" and len(key_id) == KEY_ID_DIGITS and secret != ""
    return (key_id, secret) if is_ours else None
