"""The limiter: reserve, settle, refuse by name, one database for several front ends and no SQL for each request."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from amalgam.domain.limits import KEPT_S, Payer
from amalgam.domain.tenant import Limits, ModelLimits
from amalgam.errors.limits import BudgetSpent, RateLimited, RequestExceedsLimit
from amalgam.errors.registry import RegistryUnavailable
from amalgam.services.limits import Limiter, RequestLimits, Reservation
from tests.unit.services.limit_fronts import MOMENT, SlicesInMemory, key, tenant


class Clocks:
    """Monotonic seconds of one machine, and the database's moment."""

    def __init__(self) -> None:
        self.now_s = 50.0
        self.moment = MOMENT

    def __call__(self) -> float:
        return self.now_s

    def today(self) -> datetime:
        return self.moment


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def slices() -> SlicesInMemory:
    return SlicesInMemory()


@pytest.fixture
def new_front(slices: SlicesInMemory, clocks: Clocks) -> Callable[[str], Limiter]:
    return lambda name: Limiter(slices, name, clocks, clocks.today)


@pytest.fixture
def limiter(new_front: Callable[[str], Limiter]) -> Limiter:
    return new_front("one")


def limits_of(limiter: Limiter, payer: Payer, *names: str) -> RequestLimits:
    found = limiter.of(payer, lambda: names)
    assert found is not None
    return found


def of_key(**limits: int) -> Payer:
    return Payer(tenant(), key(Limits(**limits)))


async def spend(limiter: Limiter, payer: Payer, tokens: int, used: int | None = None) -> Reservation:
    """A request that is over at once."""
    reservation = await limiter.reserve(limits_of(limiter, payer), tokens)
    reservation.spent(tokens if used is None else used)
    reservation.settle()
    return reservation


async def test_without_limits_nobody_is_asked(limiter: Limiter, slices: SlicesInMemory) -> None:
    assert limiter.of(Payer(tenant(), key()), lambda: ("sql@1",)) is None
    assert slices.exchanges == 0


async def test_five_at_once_never_use_more_than_the_limit_and_what_fits_goes_through(limiter: Limiter) -> None:
    payer = of_key(tokens_per_minute=100)
    asked = [limiter.reserve(limits_of(limiter, payer), 40) for _ in range(5)]
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(one, Reservation) for one in results) == 2
    assert sum(isinstance(one, RateLimited) for one in results) == 3


async def test_two_front_ends_have_one_limit(new_front: Callable[[str], Limiter]) -> None:
    one, two = new_front("one"), new_front("two")
    payer = of_key(tokens_per_minute=100)
    asked = [front.reserve(limits_of(front, payer), 30) for front in (one, two) * 5]
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(one, Reservation) for one in results) == 3


async def test_what_was_not_needed_is_given_back_and_what_was_is_charged(limiter: Limiter) -> None:
    payer = of_key(tokens_per_minute=100)
    await spend(limiter, payer, 100, used=10)
    await spend(limiter, payer, 90, used=90)
    with pytest.raises(RateLimited):
        await limiter.reserve(limits_of(limiter, payer), 1)


async def test_more_than_was_reserved_is_charged_too(limiter: Limiter, clocks: Clocks) -> None:
    payer = of_key(tokens_per_minute=100)
    await spend(limiter, payer, 50, used=150)
    with pytest.raises(RateLimited) as refused:
        await limiter.reserve(limits_of(limiter, payer), 1)
    clocks.now_s += refused.value.retry_after_s or 0.0
    await spend(limiter, payer, 1)


async def test_a_refusal_says_when_there_is_room_and_then_there_is(limiter: Limiter, clocks: Clocks) -> None:
    payer = of_key(tokens_per_minute=100)
    await spend(limiter, payer, 60)
    clocks.now_s += 20
    await spend(limiter, payer, 40)
    with pytest.raises(RateLimited) as refused:
        await limiter.reserve(limits_of(limiter, payer), 50)
    after_s = refused.value.retry_after_s
    assert after_s is not None
    assert 30 < after_s <= KEPT_S - 20
    clocks.now_s += after_s - 2
    with pytest.raises(RateLimited):
        await limiter.reserve(limits_of(limiter, payer), 50)
    clocks.now_s += 2
    await limiter.reserve(limits_of(limiter, payer), 50)


