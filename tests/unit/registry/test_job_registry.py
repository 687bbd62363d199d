"""One recipe is built once, one worker at a time holds a job, and its result is written whole or not at all."""

import asyncio

import pytest

from amalgam.errors.adapters import AdapterNotFound, VersionNotFound
from amalgam.errors.jobs import JobNotFound, JobStateConflict, LeaseLost
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.jobs import JobRegistry
from tests.registry_fixtures import FakeClock, draft
from tests.unit.registry.job_steps import RECIPE, build, claim, claim_built, publish, request, result, submit


class TestSubmit:
    async def test_a_job_comes_back_as_it_went_in(self, jobs: JobRegistry, clock: FakeClock) -> None:
        done = await jobs.submit(request(set_default=False))
        assert (done.created, done.version) == (True, None)
        job = done.job
        assert job is not None
        assert await jobs.get(job.id) == job
        assert (job.id, job.kind, job.name, job.recipe_digest) == ("job-0001", "merge", "mix", RECIPE)
        assert job.recipe == {"inputs": ["sql@1"], "weight": 0.5}
        assert (job.state, job.attempts, job.fencing_token, job.set_default) == ("queued", 0, 0, False)
        assert job.created_at == job.updated_at == clock()

    async def test_the_same_recipe_joins_the_live_job(self, jobs: JobRegistry) -> None:
        first = await submit(jobs)
        for state in ("queued", "running", "built", "publishing"):
            if state == "running":
                await claim(jobs)
            if state == "built":
                await jobs.finish_built(first.id, 1, result())
            if state == "publishing":
                await claim_built(jobs)
            again = await jobs.submit(request())
            assert (again.job and again.job.id, again.job and again.job.state, again.created) == (
                first.id,
                state,
                False,
            )

    async def test_other_names_and_other_recipes_do_not(self, jobs: JobRegistry) -> None:
        ids = {(await submit(jobs, *args)).id for args in [("mix", RECIPE), ("mix", "b" * 64), ("max", RECIPE)]}
        assert len(ids) == 3

    async def test_a_hundred_at_once_are_one_job(self, jobs: JobRegistry) -> None:
        done = await asyncio.gather(*(jobs.submit(request()) for _ in range(100)))
        assert len({d.job.id for d in done if d.job}) == 1
        assert sum(d.created for d in done) == 1

    async def test_joining_with_a_wish_for_the_default_grants_it(self, jobs: JobRegistry) -> None:
        await submit(jobs, set_default=False)
        assert (await submit(jobs, set_default=True)).set_default
        assert (await submit(jobs, set_default=False)).set_default

    async def test_what_was_published_is_not_built_again(self, jobs: JobRegistry, registry: AdapterRegistry) -> None:
        job = await build(jobs)
        await publish(jobs, job)
        again = await jobs.submit(request())
        assert again.job is None
        assert again.version == await registry.get_version("mix", 1)

    async def test_the_version_that_was_there_becomes_the_default_where_asked(
        self, jobs: JobRegistry, registry: AdapterRegistry
    ) -> None:
        await publish(jobs, await build(jobs))
        await registry.create_version(draft("mix", 2))
        revision = await registry.revision()
        await jobs.submit(request(set_default=False))
        assert (await registry.get_adapter("mix")).default_version == 2
        assert await registry.revision() == revision
        await jobs.submit(request(set_default=True))
        assert (await registry.get_adapter("mix")).default_version == 1
        assert await registry.revision() > revision

    @pytest.mark.parametrize("ending", ["version deleted", "adapter deleted", "failed", "cancelled"])
    async def test_what_is_gone_is_built_again(self, ending: str, jobs: JobRegistry, registry: AdapterRegistry) -> None:
        if ending == "cancelled":
            await jobs.cancel((await submit(jobs)).id)
        elif ending == "failed":
            await jobs.fail((await submit(jobs)).id, code="x", status=500, message="y")
        else:
            await publish(jobs, await build(jobs))
            await (registry.delete_version("mix", 1) if ending == "version deleted" else registry.delete_adapter("mix"))
        again = await jobs.submit(request())
        assert again.created


