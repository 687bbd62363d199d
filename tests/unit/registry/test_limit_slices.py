"""Slices of limits in the database: one limit for all front ends, whatever they do at once."""

import asyncio
from collections.abc import Mapping

from amalgam.domain.limits import KEPT_S, SliceAsk
from amalgam.registry.database import Database
from amalgam.registry.limit_slices import LimitSlices


def ask(
    want: int,
    *,
    mine: int = 0,
    slot: int = 1000,
    base: int = 0,
    used: Mapping[int, int] | None = None,
    limit: int = 100,
) -> SliceAsk:
    return SliceAsk("tokens_per_minute:key:1", limit, mine, want, slot, base, used or {}, KEPT_S)


async def test_the_clock_begins_somewhere_and_only_goes_on(database: Database) -> None:
    slices = LimitSlices(database)
    began_s, _ = await slices.exchange("a", None, ())
    assert began_s > 0
    assert (await slices.exchange("a", began_s + 5, ()))[0] == began_s + 5
    assert (await slices.exchange("b", began_s + 2, ()))[0] == began_s + 5
    assert (await slices.exchange("c", None, ()))[0] == began_s + 5


async def test_all_together_get_no_more_than_the_limit(database: Database) -> None:
    slices = LimitSlices(database)
    fronts = [f"front-{number}" for number in range(8)]
    results = await asyncio.gather(*(slices.exchange(front, 1000.0, [ask(30)]) for front in fronts))
    granted = sorted(pieces[0].granted for _, pieces in results)
    assert granted == [0, 0, 0, 0, 10, 30, 30, 30]


async def test_two_connections_to_one_database_have_one_limit(database: Database, database_url: str) -> None:
    async with Database.open(database_url, busy_timeout_s=60) as other:
        both = (LimitSlices(database), LimitSlices(other))
        asked = (both[n % 2].exchange(f"front-{n}", 1000.0, [ask(9)]) for n in range(20))
        results = await asyncio.gather(*asked)
    assert sum(pieces[0].granted for _, pieces in results) == 100


async def test_what_is_given_back_is_there_for_others(database: Database) -> None:
    slices = LimitSlices(database)
    assert (await slices.exchange("a", 1000.0, [ask(100)]))[1][0].granted == 100
    assert (await slices.exchange("b", 1001.0, [ask(10, slot=1001)]))[1][0].granted == 0
    await slices.exchange("a", 1001.0, [ask(0, mine=20, slot=1001, used={1000: 20})])
    [piece] = (await slices.exchange("b", 1002.0, [ask(90, slot=1002)]))[1]
    assert (piece.granted, piece.others, piece.by_slot) == (80, 20, {1000: 20, 1001: 0})


async def test_a_repeated_exchange_changes_nothing(database: Database) -> None:
    slices = LimitSlices(database)
    for _ in range(3):
        assert (await slices.exchange("a", 1000.0, [ask(40)]))[1][0].granted == 40
    assert (await slices.exchange("b", 1000.0, [ask(100)]))[1][0].granted == 60


async def test_what_was_used_is_forgotten_after_its_time_and_swept(database: Database) -> None:
    slices = LimitSlices(database)
    await slices.exchange("dead", 1000.0, [ask(100)])
    assert (await slices.exchange("b", 1000.0 + KEPT_S - 1, [ask(1, slot=1060)]))[1][0].granted == 0
    assert (await slices.exchange("b", 1000.0 + KEPT_S, [ask(1, slot=1064)]))[1][0].granted == 1
    await slices.exchange("b", 1000.0 + 2 * KEPT_S + 5, ())
    await slices.sweep()
    [piece] = (await slices.exchange("c", None, [ask(1000, slot=1200)]))[1]
    assert piece.by_slot == {}


async def test_many_limits_go_in_one_exchange(database: Database) -> None:
    slices = LimitSlices(database)
    asks = [SliceAsk(f"requests_per_minute:key:{n}", 10, 0, 4, 1000, 0, {}, KEPT_S) for n in range(1200)]
    for front, granted in (("a", 4), ("b", 4), ("c", 2), ("d", 0)):
        _, pieces = await slices.exchange(front, 1000.0, asks)
        assert {piece.granted for piece in pieces} == {granted}
