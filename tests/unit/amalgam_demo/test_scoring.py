"""Scoring through a server: every question asked once, in order, greedily; failures are said."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from amalgam.errors.demo import DemoServerFailed
from amalgam_demo.scoring import CONCURRENCY, base_model_name, connect, grade, server_answers
from amalgam_demo.tasks import generate

ITEMS = generate("json", "test", 20, seed=1)
BY_PROMPT = {item.prompt: item for item in ITEMS}


class Server:
    """Answers every question with its reference, except those of ``wrong``."""

    def __init__(self, wrong: Sequence[str] = ()):
        self.wrong = set(wrong)
        self.bodies: list[Any] = []
        self.running = self.most_running = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        body = json.loads(request.content)
        self.bodies.append(body)
        await asyncio.sleep(0.001 * (len(self.bodies) % 3))
        item = BY_PROMPT[body["messages"][0]["content"]]
        text = "no" if item.template in self.wrong else item.reference
        self.running -= 1
        return httpx.Response(200, json={"choices": [{"message": {"content": text}}]})


def client(handler: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url="http://server", transport=httpx.MockTransport(handler))


async def test_answers_come_back_in_the_order_of_the_items() -> None:
    server, counted = Server(), []
    async with client(server) as connection:
        answers = await server_answers(connection, "json@1", ITEMS, lambda: counted.append(1))
    assert answers == [item.reference for item in ITEMS]
    assert len(counted) == len(server.bodies) == len(ITEMS)
    assert {(body["model"], body["temperature"]) for body in server.bodies} == {("json@1", 0)}
    assert 1 < server.most_running <= CONCURRENCY


async def test_a_score_counts_by_template_and_keeps_the_misses() -> None:
    async with client(Server(wrong=["order"])) as connection:
        answers = await server_answers(connection, "json", ITEMS, lambda: None)
    score = grade(ITEMS, answers)
    asked = sum(item.template == "order" for item in ITEMS)
    assert asked > 0
    assert (score.right, score.total) == (len(ITEMS) - asked, len(ITEMS))
    assert score.by_template["order"] == (0, asked)
    assert {miss.item.template for miss in score.misses} == {"order"}
    assert score.percent == pytest.approx(100 * (len(ITEMS) - asked) / len(ITEMS))


async def test_the_base_model_is_the_one_without_a_parent() -> None:
    def listed(_: httpx.Request) -> httpx.Response:
        rows = [{"id": "sql@1", "parent": "smollm2"}, {"id": "smollm2", "parent": None}]
        return httpx.Response(200, json={"data": rows})

    async with client(listed) as connection:
        assert await base_model_name(connection) == "smollm2"


async def test_a_server_that_is_not_there_is_an_error_with_a_next_step() -> None:
    async with connect("http://127.0.0.1:9", None) as connection:
        with pytest.raises(DemoServerFailed, match="amalgam serve"):
            await base_model_name(connection)


async def test_an_error_answer_ends_the_scoring_with_its_status() -> None:
    async with client(lambda _: httpx.Response(404, text="model_not_found")) as connection:
        with pytest.raises(DemoServerFailed, match="404: model_not_found"):
            await server_answers(connection, "nobody", ITEMS[:2], lambda: None)


async def test_the_key_travels_as_a_bearer_token() -> None:
    async with connect("http://server", "ak_1_secret") as connection:
        assert connection.headers["authorization"] == "Bearer ak_1_secret"
    async with connect("http://server", None) as connection:
        assert "authorization" not in connection.headers
