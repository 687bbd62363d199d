"""The ledger's rows: written as they stand, and added up by whatever is told apart."""

from datetime import UTC, datetime, timedelta

from amalgam.domain.usage import Counts, Spender, UsageQuery, model_of
from amalgam.registry.database import Database
from amalgam.registry.usage_rows import UsageRegistry, minute_of

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
MINUTE = minute_of(NOON)
SQL = Spender("acme", "key-1", "", "sql@3", "chat_completions")


def query(**fields: object) -> UsageQuery:
    given: dict[str, object] = {"start": NOON, "end": NOON + timedelta(hours=1)}
    return UsageQuery(**(given | fields))  # type: ignore[arg-type]


async def test_a_write_says_what_a_minute_comes_to_and_may_be_repeated(database: Database) -> None:
    rows = UsageRegistry(database)
    for counts in (Counts(1, 10, 2, 5), Counts(3, 30, 6, 15, 1), Counts(3, 30, 6, 15, 1)):
        await rows.put("a", {(MINUTE, SQL): counts})
    [line] = await rows.lines(query())
    assert line.counts == Counts(3, 30, 6, 15, 1)


async def test_front_ends_add_up_and_never_overwrite_each_other(database: Database) -> None:
    rows = UsageRegistry(database)
    for front in ("a", "b"):
        await rows.put(front, {(MINUTE, SQL): Counts(1, 10, 0, 5)})
    [line] = await rows.lines(query(by=("tenant",)))
    assert (line.names, line.counts) == (("acme",), Counts(2, 20, 0, 10))


async def test_usage_is_told_apart_by_what_is_asked_for(database: Database) -> None:
    rows = UsageRegistry(database)
    other = Spender("beta", "key-2", "support", "sql@4", "messages")
    blend = Spender("beta", "key-2", "", "blend@0123456789ab", "messages")
    await rows.put("a", {(MINUTE, one): Counts(1, 10, 0, 1) for one in (SQL, other, blend)})
    found = {line.names: line.counts.requests for line in await rows.lines(query(by=("tenant", "model")))}
    assert found == {("acme", "sql"): 1, ("beta", "sql"): 1, ("beta", "blend"): 1}
    found = {line.names: line.counts.requests for line in await rows.lines(query(by=("model",)))}
    assert found == {("sql",): 2, ("blend",): 1}
    found = {line.names: line.counts.requests for line in await rows.lines(query(by=("alias", "version", "endpoint")))}
    assert found[("support", "sql@4", "messages")] == 1
    assert await rows.lines(query(tenants=("gamma",))) == []
    assert [line.counts.requests for line in await rows.lines(query(tenants=("beta",), versions=("sql@4",)))] == [1]
    assert [line.counts.requests for line in await rows.lines(query(keys=("key-1",)))] == [1]


async def test_buckets_of_time_begin_at_the_start(database: Database) -> None:
    rows = UsageRegistry(database)
    await rows.put("a", {(MINUTE + 60 * n, SQL): Counts(1, n, 0, 0) for n in (0, 1, 4, 5, 59, 60)})
    lines = await rows.lines(query(width_s=300))
    assert [(line.bucket, line.counts.requests) for line in lines] == [(0, 3), (1, 1), (11, 1)]


async def test_without_usage_there_is_no_line(database: Database) -> None:
    rows = UsageRegistry(database)
    assert await rows.lines(query()) == []
    assert await rows.lines(query(width_s=60, by=("tenant",))) == []


async def test_old_minutes_are_forgotten(database: Database) -> None:
    rows = UsageRegistry(database)
    await rows.put("a", {(MINUTE, SQL): Counts(1), (MINUTE + 60, SQL): Counts(1)})
    assert await rows.remove_before(NOON + timedelta(minutes=1)) == 1
    [line] = await rows.lines(query())
    assert line.counts.requests == 1


def test_a_model_is_a_version_without_its_number() -> None:
    assert [model_of(name) for name in ("sql@3", "blend@0123456789ab", "blend@123456789012", "blend@3", "tiny")] == [
        "sql",
        "blend",
        "blend",
        "blend",
        "tiny",
    ]
