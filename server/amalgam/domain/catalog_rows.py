"""What the registry says of single names, and of what changed, to a catalog that does not hold everything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from amalgam.domain.adapter import AdapterVersion
from amalgam.domain.alias import Alias
from amalgam.domain.serving_profile import VersionProfile


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """A version that may be served."""

    version: AdapterVersion
    profile: VersionProfile | None = None
    """It is the newest state of its serving profile."""


@dataclass(frozen=True, slots=True)
class NearRows:
    """What stands near a name that is not there."""

    names: Sequence[str] = ()
    """These adapters have a default version, and their names begin or end like it."""
    versions: Sequence[str] = ()
    """These are the adapter's newest ones, ``name@number``, in order, where it is there and the version is not."""


@dataclass(frozen=True, slots=True)
class NameAnswers:
    """What some names mean, as of one moment."""

    revision: int
    found: Mapping[str, ServedVersion]
    """The keys are what was asked for: ``sql``, whose default version it is, or ``sql@3``."""
    near: Mapping[str, NearRows]
    """Names that mean nothing have theirs; those of a crowd that was asked for at once may lack theirs."""
    merged: Mapping[str, Sequence[AdapterVersion]]
    """It maps the digest of a recipe to the versions that were merged by it, in order of id."""


@dataclass(frozen=True, slots=True)
class RegistryState:
    """How far the registry is, which costs the same however much it holds."""

    revision: int
    served_versions: int


@dataclass(frozen=True, slots=True)
class NameChanges:
    """What changed since a revision, and what is held whole by everybody."""

    revision: int
    served_versions: int
    names: frozenset[str] = frozenset()
    """Something changed of these adapters that a request could notice."""
    gone: frozenset[int] = frozenset()
    """The versions of these ids were deleted."""
    recipes: frozenset[str] = frozenset()
    """Versions of recipes with these digests came or went."""
    aliases: Sequence[Alias] = ()
    """It has every live alias, in order of name."""
    pinned: frozenset[int] = frozenset()
    """The versions of these ids stay in memory."""
    pinned_versions: Sequence[AdapterVersion] = field(default_factory=tuple)
    """Those of them are here that may be served."""


@dataclass(frozen=True, slots=True)
class NameRow:
    """One line of a list of names: an adapter with its default version."""

    name: str
    number: int
    created_at: datetime
    """The version was created then."""
