"""On the real engine: the ledger is the sum of what answers were told, and a small limit holds."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import RunningServer

MESSAGES = [{"role": "user", "content": "Name three colours."}]
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 12}),
    ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 9, "n": 3, "temperature": 1.0}),
    ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 7, "stop": ["e", "a", "o"]}),
    ("/v1/completions", {"prompt": ["One", "Two, and"], "max_tokens": 5, "n": 2, "temperature": 1.0}),
    ("/v1/completions", {"prompt": [1, 2, 3], "max_tokens": 4}),
    ("/v1/responses", {"input": "Name a colour.", "max_output_tokens": 16}),
    ("/v1/messages", {"messages": MESSAGES, "max_tokens": 8}),
]


@pytest.fixture
def tenant(server: RunningServer) -> str:
    name = f"usage-{time.time_ns()}"
    with server.admin() as admin:
        assert admin.post("/admin/v1/tenants", json={"id": name}).status_code == 201
    return name


def client(server: RunningServer, tenant: str, **fields: Any) -> httpx.Client:
    with server.admin() as admin:
        made = admin.post("/admin/v1/keys", json={"tenant": tenant, "role": "client"} | fields)
        assert made.status_code == 201, made.text
    headers = {"Authorization": f"Bearer {made.json()['key']}"}
    return httpx.Client(base_url=server.url, headers=headers, timeout=120)


def counted(server: RunningServer, tenant: str) -> dict[str, int]:
    with server.admin() as admin:
        answer = admin.get("/admin/v1/usage", params={"by": "tenant", "tenants": tenant})
        assert answer.status_code == 200, answer.text
        lines = answer.json()["data"]
    found: dict[str, int] = lines[0] if lines else {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0}
    return found


def told(answer: dict[str, Any]) -> tuple[int, int]:
    usage = answer["usage"]
    prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
    return prompt, usage.get("completion_tokens", usage.get("output_tokens"))


def streamed(http: httpx.Client) -> tuple[int, int]:
    body = {"messages": MESSAGES, "max_tokens": 10, "stream": True, "stream_options": {"include_usage": True}}
    text = http.post("/v1/chat/completions", json=body).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    return told(next(event for event in reversed(events) if event.get("usage")))


def test_the_ledger_is_the_sum_of_what_answers_were_told(server: RunningServer, tenant: str) -> None:
    with client(server, tenant) as http:
        usages = []
        for path, body in ASKED:
            answer = http.post(path, json=body)
            assert answer.status_code == 200, answer.text
            usages.append(told(answer.json()))
        usages.append(streamed(http))
        refused = http.post("/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 0})
        assert refused.status_code == 400
        line = counted(server, tenant)
        assert line["requests"] == len(usages)
        assert line["prompt_tokens"] == sum(prompt for prompt, _ in usages)
        assert line["completion_tokens"] == sum(completion for _, completion in usages)


def test_who_leaves_is_charged_for_what_was_generated_until_then(server: RunningServer, tenant: str) -> None:
    with client(server, tenant) as http:
        body = {"messages": MESSAGES, "max_tokens": 1500, "stream": True, "ignore_eos": True}
        with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            pieces = answer.iter_lines()
            for _ in range(12):
                next(pieces)
    deadline = time.monotonic() + 60
    while counted(server, tenant)["requests"] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    line = counted(server, tenant)
    assert line["prompt_tokens"] > 0
    assert 3 <= line["completion_tokens"] < 1500


def test_five_at_once_spend_no_more_than_the_limit(server: RunningServer, tenant: str) -> None:
    with client(server, tenant, limits={"tokens_per_minute": 150}) as http, ThreadPoolExecutor(5) as threads:
        body = {"messages": MESSAGES, "max_tokens": 20}
        answers = list(threads.map(lambda _: http.post("/v1/chat/completions", json=body), range(5)))
        codes = {answer.status_code for answer in answers}
        assert codes == {200, 429}
        used = sum(sum(told(answer.json())) for answer in answers if answer.status_code == 200)
        assert used <= 150
        line = counted(server, tenant)
        assert line["prompt_tokens"] + line["completion_tokens"] == used
        unsaid = http.post("/v1/chat/completions", json={"messages": MESSAGES})
        assert unsaid.status_code in (200, 429)
