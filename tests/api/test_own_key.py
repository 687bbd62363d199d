"""`/v1/me`: what a key is told of itself, by role, scope and limit."""

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.api.fake_engine import FakeEngine
from tests.support.keys import key_id, make_key, make_tenant
from tests.support.running_app import ADMIN_KEY, API_KEY, RunningApp, assert_error, start_app

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 20}


async def own(running_app: RunningApp, key: str | None) -> dict[str, Any]:
    async with running_app.http(key) as http:
        answer = await http.get("/v1/me")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.parametrize("role", ["client", "publisher", "reader", "admin"])
async def test_a_key_is_told_who_it_is_and_what_it_may_ask_for(running_app: RunningApp, role: str) -> None:
    scopes: dict[str, Any] = {} if role == "admin" else {"models": ["acme.*", "base"], "blends": "own"}
    key = await make_key(running_app, role, name="production", expires_in_s=3600, **scopes)
    found = await own(running_app, key)
    expires_at = found.pop("expires_at")
    assert 3500 < (datetime.fromisoformat(expires_at) - datetime.now().astimezone()).total_seconds() <= 3600
    assert found == {
        "object": "key", "id": key_id(key), "name": "production", "role": role, "tenant": "acme",
        "models": scopes.get("models", ["*"]), "blends": scopes.get("blends", "any"), "limits": [],
    }  # fmt: skip


async def test_keys_of_the_environment_are_told_too_and_others_are_nobody(running_app: RunningApp) -> None:
    assert (await own(running_app, ADMIN_KEY))["role"] == "admin"
    client = await own(running_app, API_KEY)
    assert (client["role"], client["tenant"], client["id"][:4]) == ("client", "default", "env-")
    metrics = await make_key(running_app, "metrics")
    async with (
        running_app.http() as nobody,
        running_app.http("ak_nobody") as stranger,
        running_app.http(metrics) as scraper,
    ):
        assert_error(await nobody.get("/v1/me"), 401, "invalid_api_key")
        assert_error(await stranger.get("/v1/me"), 401, "invalid_api_key")
        assert (await scraper.get("/v1/me")).status_code == 403


async def test_a_server_without_keys_says_that_whoever_asks_may_do_everything(tmp_path: Path) -> None:
    async with start_app(tmp_path, admin_key=None, api_keys=[]) as opened:
        found = await own(opened, None)
    assert (found["id"], found["role"], found["models"]) == ("", "admin", ["*"])


async def test_what_is_left_of_every_limit_is_told(tmp_path: Path) -> None:
    async with start_app(tmp_path, FakeEngine(prompt_tokens=10, answer_tokens=None), context_tokens=4096) as limited:
        by_name = [
            {"pattern": "base", "limits": {"tokens_per_minute": 70}},
            {"pattern": "secret*", "limits": {"tokens_per_minute": 80}},
        ]
        await make_tenant(limited, "acme", limits={"tokens_per_month": 1000}, model_limits=by_name)
        key = await make_key(
            limited, "client", "base", "acme.*", limits={"requests_per_minute": 5, "tokens_per_day": 200}
        )
        assert {one["measure"]: one["left"] for one in (await own(limited, key))["limits"]} == {
            "tokens_per_month": 1000, "requests_per_minute": 5, "tokens_per_day": 200, "tokens_per_minute": 70,
        }  # fmt: skip
        async with limited.http(key) as http:
            assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200
        found = {one["measure"]: one for one in (await own(limited, key))["limits"]}
        assert {measure: one["left"] for measure, one in found.items()} == {
            "tokens_per_month": 970, "requests_per_minute": 4, "tokens_per_day": 170, "tokens_per_minute": 40,
        }  # fmt: skip
        assert found["tokens_per_month"]["whose"] == "The tenant 'acme'"
        assert datetime.fromisoformat(found["tokens_per_day"]["ends_at"]) > datetime.now().astimezone()
        assert 0 < found["requests_per_minute"]["full_in_s"] <= 64
        assert found["requests_per_minute"]["ends_at"] is None
        # Of a name that the key cannot know of nothing is said; a key of the same tenant without scopes is told.
        assert "secret" not in str(found)
        assert "secret" in str(await own(limited, await make_key(limited)))
