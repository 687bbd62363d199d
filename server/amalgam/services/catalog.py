"""What serving can see right now: a snapshot of the registry in memory, and the meaning of `model`.

No SQL on the way of a request. A snapshot is replaced whole, so a request sees one state of the world.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from amalgam.domain.adapter import AdapterVersion, BaseModelSpec, VersionRef
from amalgam.domain.alias import Alias, Uniform, draw
from amalgam.domain.expression import is_expression
from amalgam.domain.in_scope import HIDDEN, covers, shown_alias
from amalgam.domain.routing import Route, Said
from amalgam.domain.scopes import EVERYTHING, Scopes
from amalgam.domain.serving_profile import ServingProfile, VersionProfile
from amalgam.domain.version import CatalogChange, CatalogRows
from amalgam.errors import AmalgamError, NotFound
from amalgam.errors.aliases import AliasTargetGone, AmbiguousAlias
from amalgam.errors.merging import MissingInput
from amalgam.errors.requests import ModelNotFound
from amalgam.errors.tenants import NotInScope
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.profiles import ProfileRegistry
from amalgam.registry.routers import RouterRegistry
from amalgam.routing.router import FittedRouter
from amalgam.services.catch_up import CatchUp
from amalgam.services.name_index import NameIndex

logger = logging.getLogger(__name__)

_PERIOD_S: Final = 1.0
_LEAST_PAUSE_S: Final = 0.02
"""Between two looks: changes that come thick and fast are read together."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Target:
    """What a request's ``model`` resolved to, at admission and for good."""

    engine_name: str
    """What the engine is asked for and what the answer's ``model`` says: ``sql@3``, or the base model's name."""
    version: AdapterVersion | None
    """None: the base model, or a blend."""
    recipe: str | None = None
    """Of what an expression described: that expression in one spelling, with exact versions."""
    route: Route | None = None
    """How an alias' router came to it, with the names that may be told."""
    shown: str | None = None
    """What the answer calls it instead, where whoever asks may not know of it: the alias that they asked for."""


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
    profiles: Mapping[int, VersionProfile] = field(default_factory=dict)
    """Version id -> the newest state of its serving profile."""
    pinned: frozenset[int] = frozenset()
    """Ids of versions that stay in memory."""
    routers: Mapping[str, FittedRouter] = field(default_factory=dict)
    """Digest -> what chooses among the targets of aliases."""

    @classmethod
    def of(cls, rows: CatalogRows) -> "Snapshot":
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
        return cls(rows.revision, defaults, versions, aliases, by_id, pinned=rows.pinned)

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
        aliases = {alias.name: alias for alias in change.aliases}
        return Snapshot(change.revision, defaults, versions, aliases, by_id, pinned=change.pinned)