async def test_a_refusal_counts_what_other_front_ends_used(new_front: Callable[[str], Limiter], clocks: Clocks) -> None:
    one, two = new_front("one"), new_front("two")
    payer = of_key(requests_per_minute=1)
    await spend(one, payer, 0)
    clocks.now_s += 30
    await one.beat()
    with pytest.raises(RateLimited) as refused:
        await two.reserve(limits_of(two, payer), 0)
    assert 25 < (refused.value.retry_after_s or 0) <= KEPT_S - 29


async def test_a_refused_flood_is_not_a_flood_of_statements(limiter: Limiter, slices: SlicesInMemory) -> None:
    payer = of_key(tokens_per_minute=100)
    await spend(limiter, payer, 100)
    before = slices.exchanges
    for _ in range(1000):
        with pytest.raises(RateLimited):
            await limiter.reserve(limits_of(limiter, payer), 1)
    assert slices.exchanges <= before + 1


async def test_a_thousand_requests_of_a_second_are_few_statements(limiter: Limiter, slices: SlicesInMemory) -> None:
    payer = of_key(tokens_per_minute=1_000_000, requests_per_minute=100_000)
    for _ in range(1000):
        await spend(limiter, payer, 100)
    assert slices.exchanges < 20


class TestNames:
    """Every limit names itself."""

    @pytest.mark.parametrize(
        ("payer", "words"),
        [
            (of_key(tokens_per_minute=10), ("The key ak_", "10 tokens per minute (tokens_per_minute)")),
            (of_key(requests_per_minute=1), ("The key ak_", "1 requests per minute (requests_per_minute)")),
            (of_key(concurrent_requests=1), ("The key ak_", "(concurrent_requests)")),
            (Payer(tenant(Limits(tokens_per_minute=10)), key()), ("The tenant 'acme'", "(tokens_per_minute)")),
            (
                Payer(tenant(model_limits=(ModelLimits(pattern="sql*", limits=Limits(tokens_per_minute=10)),)), key()),
                ("The tenant 'acme', on models 'sql*',", "(tokens_per_minute)"),
            ),
        ],
    )
    async def test_a_refusal_says_whose_limit_it_is(
        self, limiter: Limiter, payer: Payer, words: tuple[str, ...]
    ) -> None:
        limits = limits_of(limiter, payer, "sql@1")
        await limiter.reserve(limits, 10)
        with pytest.raises(RateLimited) as refused:
            await limiter.reserve(limits, 10)
        for word in words:
            assert word in refused.value.message

    async def test_limits_on_names_concern_these_names(self, limiter: Limiter) -> None:
        payer = Payer(tenant(model_limits=(ModelLimits(pattern="sql*", limits=Limits(requests_per_minute=1)),)), key())
        assert limiter.of(payer, lambda: ("json@1", "base")) is None
        await limiter.reserve(limits_of(limiter, payer, "sql@1"), 0)
        with pytest.raises(RateLimited):
            await limiter.reserve(limits_of(limiter, payer, "json@2", "sql-new@7"), 0)

    async def test_all_limits_must_pass_and_one_that_refuses_costs_nothing_of_the_others(
        self, limiter: Limiter
    ) -> None:
        payer = Payer(tenant(Limits(tokens_per_minute=100)), key(Limits(requests_per_minute=1)))
        await spend(limiter, payer, 10)
        for _ in range(20):
            with pytest.raises(RateLimited, match="requests_per_minute"):
                await limiter.reserve(limits_of(limiter, payer), 10)
        other = Payer(payer.tenant, key(id="1" * 16))
        await spend(limiter, other, 90)


