"""Limits of keys and tenants over HTTP: what passes, what is refused and how, and what is charged."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.fake_engine import FakeEngine
from tests.support.keys import make_key, make_tenant
from tests.support.running_app import API_KEY, RunningApp, assert_error, push, start_app, write_adapter

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 20}
ROUTES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", CHAT),
    ("/v1/completions", {"model": "tiny", "prompt": "hi", "max_tokens": 20}),
    ("/v1/responses", {"model": "tiny", "input": "hi", "max_output_tokens": 20}),
    ("/v1/messages", {"model": "tiny", "messages": CHAT["messages"], "max_tokens": 20}),
]


@pytest.fixture
async def limited(tmp_path: Path) -> AsyncIterator[RunningApp]:
    """Every prompt has ten tokens, and every answer as many as it may have."""
    engine = FakeEngine(prompt_tokens=10, answer_tokens=None)
    async with start_app(tmp_path, engine, context_tokens=4096) as running_app:
        yield running_app


async def asked(http: httpx.AsyncClient, path: str = "/v1/chat/completions", **changes: Any) -> httpx.Response:
    return await http.post(path, json=CHAT | changes)


def spent(running_app: RunningApp) -> int:
    """What the engine was asked for, at most."""
    return sum(10 + (body.get("max_tokens") or 0) for name, body in running_app.engine.calls if name != "tokenize")


async def test_five_at_once_on_a_key_of_a_hundred_tokens_spend_no_more_than_that(limited: RunningApp) -> None:
    key = await make_key(limited, limits={"tokens_per_minute": 100})
    async with limited.http(key) as http:
        answers = await asyncio.gather(*(asked(http) for _ in range(5)))
    codes = sorted(answer.status_code for answer in answers)
    assert codes == [200, 200, 200, 429, 429]
    used = sum(answer.json()["usage"]["total_tokens"] for answer in answers if answer.status_code == 200)
    assert used == 90
    assert spent(limited) <= 100


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_every_dialect_is_limited_and_told_of_it(limited: RunningApp, path: str, body: dict[str, Any]) -> None:
    key = await make_key(limited, limits={"tokens_per_minute": 59, "requests_per_minute": 100})
    async with limited.http(key) as http:
        answer = await http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        refused = await http.post(path, json=body)
    error = assert_error(refused, 429, "rate_limit_exceeded")
    assert "tokens_per_minute" in error["message"]
    assert (error["type"], refused.json().get("type", "error")) == ("rate_limit_error", "error")
    assert 1 <= int(refused.headers["retry-after"]) <= 70
    assert "x-should-retry" not in refused.headers
    for response, left in ((answer, 29), (refused, 29)):
        if path == "/v1/messages":
            assert response.headers["anthropic-ratelimit-tokens-limit"] == "59"
            assert response.headers["anthropic-ratelimit-tokens-remaining"] == str(left)
            datetime.strptime(response.headers["anthropic-ratelimit-tokens-reset"], "%Y-%m-%dT%H:%M:%SZ")
            assert response.headers["anthropic-ratelimit-requests-limit"] == "100"
        else:
            assert response.headers["x-ratelimit-limit-tokens"] == "59"
            assert response.headers["x-ratelimit-remaining-tokens"] == str(left)
            assert response.headers["x-ratelimit-reset-tokens"].endswith("s")
            assert response.headers["x-ratelimit-remaining-requests"] == "99"


async def test_a_budget_that_is_spent_is_not_to_be_asked_again(limited: RunningApp) -> None:
    key = await make_key(limited, limits={"tokens_per_day": 40})
    async with limited.http(key) as http:
        assert (await asked(http)).status_code == 200
        refused = await asked(http)
    assert_error(refused, 429, "insufficient_quota")
    assert refused.json()["error"]["type"] == "insufficient_quota"
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers


async def test_in_anthropics_dialect_refusals_are_of_its_shape_and_types(limited: RunningApp) -> None:
    """Its client tells errors by `type`, and knows no others; `code` and `param` stay beside it."""
    path, body = ROUTES[-1]
    budget = await make_key(limited, limits={"tokens_per_day": 40, "requests_per_minute": 9})
    small = await make_key(limited, limits={"tokens_per_minute": 25})
    async with (
        limited.http(budget) as spender,
        limited.http(small) as asker,
        limited.http(API_KEY) as free,
        limited.http("ak_nobody") as stranger,
    ):
        assert (await spender.post(path, json=body)).status_code == 200
        refusals = [
            (await spender.post(path, json=body), 429, "insufficient_quota", "rate_limit_error"),
            (await asker.post(path, json=body), 400, "request_exceeds_limit", "invalid_request_error"),
            (await asker.post(path, json=body | {"max_tokens": -1}), 400, "invalid_value", "invalid_request_error"),
            (await free.post(path, json=body | {"model": "none"}), 404, "model_not_found", "not_found_error"),
            (await stranger.post(path, json=body), 401, "invalid_api_key", "authentication_error"),
            (await stranger.post(f"{path}/count_tokens", json=body), 401, "invalid_api_key", "authentication_error"),
        ]
    for answer, status, code, kind in refusals:
        error = assert_error(answer, status, code)
        told = answer.json()
        assert (told["type"], error["type"], told["request_id"]) == ("error", kind, answer.headers["x-request-id"])
    spent, large = refusals[0][0], refusals[1][0]
    assert spent.headers["x-should-retry"] == "false"
    assert spent.headers["anthropic-ratelimit-requests-remaining"] == "8"
    datetime.strptime(spent.headers["anthropic-ratelimit-requests-reset"], "%Y-%m-%dT%H:%M:%SZ")
    assert large.headers["anthropic-ratelimit-tokens-limit"] == "25"
    assert "retry-after" not in large.headers
    assert not [name for name in spent.headers if name.startswith("x-ratelimit-")]


@pytest.mark.parametrize("change", [{"max_tokens": 200}, {"n": 5, "max_tokens": 20}])
async def test_a_request_larger_than_the_limit_is_a_fault_of_the_request(
    limited: RunningApp, change: dict[str, Any]
) -> None:
    key = await make_key(limited, limits={"tokens_per_minute": 100})
    async with limited.http(key) as http:
        refused = await asked(http, **change)
    error = assert_error(refused, 400, "request_exceeds_limit")
    assert error["param"] == "max_tokens"
    assert "retry-after" not in refused.headers
    assert [name for name, _ in limited.engine.calls if name != "tokenize"] == []


async def test_a_prompt_counts_once_however_many_choices_it_has(limited: RunningApp) -> None:
    key = await make_key(limited, limits={"tokens_per_minute": 100})
    async with limited.http(key) as http:
        assert (await asked(http, n=4, max_tokens=20)).status_code == 200
        assert (await asked(http, max_tokens=1)).status_code == 429


async def test_a_request_that_says_no_bound_gets_what_is_left_and_is_told(limited: RunningApp) -> None:
    key = await make_key(limited, limits={"tokens_per_minute": 100})
    async with limited.http(key) as http:
        answer = await asked(http, max_tokens=None)
    assert answer.status_code == 200
    assert answer.headers["x-amalgam-max-tokens"] == "90"
    assert answer.json()["usage"]["total_tokens"] == 100


async def test_without_a_limit_on_tokens_nothing_is_bounded(limited: RunningApp) -> None:
    key = await make_key(limited, limits={"requests_per_minute": 5})
    async with limited.http(key) as http:
        answer = await asked(http, max_tokens=None)
    assert "x-amalgam-max-tokens" not in answer.headers
    assert "max_tokens" not in limited.engine.calls[-1][1]


async def test_what_was_not_generated_is_given_back(limited: RunningApp) -> None:
    limited.engine.answer_tokens = 2
    key = await make_key(limited, limits={"tokens_per_minute": 100})
    async with limited.http(key) as http:
        for _ in range(6):
            assert (await asked(http, max_tokens=28)).status_code == 200


async def test_a_stream_is_charged_for_what_came(limited: RunningApp) -> None:
    limited.engine.chunks = 5
    key = await make_key(limited, limits={"tokens_per_minute": 60})
    async with limited.http(key) as http:
        for left in (45, 30):
            assert (await asked(http, stream=True)).status_code == 200
            answer = await asked(http, path="/tokenize")
            assert answer.headers["x-ratelimit-remaining-tokens"] == str(left)


async def test_requests_at_a_time_are_bounded_and_free_again(limited: RunningApp) -> None:
    limited.engine.chunk_pause_s = 0.3
    key = await make_key(limited, limits={"concurrent_requests": 2})
    async with limited.http(key) as http:
        answers = await asyncio.gather(*(asked(http) for _ in range(4)))
        assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429]
        limited.engine.chunk_pause_s = 0.0
        assert (await asked(http)).status_code == 200


async def test_a_tenant_is_limited_over_all_its_keys_and_others_are_not(limited: RunningApp) -> None:
    await make_tenant(limited, "acme", limits={"requests_per_minute": 2})
    one, two = await make_key(limited), await make_key(limited)
    other = await make_key(limited, tenant="beta")
    async with limited.http(one) as first, limited.http(two) as second, limited.http(other) as third:
        assert [(await asked(http)).status_code for http in (first, second, first, second)] == [200, 200, 429, 429]
        refused = await asked(second)
        assert "tenant 'acme'" in refused.json()["error"]["message"]
        assert (await asked(third)).status_code == 200
    async with limited.http(API_KEY) as of_the_environment:
        assert (await asked(of_the_environment)).status_code == 200


@pytest.mark.parametrize("spelling", ["sql", "sql@1", "tiny:sql", " sql ", "1.0*sql", "support"])
async def test_limits_on_a_name_hold_however_it_is_spelled(limited: RunningApp, tmp_path: Path, spelling: str) -> None:
    async with limited.http("ak_root_admin-secret-4711") as admin:
        assert (await push(admin, "sql", write_adapter(tmp_path / "a"))).status_code == 201
        made = await admin.put("/admin/v1/aliases/support", json={"targets": [{"model": "sql"}]})
        assert made.is_success
    await make_tenant(limited, "acme", model_limits=[{"pattern": "sq*", "limits": {"requests_per_minute": 1}}])
    key = await make_key(limited)
    async with limited.http(key) as http:
        assert (await asked(http, model="sql")).status_code == 200
        refused = await asked(http, model=spelling)
        error = assert_error(refused, 429, "rate_limit_exceeded")
        assert "models 'sq*'" in error["message"]
        assert (await asked(http)).status_code == 200


async def test_limits_that_are_changed_hold_for_the_next_request(limited: RunningApp) -> None:
    await make_tenant(limited, "acme", limits={"requests_per_minute": 1})
    key = await make_key(limited)
    async with limited.http(key) as http, limited.http("ak_root_admin-secret-4711") as admin:
        assert [(await asked(http)).status_code for _ in range(2)] == [200, 429]
        changed = await admin.patch("/admin/v1/tenants/acme", json={"limits": {"requests_per_minute": 3}})
        assert changed.is_success, changed.text
        await asyncio.sleep(0.25)
        assert [(await asked(http)).status_code for _ in range(3)] == [200, 200, 429]


async def test_a_refused_request_never_reaches_the_engine(limited: RunningApp) -> None:
    key = await make_key(limited, limits={"requests_per_minute": 1})
    async with limited.http(key) as http:
        await asked(http)
        before = len(limited.engine.calls)
        for _ in range(5):
            assert (await asked(http)).status_code == 429
    assert len(limited.engine.calls) == before


async def test_metrics_count_refusals_by_kind(limited: RunningApp) -> None:
    key = await make_key(limited, limits={"requests_per_minute": 1, "tokens_per_day": 100})
    async with limited.http(key) as http, limited.http("ak_root_admin-secret-4711") as admin:
        for most in (20, 20, 500):
            await asked(http, max_tokens=most)
        page = (await admin.get("/metrics")).text
    assert 'amalgam_requests_refused_total{reason="rate_limit"} 1.0' in page
    assert 'amalgam_requests_refused_total{reason="limit_exceeded"} 1.0' in page
    assert 'amalgam_tenant_requests_refused_total{tenant="acme",reason="rate_limit"} 1.0' in page
    assert 'amalgam_tenant_tokens_total{tenant="acme",kind="completion"} 20.0' in page
