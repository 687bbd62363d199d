"""Bytes that tenants and keys have stored: what counts, for whom, and that a limit holds whoever stores at once."""

import asyncio
from collections.abc import Callable

import pytest

from amalgam.domain.job import JobRequest
from amalgam.domain.stored_bytes import StoredBy, StoredBytes
from amalgam.domain.stored_file import FileDraft, Owner
from amalgam.domain.tenant import Key, Limits, Tenant, TenantChange, secret_digest
from amalgam.errors.limits import StorageSpent
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.database import Database
from amalgam.registry.files import FileRegistry
from amalgam.registry.jobs import JobRegistry
from amalgam.registry.keys import KeyRegistry
from amalgam.registry.stored_bytes import StoredBytesRegistry
from amalgam.registry.tenants import TenantRegistry
from tests.registry_fixtures import FakeClock, digest_of, draft

ACME = StoredBy("acme", "1" * 16)


class Rows:
    """Every registry that counts, under one clock."""

    def __init__(self, database: Database, clock: FakeClock) -> None:
        self.clock = clock
        self.tenants, self.keys = TenantRegistry(database, clock), KeyRegistry(database, clock)
        self.files, self.stored = FileRegistry(database, clock), StoredBytesRegistry(database)
        self.adapters = AdapterRegistry(database, clock)

    async def tenant(self, name: str, stored_bytes: int | None = None) -> None:
        now = self.clock()
        limits = Limits(stored_bytes=stored_bytes)
        await self.tenants.create(Tenant(id=name, name=name, limits=limits, created_at=now, updated_at=now))

    async def key(self, digit: str, tenant: str = "acme", stored_bytes: int | None = None) -> Key:
        limits, secret = Limits(stored_bytes=stored_bytes), secret_digest(digit).hex()
        fields = {"id": digit * 16, "tenant": tenant, "role": "client", "created_at": self.clock()}
        return await self.keys.create(Key.model_validate(fields | {"secret_digest": secret, "limits": limits}))

    async def version(self, size: int, number: int, who: StoredBy | None = ACME, name: str = "sql") -> None:
        await self.adapters.create_version(draft(name, number, size_bytes=size, stored_by=who))

    async def file(self, size: int, name: str, tenant: str = "acme", key_id: str = "1" * 16) -> None:
        await self.files.create(Owner(tenant, key_id, key_id, "a"), FileDraft(name, "batch", "x", size))

    async def of(self, tenant: str = "acme") -> StoredBytes:
        return (await self.stored.of_tenants((tenant,)))[tenant]


@pytest.fixture
def rows(database: Database, clock: FakeClock) -> Rows:
    return Rows(database, clock)


async def test_versions_and_files_count_together_and_are_free_when_they_are_gone(rows: Rows) -> None:
    await rows.tenant("acme", 100)
    await rows.version(60, 1)
    await rows.file(30, "file-a")
    assert await rows.of() == StoredBytes(adapters=60, files=30)
    with pytest.raises(StorageSpent, match=r"tenant 'acme' may store 100 bytes \(stored_bytes\); 10 are left, .* 11"):
        await rows.version(11, 2)
    with pytest.raises(StorageSpent):
        await rows.file(11, "file-b")
    await rows.adapters.delete_adapter("sql")
    assert await rows.of() == StoredBytes(files=30)
    await rows.version(70, 3)
    rows.clock.advance(31 * 86_400)
    await rows.files.forget_expired()
    assert await rows.of() == StoredBytes(adapters=70)


async def test_what_was_stored_before_is_no_new_version_and_takes_nothing(rows: Rows) -> None:
    await rows.tenant("acme", 60)
    await rows.version(60, 1)
    await rows.version(60, 1)
    with pytest.raises(StorageSpent):
        await rows.version(60, 1, name="other")


