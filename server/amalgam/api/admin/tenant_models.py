"""Bodies and answers of tenants, keys and the audit on the admin plane."""

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from amalgam.api.admin.kit import NO_NUL, Body, Page, Timestamp
from amalgam.domain.audit import AuditEntry
from amalgam.domain.scopes import MAX_PATTERNS, BlendScope, NamePattern, Scopes
from amalgam.domain.stored_bytes import StoredBytes
from amalgam.domain.tenant import (
    TENANT_PATTERN,
    Key,
    KeyChange,
    KeyState,
    Limits,
    ModelLimits,
    Role,
    Tenant,
    TenantId,
    TenantState,
)
from amalgam.services.tenants import IssuedKey, NewKey, Rotation

MAX_LIFETIME_S: Final = 100 * 365 * 86_400
MAX_OVERLAP_S: Final = 90 * 86_400
_NOTHING: Final = StoredBytes()
_Label = Annotated[str, Field(max_length=256, pattern=NO_NUL, description="text for people")]
_Weight = Annotated[
    float, Field(gt=0, le=1000, allow_inf_nan=False, description="share under contention, beside those of others")
]
_CacheGroup = Annotated[
    str | None,
    Field(
        pattern=f"^{TENANT_PATTERN}$",
        description="tenants of one group find each other's prompts in the prefix cache; null: nobody else does",
    ),
]
_Lifetime = Annotated[
    float | None, Field(gt=0, le=MAX_LIFETIME_S, description="seconds until it expires; null: it does not")
]


def _by_name(entries: tuple[ModelLimits, ...]) -> tuple[ModelLimits, ...]:
    if any(entry.limits.stored_bytes is not None for entry in entries):
        raise ValueError("stored_bytes is a limit of tenants and keys; names have none")
    return entries


_Limited = Annotated[
    tuple[ModelLimits, ...],
    Field(max_length=MAX_PATTERNS, description="limits on names of a pattern, but for stored_bytes"),
    AfterValidator(_by_name),
]


class TenantBody(Body):
    """A new tenant."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_extra={"examples": [{"id": "acme", "name": "Acme, Inc."}]}
    )

    id: TenantId = Field(description="never given to another", examples=["acme"])
    name: _Label = ""
    weight: _Weight = 1.0
    limits: Limits = Limits()
    model_limits: _Limited = ()
    cache_group: _CacheGroup = None


class TenantPatchBody(Body):
    """What of a tenant is to be another; what is left out stays."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_extra={"examples": [{"state": "suspended"}, {"weight": 2.0}]}
    )

    name: _Label | None = None
    state: Literal["active", "suspended"] | None = Field(default=None, description="suspended: its keys open nothing")
    weight: _Weight | None = None
    limits: Limits | None = Field(default=None, description="all of them; those left out are none")
    model_limits: _Limited | None = None
    cache_group: _CacheGroup = None


class StoredView(BaseModel):
    """How many bytes are stored, as limits on stored bytes count them."""

    adapters: int = Field(description="bytes of live versions, each whole", examples=[9_961_472])
    files: int = Field(description="uploaded, and written by batches", examples=[0])

    @classmethod
    def of(cls, stored: StoredBytes) -> "StoredView":
        """The view of ``stored``."""
        return cls(adapters=stored.adapters, files=stored.files)


class TenantView(BaseModel):
    """A tenant as the API shows it."""

    id: str = Field(examples=["acme"])
    name: str = Field(examples=["Acme, Inc."])
    state: TenantState = Field(examples=["active"])
    weight: float = Field(examples=[1.0])
    limits: Limits
    model_limits: tuple[ModelLimits, ...]
    cache_group: str | None = Field(examples=[None])
    stored: StoredView
    created_at: Timestamp
    updated_at: Timestamp

    @classmethod
    def of(cls, tenant: Tenant, stored: StoredBytes) -> "TenantView":
        """The view of ``tenant``, which has ``stored`` so much."""
        return cls.model_validate(tenant.model_dump() | {"stored": StoredView.of(stored)})


class TenantPageView(Page[TenantView]):
    """One page of tenants, in order of id."""


