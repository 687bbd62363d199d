"""The registry of evaluations, on every database."""

import asyncio
import itertools
from dataclasses import replace
from typing import Any

import pytest

from amalgam.domain.evaluation import EvaluationDraft, EvaluationError, EvaluationItem, EvaluationTarget, Measurement
from amalgam.errors.evaluations import (
    EvaluationNotFound,
    EvaluationStateConflict,
    EvaluationStopped,
    TooManyEvaluations,
)
from amalgam.registry import evaluations as module
from amalgam.registry.database import Database
from amalgam.registry.evaluations import EvaluationRegistry
from tests.registry_fixtures import FakeClock

ITEMS = (
    EvaluationItem(task="sql", prompt="a", reference="b"),
    EvaluationItem(task="json", messages=({"role": "user", "content": "ü\u0000"},), pattern="x"),
    EvaluationItem(task="sql", prompt="c"),
)
TARGETS = tuple(EvaluationTarget(model=name, pinned=f"{name}@1", meaning=f"{name}@1") for name in ("a", "b"))
DRAFT = EvaluationDraft("evaluation", "nightly", TARGETS, ITEMS, ("contains", "regex"), 8)


@pytest.fixture
def rows(database: Database, clock: FakeClock) -> EvaluationRegistry:
    ids = itertools.count(1)
    return EvaluationRegistry(database, clock, lambda: f"eval-{next(ids)}")


def one(target: int, item: int, **fields: Any) -> Measurement:
    return Measurement(target=target, item=item, served="a@1", answer="ä", values={"contains": 1.0}, **fields)


async def test_what_was_asked_comes_back(rows: EvaluationRegistry) -> None:
    made = await rows.create(DRAFT)
    assert (made.state, made.done, made.total) == ("queued", 0, 6)
    assert made.tasks == {"sql": 2, "json": 1}
    assert made.targets == TARGETS
    assert await rows.get(made.id) == made
    assert await rows.items(made.id) == ITEMS
    for ask in (rows.get, rows.items, rows.cancel, rows.resume, rows.delete):
        with pytest.raises(EvaluationNotFound):
            await ask("eval-x")


async def test_what_waits_and_what_runs_is_counted_by_kind(rows: EvaluationRegistry) -> None:
    none = {(kind, state): 0 for kind in ("evaluation", "sweep") for state in ("queued", "running")}
    assert await rows.count_live() == none
    for kind in ("evaluation", "sweep", "sweep", "evaluation"):
        last = await rows.create(replace(DRAFT, kind=kind))
    assert await rows.claim("me", lease_s=10) is not None
    await rows.cancel(last.id)
    assert await rows.count_live() == none | {("evaluation", "running"): 1, ("sweep", "queued"): 2}


async def test_a_run_keeps_what_it_measured(rows: EvaluationRegistry, clock: FakeClock) -> None:
    made = await rows.create(DRAFT)
    clock.advance(1)
    await rows.create(DRAFT)
    claimed = await rows.claim("me", lease_s=10)
    assert claimed is not None
    assert (claimed.id, claimed.state) == (made.id, "running")
    await rows.save(made.id, "me", [one(1, 0), one(0, 2, error_code="engine_refused")], lease_s=10)
    await rows.save(made.id, "me", [one(0, 1), one(1, 0, error_code="late")], lease_s=10)
    await rows.save(made.id, "me", [], lease_s=10)
    with pytest.raises(EvaluationStopped):
        await rows.save(made.id, "other", [one(0, 0)], lease_s=10)
    assert (await rows.get(made.id)).done == 3
    found = await rows.measured(made.id, with_answers=True)
    assert found == (one(0, 1), one(0, 2, error_code="engine_refused"), one(1, 0))
    assert [m.answer for m in await rows.measured(made.id)] == [None] * 3
    assert await rows.measured(made.id, target=1, with_answers=True) == (one(1, 0),)
    assert [(m.target, m.item) for m in await rows.measured(made.id, after=(0, 1), limit=1)] == [(0, 2)]
    error = EvaluationError(code="engine_not_ready", message="gone")
    assert (await rows.finish(made.id, "me", "failed", error)).error == error
    with pytest.raises(EvaluationStopped):
        await rows.finish(made.id, "me", "done")
    second = await rows.claim("me", lease_s=10)
    assert second is not None
    assert second.id != made.id
    assert await rows.claim("me", lease_s=10) is None


