"""Keys in memory: who is found, without asking the database, and how soon a change elsewhere counts."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from amalgam.domain.scopes import EVERYTHING
from amalgam.domain.tenant import Key, KeyChange, Limits, Role, TenantChange
from amalgam.errors.registry import RegistryUnavailable
from amalgam.registry.database import Database, sqlite_url
from amalgam.registry.keys import KeyRegistry
from amalgam.registry.stored_bytes import StoredBytesRegistry
from amalgam.registry.tenants import TenantRegistry
from amalgam.services.key_directory import KeyDirectory
from amalgam.services.tenants import NewKey, TenantService
from tests.registry_fixtures import FakeClock


class Server:
    """One server's part of it, over a shared database."""

    def __init__(self, database: Database, clock: FakeClock) -> None:
        self.tenants, self.keys = TenantRegistry(database, clock), KeyRegistry(database, clock)
        self.directory = KeyDirectory(self.tenants, self.keys, clock)
        numbers = iter(range(1, 100))
        self.service = TenantService(
            self.tenants,
            self.keys,
            self.directory,
            clock,
            lambda: f"{next(numbers):016x}",
            lambda: f"s_{next(numbers)}",
            StoredBytesRegistry(database),
        )

    async def issue(self, lifetime_s: float | None = None) -> tuple[Key, str]:
        asked = NewKey("acme", Role.CLIENT, "", EVERYTHING, Limits(), lifetime_s)
        issued = await self.service.issue(asked)
        return issued.key, issued.token


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[tuple[Server, Server, FakeClock]]:
    clock = FakeClock()
    async with Database.open(sqlite_url(tmp_path / "registry.db")) as database:
        first, second = Server(database, clock), Server(database, clock)
        for server in (first, second):
            await server.directory.refresh()
        await first.service.create("acme", TenantChange())
        yield first, second, clock


async def test_a_key_is_found_where_it_was_made_at_once_and_elsewhere_with_the_next_look(servers: Any) -> None:
    first, second, _ = servers
    key, token = await first.issue()
    assert token == f"ak_{key.id}_s_2"
    found = first.directory.find(token)
    assert (found.key.id, found.tenant.id, found.ended) == (key.id, "acme", None)
    assert second.directory.find(token) is None
    await second.directory.refresh()
    assert second.directory.find(token).key == key


async def test_nothing_but_the_whole_key_is_found(servers: Any) -> None:
    first, _, _ = servers
    key, token = await first.issue()
    for wrong in (
        token[:-1], token + "x", f"{key.prefix}_", key.prefix, f"ak_{'0' * 16}_s_2", token.upper(), f" {token}",
        f"ak_{key.id}_{key.secret_digest}", "", "ak__", "_", "ak_é_\udcff", token.replace("ak_", "sk_"),
    ):  # fmt: skip
        assert first.directory.find(wrong) is None, wrong


async def test_unknown_keys_do_not_reach_the_database(servers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _, _ = servers

    def no_database(*_: object, **__: object) -> Any:
        raise AssertionError("the database was asked")

    monkeypatch.setattr(Database, "read", no_database)
    monkeypatch.setattr(Database, "write", no_database)
    for number in range(1000):
        assert first.directory.find(f"ak_{number:016x}_secret") is None


async def test_a_key_ends_by_the_clock_of_the_database(servers: Any) -> None:
    first, _, clock = servers
    _, token = await first.issue(lifetime_s=10)
    clock.advance(9.9)
    assert first.directory.find(token).ended is None
    clock.advance(0.1)
    assert first.directory.find(token).ended == "expired"


async def test_a_revoked_key_opens_nothing_anywhere_within_a_look(servers: Any) -> None:
    first, second, _ = servers
    key, token = await first.issue()
    await second.directory.refresh()
    await second.service.revoke(key.id)
    assert second.directory.find(token) is None
    assert first.directory.find(token) is not None
    follower = asyncio.create_task(first.directory.follow_loop(0.01))
    async with asyncio.timeout(10):
        while first.directory.find(token) is not None:
            await asyncio.sleep(0.01)
    follower.cancel()


async def test_a_suspended_key_is_known_as_that_and_counts_among_nobody_who_asks(servers: Any) -> None:
    first, second, _ = servers
    key, token = await first.issue()
    assert ("acme", key.id) in first.directory.asking()
    await first.service.update_key(key.id, KeyChange(state="suspended"))
    await second.directory.refresh()
    for server in (first, second):
        assert server.directory.find(token).ended == "key_suspended"
        assert ("acme", key.id) not in server.directory.asking()
    await second.service.update_key(key.id, KeyChange(state="active"))
    await first.directory.refresh()
    assert first.directory.find(token).ended is None


async def test_a_suspended_tenants_keys_open_nothing_until_it_is_active(servers: Any) -> None:
    first, _, _ = servers
    _, token = await first.issue()
    await first.service.update("acme", TenantChange(state="suspended"))
    assert first.directory.find(token).ended == "suspended"
    await first.service.update("acme", TenantChange(state="active"))
    assert first.directory.find(token).ended is None
    await first.service.delete("acme")
    assert first.directory.find(token) is None
    assert first.directory.tenant("acme") is None


async def test_both_keys_of_a_rotation_are_valid_for_its_overlap(servers: Any) -> None:
    first, _, clock = servers
    key, token = await first.issue()
    rotation = await first.service.rotate(key.id, overlap_s=30, lifetime_s=None)
    assert rotation.old.successor == rotation.new.key.id
    assert [first.directory.find(one).ended for one in (token, rotation.new.token)] == [None, None]
    clock.advance(30)
    assert [first.directory.find(one).ended for one in (token, rotation.new.token)] == ["expired", None]


async def test_use_is_written_once_however_often_a_key_is_used(servers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _, clock = servers
    key, token = await first.issue()
    written: list[dict[str, Any]] = []
    real = first.keys.note_used

    async def note_used(used: dict[str, Any]) -> None:
        written.append(dict(used))
        await real(used)

    monkeypatch.setattr(first.keys, "note_used", note_used)
    for _ in range(1000):
        first.directory.find(token)
        clock.advance(0.001)
    await first.directory.note_used()
    await first.directory.note_used()
    assert len(written) == 1, "nothing is written where nothing was used"
    last = (await first.keys.get(key.id)).last_used_at
    assert last is not None
    assert clock() - last < timedelta(seconds=1)


async def test_without_a_registry_known_keys_go_on(servers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _, _ = servers
    _, token = await first.issue()

    async def gone() -> int:
        raise RegistryUnavailable("gone")

    monkeypatch.setattr(first.tenants, "revision", gone)
    follower = asyncio.create_task(first.directory.follow_loop(0.01))
    await asyncio.sleep(0.1)
    assert not follower.done()
    follower.cancel()
    assert first.directory.find(token).ended is None
