"""Experiments over HTTP: begun, judged, ended by feedback and by guards; assignment, shadows, scopes, the terminal."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from amalgam.__main__ import app as cli
from tests.api.fake_engine import FakeEngine
from tests.support.keys import make_key
from tests.support.running_app import (
    ADMIN_KEY,
    API_KEY,
    RunningApp,
    assert_error,
    push,
    served,
    start_app,
    write_adapter,
)

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
PATH = "/admin/v1/aliases"


class FailingEngine(FakeEngine):
    """Fails every call of one version."""

    failing = ""

    async def call(self, endpoint: Any, body: dict[str, Any], raw_request: Any, profile: Any = None) -> Any:
        if body.get("model") == self.failing:
            raise RuntimeError("a broken adapter")
        return await super().call(endpoint, body, raw_request, profile)


@pytest.fixture(scope="module")
async def running_app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningApp]:
    folder = tmp_path_factory.mktemp("experiments")
    async with start_app(folder, FailingEngine()) as opened, opened.http(ADMIN_KEY) as session:
        for seed in (1, 2, 3):
            assert (await push(session, "sql", write_adapter(folder / f"sql{seed}", seed=seed))).status_code == 201
        yield opened


async def begin(admin: httpx.AsyncClient, name: str, *, weights: tuple[int, ...] = (1, 1), **body: Any) -> Any:
    targets = [{"model": f"sql@{number}", "weight": weight} for number, weight in enumerate(weights, 1)]
    put = await admin.put(f"{PATH}/{name}", json={"targets": targets})
    assert put.status_code in (200, 201), put.text
    answer = await admin.put(f"{PATH}/{name}/experiment", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def ask(client: httpx.AsyncClient, alias: str, request_id: str, **body: Any) -> str:
    asked = {"model": alias} | CHAT | body
    answer = await client.post("/v1/chat/completions", json=asked, headers={"x-request-id": request_id})
    return str(answer.headers.get("x-amalgam-adapter", ""))


async def judged(client: httpx.AsyncClient, alias: str, count: int, good: str, **body: Any) -> None:
    """Ask and judge: answers of ``good`` are good, the others are not."""
    for number in range(count):
        request_id = f"{alias}-{body.get('user', '')}-{number}"
        served = await ask(client, alias, request_id, **body)
        said = {"id": request_id, "name": "thumb", "value": served == good}
        answer = await client.post("/v1/feedback", json=said)
        assert answer.status_code == 200, answer.text


async def look(running_app: RunningApp) -> None:
    await running_app.services.experiments.look()


async def shown(admin: httpx.AsyncClient, name: str) -> dict[str, Any]:
    found: dict[str, Any] = (await admin.get(f"{PATH}/{name}/experiment")).json()
    return found


async def meaning(admin: httpx.AsyncClient, name: str) -> list[tuple[str, int]]:
    return [(one["model"], one["weight"]) for one in (await admin.get(f"{PATH}/{name}")).json()["targets"]]


async def test_a_better_candidate_is_promoted(
    running_app: RunningApp, admin: httpx.AsyncClient, client: httpx.AsyncClient
) -> None:
    begun = await begin(admin, "better", weights=(3, 1), metric="thumb", promote=True)
    assert (begun["state"], begun["verdict"], begun["alias"]) == ("running", None, "better")
    assert [(one["model"], one["role"]) for one in begun["targets"]] == [("sql@1", "control"), ("sql@2", "candidate")]
    assert (await admin.get(f"{PATH}/better")).json()["experiment"] == begun["id"]
    await judged(client, "better", 60, "sql@2")
    await look(running_app)
    ended = await shown(admin, "better")
    assert (ended["state"], ended["verdict"], ended["winner"]) == ("ended", "better", "sql@2")
    assert ended["changed_alias"] is True
    assert await meaning(admin, "better") == [("sql@2", 1)]
    control, candidate = ended["targets"]
    assert (control["mean"], candidate["mean"]) == (0, 1)
    assert control["outcomes"] + candidate["outcomes"] <= 60
    assert candidate["difference"][0] > 0
    history = (await admin.get(f"{PATH}/better/history")).json()["data"]
    assert [one["action"] for one in history[:2]] == ["experiment", "set"]
    back = await admin.post(f"{PATH}/better:rollback")
    assert [one["model"] for one in back.json()["targets"]] == ["sql@1", "sql@2"]
    entries = (await admin.get("/admin/v1/audit?limit=100")).json()["data"]
    assert [one["request_id"] for one in entries if one["verb"] == "experiment.end"] == [begun["id"]]
    assert {"experiment.start", "experiment.end"} <= {one["verb"] for one in entries}


async def test_without_promotion_the_verdict_stands_and_the_alias_stays(
    running_app: RunningApp, admin: httpx.AsyncClient, client: httpx.AsyncClient
) -> None:
    await begin(admin, "told", metric="thumb")
    await judged(client, "told", 60, "sql@1")
    await look(running_app)
    ended = await shown(admin, "told")
    assert (ended["state"], ended["winner"]) == ("ended", "sql@1")
    assert ended["verdict"] in ("worse", "not_better")
    assert ended["changed_alias"] is False
    assert await meaning(admin, "told") == [("sql@1", 1), ("sql@2", 1)]
    assert (await admin.get(f"{PATH}/told")).json()["experiment"] is None


async def test_feedback_under_another_name_or_after_the_end_counts_nothing(
    running_app: RunningApp, admin: httpx.AsyncClient, client: httpx.AsyncClient
) -> None:
    await begin(admin, "named", metric="score")
    await judged(client, "named", 5, "sql@2")
    assert sum(one["outcomes"] for one in (await shown(admin, "named"))["targets"]) == 0
    await ask(client, "named", "late")
    stopped = (await admin.delete(f"{PATH}/named/experiment")).json()
    assert (stopped["state"], stopped["verdict"]) == ("stopped", "stopped")
    assert (await admin.delete(f"{PATH}/named/experiment")).json() == stopped
    said = await client.post("/v1/feedback", json={"id": "late", "name": "score", "value": 1})
    assert said.status_code == 200
    assert (await shown(admin, "named"))["targets"] == stopped["targets"]


async def test_a_guard_takes_a_failing_candidate_out(
    running_app: RunningApp, admin: httpx.AsyncClient, client: httpx.AsyncClient
) -> None:
    assert isinstance(running_app.engine, FailingEngine)
    running_app.engine.failing = "sql@2"
    try:
        await begin(admin, "guarded", errors={"most_above": 0.02})
        for number in range(40):
            await ask(client, "guarded", f"guarded-{number}")
        await look(running_app)
    finally:
        running_app.engine.failing = ""
    ended = await shown(admin, "guarded")
    assert (ended["verdict"], ended["removed"], ended["changed_alias"]) == ("guard_errors", ["sql@2"], True)
    assert await meaning(admin, "guarded") == [("sql@1", 1)]
    control, candidate = ended["targets"]
    assert control["errors"] == 0
    assert candidate["errors"] == candidate["requests"] > 0
    assert candidate["more_errors"][0] > 0.02, "what the guard acted on is shown"
    assert (control["more_errors"], candidate["more_slow"]) == (None, None)
    page = (await admin.get("/metrics")).text
    assert 'amalgam_experiments_ended_total{verdict="guard_errors"} 1.0' in page


async def test_a_guard_takes_a_slow_candidate_out_and_leaves_the_others(
    running_app: RunningApp, admin: httpx.AsyncClient, client: httpx.AsyncClient
) -> None:
    """Numbers as requests would leave them: the clock of a test is not slowed down."""
    begun = await begin(admin, "slow", weights=(8, 1, 1), latency={"slow_ms": 500, "most_above": 0.05})
    counts = running_app.services.experiment_counts
    for number in range(200):
        for target in ("sql@1", "sql@2", "sql@3"):
            counts.add(begun["id"], target, is_error=False, is_slow=target == "sql@3" and number % 2 == 0)
    await look(running_app)
    ended = await shown(admin, "slow")
    assert (ended["verdict"], ended["removed"]) == ("guard_latency", ["sql@3"])
    assert [one["more_slow"] and one["more_slow"][0] > 0.05 for one in ended["targets"]] == [None, False, True]
    assert await meaning(admin, "slow") == [("sql@1", 8), ("sql@2", 1)]


async def test_a_changed_alias_ends_its_experiment(admin: httpx.AsyncClient) -> None:
    await begin(admin, "changed", metric="thumb")
    await admin.put(f"{PATH}/changed", json={"targets": [{"model": "sql@3"}]})
    ended = await shown(admin, "changed")
    assert (ended["state"], ended["verdict"]) == ("stopped", "replaced")
    assert (await admin.get(f"{PATH}/changed")).json()["experiment"] is None
    await begin(admin, "deleted", metric="thumb")
    await admin.delete(f"{PATH}/deleted")
    assert (await shown(admin, "deleted"))["verdict"] == "replaced"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "metric"),
        ({"metric": "thumb", "control": "sql@3"}, "control"),
        ({"shadows": ["sql@1"]}, "shadows.0"),
    ],
)
async def test_nothing_to_compare(admin: httpx.AsyncClient, body: dict[str, Any], param: str) -> None:
    targets = [{"model": "sql@1"}, {"model": "sql@2"}]
    await admin.put(f"{PATH}/refused", json={"targets": targets})
    error = assert_error(await admin.put(f"{PATH}/refused/experiment", json=body), 400, "nothing_to_compare")
    assert error["param"] == param


async def test_what_cannot_be_asked_for_is_refused(admin: httpx.AsyncClient) -> None:
    await admin.put(f"{PATH}/single", json={"targets": [{"model": "sql@1"}]})
    single = f"{PATH}/single/experiment"
    assert_error(await admin.put(single, json={"metric": "thumb"}), 400, "nothing_to_compare")
    assert_error(await admin.put(single, json={"shadows": ["none"]}), 404, "model_not_found")
    assert_error(await admin.put(single, json={"shadows": ["single"]}), 400, "alias_of_alias")
    assert_error(await admin.put(single, json={"shadows": ["sql@2"], "revision": 9}), 409, "stale_revision")
    assert_error(await admin.get(single), 404, "experiment_not_found")
    assert_error(await admin.delete(single), 404, "experiment_not_found")
    assert_error(await admin.put(f"{PATH}/no-alias/experiment", json={"metric": "thumb"}), 404, "alias_not_found")
    for body in ({"risk": 0}, {"minimum_effect": 1}, {"metric": "A"}, {"latency": {"most_above": 0.1}}, {"extra": 1}):
        assert (await admin.put(single, json=body)).status_code == 400
    await begin(admin, "twice", metric="thumb")
    assert_error(await admin.put(f"{PATH}/twice/experiment", json={"metric": "thumb"}), 409, "experiment_running")


async def test_each_request_draws_anew_unless_users_or_keys_are_assigned(
    running_app: RunningApp, admin: httpx.AsyncClient, client: httpx.AsyncClient
) -> None:
    await begin(admin, "drawn", metric="thumb")
    assert {await ask(client, "drawn", f"drawn-{n}", user="bob") for n in range(40)} == {"sql@1", "sql@2"}
    await begin(admin, "by-user", metric="thumb", assignment="user")
    assert len({await ask(client, "by-user", f"user-{n}", user="bob") for n in range(20)}) == 1
    await begin(admin, "by-key", metric="thumb", assignment="key")
    assert len({await ask(client, "by-key", f"key-{n}", user=f"user-{n}") for n in range(20)}) == 1


async def test_of_an_assigned_user_the_first_outcome_counts(
    running_app: RunningApp, admin: httpx.AsyncClient, client: httpx.AsyncClient
) -> None:
    await begin(admin, "units", metric="thumb", assignment="user")
    for user in ("ann", "bob"):
        await judged(client, "units", 5, "sql@1", user=user)
    assert sum(one["outcomes"] for one in (await shown(admin, "units"))["targets"]) == 2


async def test_shadows_get_copies_and_never_answer(
    running_app: RunningApp, admin: httpx.AsyncClient, client: httpx.AsyncClient
) -> None:
    await admin.put(f"{PATH}/shadowed", json={"targets": [{"model": "sql@1"}]})
    begun = await admin.put(f"{PATH}/shadowed/experiment", json={"shadows": ["sql@3"]})
    assert [(one["model"], one["role"]) for one in begun.json()["targets"]] == [
        ("sql@1", "control"),
        ("sql@3", "shadow"),
    ]
    asked = len(running_app.engine.calls)
    served = {await ask(client, "shadowed", f"shadowed-{number}", stream=number == 0) for number in range(3)}
    assert served == {"sql@1"}

    async def copied() -> list[dict[str, Any]]:
        calls = [body for _, body in running_app.engine.calls[asked:] if body["model"] == "sql@3"]
        if len(calls) < 3:
            await asyncio.sleep(0.02)
        return calls

    async with asyncio.timeout(20):
        while len(calls := await copied()) < 3:
            continue
    assert all("stream" not in body and body["messages"] == CHAT["messages"] for body in calls)
    async with asyncio.timeout(20):
        while (shadow := (await shown(admin, "shadowed"))["targets"][1])["requests"] < 3:
            await asyncio.sleep(0.02)
    assert (shadow["requests"], shadow["errors"], shadow["outcomes"]) == (3, 0, 0)
    lines = (await admin.get("/admin/v1/usage?by=endpoint,version")).json()["data"]
    assert any(one.get("endpoint") == "shadows" and one.get("version") == "sql@3" for one in lines)


async def test_a_shadow_that_breaks_is_counted_and_stops_no_other_copy(
    running_app: RunningApp, admin: httpx.AsyncClient, client: httpx.AsyncClient
) -> None:
    assert isinstance(running_app.engine, FailingEngine)
    await admin.put(f"{PATH}/broken", json={"targets": [{"model": "sql@1"}]})
    assert (await admin.put(f"{PATH}/broken/experiment", json={"shadows": ["sql@3", "sql@2"]})).status_code == 200
    running_app.engine.failing = "sql@3"
    try:
        assert {await ask(client, "broken", f"broken-{number}") for number in range(3)} == {"sql@1"}
        async with asyncio.timeout(20):
            while min(one["requests"] for one in (await shown(admin, "broken"))["targets"]) < 3:
                await asyncio.sleep(0.02)
    finally:
        running_app.engine.failing = ""
    targets = (await shown(admin, "broken"))["targets"]
    assert [(one["model"], one["errors"]) for one in targets] == [("sql@1", 0), ("sql@3", 3), ("sql@2", 0)]
    assert (await client.get("/readyz")).status_code == 200


async def test_copies_wait_for_spare_capacity_and_too_many_are_dropped(tmp_path: Path) -> None:
    async with (
        start_app(tmp_path, shadow_waiting=1, shadow_concurrency=1) as busy,
        busy.http(ADMIN_KEY) as admin,
        busy.http(API_KEY) as client,
    ):
        for seed in (1, 2):
            await push(admin, "sql", write_adapter(tmp_path / f"sql{seed}", seed=seed))
        await admin.put(f"{PATH}/chat", json={"targets": [{"model": "sql@1"}]})
        assert (await admin.put(f"{PATH}/chat/experiment", json={"shadows": ["sql@2"]})).status_code == 200
        busy.engine.chunk_pause_s = 0.3
        streams = asyncio.create_task(ask(client, "tiny", "holds", stream=True))
        while not busy.engine.active:
            await asyncio.sleep(0.01)
        await asyncio.gather(*(ask(client, "chat", f"copied-{number}") for number in range(5)))
        assert [body for _, body in busy.engine.calls if body["model"] == "sql@2"] == [], "a client was being answered"
        page = (await admin.get("/metrics")).text
        [dropped] = [
            line for line in page.splitlines() if line.startswith('amalgam_shadow_requests_total{result="dropped"')
        ]
        assert float(dropped.split()[-1]) >= 3
        await streams


async def test_a_key_is_told_of_what_is_in_its_scope(running_app: RunningApp, admin: httpx.AsyncClient) -> None:
    await begin(admin, "scoped", metric="thumb")
    async with running_app.http(await make_key(running_app, "publisher", "scoped", "sql@1")) as publisher:
        seen = (await publisher.get(f"{PATH}/scoped/experiment")).json()
        assert [one["model"] for one in seen["targets"]] == ["sql@1", "(not in scope)"]
        assert [one["alias"] for one in (await publisher.get("/admin/v1/experiments")).json()["data"]] == ["scoped"]
        assert (await publisher.delete(f"{PATH}/scoped/experiment")).status_code == 200
        assert_error(await publisher.put(f"{PATH}/scoped/experiment", json={"metric": "thumb"}), 403, "not_in_scope")
        assert_error(await publisher.get(f"{PATH}/drawn/experiment"), 404, "alias_not_found")


async def test_lists_come_in_pages(admin: httpx.AsyncClient) -> None:
    for name in ("page-a", "page-b", "page-c"):
        await begin(admin, name, metric="thumb")
    await admin.delete(f"{PATH}/page-a/experiment")
    await begin(admin, "page-a", metric="score")
    names, cursor = [], "page"
    while cursor is not None:
        page = (await admin.get("/admin/v1/experiments", params={"limit": 1, "cursor": cursor})).json()
        names += [(one["alias"], one["metric"]) for one in page["data"]]
        cursor = page["next_cursor"]
    assert names[:3] == [("page-a", "score"), ("page-b", "thumb"), ("page-c", "thumb")]
    assert len({name for name, _ in names}) == len(names)


async def test_numbers_are_on_the_page_of_metrics_while_it_runs(
    running_app: RunningApp, admin: httpx.AsyncClient, client: httpx.AsyncClient
) -> None:
    await begin(admin, "measured", weights=(1, 1), metric="thumb")
    await judged(client, "measured", 4, "sql@1")
    await look(running_app)
    page = (await admin.get("/metrics")).text
    told = [line for line in page.splitlines() if line.startswith("amalgam_experiment_outcomes") and "measured" in line]
    assert sum(float(line.split()[-1]) for line in told) == 4
    await admin.delete(f"{PATH}/measured/experiment")
    await look(running_app)
    assert 'alias="measured",adapter="sql@1"} ' not in "\n".join(
        line for line in (await admin.get("/metrics")).text.splitlines() if line.startswith("amalgam_experiment_")
    )


async def test_a_terminal_starts_shows_lists_and_stops(
    running_app: RunningApp, admin: httpx.AsyncClient, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    await admin.put(f"{PATH}/typed", json={"targets": [{"model": "sql@1"}, {"model": "sql@2"}]})
    (tmp_path / "asked.json").write_text('{"metric": "score", "errors": {"most_above": 0.1}}')
    (tmp_path / "broken.json").write_text("{")
    async with served(running_app.app) as url:
        reach = {"AMALGAM_URL": url, "AMALGAM_ADMIN_KEY": ADMIN_KEY}

        async def amalgam(*arguments: str) -> tuple[int, str]:
            done = await asyncio.to_thread(lambda: CliRunner().invoke(cli, ["experiments", *arguments], env=reach))
            return done.exit_code, done.output

        code, text = await amalgam("start", "typed", "--metric", "thumb", "--shadow", "sql@3")
        assert code == 0, text
        assert text.startswith("typed running\n")
        assert "control" in text
        assert "shadow" in text
        await judged(client, "typed", 2, "sql@1")
        assert "thumb" in (await amalgam("outcomes", "typed"))[1]
        assert "running" in (await amalgam("ls"))[1]
        code, text = await amalgam("stop", "typed")
        assert (code, text.startswith("typed stopped: stopped\n")) == (0, True)
        code, text = await amalgam("start", "typed", "--file", str(tmp_path / "asked.json"))
        assert code == 0, text
        assert (await shown(admin, "typed"))["errors"] == {"most_above": 0.1, "slow_ms": None}
        assert (await amalgam("show", "typed"))[0] == 0
        code, text = await amalgam("start", "typed", "--file", str(tmp_path / "broken.json"))
        assert (code, "is no JSON" in text) == (1, True)
