"""`Engine` over replicas on Ray Serve: this process has no vLLM, and what it holds is counted here and held there."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from itertools import count
from typing import Any, Final

from starlette.requests import Request

from amalgam.engine.protocol import (
    FIRST_BLEND_ID,
    CallProfile,
    Endpoint,
    EngineInfo,
    EngineState,
    LoadableVersion,
)
from amalgam.engine.remote.affinity import routing_key
from amalgam.engine.remote.channel_client import Answer, Channels
from amalgam.engine.remote.messages import (
    ERROR,
    CallOrder,
    PinOrder,
    ReplicaInfo,
    ServedFacts,
    ToldProfile,
    ToldVersion,
    UnloadOrder,
    kind_of,
    read_page,
)
from amalgam.engine.remote.remote_call import ATTEMPTS, RemoteCall
from amalgam.engine.remote.replica import INFO
from amalgam.engine.remote.told_errors import ToldError
from amalgam.engine.stripped_request import SHOWN_HEADERS
from amalgam.errors.engine import EngineNotReady
from amalgam.errors.remote import ChannelLost
from amalgam.errors.requests import EndpointUnsupported
from amalgam.telemetry.context import current, note_adapter

logger = logging.getLogger(__name__)

LOOK_S: Final = 0.5
"""It lies between two looks at the replicas."""
_PAGE_S: Final = 0.8
_ANSWER_S: Final = 5.0
"""A replica that says nothing of itself for so long counts as absent."""


class RemoteEngine:
    """Replicas, asked by handle.

    Args:
        handle: of the deployment.
        facts: what the replicas serve.
        lost: what Ray raises where a replica is lost.
        front: a name that no other front has; replicas end what a front asked for that they hear nothing of.

    Attributes:
        channels: by which replicas send their answers.
    """

    def __init__(self, handle: Any, facts: ServedFacts, lost: tuple[type[BaseException], ...], front: str) -> None:
        self._handle = handle
        self._front = front
        self.channels = Channels(front)
        self._facts = facts
        self._lost: tuple[type[BaseException], ...] = (*lost, ChannelLost)
        self._held: dict[str, tuple[LoadableVersion, int]] = {}
        self._blend_ids = count(FIRST_BLEND_ID)
        self._infos: tuple[ReplicaInfo, ...] = ()
        self._state: EngineState = "starting"
        self._ready = asyncio.Event()
        self._follower: asyncio.Task[None] | None = None

    # ---- life

    @property
    def is_elsewhere(self) -> bool:
        """It is."""
        return True

    async def start(self) -> None:
        """Begin to look at the replicas."""
        self._follower = asyncio.create_task(self._follow(), name="follow replicas")

    async def stop(self, drain_s: float) -> None:
        """Wait for what is held; the replicas go on without this front."""
        with suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                while self._held:  # noqa: ASYNC110  (a wait with a limit, once)
                    await asyncio.sleep(0.05)
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.gather(self._follower, return_exceptions=True)
        await self.channels.close()
        self._state = "stopped"

    @property
    def state(self) -> EngineState:
        """Ready while one replica at least is."""
        return self._state

    async def wait_ready(self, timeout_s: float) -> None:
        """Return when one replica is ready."""
        try:
            await asyncio.wait_for(self._ready.wait(), timeout_s)
        except TimeoutError:
            raise EngineNotReady(self._state) from None

    async def _follow(self) -> None:
        while True:
            infos = await self._looked()
            if not infos and self._infos:
                # Once more: to a front that stood still for a while nobody answered in time, though all of them did.
                infos = await self._looked()
            self._infos = infos
            self.channels.follow({info.replica: info.channel for info in infos if info.channel is not None})
            if any(info.engine.state == "ready" for info in self._infos):
                self._state = "ready"
                self._ready.set()
            elif self._state != "starting":
                self._state = "restarting"
                self._ready.clear()
            await asyncio.sleep(LOOK_S)

    async def _looked(self) -> tuple[ReplicaInfo, ...]:
        """What the replicas say of themselves; nothing where Ray is away."""
        try:
            return await self._told_infos()
        except Exception as error:
            # Whatever it was: Ray may be on its way back.
            logger.warning("replicas_unknown reason=%s: %s", type(error).__name__, error)
            return ()

    async def _told_infos(self) -> tuple[ReplicaInfo, ...]:
        said = await self._handle.broadcast("info", self._front).results_async(
            timeout_s=_ANSWER_S, return_exceptions=True
        )
        return tuple(INFO.validate_json(one) for one in said if isinstance(one, bytes))

    async def pages(self) -> Mapping[str, bytes]:
        """What each replica counts; a scrape waits for them no longer than `_PAGE_S`."""
        try:
            said = await self._handle.broadcast("page").results_async(timeout_s=_PAGE_S, return_exceptions=True)
        except Exception as error:
            # Whatever it was: a page without the engines' numbers is of use.
            logger.warning("replica_pages_unknown reason=%s", type(error).__name__)
            return {}
        return dict(read_page(one) for one in said if isinstance(one, bytes))

    def info(self) -> EngineInfo:
        """All replicas as one engine: places are added up, and a version is resident where one of them has it."""
        engines = [info.engine for info in self._infos]
        ready = [engine for engine in engines if engine.state == "ready"]
        first = next(iter(ready or engines), None)
        # By name: each replica numbers its blends by itself.
        placed = {one.engine_name: one for engine in engines for one in engine.in_batch}
        others = {one.engine_name: one for engine in engines for one in engine.residents}
        residents = {name: one for name, one in others.items() if name not in placed} | placed
        return EngineInfo(
            state=self._state,
            served_name=self._facts.names[0],
            slots=sum(engine.slots for engine in ready),
            capacity=sum(engine.capacity for engine in ready),
            max_rank=self._facts.max_lora_rank,
            restarts=sum(engine.restarts for engine in engines),
            residents=tuple(residents.values()),
            startup_s={} if first is None else first.startup_s,
            sequences=sum(engine.sequences for engine in ready),
            dtype="bfloat16" if first is None else first.dtype,
            replicas=len(ready),
            blend_bytes=self._facts.blend_bytes,
            placed=len(placed),
        )

    # ---- versions

    @asynccontextmanager
    async def hold(self, version: LoadableVersion | None) -> AsyncIterator[None]:
        """Count ``version`` as held; the replica that answers makes it resident, and says what is wrong with it."""
        self._require_ready()
        if version is None:
            yield
            return
        name = version.engine_name
        note_adapter(name)
        self._held[name] = (version, self._held.get(name, (version, 0))[1] + 1)
        try:
            yield
        finally:
            held = self._held[name][1] - 1
            if held:
                self._held[name] = (self._held[name][0], held)
            else:
                del self._held[name]

    async def load(self, version: LoadableVersion) -> None:
        """Make ``version`` resident where its requests will go."""
        await self._order("load", version)

    async def probe(self, version: LoadableVersion) -> None:
        """Generate one token with ``version`` where its requests will go."""
        await self._order("probe", version)

    async def _order(self, method: str, version: LoadableVersion) -> None:
        self._require_ready()
        told = ToldVersion.of(version).model_dump_json().encode()
        for attempt in range(ATTEMPTS):
            handle = self._handle.options(multiplexed_model_id=routing_key(version.engine_name, attempt))
            try:
                answer = await getattr(handle, method).remote(told)
            except self._lost:
                continue
            if not answer:
                return
            error = ToldError.model_validate_json(answer).as_error()
            if not isinstance(error, EngineNotReady):
                raise error
        raise EngineNotReady("restarting")

    async def untaken(self, modules: Collection[str]) -> frozenset[str]:
        """What a replica says; they are all alike."""
        asked = json.dumps(sorted(modules)).encode()
        for attempt in range(ATTEMPTS):
            handle = self._handle.options(multiplexed_model_id=routing_key(None, attempt))
            try:
                answer: bytes = await handle.untaken.remote(asked)
            except self._lost:
                continue
            if kind_of(answer) != ERROR:
                return frozenset(json.loads(answer))
        raise EngineNotReady("restarting")

    async def unload(self, lora_id: int) -> bool:
        """Have every replica let go of it; of blends they do so by themselves."""
        if lora_id >= FIRST_BLEND_ID:
            return False
        return await self._broadcast("unload", UnloadOrder(lora_id=lora_id).model_dump_json().encode())

    def new_blend_id(self) -> int:
        """The number by which this front knows a blend; each replica gives it one of its own."""
        return next(self._blend_ids)

    async def pin(self, lora_id: int, *, pinned: bool) -> bool:
        """Pin it where it is resident."""
        return await self._broadcast("pin", PinOrder(lora_id=lora_id, pinned=pinned).model_dump_json().encode())

    async def _broadcast(self, method: str, order: bytes) -> bool:
        said = await self._handle.broadcast(method, order).results_async(return_exceptions=True)
        return any(one is True for one in said)

    # ---- requests

    def supports(self, endpoint: Endpoint) -> bool:
        """What the replicas say."""
        return endpoint in self._facts.endpoints

    async def call(
        self, endpoint: Endpoint, body: dict[str, Any], raw_request: Request, profile: CallProfile | None = None
    ) -> Any:
        """Have a replica answer one request."""
        self._require_ready()
        if not self.supports(endpoint):
            raise EndpointUnsupported(endpoint)
        name = body["model"]
        version = self._held[name][0] if name in self._held else None
        context = current()
        order = CallOrder(
            endpoint,
            body,
            None if version is None else ToldVersion.of(version),
            None if profile is None else ToldProfile.of(profile),
            _shown(raw_request),
            "" if context is None else context.request_id,
            None if context is None else context.asker,
            self._front,
        )
        key = None if version is None else version.engine_name

        def ask(attempt: int) -> Answer:
            options = self._handle.options(stream=True, multiplexed_model_id=routing_key(key, attempt))
            number = self.channels.next_number()
            return self.channels.awaited(number, options.call.remote(replace(order, number=number).written()))

        return await RemoteCall(ask, endpoint, raw_request, self._lost).answer()

    def _require_ready(self) -> None:
        if self._state != "ready":
            raise EngineNotReady(self._state)


def _shown(request: Request) -> tuple[tuple[str, str], ...]:
    """Headers of the client that vLLM's handlers are shown."""
    return tuple(
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in request.scope["headers"]
        if name.lower() in SHOWN_HEADERS
    )
