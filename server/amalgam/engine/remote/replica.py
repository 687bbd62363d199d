"""An engine as an actor of Ray Serve: it takes orders from fronts, finds files by digest, and builds blends itself.

Ray imports this module in the actor's process and calls the class by its methods' names.
"""

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Set
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, TypeAdapter

from amalgam.domain.blend_plan import BlendPlan
from amalgam.engine.protocol import CallProfile, Engine, LoadableVersion, OwnTemplate
from amalgam.engine.remote.channel_server import ChannelServer
from amalgam.engine.remote.heard_fronts import HeardFronts
from amalgam.engine.remote.messages import (
    ERROR,
    TAKEN,
    CallOrder,
    PinOrder,
    ReplicaInfo,
    ServedFacts,
    ToldProfile,
    ToldVersion,
    UnloadOrder,
    page,
)
from amalgam.engine.remote.replica_call import ReplicaCall
from amalgam.engine.remote.told_errors import ToldError
from amalgam.errors import AmalgamError
from amalgam.errors.engine import EngineNotReady
from amalgam.errors.remote import ChannelLost
from amalgam.telemetry.context import Asker

logger = logging.getLogger(__name__)

Gone = Callable[[], Awaitable[object]]
"""It returns when a client has left."""

INFO: TypeAdapter[ReplicaInfo] = TypeAdapter(ReplicaInfo)


class ReplicaOrder(BaseModel):
    """What an actor is to be. A change of anything in it replaces all actors, one after the other."""

    model_config = ConfigDict(frozen=True)

    factory: str
    """It is written ``module:function``; called with this order, it gives `ReplicaParts`, once the engine answers."""
    model: str
    """It is the folder or hub id of the base model."""
    is_demo: bool = False
    """It tells whether it is the demo model."""
    served_names: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    """They are those of vLLM's server."""
    variables: dict[str, str] = {}
    """The actor's environment has them."""
    generation: str = ""
    """It means nothing by itself: another one has the actors replaced."""


@dataclass(frozen=True, slots=True)
class ReplicaParts:
    """What an actor works with."""

    engine: Engine
    """It is ready."""
    app: Any
    """The handlers of vLLM are in its state."""
    facts: ServedFacts
    folder_of: Callable[[str], Awaitable[Path]]
    """It tells where the files of a version's digest lie; it may raise ArtifactDamaged and ObjectStoreUnavailable."""
    blends: "ReplicaBlends"
    queue: "ReplicaQueue"
    template_of: Callable[[str, str], OwnTemplate]
    """It gives a version's own chat template, by the version's name and the template's text."""
    page: Callable[[], bytes]
    """It gives what is counted here, in Prometheus' text format; it is called in a thread."""
    close: Callable[[], Awaitable[None]]
    """It ends the engine and what is beside it."""


class ReplicaBlends(Protocol):
    """What builds blends for the engine, and keeps them."""

    def hold(self, plan: BlendPlan) -> AbstractAsyncContextManager[LoadableVersion]:
        """The blend that ``plan`` describes, while the block runs; built first where it is not there."""

    def retire(self, versions: Set[int]) -> None:
        """Let go of the blends of deleted versions."""


class ReplicaQueue(Protocol):
    """Whose request is next in the engine's batch."""

    def turn(
        self,
        version: LoadableVersion | None,
        gone: Gone | None = None,
        client: str = "",
        sequences: int = 1,
        within_s: float | None = None,
        tenant: str = "",
        weight: float = 1.0,
    ) -> AbstractAsyncContextManager[None]:
        """The block runs in a place of the batch, and in a turn of the version's adapter."""