class KeyBody(Body):
    """A new key."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"tenant": "acme", "role": "client", "models": ["acme.*"], "blends": "own"}]},
    )

    tenant: TenantId = Field(description="tenant whose it is", examples=["acme"])
    role: Role = Field(default=Role.CLIENT, description="what it is for")
    name: _Label = ""
    models: tuple[NamePattern, ...] = Field(
        default=("*",), min_length=1, max_length=MAX_PATTERNS, description="names that it may ask for, by pattern"
    )
    blends: BlendScope = Field(
        default="any",
        description="which blends it may use: none; own: those it describes itself; any: by the names of others' too; "
        "of names in scope alone",
    )
    limits: Limits = Limits()
    expires_in_s: _Lifetime = None

    def asked(self) -> NewKey:
        """What is to be issued."""
        scopes = Scopes(models=self.models, blends=self.blends)
        return NewKey(self.tenant, self.role, self.name, scopes, self.limits, self.expires_in_s)


class KeyPatchBody(Body):
    """What of a key is to be another; what is left out stays."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_extra={"examples": [{"state": "suspended"}, {"models": ["acme.*"]}]}
    )

    name: _Label | None = None
    state: Literal["active", "suspended"] | None = Field(
        default=None, description="suspended: it opens nothing until it is active again"
    )
    models: tuple[NamePattern, ...] | None = Field(
        default=None, min_length=1, max_length=MAX_PATTERNS, description="names that it may ask for, by pattern"
    )
    blends: BlendScope | None = None
    limits: Limits | None = Field(default=None, description="all of them; those left out are none")
    expires_in_s: _Lifetime = Field(default=None, description="seconds from now until it expires; null: it does not")

    def change(self) -> KeyChange:
        """What is to be changed. Only the end may be taken away; null of the others is the same as leaving them out."""
        asked = {name: getattr(self, name) for name in self.model_fields_set}
        return KeyChange(
            **{name: value for name, value in asked.items() if value is not None or name == "expires_in_s"}
        )


class RotateBody(Body):
    """How a key gives way to its successor."""

    overlap_s: float = Field(
        default=86_400.0, ge=0, le=MAX_OVERLAP_S, description="seconds for which both are valid", examples=[86400]
    )
    expires_in_s: _Lifetime = Field(
        default=None, description="seconds until the successor expires; null: as long as the old one had"
    )


class KeyView(BaseModel):
    """A key as the API shows it: without its secret."""

    id: str = Field(examples=["3f9a1c5e7b2d4680"])
    prefix: str = Field(description="how the key begins", examples=["ak_3f9a1c5e7b2d4680"])
    tenant: str = Field(examples=["acme"])
    name: str = Field(examples=["production"])
    role: Role = Field(examples=["client"])
    models: tuple[str, ...] = Field(examples=[["acme.*"]])
    blends: BlendScope = Field(examples=["own"])
    limits: Limits
    state: KeyState = Field(examples=["active"])
    expires_at: Timestamp | None = Field(examples=[None])
    last_used_at: Timestamp | None = Field(description="last use, exact to a minute", examples=[None])
    successor: str | None = Field(description="id of the key that it was rotated to", examples=[None])
    stored: StoredView = Field(description="bytes stored by the key, and by those that it was rotated from or to")
    created_at: Timestamp

    @classmethod
    def of(cls, key: Key, stored: StoredBytes) -> "KeyView":
        """The view of ``key``, which has ``stored`` so much."""
        shown = key.model_dump(exclude={"secret_digest", "scopes"})
        more = {"prefix": key.prefix, "stored": StoredView.of(stored)}
        return cls.model_validate(shown | more | key.scopes.model_dump())


class KeyPageView(Page[KeyView]):
    """One page of keys, in order of id; revoked ones too."""


class IssuedKeyView(KeyView):
    """A new key with its secret, which is shown this once."""

    key: str | None = Field(
        description="the secret to be sent as Authorization: Bearer; null where the request was repeated under its "
        "Idempotency-Key: rotate or revoke the key where the first answer was lost",
        examples=["ak_3f9a1c5e7b2d4680_…"],
    )

    @classmethod
    def issued(cls, issued: IssuedKey, stored: StoredBytes = _NOTHING, *, has_secret: bool = True) -> "IssuedKeyView":
        """The view of ``issued``, with its secret or without."""
        return cls(key=issued.token if has_secret else None, **KeyView.of(issued.key, stored).model_dump())


class RotatedView(BaseModel):
    """A key that ends, and its successor."""

    old: KeyView
    new: IssuedKeyView

    @classmethod
    def of(cls, rotation: Rotation, stored: StoredBytes, *, has_secret: bool = True) -> "RotatedView":
        """The view of ``rotation``, with the successor's secret or without; both have ``stored`` the same."""
        new = IssuedKeyView.issued(rotation.new, stored, has_secret=has_secret)
        return cls(old=KeyView.of(rotation.old, stored), new=new)


class AuditEntryView(BaseModel):
    """One change of the admin plane."""

    id: int = Field(description="grows with every entry", examples=[17])
    at: Timestamp
    key_id: str = Field(description="id of the key; empty on a server without keys", examples=["3f9a1c5e7b2d4680"])
    tenant: str = Field(examples=["acme"])
    verb: str = Field(examples=["alias.set"])
    kind: str = Field(description="kind of the object", examples=["alias"])
    object: str = Field(description="its name or id", examples=["acme.support"])
    before: str | None = Field(description="SHA-256 of its state; null: it was not there", examples=["5b0c…"])
    after: str | None = Field(
        description="SHA-256 of its state afterwards; null: it is not there any more", examples=["9d1e…"]
    )
    request_id: str = Field(examples=["req-5f2b8c0d9a1e4b7c6d3f2a10"])

    @classmethod
    def of(cls, entry: AuditEntry) -> "AuditEntryView":
        """The view of ``entry``."""
        return cls.model_validate(entry.model_dump())


class AuditPageView(Page[AuditEntryView]):
    """One page of changes, newest first."""
