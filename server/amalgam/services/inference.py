"""One request from `model` to a held version: resolve once, count, wait for its turn, hold, release."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from pathlib import Path

from amalgam.domain.adapter import AdapterVersion
from amalgam.domain.alias import Uniform
from amalgam.engine.protocol import Engine, LoadableVersion
from amalgam.errors.engine import EngineNotReady
from amalgam.services.blends import Blend, Blends
from amalgam.services.catalog import Catalog, Target
from amalgam.services.fair_queue import FairQueue
from amalgam.services.usage import Usage
from amalgam.store.adapter_store import AdapterStore
from amalgam.telemetry.context import note_alias

Gone = Callable[[], Awaitable[object]]
"""Returns when a client has left."""


def loadable(version: AdapterVersion, folder: Path) -> LoadableVersion:
    """The version as the engine needs it: its name, id and folder never change."""
    return LoadableVersion(engine_name=str(version.ref), lora_id=version.id, folder=folder)


class Inference:
    """Admits requests. A version that was resolved stays servable until its request ends, whatever happens to names.

    Args:
        catalog: what names mean.
        engine: what answers.
        store: where versions lie.
        uniform: draws from weighted aliases.
        usage: shared with what else uses versions.
        blends: what expressions mean; None where none are served.
        queue: whose adapter may be in the batch; None leaves that to the engine.
    """

    def __init__(
        self,
        catalog: Catalog,
        engine: Engine,
        store: AdapterStore,
        uniform: Uniform,
        usage: Usage | None = None,
        blends: Blends | None = None,
        queue: FairQueue | None = None,
    ) -> None:
        self._catalog = catalog
        self._engine = engine
        self._store = store
        self._uniform = uniform
        self._usage = usage or Usage()
        self._blends = blends
        self._queue = queue
        self._loadable: dict[int, LoadableVersion] = {}

    @asynccontextmanager
    async def admit(
        self,
        model: str | None,
        *,
        user: str | None = None,
        client: str = "",
        generates: bool = True,
        gone: Gone | None = None,
    ) -> AsyncIterator[Target]:
        """Resolve ``model`` and keep what it means resident while the block runs.

        Args:
            model: as in `resolve`; an alias of several targets is drawn from.
            user: who asks; an alias means the same to them each time.
            client: whose new blends are counted together.
            generates: whether the engine's batch is needed; else there is no turn to wait for.
            gone: returns when the client has left; asked only where the request has to wait for its turn.

        Raises:
            ModelNotFound, AliasTargetGone: nothing of that name. For an expression besides, what `Blends` raises.
            EngineNotReady, EngineLoadFailed, SlotsBusy: see `Engine.hold`.
            NoTurn, ClientLeft: see `FairQueue.turn`.
        """
        meaning = self._meaning(self._drawn(model, user))
        if isinstance(meaning, Blend):
            async with self._admit_blend(meaning, client, generates, gone) as target:
                yield target
            return
        if meaning.version is None:
            async with self._engine.hold(None):
                yield meaning
            return
        # Counted before the first await: a deletion that starts now waits for this request.
        version = meaning.version
        self._usage.begin((version.id,))
        try:
            held = self._of(version)
            async with self._turn(held, generates, gone), self._engine.hold(held):
                yield meaning
        finally:
            await self._usage.end((version.id,))

    def resolve(self, model: str | None) -> Target:
        """What ``model`` means now: a name, an expression, or the name of a blend; nothing is loaded or built.

        Raises:
            ModelNotFound: nothing of that name. For an expression besides, what `Blends.resolve` raises.
        """
        meaning = self._meaning(model)
        if isinstance(meaning, Blend):
            assert self._blends is not None
            return self._blends.describe(meaning)
        return meaning

    def _meaning(self, model: str | None) -> Target | Blend:
        if self._blends is not None and model and self._blends.concerns(model):
            return self._blends.resolve(model)
        return self._catalog.resolve(model)

    @asynccontextmanager
    async def _admit_blend(
        self, blend: Blend, client: str, generates: bool, gone: Gone | None
    ) -> AsyncIterator[Target]:
        assert self._blends is not None
        if self._engine.state != "ready":
            # Known now; a blend that nobody can be answered with is not built.
            raise EngineNotReady(self._engine.state)
        async with (
            self._blends.hold(blend, client) as version,
            self._turn(version, generates, gone),
            self._engine.hold(version),
        ):
            yield Target(version.engine_name, None, blend.expression)

    def _turn(self, version: LoadableVersion, generates: bool, gone: Gone | None) -> AbstractAsyncContextManager[None]:
        """Before the version is made resident: what waits for its turn takes no place of others."""
        return self._queue.turn(version, gone) if self._queue is not None and generates else nullcontext()

    def _drawn(self, model: str | None, user: str | None) -> str | None:
        """What the request asks for, once an alias has been drawn from; the request counts as the alias' too."""
        alias = self._catalog.alias(model)
        if alias is None:
            return model
        note_alias(alias.name)
        return self._catalog.draw(alias, user, self._uniform)

    def _of(self, version: AdapterVersion) -> LoadableVersion:
        """Remembered, so that the disk is not asked on every request."""
        found = self._loadable.get(version.id)
        if found is None:
            found = self._loadable[version.id] = loadable(version, self._store.path(version.digest))
        return found

    async def drained(self, version_id: int) -> None:
        """Return when no request uses the version, and no blend is being built from it."""
        await self._usage.drained(version_id)
        self._loadable.pop(version_id, None)

    @property
    def running(self) -> int:
        """Adapter requests that are being answered, and inputs of blends that are being built."""
        return self._usage.total
