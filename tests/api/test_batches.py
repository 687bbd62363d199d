"""Batches and their files, through the calls of OpenAI's own client library, on an engine without a model."""

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest

from amalgam.errors.engine import EngineNotReady
from tests.api.fake_engine import FakeEngine
from tests.support.batches import CHAT, begun, client_of, ended, line, running, shared, tenant, written
from tests.support.keys import key_id, make_key
from tests.support.running_app import ADMIN_KEY, RunningApp, start_app

__all__ = ["running", "shared", "tenant"]


async def test_an_adapter_an_alias_and_a_blend_are_answered_in_one_batch(running: RunningApp, tenant: str) -> None:
    client = client_of(running, await make_key(running, "client", "acme.*", "base", tenant=tenant))
    models = {"a": "acme.sql", "b": "acme.live", "c": "acme.sql + 0.5*acme.json", "d": "tiny"}
    batch = await begun(client, [line(name, model) for name, model in models.items()], metadata={"run": "one"})
    assert (batch.object, batch.status, batch.completion_window) == ("batch", "validating", "24h")
    assert batch.expires_at is not None
    assert batch.expires_at - batch.created_at == 86_400
    done = await ended(client, batch.id)
    assert done.status == "completed"
    assert done.metadata == {"run": "one"}
    assert done.error_file_id is None
    assert done.request_counts is not None
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (4, 4, 0)
    moments = [done.created_at, done.in_progress_at, done.finalizing_at, done.completed_at]
    assert None not in moments
    answers = await written(client, done.output_file_id)
    assert [one["custom_id"] for one in answers] == list(models)
    assert all(one["error"] is None and one["response"]["status_code"] == 200 for one in answers)
    told = [one["response"]["body"]["model"] for one in answers]
    assert told[:2] == ["acme.sql@1", "acme.sql@1"]
    assert told[2].startswith("blend@")
    assert len({one["id"] for one in answers}) == 4
    assert all(one["response"]["request_id"].startswith("req-") for one in answers)


async def test_bad_lines_go_to_the_error_file_and_the_others_are_answered(running: RunningApp, tenant: str) -> None:
    client = client_of(running, await make_key(running, "client", "acme.*", "base", tenant=tenant))
    lines = [
        line("good"),
        b"no json\n",
        line("foreign", "zeta.one"),
        line("good"),
        line("elsewhere", url="/v1/completions"),
        line("read", method="GET"),
        {"method": "POST", "url": CHAT, "body": {}},
        b"\n",
        line("streams", body={"model": "tiny", "messages": [], "stream": True}),
        line("refused", body={"model": "tiny", "messages": "none"}),
        line("last"),
    ]
    done = await ended(client, (await begun(client, lines)).id)
    assert done.status == "completed"
    assert done.request_counts is not None
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (10, 2, 8)
    assert [one["custom_id"] for one in await written(client, done.output_file_id)] == ["good", "last"]
    refusals = await written(client, done.error_file_id)
    assert [one["custom_id"] for one in refusals] == [
        None, "foreign", "good", "elsewhere", "read", None, "streams", "refused",
    ]  # fmt: skip
    codes = [one["error"]["code"] if one["error"] else one["response"]["body"]["error"]["code"] for one in refusals]
    assert codes == ["invalid_batch_line", "model_not_found", *["invalid_batch_line"] * 5, "invalid_value"]
    assert refusals[-1]["response"]["status_code"] == 400
    asked = [body["model"] for endpoint, body in running.engine.calls]
    assert asked.count("tiny") == 2
    assert "zeta.one@1" not in asked


@pytest.mark.parametrize(
    ("lines", "code"),
    [([b"\n\n"], "empty_file"), ([b"x\n", line("a", "nobody")], "invalid_batch_line")],
    ids=["no line", "no usable line"],
)
async def test_a_file_of_nothing_usable_fails(running: RunningApp, tenant: str, lines: list[Any], code: str) -> None:
    client = client_of(running, await make_key(running, "client", tenant=tenant))
    done = await ended(client, (await begun(client, lines)).id)
    assert done.status == "failed"
    assert done.failed_at is not None
    assert done.errors is not None
    assert done.errors.data is not None
    assert done.errors.data[0].code == code
    assert done.output_file_id is None


async def test_what_a_batch_took_is_its_keys(running: RunningApp, tenant: str) -> None:
    key = await make_key(running, "client", "acme.*", tenant=tenant)
    client = client_of(running, key)
    await ended(client, (await begun(client, [line(str(n), "acme.sql") for n in range(5)])).id)
    async with running.http(ADMIN_KEY) as admin:
        query = {"by": "key,version,endpoint"}
        usage = (await admin.get("/admin/v1/usage", params=query)).json()["data"]
    [mine] = [one for one in usage if one["key"] == key_id(key)]
    assert (mine["version"], mine["endpoint"], mine["requests"]) == ("acme.sql@1", "chat_completions", 5)
    assert (mine["prompt_tokens"], mine["completion_tokens"]) == (35, 5)


