"""What clients say of their answers: taken once, of own answers alone, by either id, and added up by target."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from amalgam.domain.feedback import MAX_NAMES
from amalgam.registry.database import Database
from tests.support.keys import make_key
from tests.support.running_app import ADMIN_KEY, API_KEY, RunningApp, assert_error, push, start_app, write_adapter

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
async def running_app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningApp]:
    folder = tmp_path_factory.mktemp("feedback")
    async with start_app(folder) as opened, opened.http(ADMIN_KEY) as session:
        for seed in (1, 2):
            assert (await push(session, "sql", write_adapter(folder / f"sql{seed}", seed=seed))).status_code == 201
        targets = [{"model": "sql@1"}, {"model": "sql@2"}]
        assert (await session.put("/admin/v1/aliases/chat", json={"targets": targets})).status_code == 201
        yield opened


async def ask(client: httpx.AsyncClient, request_id: str, **body: Any) -> httpx.Response:
    asked = {"model": "chat"} | CHAT | body
    answer = await client.post("/v1/chat/completions", json=asked, headers={"x-request-id": request_id})
    assert answer.status_code == 200, answer.text
    return answer


async def say(client: httpx.AsyncClient, answer_id: str, value: object, name: str = "thumb") -> httpx.Response:
    return await client.post("/v1/feedback", json={"id": answer_id, "name": name, "value": value})


async def test_the_same_is_taken_once_and_another_value_refused(client: httpx.AsyncClient) -> None:
    await ask(client, "once")
    first, again = await say(client, "once", True), await say(client, "once", 1)
    assert first.status_code == again.status_code == 200, first.text
    assert first.json() == again.json()
    assert (first.json()["object"], first.json()["id"], first.json()["value"]) == ("feedback", "once", 1.0)
    error = assert_error(await say(client, "once", False), 409, "feedback_differs")
    assert error["param"] == "value"
    assert (await say(client, "once", 0.25, "score")).json()["value"] == 0.25


async def test_what_is_said_at_once_is_taken_once(client: httpx.AsyncClient, admin: httpx.AsyncClient) -> None:
    await ask(client, "at-once", user="somebody")
    answers = await asyncio.gather(*(say(client, "at-once", 1, "crowd") for _ in range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert [one["count"] for one in (await outcomes(admin)) if one["name"] == "crowd"] == [1]


async def test_a_stream_is_judged_by_the_id_in_its_events(client: httpx.AsyncClient) -> None:
    answer = await ask(client, "streamed", stream=True)
    assert '"id": "chatcmpl-1"' in answer.text
    assert (await say(client, "chatcmpl-1", True, "by_completion")).json()["id"] == "streamed"


async def test_only_the_key_that_asked_may_judge(running_app: RunningApp, client: httpx.AsyncClient) -> None:
    await ask(client, "mine")
    async with running_app.http(await make_key(running_app)) as other:
        assert_error(await say(other, "mine", True), 404, "answer_not_found")
    async with running_app.http() as nobody:
        assert (await say(nobody, "mine", True)).status_code == 401
    assert (await say(client, "mine", True)).status_code == 200


async def test_what_is_no_feedback_is_refused(client: httpx.AsyncClient) -> None:
    await ask(client, "plain")
    for value in (2, -0.1, "yes", None, [1], 1.01):
        assert_error(await say(client, "plain", value), 400, "invalid_value")
    for name in ("Thumb", "", "x" * 33, "1st", "a b"):
        assert_error(await say(client, "plain", 1, name), 400, "invalid_value")
    assert_error(await say(client, "a b", 1), 400, "invalid_value")
    assert_error(await say(client, "not-there", 1), 404, "answer_not_found")


async def test_answers_have_so_many_names_and_no_more(client: httpx.AsyncClient) -> None:
    await ask(client, "many")
    for number in range(MAX_NAMES):
        assert (await say(client, "many", 1, f"name_{number}")).status_code == 200
    assert_error(await say(client, "many", 1, "another"), 409, "too_much_feedback")
    assert (await say(client, "many", 1, "name_0")).status_code == 200


async def test_requests_without_an_alias_are_not_kept_unless_asked_for(
    client: httpx.AsyncClient, tmp_path: Path
) -> None:
    await ask(client, "direct", model="sql@1")
    message = assert_error(await say(client, "direct", 1), 404, "answer_not_found")["message"]
    assert "that named an alias" in message
    async with start_app(tmp_path, answers_of="all") as all_kept, all_kept.http(API_KEY) as session:
        await ask(session, "direct", model="tiny")
        assert (await say(session, "direct", 1)).status_code == 200


async def test_a_server_that_keeps_none_says_so(tmp_path: Path) -> None:
    async with start_app(tmp_path, answers_keep_hours=0) as none_kept, none_kept.http(API_KEY) as session:
        await ask(session, "any", model="tiny")
        assert_error(await say(session, "any", 1), 409, "feedback_off")


async def test_outcomes_are_added_up_by_target(client: httpx.AsyncClient, admin: httpx.AsyncClient) -> None:
    served: dict[str, list[float]] = {}
    for number in range(12):
        answer = await ask(client, f"sum-{number}")
        value = number / 11
        served.setdefault(answer.headers["x-amalgam-adapter"], []).append(value)
        assert (await say(client, f"sum-{number}", value, "summed")).status_code == 200
    found = {one["version"]: one for one in await outcomes(admin) if one["name"] == "summed"}
    assert found.keys() == served.keys()
    for version, values in served.items():
        one = found[version]
        assert (one["target"], one["count"]) == (version, len(values))
        assert one["mean"] == pytest.approx(sum(values) / len(values))
        assert one["interval"][0] <= one["mean"] <= one["interval"][1]
    assert_error(await admin.get("/admin/v1/aliases/none/outcomes"), 404, "alias_not_found")


async def outcomes(admin: httpx.AsyncClient) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await admin.get("/admin/v1/aliases/chat/outcomes")).json()["data"]
    return found


async def test_no_request_waits_for_the_database(
    running_app: RunningApp, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept of an answer is written by a loop: a request opens no transaction that writes."""
    written = 0
    write = Database.write

    def counted(database: Database, **given: Any) -> Any:
        nonlocal written
        written += 1
        return write(database, **given)

    monkeypatch.setattr(Database, "write", counted)
    await running_app.services.answers.flush()
    before = written
    for number in range(50):
        await ask(client, f"hot-{number}")
    # The loops of one or two periods may have written meanwhile, each some times.
    assert written - before < 25
    await running_app.services.answers.flush()
    assert written > before, "what is counted here is what writes"
    assert (await say(client, "hot-49", 1)).status_code == 200