async def test_what_a_silent_server_measured_is_taken_over_with_all_that_it_kept(
    rows: EvaluationRegistry, clock: FakeClock
) -> None:
    made = await rows.create(DRAFT)
    await rows.claim("dead", lease_s=10)
    await rows.save(made.id, "dead", [one(0, 0)], lease_s=10)
    clock.advance(9)
    assert await rows.claim("new", lease_s=10) is None
    clock.advance(1)
    again = await rows.claim("new", lease_s=10)
    assert again is not None
    assert (again.id, again.state, again.done) == (made.id, "running", 1)
    for late in (
        lambda: rows.save(made.id, "dead", [one(0, 1)], lease_s=10),
        lambda: rows.release(made.id, "dead"),
        lambda: rows.finish(made.id, "dead", "done"),
    ):
        with pytest.raises(EvaluationStopped):
            await late()
    assert len(await rows.measured(made.id)) == 1


async def test_one_of_many_servers_takes_over(rows: EvaluationRegistry, clock: FakeClock) -> None:
    await rows.create(DRAFT)
    await rows.claim("dead", lease_s=10)
    clock.advance(10)
    taken = await asyncio.gather(*(rows.claim(f"s{n}", lease_s=10) for n in range(20)))
    assert sum(one is not None for one in taken) == 1


async def test_an_evaluation_that_servers_die_of_is_interrupted(rows: EvaluationRegistry, clock: FakeClock) -> None:
    """And the next one goes on. Whoever resumes it gives it as many servers again."""
    deadly, harmless = await rows.create(DRAFT), await rows.create(replace(DRAFT, label="harmless"))
    for number in range(3):
        claimed = await rows.claim(f"s{number}", lease_s=10)
        assert claimed is not None
        assert claimed.id == deadly.id
        clock.advance(10)
    other = await rows.claim("s4", lease_s=10)
    assert other is not None
    assert other.id == harmless.id
    assert (await rows.get(deadly.id)).state == "interrupted"
    assert (await rows.resume(deadly.id)).state == "queued"
    again = await rows.claim("s5", lease_s=10)
    assert again is not None
    assert again.id == deadly.id


async def test_a_server_that_stops_gives_it_back_uncounted(rows: EvaluationRegistry, clock: FakeClock) -> None:
    made = await rows.create(DRAFT)
    for number in range(5):
        assert await rows.claim(f"s{number}", lease_s=10) is not None
        released = await rows.release(made.id, f"s{number}")
        assert released.state == "queued"
    assert await rows.claim("last", lease_s=10) is not None


async def test_which_state_allows_what(rows: EvaluationRegistry) -> None:
    made = await rows.create(DRAFT)
    with pytest.raises(EvaluationStateConflict):
        await rows.resume(made.id)
    await rows.claim("me", lease_s=10)
    with pytest.raises(EvaluationStateConflict):
        await rows.delete(made.id)
    assert (await rows.cancel(made.id)).state == "cancelled"
    with pytest.raises(EvaluationStopped):
        await rows.save(made.id, "me", [], lease_s=10)
    for ask in (rows.cancel, rows.resume):
        with pytest.raises(EvaluationStateConflict):
            await ask(made.id)
    await rows.delete(made.id)
    assert await rows.measured(made.id) == ()


async def test_pages_are_newest_first(rows: EvaluationRegistry, clock: FakeClock) -> None:
    made = []
    for number in range(5):
        made.append((await rows.create(DRAFT)).id)
        if number % 2:
            clock.advance(1)
    found: list[str] = []
    cursor = None
    while True:
        page = await rows.list(None, limit=2, cursor=cursor)
        found += [row.id for row in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert found == made[::-1]
    assert (await rows.list("sweep", limit=9)).items == ()


async def test_only_so_many_wait(rows: EvaluationRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 1)
    await rows.create(DRAFT)
    with pytest.raises(TooManyEvaluations):
        await rows.create(DRAFT)
    await rows.claim("me", lease_s=10)
    await rows.create(DRAFT)
