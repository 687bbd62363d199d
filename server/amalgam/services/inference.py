"""One request from `model` to a held version: resolve once, count, wait for its turn, hold, release."""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

from amalgam.domain.adapter import AdapterVersion
from amalgam.domain.alias import Alias, Uniform
from amalgam.domain.blend import is_blend_name
from amalgam.domain.in_scope import HIDDEN
from amalgam.domain.routing import Said
from amalgam.domain.scopes import BASE, EVERYTHING, Scopes
from amalgam.domain.tenant import BUILT_IN_TENANT
from amalgam.engine.protocol import Engine, LoadableVersion
from amalgam.errors import AmalgamError
from amalgam.errors.adapters import ArtifactDamaged
from amalgam.errors.engine import EngineLoadFailed, EngineNotReady
from amalgam.errors.requests import ModelNotFound
from amalgam.services.admission import Admission
from amalgam.services.asked_names import AskedNames
from amalgam.services.blends import Blend, Blends
from amalgam.services.catalog import Catalog, Target
from amalgam.services.fair_queue import FairQueue, Gone
from amalgam.services.queue_records import AdapterLine
from amalgam.services.versions_in_use import VersionsInUse
from amalgam.store.adapter_store import AdapterStore
from amalgam.telemetry.context import note_alias, note_target

T = TypeVar("T")
SAYS_NOTHING: Final = Said()
_REMEMBERED: Final = 20_000
"""For so many versions it is known where they lie."""
Turn = Callable[[LoadableVersion | None], AbstractAsyncContextManager[None]]
"""It waits for a place in the batch, for the version's sake; None is the base model."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for, and as whom."""

    model: str | None
    user: str | None
    client: str
    said: Callable[[], Said]
    scopes: Scopes
    tenant: str


def _note_target(alias: Alias, drawn: str, asked: Asked) -> None:
    """Say what answers, for who counts what an experiment sees."""
    experiment = alias.experiment
    if experiment is None:
        note_target(drawn, None, None, None)
    else:
        unit = alias.unit(asked.tenant, asked.user, asked.client)
        note_target(drawn, experiment.id, experiment.slow_ms, unit)


def loadable(version: AdapterVersion, folder: Path) -> LoadableVersion:
    """The version as the engine needs it: its name, id and folder never change."""
    return LoadableVersion(engine_name=str(version.ref), lora_id=version.id, folder=folder, digest=version.digest)