async def test_a_batch_never_takes_more_at_once_than_its_key_may(running: RunningApp, tenant: str) -> None:
    running.engine.chunk_pause_s = 0.02
    key = await make_key(running, "client", limits={"concurrent_requests": 1, "tokens_per_day": 100_000}, tenant=tenant)
    client = client_of(running, key)
    done = await ended(client, (await begun(client, [line(str(n)) for n in range(6)])).id)
    assert done.request_counts is not None
    assert done.request_counts.completed == 6
    assert running.engine.most == 1


async def test_a_spent_budget_is_a_refusal_in_the_error_file(running: RunningApp, tenant: str) -> None:
    client = client_of(running, await make_key(running, "client", limits={"tokens_per_day": 700}, tenant=tenant))
    done = await ended(client, (await begun(client, [line(str(n)) for n in range(150)])).id)
    assert done.request_counts is not None
    assert done.request_counts.failed > 0
    assert done.request_counts.completed > 0
    first = (await written(client, done.error_file_id))[0]
    assert first["response"]["status_code"] == 429
    assert first["response"]["body"]["error"]["code"] == "insufficient_quota"
    assert done.request_counts.completed * 8 <= 700


async def test_cancelling_keeps_what_is_done(running: RunningApp, tenant: str) -> None:
    running.engine.chunk_pause_s = 0.05
    client = client_of(running, await make_key(running, "client", tenant=tenant))
    batch = await begun(client, [line(str(n)) for n in range(500)])
    async with asyncio.timeout(60):
        while len(running.engine.calls) < 10:
            await asyncio.sleep(0.02)
    assert (await client.batches.cancel(batch.id)).status == "cancelling"
    done = await ended(client, batch.id)
    assert done.status == "cancelled"
    assert done.cancelling_at is not None
    assert done.cancelled_at is not None
    answers = await written(client, done.output_file_id)
    assert done.request_counts is not None
    assert 0 < len(answers) == done.request_counts.completed < 500
    assert done.request_counts.total == 500
    with pytest.raises(openai.ConflictError) as refused:
        await client.batches.cancel(batch.id)
    assert refused.value.code == "batch_state_conflict"


async def test_lists_go_by_pages_newest_first(running: RunningApp, tenant: str) -> None:
    client = client_of(running, await make_key(running, "client", tenant=tenant))
    made = [(await begun(client, [line("a")])).id for _ in range(5)]
    for batch_id in made:
        await ended(client, batch_id)
    assert [batch.id async for batch in client.batches.list(limit=2)] == made[::-1]
    files = [file.id async for file in client.files.list(limit=3)]
    assert len(files) == len(set(files)) == 10
    assert len([file async for file in client.files.list(purpose="batch_output", limit=2)]) == 5
    oldest = [file.id async for file in client.files.list(purpose="batch", order="asc", limit=2)]
    assert oldest[::-1] == [file.id async for file in client.files.list(purpose="batch")]


