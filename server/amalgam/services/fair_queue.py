"""Whose request runs next: turns for tenants and their keys, and below them for adapters, in front of the engine.

The engine takes whatever it is given and answers in the order of arrival, so one key that sends many requests at once
would have everybody else wait for all of them. Here only as many run as a batch holds, and the rest waits. A place that
comes free goes to the tenant with the fewest tokens by its weight, those of running requests included; one that comes
anew begins where the least user stands (virtual token usages, Sheng et al., OSDI 2024). Places that a lesser user had
a moment ago are kept for its next requests, up to its fair share (`amalgam.services.kept_places`). Of a tenant's keys
the one with the fewest places gets it: each running sequence gets one token a step. Of several, the one that has used
least of late.

vLLM passes over a waiting request while its adapter is not in the batch and the slots are full, and takes later ones of
adapters that are. A few adapters with overlapping requests thus keep another one waiting for as long as they are asked.
So there is one line per key and adapter. An adapter that has a slot has its turn: its requests run together, as many as
come. Where another one has waited a while, the oldest turn that is used up closes: its new requests wait too, the
running ones end, and the slot goes to the next key's adapter that has waited longest. This is deficit round robin
(Shreedhar and Varghese, 1995) in which each request costs one. A turn closes late and never needlessly, because the
requests of a closing turn end one by one and leave the batch emptier.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import chain
from typing import Any, Final

from amalgam.engine.protocol import LoadableVersion
from amalgam.errors.engine import NoTurn
from amalgam.errors.overload import AdapterOverShare, DeadlineNotMet
from amalgam.errors.requests import ClientLeft
from amalgam.services.drain_rate import LONGEST_S, DrainRate
from amalgam.services.kept_places import Unused, kept_from, unused_of
from amalgam.services.queue_records import AdapterLine, Claim, KeyState, Line, Places, TenantState, Turn, Waiter, Who
from amalgam.telemetry.context import Asker, note_adapter, note_asker, tokens_of_current
from amalgam.telemetry.metrics import Metrics
from amalgam.telemetry.no_metrics import NO_METRICS

TURN_S: Final = 4.0
"""A turn is used up after so long, however few requests it began."""
PATIENCE_S: Final = 2.0
"""One turn closes for every so many seconds that the first in line has waited."""
MAX_DEBT_S: Final = 30.0
"""What a key has used beyond the others counts up to here, seconds in a place; more would be a punishment."""
MAX_DEBT_TOKENS: Final = 50_000.0
"""It is the same of a tenant of weight one, in tokens."""
_STEP_S: Final = 0.05
"""A step of the engine takes about so long."""
BASE: Final = 0
"""It stands for the base model among the ids of adapters, which begin at 1; it needs no slot."""

Gone = Callable[[], Awaitable[object]]
"""It returns when a client has left."""
__all__ = ["BASE", "MAX_DEBT_S", "MAX_DEBT_TOKENS", "PATIENCE_S", "TURN_S", "FairQueue", "Gone", "Places"]


class FairQueue:
    """Lets requests begin: at most ``slots`` adapters at a time, in at most ``places``.

    Args:
        slots: different adapters in one batch of the engine; infinite leaves adapters to the engine.
        quantum: requests that an adapter may begin in one turn while others wait.
        wait_s: longest wait of one request.
        clock: monotonic seconds.
        metrics: told of waits.
        places: sequences in one batch of the engine.
    """

    def __init__(
        self,
        slots: float,
        quantum: int,
        wait_s: float,
        clock: Callable[[], float] = time.monotonic,
        metrics: Metrics = NO_METRICS,
        places: Places | None = None,
    ) -> None:
        self.slots = slots
        """Adapters that may have a turn at once."""
        self._quantum = quantum
        self._wait_s = wait_s
        self._clock = clock
        self._metrics = metrics
        self._places = places or Places()
        self._running = 0
        self._drain = DrainRate(clock)
        self._keys: dict[Who, KeyState] = {}
        """With a request that waits or runs."""
        self._tenants: dict[str, TenantState] = {}
        self._turns: dict[int, Turn] = {}
        """By adapter, the oldest first; an adapter has a turn while a request of it runs."""
        self._lines: OrderedDict[tuple[Who, int], Line] = OrderedDict()
        """By key and adapter, in the order of their turns to come; none is empty."""

    def resize(self, places: Places, slots: float | None = None) -> None:
        """Set the bounds anew, when the engine has said how large its batch is; ``slots`` None: they stay."""
        self._places = places
        self.slots = self.slots if slots is None else slots
        self._settle()

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return sum(len(line.waiting) for line in self._lines.values())

    def by_adapter(self) -> list[AdapterLine]:
        """What runs and waits, by adapter: the longest wait first, then the most that run."""
        now_s, found = self._clock(), dict[int, AdapterLine]()

        def line(claim: Claim) -> AdapterLine:
            return found.setdefault(claim.adapter, AdapterLine("" if claim.adapter == BASE else claim.name))

        for tenant in self._tenants.values():
            for claim in tenant.claims.values():
                line(claim).running += 1
        for waiter in chain.from_iterable(line.waiting for line in self._lines.values()):
            of = line(waiter.claim)
            of.waiting += 1
            of.longest_wait_s = max(of.longest_wait_s, now_s - waiter.since_s)
        return sorted(found.values(), key=lambda one: (-one.longest_wait_s, -one.running, one.name))

    @asynccontextmanager
    async def turn(
        self,
        version: LoadableVersion | None,
        gone: Gone | None = None,
        client: str = "",
        sequences: int = 1,
        within_s: float | None = None,
        tenant: str = "",
        weight: float = 1.0,
    ) -> AsyncIterator[None]:
        """The block runs in a place of the batch, and in a turn of the version's adapter.

        Args:
            version: whose slot is needed; None: the base model, which needs none.
            gone: returns when the client has left; asked only where the request has to wait.
            client: whose request it is.
            sequences: how many run at once for the request.
            within_s: a longer wait is of no use to the client, seconds; refused at once where a longer one is expected.
            tenant: whose key it is.
            weight: the tenant's share under contention, in proportion to the others' weights.

        Raises:
            AdapterOverShare: as many requests wait for the adapter as may.
            NoTurn: the wait took longer than its limit.
            DeadlineNotMet: the wait that is expected is longer than ``within_s``.
            ClientLeft: the client left first.
        """
        name, adapter = ("the base model", BASE) if version is None else (version.engine_name, version.lora_id)
        who = (tenant, client)
        claim = Claim(who, adapter, name, sequences, tokens_of_current())
        key = self._come(who, weight)
        try:
            if self._lines or not self._may_begin(claim, key):
                if version is not None:
                    note_adapter(name)
                await self._wait(claim, gone, within_s)
            else:
                self._begin(claim, key)
        except BaseException:
            self._go(who, key)
            raise
        began_s = self._clock()
        note_asker(Asker(client, tenant, weight, sequences))
        try:
            yield
        finally:
            self._end(claim, key, began_s)
            self._go(who, key)

    def _come(self, who: Who, weight: float) -> KeyState:
        """The key's state; one that comes anew starts where the least user of the others stands, and saves nothing."""
        tenant = self._tenants.get(who[0])
        if tenant is None:
            tenant = TenantState(weight, min((other.usage for other in self._tenants.values()), default=0.0))
            self._tenants[who[0]] = tenant
        key = self._keys.get(who)
        if key is None:
            key = self._keys[who] = KeyState(tenant, self._least_s(tenant))
        tenant.weight = weight
        tenant.requests += 1
        key.requests += 1
        return key

    def _least_s(self, tenant: TenantState) -> float:
        return min((key.used_s for key in self._keys.values() if key.tenant is tenant), default=0.0)

    def _go(self, who: Who, key: KeyState) -> None:
        key.requests -= 1
        key.tenant.requests -= 1
        if key.tenant.requests == 0:
            del self._tenants[who[0]]
        if key.requests == 0:
            del self._keys[who]
            self._settle()  # what was kept for it is free

    def _unused(self) -> list[Unused]:
        """What those who share the batch, tenants, or the keys of one, had of late and do not use now."""
        sharers = [*self._tenants.values()] if len(self._tenants) > 1 else [*self._keys.values()]
        return unused_of(sharers, self._places.total, self._clock())

    def _in_share(self, key: KeyState, sequences: int, unused: Sequence[Unused]) -> bool:
        """Whether the key, and its tenant, may have so many places more, where others have left these unused.

        While a key is alone its last request may go over its share. A tenant's share is as large as a key's, however
        many keys it has; that of a tenant who is alone is the whole batch. A first place is kept from nobody.
        """
        more = 0 if len(self._keys) == 1 else sequences - 1
        own = key if len(self._tenants) == 1 else key.tenant
        if own.running == 0:
            return True
        if own.running + more >= self._places.per_key:
            return False
        return not unused or self._running + kept_from(own.usage, unused) < self._places.total

    def _may_begin(self, claim: Claim, key: KeyState) -> bool:
        """Whether it may begin where nobody waits: nothing but counting."""
        has_slot = claim.adapter == BASE or claim.adapter in self._turns or len(self._turns) < self.slots
        if not has_slot or self._running >= self._places.total:
            return False
        return self._in_share(key, claim.sequences, self._unused())

    async def _wait(self, claim: Claim, gone: Gone | None, within_s: float | None) -> None:
        self._require_room(claim)
        where, began_s = (claim.client, claim.adapter), self._clock()
        waiter = Waiter(claim, asyncio.get_running_loop().create_future(), began_s)
        if not self._lines:
            self._drain.restart()
        self._lines.setdefault(where, Line(began_s)).waiting.append(waiter)
        self._settle()
        if waiter.place.done():
            return
        try:
            self._require_hope(claim.client, within_s)
            with self._metrics.turn_waiting():
                left = await self._first(waiter.place, gone)
        except BaseException:
            self._leave(waiter)
            raise
        if waiter.place.done():
            self._metrics.turn_waited(self._clock() - began_s)
            return
        self._leave(waiter)
        if left:
            raise ClientLeft
        self._metrics.refused("no_turn")
        raise NoTurn(claim.name, self._wait_s)

    def _require_room(self, claim: Claim) -> None:
        """Others are to find a place in the line too. Raises AdapterOverShare."""
        bound = self._places.waiting_per_adapter
        if claim.adapter == BASE or self.waiting < bound:
            return
        if sum(len(line.waiting) for (_, other), line in self._lines.items() if other == claim.adapter) >= bound:
            self._metrics.refused("adapter_share")
            raise AdapterOverShare(claim.name, int(bound), self._drain.appointment_s())

    def _require_hope(self, client: Who, within_s: float | None) -> None:
        """Keys take turns, so before the last request of a key's line as many of each waiting key begin."""
        if within_s is None or not self._drain.known:
            return
        own = sum(len(line.waiting) for (owner, _), line in self._lines.items() if owner == client)
        expected_s = own * len({owner for owner, _ in self._lines}) * self._drain.seconds_each()
        if expected_s > within_s:
            self._metrics.refused("deadline")
            raise DeadlineNotMet(min(expected_s, LONGEST_S), passed=False)

    async def _first(self, place: "asyncio.Future[None]", gone: Gone | None) -> bool:
        """Return when the turn has come, the client has left, or the wait was too long; whether the client has left."""
        left = None if gone is None else asyncio.ensure_future(gone())
        try:
            awaited: set[asyncio.Future[Any]] = {place} if left is None else {place, left}
            done, _ = await asyncio.wait(awaited, timeout=self._wait_s, return_when=asyncio.FIRST_COMPLETED)
            return left in done
        finally:
            if left is not None:
                left.cancel()
                await asyncio.gather(left, return_exceptions=True)

    def _begin(self, claim: Claim, key: KeyState) -> None:
        key.running += claim.sequences
        key.tenant.running += claim.sequences
        key.tenant.claims[id(claim)] = claim
        self._running += claim.sequences
        now_s = self._clock()
        key.recent.note(key.running, now_s)
        key.tenant.recent.note(key.tenant.running, now_s)
        if claim.adapter == BASE:
            return
        turn = self._turns.get(claim.adapter)
        if turn is None:
            turn = self._turns[claim.adapter] = Turn(now_s, self._quantum)
        turn.running += 1
        turn.credit -= 1

    def _end(self, claim: Claim, key: KeyState, began_s: float) -> None:
        now_s = self._clock()
        key.running -= claim.sequences
        self._running -= claim.sequences
        self._charge(claim, key.tenant, now_s - began_s)
        least_s = self._least_s(key.tenant)
        key.used_s = min(key.used_s + (now_s - began_s) * claim.sequences, least_s + MAX_DEBT_S)
        if claim.adapter != BASE:
            self._end_in_turn(claim.adapter, now_s)
        self._drain.ended()
        if self._lines:
            self._settle()

    def _charge(self, claim: Claim, tenant: TenantState, lasted_s: float) -> None:
        """What a request took, once it has ended; where nobody has counted its tokens, one for each step's time."""
        tenant.running -= claim.sequences
        del tenant.claims[id(claim)]
        tokens = claim.tokens.total or lasted_s / _STEP_S * claim.sequences
        least = min(other.usage for other in self._tenants.values())
        tenant.spent = min(tenant.spent + tokens / tenant.weight, least + MAX_DEBT_TOKENS / tenant.weight)

    def _end_in_turn(self, adapter: int, now_s: float) -> None:
        turn = self._turns[adapter]
        turn.running -= 1
        if turn.running:
            return
        del self._turns[adapter]
        for where in [where for where in self._lines if where[1] == adapter]:
            self._lines.move_to_end(where)
            self._lines[where].since_s = now_s

    def _leave(self, waiter: Waiter) -> None:
        """Someone waits no longer; a turn that came in the same moment is given back."""
        claim = waiter.claim
        if waiter.place.done():
            self._end(claim, self._keys[claim.client], self._clock())
            return
        where = (claim.client, claim.adapter)
        line = self._lines[where]
        line.waiting.remove(waiter)
        if not line.waiting:
            del self._lines[where]
        self._settle()

    def _settle(self) -> None:
        """Begin whatever may begin now."""
        while self._lines and self._running < self._places.total:
            where = self._next()
            if where is None:
                return
            line = self._lines[where]
            waiter = line.waiting.popleft()
            # The key's other adapters come first next time; a line that waits for a slot has not moved meanwhile.
            self._lines.move_to_end(where)
            if not line.waiting:
                del self._lines[where]
            self._begin(waiter.claim, self._keys[waiter.claim.client])
            waiter.place.set_result(None)

    def _next(self) -> tuple[Who, int] | None:
        """The line whose first request begins next: of the tenant, and the key, with the least the oldest line."""
        unused = self._unused()
        closed = self._closed(self._clock(), unused)
        is_full = len(self._turns) >= self.slots
        best: tuple[Who, int] | None = None
        least: tuple[float, int, float] | None = None
        usages = {name: tenant.usage for name, tenant in self._tenants.items()}
        for where, line in self._lines.items():
            client, adapter = where
            key = self._keys[client]
            if adapter in closed or not self._in_share(key, line.waiting[0].claim.sequences, unused):
                continue
            if is_full and adapter != BASE and adapter not in self._turns:
                continue
            rank = (usages[client[0]], key.running, key.used_s)
            if least is None or rank < least:
                best, least = where, rank
        return best

    def _closed(self, now_s: float, unused: Sequence[Unused]) -> frozenset[int]:
        """Adapters whose turns begin nothing more: used up, the oldest first, as many as `_to_close` says."""
        closing = self._to_close(now_s, unused)
        if closing <= 0:
            return frozenset()
        used_up = [a for a, turn in self._turns.items() if turn.credit <= 0 or now_s - turn.began_s >= TURN_S]
        return frozenset(used_up[:closing])

    def _to_close(self, now_s: float, unused: Sequence[Unused]) -> int:
        """How many turns close: none while nobody waits for want of a slot, and more the longer the first one does."""
        if len(self._turns) < self.slots:
            return 0
        waits = [
            line.since_s
            for (client, adapter), line in self._lines.items()
            if adapter != BASE
            and adapter not in self._turns
            and self._in_share(self._keys[client], line.waiting[0].claim.sequences, unused)
        ]
        return int((now_s - min(waits)) / PATIENCE_S) if waits else 0
