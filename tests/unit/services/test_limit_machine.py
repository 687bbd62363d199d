"""Limits under everything at once: many front ends, requests that begin and end and leave, deaths, a database that is
away or loses its word, clocks that jump. Never more than a limit, and never stuck."""

from collections import deque
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from amalgam.domain.limits import FRESH_S, KEPT_S, LEASE_S, MINUTE_S, Measure, SliceAsk
from amalgam.errors.registry import RegistryUnavailable
from amalgam.services.limit_shares import Share, Shares, short
from tests.unit.services.limit_fronts import SlicesInMemory, bucket

LIMIT = 100
REQUESTS = 7
AT_ONCE = 3
MEASURES = {Measure.TOKENS: LIMIT, Measure.REQUESTS: REQUESTS, Measure.CONCURRENT: AT_ONCE, Measure.TOKENS_DAY: 400}
FRONTS = st.integers(0, 2)


@dataclass(eq=False)
class Running:
    """A request that was let in."""

    taken: list[tuple[Share, int, int]]
    began_s: float
    tokens: int
    spent: int = 0
    """What it will have used."""
    is_excused: bool = False
    """Began before its front end was cut off for long."""


@dataclass(eq=False)
class Front:
    """One front end."""

    name: str
    shares: Shares = field(default_factory=Shares)
    running: list[Running] = field(default_factory=list)
    in_flight: tuple[list[tuple[Share, SliceAsk]], float] | None = None
    """An exchange that has begun and not ended."""
    heard_s: float = float("-inf")
    """When the database last wrote what it says."""
    wall_s: float = 0.0
    """What the clock on the wall of its machine says; nobody asks it."""