class TestClaim:
    async def test_oldest_first_each_once(self, jobs: JobRegistry, clock: FakeClock) -> None:
        for number in range(3):
            await submit(jobs, recipe=f"{number}" * 64)
            clock.advance(1)
        claimed = [await claim(jobs, f"w{i}") for i in range(3)]
        assert [job.recipe_digest[0] for job in claimed] == ["0", "1", "2"]
        assert [job.worker for job in claimed] == ["w0", "w1", "w2"]
        assert all(job.state == "running" and job.attempts == 1 and job.fencing_token == 1 for job in claimed)
        assert await jobs.claim("w", lease_s=30, max_attempts=3) is None

    async def test_many_workers_at_once_never_share_a_job(self, jobs: JobRegistry) -> None:
        for number in range(5):
            await submit(jobs, recipe=f"{number}" * 64)
        claimed = await asyncio.gather(*(jobs.claim(f"w{i}", lease_s=30, max_attempts=3) for i in range(20)))
        got = [job.id for job in claimed if job]
        assert len(got) == len(set(got)) == 5

    async def test_a_silent_workers_job_is_taken_over_when_its_lease_ends(
        self, jobs: JobRegistry, clock: FakeClock
    ) -> None:
        await submit(jobs)
        first = await claim(jobs, lease_s=30)
        clock.advance(29.9)
        assert await jobs.claim("w2", lease_s=30, max_attempts=3) is None
        clock.advance(0.1)
        second = await claim(jobs, "w2")
        assert (second.id, second.worker, second.attempts) == (first.id, "w2", 2)
        assert second.fencing_token > first.fencing_token

    async def test_a_job_that_kills_its_workers_fails_in_the_end(self, jobs: JobRegistry, clock: FakeClock) -> None:
        job = await submit(jobs)
        await submit(jobs, recipe="b" * 64)
        for _ in range(2):
            assert (await claim(jobs, max_attempts=2)).id == job.id
            clock.advance(31)
        assert (await claim(jobs, max_attempts=2)).recipe_digest == "b" * 64
        failed = await jobs.get(job.id)
        assert failed.state == "failed"
        assert failed.error is not None
        assert (failed.error.code, failed.error.status) == ("attempts_exhausted", 500)