async def test_requests_at_a_time_come_free_when_they_end(limiter: Limiter) -> None:
    payer = of_key(concurrent_requests=2)
    limits = limits_of(limiter, payer)
    with await limiter.reserve(limits, 0):
        with await limiter.reserve(limits, 0), pytest.raises(RateLimited):
            await limiter.reserve(limits, 0)
        await limiter.reserve(limits, 0)


async def test_a_request_larger_than_the_whole_limit_is_told_so(limiter: Limiter, slices: SlicesInMemory) -> None:
    with pytest.raises(RequestExceedsLimit) as refused:
        await limiter.reserve(limits_of(limiter, of_key(tokens_per_minute=100)), 101)
    assert refused.value.status == 400
    assert refused.value.retry_after_s is None
    assert slices.exchanges == 0


class TestBudgets:
    async def test_a_budget_that_is_spent_is_no_rate(self, limiter: Limiter) -> None:
        payer = of_key(tokens_per_day=100)
        await spend(limiter, payer, 100)
        with pytest.raises(BudgetSpent) as refused:
            await limiter.reserve(limits_of(limiter, payer), 1)
        assert refused.value.code == "insufficient_quota"
        assert refused.value.retry_after_s is None
        assert "2026-01-02T00:00:00Z" in refused.value.message

    async def test_a_day_begins_anew_and_a_month_goes_on(self, limiter: Limiter, clocks: Clocks) -> None:
        payer = of_key(tokens_per_day=100, tokens_per_month=150)
        await spend(limiter, payer, 100)
        clocks.moment += timedelta(days=1)
        await spend(limiter, payer, 50)
        with pytest.raises(BudgetSpent, match=r"tokens_per_month.*2026-02-01T00:00:00Z"):
            await limiter.reserve(limits_of(limiter, payer), 1)
        clocks.moment = datetime(2026, 2, 1, tzinfo=UTC)
        await spend(limiter, payer, 100)

    async def test_a_clock_that_goes_back_brings_back_the_day_with_what_was_spent(
        self, limiter: Limiter, clocks: Clocks
    ) -> None:
        payer = of_key(tokens_per_day=100)
        await spend(limiter, payer, 80)
        clocks.moment += timedelta(days=1)
        await spend(limiter, payer, 80)
        clocks.moment -= timedelta(days=1)
        with pytest.raises(BudgetSpent):
            await limiter.reserve(limits_of(limiter, payer), 21)
        await spend(limiter, payer, 20)

    async def test_a_server_that_starts_again_knows_what_was_spent(
        self, new_front: Callable[[str], Limiter], slices: SlicesInMemory, clocks: Clocks
    ) -> None:
        payer = of_key(tokens_per_day=100)
        before = new_front("before")
        await spend(before, payer, 60)
        await before.close()
        clocks.now_s = 3.0
        after = new_front("after")
        with pytest.raises(BudgetSpent):
            await after.reserve(limits_of(after, payer), 41)
        await spend(after, payer, 40)


async def test_a_front_end_whose_clock_was_behind_still_counts_for_a_minute(
    new_front: Callable[[str], Limiter], clocks: Clocks, slices: SlicesInMemory
) -> None:
    payer = of_key(tokens_per_minute=100)
    ahead, behind = new_front("ahead"), new_front("behind")
    await spend(ahead, payer, 10)
    # It says nothing for a while, as one that is stopped: who comes meanwhile finds the clock where it was.
    clocks.now_s += 40
    await spend(behind, payer, 50)
    await ahead.beat()
    clocks.now_s += 1
    for _ in range(2):
        await behind.beat()
    clocks.now_s += 57
    with pytest.raises(RateLimited):
        await ahead.reserve(limits_of(ahead, payer), 60)
    clocks.now_s += 8
    await ahead.reserve(limits_of(ahead, payer), 60)


async def test_what_a_killed_server_held_of_places_is_free_soon(
    new_front: Callable[[str], Limiter], clocks: Clocks
) -> None:
    payer = of_key(concurrent_requests=1)
    killed, other = new_front("killed"), new_front("other")
    await killed.reserve(limits_of(killed, payer), 0)
    with pytest.raises(RateLimited):
        await other.reserve(limits_of(other, payer), 0)
    clocks.now_s += 12
    await other.reserve(limits_of(other, payer), 0)