class EngineReplica:
    """The actor. Every argument and answer is bytes: JSON, or frames of `messages`.

    Attributes:
        parts: what the order's factory made, which answers.
    """

    parts: ReplicaParts

    async def __init__(self, order: str) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        asked = ReplicaOrder.model_validate_json(order)
        os.environ.update(asked.variables)
        module, _, function = asked.factory.partition(":")
        make: Callable[[ReplicaOrder], Awaitable[ReplicaParts]] = getattr(import_module(module), function)
        self.parts = await make(asked)
        self._name = own_name()
        self._fronts = HeardFronts()
        self._channels = ChannelServer()
        host = own_host()
        if host:
            await self._channels.open(host)
        logger.info("replica_ready replica=%s pid=%d", self._name, os.getpid())

    async def __del__(self) -> None:
        """Ray Serve awaits it where a replica is ended in good order."""
        await self._channels.close()
        await self.parts.close()

    async def check_health(self) -> None:
        """Raise where the engine is not coming back by itself, so that Ray Serve replaces the actor."""
        if self.parts.engine.state in ("down", "stopped"):
            raise EngineNotReady(self.parts.engine.state)

    def record_routing_stats(self) -> dict[str, Any]:
        """What routers read, every second: who is resident, and whether requests are answered."""
        self._fronts.end_silent()
        info = self.parts.engine.info()
        return {"resident": [one.engine_name for one in info.residents], "is_ready": info.state == "ready"}

    async def info(self, front: str = "") -> bytes:
        """State, slots and residents, for the front of that name."""
        self._fronts.heard(front)
        return INFO.dump_json(
            ReplicaInfo(self._name, self.parts.engine.info(), self.parts.facts, self._channels.address)
        )

    async def page(self) -> bytes:
        """What is counted here."""
        return page(self._name, await asyncio.to_thread(self.parts.page))

    async def call(self, written: bytes) -> AsyncIterator[bytes]:
        """Answer one request, in frames: through Ray, or through the front's channel all but the first."""
        order, parts = CallOrder.read(written), self.parts
        hold = partial(self._held, order.version, order.asker)
        call = ReplicaCall(parts.engine, parts.app, order, hold, self._profile(order.profile))
        channel = self._channels.to(order.front) if order.number else None
        with self._fronts.call(order.front, call.end):
            async with aclosing(call.frames()) as frames:
                if channel is None:
                    async for frame in frames:
                        yield frame
                    return
                assert await anext(frames) == TAKEN
                yield TAKEN + self._name.encode()
                try:
                    async for frame in frames:
                        await channel.send(order.number, frame)
                    await channel.end(order.number)
                except ChannelLost as error:
                    # The front sees it too, and asks again or tells its client.
                    logger.warning("channel_lost front=%s reason=%s", order.front, error)

    async def load(self, written: bytes) -> bytes:
        """Make a version resident; what went wrong, or nothing."""
        return await self._told(self._load(written, is_probed=False))

    async def probe(self, written: bytes) -> bytes:
        """The same, and generate a token with it."""
        return await self._told(self._load(written, is_probed=True))

    async def unload(self, written: bytes) -> bool:
        """Wait until nobody holds the version, then free its memory."""
        order = UnloadOrder.model_validate_json(written)
        self.parts.blends.retire({order.lora_id})
        return await self.parts.engine.unload(order.lora_id)

    async def pin(self, written: bytes) -> bool:
        """Exempt a resident version from eviction, or end that."""
        order = PinOrder.model_validate_json(written)
        return await self.parts.engine.pin(order.lora_id, pinned=order.pinned)

    async def untaken(self, written: bytes) -> bytes:
        """Answers as `Engine.untaken`: a list of names, or what is wrong."""
        try:
            found = await self.parts.engine.untaken(json.loads(written))
        except AmalgamError as error:
            return ERROR + ToldError.of(error).model_dump_json().encode()
        return json.dumps(sorted(found)).encode()

    async def _load(self, written: bytes, *, is_probed: bool) -> None:
        async with self._held(ToldVersion.model_validate_json(written)) as version:
            if is_probed:
                assert version is not None
                await self.parts.engine.probe(version)

    async def _told(self, work: Awaitable[None]) -> bytes:
        try:
            await work
        except AmalgamError as error:
            return ToldError.of(error).model_dump_json().encode()
        return b""

    @asynccontextmanager
    async def _held(
        self, told: ToldVersion | None, asker: Asker | None = None, gone: Gone | None = None
    ) -> AsyncIterator[LoadableVersion | None]:
        """What ``told`` means here, in the engine's memory: files are found by digest, and blends built from a plan.

        Requests of several fronts take turns here, after those of each had theirs at the front.

        The engine numbers blends itself, and one recipe is one blend of it, whichever fronts ask: two fronts that count
        by themselves would give one number to two sets of weights.
        """
        parts = self.parts
        async with AsyncExitStack() as stack:
            version: LoadableVersion | None = None
            if told is not None and told.plan is not None:
                version = await stack.enter_async_context(parts.blends.hold(told.plan))
            elif told is not None:
                folder = await parts.folder_of(told.digest)
                version = LoadableVersion(told.engine_name, told.lora_id, folder, told.digest)
            if asker is not None:
                who = (asker.client, asker.sequences, None, asker.tenant, asker.weight)
                await stack.enter_async_context(parts.queue.turn(version, gone, *who))
            await stack.enter_async_context(parts.engine.hold(version))
            yield version

    def _profile(self, told: ToldProfile | None) -> CallProfile | None:
        if told is None:
            return None
        own = None if told.template is None else self.parts.template_of(told.template_model, told.template)
        return CallProfile(own, told.unsaid)


def own_name() -> str:
    """The id that Ray Serve gave this replica."""
    from ray import serve

    return str(serve.get_replica_context().replica_id.unique_id)


def own_host() -> str:
    """The address at which Ray's other processes reach this one; empty where Ray encrypts what it carries.

    The channel does not encrypt, and nothing is to go past what was meant to protect it.
    """
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return ""
    import ray

    return str(ray.util.get_node_ip_address())
