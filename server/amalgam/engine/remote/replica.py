"""An engine as an actor of Ray Serve: it takes orders from fronts, finds files by digest, and numbers blends itself.

Ray imports this module in the actor's process and calls the class by its methods' names.
"""

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter

from amalgam.engine.protocol import CallProfile, Engine, LoadableVersion, OwnTemplate
from amalgam.engine.remote.messages import (
    ERROR,
    CallOrder,
    PinOrder,
    ReplicaInfo,
    ServedFacts,
    ToldProfile,
    ToldVersion,
    UnloadOrder,
)
from amalgam.engine.remote.replica_call import ReplicaCall
from amalgam.engine.remote.told_errors import ToldError
from amalgam.errors import AmalgamError
from amalgam.errors.engine import EngineNotReady

logger = logging.getLogger(__name__)

INFO: TypeAdapter[ReplicaInfo] = TypeAdapter(ReplicaInfo)


class ReplicaOrder(BaseModel):
    """What an actor is to be. A change of anything in it replaces all actors, one after the other."""

    model_config = ConfigDict(frozen=True)

    factory: str
    """``module:function``; called with this order, it gives `ReplicaParts`, once the engine answers."""
    model: str
    """Folder or hub id of the base model."""
    is_demo: bool = False
    """Whether it is the demo model."""
    served_names: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    """Of vLLM's server."""
    variables: dict[str, str] = {}
    """Of the actor's environment."""
    generation: str = ""
    """Means nothing by itself: another one has the actors replaced."""


@dataclass(frozen=True, slots=True)
class ReplicaParts:
    """What an actor works with."""

    engine: Engine
    """Ready."""
    app: Any
    """In whose state vLLM's handlers are."""
    facts: ServedFacts
    folder_of: Callable[[str], Path]
    """The folder of a digest in the store; blocks, and may raise ArtifactDamaged."""
    template_of: Callable[[str, str], OwnTemplate]
    """A version's own chat template, by the version's name and the template's text."""
    close: Callable[[], Awaitable[None]]
    """Ends the engine and what is beside it."""