class TestLease:
    async def test_a_heartbeat_extends_it_from_now(self, jobs: JobRegistry, clock: FakeClock) -> None:
        await submit(jobs)
        job = await claim(jobs, lease_s=30)
        for _ in range(3):
            clock.advance(20)
            job = await jobs.heartbeat(job.id, job.fencing_token, lease_s=30, progress={"modules": [1, 210]})
        assert job.progress == {"modules": [1, 210]}
        assert await jobs.claim("w2", lease_s=30, max_attempts=3) is None
        kept = await jobs.heartbeat(job.id, job.fencing_token, lease_s=30)
        assert kept.progress == {"modules": [1, 210]}

    @pytest.mark.parametrize(
        "how", ["expired", "taken over", "cancelled", "failed", "released", "wrong token", "built"]
    )
    async def test_without_it_nothing_can_be_written(
        self, how: str, jobs: JobRegistry, registry: AdapterRegistry, clock: FakeClock
    ) -> None:
        """F29: a worker that slept through its lease wakes up and may change nothing any more."""
        await submit(jobs)
        job = await claim(jobs)
        token = job.fencing_token
        if how in ("expired", "taken over"):
            clock.advance(30)
        if how == "taken over":
            await claim(jobs, "w2")
        elif how == "cancelled":
            await jobs.cancel(job.id)
        elif how == "failed":
            await jobs.fail(job.id, code="x", status=500, message="y", token=token)
        elif how == "released":
            await jobs.release(job.id, token)
        elif how == "wrong token":
            token += 1
        elif how == "built":
            await jobs.finish_built(job.id, token, result())
        before, rows = await jobs.get(job.id), await registry.load_catalog()
        for attempt in (
            lambda: jobs.heartbeat(job.id, token, lease_s=30, progress={"x": 1}),
            lambda: jobs.finish_built(job.id, token, result(number=2)),
            lambda: jobs.fail(job.id, code="late", status=500, message="late", token=token),
            lambda: jobs.release(job.id, token),
        ):
            with pytest.raises(LeaseLost):
                await attempt()
        assert await jobs.get(job.id) == before
        assert await registry.load_catalog() == rows

    async def test_a_released_job_is_free_at_once_and_not_counted(self, jobs: JobRegistry) -> None:
        await submit(jobs)
        job = await claim(jobs, max_attempts=1)
        released = await jobs.release(job.id, job.fencing_token)
        assert (released.state, released.attempts, released.lease_expires_at) == ("queued", 0, None)
        again = await claim(jobs, "w2", max_attempts=1)
        assert again.fencing_token > job.fencing_token

    async def test_what_a_dead_worker_held_is_free_at_once_and_its_words_are_too_late(
        self, jobs: JobRegistry, clock: FakeClock
    ) -> None:
        for number in range(3):
            await submit(jobs, recipe=str(number) * 64)
        dead, other = await claim(jobs, "dead"), await claim(jobs, "alive")
        assert await jobs.abandon("dead") == (dead.id,)
        assert await jobs.abandon("dead") == ()
        with pytest.raises(LeaseLost):
            await jobs.heartbeat(dead.id, dead.fencing_token, lease_s=30)
        again = await claim(jobs, "next")
        assert (again.id, again.attempts) == (dead.id, 2)
        await jobs.heartbeat(other.id, other.fencing_token, lease_s=30)

    async def test_only_a_worker_that_holds_on_without_renewing_is_overdue(
        self, jobs: JobRegistry, clock: FakeClock
    ) -> None:
        await submit(jobs)
        job = await claim(jobs, "w1", lease_s=30)
        clock.advance(31)
        assert not await jobs.is_overdue("w1", grace_s=2)
        clock.advance(2)
        assert await jobs.is_overdue("w1", grace_s=2)
        assert not await jobs.is_overdue("w2", grace_s=2)
        await claim(jobs, "w2")
        assert not await jobs.is_overdue("w1", grace_s=2)
        await jobs.cancel(job.id)
        clock.advance(60)
        assert not await jobs.is_overdue("w2", grace_s=2)

    async def test_the_time_in_the_queue_is_kept(self, jobs: JobRegistry, clock: FakeClock) -> None:
        await submit(jobs)
        clock.advance(1.5)
        assert (await claim(jobs)).timings == {"queue": 1.5}
        clock.advance(-100)
        await submit(jobs, recipe="b" * 64)
        clock.advance(-1)
        assert (await claim(jobs)).timings == {"queue": 0.0}

    async def test_every_live_job_counts(self, jobs: JobRegistry) -> None:
        for number in range(103):
            await submit(jobs, recipe=f"{number:064x}")
        await claim(jobs)
        cancelled = await claim(jobs)
        await jobs.cancel(cancelled.id)
        counts = {"queued": 101, "running": 1, "built": 0, "publishing": 0}
        none = {("export", state): 0 for state in counts}
        assert await jobs.count_live() == {("merge", state): count for state, count in counts.items()} | none


class TestResult:
    async def test_version_and_job_appear_together(
        self, jobs: JobRegistry, registry: AdapterRegistry, clock: FakeClock
    ) -> None:
        await registry.create_version(draft("mix", 7))
        await submit(jobs)
        job = await claim(jobs)
        version = await jobs.finish_built(job.id, job.fencing_token, result(), {"merge": 1.5})
        built = await jobs.get(job.id)
        assert (built.state, built.version_id, built.version_number) == ("built", version.id, 2)
        assert (built.timings, built.lease_expires_at) == ({"queue": 0.0, "merge": 1.5}, None)
        assert await registry.get_version("mix", 2) == version
        # No pointer moves before publishing.
        assert (await registry.get_adapter("mix")).default_version == 1
        done = await publish(jobs, job, {"load": 0.5})
        assert (done.state, done.timings) == ("published", {"queue": 0.0, "merge": 1.5, "load": 0.5})
        assert (await registry.get_adapter("mix")).default_version == 2

    async def test_the_default_stays_where_it_is_unless_asked(
        self, jobs: JobRegistry, registry: AdapterRegistry
    ) -> None:
        job = await build(jobs, set_default=False)
        await publish(jobs, job)
        assert (await registry.get_adapter("mix")).default_version is None

    async def test_publishing_twice_changes_nothing(self, jobs: JobRegistry, registry: AdapterRegistry) -> None:
        job = await build(jobs)
        token = (await claim_built(jobs)).fencing_token
        first = await jobs.publish(job.id, token)
        await registry.create_version(draft("mix", 2))
        assert await jobs.publish(job.id, token) == first
        assert (await registry.get_adapter("mix")).default_version == 2

    async def test_publishing_a_version_that_was_deleted_meanwhile(
        self, jobs: JobRegistry, registry: AdapterRegistry
    ) -> None:
        job = await build(jobs)
        await registry.delete_version("mix", 1)
        token = (await claim_built(jobs)).fencing_token
        with pytest.raises(VersionNotFound):
            await jobs.publish(job.id, token)
        failed = await jobs.fail(job.id, code="version_not_found", status=404, message="gone", token=token)
        assert failed.state == "failed"

    async def test_a_result_that_fails_to_load_is_taken_back(
        self, jobs: JobRegistry, registry: AdapterRegistry
    ) -> None:
        await registry.create_version(draft("mix", 7))
        job = await build(jobs)
        failed = await jobs.fail(job.id, code="engine_load_failed", status=500, message="no")
        assert failed.error is not None
        assert (failed.error.code, failed.error.status, failed.error.message) == ("engine_load_failed", 500, "no")
        adapter = await registry.get_adapter("mix")
        assert (adapter.default_version, [v.number for v in adapter.versions]) == (1, [1])
        assert (await registry.create_version(draft("mix", 8))).version.number == 3

    async def test_a_name_that_only_a_failed_job_used_is_free(
        self, jobs: JobRegistry, registry: AdapterRegistry
    ) -> None:
        job = await build(jobs)
        await jobs.fail(job.id, code="x", status=500, message="y")
        with pytest.raises(AdapterNotFound):
            await registry.get_adapter("mix")
        assert (await registry.create_version(draft("mix", 8), if_absent=True)).created