async def test_another_tenant_finds_nothing(running: RunningApp, tenant: str) -> None:
    mine = client_of(running, await make_key(running, "client", tenant=tenant))
    theirs = client_of(running, await make_key(running, "client", tenant=f"{tenant}-other"))
    batch = await begun(mine, [line("a")])
    done = await ended(mine, batch.id)
    assert [file async for file in theirs.files.list()] == []
    assert [one async for one in theirs.batches.list()] == []
    for file_id in (batch.input_file_id, done.output_file_id):
        assert file_id is not None
        for call in (theirs.files.retrieve, theirs.files.content, theirs.files.delete):
            with pytest.raises(openai.NotFoundError) as missing:
                await call(file_id)
            assert missing.value.code == "file_not_found"
    for ask in (theirs.batches.retrieve, theirs.batches.cancel):
        with pytest.raises(openai.NotFoundError):
            await ask(batch.id)
    with pytest.raises(openai.NotFoundError):
        await theirs.batches.create(input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h")
    with pytest.raises(openai.NotFoundError):
        [one async for one in theirs.batches.list(after=batch.id)]


async def test_a_key_of_other_scopes_sees_none_of_it_and_its_successor_all(running: RunningApp, tenant: str) -> None:
    key = await make_key(running, "client", "acme.sql", tenant=tenant)
    narrow = client_of(running, key)
    done = await ended(narrow, (await begun(narrow, [line("a", "acme.sql")])).id)
    other = client_of(running, await make_key(running, "client", "acme.json", tenant=tenant))
    assert [one async for one in other.batches.list()] == []
    with pytest.raises(openai.NotFoundError):
        await other.files.content(str(done.output_file_id))
    whole = client_of(running, await make_key(running, "client", tenant=tenant))
    assert [one.id async for one in whole.batches.list()] == [done.id]
    async with running.http(ADMIN_KEY) as admin:
        rotated = await admin.post(f"/admin/v1/keys/{key_id(key)}:rotate")
    successor = client_of(running, rotated.json()["new"]["key"])
    assert len(await written(successor, done.output_file_id)) == 1


async def test_the_batch_of_a_revoked_key_ends(running: RunningApp, tenant: str) -> None:
    running.engine.chunk_pause_s = 0.05
    key, whole = (
        await make_key(running, "client", tenant=tenant),
        client_of(running, await make_key(running, "client", tenant=tenant)),
    )
    batch = await begun(client_of(running, key), [line(str(n)) for n in range(500)])
    async with asyncio.timeout(60):
        while len(running.engine.calls) < 5:
            await asyncio.sleep(0.02)
    async with running.http(ADMIN_KEY) as admin:
        assert (await admin.post(f"/admin/v1/keys/{key_id(key)}:revoke")).status_code == 200
    done = await ended(whole, batch.id)
    assert done.status == "failed"
    assert done.errors is not None
    assert done.errors.data is not None
    assert done.errors.data[0].code == "batch_key_ended"
    assert await written(whole, done.output_file_id) != []


async def test_an_engine_that_goes_away_is_waited_for(running: RunningApp, tenant: str) -> None:
    running.engine.current = "restarting"
    client = client_of(running, await make_key(running, "client", tenant=tenant))
    batch = await begun(client, [line("a"), line("b")])
    async with asyncio.timeout(60):
        while (await client.batches.retrieve(batch.id)).status != "in_progress":
            await asyncio.sleep(0.05)
    running.engine.current = "ready"
    assert (await ended(client, batch.id)).status == "completed"


async def test_a_line_at_which_the_engine_goes_away_each_time_is_given_up(running: RunningApp, tenant: str) -> None:
    failure = EngineNotReady("restarting")
    failure.retry_after_s = 0.05
    running.engine.failure = failure
    client = client_of(running, await make_key(running, "client", tenant=tenant))
    done = await ended(client, (await begun(client, [line("a")])).id)
    assert done.request_counts is not None
    assert (done.request_counts.completed, done.request_counts.failed) == (0, 1)
    assert len(running.engine.calls) == 3


async def test_a_file_that_a_batch_reads_stays(running: RunningApp, tenant: str) -> None:
    running.engine.chunk_pause_s = 0.05
    client = client_of(running, await make_key(running, "client", tenant=tenant))
    batch = await begun(client, [line(str(n)) for n in range(200)])
    with pytest.raises(openai.ConflictError) as refused:
        await client.files.delete(batch.input_file_id)
    assert refused.value.code == "file_in_use"
    await client.batches.cancel(batch.id)
    await ended(client, batch.id)
    assert (await client.files.delete(batch.input_file_id)).deleted
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve(batch.input_file_id)


async def test_a_small_batch_does_not_wait_for_another_tenants_large_one(running: RunningApp, tenant: str) -> None:
    running.engine.chunk_pause_s = 0.02
    large = client_of(running, await make_key(running, "client", tenant=tenant))
    small = client_of(running, await make_key(running, "client", tenant=f"{tenant}-other"))
    long = await begun(large, [line(str(n)) for n in range(2000)])
    done = await ended(small, (await begun(small, [line(str(n)) for n in range(8)])).id)
    assert done.status == "completed"
    assert (await large.batches.retrieve(long.id)).status == "in_progress"
    await large.batches.cancel(long.id)
    await ended(large, long.id)


async def test_batch_work_waits_while_clients_are_answered(tmp_path: Path) -> None:
    engine = FakeEngine(chunk_pause_s=0.05, chunks=40)
    async with start_app(tmp_path, engine, evaluation_patience_s=600) as running_app:
        client = client_of(running_app, await make_key(running_app, "client"))
        stream = asyncio.create_task(
            client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "hi"}], stream=True, max_tokens=50
            )
        )
        answer = await stream
        batch = await begun(client, [line("a")])
        asked = len(engine.calls)
        async for _ in answer:
            assert len(engine.calls) == asked
        assert (await ended(client, batch.id)).status == "completed"
