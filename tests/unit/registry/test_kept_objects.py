"""What is written to the bucket and what is removed from it never are the same files at once."""

import asyncio

import pytest

from amalgam.errors.registry import ObjectStoreUnavailable
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.database import Database
from amalgam.registry.kept_objects import KeptObjectRegistry
from tests.registry_fixtures import FakeClock, draft

GRACE_S = 3600.0


@pytest.fixture
def kept(database: Database, clock: FakeClock) -> KeptObjectRegistry:
    return KeptObjectRegistry(database, clock)


async def test_what_nobody_names_may_be_removed_once_its_grace_is_over(
    kept: KeptObjectRegistry, clock: FakeClock
) -> None:
    await kept.touch("a" * 64)
    clock.advance(GRACE_S - 1)
    assert not await kept.release("a" * 64, GRACE_S)
    clock.advance(2)
    assert await kept.release("a" * 64, GRACE_S)


async def test_what_was_touched_again_is_young_again(kept: KeptObjectRegistry, clock: FakeClock) -> None:
    await kept.touch("a" * 64)
    clock.advance(GRACE_S + 1)
    await kept.touch("a" * 64)
    assert not await kept.release("a" * 64, GRACE_S)


async def test_files_that_nobody_wrote_down_age_from_their_first_sight(
    kept: KeptObjectRegistry, clock: FakeClock
) -> None:
    assert not await kept.release("a" * 64, GRACE_S)
    clock.advance(GRACE_S + 1)
    assert await kept.release("a" * 64, GRACE_S)


async def test_what_a_version_names_stays_and_for_a_while_after_it(
    kept: KeptObjectRegistry, registry: AdapterRegistry, clock: FakeClock
) -> None:
    made = await registry.create_version(draft("sql", 1))
    digest = made.version.digest
    await kept.touch(digest)
    clock.advance(2 * GRACE_S)
    assert not await kept.release(digest, GRACE_S)
    await registry.delete_version("sql", 1)
    assert not await kept.release(digest, GRACE_S, kept_s=60)
    clock.advance(61)
    assert await kept.release(digest, GRACE_S, kept_s=60)


async def test_while_one_removes_another_may_not_write_and_then_may(kept: KeptObjectRegistry, clock: FakeClock) -> None:
    await kept.touch("a" * 64)
    clock.advance(GRACE_S + 1)
    assert await kept.release("a" * 64, GRACE_S)
    with pytest.raises(ObjectStoreUnavailable):
        await kept.touch("a" * 64)
    await kept.forget("a" * 64)
    await kept.touch("a" * 64)
    await kept.forget("a" * 64)
    assert not await kept.release("a" * 64, GRACE_S), "what is written again is not forgotten by a late remover"


async def test_a_remover_that_died_stops_nobody_for_long(kept: KeptObjectRegistry, clock: FakeClock) -> None:
    await kept.touch("a" * 64)
    clock.advance(GRACE_S + 1)
    assert await kept.release("a" * 64, GRACE_S)
    clock.advance(601)
    await kept.touch("a" * 64)
    assert not await kept.release("a" * 64, GRACE_S)


async def test_of_a_writer_and_a_remover_at_once_one_gives_way(kept: KeptObjectRegistry, clock: FakeClock) -> None:
    for digit in "0123456789abcdef":
        digest = digit * 64
        await kept.touch(digest)
        clock.advance(GRACE_S + 1)
        touched, released = await asyncio.gather(
            kept.touch(digest), kept.release(digest, GRACE_S), return_exceptions=True
        )
        assert isinstance(touched, ObjectStoreUnavailable) == (released is True)
