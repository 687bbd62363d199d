"""Limits of keys and tenants: what a request may use is reserved before it begins, and settled when it has ended.

The registry's database gives out slices of about a second of every limit, so that several front ends share one and no
request waits for SQL while a slice lasts. Where the database does not answer, what was given out is used up within
`FRESH_S` seconds, and requests under limits are refused until it answers again; requests without limits go on.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, Self

from amalgam.domain.clock import Clock
from amalgam.domain.limits import FRESH_S, SKEW_S, Bucket, Measure, Payer, Slice, SliceAsk, buckets_of, patterns_met
from amalgam.errors import AmalgamError
from amalgam.errors.limits import BudgetSpent, RateLimited, RequestExceedsLimit
from amalgam.errors.registry import RegistryUnavailable
from amalgam.services.limit_shares import Need, Share, Shares, short

logger = logging.getLogger(__name__)

PERIOD_S: Final = 1.0
_ASKED_AGAIN_S: Final = 0.2
"""A limit that was found used up is not asked about again for so long."""
_ROUNDS: Final = 4
"""So often a request asks, where others take what it was given before it can."""
_LATEST_S: Final = 6.0
"""An exchange that takes longer than this and `FRESH_S` gives nothing that can be used."""
_REMEMBERED: Final = 4096
_SWEEP_S: Final = 300.0


class SliceStore(Protocol):
    """Where all front ends meet."""

    async def exchange(
        self, front: str, reached_s: float | None, asks: Sequence[SliceAsk]
    ) -> tuple[float, Sequence[Slice]]:
        """Write what ``front`` tells, and give what may be given; all or nothing.

        Args:
            front: who asks.
            reached_s: where the shared clock is by now, as far as ``front`` knows; None: it does not know it yet.
            asks: one a bucket.

        Returns: where the clock is, and what came of each of ``asks``.

        Raises:
            RegistryUnavailable: the database cannot be used now.
        """

    async def sweep(self) -> None:
        """Forget what counts no more."""


class RequestLimits:
    """The limits that one kind of request of one payer has to pass.

    Attributes:
        shares: of each.
        by_minute: those of them on requests and on tokens by the minute.
        token_room: a request that takes more tokens passes never; None: tokens are not limited.
    """

    __slots__ = ("_blends", "_counted", "by_minute", "shares", "token_room")

    def __init__(self, shares: Sequence[Share]) -> None:
        self.shares = tuple(share for share in shares if share.bucket.measure is not Measure.BLENDS)
        self._blends = tuple(share for share in shares if share.bucket.measure is Measure.BLENDS)
        self._counted = tuple((share, share.counts_tokens) for share in self.shares)
        told = (Measure.REQUESTS, Measure.TOKENS)
        self.by_minute = tuple((share.bucket.measure, share) for share in self.shares if share.bucket.measure in told)
        bounds = [share.bucket.limit for share, counts_tokens in self._counted if counts_tokens]
        self.token_room = min(bounds) if bounds else None

    def needs(self, tokens: int) -> list[Need]:
        """What a request of so many tokens uses of each."""
        return [(share, tokens if counts_tokens else 1) for share, counts_tokens in self._counted]

    @property
    def blend_needs(self) -> list[Need]:
        """What a new blend uses."""
        return [(share, 1) for share in self._blends]


@dataclass(slots=True)
class LimitView:
    """How a limit stands, as far as it is known here.

    Attributes:
        limit: as much may be used.
        left: of it now.
        full_in_s: seconds until all of it may be used again, if nothing is used meanwhile.
    """

    limit: int
    left: int
    full_in_s: float


@dataclass(slots=True, eq=False)
class Reservation:
    """What a request has reserved; a context manager that gives back what `spent` does not say was used.

    Attributes:
        limits: that it passed.
        reserved: tokens.
    """

    limits: RequestLimits
    reserved: int
    _taken: list[tuple[Share, int]]
    _now: Callable[[], float]
    _spent: int = 0
    _is_settled: bool = False

    def spent(self, tokens: int) -> None:
        """Note that so many tokens were used, as far as is known."""
        self._spent = tokens

    def settle(self) -> None:
        """Charge what was spent, and give back the rest; a second time, nothing."""
        if self._is_settled:
            return
        self._is_settled = True
        now_s, unused = self._now(), self.reserved - self._spent
        for share, slot in self._taken:
            if share.counts_tokens:
                if unused:
                    share.give_back(slot, unused, now_s)
            elif share.bucket.measure is Measure.CONCURRENT:
                share.give_back(slot, 1, now_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.settle()


class Limiter:
    """One front end's side of all limits.

    Args:
        slices: where it meets the others.
        front: this process, by a name that no other has or had.
        clock: monotonic seconds.
        today: the database's clock; says which day and month budgets are of.
    """

    def __init__(
        self,
        slices: SliceStore,
        front: str,
        clock: Callable[[], float],
        today: Clock,
    ) -> None:
        self._slices = slices
        self._front = front
        self._clock = clock
        self.today = today
        self._shares = Shares()
        self._ahead_s: float | None = None
        """How far the shared clock is ahead of this process'; None before it was asked."""
        self._late_s = 0.0
        """How long the last exchange took, where that was long: what the next one gives has to be usable after it."""
        self._is_closing = False
        self._exchanging: asyncio.Task[None] | None = None
        self._found: dict[tuple[str, str, tuple[int, ...]], tuple[Payer, int, RequestLimits | None]] = {}

    def _now(self) -> float:
        return self._clock() + (self._ahead_s or 0.0)

    def of(self, payer: Payer, names: Callable[[], Iterable[str]]) -> RequestLimits | None:
        """The limits of a request.

        Args:
            payer: who asks.
            names: gives what the request may be answered by: alias, exact versions, `BASE`. Asked where it matters.

        Returns: None where there is no limit.
        """
        tenant = payer.tenant
        met = patterns_met(tenant, names()) if tenant.model_limits else ()
        now = self.today()
        where = (tenant.id, payer.key_id, met)
        known = self._found.get(where)
        if (
            known is not None
            and known[0].tenant is tenant
            and known[0].key is payer.key
            and known[1] == now.toordinal()
        ):
            return known[2]
        buckets = buckets_of(payer, met, now)
        limits = RequestLimits(self._shares.of(buckets)) if buckets else None
        if len(self._found) >= _REMEMBERED:
            self._found.clear()
        self._found[where] = (payer, now.toordinal(), limits)
        return limits

    async def reserve(self, limits: RequestLimits, tokens: int) -> Reservation:
        """Let a request begin that takes at most ``tokens``.

        Raises:
            RateLimited, BudgetSpent: it would be more than is left.
            RequestExceedsLimit: it would be more than the whole limit.
            RegistryUnavailable: nobody can say how much is left.
        """
        needs = limits.needs(tokens)
        return Reservation(limits, tokens, await self._use(needs), self._now)

    async def count_blend(self, limits: RequestLimits) -> None:
        """Let a new blend be built.

        Raises:
            RateLimited, RegistryUnavailable: as `reserve`.
        """
        needs = limits.blend_needs
        if needs:
            await self._use(needs)

    def tokens_left(self, limits: RequestLimits) -> int:
        """Tokens that a request may take now, as far as is known here."""
        now_s = self._now()
        return min(share.left(now_s) for share in limits.shares if share.counts_tokens)

    def views(self, limits: RequestLimits) -> dict[Measure, LimitView]:
        """How the limits on requests and on tokens by the minute stand; of several of a kind, the tightest."""
        now_s, found = self._now(), dict[Measure, LimitView]()
        for measure, share in limits.by_minute:
            left = max(0, share.left(now_s))
            if measure not in found or left < found[measure].left:
                found[measure] = LimitView(share.bucket.limit, left, share.full_in_s(now_s))
        return found

    async def standings(self, payer: Payer, met: Sequence[int] = ()) -> list[tuple[Bucket, LimitView]]:
        """How every limit of ``payer`` stands with all front ends together, within a second or so.

        What another one holds for its next second is not left.

        Args:
            payer: whose limits.
            met: from `patterns_met`: those of its tenant's limits by name that are asked about.

        Raises:
            RegistryUnavailable: nobody can say how much is left.
        """
        shares = self._shares.of(buckets_of(payer, met, self.today()))
        now_s = self._now()
        if self._ahead_s is None or any(now_s - share.told_s > PERIOD_S for share in shares):
            for share in shares:
                share.is_looked_at = True
            # The first exchange may have begun before it was asked.
            for _ in range(2):
                if any(share.is_looked_at for share in shares):
                    await self._exchanged()
        now_s = self._now()
        return [
            (share.bucket, LimitView(share.bucket.limit, max(0, share.left(now_s)), share.full_in_s(now_s)))
            for share in shares
        ]

    async def _use(self, needs: list[Need]) -> list[tuple[Share, int]]:
        keep = self._shares.keep
        for share, units in needs:
            bucket = share.bucket
            if units > bucket.limit:
                raise RequestExceedsLimit(bucket.owner, bucket.measure.value, bucket.limit, units)
        needs = [(keep(share), units) for share, units in needs]
        missing = short(needs, self._now())
        if missing:
            await self._bring(needs, missing)
            missing = short(needs, self._now())
        now_s = self._now()
        if missing:
            raise self._refusal(missing, now_s)
        return [(share, share.use(units, now_s)) for share, units in needs]

    async def _bring(self, needs: Sequence[Need], missing: list[Need]) -> None:
        """Have what is missing given out, as far as there is any."""
        for _ in range(_ROUNDS):
            now_s = self._now()
            if not all(_is_worth_asking(share, units, now_s) for share, units in missing):
                return
            for share, units in missing:
                share.waiting += units
            try:
                await self._exchanged()
            finally:
                for share, units in missing:
                    share.waiting -= units
            missing = short(needs, self._now())
            if not missing:
                return

    def _refusal(self, missing: Sequence[Need], now_s: float) -> AmalgamError:
        """The refusal of what is used up, of a budget first; where nothing is, of the database."""
        spent = [(share, units) for share, units in missing if share.left(now_s) < units]
        if not spent:
            return RegistryUnavailable("it takes too long to give out what is left of a limit")
        share, units = min(spent, key=lambda need: not need[0].bucket.measure.is_budget)
        bucket, left = share.bucket, share.left(now_s)
        said = (bucket.owner, bucket.measure.value, bucket.limit, left, units)
        if bucket.ends_at is not None:
            return BudgetSpent(*said, ends_at=f"{bucket.ends_at:%Y-%m-%dT%H:%M:%SZ}")
        return RateLimited(*said, retry_after_s=share.room_in_s(units, now_s))

    async def _exchanged(self) -> None:
        """Return when one exchange has ended that began before now or begins now."""
        if self._exchanging is None:
            self._exchanging = asyncio.create_task(self._exchange(), name="limits")
            self._exchanging.add_done_callback(self._ended)
        # A client that leaves must not cut off what others wait for.
        await asyncio.shield(self._exchanging)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._exchanging = None
        if not task.cancelled():
            task.exception()

    async def _exchange(self) -> None:
        if self._ahead_s is None:
            reached_s, _ = await self._slices.exchange(self._front, None, ())
            self._ahead_s = reached_s - self._clock()
        asked_s = self._now()
        began_s = self._clock()
        asks = self._shares.asks(asked_s, late_s=self._late_s, is_last=self._is_closing)
        try:
            reached_s, slices = await self._slices.exchange(self._front, asked_s, [ask for _, ask in asks])
        except BaseException:
            for share, ask in asks:
                share.unheard(ask)
            raise
        took_s = self._clock() - began_s
        self._late_s = min(took_s, _LATEST_S) if took_s > FRESH_S / 2 else 0.0
        for (share, ask), piece in zip(asks, slices, strict=True):
            share.given(ask, piece, asked_s)
        behind_s = max(0.0, reached_s - asked_s)
        self._ahead_s += behind_s
        if behind_s >= SKEW_S:
            self._shares.shift(int(behind_s))

    async def beat(self) -> None:
        """Tell and ask what there is; where nothing is used, nothing, and the shared clock is forgotten.

        The clock goes on in the database only as front ends say so. All that have used anything do, so that whoever
        comes anew finds it no more than a period behind.

        Raises:
            RegistryUnavailable: the database cannot be used now.
        """
        if self._shares.want_word() or self._shares.is_live(self._now()):
            await self._exchanged()
        elif self._exchanging is None:
            self._ahead_s = None

    async def loop(self, period_s: float = PERIOD_S) -> None:
        """`beat` every ``period_s`` seconds, for ever."""
        swept_s = self._clock()
        while True:
            await asyncio.sleep(period_s)
            try:
                await self.beat()
                if self._clock() - swept_s > _SWEEP_S:
                    swept_s = self._clock()
                    await self._slices.sweep()
            except AmalgamError as error:
                logger.warning("limits_not_shared error=%s", error)

    async def close(self) -> None:
        """Give back what is not used."""
        self._is_closing = True
        try:
            if self._exchanging is not None:
                await self._exchanged()
            if self._shares.want_word():
                await self._exchanged()
        except AmalgamError as error:
            logger.warning("limits_not_given_back error=%s", error)


def _is_worth_asking(share: Share, units: int, now_s: float) -> bool:
    """Whether the database may have what is missing: not where it said of late that it has not."""
    return now_s - share.told_s > _ASKED_AGAIN_S or share.left(now_s) >= units