class Inference:
    """Admits requests. A version that was resolved stays servable until its request ends, whatever happens to names.

    Args:
        catalog: what names mean.
        engine: what answers.
        store: where versions lie.
        uniform: draws from weighted aliases.
        usage: shared with what else uses versions.
        blends: what expressions mean.
        queue: whose request may be in the batch.
        admission: how many requests may be in progress.
    """

    def __init__(
        self,
        catalog: Catalog,
        engine: Engine,
        store: AdapterStore,
        uniform: Uniform,
        usage: VersionsInUse,
        blends: Blends,
        queue: FairQueue,
        admission: Admission,
    ) -> None:
        self._catalog = catalog
        self._engine = engine
        self._store = store
        self._uniform = uniform
        self._usage = usage
        self._blends = blends
        self._queue = queue
        self.admission = admission
        self.asked = AskedNames()
        self._loadable: dict[int, LoadableVersion] = {}
        """By version id; the ones remembered last."""

    @asynccontextmanager
    async def admit(
        self,
        model: str | None,
        *,
        user: str | None = None,
        said: Callable[[], Said] = lambda: SAYS_NOTHING,
        client: str = "",
        generates: bool = True,
        sequences: int = 1,
        within_s: float | None = None,
        gone: Gone | None = None,
        scopes: Scopes = EVERYTHING,
        tenant: str = BUILT_IN_TENANT,
        weight: float = 1.0,
        before_build: Callable[[], Awaitable[None]] | None = None,
    ) -> AsyncIterator[Target]:
        """Resolve ``model`` and keep what it means resident while the block runs.

        Args:
            model: as in `resolve`; an alias of several targets is drawn from.
            user: who asks; an alias means the same to them each time.
            said: gives what the user says; asked where a router chooses by it.
            client: whose request it is: keys take turns, and new blends are counted by key.
            generates: whether the engine's batch is needed; else there is no turn to wait for.
            sequences: how many run at once in the batch for it.
            within_s: a longer wait for a place is of no use to the client, seconds.
            gone: returns when the client has left; asked only where the request has to wait for its turn.
            scopes: what may be asked for; an alias in scope may mean what is not, and is then all that is told of it.
            tenant: whose key asks.
            weight: the tenant's share of the batch under contention.
            before_build: awaited before a blend is built for the request; may refuse.

        Raises:
            ModelNotFound, AliasTargetGone: nothing of that name. For an expression besides, what `Blends` raises.
            NotInScope: of what everybody knows of, as the base model.
            EngineNotReady, EngineLoadFailed, SlotsBusy: see `Engine.hold`.
            NoTurn, DeadlineNotMet, ClientLeft: see `FairQueue.turn`.
        """

        def turn(version: LoadableVersion | None) -> AbstractAsyncContextManager[None]:
            """Wait before the version is made resident: what waits for its turn takes no place of others."""
            if not generates:
                return nullcontext()
            return self._queue.turn(version, gone, client, sequences, within_s, tenant, weight)

        asked = Asked(model, user, client, said, scopes, tenant)
        meaning = await self.found(lambda: self._drawn(asked))
        if before_build is not None and isinstance(meaning, Blend) and not self._blends.has(meaning):
            await before_build()
            # What is named may have changed meanwhile.
            meaning = await self.found(lambda: self._drawn(asked))
        if isinstance(meaning, Blend):
            with self.asked.asking(self._blends.describe(meaning).engine_name) as runs:
                async with (
                    self._unless_gone(meaning.versions.values(), scopes),
                    self._admit_blend(meaning, client, turn) as target,
                ):
                    runs()
                    yield target
            return
        if meaning.version is None:
            async with turn(None), self._engine.hold(None):
                yield meaning
            return
        # Counted before the first await: a deletion that starts now waits for this request.
        version = meaning.version
        self._usage.begin((version.id,))
        try:
            with self.asked.asking(model or meaning.engine_name) as runs:
                async with self._unless_gone((version,), scopes):
                    held = await self._of(version)
                    async with turn(held), self._engine.hold(held):
                        runs()
                        yield meaning
        finally:
            await self._usage.end((version.id,))

    @asynccontextmanager
    async def _unless_gone(self, versions: Collection[AdapterVersion], scopes: Scopes) -> AsyncIterator[None]:
        """What another replica deleted is not there, rather than damaged.

        Raises:
            ModelNotFound: the files of one of ``versions`` are of no use because it was deleted.
        """
        try:
            yield
        except (ArtifactDamaged, EngineLoadFailed):
            await self._catalog.require_live(versions, scopes)
            raise

    async def found(self, look: Callable[[], T], *, must_ask: bool = False) -> T:
        """What ``look`` finds, as `Catalog.found`; of blends also the names that other servers gave."""
        try:
            return await self._catalog.found(look, must_ask=must_ask)
        except ModelNotFound as missed:
            if not (is_blend_name(missed.model) and await self._blends.learn(missed.model)):
                raise
        return await self._catalog.found(look)

    def resolve(self, model: str | None, scopes: Scopes = EVERYTHING, tenant: str | None = BUILT_IN_TENANT) -> Target:
        """What ``model`` means now: a name, an expression, or the name of a blend; nothing is loaded or built.

        Args:
            model: as in `admit`; an alias has to be of a single target.
            scopes: what whoever asks may know of.
            tenant: who asks.

        Raises:
            ModelNotFound, NotInScope: nothing of that name. For an expression besides, what `Blends.resolve` raises.
        """
        meaning = self._meaning(model, scopes, tenant)
        if isinstance(meaning, Blend):
            return self._blends.describe(meaning)
        return meaning

    def names_of(self, model: str | None) -> tuple[str, ...]:
        """What may answer a request for ``model``: the alias, exact versions, inputs of a blend, `BASE`.

        Nothing for what is not there, or is no name: such a request comes to nothing.
        """
        alias = self._catalog.alias(model)
        asked = [model] if alias is None else [target.model for target in alias.targets]
        found = [] if alias is None else [alias.name]
        for one in asked:
            try:
                meaning = self._meaning(one, EVERYTHING, None)
            except AmalgamError:
                continue
            if isinstance(meaning, Blend):
                found += meaning.versions
            else:
                found.append(BASE if meaning.version is None else meaning.engine_name)
        return tuple(found)

    def _meaning(self, model: str | None, scopes: Scopes, tenant: str | None) -> Target | Blend:
        if model and self._blends.concerns(model):
            return self._blends.resolve(model, scopes, tenant)
        return self._catalog.resolve(model, scopes)

    @asynccontextmanager
    async def _admit_blend(self, blend: Blend, client: str, turn: Turn) -> AsyncIterator[Target]:
        if self._engine.state != "ready":
            # Known now; a blend that nobody can be answered with is not built.
            raise EngineNotReady(self._engine.state)
        async with (
            self._blends.hold(blend, client) as version,
            turn(version),
            self._engine.hold(version),
        ):
            is_hidden = blend.shown is not None
            recipe = None if is_hidden else blend.expression
            yield Target(version.engine_name, None, recipe, blend.route, blend.shown)

    def _drawn(self, asked: "Asked") -> Target | Blend:
        """What the request asks for, once an alias has chosen; the request counts as the alias' too."""
        scopes, covers = asked.scopes, self._catalog.covers
        alias = self._catalog.alias(asked.model, scopes)
        if alias is None:
            return self._meaning(asked.model, scopes, asked.tenant)
        note_alias(alias.name)
        route = None if alias.router is None else self._catalog.route(alias, asked.said())
        if route is None:
            drawn = self._catalog.draw(alias, alias.sticky(asked.user, asked.client), self._uniform, scopes)
        else:
            drawn = route.model
            self._catalog.require_served(alias, drawn, scopes)
            route = route.shown(lambda name: covers(name, scopes), HIDDEN)
        _note_target(alias, drawn, asked)
        meaning = self._meaning(drawn, EVERYTHING, asked.tenant if covers(drawn, scopes) else None)
        is_known = scopes.has_every_name or covers(self._name_of(meaning), scopes)
        return replace(meaning, shown=meaning.shown if is_known else alias.name, route=route)

    @staticmethod
    def _name_of(meaning: Target | Blend) -> str:
        """What an answer would call it: of a blend what goes in."""
        return meaning.expression if isinstance(meaning, Blend) else meaning.engine_name

    def is_shown(self, name: str, scopes: Scopes, tenant: str) -> bool:
        """Whether a tenant may know of what the engine calls ``name``: a version, the base model or a blend."""
        if self._blends.concerns(name):
            return self._blends.is_shown(name, scopes, tenant)
        return self._catalog.covers(name, scopes)

    def queued(self, scopes: Scopes, tenant: str) -> list[AdapterLine]:
        """What runs and waits in front of the engine, by adapter, as far as a tenant may know of it."""
        base = self._catalog.base.served_name
        lines = [replace(line, name=line.name or base) for line in self._queue.by_adapter()]
        return [line for line in lines if self.is_shown(line.name, scopes, tenant)]

    async def _of(self, version: AdapterVersion) -> LoadableVersion:
        """Remembered, so that the disk is not asked on every request.

        Raises:
            ArtifactDamaged: its files are missing, or were found damaged.
        """
        found = self._loadable.get(version.id)
        if found is None or self._store.checks.is_damaged(version.digest) or not self._store.is_here(version.digest):
            found = self._loadable[version.id] = loadable(version, await self._store.for_engine(version.digest))
            if len(self._loadable) > _REMEMBERED:
                del self._loadable[next(iter(self._loadable))]
        return found

    async def drained(self, version_id: int) -> None:
        """Return when no request uses the version, and no blend is being built from it."""
        await self._usage.drained(version_id)
        self._loadable.pop(version_id, None)

    @property
    def running(self) -> int:
        """Adapter requests that are being answered, and inputs of blends that are being built."""
        return self._usage.total
