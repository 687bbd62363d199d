"""Rows of batches and files: leases, whose turn it is, how they end, and what is forgotten when."""

from datetime import timedelta

import pytest

from amalgam.domain.batch import MAX_ATTEMPTS, MAX_LIVE, WINDOW_S, BatchDraft, Tally
from amalgam.domain.stored_file import FileDraft, Owner
from amalgam.errors.batches import BatchNotFound, BatchStopped, FileInUse, FileNotFound, TooManyBatches
from amalgam.registry.batches import BatchRegistry
from amalgam.registry.database import Database
from amalgam.registry.files import FileList, FileRegistry
from tests.registry_fixtures import FakeClock

ACME, ZETA = Owner("acme", "k1", "k1", "a", sees_all=False), Owner("zeta", "k2", "k2", "a", sees_all=False)
DRAFT = BatchDraft("/v1/completions", "file-1", 3600)
NONE = Tally(0, 0, 0)


class Rows:
    """Both registries under one clock that stands still."""

    def __init__(self, database: Database) -> None:
        self.clock, self.count = FakeClock(), 0
        self.batches = BatchRegistry(database, self.clock, self._new_id)
        self.files = FileRegistry(database, self.clock)

    def _new_id(self) -> str:
        self.count += 1
        return f"batch_{self.count:04d}"

    def passes(self, seconds: float) -> None:
        self.clock.now += timedelta(seconds=seconds)

    async def claimed(self, holder: str, *busy: str) -> str | None:
        found = await self.batches.claim(holder, lease_s=30, busy=busy)
        return None if found is None else found.id


@pytest.fixture
def rows(database: Database) -> Rows:
    return Rows(database)


async def test_the_oldest_goes_first_and_one_of_a_tenant_at_a_time(rows: Rows) -> None:
    for owner in (ACME, ACME, ZETA):
        await rows.batches.create(owner, DRAFT)
        rows.passes(1)
    assert await rows.claimed("one") == "batch_0001"
    assert await rows.claimed("one", "acme") == "batch_0003"
    assert await rows.claimed("one", "acme", "zeta") is None
    assert await rows.claimed("two") == "batch_0002"
    assert await rows.claimed("two") is None


async def test_what_ends_goes_first_whoever_is_busy(rows: Rows) -> None:
    await rows.batches.create(ACME, DRAFT)
    assert await rows.claimed("dead") == "batch_0001"
    cancelled = await rows.batches.cancel(ACME, "batch_0001")
    assert cancelled.status == "cancelling"
    rows.passes(31)
    await rows.batches.create(ZETA, DRAFT)
    assert await rows.claimed("one", "acme") == "batch_0001"
    rows.passes(WINDOW_S)
    assert await rows.claimed("two", "acme", "zeta") == "batch_0001"
    assert await rows.claimed("two", "acme", "zeta") == "batch_0002"


async def test_a_lease_that_ended_is_anothers_and_its_old_holder_keeps_nothing(rows: Rows) -> None:
    await rows.batches.create(ACME, DRAFT)
    await rows.claimed("dead")
    rows.passes(29)
    await rows.batches.save("batch_0001", "dead", Tally(9, 1, 0), lease_s=30)
    rows.passes(29)
    assert await rows.claimed("alive") is None
    rows.passes(2)
    found = await rows.batches.claim("alive", lease_s=30)
    assert found is not None
    assert (found.runs, found.attempts, found.completed) == (2, 2, 1)
    for call in (
        rows.batches.save("batch_0001", "dead", NONE, lease_s=30),
        rows.batches.move("batch_0001", "dead", "in_progress", NONE),
        rows.batches.finish(found, "dead", "completed", NONE, ()),
        rows.batches.release("batch_0001", "dead", NONE, pause_s=0),
    ):
        with pytest.raises(BatchStopped):
            await call


