"""One state of the registry in memory: whole, or, where it holds more than is kept, what everybody needs of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from amalgam.domain.adapter import AdapterVersion, VersionRef
from amalgam.domain.alias import Alias
from amalgam.domain.catalog_rows import NameChanges
from amalgam.domain.serving_profile import VersionProfile
from amalgam.domain.version import CatalogChange, CatalogRows
from amalgam.routing.router import FittedRouter


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One state of the registry, indexed for resolving."""

    revision: int = -1
    defaults: Mapping[str, AdapterVersion] = field(default_factory=dict)
    """It maps an adapter's name to its default version; adapters without one are absent."""
    versions: Mapping[str, AdapterVersion] = field(default_factory=dict)
    """It maps ``name@number`` to the version."""
    aliases: Mapping[str, Alias] = field(default_factory=dict)
    by_id: Mapping[int, AdapterVersion] = field(default_factory=dict)
    """In one that is not whole, it has the pinned versions."""
    profiles: Mapping[int, VersionProfile] = field(default_factory=dict)
    """It maps a version's id to the newest state of its serving profile."""
    pinned: frozenset[int] = frozenset()
    """The versions of these ids stay in memory."""
    routers: Mapping[str, FittedRouter] = field(default_factory=dict)
    """By digest, it has what chooses among the targets of aliases."""
    beyond: int | None = None
    """So many versions are served, where they are more than is kept; None: all of them are here."""
    gone: frozenset[int] = field(default=frozenset(), compare=False)
    """The versions of these ids were deleted since the state before."""

    @property
    def is_whole(self) -> bool:
        """Whether what is not here does not exist."""
        return self.beyond is None

    @property
    def served(self) -> int:
        """Versions that may be served."""
        return len(self.versions) if self.beyond is None else self.beyond

    @classmethod
    def of(cls, rows: CatalogRows, gone: frozenset[int] = frozenset()) -> "Snapshot":
        """Index the registry's rows."""
        versions = {str(version.ref): version for version in rows.versions}
        defaults = {
            adapter.name: versions[ref]
            for adapter in rows.adapters
            if adapter.default_version is not None
            # One that has not answered yet may be the default of a name already.
            and (ref := str(VersionRef(adapter.name, adapter.default_version))) in versions
        }
        by_id = {version.id: version for version in rows.versions}
        aliases = {alias.name: alias for alias in rows.aliases}
        return cls(rows.revision, defaults, versions, aliases, by_id, pinned=rows.pinned, gone=gone)

    @classmethod
    def beyond_memory(cls, changes: NameChanges) -> "Snapshot":
        """What everybody needs of a registry that holds more than is kept."""
        return cls(
            changes.revision,
            aliases={alias.name: alias for alias in changes.aliases},
            by_id={version.id: version for version in changes.pinned_versions},
            pinned=changes.pinned,
            beyond=changes.served_versions,
            gone=changes.gone,
        )

    def changed(self, change: CatalogChange) -> "Snapshot":
        """The state that ``change`` describes to a reader of this one; what stays is taken over as it is."""
        versions, defaults, by_id = dict(self.versions), dict(self.defaults), dict(self.by_id)
        gone = frozenset(self.by_id.keys() - change.live)
        for version_id in gone:
            del versions[str(by_id.pop(version_id).ref)]
        for version in change.versions:
            versions[str(version.ref)] = by_id[version.id] = version
        before = {version.id for version in self.defaults.values()}
        for version_id in before - change.defaults:
            del defaults[self.by_id[version_id].name]
        for version_id in change.defaults - before:
            defaults[by_id[version_id].name] = by_id[version_id]
        aliases = {alias.name: alias for alias in change.aliases}
        return Snapshot(change.revision, defaults, versions, aliases, by_id, pinned=change.pinned, gone=gone)