async def test_limits_that_are_changed_hold_from_then_on(limiter: Limiter, clocks: Clocks) -> None:
    await spend(limiter, of_key(tokens_per_minute=100), 100)
    wider = of_key(tokens_per_minute=150)
    clocks.now_s += 1
    await spend(limiter, wider, 50)
    with pytest.raises(RateLimited):
        await limiter.reserve(limits_of(limiter, wider), 1)
    narrower = of_key(tokens_per_minute=120)
    clocks.now_s += 1
    with pytest.raises(RateLimited):
        await limiter.reserve(limits_of(limiter, narrower), 1)


class TestOutage:
    async def test_without_the_database_a_slice_lasts_for_two_seconds_and_then_nobody_is_let_in(
        self, limiter: Limiter, slices: SlicesInMemory, clocks: Clocks
    ) -> None:
        payer = of_key(requests_per_minute=500)
        await spend(limiter, payer, 0)
        slices.is_down = True
        await spend(limiter, payer, 0)
        clocks.now_s += 3
        with pytest.raises(RegistryUnavailable):
            await limiter.reserve(limits_of(limiter, payer), 0)
        slices.is_down = False
        await spend(limiter, payer, 0)

    async def test_a_commit_that_nobody_heard_of_is_not_granted_twice(
        self, limiter: Limiter, slices: SlicesInMemory, new_front: Callable[[str], Limiter]
    ) -> None:
        payer = of_key(tokens_per_minute=100)
        await spend(limiter, payer, 10)
        slices.is_deaf = True
        with pytest.raises(RegistryUnavailable):
            await limiter.reserve(limits_of(limiter, payer), 90)
        slices.is_deaf = False
        await spend(limiter, payer, 90)
        other = new_front("other")
        with pytest.raises(RateLimited):
            await other.reserve(limits_of(other, payer), 1)


async def test_a_client_that_leaves_while_it_waits_cuts_nobody_off(limiter: Limiter, slices: SlicesInMemory) -> None:
    payer = of_key(tokens_per_minute=100)
    limits = limits_of(limiter, payer)
    leaves = asyncio.create_task(limiter.reserve(limits, 10))
    stays = asyncio.create_task(limiter.reserve(limits, 90))
    await asyncio.sleep(0)
    leaves.cancel()
    await stays
    assert leaves.cancelled() or leaves.done()
    await asyncio.gather(leaves, return_exceptions=True)


async def test_the_loop_gives_back_what_nobody_uses(
    limiter: Limiter, new_front: Callable[[str], Limiter], slices: SlicesInMemory, clocks: Clocks
) -> None:
    payer = of_key(tokens_per_minute=1000)
    await spend(limiter, payer, 100)
    loop = asyncio.create_task(limiter.loop(0.001))
    async with asyncio.timeout(10):
        while sum(slices.taken(f"tokens_per_minute:key:{'0' * 16}").values()) != 100:
            await asyncio.sleep(0.001)
    loop.cancel()
    other = new_front("other")
    await spend(other, payer, 900)


async def test_blends_have_a_limit_of_their_own(limiter: Limiter) -> None:
    limits = limits_of(limiter, of_key(blends_per_minute=1))
    for _ in range(3):
        await limiter.reserve(limits, 10)
    await limiter.count_blend(limits)
    with pytest.raises(RateLimited, match="blends_per_minute"):
        await limiter.count_blend(limits)


async def test_views_tell_the_tightest_of_each_kind(limiter: Limiter) -> None:
    payer = Payer(tenant(Limits(tokens_per_minute=1000, requests_per_minute=5)), key(Limits(tokens_per_minute=100)))
    limits = limits_of(limiter, payer)
    await limiter.reserve(limits, 40)
    views = {measure.value: (view.limit, view.left) for measure, view in limiter.views(limits).items()}
    assert views == {"tokens_per_minute": (100, 60), "requests_per_minute": (5, 4)}