async def test_one_that_servers_die_at_comes_to_an_end(rows: Rows) -> None:
    await rows.batches.create(ACME, DRAFT)
    for attempt in range(1, MAX_ATTEMPTS + 2):
        found = await rows.batches.claim("dead", lease_s=30)
        assert found is not None
        assert found.attempts == attempt
        rows.passes(31)
    assert await rows.claimed("alive") is None
    assert (await rows.batches.get(ACME, "batch_0001")).status == "failed"


async def test_giving_back_counts_no_attempt_and_may_rest(rows: Rows) -> None:
    await rows.batches.create(ACME, DRAFT)
    for _ in range(3 * MAX_ATTEMPTS):
        assert await rows.claimed("one") == "batch_0001"
        await rows.batches.release("batch_0001", "one", NONE, pause_s=5)
        assert await rows.claimed("one") is None
        rows.passes(6)


async def test_a_batch_and_its_files_become_known_in_one_moment(rows: Rows) -> None:
    await rows.batches.create(ACME, DRAFT)
    batch = await rows.batches.claim("one", lease_s=30)
    assert batch is not None
    written = [FileDraft("file-out", "batch_output", "out", 7, 3600), FileDraft("file-err", "batch_output", "err", 0)]
    ended = await rows.batches.finish(batch, "one", "completed", Tally(2, 2, 0), written)
    assert (ended.status, ended.output_file, ended.error_file) == ("completed", "file-out", None)
    assert ended.completed_at == rows.clock()
    file = await rows.files.get(ACME, "file-out")
    assert (file.bytes, file.expires_at - file.created_at) == (7, timedelta(hours=1))
    with pytest.raises(FileNotFound):
        await rows.files.get(ACME, "file-err")
    assert await rows.batches.live_ids() == frozenset()


async def test_what_nobody_has_begun_is_cancelled_at_once(rows: Rows) -> None:
    await rows.batches.create(ACME, DRAFT)
    assert (await rows.batches.cancel(ACME, "batch_0001")).status == "cancelled"
    assert await rows.claimed("one") is None


async def test_a_tenant_has_a_bounded_number_that_has_not_ended(rows: Rows) -> None:
    for _ in range(MAX_LIVE):
        await rows.batches.create(ACME, DRAFT)
    with pytest.raises(TooManyBatches):
        await rows.batches.create(ACME, DRAFT)
    await rows.batches.create(ZETA, DRAFT)
    await rows.batches.cancel(ACME, "batch_0001")
    await rows.batches.create(ACME, DRAFT)
    assert await rows.batches.count_live() == {("batch", "queued"): MAX_LIVE + 1, ("batch", "running"): 0}


async def test_files_that_expire_are_forgotten_but_for_what_a_batch_reads(rows: Rows) -> None:
    for name in ("file-1", "file-2"):
        await rows.files.create(ACME, FileDraft(name, "batch", name, 5, 3600))
    await rows.batches.create(ACME, DRAFT)
    with pytest.raises(FileInUse):
        await rows.files.delete(ACME, "file-1")
    rows.passes(3599)
    assert await rows.files.forget_expired() == 0
    rows.passes(2)
    assert [one.id for one in (await rows.files.list(ACME, FileList())).items] == []
    assert await rows.files.forget_expired() == 1
    assert await rows.files.ids() == {"file-1"}
    await rows.batches.cancel(ACME, "batch_0001")
    assert await rows.files.forget_expired() == 1


async def test_batches_are_forgotten_after_their_end_alone(rows: Rows) -> None:
    for _ in range(2):
        await rows.batches.create(ACME, DRAFT)
    await rows.batches.cancel(ACME, "batch_0001")
    rows.passes(100)
    assert await rows.batches.forget_older(101) == 0
    assert await rows.batches.forget_older(99) == 1
    with pytest.raises(BatchNotFound):
        await rows.batches.get(ACME, "batch_0001")
    await rows.batches.get(ACME, "batch_0002")