class EngineReplica:
    """The actor. Every argument and answer is bytes: JSON, or frames of `messages`."""

    async def __init__(self, order: str) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        asked = ReplicaOrder.model_validate_json(order)
        os.environ.update(asked.variables)
        module, _, function = asked.factory.partition(":")
        make: Callable[[ReplicaOrder], Awaitable[ReplicaParts]] = getattr(import_module(module), function)
        self._parts = await make(asked)
        self._name = _own_name()
        self._blend_ids: dict[str, int] = {}
        """By folder: two fronts that number blends by themselves would give one id to two of them."""
        self._blends = _Names()
        logger.info("replica_ready replica=%s pid=%d", self._name, os.getpid())

    async def __del__(self) -> None:
        """Ray Serve awaits it where a replica is ended in good order."""
        await self._parts.close()

    async def check_health(self) -> None:
        """Raise where the engine is not coming back by itself, so that Ray Serve replaces the actor."""
        if self._parts.engine.state in ("down", "stopped"):
            raise EngineNotReady(self._parts.engine.state)

    def record_routing_stats(self) -> dict[str, Any]:
        """What routers read: who is resident, and whether requests are answered."""
        info = self._parts.engine.info()
        return {"resident": [one.engine_name for one in info.residents], "is_ready": info.state == "ready"}

    async def info(self) -> bytes:
        """State, slots and residents."""
        return INFO.dump_json(ReplicaInfo(self._name, self._parts.engine.info(), self._parts.facts))

    async def call(self, written: bytes) -> AsyncIterator[bytes]:
        """Answer one request, in frames."""
        try:
            order = CallOrder.read(written)
            version = await self._loadable(order.version)
        except AmalgamError as error:
            yield ERROR + ToldError.of(error).model_dump_json().encode()
            return
        parts = self._parts
        hold = lambda: self._held(version)  # noqa: E731  (each call has a version of its own)
        frames = ReplicaCall(parts.engine, parts.app, order, hold, self._profile(order.profile)).frames()
        try:
            async for frame in frames:
                yield frame
        finally:
            await frames.aclose()  # type: ignore[attr-defined]  # it is a generator

    async def load(self, written: bytes) -> bytes:
        """Make a version resident; what went wrong, or nothing."""
        return await self._told(self._load(written, is_probed=False))

    async def probe(self, written: bytes) -> bytes:
        """The same, and generate a token with it."""
        return await self._told(self._load(written, is_probed=True))

    async def unload(self, written: bytes) -> bool:
        """Wait until nobody holds the version, then free its memory."""
        order = UnloadOrder.model_validate_json(written)
        lora_id = order.lora_id if not order.folder else self._blend_ids.get(order.folder)
        if lora_id is None:
            return False
        found = await self._parts.engine.unload(lora_id)
        self._blend_ids.pop(order.folder, None)
        return found

    async def pin(self, written: bytes) -> bool:
        """Exempt a resident version from eviction, or end that."""
        order = PinOrder.model_validate_json(written)
        return await self._parts.engine.pin(order.lora_id, pinned=order.pinned)

    async def untaken(self, written: bytes) -> bytes:
        """Answers as `Engine.untaken`: a list of names, or what is wrong."""
        try:
            found = await self._parts.engine.untaken(json.loads(written))
        except AmalgamError as error:
            return ERROR + ToldError.of(error).model_dump_json().encode()
        return json.dumps(sorted(found)).encode()

    async def _load(self, written: bytes, *, is_probed: bool) -> None:
        version = await self._loadable(ToldVersion.model_validate_json(written))
        assert version is not None
        async with self._held(version):
            if is_probed:
                await self._parts.engine.probe(version)

    async def _told(self, work: Awaitable[None]) -> bytes:
        try:
            await work
        except AmalgamError as error:
            return ToldError.of(error).model_dump_json().encode()
        return b""

    async def _loadable(self, told: ToldVersion | None) -> LoadableVersion | None:
        """The version with its folder here; a blend with the id that it has here."""
        if told is None:
            return None
        if told.digest:
            folder = await asyncio.to_thread(self._parts.folder_of, told.digest)
            return LoadableVersion(told.engine_name, told.lora_id, folder, told.digest)
        lora_id = self._blend_ids.get(told.folder)
        if lora_id is None:
            lora_id = self._blend_ids[told.folder] = self._parts.engine.new_blend_id()
        return LoadableVersion(told.engine_name, lora_id, Path(told.folder))

    @asynccontextmanager
    async def _held(self, version: LoadableVersion | None) -> AsyncIterator[None]:
        """Holds as `Engine.hold`. Two fronts may have a blend of one name each: here a name is one folder at a time."""
        engine = self._parts.engine
        if version is None or version.digest:
            async with engine.hold(version):
                yield
            return
        async with self._blends.turn(version, engine.unload):
            hold = engine.hold(version)
            await hold.__aenter__()
        try:
            yield
        finally:
            await hold.__aexit__(None, None, None)

    def _profile(self, told: ToldProfile | None) -> CallProfile | None:
        if told is None:
            return None
        own = None if told.template is None else self._parts.template_of(told.template_model, told.template)
        return CallProfile(own, told.unsaid)


class _Names:
    """Which blend each name is. vLLM's handlers find adapters by name alone."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    @asynccontextmanager
    async def turn(self, version: LoadableVersion, unload: Callable[[int], Awaitable[bool]]) -> AsyncIterator[None]:
        """The name is ``version``'s from here on; in the block nobody else can take it."""
        lock = self._locks.setdefault(version.engine_name, asyncio.Lock())
        async with lock:
            other = self._ids.get(version.engine_name)
            if other is not None and other != version.lora_id:
                await unload(other)
            self._ids[version.engine_name] = version.lora_id
            yield


def _own_name() -> str:
    from ray import serve

    return str(serve.get_replica_context().replica_id.unique_id)
