"""What the registry stores and returns about versions: drafts, pages, the catalog's rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from amalgam.domain.adapter import Adapter, AdapterVersion, VersionSource
from amalgam.domain.alias import Alias
from amalgam.domain.stored_bytes import StoredBy


@dataclass(frozen=True, slots=True)
class VersionDraft:
    """A version before it has a number: durable, verified bytes and what their headers say."""

    name: str
    digest: str
    """It is the SHA-256 of the stored files, in hex."""
    rank: int
    size_bytes: int
    module_count: int
    base_fingerprint: str
    source: VersionSource
    recipe_digest: str | None = None
    lineage: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    dtype: str | None = None
    """Its factors are stored in this type: bfloat16, float16 or float32."""
    request_key: str | None = None
    """It is the key that the caller gave the request that makes it: made once, however often it is sent."""
    stored_by: StoredBy | None = None
    """It counts as this one's bytes; None: the server's own, which no limit holds for."""


@dataclass(frozen=True, slots=True)
class CreatedVersion:
    """The answer to a draft."""

    version: AdapterVersion
    created: bool
    """It is False where the default version already held these very bytes, so nothing was written."""


@dataclass(frozen=True, slots=True)
class AdapterPage:
    """One page of adapters in order of name."""

    items: tuple[Adapter, ...]
    next_cursor: str | None
    """The next page is asked for with it; None on the last."""


@dataclass(frozen=True, slots=True)
class CatalogRows:
    """Everything that can be served, read in one transaction."""

    revision: int
    """It grows with every change to adapters, versions or aliases; equal revisions mean equal rows."""
    adapters: tuple[Adapter, ...]
    """It has every live adapter with its live versions, in order of name."""
    versions: tuple[AdapterVersion, ...]
    """It has the same versions, in order of id."""
    aliases: tuple[Alias, ...] = ()
    """It has every live alias, in order of name."""
    pinned: frozenset[int] = frozenset()
    """The versions of these ids stay in memory."""


@dataclass(frozen=True, slots=True)
class CatalogChange:
    """The same for a reader who has some of the versions already: a version never changes, so its id stands for it."""

    revision: int
    live: frozenset[int]
    """It has the ids of every live version."""
    defaults: frozenset[int]
    """A bare name means the versions of these ids."""
    versions: tuple[AdapterVersion, ...]
    """It has the live ones that the reader did not have, in order of id."""
    aliases: tuple[Alias, ...] = ()
    """It has every live alias, in order of name."""
    pinned: frozenset[int] = frozenset()
    """The versions of these ids stay in memory."""