class TestEnd:
    async def test_cancel(self, jobs: JobRegistry) -> None:
        job = await submit(jobs)
        cancelled = await jobs.cancel(job.id)
        assert cancelled.state == "cancelled"
        assert await jobs.cancel(job.id) == cancelled
        assert await jobs.claim("w", lease_s=30, max_attempts=3) is None

    async def test_what_has_a_result_cannot_be_cancelled(self, jobs: JobRegistry) -> None:
        job = await build(jobs)
        with pytest.raises(JobStateConflict) as caught:
            await jobs.cancel(job.id)
        assert (caught.value.status, caught.value.current) == (409, "built")

    async def test_an_end_is_an_end(self, jobs: JobRegistry) -> None:
        job = await submit(jobs)
        await jobs.fail(job.id, code="x", status=422, message="y")
        for attempt in (
            jobs.cancel(job.id),
            jobs.fail(job.id, code="z", status=500, message="z"),
        ):
            with pytest.raises(JobStateConflict):
                await attempt
        with pytest.raises(LeaseLost):
            await jobs.publish(job.id, job.fencing_token)
        assert await jobs.claim_built("s1", lease_s=30) is None

    async def test_unknown_ids(self, jobs: JobRegistry) -> None:
        for attempt in (
            jobs.get("nope"),
            jobs.cancel("nope"),
            jobs.publish("nope", 1),
            jobs.heartbeat("nope", 1, lease_s=1),
            jobs.finish_built("nope", 1, result()),
            jobs.fail("nope", code="x", status=500, message="y"),
            jobs.list(cursor="nope"),
        ):
            with pytest.raises(JobNotFound):
                await attempt


class TestList:
    async def test_pages_newest_first_also_within_one_moment(self, jobs: JobRegistry, clock: FakeClock) -> None:
        ids = []
        for number in range(7):
            ids.append((await submit(jobs, f"n{number}")).id)
            clock.advance(number % 2)
        seen: list[str] = []
        cursor = None
        while True:
            page = await jobs.list(limit=2, cursor=cursor)
            seen += [job.id for job in page.items]
            cursor = page.next_cursor
            if cursor is None:
                break
        assert seen == ids[::-1]

    async def test_by_state(self, jobs: JobRegistry) -> None:
        queued, running = [await submit(jobs, f"n{i}") for i in range(2)]
        queued, running = await jobs.get(running.id), await claim(jobs)
        assert [job.id for job in (await jobs.list(states=["queued"])).items] == [queued.id]
        assert [job.id for job in (await jobs.list(states=["running"])).items] == [running.id]
        assert len((await jobs.list(states=["queued", "running"])).items) == 2
        assert (await jobs.list(states=["failed"])).items == ()
