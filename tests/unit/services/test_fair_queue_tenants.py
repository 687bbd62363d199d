"""Turns of tenants: tokens by weight, whatever their keys, adapters and requests; nobody saves up, nobody starves."""

import pytest

from amalgam.services.fair_queue import MAX_DEBT_TOKENS, Places
from amalgam.services.kept_places import RECENT_S
from tests.unit.services.fair_queue_driver import BASE, LONG_S, QueueDriver, driven


async def flood(driver: QueueDriver, tenant: str, count: int = 30, *, weight: float = 1.0, tokens: int = 100) -> None:
    for _ in range(count):
        await driver.ask(BASE, of=tenant, tenant=tenant, weight=weight, tokens=tokens)


async def run(driver: QueueDriver, ends: int) -> list[str]:
    """Let so many requests end, the oldest first; whose began meanwhile."""
    before = len(driver.begun)
    for _ in range(ends):
        driver.now_s += 0.1
        await driver.end(driver.running[0])
    return [name.partition(":")[0] for name in driver.begun[before:]]


async def test_a_tenant_with_ten_adapters_gets_no_ten_turns() -> None:
    async with driven(slots=1, quantum=1, places=Places(2, 2)) as driver:
        for name in "abcdefghij":
            await driver.ask(name, of="k", tenant="many", tokens=100)
        for _ in range(5):
            await driver.ask("z", of="f", tenant="few", tokens=100)
        for _ in range(8):
            driver.now_s += LONG_S
            await driver.end(driver.running[0])
        assert [name[0] for name in driver.begun[1:9]].count("f") >= 4


async def test_a_tenant_with_ten_keys_gets_no_ten_shares() -> None:
    async with driven(places=Places(4, 4)) as driver:
        for number in range(40):
            await driver.ask(BASE, of=f"k{number % 10}", tenant="many", tokens=100)
        for _ in range(20):
            await driver.ask(BASE, of="one", tenant="single", tokens=100)
        began = await run(driver, 20)
        assert 9 <= began.count("one") <= 12


@pytest.mark.parametrize(("heavy", "light"), [(1000, 100), (300, 100)])
async def test_what_is_shared_are_tokens_and_not_requests(heavy: int, light: int) -> None:
    async with driven(places=Places(4, 4)) as driver:
        await flood(driver, "heavy", 60, tokens=heavy)
        await flood(driver, "light", 200, tokens=light)
        began = await run(driver, 100)
        tokens = {"heavy": began.count("heavy") * heavy, "light": began.count("light") * light}
        assert tokens["heavy"] == pytest.approx(tokens["light"], rel=0.5)
        assert began.count("light") > 1.5 * began.count("heavy")


async def test_weights_are_shares() -> None:
    async with driven(places=Places(4, 4)) as driver:
        await flood(driver, "large", 90, weight=3.0)
        await flood(driver, "small", 90)
        began = await run(driver, 80)
        assert began.count("large") == pytest.approx(3 * began.count("small"), rel=0.2)


async def test_a_tenant_alone_gets_the_whole_batch_whatever_its_weight() -> None:
    async with driven(places=Places(4, 4)) as driver:
        await flood(driver, "small", 10, weight=0.1)
        assert len(driver.running) == 4
        await run(driver, 6)
        assert len(driver.running) == 4


async def test_a_tenant_that_was_away_saves_nothing() -> None:
    async with driven(places=Places(1, 1)) as driver:
        await flood(driver, "busy", 40)
        await run(driver, 20)
        await flood(driver, "new", 20)
        began = await run(driver, 10)
        assert 4 <= began.count("new") <= 6


async def test_what_a_tenant_owes_has_an_end() -> None:
    async with driven(places=Places(1, 1)) as driver:
        for tenant, tokens in (("short", 1), ("long", 10_000_000), ("short", 1000), ("long", 1)):
            await driver.ask(BASE, of=tenant, tenant=tenant, tokens=tokens)
        waits = 0
        for tenant in ("short", "short", "long"):
            await driver.end(f"{tenant}:{BASE}")
            await driver.ask(BASE, of="short", tenant="short", tokens=1000)
        while f"long:{BASE}" not in driver.running:
            waits += 1
            assert waits < 2 * MAX_DEBT_TOKENS / 1000
            await driver.ask(BASE, of="short", tenant="short", tokens=1000)
            await driver.end(f"short:{BASE}")
        assert waits > 10


