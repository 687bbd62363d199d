"""What serving can see right now: a snapshot of the registry in memory, and the meaning of `model`.

No SQL on the way of a request. A snapshot is replaced whole, so a request sees one state of the world.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from amalgam.domain.adapter import AdapterVersion, BaseModelSpec, VersionRef
from amalgam.domain.alias import Alias, Uniform, draw
from amalgam.domain.expression import is_expression
from amalgam.domain.version import CatalogChange, CatalogRows
from amalgam.errors import AmalgamError
from amalgam.errors.aliases import AliasTargetGone, AmbiguousAlias
from amalgam.errors.requests import ModelNotFound
from amalgam.registry.adapters import AdapterRegistry
from amalgam.services.name_index import NameIndex

logger = logging.getLogger(__name__)

_PERIOD_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Target:
    """What a request's ``model`` resolved to, at admission and for good."""

    engine_name: str
    """What the engine is asked for and what the answer's ``model`` says: ``sql@3``, or the base model's name."""
    version: AdapterVersion | None
    """None: the base model, or a blend."""
    recipe: str | None = None
    """Of what an expression described: that expression in one spelling, with exact versions."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One state of the registry, indexed for resolving."""

    revision: int = -1
    defaults: Mapping[str, AdapterVersion] = field(default_factory=dict)
    """Adapter name -> its default version; adapters without one are absent."""
    versions: Mapping[str, AdapterVersion] = field(default_factory=dict)
    """``name@number`` -> version."""
    aliases: Mapping[str, Alias] = field(default_factory=dict)
    by_id: Mapping[int, AdapterVersion] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: CatalogRows) -> "Snapshot":
        """Index the registry's rows."""
        versions = {str(version.ref): version for version in rows.versions}
        defaults = {
            adapter.name: versions[str(VersionRef(adapter.name, adapter.default_version))]
            for adapter in rows.adapters
            if adapter.default_version is not None
        }
        by_id = {version.id: version for version in rows.versions}
        return cls(rows.revision, defaults, versions, {alias.name: alias for alias in rows.aliases}, by_id)

    def changed(self, change: CatalogChange) -> "Snapshot":
        """The state that ``change`` describes to a reader of this one; what stays is taken over as it is."""
        versions, defaults, by_id = dict(self.versions), dict(self.defaults), dict(self.by_id)
        for version_id in self.by_id.keys() - change.live:
            del versions[str(by_id.pop(version_id).ref)]
        for version in change.versions:
            versions[str(version.ref)] = by_id[version.id] = version
        before = {version.id for version in self.defaults.values()}
        for version_id in before - change.defaults:
            del defaults[self.by_id[version_id].name]
        for version_id in change.defaults - before:
            defaults[by_id[version_id].name] = by_id[version_id]
        return Snapshot(change.revision, defaults, versions, {alias.name: alias for alias in change.aliases}, by_id)


class Catalog:
    """Resolves names. `refresh` after every change, and from time to time for those of other replicas."""

    def __init__(self, base: BaseModelSpec, registry: AdapterRegistry) -> None:
        self.base = base
        self._registry = registry
        self._snapshot = Snapshot()
        self._names = (self._snapshot, NameIndex((), ()))
        self._base_target = Target(base.served_name, None)

    @property
    def snapshot(self) -> Snapshot:
        """The state that requests are resolved against."""
        return self._snapshot

    @property
    def names(self) -> NameIndex:
        """What the snapshot names, in order."""
        snapshot, index = self._names
        if snapshot is not self._snapshot:
            snapshot = self._snapshot
            index = NameIndex((*snapshot.defaults, *snapshot.aliases), snapshot.versions)
            self._names = (snapshot, index)
        return index

    async def refresh(self) -> None:
        """Read the registry where its revision moved; of versions, what is not known yet."""
        known = self._snapshot
        if await self._registry.revision() == known.revision:
            return
        if known.by_id:
            found = known.changed(await self._registry.load_change(known.by_id.keys()))
        else:
            found = Snapshot.of(await self._registry.load_catalog())
        # Two refreshes may overlap; the older answer must not win.
        if found.revision >= self._snapshot.revision:
            self._snapshot = found

    async def follow_loop(self, on_read: Callable[[], None], period_s: float = _PERIOD_S) -> None:
        """See what other replicas changed, within ``period_s`` seconds, for ever.

        Args:
            on_read: Told of each look that the registry answered; without it, what is known is served on.
            period_s: Seconds between two looks.
        """
        while True:
            await asyncio.sleep(period_s)
            try:
                await self.refresh()
            except AmalgamError as error:
                logger.warning("the registry does not answer: %s", error)
            else:
                on_read()

    def resolve(self, model: str | None) -> Target:
        """The version that ``model`` means now.

        Args:
            model: ``sql``, ``sql@3``, ``base:sql``, ``base:sql@3``, the base model's served name, empty or None; or an
                alias of a single target.

        Raises:
            ModelNotFound: with near names.
            AmbiguousAlias: an alias of several targets; see `draw`.
        """
        name = (model or "").strip()
        if not name or name == self.base.served_name:
            return self._base_target
        snapshot = self._snapshot
        short = name.removeprefix(f"{self.base.served_name}:")
        version = snapshot.defaults.get(short) or snapshot.versions.get(short)
        if version is None:
            if (alias := snapshot.aliases.get(short)) is not None:
                return self._only_target(alias)
            raise ModelNotFound(name, self._near(short))
        return Target(str(version.ref), version)

    def alias(self, model: str | None) -> Alias | None:
        """The alias that ``model`` names, if it names one."""
        return self._snapshot.aliases.get(self.short(model or ""))

    def short(self, model: str) -> str:
        """``model`` without blanks around it and without the base model's name before a colon."""
        return model.strip().removeprefix(f"{self.base.served_name}:")

    def draw(self, alias: Alias, user: str | None, uniform: Uniform) -> str:
        """What ``alias`` means for one request, to be resolved like any ``model``; see `domain.alias.draw`.

        Raises:
            AliasTargetGone: what was drawn is not served any more.
        """
        target = draw(alias, user, uniform).model
        if not is_expression(target):
            try:
                self.resolve(target)
            except ModelNotFound as error:
                raise AliasTargetGone(alias.name, target) from error
        return target

    def _only_target(self, alias: Alias) -> Target:
        """The registry lets no alias mean another, so this ends."""
        if len(alias.targets) > 1:
            raise AmbiguousAlias(alias.name, alias.meaning)
        return self.resolve(alias.targets[0].model)

    def _near(self, name: str) -> list[str]:
        bare = name.split("@", 1)[0][:128]
        if bare in self._snapshot.defaults:
            return self.names.versions_of(bare)
        return self.names.near(bare, self.base.served_name)