class Catalog:
    """Resolves names. `refresh` after every change, and from time to time for those of other replicas."""

    def __init__(
        self,
        base: BaseModelSpec,
        registry: AdapterRegistry,
        profiles: ProfileRegistry | None = None,
        routers: RouterRegistry | None = None,
    ) -> None:
        self.base = base
        self._registry = registry
        self._profiles = profiles
        self._routers = routers
        self._snapshot = Snapshot()
        self._names = (self._snapshot, NameIndex((), ()))
        self._base_target = Target(base.served_name, None)
        self._told = asyncio.Event()
        self._catch_up = CatchUp(self.refresh)
        self._is_answered = True
        self._listeners: list[Callable[[Snapshot, Snapshot], None]] = []

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
        if self._profiles is not None:
            # Read after the versions: a profile that is newer than the revision is read again with the next one.
            newer = await self._profiles.newer({key: state.revision for key, state in known.profiles.items()})
            states = {**known.profiles, **newer}
            found = replace(found, profiles={key: states[key] for key in states if key in found.by_id})
        found = replace(found, routers=await self._fitted(found.aliases.values(), known.routers))
        # Two refreshes may overlap; the older answer must not win.
        if found.revision >= self._snapshot.revision:
            before, self._snapshot = self._snapshot, found
            for listener in self._listeners:
                listener(before, found)

    async def _fitted(self, aliases: Iterable[Alias], known: Mapping[str, FittedRouter]) -> Mapping[str, FittedRouter]:
        """The routers of ``aliases`` by digest, the new ones read from the registry."""
        routers = {alias.router.digest: alias.router for alias in aliases if alias.router is not None}
        missing = routers.keys() - known.keys()
        found = {digest: known[digest] for digest in routers.keys() - missing}
        if missing and self._routers is not None:
            read = await self._routers.numbers(missing)
            found |= {digest: FittedRouter.of(routers[digest], numbers) for digest, numbers in read.items()}
        return found

    def on_change(self, listener: Callable[[Snapshot, Snapshot], None]) -> None:
        """Have ``listener`` told of every new snapshot, with the one before; it must not block."""
        self._listeners.append(listener)

    def told(self) -> None:
        """Another replica changed something: `follow_loop` looks at once."""
        self._told.set()

    async def follow_loop(self, on_read: Callable[[], None], period_s: float = _PERIOD_S) -> None:
        """See what other replicas changed, at once where somebody tells, else within ``period_s`` seconds, for ever.

        Args:
            on_read: Told of each look that the registry answered; without it, what is known is served on.
            period_s: Longest pause between two looks, seconds.
        """
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._told.wait(), period_s)
            self._told.clear()
            try:
                await self.refresh()
            except AmalgamError as error:
                self._is_answered = False
                logger.warning("catalog_refresh_failed reason=%s", error)
            else:
                self._is_answered = True
                on_read()
            await asyncio.sleep(_LEAST_PAUSE_S)

    async def found(self, look: Callable[[], T], *, must_ask: bool = False) -> T:
        """What ``look`` finds; where it misses a name, once more after a look at the registry.

        Another replica may have answered 201 for that name a moment ago.

        Args:
            look: Finds something in the snapshot. May be called twice.
            must_ask: Whether a registry that is away is an error; else what is known counts, and nobody waits for it.

        Raises:
            Whatever ``look`` raises then.
            RegistryUnavailable: with ``must_ask``.
        """
        try:
            return look()
        except (NotFound, MissingInput):
            if not (must_ask or self._is_answered):
                raise
        await (self.refresh() if must_ask else self._catch_up())
        return look()

    async def require_live(self, versions: Iterable[AdapterVersion], scopes: Scopes = EVERYTHING) -> None:
        """Return where the registry still has ``versions``, or is away: files may be gone because a version is.

        Raises:
            ModelNotFound: another replica has deleted one.
        """
        if self._is_answered:
            await self._catch_up()
        for version in versions:
            if version.id not in self._snapshot.by_id:
                is_known = scopes.version(version.ref)
                near = self._near(version.name, scopes) if is_known else []
                raise ModelNotFound(str(version.ref) if is_known else HIDDEN, near)

    def resolve(self, model: str | None, scopes: Scopes = EVERYTHING) -> Target:
        """The version that ``model`` means now.

        Args:
            model: ``sql``, ``sql@3``, ``base:sql``, ``base:sql@3``, a name of the base model, empty or None; or an
                alias of a single target.
            scopes: what whoever asks may know of. What is out of scope is not there, but for the base model, which
                everybody knows of. What an alias means need not be in scope.

        Raises:
            ModelNotFound: with near names.
            NotInScope: it is the base model.
            AmbiguousAlias: an alias of several targets; see `draw`.
        """
        name = (model or "").strip()
        if not name or name in self.base.names:
            if not scopes.base:
                raise NotInScope("the base model")
            return self._base_target
        snapshot = self._snapshot
        short = self.short(name)
        if not scopes.asked(short):
            raise ModelNotFound(name, self._near(short, scopes))
        version = snapshot.defaults.get(short) or snapshot.versions.get(short)
        if version is None:
            if (alias := snapshot.aliases.get(short)) is not None:
                return self._only_target(alias, scopes)
            raise ModelNotFound(name, self._near(short, scopes))
        return Target(str(version.ref), version)

    def profile(self, engine_name: str) -> ServingProfile | None:
        """What requests to the version ``name@number`` get; None where it has no profile that is switched on."""
        snapshot = self._snapshot
        version = snapshot.versions.get(engine_name)
        state = None if version is None else snapshot.profiles.get(version.id)
        return None if state is None or not state.active else state.profile

    def alias(self, model: str | None, scopes: Scopes = EVERYTHING) -> Alias | None:
        """The alias in scope that ``model`` names, if it names one."""
        alias = self._snapshot.aliases.get(self.short(model or ""))
        return alias if alias is not None and scopes.name(alias.name) else None

    def covers(self, model: str, scopes: Scopes) -> bool:
        """Whether ``model`` names nothing that is out of scope."""
        return covers(model, scopes, self.base.names)

    def shown(self, alias: Alias, scopes: Scopes) -> Alias:
        """``alias`` without the names of targets that are out of scope."""
        return shown_alias(alias, scopes, self.base.names)

    def short(self, model: str) -> str:
        """``model`` without blanks around it and without the base model's name before a colon."""
        found = model.strip()
        prefix = next((f"{name}:" for name in self.base.names if found.startswith(f"{name}:")), "")
        return found.removeprefix(prefix)

    def route(self, alias: Alias, said: Said) -> Route | None:
        """The target that an alias' router chooses for what is said; None of an alias without one."""
        if alias.router is None:
            return None
        fitted = self._snapshot.routers.get(alias.router.digest)
        # Its numbers are gone where another replica changed the alias between two reads: the next look finds out.
        return Route(alias.router.otherwise, "no_text") if fitted is None else fitted.route(said)

    def draw(self, alias: Alias, user: str | None, uniform: Uniform, scopes: Scopes = EVERYTHING) -> str:
        """What ``alias`` means for one request, to be resolved like any ``model``; see `domain.alias.draw`.

        Raises:
            AliasTargetGone: what was drawn is not served any more.
        """
        target = draw(alias, user, uniform).model
        self.require_served(alias, target, scopes)
        return target

    def require_served(self, alias: Alias, target: str, scopes: Scopes = EVERYTHING) -> None:
        """Nothing where a target of ``alias`` is there. Raises AliasTargetGone."""
        if not is_expression(target):
            try:
                self.resolve(target)
            except ModelNotFound as error:
                raise AliasTargetGone(alias.name, target if self.covers(target, scopes) else HIDDEN) from error

    def _only_target(self, alias: Alias, scopes: Scopes) -> Target:
        """The registry lets no alias mean another, so this ends."""
        if len(alias.targets) > 1:
            raise AmbiguousAlias(alias.name, self.shown(alias, scopes).meaning)
        target = alias.targets[0].model
        try:
            return self.resolve(target)
        except ModelNotFound as error:
            if self.covers(target, scopes):
                raise
            raise AliasTargetGone(alias.name, HIDDEN) from error

    def _near(self, name: str, scopes: Scopes) -> list[str]:
        bare = name.split("@", 1)[0][:128]
        if bare in self._snapshot.defaults and scopes.asked(bare):
            return self.names.versions_of(bare)
        also = [self.base.served_name] if scopes.base else []
        return self.names.near(bare, *also, is_shown=None if scopes.has_every_name else scopes.name)
