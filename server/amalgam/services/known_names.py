"""What the registry says, in memory: all of it, or, of more than is kept, the names that were asked for.

A snapshot is replaced whole, so a request sees one state of the world. Up to as many versions as are kept, all of them
are in it, and no SQL is on the way of a request. Beyond, it holds what everybody needs, names that were asked for are
kept beside it, and one that is not costs one look at the registry.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final, TypeVar

from amalgam.domain.adapter import AdapterVersion, VersionRef, is_name
from amalgam.domain.alias import Alias
from amalgam.domain.catalog_rows import NameAnswers, NameRow, ServedVersion
from amalgam.domain.scopes import Scopes
from amalgam.errors import AmalgamError, NotFound
from amalgam.errors.internal import NotInMemory
from amalgam.errors.merging import MissingInput
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.names import NameRegistry
from amalgam.registry.profiles import ProfileRegistry
from amalgam.registry.routers import RouterRegistry
from amalgam.routing.router import FittedRouter
from amalgam.services.catch_up import CatchUp
from amalgam.services.cold_names import ColdNames, Wanted
from amalgam.services.hot_names import HotNames
from amalgam.services.name_index import NameIndex
from amalgam.services.snapshot import Snapshot

logger = logging.getLogger(__name__)

_PERIOD_S: Final = 1.0
_LEAST_PAUSE_S: Final = 0.02
"""It lies between two looks: changes that come thick and fast are read together."""
MOST_VERSIONS: Final = 20_000
"""So many are kept in memory; of ten thousand, each takes two kilobytes."""

T = TypeVar("T")


class KnownNames:
    """`refresh` after every change, and from time to time for those of other replicas."""

    def __init__(
        self,
        registry: AdapterRegistry,
        profiles: ProfileRegistry | None = None,
        routers: RouterRegistry | None = None,
        names: NameRegistry | None = None,
        most_versions: int = MOST_VERSIONS,
    ) -> None:
        """Empty until it is refreshed.

        Args:
            registry: of adapters, read whole.
            profiles: of versions.
            routers: of aliases.
            names: read name by name, where the registry holds more than ``most_versions``; None: it never does.
            most_versions: versions, and beyond them names, that are kept in memory.
        """
        self._registry = registry
        self._profiles = profiles
        self._routers = routers
        self._by_name = names
        self._most_versions = most_versions
        self._hot = HotNames(most_versions)
        self._cold = ColdNames(self._look_up)
        self._answers: Mapping[Wanted, NameAnswers] = {}
        self._kept: NameAnswers | None = None
        self._snapshot = Snapshot()
        self._names = (self._snapshot, NameIndex((), ()))
        self._merged: tuple[Snapshot, Mapping[str, Sequence[AdapterVersion]]] = (self._snapshot, {})
        self._told = asyncio.Event()
        self._catch_up = CatchUp(self.refresh)
        self._catch_up_now = CatchUp(self.refresh, pause_s=0.0)
        self._is_answered = True
        self._listeners: list[Callable[[Snapshot, Snapshot], None]] = []

    @property
    def snapshot(self) -> Snapshot:
        """The state that requests are resolved against."""
        return self._snapshot

    @property
    def refs(self) -> Iterable[str]:
        """Versions in memory, ``name@number``: all, but where the registry holds more than is kept."""
        snapshot = self._snapshot
        return snapshot.versions if snapshot.is_whole else {str(version.ref) for version in self._hot.versions}

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
        """Read the registry where its revision moved: what changed."""
        known = self._snapshot
        if self._by_name is None:
            if await self._registry.revision() == known.revision:
                return
        else:
            state = await self._by_name.state()
            if state.revision == known.revision:
                return
            if not self._fits(state.served_versions):
                await self._follow(self._by_name, known)
                return
        await self._read_whole(known)

    def _fits(self, served: int) -> bool:
        """Whether all is kept; who keeps names alone goes on so until there is room, not to read all now and then."""
        return served <= (self._most_versions if self._snapshot.is_whole else self._most_versions // 2)

    async def _read_whole(self, known: Snapshot) -> None:
        """Read everything; of versions, what is not known yet."""
        if known.is_whole and known.by_id:
            found = known.changed(await self._registry.load_change(known.by_id.keys()))
        else:
            gone = await self._gone_since(known)
            found = Snapshot.of(await self._registry.load_catalog(), gone)
        if self._profiles is not None:
            # Read after the versions: a profile that is newer than the revision is read again with the next one.
            newer = await self._profiles.newer({key: state.revision for key, state in known.profiles.items()})
            states = {**known.profiles, **newer}
            found = replace(found, profiles={key: states[key] for key in states if key in found.by_id})
        await self._take(found, known)

    async def _gone_since(self, known: Snapshot) -> frozenset[int]:
        if known.is_whole or self._by_name is None:
            return frozenset()
        return (await self._by_name.changes(known.revision)).gone

    async def _follow(self, by_name: NameRegistry, known: Snapshot) -> None:
        """What changed is read again when somebody asks for it."""
        is_first = known.revision < 0
        changes = await by_name.changes(None if is_first else known.revision)
        await self._take(Snapshot.beyond_memory(changes), known)
        # Also where a newer state came in between: what is forgotten is read again.
        self._hot.forget(changes.names, changes.recipes)

    async def _take(self, found: Snapshot, known: Snapshot) -> None:
        found = replace(found, routers=await self._fitted(found.aliases.values(), known.routers))
        # Two refreshes may overlap; the older answer must not win.
        if found.revision >= self._snapshot.revision:
            before, self._snapshot = self._snapshot, found
            if before.is_whole or found.is_whole:
                # Changes are followed by what is forgotten; while all is in memory nobody does that.
                self._hot, self._kept = HotNames(self._most_versions), None
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

        Another replica may have answered 201 for that name a moment ago; or it is one of more than are kept.

        Args:
            look: Finds something in memory. May be called several times.
            must_ask: Whether a registry that is away is an error; else what is known counts, and nobody waits for it.

        Raises:
            Whatever ``look`` raises then.
            RegistryUnavailable: with ``must_ask``; or what a name means is not in memory.
        """
        try:
            return look()
        except NotInMemory as cold:
            return await self._asked(look, cold)
        except (NotFound, MissingInput):
            if not (must_ask or self._is_answered):
                raise
        await (self.refresh() if must_ask else self._catch_up())
        try:
            return look()
        except NotInMemory as cold:
            return await self._asked(look, cold)

    async def _asked(self, look: Callable[[], T], cold: NotInMemory) -> T:
        """What ``look`` finds once it is told what it needs, one thing after the other, each as of its own look."""
        told: dict[Wanted, NameAnswers] = {}
        while True:
            wanted = Wanted(cold.name, cold.recipe)
            told[wanted] = await self._read(wanted)
            self._answers = told
            try:
                return look()
            except NotInMemory as another:
                cold = another
            finally:
                self._answers = {}

    async def _read(self, wanted: Wanted) -> NameAnswers:
        """What the registry says, which is no older than the snapshot."""
        while True:
            answers = await self._cold(wanted)
            if answers.revision > self._snapshot.revision:
                # Aliases may have changed too.
                await self._catch_up_now()
            if answers.revision >= self._snapshot.revision:
                if answers is not self._kept:
                    self._hot.keep(answers)
                    self._kept = answers
                return answers

    async def _look_up(self, names: Sequence[str], recipes: Sequence[str]) -> NameAnswers:
        assert self._by_name is not None, "only then the snapshot is not whole"
        return await self._by_name.look_up(names, recipes)

    def _known(self, name: str) -> ServedVersion | None:
        """What an adapter's name, or that of a version, means beyond the snapshot.

        Raises:
            NotInMemory: the registry has to be asked.
        """
        # A hub's org/name is no name, and the registry knows the ones that are near it.
        if self._snapshot.is_whole or not (is_name(name.replace("/", "-")) or VersionRef.parse(name)):
            return None
        if (found := self._hot.get(name)) is not None:
            return found
        answers = self._answers.get(wanted := Wanted(name))
        if answers is None:
            raise NotInMemory(wanted.name, wanted.recipe)
        return answers.found.get(name)

    async def page(self, after: str | None, limit: int, scopes: Scopes) -> Sequence[NameRow]:
        """Adapters of a registry that holds more than is kept, in order of name; those that may be known of.

        Args:
            after: those behind this name alone.
            limit: most rows.
            scopes: what whoever asks may know of.
        """
        assert self._by_name is not None, "only then the snapshot is not whole"
        return await self._by_name.page(after, limit, None if scopes.has_every_name else scopes.name_patterns)

    def version(self, name: str) -> AdapterVersion | None:
        """What an adapter's name means, or ``name@number``; to be asked for within `found`."""
        version = self._snapshot.defaults.get(name) or self._snapshot.versions.get(name)
        if version is None and (known := self._known(name)) is not None:
            version = known.version
        return version

    def remembered(self, name: str) -> AdapterVersion | None:
        """What an adapter's name, or that of a version, means, as far as it is in memory; asks nobody."""
        snapshot = self._snapshot
        known = snapshot.defaults.get(name) or snapshot.versions.get(name)
        if known is None and (hot := self._hot.peek(name)) is not None:
            return hot.version
        return known

    async def meanings(self, names: Iterable[str], within_s: float) -> Mapping[str, AdapterVersion]:
        """What each of ``names`` means now; those that mean nothing are left out.

        Of a registry that holds more than is kept those that are not in memory are read together; where it does not
        answer within so many seconds, what is in memory is all.
        """
        wanted = set(names)
        found = {name: version for name in wanted if (version := self.remembered(name)) is not None}
        missing = wanted - found.keys()
        if self._snapshot.is_whole or not missing:
            return found
        with suppress(AmalgamError, TimeoutError):
            async with asyncio.timeout(within_s):
                for answers in await asyncio.gather(*(self._read(Wanted(name)) for name in missing)):
                    found |= {name: served.version for name, served in answers.found.items() if name in missing}
        return found

    def merged(self, recipe: str) -> Sequence[AdapterVersion]:
        """Versions that were merged by the recipe of that digest, in order of id; within `found`."""
        snapshot, merged = self._merged
        if not self._snapshot.is_whole:
            found = self._hot.merged(recipe)
            if found is None:
                answers = self._answers.get(wanted := Wanted(recipe=recipe))
                if answers is None:
                    raise NotInMemory(wanted.name, wanted.recipe)
                found = answers.merged.get(recipe, ())
            return found
        if snapshot is not self._snapshot:
            by_recipe: dict[str, list[AdapterVersion]] = {}
            for version in self._snapshot.versions.values():
                if version.recipe_digest is not None:
                    by_recipe.setdefault(version.recipe_digest, []).append(version)
            merged = by_recipe
            self._merged = (self._snapshot, merged)
        return merged.get(recipe, ())

    async def _is_live(self, version: AdapterVersion) -> bool:
        if self._snapshot.is_whole:
            return version.id in self._snapshot.by_id
        try:
            return str(version.ref) in (await self._cold(Wanted(str(version.ref)))).found
        except AmalgamError:
            return True
