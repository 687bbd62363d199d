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
    """SHA-256 of the stored files, in hex."""
    rank: int
    size_bytes: int
    module_count: int
    base_fingerprint: str
    source: VersionSource
    recipe_digest: str | None = None
    lineage: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    dtype: str | None = None
    """bfloat16 | float16 | float32: what its factors are stored in."""
    request_key: str | None = None
    """Of the request that makes it, where its caller gave it a key: made once, however often it is sent."""
    stored_by: StoredBy | None = None
    """Whose bytes it counts as; None: the server's own, which no limit holds for."""


@dataclass(frozen=True, slots=True)
class CreatedVersion:
    """The answer to a draft."""

    version: AdapterVersion
    created: bool
    """False where the default version already held these very bytes, so nothing was written."""


@dataclass(frozen=True, slots=True)
class AdapterPage:
    """One page of adapters in order of name."""

    items: tuple[Adapter, ...]
    next_cursor: str | None
    """Pass it back for the next page; None on the last."""


@dataclass(frozen=True, slots=True)
class CatalogRows:
    """Everything that can be served, read in one transaction."""

    revision: int
    """Grows with every change to adapters, versions or aliases; equal revisions mean equal rows."""
    adapters: tuple[Adapter, ...]
    """Every live adapter with its live versions, in order of name."""
    versions: tuple[AdapterVersion, ...]
    """The same versions, in order of id."""
    aliases: tuple[Alias, ...] = ()
    """Every live alias, in order of name."""
    pinned: frozenset[int] = frozenset()
    """Ids of versions that stay in memory."""


@dataclass(frozen=True, slots=True)
class CatalogChange:
    """The same for a reader who has some of the versions already: a version never changes, so its id stands for it."""

    revision: int
    live: frozenset[int]
    """Ids of every live version."""
    defaults: frozenset[int]
    """Ids of those among them that a bare name means."""
    versions: tuple[AdapterVersion, ...]
    """The live ones that the reader did not have, in order of id."""
    aliases: tuple[Alias, ...] = ()
    """Every live alias, in order of name."""
    pinned: frozenset[int] = frozenset()
    """Ids of versions that stay in memory."""