class LimitMachine(RuleBasedStateMachine):
    """Units are counted by the true time of their admission, which the machine alone knows."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0
        self.slices = SlicesInMemory()
        self.names = iter(range(1000))
        self.fronts = [self.front() for _ in range(3)]
        self.admitted: deque[Running] = deque()
        self.day_total = 0

    def front(self) -> Front:
        return Front(f"front-{next(self.names)}")

    def shares_of(self, front: Front) -> tuple[Share, ...]:
        return front.shares.of(bucket(measure, limit) for measure, limit in MEASURES.items())

    def exchange(self, front: Front) -> bool:
        """A whole exchange, with nothing in between; whether it came to its end."""
        asks = front.shares.asks(self.now_s)
        return self.finish(front, asks, self.now_s)

    def finish(self, front: Front, asks: list[tuple[Share, SliceAsk]], asked_s: float) -> bool:
        try:
            _, pieces = self.slices.exchanged(front.name, asked_s, [ask for _, ask in asks])
        except RegistryUnavailable:
            for share, ask in asks:
                share.unheard(ask)
            return False
        for (share, ask), piece in zip(asks, pieces, strict=True):
            share.given(ask, piece, asked_s)
        if self.now_s - front.heard_s >= LEASE_S - 1:
            # It was taken for dead meanwhile, and its places may have been given to others: it goes on all the same.
            for request in front.running:
                request.is_excused = True
        front.heard_s = asked_s
        return True

    def try_to_begin(self, front: Front, tokens: int, spent: int) -> bool:
        needs = [(share, tokens if share.bucket.measure.counts_tokens else 1) for share in self.shares_of(front)]
        missing = short(needs, self.now_s)
        if missing and front.in_flight is None:
            for share, units in missing:
                share.waiting += units
            self.exchange(front)
            for share, units in missing:
                share.waiting -= units
        if short(needs, self.now_s):
            return False
        taken = [(share, share.use(units, self.now_s), units) for share, units in needs]
        request = Running(taken, self.now_s, tokens, min(spent, tokens))
        front.running.append(request)
        self.admitted.append(request)
        self.day_total += tokens
        return True

    @rule(front=FRONTS, tokens=st.integers(1, LIMIT), spent=st.integers(0, LIMIT))
    def begin(self, front: int, tokens: int, spent: int) -> None:
        self.try_to_begin(self.fronts[front], tokens, spent)

    @rule(front=FRONTS, which=st.integers(0, 9))
    def end(self, front: int, which: int) -> None:
        """Answered, or left by its client: either way what was generated is charged, and the rest given back."""
        running = self.fronts[front].running
        if running:
            self.settle(running.pop(which % len(running)))

    def settle(self, request: Running) -> None:
        unused = request.tokens - request.spent
        for share, slot, _ in request.taken:
            if share.bucket.measure.counts_tokens:
                share.give_back(slot, unused, self.now_s)
            elif share.bucket.measure is Measure.CONCURRENT:
                share.give_back(slot, 1, self.now_s)
        request.tokens = request.spent
        self.day_total -= unused

    @rule(front=FRONTS)
    def tell(self, front: int) -> None:
        if self.fronts[front].in_flight is None:
            self.exchange(self.fronts[front])

    @rule(front=FRONTS, late_s=st.sampled_from((0.0, 0.0, 3.0, 6.0)))
    def start_telling(self, front: int, late_s: float) -> None:
        """Others go on while an exchange is under way, which may be expected to take long."""
        chosen = self.fronts[front]
        if chosen.in_flight is None:
            chosen.in_flight = (chosen.shares.asks(self.now_s, late_s=late_s), self.now_s)

    @rule(front=FRONTS)
    def end_telling(self, front: int) -> None:
        chosen = self.fronts[front]
        if chosen.in_flight is not None:
            asks, asked_s = chosen.in_flight
            chosen.in_flight = None
            self.finish(chosen, asks, asked_s)

    @rule(seconds=st.one_of(st.floats(0.0, 3.0), st.floats(0.0, 70.0)))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        # Fronts that live and can, tell in time; one whose exchange hangs is cut off at its limit.
        for front in self.fronts:
            if front.in_flight is not None and self.now_s - front.in_flight[1] > FRESH_S:
                asks, _ = front.in_flight
                front.in_flight = None
                for share, ask in asks:
                    share.unheard(ask)
            if front.in_flight is None and not self.slices.is_down:
                self.exchange(front)

    @rule(front=FRONTS)
    def die(self, front: int) -> None:
        """At any moment, without a word; what it had admitted ends with it, and stays charged."""
        self.fronts[front] = self.front()

    @rule(down=st.booleans(), deaf=st.booleans())
    def lose_the_database(self, down: bool, deaf: bool) -> None:
        self.slices.is_down, self.slices.is_deaf = down, deaf

    @rule(front=FRONTS, by=st.floats(-1e6, 1e6))
    def turn_the_clock_on_the_wall(self, front: int, by: float) -> None:
        """Of one machine; no limit is counted by it."""
        self.fronts[front].wall_s += by

    @invariant()
    def never_more_tokens_in_any_minute(self) -> None:
        while self.admitted and self.admitted[0].began_s <= self.now_s - 2 * MINUTE_S:
            self.admitted.popleft()
        window = [one for one in self.admitted if one.began_s > self.now_s - MINUTE_S]
        assert sum(one.tokens for one in window) <= LIMIT
        assert len(window) <= REQUESTS

    @invariant()
    def never_more_of_the_budget(self) -> None:
        assert self.day_total <= MEASURES[Measure.TOKENS_DAY]

    @invariant()
    def never_more_at_a_time(self) -> None:
        """Of front ends that are heard of; one that is cut off for longer is taken for dead."""
        heard = [front for front in self.fronts if front.heard_s > self.now_s - LEASE_S + 1]
        assert sum(not request.is_excused for front in heard for request in front.running) <= AT_ONCE

    @precondition(lambda self: not self.slices.is_down)
    @rule(front=FRONTS)
    def nothing_is_stuck(self, front: int) -> None:
        """Once all has ended and time has passed, whoever asks gets the whole limit."""
        self.slices.is_deaf = False
        for one in self.fronts:
            for request in one.running:
                self.settle(request)
            one.running.clear()
            if one.in_flight is not None:
                asks, _ = one.in_flight
                one.in_flight = None
                for share, ask in asks:
                    share.unheard(ask)
            self.exchange(one)
        self.now_s += 2 * KEPT_S
        for one in self.fronts:
            self.exchange(one)
        # Of a budget, what the dead had taken is gone with them; the rest is there.
        left = MEASURES[Measure.TOKENS_DAY] - sum(self.slices.taken(f"{Measure.TOKENS_DAY.value}:test").values())
        asked = min(LIMIT, left)
        if asked > 0:
            assert self.try_to_begin(self.fronts[front], asked, asked)


LimitMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestLimits = LimitMachine.TestCase