async def test_each_counts_its_own_whatever_others_store(rows: Rows) -> None:
    for tenant in ("acme", "zeta"):
        await rows.tenant(tenant, 100)
    await rows.version(100, 1, StoredBy("zeta", "2" * 16), "theirs")
    await rows.version(100, 1, name="ours")
    await rows.version(100, 1, None, "of-the-server")
    assert await rows.stored.of_tenants(("acme", "zeta", "nobody")) == {
        "acme": StoredBytes(100),
        "zeta": StoredBytes(100),
        "nobody": StoredBytes(),
    }
    assert (await rows.stored.totals())["default"] == StoredBytes(100)


async def test_a_key_is_limited_by_itself_and_with_those_that_it_was_rotated_from(rows: Rows) -> None:
    await rows.tenant("acme")
    one, two = await rows.key("1", stored_bytes=10), await rows.key("2")
    await rows.version(6, 1)
    await rows.version(50, 2, StoredBy("acme", two.id))
    with pytest.raises(StorageSpent, match=f"key ak_{one.id} may store 10"):
        await rows.version(5, 3)
    _, new = await rows.keys.rotate(one.id, one.model_copy(update={"id": "3" * 16}), overlap_s=60, lifetime_s=None)
    with pytest.raises(StorageSpent, match=f"key ak_{new.id} may store 10"):
        await rows.version(5, 3, StoredBy("acme", new.id))
    await rows.version(4, 3, StoredBy("acme", new.id))
    with pytest.raises(StorageSpent):
        await rows.version(1, 4)
    found = await rows.stored.of_keys((one, two, new))
    assert found == {one.id: StoredBytes(10), two.id: StoredBytes(50), new.id: StoredBytes(10)}


async def test_a_limit_that_is_lowered_keeps_what_is_there_and_takes_nothing_more(rows: Rows) -> None:
    await rows.tenant("acme", 100)
    await rows.version(80, 1)
    await rows.tenants.update("acme", TenantChange(limits=Limits(stored_bytes=50)))
    with pytest.raises(StorageSpent, match="0 are left"):
        await rows.file(1, "file-a")
    await rows.tenants.update("acme", TenantChange(limits=Limits()))
    await rows.file(1, "file-a")


async def test_many_at_once_never_store_more_than_the_limit(rows: Rows) -> None:
    await rows.tenant("acme", 100)
    calls = [rows.version(30, number, name=f"a{number}") for number in range(1, 6)]
    calls += [rows.file(30, f"file-{number}") for number in range(5)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(outcome is None for outcome in outcomes) == 3
    assert sum(isinstance(outcome, StorageSpent) for outcome in outcomes) == 7
    assert (await rows.of()).total == 90


@pytest.fixture
def request_of() -> Callable[..., JobRequest]:
    return lambda size, number=1: JobRequest("merge", "mix", {}, digest_of(number), stored_by=ACME, output_bytes=size)


async def test_a_merge_that_would_not_fit_is_not_queued(
    rows: Rows, jobs: JobRegistry, request_of: Callable[..., JobRequest]
) -> None:
    await rows.tenant("acme", 100)
    with pytest.raises(StorageSpent):
        await jobs.submit(request_of(101))
    with pytest.raises(StorageSpent):
        await jobs.require_storage(request_of(101))
    assert (await jobs.submit(request_of(100))).created
    await rows.file(1, "file-a")
    assert not (await jobs.submit(request_of(100))).created, "it joins the job that is there, which takes nothing"


async def test_a_merge_counts_as_who_asked_for_it_and_fits_when_it_is_built_or_fails(
    rows: Rows, jobs: JobRegistry, request_of: Callable[..., JobRequest]
) -> None:
    await rows.tenant("acme", 100)
    for number, size in ((1, 60), (2, 41)):
        await jobs.submit(request_of(30, number))
        job = await jobs.claim("worker", lease_s=60, max_attempts=3)
        assert job is not None
        built = draft("mix", number, size_bytes=size, source="merge", recipe_digest=digest_of(number))
        if size == 60:
            await jobs.finish_built(job.id, job.fencing_token, built)
            assert await rows.of() == StoredBytes(60)
        else:
            with pytest.raises(StorageSpent):
                await jobs.finish_built(job.id, job.fencing_token, built)
    assert await rows.of() == StoredBytes(60)