async def test_one_tenant_of_two_leaves_a_place_for_the_other() -> None:
    async with driven(places=Places(8, 7)) as driver:
        await driver.ask(BASE, of="other", tenant="other")
        for number in range(20):
            await driver.ask(BASE, of=f"k{number % 5}", tenant="many")
        assert len(driver.running) == 8
        await driver.end("k0:-")
        await driver.ask(BASE, of="other", tenant="other")
        assert driver.begun[-1] in ("other:-", "k0:-", "k1:-", "k2:-", "k3:-", "k4:-")
        held = [name for name in driver.running if name.startswith("k")]
        assert len(held) <= 7


async def test_keys_of_one_tenant_take_turns_as_they_did() -> None:
    async with driven(places=Places(4, 4)) as driver:
        for _ in range(50):
            await driver.ask(BASE, of="heavy", tenant="acme", tokens=10)
        await driver.ask(BASE, of="light", tenant="acme", tokens=10)
        await driver.end(f"heavy:{BASE}")
        assert driver.begun[-1] == f"light:{BASE}"


async def test_a_place_that_a_lesser_user_had_a_moment_ago_is_kept_for_its_next_request() -> None:
    async with driven(places=Places(8, 7)) as driver:
        await flood(driver, "guest", 3, tokens=10)
        await flood(driver, "busy", 30)
        assert len(driver.running) == 8
        driver.now_s += 0.5
        await driver.end(f"guest:{BASE}")
        assert driver.running.count(f"busy:{BASE}") == 5
        await driver.ask(BASE, of="guest", tenant="guest", tokens=10)
        assert driver.running.count(f"guest:{BASE}") == 3


async def test_what_is_kept_is_free_once_its_tenant_has_gone_or_left_it_unused() -> None:
    async with driven(places=Places(8, 8)) as driver:
        await flood(driver, "guest", 4, tokens=10)
        await flood(driver, "busy", 60)
        for _ in range(3):
            await driver.end(f"guest:{BASE}")
        assert driver.running.count(f"busy:{BASE}") == 4
        driver.now_s += 2 * RECENT_S
        await driver.end(f"busy:{BASE}")
        assert driver.running.count(f"busy:{BASE}") == 7
        await driver.end(f"guest:{BASE}")
        assert driver.running.count(f"busy:{BASE}") == 8


async def test_the_places_of_the_last_request_of_a_tenant_go_to_others_at_once() -> None:
    async with driven(places=Places(8, 8)) as driver:
        await flood(driver, "guest", 1, tokens=10)
        await flood(driver, "busy", 20)
        await driver.end(f"guest:{BASE}")
        assert driver.running.count(f"busy:{BASE}") == 8


async def test_no_more_is_kept_than_a_fair_share_and_a_newcomer_finds_a_place() -> None:
    async with driven(places=Places(8, 8)) as driver:
        await flood(driver, "guest", 7, tokens=10)
        await flood(driver, "busy", 30)
        for _ in range(6):
            await driver.end(f"guest:{BASE}")
        assert driver.running.count(f"busy:{BASE}") == 4
        await driver.ask(BASE, of="third", tenant="third", tokens=10)
        assert driver.running.count(f"third:{BASE}") == 1


async def test_nothing_is_kept_for_who_has_used_more() -> None:
    async with driven(places=Places(8, 8)) as driver:
        # A newcomer begins where the least user stands.
        await flood(driver, "guest", 2, tokens=10)
        await flood(driver, "busy", 6, tokens=1000)
        for _ in range(4):
            await driver.end(f"busy:{BASE}")
        await flood(driver, "guest", 4, tokens=10)
        assert driver.running.count(f"guest:{BASE}") == 6


async def test_places_are_kept_for_keys_of_one_tenant_as_for_tenants() -> None:
    async with driven(places=Places(8, 7)) as driver:
        for of, count in (("busy", 2), ("light", 3), ("busy", 30)):
            for _ in range(count):
                await driver.ask(BASE, of=of, tenant="acme", tokens=10)
        driver.now_s += 1.0
        for _ in range(2):
            await driver.end(f"busy:{BASE}")
        driver.now_s += 0.1
        await driver.end(f"light:{BASE}")
        await driver.ask(BASE, of="light", tenant="acme", tokens=10)
        assert driver.running.count(f"light:{BASE}") == 3
